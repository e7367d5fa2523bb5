//! The resident program: on a primary it holds the pledge and decides whether commits may be acknowledged
//! alone; on a standby it asks for the pledge, so that the node can show that it has everything.
//!
//! [`role::alone`] says what holds and why. One thread, one thing at a time, every wait bounded: systemd ends a
//! program that has not looked for a while, and its pledge goes with it.

mod primary;
mod standby;

pub use standby::{Told, pledge_of, renounce};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use nodefiles::proof::Now;
use nodefiles::resident::{self, Resident};
use observe::{Session, Target, boot_id, uptime_seconds};
use sd_notify::NotifyState;
use settings::Settings;

use crate::tell;
use crate::window::{Window, window};

/// Between two looks.
const TICK: Duration = Duration::from_millis(100);
/// A local server answers within milliseconds. In trouble it may not, and then a commit cannot be let go either.
const LOCAL: Duration = Duration::from_millis(400);
/// Signs of life for the audit.
const SIGN: Duration = Duration::from_secs(1);
/// After this time without one the audit starts the program anew, should systemd not have done so.
pub const LIFELESS: Duration = Duration::from_secs(10);

/// The name of the lock that is the pledge. The window is part of it: who goes by another one is shown nothing.
pub fn pledge_name(window_ms: u64) -> String {
    format!("keepalived_companion.pledge.{window_ms}")
}

/// This moment, by the clock that never jumps.
pub fn now() -> Now {
    Now {
        at: uptime_seconds(),
        boot_id: boot_id(),
    }
}

/// A moment that was so long ago, by the wall clock, for a person.
pub fn wall_clock(ago: Duration) -> String {
    let then = jiff::Timestamp::now()
        .checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default())
        .unwrap_or_else(|_| jiff::Timestamp::now());
    then.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Tells systemd that the program goes on. Also before each wait that may take a while: one that is ended in the
/// middle of trouble begins anew, and lets nothing go for another W.
fn alive() {
    let _ = sd_notify::notify(false, &[NotifyState::Watchdog]);
}

/// An alert, from a thread of its own: to queue one may wait for a disk or for systemd, and who looks must not.
fn raise(settings: &Settings, event: &'static str, severity: Severity, text: String) {
    let settings = settings.clone();
    thread::spawn(move || tell::alert(&settings, event, severity, &text));
}

/// Runs until `ended`.
pub fn run(settings: &Settings, ended: &Arc<AtomicBool>) {
    let window = window(settings);
    log::info!("{window}");
    if let Some(concern) = window.concern() {
        log::warn!("{concern}");
        raise(settings, "window", Severity::Warning, concern);
    }
    let mut program = Program::new(settings, window);
    let mut signed = None::<Instant>;
    let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    while !ended.load(Ordering::Relaxed) {
        let start = Instant::now();
        alive();
        program.look();
        if signed.is_none_or(|at| at.elapsed() >= SIGN) {
            program.sign();
            signed = Some(Instant::now());
        }
        // The interval between two looks; a look may have taken longer.
        thread::sleep(TICK.saturating_sub(start.elapsed()));
    }
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    program.leave();
}

struct Program<'a> {
    settings: &'a Settings,
    window: Window,
    /// With the local server, as long as it answers. The pledge is a lock of this session.
    session: Option<Session>,
    primary: primary::Guard<'a>,
    standby: standby::Standby<'a>,
}

impl<'a> Program<'a> {
    fn new(settings: &'a Settings, window: Window) -> Self {
        Self {
            settings,
            primary: primary::Guard::new(settings, &window),
            standby: standby::Standby::new(settings, &window),
            window,
            session: None,
        }
    }

    /// One look. An error ends the session, and with it the pledge; the next look begins anew.
    fn look(&mut self) {
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => Session::connect(self.settings, Target::Local, LOCAL),
        };
        let looked = session.and_then(|mut session| {
            if session.row::<bool>("SELECT @@read_only")? {
                self.primary.closed(&mut session)?;
                self.standby.look(&mut session)?;
            } else {
                self.standby.opened();
                self.primary.look(&mut session)?;
            }
            Ok(session)
        });
        match looked {
            Ok(session) => self.session = Some(session),
            Err(error) => {
                log::debug!("{error}");
                alive();
                self.primary.lost();
                self.standby.age();
            }
        }
    }

    fn sign(&self) {
        let sign = Resident {
            at: uptime_seconds(),
            boot_id: boot_id(),
            window_ms: self.window.milliseconds(),
        };
        tell::write(&resident::file(self.settings), &sign);
    }

    /// A standby that goes down in order says so first, while it can still be asked.
    fn leave(&mut self) {
        if let Some(session) = &mut self.session {
            self.standby.leave(session);
        }
    }
}
