//! What the threads of the active side share: the watched directories and a queue for each standby.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::batch::{Entry, Named};
use crate::compare::Comparison;
use crate::dirs::{Dirs, Key, Name, NodeId};
use crate::linked::{Inode, LinkedFiles};
use crate::outcome::DeletionLimit;
use crate::queue::{Change, Mark, Queue, Rename};
use crate::root::{Identity, Mount};
use crate::sample::Sampled;
use settings::pattern::Patterns;

/// The kernel's tick, generously: a file's time of change may be earlier than its change by so much.
const TICK: Duration = Duration::from_millis(100);

/// How long a person's word lets deletions above the limits pass.
const RELEASE: Duration = Duration::from_secs(600);

/// How `wait` ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// Every standby that can be reached has it on its disk, and there is one.
    Stored,
    /// No standby has it.
    Alone(String),
}

/// A tree as it is served.
#[derive(Debug, Clone)]
pub struct TreeState {
    /// Its directory.
    pub path: PathBuf,
    /// `--chown`, if any.
    pub owner: Option<String>,
    /// What stays here, as it stands in the settings, and as it is asked.
    pub exclude: Vec<String>,
    /// The same, read.
    pub patterns: Patterns,
    /// Its root directory in [`State::dirs`].
    pub root: NodeId,
    /// Which directory it was at the start.
    pub identity: Identity,
    /// What was mounted in it at the start.
    pub mounts: Vec<Mount>,
    /// The last token that check-inotify wrote and the watcher saw.
    pub probe: String,
}

/// What a standby has to be told, and how it is.
#[derive(Debug, Default)]
pub struct StandbyState {
    /// Its name.
    pub name: String,
    /// What it lacks.
    pub queue: Queue,
    /// What has to be compared with it.
    pub compare: Vec<Comparison>,
    /// A comparison runs.
    pub comparing: bool,
    /// Deletions that were seen and sent, and may not be on its disk yet: after a power loss it may have those files
    /// again.
    pub going: HashSet<Key>,
    /// Deletions that wait for a person's word: the files that each stands for, and whether it was a directory.
    pub withheld: HashMap<Key, Withheld>,
    /// What the last sample has shown.
    pub sampled: Sampled,
    /// Names under way, and their bytes.
    pub in_flight: usize,
    /// Bytes under way or known to be waiting.
    pub bytes: u64,
    /// Large files under way.
    pub large: HashSet<Key>,
    /// Who waits for large files that were sent and are not on the standby's disk yet.
    pub unflushed: Vec<u64>,
    /// Names that could not be sent: why, and how often.
    pub quarantine: HashMap<Key, (String, u32)>,
    /// It keeps what it deletes for a while.
    pub trash: bool,
    /// It is connected and takes files.
    pub connected: bool,
    /// It was seen complete in this epoch since the start.
    pub complete: bool,
    /// How far its first synchronisation is.
    pub filling: Option<Filling>,
    /// Why it is not connected, or takes nothing.
    pub reason: Option<String>,
    /// It answers and refuses.
    pub refusing: bool,
    /// Tries that failed since the start.
    pub retries: u64,
    /// When it last had everything, in seconds since 1970.
    pub last_acknowledged: Option<f64>,
    /// Deletions of the last minute.
    pub deletions: Vec<(Instant, u64)>,
}

/// A deletion that a hold keeps back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Files that it stands for, as far as they were counted.
    pub lost: u64,
    /// A directory of this name has gone: see [`Mark::vacated`].
    pub vacated: bool,
}

/// The progress of a first synchronisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    began: Instant,
    names: u64,
    bytes: u64,
    names_sent: u64,
    bytes_sent: u64,
}

impl Filling {
    /// So much is to be sent, by the comparison.
    pub fn new(began: Instant, names: u64, bytes: u64) -> Self {
        Self {
            began,
            names,
            bytes,
            names_sent: 0,
            bytes_sent: 0,
        }
    }

    /// So much was sent.
    pub fn sent(&mut self, names: u64, bytes: u64) {
        self.names_sent += names;
        self.bytes_sent += bytes;
    }

    /// Bytes that are left.
    pub fn bytes_left(&self) -> u64 {
        self.bytes.saturating_sub(self.bytes_sent)
    }

