//! The forced command: what a peer may ask of this node over ssh, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::Parser;
use host::Verb;
use nodefiles::FileError;
use nodefiles::memory::Memory;
use nodefiles::role_lock::{LockError, RoleLock};
use nodefiles::role_state::NodeRole;
use nodefiles::sync_status::SyncStatus;
use nodefiles::track;
use observe::{Session, SqlError, Target};
use role::{Database, GtidSet, Known};
use settings::Settings;

use crate::broken_off::{self, Left};
use crate::cli::{Common, Exit};
use crate::link;
use crate::wire::{self, NoRequest, Request, Response, Standing};
use crate::{act, events, failback, files, harvest, node_role, rebuild, resident, tell};

/// A question longer than this is refused.
const LINE_CAP: usize = 64 * 1024;
/// A server that does not answer within this time shows nothing.
const PLEDGE: Duration = Duration::from_millis(200);
/// Longest wait for the role lock that a peer may ask for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
#[command(
    name = "peer",
    version,
    about = "The forced command of the toolkit's ssh key: answers a peer's questions line by line",
    after_help = "Put it into authorized_keys:\n  restrict,from=\"ADDRESSES\",command=\"/usr/libexec/keepalived-companion/peer\" ssh-ed25519 …\n\n\
                  The only commands it accepts are `session`, `backup`, `binlog-tail GTIDS` and `failback OPTIONS`; everything else is refused with exit 3."
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// Entry point of `peer`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings_in_force() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let asked = std::env::var_os("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    if asked == "session" {
        return converse(&settings);
    }
    if asked == rebuild::COMMAND {
        return match rebuild::print_backup(&settings) {
            Ok(()) => Exit::Done,
            Err(error) => {
                log::error!("{error}");
                Exit::Undone
            }
        };
    }
    if let Some(words) = asked
        .to_str()
        .map(|text| text.split(' ').collect::<Vec<_>>())
        && let [failback::COMMAND, options @ ..] = words.as_slice()
    {
        return failback::asked(&settings, options);
    }
    let position = asked
        .to_str()
        .and_then(|text| text.strip_prefix(harvest::COMMAND)?.strip_prefix(' '))
        .and_then(|text| text.parse::<GtidSet>().ok())
        .filter(|position| !position.is_empty());
    let Some(after) = position else {
        log::error!(
            "refused: {asked:?}; the only commands are `session`, `{}`, `{} GTIDS` and `{} OPTIONS`",
            rebuild::COMMAND,
            harvest::COMMAND,
            failback::COMMAND
        );
        return Exit::Refused;
    };
    match harvest::print_tail(&settings, &after) {
        Ok(()) => Exit::Done,
        Err(error) => {
            log::error!("{error}");
            Exit::Undone
        }
    }
}

/// Answers one JSON line with another until the peer hangs up; then the lock goes, too.
fn converse(settings: &Settings) -> Exit {
    let mut state = Conversation::default();
    let exit = answer_lines(settings, &mut state);
    // A peer that held the lock may have changed this database over SQL, and have died in the middle of it.
    if state.lock.is_some() {
        broken_off::put_right(settings, &state.left);
    }
    exit
}

/// The lines of the standard input, in order; the end of the input is the end of the channel. From a thread,
/// so that a silence can be noticed.
fn lines() -> Receiver<Vec<u8>> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut input = BufReader::new(std::io::stdin());
        loop {
            let mut line = Vec::new();
            let mut limited = std::io::Read::take(&mut input, LINE_CAP as u64);
            match limited.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send(line).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    lines
}

fn answer_lines(settings: &Settings, state: &mut Conversation) -> Exit {
    let lines = lines();
    let silence = link::silence(settings);
    let mut output = std::io::stdout().lock();
    loop {
        let next = match state.lock {
            Some(_) => lines.recv_timeout(silence),
            None => lines.recv().map_err(RecvTimeoutError::from),
        };
        let line = match next {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return Exit::Done,
            Err(RecvTimeoutError::Timeout) => {
                // A dead network does not hang up.
                log::warn!(
                    "the peer that has the role lock is silent for {silence:?}: it goes back"
                );
                state.left.silent = true;
                return Exit::Undone;
            }
        };
        if line.trim_ascii() == link::STAY.as_bytes() {
            continue;
        }
        let response = match Request::read(&line) {
            Ok(request) => respond(settings, &request, state),
            Err(NoRequest::Unsupported { verb }) => {
                log::warn!("not supported here: {verb:?}; nothing was done");
                Response::Unsupported { verb }
            }
            Err(NoRequest::NotAQuestion) => {
                log::error!("refused: not a question");
                return Exit::Refused;
            }
        };
        let mut text = serde_json::to_vec(&response).unwrap_or_default();
        text.push(b'\n');
        if output
            .write_all(&text)
            .and_then(|()| output.flush())
            .is_err()
        {
            return Exit::Done;
        }
    }
}

