//! Notices changes: watches every directory and turns the kernel's events into marks. The reader never
//! waits for a transfer.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::batch::below;
use crate::compare::{Comparison, Losses, Scope};
use crate::dirs::{Key, Name, NodeId};
use crate::linked::Inode;
use crate::queue::{Change, MOVE_PATIENCE};
use crate::root;
use crate::state::{Pulse, Shared, State};
use crate::trace;

/// A burst is taken out of the kernel's queue in pieces of this size.
const BUFFER: usize = 256 * 1024;
/// Events taken in before others get the lock.
const MOST_EVENTS: usize = 10_000;
/// How often directories that cannot be watched are looked at.
const POLL: Duration = Duration::from_secs(5);
/// Events that come one right after the other, so often in a row, are a storm ...
const STORM: u32 = 20;
/// ... in which they are taken in together: to wake up for each of 10,000 deletions would slow down whoever
/// deletes, ten times on two processors.
const STORM_PAUSE: Duration = Duration::from_millis(2);
/// A wait that is shorter is none.
const CALM: Duration = Duration::from_micros(500);
/// The reader's own sign of life, when nothing happens.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Times of files are those of the kernel's last tick.
const MARGIN: Duration = Duration::from_secs(2);
/// With more changed directories than this the whole tree is compared.
const MOST_SCOPES: usize = 500;

const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW)
    .union(WatchFlags::EXCL_UNLINK);

/// What is watched of a file with several names.
const FILE_FLAGS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB);

/// What a scan notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noting {
    /// Nothing: the standbys will be compared, or have it.
    Nothing,
    /// Every name.
    All,
    /// Names whose inode changed at or after this time; directories that did are to be compared.
    ChangedSince(SystemTime),
}

/// The kernel's watches.
#[derive(Debug)]
pub struct Watcher {
    fd: OwnedFd,
    /// The watches of our own directory in each root, by tree; none when no watch was left.
    own: Vec<Option<i32>>,
    moves: Vec<Move>,
    fresh: Fresh,
    pulse: Arc<Pulse>,
    last_poll: Instant,
}

/// A directory or file that was moved away and may turn up again.
#[derive(Debug)]
struct Move {
    cookie: u32,
    key: Key,
    /// None for what is not a directory that is watched.
    directory: Option<NodeId>,
    at: Instant,
}

/// What is known of a name that is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct New {
    /// It has changed since it was made.
    changed: bool,
    /// It was there when it was looked at.
    met: bool,
}

/// Names that were made since the kernel's queue was last empty. One that is gone again may not be what was
/// looked at: it may have been a further name of any file.
#[derive(Debug, Default)]
struct Fresh {
    names: HashMap<Key, New>,
    /// By the cookies of their moves.
    moving: HashMap<u32, New>,
}

impl Fresh {
    /// Takes in an event; whether a name that has changed is gone. What happened in a new directory before it
    /// was watched is not known: it counts as changed.
    fn take_in(&mut self, key: &Key, flags: ReadFlags, cookie: u32) -> bool {
        let directory = flags.contains(ReadFlags::ISDIR);
        let new = New {
            changed: directory,
            met: directory,
        };
        let gone = if flags.contains(ReadFlags::CREATE) {
            self.names.insert(key.clone(), new)
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            if let Some(new) = self.names.remove(key) {
                self.moving.insert(cookie, new);
            }
            None
        } else if flags.contains(ReadFlags::MOVED_TO) {
            let moved = self.moving.remove(&cookie);
            match moved {
                // One that was watched before has no secrets.
                None if directory => self.names.remove(key),
                Some(_) | None => {
                    let changed = moved.unwrap_or_default().changed;
                    self.names.insert(key.clone(), New { changed, ..new })
                }
            }
        } else if flags.contains(ReadFlags::DELETE) {
            self.names.remove(key)
        } else {
            if let Some(new) = self.names.get_mut(key) {
                new.changed = true;
            }
            None
        };
        gone.is_some_and(|new| new.changed)
    }

    fn meet(&mut self, key: &Key) {
        if let Some(new) = self.names.get_mut(key) {
            new.met = true;
        }
    }
}