    /// About how long it will take, from what it took so far: a name costs as much as 4 KiB.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        let work = |names: u64, bytes: u64| names * 4096 + bytes;
        let done = work(self.names_sent, self.bytes_sent);
        let all = work(self.names, self.bytes);
        let spent = now.saturating_duration_since(self.began);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let factor = all.saturating_sub(done) as f64 / done as f64;
        (done > 0).then(|| spent.mul_f64(factor.min(1e6)))
    }

    /// In words.
    pub fn for_a_person(&self, now: Instant) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
        let left = self
            .time_left(now)
            .map_or_else(String::new, |left| format!(", about {left:.0?} left"));
        format!(
            "{} of {} names, {} of {} MiB{left}",
            self.names_sent,
            self.names,
            mib(self.bytes_sent),
            mib(self.bytes)
        )
    }
}

/// Sending is stopped for a switch-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Everything that waits is sent first.
    Closing,
    /// Nothing is sent any more.
    Closed,
}

/// Everything under the one lock.
#[derive(Debug, Default)]
pub struct State {
    /// The watched directories.
    pub dirs: Dirs,
    /// The trees.
    pub trees: Vec<TreeState>,
    /// The standbys.
    pub standbys: Vec<StandbyState>,
    /// The threads are to end.
    pub stopped: bool,
    /// Nothing is deleted on a standby until a person has looked.
    pub held: Option<String>,
    /// Deletions above the limit are allowed until then, by a person's word.
    pub allowed_until: Option<Instant>,
    /// Sending stops for a switch-over.
    pub seal: Option<Seal>,
    /// A root is not the one it was: the service looks at all of it again.
    pub lost_root: Option<String>,
    /// Names that a comparison found to be directories which are not known here: if they are here, too, the
    /// watcher looks at them.
    pub unknown: Vec<Key>,
    /// Directories that did not stand in their place when they were to be looked at: they are gone or were moved
    /// with one above them, and are looked at again after more events.
    pub unseen: Vec<NodeId>,
    /// Names of files with several names that the first look has found: tree, inode, path.
    pub linked: Vec<(u16, u64, Vec<u8>)>,
    /// Files with several names.
    pub linked_files: LinkedFiles,
    /// Files that were found to have one name left: they need no watch.
    pub single: Vec<Inode>,
    /// A file with several names could not be watched.
    pub unwatched_file: bool,
    /// How many directories have moved: a search that was made before may have missed a name.
    pub moves: u64,
    /// Something may have changed since then that no event and no name leads to.
    pub traceless: Option<SystemTime>,
    /// It is being looked for.
    pub tracing: bool,
    /// When that may be done again.
    pub trace_again: Option<Instant>,
    /// Every event before this moment has been read.
    pub read_until: Option<SystemTime>,
    /// What is known contradicts the events or the disk: everything is looked at again, as if events had been
    /// lost.
    pub confused: bool,
    /// Overflows of the kernel's queue.
    pub overflows: u64,
    /// How many barriers were written and seen, each in its turn.
    pub barrier_seen: u64,
    /// Who waits: its answers so far, and how many standbys it still waits for.
    pub waiting: HashMap<u64, Waiting>,
    next_waiter: u64,
    /// The first look at the trees is over, and their watches stand.
    pub scanned: bool,
}

/// Somebody who waits for a file.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Standbys that have not answered yet.
    pub open: HashSet<usize>,
    /// A standby has it.
    pub stored: bool,
    /// Why one has it not.
    pub why: Option<String>,
}

/// The state and the sign that it has changed.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A sign of life, given without the lock: a look at a large tree may hold it for long.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    milliseconds: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            milliseconds: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// Still alive.
    pub fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(now, Ordering::Relaxed);
    }

    /// Since the last sign of life.
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.milliseconds.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }
}