/// What one conversation remembers.
#[derive(Debug, Default)]
struct Conversation {
    /// Held until the peer hangs up.
    lock: Option<RoleLock>,
    /// The database did not answer when it was observed.
    silent: bool,
    /// It was open then. Not asked again when the lock is taken: one that is frozen would cost a failover its
    /// whole patience.
    seen_open: bool,
    /// What is put right when the peer does not go on.
    left: Left,
}

/// Writes down who may write, and what that makes of this node.
fn grant(settings: &Settings, to: &str) -> Result<(), FileError> {
    let to = (!to.is_empty()).then_some(to);
    let mut memory = Memory::load(settings);
    memory.grant(settings, to)?;
    if to.is_some_and(|to| to != settings.local().name) {
        // From now on another node may have opened.
        if let Err(error) = nodefiles::alone::file(settings).remove() {
            log::error!("{error}");
        }
        node_role::write(settings, NodeRole::Standby, memory.highest_epoch);
        // What they have begun waits for the freeze, and is ended before that is.
        events::stop(settings, settings.role.self_fence / 3);
    } else {
        node_role::look_again(settings);
    }
    Ok(())
}

/// A connection of its own each time: the resident program's holds the pledge.
fn pledge(settings: &Settings, window_ms: u64) -> Result<Response, SqlError> {
    let mut session = Session::connect(settings, Target::Local, PLEDGE)?;
    let told = resident::pledge_of(&mut session, &resident::pledge_name(window_ms))?;
    let epoch = observe::read_epoch(&mut session, settings)?;
    Ok(Response::Pledge {
        shows: told.shows.into(),
        position: told.position,
        epoch: epoch.map(|epoch| (epoch.number, epoch.primary)),
    })
}

/// A standby gives its proof up, but not where it has the VIP: the primary that asks may be on its way out. A
/// take-over without the VIP, at a person's word, looks at the proof right before it opens and keeps this out
/// until it has. No role lock is asked for: a switch-over that broke off may hold it for seconds, and needs no
/// proof.
fn renounce(settings: &Settings, from: &str) -> Standing {
    let may_be_primary = || {
        let (database, _session) = observe::local_database(settings);
        let vip = observe::vip_present(settings).and(observe::keepalived_running());
        database.writable() || vip != Known::No
    };
    if may_be_primary() {
        return Standing::TakesOver;
    }
    let why = "its primary asked for it, whose commits it did not acknowledge";
    if !resident::renounce(settings, from, Duration::ZERO, why) {
        return Standing::Relies;
    }
    // It may have opened while the note was waited for.
    if may_be_primary() {
        Standing::TakesOver
    } else {
        Standing::Renounced
    }
}

/// What sync-realtime said a moment ago.
fn fresh_files(settings: &Settings) -> Option<SyncStatus> {
    let status = nodefiles::sync_status::read(settings)?;
    let age = observe::uptime_seconds() - status.at;
    (age <= settings.checks.verdict_age.as_secs_f64()).then_some(status)
}

fn take_lock(settings: &Settings, patience: Duration, state: &mut Conversation) -> Response {
    if state.lock.is_some() {
        return Response::Done {};
    }
    match RoleLock::take(settings, patience.min(LONGEST_PATIENCE)) {
        Ok(taken) => {
            state.lock = Some(taken);
            state.left.was_open = state.seen_open;
            Response::Done {}
        }
        Err(LockError::Busy { .. }) => Response::Busy {},
        Err(error @ LockError::Io { .. }) => Response::Failed {
            why: error.to_string(),
        },
    }
}