impl Watcher {
    /// Watches our own directory of each root, which is all that a standby needs.
    pub fn new<'a>(
        roots: impl IntoIterator<Item = &'a Path>,
        pulse: Arc<Pulse>,
    ) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut own = Vec::new();
        for root in roots {
            let flags = WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR;
            own.push(match inotify::add_watch(&fd, root.join(root::OWN), flags) {
                Ok(wd) => Some(wd),
                // Then nobody can probe, and everything else goes on.
                Err(Errno::NOSPC | Errno::NOMEM) => None,
                Err(error) => return Err(error.into()),
            });
        }
        Ok(Self {
            fd,
            own,
            moves: Vec::new(),
            fresh: Fresh::default(),
            pulse,
            last_poll: Instant::now(),
        })
    }

    /// Walks a directory of a tree: watches it and all below, counts, and notes names. Gives the
    /// directories that have changed and are to be compared: for what was deleted in them, and because
    /// one that was moved here has changed itself while all that it holds kept its old times.
    pub fn scan(
        &self,
        state: &mut State,
        start: NodeId,
        noting: Noting,
        now: Instant,
    ) -> Vec<NodeId> {
        self.walk(state, start, noting, now).1
    }

    /// The same, and mends what is known: directories that are not there any more are forgotten.
    fn rescan(
        &self,
        state: &mut State,
        start: NodeId,
        noting: Noting,
        now: Instant,
    ) -> Vec<NodeId> {
        let before = state.dirs.below(start);
        let (seen, changed) = self.walk(state, start, noting, now);
        for id in before {
            if !seen.contains(&id) && id != start && state.dirs.contains(id) {
                let watches = state.remove_directory(id, now);
                self.remove(&watches);
            }
        }
        changed
    }

    /// Gives the directories that were seen, and those of them that have changed.
    fn walk(
        &self,
        state: &mut State,
        start: NodeId,
        noting: Noting,
        now: Instant,
    ) -> (HashSet<NodeId>, Vec<NodeId>) {
        let tree = usize::from(state.dirs.tree(start));
        let root_path = state.trees[tree].path.clone();
        let mut seen = HashSet::new();
        let mut changed = Vec::new();
        let mut stack = vec![(start, noting)];
        while let Some((id, noting)) = stack.pop() {
            let Some(relative) = state.dirs.path(id) else {
                continue;
            };
            let path = below(&root_path, &relative);
            if !self.add(state, id, &path) {
                if state
                    .dirs
                    .key(id)
                    .is_some_and(|key| !self.is_another(state, key.dir))
                {
                    // It is gone, or a link by now: what became of it is in events that are still to be read.
                    if !state.dirs.watched(id) {
                        // Through a name in it a file may have been changed.
                        state.trace();
                    }
                    let watches = state.remove_directory(id, now);
                    self.remove(&watches);
                } else {
                    // A directory above it has moved, and no event of that tells of this one.
                    state.unseen.push(id);
                }
                continue;
            }
            self.pulse.beat();
            seen.insert(id);
            if let Noting::ChangedSince(since) = noting
                && fs::symlink_metadata(&path).is_ok_and(|m| changed_since(&m, since))
            {
                changed.push(id);
                if let Some(key) = state.dirs.key(id) {
                    state.mark(&key, true, Change::Whole, now);
                }
            }
            self.read_directory(state, id, &path, noting, now, &mut stack);
        }
        (seen, changed)
    }

    fn read_directory(
        &self,
        state: &mut State,
        id: NodeId,
        path: &Path,
        noting: Noting,
        now: Instant,
        stack: &mut Vec<(NodeId, Noting)>,
    ) {
        let mut files = 0;
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let name: Name = Arc::from(entry.file_name().as_bytes());
            let key = Key {
                dir: id,
                name: Arc::clone(&name),
            };
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if state.stays_here(&key, is_directory) {
                continue;
            }
            if is_directory {
                let child = state.dirs.add(id, &name);
                if noting == Noting::All {
                    state.mark(&key, true, Change::Whole, now);
                }
                stack.push((child, noting));
                continue;
            }
            files += 1;
            let metadata = entry.metadata().ok();
            if metadata.as_ref().is_some_and(|m| m.nlink() > 1) {
                self.watch_file(state, &key, noting != Noting::Nothing, now);
            }
            let note = match (noting, &metadata) {
                (Noting::All, _) => true,
                (Noting::ChangedSince(since), Some(metadata)) => changed_since(metadata, since),
                (Noting::Nothing | Noting::ChangedSince(_), _) => false,
            };
            if note {
                state.mark(&key, false, Change::Whole, now);
            } else if let Some(metadata) = metadata.filter(|m| !state.scanned && m.nlink() > 1)
                && let Some(path) = state.dirs.path_of(&key)
            {
                let tree = state.dirs.tree(id);
                state.linked.push((tree, metadata.ino(), path));
            }
        }
        state.dirs.set_files(id, files);
    }

    /// Watches one directory; whether it is one.
    fn add(&self, state: &mut State, id: NodeId, path: &Path) -> bool {
        let flags = flags_of(state, id);
        match inotify::add_watch(&self.fd, path, flags) {
            Ok(wd) => {
                // It has moved, and the event is still to be read: those before it would be misunderstood.
                state.confused |= state.dirs.set_watch(id, wd).is_some();
                true
            }
            // No watch is left: it is polled. Any other error of a directory that is there, likewise.
            Err(Errno::NOSPC | Errno::NOMEM | Errno::ACCESS) => true,
            Err(_) => false,
        }
    }

    /// Watches a file itself, if it has several names, and notes it as changed if asked to: later its name may
    /// be no way to it. Whether there is such a name.
    fn watch_file(&self, state: &mut State, key: &Key, note: bool, now: Instant) -> bool {
        let tree = state.dirs.tree(key.dir);
        let Some(path) = state.dirs.path_of(key) else {
            return false;
        };
        let path = below(&state.trees[usize::from(tree)].path, &path);
        // What is asked is what is watched.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::empty()).map(fs::File::from);
        let Some((file, metadata)) = file.ok().and_then(|file| {
            let metadata = file.metadata().ok()?;
            Some((file, metadata))
        }) else {
            return false;
        };
        if metadata.is_dir() || metadata.nlink() < 2 {
            return true;
        }
        let inode = Inode {
            tree,
            number: metadata.ino(),
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match inotify::add_watch(&self.fd, path, FILE_FLAGS) {
            Ok(wd) => state.linked_files.set_watch(inode, wd),
            Err(_) => state.unwatched_file = true,
        }
        state.single.retain(|single| *single != inode);
        if note {
            state.mark_inode(inode, Change::Whole, now);
        }
        true
    }

    fn remove(&self, watches: &[i32]) {
        for wd in watches {
            // The kernel has removed that of a deleted directory already.
            let _ = inotify::remove_watch(&self.fd, *wd);
        }
    }

    /// Reads events until the state is stopped.
    pub fn run(mut self, shared: &Arc<Shared>) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut in_a_row = 0;
        loop {
            let patience = if self.moves.is_empty() {
                HEARTBEAT
            } else {
                MOVE_PATIENCE
            };
            let asked = Instant::now();
            self.await_events(patience);
            in_a_row = if asked.elapsed() < CALM {
                in_a_row + 1
            } else {
                0
            };
            if in_a_row > STORM {
                std::thread::sleep(STORM_PAUSE);
            }
            let mut state = shared.lock();
            if state.stopped {
                return;
            }
            let now = Instant::now();
            self.pulse.beat();
            self.turn(&mut state, &mut buffer, now);
            trace::start(shared, &mut state, now);
            drop(state);
            shared.notify();
        }
    }

    /// Takes in what there is, and all that follows from it.
    pub fn turn(&mut self, state: &mut State, buffer: &mut [MaybeUninit<u8>], now: Instant) {
        for inode in std::mem::take(&mut state.single) {
            if let Some(wd) = state.linked_files.forget(inode) {
                self.remove(&[wd]);
            }
        }
        let overflow = self.read(state, buffer, now);
        state.overflows += u64::from(overflow);
        self.expire_moves(state, now);
        self.look_at_unknown(state, now);
        self.look_at_unseen(state, now);
        if overflow || state.confused {
            self.reconcile(state, now);
        } else if self.last_poll.elapsed() > POLL {
            self.poll_unwatched(state, now);
        }
    }

    fn await_events(&self, patience: Duration) {
        let Ok(timeout) = patience.try_into() else {
            return;
        };
        // Interrupted or not: the read that follows does not block.
        let _ = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout));
    }

    /// Takes in what the kernel has; whether its queue has overflowed.
    fn read(&mut self, state: &mut State, buffer: &mut [MaybeUninit<u8>], now: Instant) -> bool {
        let mut overflow = false;
        let mut drained = false;
        let before = SystemTime::now();
        // The fd is borrowed by the reader while the events change the rest of `self`.
        let Ok(fd) = self.fd.try_clone() else {
            return false;
        };
        let mut reader = inotify::Reader::new(&fd, buffer);
        for _ in 0..MOST_EVENTS {
            match reader.next() {
                Ok(event) => {
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        overflow = true;
                        continue;
                    }
                    let name: Name =
                        Arc::from(event.file_name().map_or(&b""[..], |n| n.to_bytes()));
                    self.take_in(state, event.wd(), event.events(), event.cookie(), name, now);
                }
                Err(Errno::WOULDBLOCK) => {
                    drained = true;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("the kernel's events cannot be read: {error}");
                    overflow = true;
                    break;
                }
            }
        }
        if drained {
            self.end_fresh(state, now);
            if !overflow {
                state.read_until = Some(before);
            }
        }
        overflow
    }

    /// The kernel's queue is empty: what is made from here on is looked at before it can go unnoticed.
    fn end_fresh(&mut self, state: &mut State, now: Instant) {
        let Fresh { names, moving } = std::mem::take(&mut self.fresh);
        let mut lost = moving.values().any(|new| new.changed);
        for (key, new) in names {
            if !new.met {
                lost |= !self.watch_file(state, &key, true, now) && new.changed;
            }
        }
        if lost {
            state.trace();
        }
    }

    fn take_in(
        &mut self,
        state: &mut State,
        wd: i32,
        flags: ReadFlags,
        cookie: u32,
        name: Name,
        now: Instant,
    ) {
        if let Some(tree) = self.own.iter().position(|own| *own == Some(wd)) {
            own_event(state, tree, &name);
            return;
        }
        if flags.contains(ReadFlags::IGNORED) {
            state.dirs.drop_watch(wd);
            for inode in state.linked_files.drop_watch(wd) {
                for standby in &mut state.standbys {
                    standby.queue.forget_inode(inode);
                }
            }
            return;
        }
        for inode in state.linked_files.by_watch(wd) {
            let change = if flags.contains(ReadFlags::MODIFY) {
                Change::Writing
            } else {
                Change::Whole
            };
            state.mark_inode(inode, change, now);
        }
        let Some(dir) = state.dirs.by_watch(wd) else {
            return;
        };
        let is_root = state.dirs.key(dir).is_none();
        if is_root
            && flags.intersects(ReadFlags::UNMOUNT | ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF)
        {
            let path = state.trees[usize::from(state.dirs.tree(dir))].path.clone();
            state.lost_root = Some(format!(
                "{} was moved, deleted or unmounted",
                path.display()
            ));
            return;
        }
        if name.is_empty() {
            if is_root && flags.contains(ReadFlags::ATTRIB) {
                state.mark(&Key { dir, name }, true, Change::Whole, now);
            }
            return;
        }
        let key = Key { dir, name };
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if state.stays_here(&key, is_directory) {
            return;
        }
        if self.fresh.take_in(&key, flags, cookie) {
            state.trace();
        }
        if is_directory {
            self.directory_event(state, &key, flags, cookie, now);
        } else {
            self.file_event(state, &key, flags, now);
        }
    }

    fn file_event(&mut self, state: &mut State, key: &Key, flags: ReadFlags, now: Instant) {
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            state.dirs.count_file(key.dir, true);
            if self.watch_file(state, key, true, now) {
                self.fresh.meet(key);
            }
        }
        if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            state.dirs.count_file(key.dir, false);
        }
        let change = if flags.contains(ReadFlags::CREATE) {
            if will_be_written(state, key) {
                Change::Opened
            } else {
                Change::Whole
            }
        } else if flags.contains(ReadFlags::MODIFY) {
            Change::Writing
        } else if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            Change::Gone
        } else {
            Change::Whole
        };
        state.mark(key, false, change, now);
    }

    fn directory_event(
        &mut self,
        state: &mut State,
        key: &Key,
        flags: ReadFlags,
        cookie: u32,
        now: Instant,
    ) {
        if flags.contains(ReadFlags::MOVED_TO) {
            state.moves += 1;
            let moved = self
                .moves
                .iter()
                .position(|m| m.cookie == cookie)
                .map(|index| self.moves.swap_remove(index));
            if let Some(Move {
                key: old,
                directory: Some(directory),
                ..
            }) = moved
                && state.dirs.contains(directory)
                && state.dirs.tree(directory) == state.dirs.tree(key.dir)
            {
                if state.dirs.is_within(key.dir, directory) {
                    // No directory moves below itself: a look at the disk was ahead of the events.
                    state.confused = true;
                    return;
                }
                self.forget_child(state, key, now);
                state.rename_directory(directory, key.dir, &key.name, now);
                if self.is_another(state, directory) || is_directory(state, &old) {
                    // The two were exchanged, or more has happened since: looks at both as they are now.
                    self.forget_child(state, key, now);
                    self.new_directory(state, key, now);
                    self.look_anew(state, &old, now);
                }
                return;
            }
            self.forget_child(state, key, now);
            self.new_directory(state, key, now);
        } else if flags.contains(ReadFlags::CREATE) {
            if self.moves.iter().any(|moved| moved.key == *key) {
                // That one has left the tree, and this is not it.
                self.forget_child(state, key, now);
            }
            self.new_directory(state, key, now);
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            let directory = state.dirs.child(key.dir, &key.name);
            state.mark(key, true, Change::MovedAway, now);
            self.moves.push(Move {
                cookie,
                key: key.clone(),
                directory,
                at: now,
            });
        } else if flags.contains(ReadFlags::DELETE) {
            self.forget_child(state, key, now);
            state.mark(key, true, Change::Whole, now);
        } else {
            state.mark(key, true, Change::Whole, now);
        }
    }

    /// A directory that was made or moved here: what it holds already came without an event.
    fn new_directory(&self, state: &mut State, key: &Key, now: Instant) {
        if !state.dirs.contains(key.dir) {
            // It was forgotten with its parent, which is looked at where it is met.
            return;
        }
        let id = state.dirs.add(key.dir, &key.name);
        state.mark(key, true, Change::Whole, now);
        self.scan(state, id, Noting::All, now);
    }

    /// Forgets the directory of a name, and looks at what stands there now, or will be found there when its
    /// parent is known to stand in its own place.
    fn look_anew(&self, state: &mut State, key: &Key, now: Instant) {
        self.forget_child(state, key, now);
        if is_directory(state, key) || self.is_another(state, key.dir) {
            self.new_directory(state, key, now);
        }
    }

    /// Whether another directory stands where this one should: the kernel gives the same watch for the same
    /// directory. One without a watch may never have been looked at: it was gone before.
    fn is_another(&self, state: &State, id: NodeId) -> bool {
        let (Some(wd), Some(path)) = (state.dirs.watch(id), state.dirs.path(id)) else {
            return true;
        };
        let root = &state.trees[usize::from(state.dirs.tree(id))].path;
        match inotify::add_watch(&self.fd, below(root, &path), flags_of(state, id)) {
            Ok(found) => found != wd,
            Err(Errno::NOSPC | Errno::NOMEM | Errno::ACCESS) => false,
            // Nothing stands there any more: where the directory is now is not known.
            Err(_) => true,
        }
    }

    fn forget_child(&self, state: &mut State, key: &Key, now: Instant) {
        if let Some(id) = state.dirs.child(key.dir, &key.name) {
            let watches = state.remove_directory(id, now);
            self.remove(&watches);
        }
    }

    /// What was moved away and did not turn up again has left the tree.
    fn expire_moves(&mut self, state: &mut State, now: Instant) {
        let (gone, waiting): (Vec<Move>, Vec<Move>) = std::mem::take(&mut self.moves)
            .into_iter()
            .partition(|m| now.saturating_duration_since(m.at) >= MOVE_PATIENCE);
        self.moves = waiting;
        for moved in gone {
            // One that still stands there has taken the place of another by an exchange.
            if let Some(directory) = moved.directory
                && state.dirs.key(directory).as_ref() == Some(&moved.key)
                && self.is_another(state, directory)
            {
                self.look_anew(state, &moved.key, now);
            }
        }
    }

    /// Directories that a comparison has met and no event has told of.
    fn look_at_unknown(&self, state: &mut State, now: Instant) {
        for key in std::mem::take(&mut state.unknown) {
            if !key.name.is_empty()
                && state.dirs.contains(key.dir)
                && state.dirs.child(key.dir, &key.name).is_none()
                && is_directory(state, &key)
            {
                self.new_directory(state, &key, now);
            }
        }
    }

    /// Directories that did not stand in their place when they were to be looked at.
    fn look_at_unseen(&self, state: &mut State, now: Instant) {
        for id in std::mem::take(&mut state.unseen) {
            if state.dirs.contains(id) && !state.dirs.watched(id) {
                self.scan(state, id, Noting::All, now);
            }
        }
    }

    /// Events were lost or not understood: looks at every directory again without dropping a watch.
    fn reconcile(&mut self, state: &mut State, now: Instant) {
        let since = state.read_until.unwrap_or(UNIX_EPOCH) - MARGIN;
        state.read_until = Some(SystemTime::now());
        self.moves.clear();
        for standby in &mut state.standbys {
            // What they say may be half of the truth; the names that they concern are marked.
            standby.queue.take_renames();
        }
        let roots: Vec<NodeId> = state.trees.iter().map(|tree| tree.root).collect();
        for root in roots {
            let changed = self.rescan(state, root, Noting::ChangedSince(since), now);
            // What they held is still watched; only events were lost.
            request_comparison(state, &changed, Losses::Seen);
        }
        state.confused = false;
    }

    fn poll_unwatched(&mut self, state: &mut State, now: Instant) {
        let since = SystemTime::now() - self.last_poll.elapsed() - MARGIN;
        self.last_poll = now;
        if state.unwatched_file {
            state.traceless.get_or_insert(since);
        }
        for id in state.dirs.topmost_polled() {
            let changed = self.rescan(state, id, Noting::ChangedSince(since), now);
            // Within the last seconds; their own limits hold.
            request_comparison(state, &changed, Losses::Seen);
        }
    }
}

