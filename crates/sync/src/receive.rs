//! `sync-receive`: the forced command for a sender's key. It takes files only while this node is a
//! standby and the sender's epoch is current, and only into the trees of the settings.
//!
//! rsync itself runs as a child with the connection as its input and output. The child is ended as soon
//! as the node stops being a standby, so a sender that does not know yet that it has lost its role
//! changes nothing on the new active node.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use nodefiles::memory::Memory;
use nodefiles::role_state::{self, NodeRole};
use nodefiles::{FileError, JsonFile, Lock, receive_lock, recovered};
use process::Program;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, RenameFlags, renameat_with, syncfs};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::command::{self, Command, Stream};
use crate::root;
use crate::session::{self, NoRequest, Request, Response};
use crate::trash::{self, Aside};

/// Between two looks at the role where it cannot be watched.
const LOOK: Duration = Duration::from_millis(100);

/// Between two looks whether this node still takes files.
const STEPS: usize = 32;

/// Receivers of an earlier connection end within this time: they are killed.
const LEAVING: Duration = Duration::from_secs(3);

/// What this node remembers of what it received.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Received {
    /// The highest epoch that was accepted: an older sender is refused for ever.
    epoch: u64,
    /// The epoch up to whose data this copy was complete once; until then nothing is overwritten or
    /// deleted without a copy.
    complete_epoch: Option<u64>,
    /// The last complete state.
    complete: Option<Complete>,
}