fn respond(settings: &Settings, request: &Request, state: &mut Conversation) -> Response {
    let done = |outcome: Result<(), String>| match outcome {
        Ok(()) => Response::Done {},
        Err(why) => Response::Failed { why },
    };
    match request {
        Request::Observe {} => {
            let (node, _session) = observe::observe_local(settings);
            state.silent = node.database == Database::Silent;
            state.seen_open = node.database.writable();
            let mut node = node;
            node.highest_epoch = nodefiles::epoch::read(settings).unwrap_or_default();
            Response::Node {
                node: Box::new(node.into()),
                protocol: wire::PROTOCOL,
                window_ms: nodefiles::resident::window_ms(settings, &observe::boot_id()),
            }
        }
        Request::Files {} => Response::Files {
            status: fresh_files(settings).map(Box::new),
        },
        Request::Lock { patience_ms } => {
            take_lock(settings, Duration::from_millis(*patience_ms), state)
        }
        // Everything that changes this node needs its role lock first.
        Request::Grant { .. }
        | Request::Fence {}
        | Request::Standby { .. }
        | Request::SealFiles { .. }
        | Request::UnsealFiles {}
        | Request::RestartKeepalived {}
            if state.lock.is_none() && !matches!(request, Request::Fence {}) =>
        {
            Response::Failed {
                why: "ask for the role lock first".to_owned(),
            }
        }
        Request::Grant { to } => {
            if !to.is_empty() && !settings.nodes.iter().any(|node| node.name == *to) {
                return Response::Failed {
                    why: format!("{to} is not a node in the settings here"),
                };
            }
            let granted = grant(settings, to).map_err(|e| e.to_string());
            // Also where it failed: half of it may have been done.
            state.left.granted = !to.is_empty();
            if !to.is_empty() {
                state.left.was_open = false;
                state.left.sealed &= granted.is_err();
            }
            done(granted)
        }
        Request::SealFiles { limit_ms } => {
            // Also without an answer: it may have heard the question.
            state.left.sealed = true;
            Response::Sealed {
                files: files::seal(settings, Duration::from_millis(*limit_ms)),
            }
        }
        Request::UnsealFiles {} => {
            let unsealed = files::unseal(settings).map_err(|e| e.to_string());
            state.left.sealed &= unsealed.is_err();
            done(unsealed)
        }
        Request::Fence {} => {
            state.left.was_open = false;
            // One silence is enough: while it is asked a second time nobody can write.
            let fenced = if state.silent {
                act::kill_local(settings)
            } else {
                act::fence_local(settings)
            }
            .map_err(|e| e.to_string());
            if fenced.is_ok() {
                // The peer may open now, so it is not true any more that nobody else can have opened.
                if let Err(error) = nodefiles::alone::file(settings).remove() {
                    log::error!("{error}");
                }
                tell::failover_log(settings, "fenced at a peer's word");
            }
            done(fenced)
        }
        Request::Standby { on } => {
            done(track::set_standby(settings, *on).map_err(|e| e.to_string()))
        }
        Request::Pledge { window_ms } => {
            pledge(settings, *window_ms).unwrap_or_else(|error| Response::Failed {
                why: error.to_string(),
            })
        }
        Request::Renounce { from } => Response::Standing {
            standby: renounce(settings, from),
        },
        Request::RestartKeepalived {} => {
            done(act::ask_systemd(Verb::Restart, "keepalived.service").map_err(|e| e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::files::Sealed;
    use crate::testing::settings;

    fn locked(settings: &Settings) -> Conversation {
        Conversation {
            lock: Some(RoleLock::take(settings, Duration::ZERO).unwrap()),
            ..Conversation::default()
        }
    }

    fn role(settings: &Settings) -> Option<NodeRole> {
        nodefiles::role_state::read(settings).map(|state| state.role)
    }

    fn grant(to: &str) -> Request {
        Request::Grant { to: to.to_owned() }
    }

    #[test]
    fn nothing_is_changed_without_the_role_lock() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        for request in [
            Request::SealFiles { limit_ms: 500 },
            Request::UnsealFiles {},
            grant("b"),
        ] {
            let response = respond(&settings, &request, &mut Conversation::default());
            assert!(
                matches!(response, Response::Failed { .. }),
                "{request:?}: {response:?}"
            );
        }
        assert_eq!(role(&settings), None);
    }

    #[test]
    fn the_node_that_grants_stands_by() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let mut state = locked(&settings);
        node_role::write(&settings, NodeRole::Active, 5);
        respond(&settings, &grant("stranger"), &mut state);
        assert_eq!(role(&settings), Some(NodeRole::Active));
        assert_eq!(
            respond(&settings, &grant("b"), &mut state),
            Response::Done {}
        );
        assert_eq!(role(&settings), Some(NodeRole::Standby));
        // Its database says nothing here, so taking the grant back changes nothing.
        assert_eq!(
            respond(&settings, &grant(""), &mut state),
            Response::Done {}
        );
        assert_eq!(role(&settings), Some(NodeRole::Standby));
    }

    /// A sync-realtime that answers so many questions with the same words, and returns them.
    fn sender(
        settings: &Settings,
        answers: usize,
        words: &'static str,
    ) -> thread::JoinHandle<String> {
        let listener = UnixListener::bind(nodefiles::sync_status::socket(settings)).unwrap();
        thread::spawn(move || {
            let mut asked = String::new();
            for _ in 0..answers {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(stream.try_clone().unwrap())
                    .read_line(&mut asked)
                    .unwrap();
                writeln!(stream, "{words}").unwrap();
            }
            asked
        })
    }

    #[test]
    fn a_peer_that_dies_leaves_no_sender_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let asked = sender(&settings, 2, "behind 3");
        let mut state = locked(&settings);
        assert_eq!(
            respond(&settings, &Request::SealFiles { limit_ms: 500 }, &mut state),
            Response::Sealed {
                files: Sealed::Behind { paths: 3 }
            }
        );
        broken_off::put_right(&settings, &state.left);
        assert_eq!(asked.join().unwrap(), "seal 400\nunseal\n");
    }

    #[test]
    fn a_sender_stays_stopped_once_the_right_to_write_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let asked = sender(&settings, 1, "sealed");
        let mut state = locked(&settings);
        respond(&settings, &Request::SealFiles { limit_ms: 500 }, &mut state);
        respond(&settings, &grant("b"), &mut state);
        assert_eq!(asked.join().unwrap(), "seal 400\n");
        assert!(!state.left.sealed, "it would be told to go on at the end");
    }
}
