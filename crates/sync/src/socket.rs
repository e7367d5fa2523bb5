//! The socket: applications wait for a file, the role tools stop the sending, checks ask whether the
//! watcher is alive. One request a connection, a line each way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use settings::Settings;

use crate::dirs::Key;
use crate::hold;
use crate::root;
use crate::sample;
use crate::slots::{Slot, Slots};
use crate::state::{Seal, Shared, Waited};

/// A client that does not ask within this time is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// A standby that is there and does not take a file for so long counts as away for who waits.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The reader takes in every event before a barrier within this time, or a disk hangs.
const BARRIER: Duration = Duration::from_secs(1);
/// Longest time for a sample, and the most files of one.
const SAMPLE: Duration = Duration::from_secs(10);
const MOST_SAMPLES: usize = 1000;
/// The same whether a path is elsewhere, is not there, or may not be seen: who asks is not root.
const ELSEWHERE: &str = "it is in none of the trees of the settings";
/// How often one who waits looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(100);
/// A user whom the kernel does not name. It is the number that stands for none.
const SOMEBODY: u32 = u32::MAX;
/// Nobody reads it.
const GONE: &str = "you have hung up";
/// A path is shorter.
const LONGEST_REQUEST: u64 = 64 * 1024;

/// What the socket's threads know of the service.
#[derive(Debug)]
pub struct Desk {
    settings: Settings,
    current: Mutex<Current>,
    /// When the last barrier was written, and how it ended.
    barrier: Mutex<Option<(Instant, Result<(), String>)>>,
    slots: Arc<Slots>,
}

/// What the service does now.
#[derive(Debug, Default)]
pub struct Current {
    /// The threads' state; none while nothing is watched.
    pub shared: Option<Arc<Shared>>,
    /// Whether this node is the active one.
    pub active: bool,
    /// Why nothing is watched.
    pub blocked: Option<String>,
    /// A person has said that the roots are right as they are.
    pub adopt: bool,
}