impl Received {
    /// Whether nothing of this copy is overwritten or deleted without a copy.
    fn keeps_copies(&self, epoch: u64) -> bool {
        self.complete_epoch != Some(epoch)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Complete {
    from: String,
    epoch: u64,
    token: String,
    boot_id: String,
}

/// The connection that files are taken from: what a broken one had sent may still be on its way, and must not
/// come after what the next one sends.
#[derive(Debug, Serialize, Deserialize)]
struct Sender {
    from: String,
    /// As sshd names it, the same for all that uses the connection.
    connection: String,
}

impl Sender {
    fn file(settings: &Settings) -> JsonFile<Self> {
        JsonFile::volatile(settings.paths.run.join("sync-sender.json"), 1).private()
    }

    /// Whether a connection is a sender's last one, or there was none.
    fn check(settings: &Settings, from: &str, connection: &str) -> Result<(), String> {
        match Self::file(settings).read().map_err(|e| e.to_string())? {
            Some(last) if last.from == from && last.connection != connection => {
                Err(format!("{from} has connected again since"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes files from this connection only. When it returns, nothing of an earlier one is under way.
    fn take_over(settings: &Settings, from: &str, connection: &str) -> Result<(), String> {
        let sender = Self {
            from: from.to_owned(),
            connection: connection.to_owned(),
        };
        let written = Self::file(settings).replace(&sender);
        written.map_err(|error| error.to_string())?;
        let lock = receive_lock::exclude(settings, LEAVING).map_err(|error| error.to_string())?;
        if lock.is_none() {
            return Err("a receiver of an earlier connection has not ended yet".to_owned());
        }
        clear_temporary(settings);
        Ok(())
    }
}

/// The name of the connection that this program was started by.
fn connection() -> String {
    std::env::var("SSH_CONNECTION").unwrap_or_default()
}

fn received_file(settings: &Settings) -> JsonFile<Received> {
    JsonFile::durable(settings.paths.state.join("sync/received.json"), 1)
}

/// A damaged file is that of a copy that never was complete: nothing is overwritten or deleted without a copy then.
/// An older sender is refused by the highest epoch that this node knows.
fn received(settings: &Settings) -> Result<Received, String> {
    match received_file(settings).read() {
        Ok(received) => Ok(received.unwrap_or_default()),
        Err(error @ FileError::Damaged { .. }) => {
            log::error!("{error}; every file is compared anew");
            Ok(Received::default())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn remember(settings: &Settings, received: &Received) -> Result<(), String> {
    received_file(settings)
        .replace(received)
        .map_err(|error| error.to_string())
}

/// Entry point of `sync-receive`.
pub fn main(settings: &Settings, line: &str) -> ExitCode {
    // Files get their modes from the sender, and ours are exact.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let trees: Vec<&Path> = settings
        .sync
        .trees
        .iter()
        .map(|t| t.path.as_path())
        .collect();
    let done = match command::parse(line, &trees) {
        Ok(Command::Session) => session(settings).map(|()| ExitCode::SUCCESS),
        Ok(Command::Stream(stream)) => receive(settings, &stream),
        Err(refused) => Err(refused.to_string()),
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            log::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this node takes anything from that sender now.
fn gate(settings: &Settings, from: &str, epoch: u64) -> Result<(), String> {
    if !settings.peers().any(|peer| peer.name == from) {
        return Err(format!("{from} is not a peer in the settings here"));
    }
    let me = &settings.local().name;
    match role_state::read(settings).map(|state| state.role) {
        Some(NodeRole::Standby) => {}
        Some(NodeRole::Active) => return Err(format!("{me} is the active node itself")),
        Some(NodeRole::Changing) => return Err(format!("{me} is becoming the active node")),
        None => {
            return Err(format!(
                "{me} does not know its role yet; see the timer keepalived-companion-role"
            ));
        }
    }
    let memory = Memory::load(settings);
    if let Some(unread) = memory.unread() {
        return Err(unread);
    }
    let known = memory.highest_epoch.max(received(settings)?.epoch);
    if epoch < known {
        return Err(format!(
            "epoch {epoch} of {from} is over: {known} was seen here"
        ));
    }
    Ok(())
}

/// The lock that a promotion waits for; rsync inherits it.
fn share(settings: &Settings) -> Result<Lock, String> {
    let lock = receive_lock::share(settings)
        .map_err(|error| error.to_string())?
        .ok_or("a promotion is running here")?;
    lock.inherit()
        .map_err(|error| format!("{}: {error}", receive_lock::file(settings).display()))?;
    Ok(lock)
}

fn receive(settings: &Settings, stream: &Stream) -> Result<ExitCode, String> {
    // The lock before the look: a promotion writes the role first and waits for the lock then.
    let _lock = share(settings)?;
    let wake = role_changes(settings).map_err(|error| error.to_string())?;
    let connection = connection();
    let gate = || {
        gate(settings, &stream.from, stream.epoch)?;
        Sender::check(settings, &stream.from, &connection)
    };
    gate()?;
    root::ensure(settings, &stream.root).map_err(|error| error.to_string())?;
    let state = received(settings)?;
    let mut rsync = Program::new("rsync")
        .arg("--server")
        .args(&stream.arguments)
        // A sender's filter stays with it, where it only transfers. Without one the attributes of this node's kernel
        // and root would go.
        .arg("--filter=-x! user.*")
        .arg(format!("--temp-dir={}/{}", root::OWN, root::TEMPORARY));
    if state.keeps_copies(stream.epoch) && !stream.compares {
        let below = stream.root.strip_prefix("/").unwrap_or(&stream.root);
        let folder = recovered::of_epoch(settings, stream.epoch)
            .join("files")
            .join(below);
        rsync = rsync
            .arg("--backup")
            .arg(format!("--backup-dir={}", folder.display()));
    }
    let rsync = rsync.arg(".").arg(format!("{}/", stream.root.display()));
    let mut why = None;
    let ended = rsync.run_attached(&wake, || {
        drain(&wake);
        match gate() {
            Ok(()) => true,
            Err(reason) => {
                why = Some(reason);
                false
            }
        }
    });
    match (ended, why) {
        (_, Some(why)) => Err(format!("stopped: {why}")),
        (Ok(status), None) => Ok(ExitCode::from(
            status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        )),
        (Err(error), None) => Err(error.to_string()),
    }
}

/// Readable when a file of the run directory was replaced, `role.json` among them. Where the kernel has no
/// watch left, every now and then instead: another program's greed is no reason to take nothing.
fn role_changes(settings: &Settings) -> io::Result<OwnedFd> {
    let watched = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|fd| {
        inotify::add_watch(&fd, &settings.paths.run, WatchFlags::MOVED_TO)?;
        Ok(fd)
    });
    let Err(error) = watched else {
        return Ok(watched?);
    };
    log::debug!(
        "{}: {error}; looked at every {LOOK:?} instead",
        settings.paths.run.display()
    );
    let fd = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let every = LOOK.try_into().map_err(io::Error::other)?;
    let timer = Itimerspec {
        it_interval: every,
        it_value: every,
    };
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &timer)?;
    Ok(fd)
}

fn drain(fd: &OwnedFd) {
    let mut buffer = [0; 4096];
    while rustix::io::read(fd, &mut buffer).is_ok_and(|count| count > 0) {}
}

/// One sender's conversation.
struct Conversation<'a> {
    settings: &'a Settings,
    connection: String,
    hello: Option<Hello>,
}

struct Hello {
    from: String,
    epoch: u64,
    /// The roots, open, in the order of the sender's list.
    roots: Vec<(PathBuf, OwnedFd)>,
}

fn session(settings: &Settings) -> Result<(), String> {
    let mut conversation = Conversation {
        settings,
        connection: connection(),
        hello: None,
    };
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let response = match Request::read(&line) {
            Ok(request) => conversation
                .answer(request)
                .unwrap_or_else(|why| Response::Refused { why }),
            Err(NoRequest::Unsupported { verb }) => {
                log::warn!("not supported here: {verb:?}; nothing was done");
                Response::Unsupported { verb }
            }
            Err(NoRequest::NotARequest(why)) => return Err(format!("not a request: {why}")),
        };
        let mut text = serde_json::to_string(&response).map_err(|error| error.to_string())?;
        text.push('\n');
        output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

impl Conversation<'_> {
    fn answer(&mut self, request: Request) -> Result<Response, String> {
        let settings = self.settings;
        if let Request::Hello {
            from,
            epoch,
            trees,
            protocol,
        } = request
        {
            let (hello, complete, keeps) = greet(settings, &self.connection, from, epoch, &trees)?;
            let trash = hello
                .roots
                .iter()
                .all(|(path, _)| trash::keeps(settings, path));
            self.hello = Some(hello);
            return Ok(welcome(complete, keeps, trash, protocol));
        }
        let hello = self.hello.as_ref().ok_or("say hello first")?;
        self.takes(hello)?;
        let root = |tree: u16| {
            hello
                .roots
                .get(usize::from(tree))
                .ok_or_else(|| format!("there is no tree {tree}"))
        };
        Ok(match request {
            Request::Flush {} => {
                flush(settings, hello)?;
                Response::Done {}
            }
            Request::Rename { tree, from, to } => {
                let (_, fd) = root(tree)?;
                let _lock = self.still_takes(hello)?;
                match rename(fd, &from, &to) {
                    Ok(()) => Response::Done {},
                    Err(error) => Response::NotDone {
                        why: error.to_string(),
                    },
                }
            }
            Request::SetAside { tree, names } => {
                let (path, fd) = root(tree)?;
                self.set_aside(hello, path, fd, &names)?
            }
            Request::Canary { tree } => {
                let (path, _) = root(tree)?;
                Response::Canary {
                    content: root::read_canary(path),
                }
            }
            Request::Complete { token } => {
                flush(settings, hello)?;
                complete(settings, hello, token)?;
                Response::Done {}
            }
            Request::Hello { .. } => return Err("hello was said before".to_owned()),
        })
    }
}

impl Conversation<'_> {
    /// The lock that a promotion, and the next connection, wait for. The look after it: both say what they are first.
    fn still_takes(&self, hello: &Hello) -> Result<Lock, String> {
        let lock = receive_lock::share(self.settings)
            .map_err(|error| error.to_string())?
            .ok_or("a promotion is running here")?;
        self.takes(hello)?;
        Ok(lock)
    }

    /// Whether this node takes anything from this connection now.
    fn takes(&self, hello: &Hello) -> Result<(), String> {
        gate(self.settings, &hello.from, hello.epoch)?;
        Sender::check(self.settings, &hello.from, &self.connection)
    }

    /// Keeps what gives way to these names, as long as this node takes files from this connection.
    fn set_aside(
        &self,
        hello: &Hello,
        path: &Path,
        root: &OwnedFd,
        names: &[Aside],
    ) -> Result<Response, String> {
        let settings = self.settings;
        let _lock = self.still_takes(hello)?;
        // The recovery folder has them, as long as copies are kept there.
        if received(settings)?.keeps_copies(hello.epoch) {
            return Ok(Response::Done {});
        }
        let mounts = root::mounts(path);
        let mut refused = None;
        let mut steps: usize = 0;
        let mut proceed = || {
            steps = (steps + 1) % STEPS;
            if steps == 0
                && let Err(why) = self.takes(hello)
            {
                refused = Some(why);
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        };
        let aside = trash::set_aside(root, names, &mounts, SystemTime::now(), &mut proceed);
        match (aside, refused) {
            (_, Some(why)) => Err(why),
            (Ok(()), None) => Ok(Response::Done {}),
            (Err(error), None) => Ok(Response::NotDone {
                why: error.to_string(),
            }),
        }
    }
}

/// The answer to a hello: a sender of version 0 does not understand a version in it.
fn welcome(complete: Option<String>, keeps: bool, trash: bool, sender: Option<u32>) -> Response {
    Response::Welcome {
        complete,
        protocol: sender.map(|_| session::PROTOCOL),
        keeps: sender.map(|_| keeps),
        trash: sender.is_some() && trash,
    }
}

/// Lets the sender in; gives the token of the complete state, too, and whether copies are kept.
fn greet(
    settings: &Settings,
    connection: &str,
    from: String,
    epoch: u64,
    trees: &[String],
) -> Result<(Hello, Option<String>, bool), String> {
    gate(settings, &from, epoch)?;
    let mut roots = Vec::new();
    for tree in trees {
        let known = settings
            .sync
            .trees
            .iter()
            .find(|known| known.path == Path::new(tree))
            .ok_or_else(|| format!("{tree} is not a tree of the settings here"))?;
        root::ensure(settings, &known.path).map_err(|error| error.to_string())?;
        let fd = File::open(&known.path).map_err(|e| format!("{tree}: {e}"))?;
        roots.push((known.path.clone(), OwnedFd::from(fd)));
    }
    let mut state = received(settings)?;
    if epoch > state.epoch {
        state.epoch = epoch;
        remember(settings, &state)?;
    }
    Sender::take_over(settings, &from, connection)?;
    let boot_id = observe::boot_id();
    let keeps = state.keeps_copies(epoch);
    let complete = state
        .complete
        .filter(|c| c.from == from && c.epoch == epoch && c.boot_id == boot_id)
        .map(|c| c.token);
    Ok((Hello { from, epoch, roots }, complete, keeps))
}

/// What killed rsyncs left, while none runs.
fn clear_temporary(settings: &Settings) {
    for tree in &settings.sync.trees {
        let directory = root::own(&tree.path, root::TEMPORARY);
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // A file that stays is tried again by the next sender.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn flush(settings: &Settings, hello: &Hello) -> Result<(), String> {
    for (path, fd) in &hello.roots {
        syncfs(fd).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let folder = recovered::of_epoch(settings, hello.epoch);
    if let Ok(folder) = File::open(&folder) {
        syncfs(&folder).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Moves a directory below the root; follows no link, and replaces nothing.
fn rename(root: &OwnedFd, from: &[u8], to: &[u8]) -> io::Result<()> {
    let (from_parent, from) = root::parent(root, from)?;
    let (to_parent, to) = root::parent(root, to)?;
    renameat_with(&from_parent, from, &to_parent, to, RenameFlags::NOREPLACE)?;
    Ok(())
}

fn complete(settings: &Settings, hello: &Hello, token: String) -> Result<(), String> {
    let mut state = received(settings)?;
    let first = state.complete_epoch != Some(hello.epoch);
    if first {
        crate::recovered::report(
            settings,
            &recovered::of_epoch(settings, hello.epoch),
            &hello.from,
            hello.epoch,
        )?;
    }
    state.complete_epoch = Some(hello.epoch);
    state.complete = Some(Complete {
        from: hello.from.clone(),
        epoch: hello.epoch,
        token,
        boot_id: observe::boot_id(),
    });
    remember(settings, &state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_only_to_a_sender_that_has_one() {
        let told = |sender| serde_json::to_string(&welcome(None, true, true, sender)).unwrap();
        assert_eq!(told(None), r#"{"answer":"welcome","complete":null}"#);
        assert_eq!(
            told(Some(7)),
            r#"{"answer":"welcome","complete":null,"protocol":1,"keeps":true,"trash":true}"#
        );
    }

    #[test]
    fn a_rename_stays_below_the_root_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let outside = directory.path().join("outside");
        for path in ["root/a/b", "root/full/x", "outside/o"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let fd = OwnedFd::from(File::open(&root).unwrap());
        for (from, to) in [
            ("../outside/o", "o"),
            ("link/o", "o"),
            ("a/b", "link/b"),
            ("a/b", "../b"),
            ("/a/b", "c"),
            ("a//b", "c"),
            ("a/./b", "c"),
            ("a/b", ""),
            ("a/b", "full"),
            ("a/b", ".keepalived-companion/b"),
            (".keepalived-companion", "b"),
            ("none", "c"),
        ] {
            assert!(
                rename(&fd, from.as_bytes(), to.as_bytes()).is_err(),
                "{from} {to}"
            );
        }
        rename(&fd, b"a/b", b"full/c").unwrap();
        assert!(root.join("full/c").is_dir() && root.join("full/x").is_dir());
        assert!(outside.join("o").is_dir());
    }

    #[test]
    fn an_earlier_connection_changes_nothing_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        fs::create_dir_all(base.join("run")).unwrap();
        fs::create_dir_all(base.join("tree/a")).unwrap();
        let text = format!(
            "[cluster]\nvip = \"192.0.2.1\"\n\
             [[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"198.51.100.2\"\n\
             [[node]]\nname = \"b\"\nprivate = \"192.0.2.3\"\nfront = \"198.51.100.3\"\n\
             [paths]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n\
             [[sync.tree]]\npath = \"{0}/tree\"\n",
            base.display()
        );
        let settings = settings::parse(&text, Path::new("c"), Some("b")).unwrap();
        let role = r#"{"role":"standby","epoch":1,"at":0.0}"#;
        fs::write(base.join("run/role.json"), role).unwrap();
        let of = |connection: &str| Conversation {
            settings: &settings,
            connection: connection.to_owned(),
            hello: None,
        };
        let hello = || Request::Hello {
            from: "a".to_owned(),
            epoch: 1,
            trees: vec![base.join("tree").display().to_string()],
            protocol: None,
        };
        let rename = || Request::Rename {
            tree: 0,
            from: b"a".to_vec(),
            to: b"b".to_vec(),
        };
        let (mut earlier, mut later) = (
            of("192.0.2.2 1 192.0.2.3 22"),
            of("192.0.2.2 2 192.0.2.3 22"),
        );
        earlier.answer(hello()).unwrap();
        // A receiver of the first connection has not ended: the second one must wait for it.
        let receiver = share(&settings).unwrap();
        assert!(later.answer(hello()).unwrap_err().contains("has not ended"));
        drop(receiver);
        later.answer(hello()).unwrap();
        assert!(
            earlier
                .answer(rename())
                .unwrap_err()
                .contains("has connected again")
        );
        assert_eq!(later.answer(rename()), Ok(Response::Done {}));
        assert!(base.join("tree/b").is_dir());
    }
}