/// How a directory is watched. A root may be a link, and is followed as rsync does.
fn flags_of(state: &State, id: NodeId) -> WatchFlags {
    if state.dirs.key(id).is_none() {
        FLAGS.difference(WatchFlags::DONT_FOLLOW)
    } else {
        FLAGS
    }
}

/// Asks for a comparison of directories that have changed: what was deleted in them has no other trace.
pub fn request_comparison(state: &mut State, changed: &[NodeId], losses: Losses) {
    let mut scopes: Vec<(u16, Vec<Vec<u8>>)> = Vec::new();
    for id in changed {
        let Some(path) = state.dirs.path(*id) else {
            continue;
        };
        let tree = state.dirs.tree(*id);
        match scopes.iter_mut().find(|(known, _)| *known == tree) {
            Some((_, paths)) => paths.push(path),
            None => scopes.push((tree, vec![path])),
        }
    }
    for (tree, mut paths) in scopes {
        // Below a directory that is compared there is nothing left to compare.
        paths.sort();
        let mut topmost: Vec<Vec<u8>> = Vec::new();
        for path in paths {
            let covered = topmost.last().is_some_and(|top| {
                !top.is_empty() && path.starts_with(top) && path.get(top.len()) == Some(&b'/')
            });
            if !covered {
                topmost.push(path);
            }
        }
        let root = topmost.iter().position(Vec::is_empty);
        if let Some(root) = root {
            topmost.remove(root);
        }
        let mut scopes = Vec::new();
        if topmost.len() > MOST_SCOPES {
            scopes.push(Scope::Whole);
        } else {
            // Everything is below the root, which may have changed because of one name.
            scopes.extend(root.map(|_| Scope::NamesInRoot));
            scopes.push(Scope::Below(topmost));
        }
        for standby in &mut state.standbys {
            let whole = |comparison: &Comparison| {
                comparison.tree == tree && comparison.scope == Scope::Whole
            };
            if !standby.compare.iter().any(whole) {
                let comparisons = scopes.iter().map(|scope| Comparison {
                    tree,
                    scope: scope.clone(),
                    losses,
                });
                standby.compare.extend(comparisons);
            }
        }
    }
}

