//! Alerts: written to disk first, delivered in the background, in order, once each.
//!
//! A dead messenger never delays a role change: [`raise`] touches the disk and systemd only.

pub mod cli;
mod deliver;
mod send;
mod spool;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use host::Verb;
use nodefiles::proof::Now;
use serde::{Deserialize, Serialize};
use settings::Settings;

pub use deliver::{Report, flush, test_channels, wrong_secrets};
pub use spool::{AlertsError, QueueEntry, enqueue, queue};

/// The unit that delivers.
const DELIVERY_UNIT: &str = "keepalived-companion-alerts.service";

/// What systemd is asked for usually takes less.
const MOMENT: Duration = Duration::from_millis(200);

/// What systemd is asked for takes no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much it matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For the record.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

/// Something that a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What kind of thing happened, such as `promoted`; equal kinds and texts fold into one.
    pub event: String,
    /// How much it matters.
    pub severity: Severity,
    /// The text for the person.
    pub message: String,
}

/// Queues an alert and starts its delivery. It never fails: what cannot be queued is logged.
pub fn raise(settings: &Settings, event: &str, severity: Severity, message: &str) {
    let alert = Alert {
        event: event.to_owned(),
        severity,
        message: message.to_owned(),
    };
    match enqueue(settings, &alert) {
        Ok(()) if settings.alerts.channels.is_empty() => {}
        Ok(()) => wake(),
        Err(error) => log::error!("alert not queued ({error}): {message}"),
    }
}

/// Starts the delivery without waiting for it; the timer would do so half a minute later. Nor is systemd waited for
/// longer than a moment where it is slow: a role change may be under way.
pub fn wake() {
    let (sender, asked) = mpsc::channel();
    thread::spawn(move || {
        // Nobody listens any more after a moment.
        let _ = sender.send(host::ask(Verb::Start, DELIVERY_UNIT, PATIENCE));
    });
    match asked.recv_timeout(MOMENT) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::warn!("{error}; the timer delivers later"),
        Err(_) => log::warn!("systemd is slow; the timer delivers later if it must"),
    }
}

/// This moment, by the clock that never jumps.
pub(crate) fn now() -> Now {
    Now {
        at: host::uptime_seconds(),
        boot_id: host::boot_id(),
    }
}

/// A line with the local time, in the form of the original scripts' logs, in a file and in the journal.
pub fn log_line(path: &Path, text: &str) {
    let line = format!(
        "{} - {text}\n",
        jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S")
    );
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        log::error!("{}: {error}", path.display());
    }
    log::info!("{text}");
}