impl Shared {
    /// A state of a test.
    #[cfg(test)]
    pub fn of(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// The state, when nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The state. A thread that panicked ends the process, so the lock is never poisoned for long.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who waits for a change.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, at most so long.
    pub fn wait<'a>(&self, guard: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(guard, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// A name that failed may have been caught in the middle of a change: it is looked at again before anybody is told.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// First pause before a name that was set aside is tried again; doubled up to a minute.
const SET_ASIDE: Duration = Duration::from_secs(1);
const LONGEST_ASIDE: Duration = Duration::from_secs(60);

impl StandbyState {
    /// What it lacks: names and moves that wait or are under way, and comparisons.
    pub fn behind(&self) -> usize {
        self.queue.len()
            + self.in_flight
            + self.large.len()
            + self.compare.len()
            + usize::from(self.comparing)
    }
}

impl State {
    /// Notes a change of a name for every standby; names that stay here are none.
    pub fn mark(&mut self, key: &Key, is_directory: bool, change: Change, now: Instant) {
        if self.stays_here(key, is_directory) {
            return;
        }
        for standby in &mut self.standbys {
            standby.queue.mark(key.clone(), change, now);
        }
    }

    /// Something may have changed that no name leads to, since events were last read.
    pub fn trace(&mut self) {
        let since = self.read_until.unwrap_or(UNIX_EPOCH) - TICK;
        self.traceless.get_or_insert(since);
    }

    /// Notes a change of a file with several names for every standby.
    pub fn mark_inode(&mut self, inode: Inode, change: Change, now: Instant) {
        for standby in &mut self.standbys {
            standby.queue.mark_inode(inode, change, now);
        }
    }

    /// What still has to be looked at here, before it is known what the standbys lack.
    pub fn unread(&self) -> usize {
        self.unknown.len()
            + self.unseen.len()
            + usize::from(self.traceless.is_some())
            + usize::from(self.tracing)
    }

    /// Whether a transfer may begin or go on: it is given up when the service stops, not when it is slow.
    pub fn may_send(&self) -> bool {
        !self.stopped && self.seal != Some(Seal::Closed)
    }

    /// Whether so many deletions need a person's word that nobody has given; `left` files remain.
    pub fn needs_word(
        &self,
        limit: DeletionLimit,
        deletions: u64,
        left: u64,
        now: Instant,
    ) -> bool {
        limit.exceeded(deletions, left) && !self.is_allowed(now)
    }

    /// A person has given a word: for a while deletions above the limits pass.
    pub fn allow(&mut self, now: Instant) {
        self.allowed_until = Some(now + RELEASE);
    }

    /// Whether a person has given a word for deletions a short while ago.
    pub fn is_allowed(&self, now: Instant) -> bool {
        self.allowed_until.is_some_and(|until| until >= now)
    }

    /// The root of the tree that a path without links is in, and the rest of the path.
    pub fn place(&self, path: &[u8]) -> Option<(NodeId, Vec<u8>)> {
        self.trees.iter().find_map(|tree| {
            let rest = path.strip_prefix(tree.path.as_os_str().as_bytes())?;
            Some((tree.root, rest.strip_prefix(b"/")?.to_vec()))
        })
    }

    /// Keeps deletions back, and tells those who wait for one of them why.
    pub fn withhold(&mut self, index: usize, entries: Vec<Entry>, why: &str) {
        if self.held.is_none() {
            // A person has given a word since they were looked at.
            let entries = entries.into_iter().map(|entry| (entry.key, entry.mark));
            self.standbys[index].queue.put_back(entries, Instant::now());
            return;
        }
        let mut waiters = Vec::new();
        let standby = &mut self.standbys[index];
        for mut entry in entries {
            waiters.append(&mut entry.mark.waiters);
            let withheld = standby.withheld.entry(entry.key).or_default();
            withheld.lost = withheld.lost.max(entry.mark.lost);
            withheld.vacated |= entry.mark.vacated;
        }
        self.answer(index, &waiters, Err(why));
    }

    /// A person has given a word: what was kept back is looked at again.
    pub fn let_go(&mut self, now: Instant) {
        for standby in &mut self.standbys {
            for (key, withheld) in std::mem::take(&mut standby.withheld) {
                standby.queue.mark(key.clone(), Change::Whole, now);
                if withheld.vacated || withheld.lost > 0 {
                    standby.queue.vacate(&key, withheld.lost);
                }
            }
        }
    }

    /// Whether a name is excluded, or ours.
    pub fn stays_here(&self, key: &Key, is_directory: bool) -> bool {
        let tree = &self.trees[usize::from(self.dirs.tree(key.dir))];
        if key.dir == tree.root && crate::root::is_own(&key.name) {
            return true;
        }
        !tree.patterns.is_empty()
            && !key.name.is_empty()
            && self
                .dirs
                .path_of(key)
                .is_some_and(|path| tree.patterns.exclude(&path, is_directory))
    }

    /// A directory is gone: forgets what lies below, whose own name stands for it. Gives the watches to
    /// be removed.
    pub fn remove_directory(&mut self, id: NodeId, now: Instant) -> Vec<i32> {
        let key = self.dirs.key(id);
        let removed = self.dirs.remove(id);
        let gone: HashSet<NodeId> = removed.directories.into_iter().collect();
        let mut orphans = Vec::new();
        for (index, standby) in self.standbys.iter_mut().enumerate() {
            let (lost, waiters) = standby.queue.forget(&gone);
            standby.quarantine.retain(|key, _| !gone.contains(&key.dir));
            standby.withheld.retain(|key, _| !gone.contains(&key.dir));
            orphans.extend(waiters.into_iter().map(|waiter| (index, waiter)));
            if let Some(key) = &key {
                standby.queue.mark(key.clone(), Change::Gone, now);
                standby.queue.vacate(key, lost + removed.files);
            }
        }
        for (index, waiter) in orphans {
            // Its name went with the directory, which is sent: the wait goes on with that.
            if let Some(key) = &key {
                self.standbys[index].queue.wait(key.clone(), waiter, now);
            }
        }
        removed.watches
    }

    /// Notes that a directory was moved within its tree, and to be sent as such.
    pub fn rename_directory(&mut self, id: NodeId, parent: NodeId, name: &Name, now: Instant) {
        let Some(old) = self.dirs.key(id) else { return };
        let from = self.dirs.path(id);
        let tree = self.dirs.tree(id);
        self.dirs.rename(id, parent, name);
        let new = Key {
            dir: parent,
            name: Arc::clone(name),
        };
        self.mark(&old, true, Change::Whole, now);
        self.mark(&new, true, Change::Whole, now);
        for standby in &mut self.standbys {
            standby.queue.vacate(&old, 0);
        }
        if let (Some(from), Some(to)) = (from, self.dirs.path(id)) {
            for standby in &mut self.standbys {
                standby.queue.rename(Rename {
                    tree,
                    from: from.clone(),
                    to: to.clone(),
                    new: new.clone(),
                });
            }
        }
    }

    /// Whether the watcher would notice what becomes of a path of a tree.
    pub fn knows(&self, tree: u16, path: &[u8]) -> bool {
        let root = self.trees[usize::from(tree)].root;
        let key = self.dirs.find(root, path);
        key.is_some_and(|key| !self.unseen.contains(&key.dir))
    }

    /// Notes the names of files that have changed for one standby. Those that are not complete are due again.
    pub fn note_names(&mut self, index: usize, tree: u16, found: &Named, again: Instant) {
        let root = self.trees[usize::from(tree)].root;
        for path in &found.names {
            // One whose directory is not known yet is noted when the watcher comes to it.
            if let Some(key) = self.dirs.find(root, path)
                && !self.stays_here(&key, false)
            {
                self.standbys[index].queue.mark(key, Change::Whole, again);
            }
        }
        let inode = |number: &u64| Inode {
            tree,
            number: *number,
        };
        self.single.extend(found.single.iter().map(inode));
        for inode in found.incomplete.iter().map(inode) {
            self.standbys[index].queue.put_back_inode(inode, again);
        }
    }

    /// Names of a standby's batch with their paths; those whose directory is gone are dropped, since the
    /// directory's own name stands for them.
    pub fn resolve(&mut self, index: usize, taken: Vec<(Key, Mark)>) -> Vec<(u16, Entry)> {
        let mut found = Vec::with_capacity(taken.len());
        for (key, mark) in taken {
            if let Some(path) = self.dirs.path_of(&key) {
                found.push((self.dirs.tree(key.dir), Entry { key, mark, path }));
            } else {
                self.standbys[index].quarantine.remove(&key);
                self.answer(index, &mark.waiters, Err("its directory is gone"));
            }
        }
        found
    }

    /// A name cannot be sent to a standby: it is tried again later and later, and after the second try whoever
    /// waits for it hears so. Whether a person is to be told, which is once.
    pub fn set_aside(&mut self, index: usize, entry: Entry, why: &str, now: Instant) -> bool {
        let (key, mut mark) = (entry.key, entry.mark);
        let standby = &mut self.standbys[index];
        standby.retries += 1;
        let (reason, tries) = standby.quarantine.entry(key.clone()).or_default();
        why.clone_into(reason);
        *tries += 1;
        let tries = *tries;
        let pause = match tries {
            1 => LOOK_AGAIN,
            more => SET_ASIDE
                .saturating_mul(1 << (more - 2).min(6))
                .min(LONGEST_ASIDE),
        };
        let waiters = if tries > 1 {
            std::mem::take(&mut mark.waiters)
        } else {
            Vec::new()
        };
        standby.queue.put_back([(key, mark)], now + pause);
        self.answer(index, &waiters, Err(why));
        tries == 2
    }

    /// Begins to wait for a name on every standby.
    pub fn begin_wait(&mut self, key: &Key, now: Instant) -> u64 {
        let waiter = self.next_waiter;
        self.next_waiter += 1;
        let mut waiting = Waiting::default();
        for (index, standby) in self.standbys.iter_mut().enumerate() {
            if standby.connected {
                waiting.open.insert(index);
            } else {
                waiting.why.clone_from(&standby.reason);
            }
            // Also for one that is away: it may come back within the patience.
            standby.queue.wait(key.clone(), waiter, now);
        }
        self.waiting.insert(waiter, waiting);
        waiter
    }

    /// Whoever waits for a standby hears that it has everything that was sent, or why not.
    pub fn answer(&mut self, index: usize, waiters: &[u64], result: Result<(), &str>) {
        for waiter in waiters {
            if let Some(waiting) = self.waiting.get_mut(waiter) {
                waiting.open.remove(&index);
                match result {
                    Ok(()) => waiting.stored = true,
                    Err(why) => waiting.why = Some(why.to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Arc::from(text.as_bytes())
    }

    fn state(standbys: usize) -> (State, NodeId) {
        let mut state = State::default();
        let root = state.dirs.add_root(0);
        let directory = tempfile::tempdir().unwrap();
        state.trees.push(TreeState {
            path: directory.path().to_owned(),
            owner: None,
            exclude: Vec::new(),
            patterns: Patterns::new(&["*.tmp".to_owned()]).unwrap(),
            root,
            identity: crate::root::any_identity(directory.path()),
            mounts: Vec::new(),
            probe: String::new(),
        });
        for _ in 0..standbys {
            state.standbys.push(StandbyState {
                connected: true,
                ..StandbyState::default()
            });
        }
        (state, root)
    }

    fn taken_of(state: &mut State, index: usize, now: Instant) -> Vec<String> {
        let later = now + Duration::from_secs(2);
        let taken = state.standbys[index].queue.take(later, 1000, |_| false);
        let mut paths: Vec<String> = state
            .resolve(index, taken)
            .into_iter()
            .map(|(_, entry)| String::from_utf8_lossy(&entry.path).into_owned())
            .collect();
        paths.sort();
        paths
    }

    #[test]
    fn what_is_excluded_or_ours_is_not_noted() {
        let (mut state, root) = state(2);
        let now = Instant::now();
        let dir = state.dirs.add(root, &name("d"));
        for (dir, text) in [
            (root, "a"),
            (root, "a.tmp"),
            (dir, "b.tmp"),
            (dir, ".keepalived-companion"),
            (root, ".keepalived-companion"),
            (root, ".keepalived-companion-canary"),
        ] {
            let key = Key {
                dir,
                name: name(text),
            };
            state.mark(&key, false, Change::Whole, now);
        }
        for index in 0..2 {
            assert_eq!(
                taken_of(&mut state, index, now),
                ["a", "d/.keepalived-companion"]
            );
        }
    }

    #[test]
    fn a_moved_directory_takes_its_changes_along() {
        let (mut state, root) = state(1);
        let now = Instant::now();
        let dir = state.dirs.add(root, &name("old"));
        let key = Key {
            dir,
            name: name("file"),
        };
        state.mark(&key, false, Change::Whole, now);
        state.rename_directory(dir, root, &name("new"), now);
        let renames = state.standbys[0].queue.take_renames();
        assert_eq!(
            (&renames[0].from[..], &renames[0].to[..]),
            (&b"old"[..], &b"new"[..])
        );
        assert_eq!(taken_of(&mut state, 0, now), ["new", "new/file", "old"]);
    }

    #[test]
    fn a_directory_that_is_gone_stands_for_all_that_it_held() {
        let (mut state, root) = state(1);
        let now = Instant::now();
        let dir = state.dirs.add(root, &name("d"));
        let key = Key {
            dir,
            name: name("file"),
        };
        state.mark(&key, false, Change::Gone, now);
        let waiter = state.begin_wait(&key, now);
        assert!(state.remove_directory(dir, now).is_empty());
        let mut taken = state.standbys[0]
            .queue
            .take(now + Duration::from_secs(2), 10, |_| false);
        let (key, mark) = taken.remove(0);
        assert!(taken.is_empty());
        assert_eq!((&*key.name, mark.lost, mark.vacated), (&b"d"[..], 2, true));
        assert_eq!(mark.waiters, [waiter]);
    }

    #[test]
    fn a_wait_ends_when_every_connected_standby_has_answered() {
        let (mut state, root) = state(3);
        state.standbys[2].connected = false;
        state.standbys[2].reason = Some("away".to_owned());
        let key = Key {
            dir: root,
            name: name("f"),
        };
        let waiter = state.begin_wait(&key, Instant::now());
        state.answer(0, &[waiter], Ok(()));
        assert_eq!(state.waiting[&waiter].open, HashSet::from([1]));
        state.answer(1, &[waiter], Err("full"));
        let waiting = &state.waiting[&waiter];
        assert!(waiting.open.is_empty() && waiting.stored);
        assert_eq!(waiting.why.as_deref(), Some("full"));
    }

    #[test]
    fn progress_is_estimated_from_what_was_done() {
        let now = Instant::now();
        let mut filling = Filling::new(now, 1000, 0);
        assert_eq!(filling.time_left(now), None);
        filling.sent(250, 0);
        let later = now + Duration::from_secs(1);
        assert_eq!(filling.time_left(later), Some(Duration::from_secs(3)));
        assert!(filling.for_a_person(later).contains("250 of 1000 names"));
        filling.sent(900, 0);
        assert_eq!(filling.time_left(later), Some(Duration::ZERO));
    }

    #[test]
    fn a_name_is_set_aside_for_longer_and_longer() {
        let (mut state, root) = state(1);
        let key = Key {
            dir: root,
            name: name("f"),
        };
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        let waiter = state.begin_wait(&key, now);
        for try_number in 0..9 {
            let later = now + Duration::from_secs(100);
            let taken = state.standbys[0].queue.take(later, 1, |_| false);
            let (_, entry) = state.resolve(0, taken).remove(0);
            let told = state.set_aside(0, entry, "no", now);
            assert_eq!(told, try_number == 1);
            assert_eq!(state.waiting[&waiter].why.is_some(), try_number > 0);
            let due = state.standbys[0].queue.next_due().unwrap();
            pauses.push(due.saturating_duration_since(now).as_millis());
            now = due;
        }
        assert_eq!(
            pauses,
            [50, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
        );
        assert_eq!(state.standbys[0].retries, 9);
    }

    #[test]
    fn a_name_that_failed_and_whose_directory_is_gone_is_forgotten() {
        let (mut state, root) = state(1);
        let now = Instant::now();
        let dir = state.dirs.add(root, &name("d"));
        let key = Key {
            dir,
            name: name("f"),
        };
        let waiter = state.begin_wait(&key, now);
        let taken = state.standbys[0].queue.take(now, 1, |_| false);
        let (_, entry) = state.resolve(0, taken).remove(0);
        // While it was under way.
        state.remove_directory(dir, now);
        state.set_aside(0, entry, "no", now);
        assert_eq!(taken_of(&mut state, 0, now), ["d"]);
        assert!(state.standbys[0].quarantine.is_empty());
        assert!(state.waiting[&waiter].why.is_some());
    }
}