impl Desk {
    /// Listens, in threads of its own.
    pub fn open(settings: &Settings) -> io::Result<Arc<Self>> {
        let path = nodefiles::sync_status::socket(settings);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        let group = group_id(&settings.sync.socket_group);
        if group.is_none() {
            log::warn!(
                "there is no group {}: only root can ask {}",
                settings.sync.socket_group,
                path.display()
            );
        }
        std::os::unix::fs::chown(&path, Some(0), group.or(Some(0)))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        let desk = Arc::new(Self {
            settings: settings.clone(),
            current: Mutex::default(),
            barrier: Mutex::default(),
            slots: Arc::default(),
        });
        let desk_of_the_listener = Arc::clone(&desk);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let desk = Arc::clone(&desk_of_the_listener);
                let Some(slot) = desk.admit(&client) else {
                    continue;
                };
                thread::spawn(move || {
                    if let Err(error) = desk.serve(&client) {
                        log::debug!("a client of the socket: {error}");
                    }
                    drop(slot);
                });
            }
        });
        Ok(desk)
    }

    /// A slot for a client, or an answer that there is none.
    fn admit(&self, client: &UnixStream) -> Option<Slot> {
        // One in a container, whose processes have no number here, is told only as somebody.
        let user = socket_peercred(client).map_or(SOMEBODY, |known| known.uid.as_raw());
        let slot = self.slots.take(user);
        if slot.is_none() {
            let mut client = client;
            // The listener waits for nobody.
            let _ = client.set_nonblocking(true);
            let _ = client.write_all(b"error too many requests at once\n");
        }
        slot
    }

    /// What the service does now.
    pub fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an active node that watches.
    fn sending(&self) -> Option<Arc<Shared>> {
        let current = self.current();
        current.shared.clone().filter(|_| current.active)
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.current().shared.clone()
    }

    fn serve(&self, client: &UnixStream) -> io::Result<()> {
        client.set_write_timeout(Some(PATIENCE))?;
        let request = read_request(client)?;
        let answer = self.answer(client, &request)?;
        let mut client = client;
        client.write_all(format!("{answer}\n").as_bytes())
    }

    fn answer(&self, client: &UnixStream, request: &[u8]) -> io::Result<String> {
        if let Some(path) = request.strip_prefix(b"wait0 ") {
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            return Ok(self.wait(client, path));
        }
        let request = request.strip_suffix(b"\n").unwrap_or(request);
        if let Some(path) = request.strip_prefix(b"wait ") {
            return Ok(self.wait(client, path));
        }
        if !socket_peercred(client)?.uid.is_root() {
            return Ok("error only root may ask that".to_owned());
        }
        let text = String::from_utf8_lossy(request);
        Ok(match text.split_once(' ').unwrap_or((&text, "")) {
            ("probe", "") => self.probe(),
            ("seal", limit) => match limit.parse() {
                Ok(limit) => self.seal(Duration::from_millis(limit)),
                Err(_) => format!("error `{limit}` is not a number of milliseconds"),
            },
            ("unseal", "") => self.unseal(),
            ("release", "") => self.release(),
            ("sample", wanted) => match wanted.split_once(' ').map(|(n, node)| (n.parse(), node)) {
                Some((Ok(files), node)) => self.sample(files, node),
                Some((Err(_), _)) | None => format!("error `{wanted}` is not FILES NODE"),
            },
            _ => "error expected wait PATH, probe, seal MS, unseal, release or sample FILES NODE"
                .to_owned(),
        })
    }

    /// `stored`, `alone REASON` or `error REASON`.
    fn wait(&self, client: &UnixStream, path: &[u8]) -> String {
        let Some(shared) = self.sending() else {
            return match &self.current().blocked {
                Some(why) => format!("alone {why}"),
                None => "error this node is not the active one".to_owned(),
            };
        };
        match self.wait_for(&shared, client, path) {
            Ok(Waited::Stored) => "stored".to_owned(),
            Ok(Waited::Alone(why)) => {
                let text = format!(
                    "a file is on this node only: {}: {why}",
                    String::from_utf8_lossy(path)
                );
                log::warn!("{text}");
                // The text without the path folds; one alert tells of a dead standby, not one for each file.
                alerts::raise(
                    &self.settings,
                    "sync-alone",
                    alerts::Severity::Warning,
                    &format!(
                        "files are acknowledged that are on {} only: {why}",
                        self.settings.local().name
                    ),
                );
                format!("alone {}", why.replace('\n', " "))
            }
            Err(why) => format!("error {why}"),
        }
    }

    fn wait_for(
        &self,
        shared: &Shared,
        client: &UnixStream,
        path: &[u8],
    ) -> Result<Waited, String> {
        let start = Instant::now();
        {
            let mut state = shared.lock();
            while !state.scanned {
                if start.elapsed() >= self.settings.sync.wait_alone {
                    return Ok(Waited::Alone("the watches do not stand yet".to_owned()));
                }
                state = shared.wait(state, self.settings.sync.wait_alone.min(LOOK));
                if has_gone(client) {
                    return Err(GONE.to_owned());
                }
            }
        }
        let key = match Self::find(shared, path)? {
            Some(key) => key,
            None => {
                // Its directory may be newer than what has been read.
                self.barrier(shared)?;
                Self::find(shared, path)?.ok_or("its directory is not known, or is excluded")?
            }
        };
        let mut state = shared.lock();
        if state.stays_here(&key, false) {
            return Err("it is excluded in the settings".to_owned());
        }
        let waiter = state.begin_wait(&key, start);
        shared.notify();
        loop {
            let held = state.lost_root.clone();
            let Some(waiting) = state.waiting.get(&waiter) else {
                return Err("forgotten".to_owned());
            };
            let patience = if waiting.open.is_empty() || held.is_some() {
                self.settings.sync.wait_alone
            } else {
                LONGEST_WAIT
            };
            let over = start.elapsed() >= patience;
            if waiting.stored && (waiting.open.is_empty() || over) {
                state.waiting.remove(&waiter);
                return Ok(Waited::Stored);
            }
            if over {
                let why = held
                    .or_else(|| waiting.why.clone())
                    .unwrap_or_else(|| format!("no standby took it within {patience:?}"));
                state.waiting.remove(&waiter);
                return Ok(Waited::Alone(why));
            }
            if has_gone(client) {
                state.waiting.remove(&waiter);
                return Err(GONE.to_owned());
            }
            let left = patience.saturating_sub(start.elapsed());
            state = shared.wait(state, left.min(LOOK));
        }
    }

    /// The name in its tree; none when its directory is not known.
    fn find(shared: &Shared, path: &[u8]) -> Result<Option<Key>, String> {
        let clean = !path
            .split(|b| *b == b'/')
            .any(|part| matches!(part, b"." | b".."));
        let place = if clean {
            shared.lock().place(path)
        } else {
            None
        };
        let (root, relative) = match place {
            Some(place) => place,
            None => {
                // By way of a link, or with dots in it. Without the lock: it may be on a disk that hangs.
                let path = Path::new(std::ffi::OsStr::from_bytes(path));
                let name = path.file_name().ok_or("not a path of a file")?;
                let directory = path
                    .parent()
                    .ok_or("not a path of a file")?
                    .canonicalize()
                    .map_err(|_| ELSEWHERE)?;
                let path = directory.join(name);
                shared
                    .lock()
                    .place(path.as_os_str().as_bytes())
                    .ok_or(ELSEWHERE)?
            }
        };
        let found = shared.lock().dirs.find(root, &relative);
        Ok(found.filter(|key| !key.name.is_empty()))
    }

    /// When this returns, every change from before has been taken in: the kernel's queue keeps the order. Those who
    /// ask at once share one, so that many of them do not keep a switch-over waiting.
    fn barrier(&self, shared: &Shared) -> Result<(), String> {
        let asked = Instant::now();
        let mut last = self.barrier.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((written, ended)) = &*last
            && *written > asked
        {
            return ended.clone();
        }
        let written = Instant::now();
        let ended = Self::pass_barrier(shared);
        *last = Some((written, ended.clone()));
        ended
    }

    fn pass_barrier(shared: &Shared) -> Result<(), String> {
        let start = Instant::now();
        let (before, path) = {
            let state = shared.lock();
            let tree = state.trees.first().ok_or("no tree")?;
            (state.barrier_seen, tree.path.clone())
        };
        root::write_own(&path, root::BARRIER, "")
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let mut state = shared.lock();
        while state.barrier_seen == before {
            if start.elapsed() > BARRIER {
                return Err(format!("the watcher has not answered within {BARRIER:?}"));
            }
            state = shared.wait(state, BARRIER);
        }
        Ok(())
    }

    fn probe(&self) -> String {
        let probes: BTreeMap<String, String> = self
            .shared()
            .map(|shared| {
                shared
                    .lock()
                    .trees
                    .iter()
                    .map(|tree| (tree.path.to_string_lossy().into_owned(), tree.probe.clone()))
                    .collect()
            })
            .unwrap_or_default();
        serde_json::to_string(&probes).unwrap_or_default()
    }

    /// Sends what waits, and then nothing more: `sealed`, `behind N`, `standby`.
    fn seal(&self, limit: Duration) -> String {
        let start = Instant::now();
        let Some(shared) = self.sending() else {
            return match &self.current().blocked {
                Some(why) => format!("error {why}"),
                None => "standby".to_owned(),
            };
        };
        shared.lock().seal = Some(Seal::Closing);
        let read = self.barrier(&shared);
        let mut state = shared.lock();
        loop {
            // Names that a standby cannot take do not hold up a change of roles; they are told.
            let behind = state
                .standbys
                .iter()
                .map(|s| s.behind() + state.unread())
                .max()
                .unwrap_or(0);
            if behind == 0 || start.elapsed() >= limit || state.stopped {
                state.seal = Some(Seal::Closed);
                let withheld = state.standbys.iter().map(|s| s.withheld.len()).max();
                let behind = behind + withheld.unwrap_or(0);
                drop(state);
                shared.notify();
                return match (behind, read) {
                    (0, Ok(())) => "sealed".to_owned(),
                    (0, Err(why)) => format!("error {why}"),
                    (behind, _) => format!("behind {behind}"),
                };
            }
            let left = limit.saturating_sub(start.elapsed());
            state = shared.wait(state, left.max(Duration::from_millis(1)));
        }
    }

    fn unseal(&self) -> String {
        if let Some(shared) = self.shared() {
            shared.lock().seal = None;
            shared.notify();
        }
        "unsealed".to_owned()
    }

    /// Compares some files with a standby by their digests.
    fn sample(&self, files: usize, standby: &str) -> String {
        match self.sending() {
            Some(shared) => {
                let largest = self.settings.sync.large;
                sample::sample(&shared, files.min(MOST_SAMPLES), largest, standby, SAMPLE)
            }
            None => "error this node is not the active one".to_owned(),
        }
    }

    fn release(&self) -> String {
        let mut current = self.current();
        let mut released = Vec::new();
        if let Some(why) = current.blocked.clone() {
            current.adopt = true;
            released.push(why);
        }
        if let Some(shared) = &current.shared {
            let mut state = shared.lock();
            state.allow(Instant::now());
            match hold::end(&self.settings, &mut state) {
                Ok(held) => {
                    state.let_go(Instant::now());
                    released.extend(held);
                }
                Err(error) => return format!("error not released: {error}"),
            }
            drop(state);
            shared.notify();
        }
        if released.is_empty() {
            "nothing was held".to_owned()
        } else {
            format!("released: {}", released.join("; ").replace('\n', " "))
        }
    }
}

