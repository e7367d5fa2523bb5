//! Delivery: for each channel in order, with back-off that survives restarts. At least once: a
//! kill between the answer and the note of it repeats one alert.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use settings::{Channel, ChannelKind, Settings, read_secret};

use crate::spool::{self, AlertsError, QueueEntry};

/// Longest wait between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(900);
/// A channel that refuses one alert this often loses that alert.
const REFUSALS: u32 = 3;

/// What a flush did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Deliveries made.
    pub delivered: usize,
    /// Deliveries that are still to be made.
    pub waiting: usize,
    /// Another flush is running.
    pub busy: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Backoff {
    failures: u32,
    not_before: Option<Timestamp>,
}

enum Outcome {
    Delivered,
    /// Refused for good: another try will not help.
    Refused(String),
    /// Try again, not before this time when the server names one.
    Later(String, Option<Duration>),
}

/// Delivers what is due. A second flush at the same time returns at once.
pub fn flush(settings: &Settings) -> Result<Report, AlertsError> {
    let Some(_lock) = spool::lock(settings, "delivery.lock", false)? else {
        return Ok(Report {
            busy: true,
            ..Report::default()
        });
    };
    let mut report = Report::default();
    let path = spool::directory(settings).join("backoff");
    let mut backoffs: BTreeMap<String, Backoff> = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    for channel in &settings.alerts.channels {
        let backoff = backoffs.entry(channel.name.clone()).or_default();
        let wait = backoff
            .not_before
            .map(|at| at.duration_since(Timestamp::now()));
        // A clock that was set back must not make the wait longer than it can be.
        if wait.is_some_and(|w| w.is_positive() && w.unsigned_abs() <= LONGEST_BACKOFF) {
            continue;
        }
        deliver_in_order(settings, channel, backoff, &mut report)?;
    }
    if let Err(error) = fs::write(&path, serde_json::to_vec(&backoffs).unwrap_or_default()) {
        log::warn!("{}: {error}", path.display());
    }
    spool::forget_delivered(settings)?;
    report.waiting = spool::queue(settings)?
        .iter()
        .map(|e| e.pending.len())
        .sum();
    Ok(report)
}

fn deliver_in_order(
    settings: &Settings,
    channel: &Channel,
    backoff: &mut Backoff,
    report: &mut Report,
) -> Result<(), AlertsError> {
    for (path, entry) in spool::read_all(settings)? {
        if !entry.pending.contains(&channel.name) {
            continue;
        }
        let outcome = send(settings, channel, &entry);
        // A hook may have counted this alert up in the meantime: read it again under the lock.
        let _lock = spool::lock(settings, "queue.lock", true)?;
        let Some(mut entry) = fs::read(&path)
            .ok()
            .and_then(|b| serde_json::from_slice::<QueueEntry>(&b).ok())
        else {
            continue;
        };
        match outcome {
            Outcome::Delivered => {
                entry.pending.retain(|name| *name != channel.name);
                report.delivered += 1;
                *backoff = Backoff::default();
            }
            Outcome::Refused(why) => {
                let count = entry.refusals.entry(channel.name.clone()).or_default();
                *count += 1;
                log::warn!(
                    "{}: refused, try {count} of {REFUSALS}: {why}",
                    channel.name
                );
                if *count < REFUSALS {
                    spool::write(&path, &entry)?;
                    later(settings, backoff, None);
                    return Ok(());
                }
                log::error!("{}: gave up on: {}", channel.name, entry.alert.message);
                entry.pending.retain(|name| *name != channel.name);
            }
            Outcome::Later(why, after) => {
                log::warn!("{}: not delivered: {why}", channel.name);
                later(settings, backoff, after);
                return Ok(());
            }
        }
        spool::write(&path, &entry)?;
    }
    Ok(())
}

fn later(settings: &Settings, backoff: &mut Backoff, after: Option<Duration>) {
    let doubled = settings
        .alerts
        .backoff
        .saturating_mul(1 << backoff.failures.min(10));
    backoff.failures = backoff.failures.saturating_add(1);
    let wait = after.unwrap_or(doubled).min(LONGEST_BACKOFF);
    backoff.not_before = Some(Timestamp::now() + wait);
}

/// Sends a test alert to every channel now, and says what came back.
pub fn test_channels(settings: &Settings) -> Vec<(String, Result<(), String>)> {
    let entry = QueueEntry {
        alert: crate::Alert {
            event: "test".to_owned(),
            severity: crate::Severity::Info,
            message: "test of the alerts; nothing has happened".to_owned(),
        },
        node: settings.local().name.clone(),
        at: Timestamp::now(),
        count: 1,
        pending: Vec::new(),
        refusals: BTreeMap::new(),
    };
    settings
        .alerts
        .channels
        .iter()
        .map(|channel| {
            let result = match send(settings, channel, &entry) {
                Outcome::Delivered => Ok(()),
                Outcome::Refused(why) | Outcome::Later(why, _) => Err(why),
            };
            (channel.name.clone(), result)
        })
        .collect()
}

fn send(settings: &Settings, channel: &Channel, entry: &QueueEntry) -> Outcome {
    let text = spool::text(entry);
    let bot = |base: &str, token: &std::path::Path, chat: &str, text: String| {
        let token = read_secret(token, None).map_err(|error| error.to_string())?;
        let url = format!("{base}/bot{}/sendMessage", token.reveal());
        Ok::<_, String>((url, serde_json::json!({"chat_id": chat, "text": text})))
    };
    let request = match &channel.kind {
        ChannelKind::Telegram {
            base_url,
            token_file,
            chat_id,
        } => bot(base_url, token_file, chat_id, text),
        ChannelKind::Bale {
            base_url,
            token_file,
            chat_id,
        } => bot(base_url, token_file, chat_id, escape_markdown(&text)),
        ChannelKind::Webhook { url } => Ok((
            url.reveal().to_owned(),
            serde_json::json!({
                "text": text, "node": entry.node, "time": entry.at.to_string(),
                "event": entry.alert.event, "severity": entry.alert.severity, "count": entry.count,
            }),
        )),
    };
    let (url, body) = match request {
        Ok(request) => request,
        Err(why) => return Outcome::Later(why, None),
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(settings.alerts.connect_timeout))
        .timeout_global(Some(settings.alerts.total_timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build()
        .into();
    match agent.post(&url).send_json(body) {
        Ok(response) => judge(&response),
        // The error's text may hold the URL, and the URL the token.
        Err(error) => Outcome::Later(error.to_string().replace(&url, "«url»"), None),
    }
}

fn judge(response: &ureq::http::Response<ureq::Body>) -> Outcome {
    let status = response.status().as_u16();
    let why = format!("HTTP status {status}");
    match status {
        200..=299 => Outcome::Delivered,
        408 | 429 => {
            let after = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            Outcome::Later(why, after)
        }
        300..=499 => Outcome::Refused(why),
        _ => Outcome::Later(why, None),
    }
}

/// Bale renders the text as Markdown.
fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '_' | '`' | '[' | ']' | '(' | ')' | '~' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