fn is_directory(state: &State, key: &Key) -> bool {
    let root = &state.trees[usize::from(state.dirs.tree(key.dir))].path;
    state
        .dirs
        .path_of(key)
        .is_some_and(|path| crate::compare::is_directory(root, &path))
}

/// A new regular file with one name is closed after it was written; a link or a further name is whole.
fn will_be_written(state: &State, key: &Key) -> bool {
    let tree = &state.trees[usize::from(state.dirs.tree(key.dir))];
    let Some(path) = state.dirs.path_of(key) else {
        return false;
    };
    fs::symlink_metadata(below(&tree.path, &path)).is_ok_and(|m| m.is_file() && m.nlink() == 1)
}

pub fn changed_since(metadata: &fs::Metadata, since: SystemTime) -> bool {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanoseconds) >= since
}

/// Something was written in our own directory of a root.
fn own_event(state: &mut State, tree: usize, name: &[u8]) {
    let path = &state.trees[tree].path;
    if name == root::PROBE.as_bytes() {
        state.trees[tree].probe = root::read_own(path, root::PROBE).unwrap_or_default();
    } else if name == root::BARRIER.as_bytes() {
        state.barrier_seen += 1;
    }
}

#[cfg(test)]
pub mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::state::{StandbyState, TreeState};
    use settings::pattern::Patterns;

    pub struct Tree {
        pub watcher: Watcher,
        pub state: State,
        pub root: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Tree {
        /// Watches a tree with these directories.
        pub fn with(directories: &[&str]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("root");
            fs::create_dir_all(root.join(root::OWN)).unwrap();
            fs::write(root::own(&root, "marker"), "x").unwrap();
            for path in directories {
                fs::create_dir_all(root.join(path)).unwrap();
            }
            let watcher = Watcher::new([root.as_path()], Arc::default()).unwrap();
            let mut state = State::default();
            let id = state.dirs.add_root(0);
            state.trees.push(TreeState {
                path: root.clone(),
                owner: None,
                exclude: Vec::new(),
                patterns: Patterns::new(&[]).unwrap(),
                root: id,
                identity: root::look(&root).unwrap(),
                mounts: Vec::new(),
                probe: String::new(),
            });
            state.standbys.push(StandbyState::default());
            watcher.scan(&mut state, id, Noting::Nothing, Instant::now());
            Self {
                watcher,
                state,
                root,
                _directory: directory,
            }
        }

        /// Takes in what has happened, and lets the moves that lead nowhere expire.
        fn settle(&mut self) {
            let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
            let now = Instant::now();
            self.watcher.turn(&mut self.state, &mut buffer, now);
            assert_eq!(self.state.overflows, 0);
            self.watcher
                .expire_moves(&mut self.state, now + MOVE_PATIENCE);
        }

        /// The paths that a transfer would look at.
        fn marked(&mut self) -> Vec<String> {
            let later = Instant::now() + Duration::from_secs(5);
            let taken = self.state.standbys[0].queue.take(later, 1000, |_| false);
            let mut paths: Vec<String> = self
                .state
                .resolve(0, taken)
                .into_iter()
                .map(|(_, entry)| String::from_utf8_lossy(&entry.path).into_owned())
                .collect();
            paths.sort();
            paths
        }

        /// Every directory is known by its place, and watched; nothing else is.
        pub fn is_right(&self) {
            let mut known: Vec<PathBuf> = Vec::new();
            for id in self.state.dirs.below(self.state.trees[0].root) {
                let path = below(&self.root, &self.state.dirs.path(id).unwrap());
                let wd = inotify::add_watch(&self.watcher.fd, &path, FLAGS).unwrap();
                assert_eq!(self.state.dirs.watch(id), Some(wd), "{}", path.display());
                assert_eq!(self.state.dirs.by_watch(wd), Some(id));
                known.push(path);
            }
            let mut there = vec![self.root.clone()];
            let mut next = 0;
            while let Some(directory) = there.get(next).cloned() {
                for entry in fs::read_dir(directory).unwrap().flatten() {
                    if entry.file_type().unwrap().is_dir() && entry.file_name() != root::OWN {
                        there.push(entry.path());
                    }
                }
                next += 1;
            }
            known.sort();
            there.sort();
            assert_eq!(known, there);
            // None without a parent.
            assert_eq!(self.state.dirs.totals(0).0, known.len() as u64);
            assert_eq!(self.state.dirs.totals(0).1, 0);
        }
    }

    #[test]
    fn a_chain_of_renames_is_followed() {
        let mut tree = Tree::with(&["a/below", "b"]);
        for (from, to) in [("a", "tmp"), ("b", "a"), ("tmp", "b"), ("b", "a/c")] {
            fs::rename(tree.root.join(from), tree.root.join(to)).unwrap();
        }
        fs::write(tree.root.join("a/c/below/file"), "x").unwrap();
        tree.settle();
        tree.is_right();
        assert!(tree.marked().contains(&"a/c/below/file".to_owned()));
    }

    #[test]
    fn a_directory_that_seems_to_move_below_itself_is_looked_at_again() {
        let mut tree = Tree::with(&["n"]);
        fs::create_dir(tree.root.join("x")).unwrap();
        // The first look at x already finds n in it, and x goes to n by the events.
        for (from, to) in [("x", "n/x"), ("n/x", "x"), ("n", "x/n")] {
            fs::rename(tree.root.join(from), tree.root.join(to)).unwrap();
        }
        fs::write(tree.root.join("x/n/file"), "x").unwrap();
        tree.settle();
        tree.is_right();
        assert!(tree.marked().contains(&"x/n/file".to_owned()));
    }

    #[test]
    fn directories_that_are_exchanged_are_followed() {
        for second in ["b", "c/deep"] {
            let mut tree = Tree::with(&["a/of-a", "b/of-b", "c/deep/of-c"]);
            let (one, other) = (tree.root.join("a"), tree.root.join(second));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags)
                .unwrap();
            fs::write(other.join("of-a/file"), "x").unwrap();
            tree.settle();
            tree.is_right();
            let file = format!("{second}/of-a/file");
            assert!(tree.marked().contains(&file), "{second}");
            fs::write(other.join("of-a/file"), "later").unwrap();
            tree.settle();
            assert_eq!(tree.marked(), [file]);
        }
    }

    #[test]
    fn a_directory_that_moves_before_it_was_seen_is_found() {
        let mut tree = Tree::with(&[]);
        fs::create_dir_all(tree.root.join("a/below")).unwrap();
        fs::write(tree.root.join("a/below/file"), "x").unwrap();
        for (from, to) in [("a", "b"), ("b", "c"), ("c", "d")] {
            fs::rename(tree.root.join(from), tree.root.join(to)).unwrap();
        }
        tree.settle();
        tree.is_right();
        assert!(tree.marked().contains(&"d/below/file".to_owned()));
    }

    #[test]
    fn of_two_that_were_exchanged_one_is_gone_at_once() {
        for gone in ["a", "b"] {
            let mut tree = Tree::with(&["a/of-a", "b/of-b"]);
            let (one, other) = (tree.root.join("a"), tree.root.join("b"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags)
                .unwrap();
            fs::remove_dir_all(tree.root.join(gone)).unwrap();
            let left = if gone == "a" { "b/of-a" } else { "a/of-b" };
            tree.settle();
            tree.is_right();
            assert!(tree.marked().contains(&left.to_owned()), "{gone}");
            fs::write(tree.root.join(left).join("file"), "x").unwrap();
            tree.settle();
            assert_eq!(tree.marked(), [format!("{left}/file")]);
        }
    }

    #[test]
    fn a_new_directory_takes_the_place_of_one_that_left() {
        let mut tree = Tree::with(&["a/below"]);
        fs::rename(tree.root.join("a"), tree.root.with_file_name("outside")).unwrap();
        fs::create_dir(tree.root.join("a")).unwrap();
        fs::write(tree.root.join("a/file"), "x").unwrap();
        tree.settle();
        tree.is_right();
        assert_eq!(tree.marked(), ["a", "a/file"]);
        fs::write(tree.root.join("a/file"), "later").unwrap();
        tree.settle();
        assert_eq!(tree.marked(), ["a/file"]);
    }

    fn exchange(one: &Path, other: &Path) {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
    }

    #[test]
    fn below_a_directory_that_moves_on_nothing_is_overlooked() {
        // What happens in a, which is b when its events are read.
        let cases: [fn(&Path); 4] = [
            |root| fs::create_dir_all(root.join("a/new/deep")).unwrap(),
            |root| fs::rename(root.join("x"), root.join("a/new")).unwrap(),
            |root| exchange(&root.join("x"), &root.join("a/new")),
            |root| exchange(&root.join("a/other"), &root.join("a/new")),
        ];
        for (case, happens) in cases.iter().enumerate() {
            let mut tree = if case < 2 {
                Tree::with(&["a", "x/deep"])
            } else {
                Tree::with(&["a/new/deep", "a/other/deep", "x/deep"])
            };
            happens(&tree.root);
            fs::rename(tree.root.join("a"), tree.root.join("b")).unwrap();
            tree.settle();
            tree.is_right();
            assert_eq!(tree.state.unread(), 0);
            fs::write(tree.root.join("b/new/deep/file"), "x").unwrap();
            tree.settle();
            let marked = tree.marked();
            assert!(
                marked.contains(&"b/new/deep/file".to_owned()),
                "case {case}: {marked:?}"
            );
        }
    }

    #[test]
    fn an_exchange_with_what_was_not_seen_yet_is_followed() {
        let mut tree = Tree::with(&["a/a"]);
        fs::create_dir_all(tree.root.join("b/b/deep")).unwrap();
        exchange(&tree.root.join("a/a"), &tree.root.join("b/b"));
        tree.settle();
        tree.is_right();
        tree.marked();
        fs::write(tree.root.join("a/a/deep/file"), "x").unwrap();
        tree.settle();
        assert_eq!(tree.marked(), ["a/a/deep/file"]);
    }

    #[test]
    fn a_directory_that_is_met_before_its_move_was_read_keeps_its_watch() {
        let mut tree = Tree::with(&["a/b", "b"]);
        // The first look at b/b finds what was a/b, and b/b is deleted by the events.
        fs::create_dir(tree.root.join("b/b")).unwrap();
        fs::remove_dir_all(tree.root.join("b")).unwrap();
        fs::rename(tree.root.join("a"), tree.root.join("b")).unwrap();
        tree.settle();
        tree.is_right();
        tree.marked();
        fs::write(tree.root.join("b/b/file"), "x").unwrap();
        tree.settle();
        assert_eq!(tree.marked(), ["b/b/file"]);
    }
}