/// Whether a client has hung up. One that only has nothing more to say still listens.
fn has_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    let at_once = Timespec::default();
    matches!(poll(&mut fds, Some(&at_once)), Ok(1..))
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Up to a newline, or to a NUL for `wait0`, whose names may hold a newline.
fn read_request(client: &UnixStream) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut reader = BufReader::new(client.take(LONGEST_REQUEST));
    let mut request = Vec::new();
    loop {
        // For all of it: one that sends a byte now and then would keep its slot.
        let left = PATIENCE.saturating_sub(start.elapsed());
        client.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(request);
        }
        let length = piece.len();
        request.extend_from_slice(piece);
        reader.consume(length);
        let end = if request.starts_with(b"wait0 ") {
            0
        } else {
            b'\n'
        };
        if request.contains(&end) {
            return Ok(request);
        }
        if start.elapsed() >= PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// The number of a group, as the local file has it.
fn group_id(name: &str) -> Option<u32> {
    fs::read_to_string("/etc/group")
        .ok()?
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
        })
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::sync::mpsc;

    use super::*;
    use crate::state::{StandbyState, State};
    use crate::watch::tests::Tree;

    /// Longer than anything here takes.
    const LIMIT: Duration = Duration::from_secs(20);

    /// An active node with one standby that takes nothing.
    fn desk(state: State, directory: &Path) -> (Arc<Desk>, Arc<Shared>) {
        let shared = Arc::new(Shared::of(state));
        let mut settings = crate::settings_in(directory);
        settings.sync.wait_alone = LIMIT;
        let current = Current {
            shared: Some(Arc::clone(&shared)),
            active: true,
            ..Current::default()
        };
        let desk = Arc::new(Desk {
            settings,
            current: Mutex::new(current),
            barrier: Mutex::default(),
            slots: Arc::default(),
        });
        (desk, shared)
    }

    #[test]
    fn one_who_has_hung_up_is_not_waited_for() {
        let mut tree = Tree::with(&["a"]);
        tree.state.scanned = true;
        tree.state.standbys = vec![StandbyState {
            connected: true,
            ..StandbyState::default()
        }];
        let path = tree.root.join("a/file");
        let directory = tempfile::tempdir().unwrap();
        let (desk, shared) = desk(std::mem::take(&mut tree.state), directory.path());
        let (client, served) = UnixStream::pair().unwrap();
        let (said, heard) = mpsc::channel();
        thread::spawn(move || {
            let answer = desk.wait(&served, path.as_os_str().as_bytes());
            said.send(answer).unwrap();
        });
        let start = Instant::now();
        while shared.lock().waiting.is_empty() {
            assert!(start.elapsed() < LIMIT, "nobody waits");
            thread::yield_now();
        }
        // It only has nothing more to say.
        client.shutdown(Shutdown::Write).unwrap();
        assert!(heard.recv_timeout(LOOK * 3).is_err());
        drop(client);
        assert_eq!(heard.recv_timeout(LIMIT).unwrap(), format!("error {GONE}"));
        assert!(shared.lock().waiting.is_empty());
    }

    #[test]
    fn nothing_is_said_of_what_is_elsewhere() {
        let mut tree = Tree::with(&["a"]);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), "").unwrap();
        let there = directory.path().join("secret");
        let not_there = directory.path().join("nothing/secret");
        let (_desk, shared) = desk(std::mem::take(&mut tree.state), directory.path());
        for path in [&there, &not_there] {
            let found = Desk::find(&shared, path.as_os_str().as_bytes());
            assert_eq!(found, Err(ELSEWHERE.to_owned()), "{}", path.display());
        }
        std::os::unix::fs::symlink(&tree.root, directory.path().join("link")).unwrap();
        let linked = directory.path().join("link/a/file");
        let found = Desk::find(&shared, linked.as_os_str().as_bytes()).unwrap();
        assert_eq!(&*found.unwrap().name, b"file");
    }

    #[test]
    fn a_path_is_resolved_without_the_lock() {
        let mut tree = Tree::with(&["a"]);
        let directory = tempfile::tempdir().unwrap();
        let (_desk, shared) = desk(std::mem::take(&mut tree.state), directory.path());
        let path = directory.path().join("nothing/../nothing/file");
        let (said, heard) = mpsc::channel();
        let asked = Arc::clone(&shared);
        let held = shared.lock();
        thread::spawn(move || {
            let found = Desk::find(&asked, path.as_os_str().as_bytes());
            said.send(found).unwrap();
        });
        let found = heard.recv_timeout(LIMIT).unwrap();
        assert_eq!(found, Err(ELSEWHERE.to_owned()));
        drop(held);
    }

    #[test]
    fn those_who_ask_at_once_share_a_barrier() {
        let mut tree = Tree::with(&[]);
        let directory = tempfile::tempdir().unwrap();
        let (desk, shared) = desk(std::mem::take(&mut tree.state), directory.path());
        let asking: Vec<_> = (0..50)
            .map(|_| {
                let (desk, shared) = (Arc::clone(&desk), Arc::clone(&shared));
                thread::spawn(move || desk.barrier(&shared))
            })
            .collect();
        let start = Instant::now();
        for asking in asking {
            // There is no watcher that would see it.
            assert!(asking.join().unwrap().is_err());
        }
        assert!(start.elapsed() < BARRIER * 10, "{:?}", start.elapsed());
    }
}
