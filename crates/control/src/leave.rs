//! The service that hands the right to write over before this host goes down: a reboot or a shutdown in order is a
//! switch-over that is finished before anything that it needs is stopped.
//!
//! logind waits for it, up to its own limit. A host that goes down past logind stops this service before the
//! database, ssh and Keepalived, which is the second chance. Where both are missed the host goes down as it is,
//! and the standby takes over as from any other one that has gone.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use clap::Parser;
use host::logind::{self, Delay, Notice, Notices};
use observe::{Session, Target};
use role::Database;
use sd_notify::NotifyState;
use settings::{Node, Settings};

use crate::cancel::Cancel;
use crate::cli::{Common, Exit};
use crate::{failback, preflight, tell};

/// Between two looks at the signals.
const TICK: Duration = Duration::from_millis(100);
/// Between two tries to reach logind.
const AGAIN: Duration = Duration::from_secs(10);
/// After this time the program that listens does so, and what came before is asked for.
const LISTENS: Duration = Duration::from_secs(1);
/// logind's own default (`InhibitDelayMaxSec=` in logind.conf(5)).
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A host is not held up for longer, whatever logind allows.
const MOST: Duration = Duration::from_secs(30);
/// What is kept of it for the way back.
const MARGIN: Duration = Duration::from_millis(500);
/// Between two looks whether the peer has taken over.
const LOOK: Duration = Duration::from_millis(50);
/// A local server answers within milliseconds.
const LOCAL: Duration = Duration::from_millis(500);
/// Without logind's word: systemd gives the stop of this service a limit of its own (`TimeoutStopSec=`).
const STOP: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(
    name = "leave",
    version,
    about = "Hands the right to write over before this host shuts down or reboots; a service",
    after_help = "Started by keepalived-companion-leave.service. `systemd-inhibit --list` shows that it holds the\n\
                  shutdown up for a moment. It does nothing when only a service or a package is restarted.\n\n\
                  Exit: 0 stopped, 2 settings"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// Entry point of `leave`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    if let Err(exit) = arguments.common.settings_in_force() {
        return exit;
    }
    let stopped = match Cancel::on_signals() {
        Ok(stopped) => stopped,
        Err(exit) => return exit,
    };
    let mut watch = Watch::default();
    watch.renew();
    let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    while !stopped.asked() {
        if watch.host_goes_down() {
            let limit = logind::longest_delay().ok().flatten();
            let limit = limit.unwrap_or(LONGEST_DELAY).saturating_sub(MARGIN);
            hand_over(&arguments.common, limit.min(MOST));
            watch.let_go();
        }
    }
    if host::shutting_down() {
        hand_over(&arguments.common, STOP);
    }
    Exit::Done
}

/// What is held and heard of logind.
#[derive(Default)]
struct Watch {
    delay: Option<Delay>,
    notices: Option<Notices>,
    /// Since when it is listened, until what came before was asked for.
    unsure_since: Option<Instant>,
    tried: Option<Instant>,
    /// The host goes down and has been let go.
    done: bool,
    /// Told once that logind does not answer.
    told: bool,
}

impl Watch {
    /// Waits for a moment; whether the host goes down and waits for this node.
    fn host_goes_down(&mut self) -> bool {
        if self.tried.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.renew();
        }
        let heard = if let Some(notices) = &mut self.notices {
            notices.next(TICK)
        } else {
            thread::sleep(TICK);
            Notice::None
        };
        let missed = self.unsure_since.is_some_and(|at| at.elapsed() >= LISTENS) && {
            self.unsure_since = None;
            logind::going_down().unwrap_or(false)
        };
        match heard {
            Notice::GoingDown => return !self.done,
            Notice::StaysUp => {
                self.done = false;
                self.tried = None;
            }
            // Listened to anew with the next try.
            Notice::End => self.notices = None,
            Notice::None => {}
        }
        missed && !self.done
    }

    /// Holds and listens again, where that has ended.
    fn renew(&mut self) {
        self.tried = Some(Instant::now());
        if self.done {
            return;
        }
        if self.delay.as_mut().is_some_and(Delay::is_over) {
            self.delay = None;
        }
        // Each whatever became of the other.
        let taken = self.take();
        match self.listen().and(taken) {
            Ok(()) => self.told = false,
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    log::warn!(
                        "{error}; a shutdown is handed over when this service is stopped for it. Next: \
                         systemctl status systemd-logind dbus"
                    );
                }
            }
        }
    }

    fn take(&mut self) -> Result<(), process::ProcessError> {
        if self.delay.is_none() {
            let why = "the other node takes over first";
            self.delay = Some(Delay::take("keepalived-companion", why)?);
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), process::ProcessError> {
        if self.notices.is_none() {
            self.notices = Some(Notices::listen()?);
            self.unsure_since = Some(Instant::now());
        }
        Ok(())
    }

    /// The host may go down.
    fn let_go(&mut self) {
        self.delay = None;
        self.done = true;
    }
}

