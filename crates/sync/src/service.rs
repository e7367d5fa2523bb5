//! The service: follows the node's role, and tells systemd and everybody else how it is.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use nodefiles::role_state::{self, NodeRole};
use nodefiles::sync_status::{self, SyncState, SyncStatus};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use sd_notify::NotifyState;
use settings::Settings;

use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineError};
use crate::root::{self, RootError};
use crate::socket::Desk;
use crate::{status, tell, trash};

/// The heartbeat of the status while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// While something is under way the status is as fresh as this.
const BUSY: Duration = Duration::from_millis(200);
/// A reader that has not come round for so long is stuck: systemd is to restart everything.
const STUCK: Duration = Duration::from_secs(20);
/// Sealed for a switch-over that never came, and still the active node: its tool has died.
const SEALED: Duration = Duration::from_secs(15);
/// At a stop, what waits is sent for so long.
const LAST_CALL: Duration = Duration::from_millis(1500);

struct Service {
    settings: Settings,
    desk: Arc<Desk>,
    engine: Option<Engine>,
    /// Why there is none.
    blocked: Option<String>,
    /// The watches stood once, or there is nothing to watch.
    ready: bool,
    told_ready: bool,
    /// The last one published.
    status: Option<SyncStatus>,
    told: Option<(SyncState, Option<String>)>,
    sealed: Option<Instant>,
}

/// Runs until SIGTERM.
pub fn run(settings: &Settings) -> ExitCode {
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: &Settings) -> Result<(), String> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::fs::create_dir_all(settings.paths.run.join("sync")).map_err(|e| e.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|e| e.to_string())?;
    }
    let wake =
        inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| e.to_string())?;
    if let Err(error) = inotify::add_watch(&wake, &settings.paths.run, WatchFlags::MOVED_TO) {
        log::warn!("{error}: the role is looked at once a second");
    }
    let desk = Desk::open(settings).map_err(|e| {
        format!(
            "{}: {e}",
            nodefiles::sync_status::socket(settings).display()
        )
    })?;
    let of_the_thread = settings.clone();
    // It ends with the program.
    thread::spawn(move || trash::purge_for_ever(&of_the_thread));
    let mut service = Service {
        settings: settings.clone(),
        desk,
        engine: None,
        blocked: None,
        ready: false,
        told_ready: false,
        status: None,
        told: None,
        sealed: None,
    };
    while !stop.load(Ordering::Relaxed) {
        service.follow_role()?;
        let status = service.publish();
        service.tell_systemd(&status);
        let busy = matches!(status.state, SyncState::Starting | SyncState::Behind);
        rest(&wake, if busy { BUSY } else { HEARTBEAT });
    }
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    service.last_call();
    Ok(())
}

/// Waits for a change of the role file; the status's own replacement is seen here, too.
fn rest(wake: &OwnedFd, limit: Duration) {
    let start = Instant::now();
    loop {
        let Ok(left) = limit.saturating_sub(start.elapsed()).try_into() else {
            return;
        };
        // A signal ends it, too.
        let woken = poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&left));
        if !matches!(woken, Ok(1..)) {
            return;
        }
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(wake, &mut buffer);
        while let Ok(event) = reader.next() {
            if event
                .file_name()
                .is_some_and(|name| name.to_bytes() == role_state::NAME.as_bytes())
            {
                return;
            }
        }
    }
}

impl Service {
    /// Starts what the role asks for, and ends what it does not.
    fn follow_role(&mut self) -> Result<(), String> {
        let role = role_state::read(&self.settings);
        let wanted = match role.as_ref().map(|state| (state.role, state.epoch)) {
            Some((NodeRole::Active, epoch)) => Some(epoch),
            Some((NodeRole::Standby | NodeRole::Changing, _)) | None => None,
        };
        let lost = self
            .engine
            .as_ref()
            .and_then(|engine| engine.shared.lock().lost_root.clone());
        if lost.is_some() {
            self.blocked = lost;
            self.stop();
        }
        if self
            .engine
            .as_ref()
            .is_some_and(|engine| engine.epoch != wanted)
        {
            tell::log(&self.settings, "the role has changed");
            self.stop();
            self.blocked = None;
        }
        if self.engine.is_none() {
            self.start(wanted)?;
        }
        self.unseal_after_a_dead_tool();
        let mut current = self.desk.current();
        current.shared = self
            .engine
            .as_ref()
            .map(|engine| Arc::clone(&engine.shared));
        current.active = self
            .engine
            .as_ref()
            .is_some_and(|engine| engine.epoch.is_some());
        current.blocked.clone_from(&self.blocked);
        Ok(())
    }

    fn start(&mut self, epoch: Option<u64>) -> Result<(), String> {
        let released = std::mem::take(&mut self.desk.current().adopt);
        if released {
            for tree in &self.settings.sync.trees {
                if let Err(error) = root::adopt_anew(&self.settings, &tree.path) {
                    log::error!("{error}");
                }
            }
            // What is in the new root may have any times.
            for peer in self.settings.peers() {
                Checkpoint::forget(&self.settings, &peer.name).map_err(|e| e.to_string())?;
            }
        }
        match Engine::start(&self.settings, epoch, released) {
            Ok(engine) => {
                let text = match epoch {
                    Some(epoch) => format!("active node of epoch {epoch}: looks at the trees"),
                    None => "standby: waits, and takes what the active node sends".to_owned(),
                };
                tell::log(&self.settings, &text);
                self.engine = Some(engine);
                self.blocked = None;
                Ok(())
            }
            Err(EngineError::Root(
                error @ (RootError::Exchanged { .. }
                | RootError::Unmounted { .. }
                | RootError::Missing { .. }),
            )) => {
                // Looked at again with each heartbeat: it may be mounted late.
                self.blocked = Some(error.to_string());
                Ok(())
            }
            Err(
                error @ (EngineError::Root(_) | EngineError::Watch(_) | EngineError::Pattern(_)),
            ) => Err(error.to_string()),
        }
    }

    fn stop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        self.sealed = None;
    }

    fn unseal_after_a_dead_tool(&mut self) {
        let Some(engine) = &self.engine else { return };
        let mut state = engine.shared.lock();
        if state.seal.is_none() {
            self.sealed = None;
            return;
        }
        if self.sealed.get_or_insert_with(Instant::now).elapsed() > SEALED {
            state.seal = None;
            self.sealed = None;
            drop(state);
            engine.shared.notify();
            tell::log(
                &self.settings,
                "sending goes on: the switch-over did not come",
            );
        }
    }

    /// Writes the status, and alerts what needs a person once.
    fn publish(&mut self) -> SyncStatus {
        let known = role_state::read(&self.settings).map_or(0, |state| state.epoch);
        let status = match (&self.engine, self.status.take()) {
            (Some(engine), last) => match (engine.shared.try_lock(), last) {
                (Some(state), _) => {
                    self.ready |= state.scanned;
                    status::of_state(&self.settings, &state, engine.epoch, known)
                }
                // A look at a large tree holds it: what was true a moment ago, and alive.
                (None, Some(last)) => SyncStatus {
                    at: observe::uptime_seconds(),
                    ..last
                },
                (None, None) => status::starting(&self.settings, known),
            },
            (None, _) => {
                self.ready |= self.blocked.is_some();
                status::blocked(&self.settings, self.blocked.as_deref(), known)
            }
        };
        if let Err(error) = sync_status::file(&self.settings).replace(&status) {
            log::error!("{error}");
        }
        let now = (status.state, status.reason.clone());
        let was_held = self
            .told
            .as_ref()
            .is_some_and(|(state, _)| *state == SyncState::Held);
        if status.state == SyncState::Held && self.told.as_ref() != Some(&now) {
            let text = format!(
                "file synchronisation is held: {}",
                status.reason.clone().unwrap_or_default()
            );
            tell::log(&self.settings, &text);
            alerts::raise(&self.settings, "sync-held", Severity::Critical, &text);
        } else if was_held && status.state != SyncState::Held {
            let why = self
                .told
                .take()
                .and_then(|(_, why)| why)
                .unwrap_or_default();
            let text = format!("file synchronisation goes on; it was held: {why}");
            tell::log(&self.settings, &text);
            alerts::raise(&self.settings, "sync-goes-on", Severity::Info, &text);
        }
        self.told = Some(now);
        self.status = Some(status.clone());
        status
    }

    fn tell_systemd(&mut self, status: &SyncStatus) {
        let mut words = Vec::new();
        if self.ready && !self.told_ready {
            self.told_ready = true;
            words.push(NotifyState::Ready);
        }
        let text = match status.state {
            SyncState::Starting | SyncState::Behind => format!(
                "{:?}: {}",
                status.state,
                status
                    .standbys
                    .iter()
                    .find_map(|standby| standby.progress.clone())
                    .unwrap_or_else(|| format!(
                        "{} names, {} bytes left",
                        status.paths_behind, status.bytes_behind
                    ))
            ),
            SyncState::InSync | SyncState::Held | SyncState::Degraded | SyncState::Standby => {
                format!(
                    "{:?}{}",
                    status.state,
                    status
                        .reason
                        .as_ref()
                        .map(|r| format!(": {r}"))
                        .unwrap_or_default()
                )
            }
        };
        words.push(NotifyState::Status(&text));
        let alive = self
            .engine
            .as_ref()
            .is_none_or(|engine| engine.pulse.age() < STUCK);
        if alive {
            words.push(NotifyState::Watchdog);
        }
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(false, &words);
    }

    /// Sends what waits, for a moment, so that a restart or a reboot leaves less behind.
    fn last_call(&mut self) {
        let start = Instant::now();
        if let Some(engine) = &self.engine {
            let mut state = engine.shared.lock();
            let waiting = |state: &crate::state::State| {
                state
                    .standbys
                    .iter()
                    .any(|s| s.connected && s.behind() > s.quarantine.len())
            };
            while waiting(&state) && start.elapsed() < LAST_CALL {
                state = engine.shared.wait(state, BUSY);
            }
        }
        self.stop();
    }
}