/// The peer takes over from this node, where it is the primary. With the settings of this moment.
fn hand_over(common: &Common, patience: Duration) {
    let start = Instant::now();
    // An error was logged.
    let Ok(settings) = common.settings_in_force() else {
        return;
    };
    let (database, session) = observe::local_database(&settings);
    match &database {
        Database::Answering(server) if server.writable => {}
        Database::Answering(_) | Database::Down | Database::Starting => {
            log::info!(
                "this host goes down; it is not the primary, so there is nothing to hand over"
            );
            return;
        }
        Database::Silent | Database::NotKnown => {
            not_handed_over(&settings, "its database does not answer");
            return;
        }
    }
    if let Some(why) = nodefiles::maintenance::forbids(&settings) {
        not_handed_over(&settings, &format!("{why} on this node"));
        return;
    }
    if let Some(mut session) = session
        && let Err(error) = preflight::end_sessions_in_the_way(&settings, &mut session)
    {
        log::warn!("{error}");
    }
    for peer in settings.peers() {
        let left = patience.saturating_sub(start.elapsed());
        if takes_over(&settings, peer, left) {
            let took = start.elapsed().as_secs_f64();
            let text = format!(
                "this host goes down: {} has taken over, {took:.2} s after the order",
                peer.name
            );
            tell::failover_log(&settings, &text);
            return;
        }
    }
    not_handed_over(
        &settings,
        "no peer took over when it was asked; the reason is in journalctl -u keepalived-companion-leave",
    );
}

/// Asks the peer, and looks here whether it has done so: what it verifies afterwards need not be waited for.
fn takes_over(settings: &Settings, peer: &Node, patience: Duration) -> bool {
    let start = Instant::now();
    let (sender, ended) = mpsc::channel();
    let (its_settings, its_peer) = (settings.clone(), peer.clone());
    thread::spawn(move || {
        let exit = failback::by_peer(&its_settings, &its_peer, patience);
        // Nobody listens any more once it was seen.
        let _ = sender.send(exit);
    });
    let mut exit = None;
    while start.elapsed() < patience {
        if follows(settings) {
            return true;
        }
        match ended.recv_timeout(LOOK) {
            Ok(code) => exit = Some(code),
            Err(RecvTimeoutError::Timeout) => {}
            // It has ended, and the last look was before that.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if follows(settings) {
        return true;
    }
    match exit {
        Some(exit) => log::error!("{} did not take over (exit {})", peer.name, exit.code()),
        None => log::error!("{} did not take over within {patience:.1?}", peer.name),
    }
    false
}

/// Whether this node's database is closed and receives from the new primary: the last thing that a switch-over does.
fn follows(settings: &Settings) -> bool {
    Session::connect(settings, Target::Local, LOCAL)
        .and_then(|mut session| observe::observe_server(&mut session, settings))
        .is_ok_and(|server| !server.writable && server.receives())
}

fn not_handed_over(settings: &Settings, why: &str) {
    let text = format!(
        "this host goes down as the primary: {why}. The standby takes over when it is gone"
    );
    tell::alert(settings, "not-handed-over", Severity::Warning, &text);
}
