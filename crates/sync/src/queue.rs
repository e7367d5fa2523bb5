//! What one standby lacks: a set of names, not a log of events. Pure; the time is passed in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::dirs::{Key, NodeId};
use crate::linked::Inode;

/// A change waits so long for others: an application that asks to `wait` for the file it has just
/// renamed is then part of the same batch.
const GATHER: Duration = Duration::from_millis(2);
/// A new file is about to be written; its closing makes it ready at once.
const SETTLE: Duration = Duration::from_millis(30);
/// A file that is being written is looked at when it has been quiet for so long ...
const QUIET: Duration = Duration::from_millis(50);
/// ... or has waited for this long.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// Deletions wait until there was none for so long: of a directory that is being removed only its own name is
/// left in the end ...
const GONE_QUIET: Duration = Duration::from_millis(40);
/// ... or for this long.
const GONE_DELAY: Duration = Duration::from_millis(250);
/// The other half of a rename comes within this time.
pub const MOVE_PATIENCE: Duration = Duration::from_millis(10);

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is as it should be sent.
    Whole,
    /// A file was made and will be written.
    Opened,
    /// A file is being written.
    Writing,
    /// It is gone.
    Gone,
    /// It was moved away, perhaps within the tree.
    MovedAway,
}

/// A name that has changed.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Its first change that is not sent.
    pub first: Instant,
    due: Instant,
    /// Deleted files that it stands for, as far as they were counted.
    pub lost: u64,
    /// Its last change was that it went away.
    gone: bool,
    /// A directory of this name has gone. If another one stands there when it is sent, what the first one
    /// held is to be found over there by a comparison: its own names were forgotten with it.
    pub vacated: bool,
    /// Who waits for it.
    pub waiters: Vec<u64>,
}

/// A directory that has moved. It comes before everything that is taken later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// The tree.
    pub tree: u16,
    /// Its old path, relative to the root.
    pub from: Vec<u8>,
    /// Its new path.
    pub to: Vec<u8>,
    /// Its new place.
    pub new: Key,
}

/// The queue of one standby.
#[derive(Debug, Default)]
pub struct Queue {
    marks: HashMap<Key, Mark>,
    renames: VecDeque<Rename>,
    /// Files with several names that have changed: since when, and when they are due.
    inodes: HashMap<Inode, (Instant, Instant)>,
    last_gone: Option<Instant>,
}

impl Queue {
    /// Notes a change.
    pub fn mark(&mut self, key: Key, change: Change, now: Instant) {
        let mark = self.marks.entry(key).or_insert(Mark {
            first: now,
            due: now + MAX_DELAY,
            lost: 0,
            gone: false,
            vacated: false,
            waiters: Vec::new(),
        });
        let due = match change {
            Change::Whole | Change::Gone => now + GATHER,
            Change::Opened => now + SETTLE,
            Change::Writing => (mark.first + MAX_DELAY).min(now + QUIET),
            Change::MovedAway => now + MOVE_PATIENCE,
        };
        // Who waits does not wait for a file to be quiet.
        mark.due = if mark.waiters.is_empty() {
            due
        } else {
            due.min(mark.due)
        };
        mark.gone = change == Change::Gone;
        if mark.gone {
            mark.lost = mark.lost.max(1);
            self.last_gone = Some(now);
        }
    }

    /// Notes a change of a file with several names, through whichever.
    pub fn mark_inode(&mut self, inode: Inode, change: Change, now: Instant) {
        let (first, due) = self.inodes.entry(inode).or_insert((now, now));
        *due = match change {
            Change::Writing => (*first + MAX_DELAY).min(now + QUIET),
            Change::Whole | Change::Opened | Change::Gone | Change::MovedAway => now + GATHER,
        };
    }

    /// A file is gone with all its names, which are marked.
    pub fn forget_inode(&mut self, inode: Inode) {
        self.inodes.remove(&inode);
    }

    /// Takes the files whose names are to be found.
    pub fn take_inodes(&mut self, now: Instant) -> Vec<Inode> {
        let due: Vec<Inode> = self
            .inodes
            .iter()
            .filter(|(_, (_, due))| *due <= now)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in &due {
            self.inodes.remove(inode);
        }
        due
    }

    /// A file is to be looked for again.
    pub fn put_back_inode(&mut self, inode: Inode, due: Instant) {
        self.inodes.entry(inode).or_insert((due, due));
    }

    /// Notes that somebody waits for a name; it is sent in any case.
    pub fn wait(&mut self, key: Key, waiter: u64, now: Instant) {
        let mark = self.marks.entry(key).or_insert(Mark {
            first: now,
            due: now,
            lost: 0,
            gone: false,
            vacated: false,
            waiters: Vec::new(),
        });
        mark.due = now;
        mark.waiters.push(waiter);
    }

    /// The directory of a marked name has gone, with so many files.
    pub fn vacate(&mut self, key: &Key, files: u64) {
        if let Some(mark) = self.marks.get_mut(key) {
            mark.lost += files;
            mark.vacated = true;
        }
    }

    /// Notes that a directory was moved.
    pub fn rename(&mut self, rename: Rename) {
        self.renames.push_back(rename);
    }

    /// The moves that come before anything else.
    pub fn take_renames(&mut self) -> Vec<Rename> {
        self.renames.drain(..).collect()
    }

    /// Whether a move that waits concerns what lies at a path now.
    pub fn moves_over(&self, path: &[u8]) -> bool {
        self.renames.iter().any(|rename| {
            path.strip_prefix(rename.to.as_slice())
                .is_some_and(|rest| rest.first() == Some(&b'/'))
        })
    }

    /// Whether a move waits.
    pub fn has_renames(&self) -> bool {
        !self.renames.is_empty()
    }

    /// Whether something is known to have happened to a name that was not sent yet.
    pub fn contains(&self, key: &Key) -> bool {
        self.marks.contains_key(key)
    }

    /// Forgets what lies in directories that are gone: their own names stand for it. Gives how many
    /// deleted files that were, and who waited for one of them.
    pub fn forget(&mut self, gone: &HashSet<NodeId>) -> (u64, Vec<u64>) {
        let mut lost = 0;
        let mut waiters = Vec::new();
        self.marks.retain(|key, mark| {
            let keep = !gone.contains(&key.dir);
            if !keep {
                lost += mark.lost;
                waiters.append(&mut mark.waiters);
            }
            keep
        });
        (lost, waiters)
    }

    /// Takes what is due, at most `limit` names. Names that somebody waits for come first, and alone when
    /// there is more than a small batch.
    pub fn take(
        &mut self,
        now: Instant,
        limit: usize,
        busy: impl Fn(&Key) -> bool,
    ) -> Vec<(Key, Mark)> {
        // A few deletions go along with what is sent anyway: of a file that was renamed into place, say.
        let along = self.marks.len() <= FEW
            && self
                .marks
                .iter()
                .any(|(key, mark)| !mark.gone && mark.due <= now && !busy(key));
        let ready = |key: &Key, mark: &Mark| {
            let due = if along { mark.due } else { self.due(mark) };
            due <= now && !busy(key)
        };
        let waited: Vec<Key> = self
            .marks
            .iter()
            .filter(|(key, mark)| !mark.waiters.is_empty() && ready(key, mark))
            .map(|(key, _)| key.clone())
            .take(limit)
            .collect();
        let keys = if !waited.is_empty() && self.marks.len() > SMALL_BATCH {
            waited
        } else {
            self.marks
                .iter()
                .filter(|(key, mark)| ready(key, mark))
                .map(|(key, _)| key.clone())
                .take(limit)
                .collect()
        };
        keys.into_iter()
            .filter_map(|key| self.marks.remove_entry(&key))
            .collect()
    }

    /// Puts names back that were not sent; what happened to them meanwhile is kept.
    pub fn put_back(&mut self, taken: impl IntoIterator<Item = (Key, Mark)>, due: Instant) {
        for (key, mut mark) in taken {
            mark.due = due;
            self.marks
                .entry(key)
                .and_modify(|newer| {
                    newer.first = newer.first.min(mark.first);
                    newer.lost = newer.lost.max(mark.lost);
                    newer.vacated |= mark.vacated;
                    newer.waiters.append(&mut mark.waiters);
                })
                .or_insert(mark);
        }
    }

    /// When the next name is due; none when the queue is empty.
    pub fn next_due(&self) -> Option<Instant> {
        let names = self.marks.values().map(|mark| self.due(mark));
        names.chain(self.inodes.values().map(|(_, due)| *due)).min()
    }

    /// When a name is sent: a deletion not while others follow it.
    fn due(&self, mark: &Mark) -> Instant {
        match self.last_gone {
            Some(last) if mark.gone && mark.waiters.is_empty() => mark
                .due
                .max((last + GONE_QUIET).min(mark.first + GONE_DELAY)),
            Some(_) | None => mark.due,
        }
    }

    /// Names, files and moves that wait.
    pub fn len(&self) -> usize {
        self.marks.len() + self.renames.len() + self.inodes.len()
    }

    /// The oldest change that is not sent.
    pub fn oldest(&self) -> Option<Instant> {
        let names = self.marks.values().map(|mark| mark.first);
        names
            .chain(self.inodes.values().map(|(first, _)| *first))
            .min()
    }
}

/// So few names are not a directory that is being removed.
const FEW: usize = 50;
/// A batch of this size takes a few milliseconds more than one of a single name.
const SMALL_BATCH: usize = 500;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dirs::Dirs;

    fn keys() -> (NodeId, impl Fn(&str) -> Key) {
        let mut dirs = Dirs::default();
        let root = dirs.add_root(0);
        (root, move |name: &str| Key {
            dir: root,
            name: Arc::from(name.as_bytes()),
        })
    }

    fn taken(queue: &mut Queue, now: Instant) -> Vec<String> {
        let mut names: Vec<String> = queue
            .take(now, 100_000, |_| false)
            .into_iter()
            .map(|(key, _)| String::from_utf8_lossy(&key.name).into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_closed_file_is_ready_at_once_and_a_new_one_is_not() {
        let (_, key) = keys();
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.mark(key("new"), Change::Opened, start);
        queue.mark(key("closed"), Change::Opened, start);
        queue.mark(key("closed"), Change::Writing, start);
        queue.mark(key("closed"), Change::Whole, start);
        assert!(taken(&mut queue, start).is_empty());
        assert_eq!(taken(&mut queue, start + GATHER), ["closed"]);
        assert_eq!(taken(&mut queue, start + SETTLE), ["new"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_file_that_is_never_closed_is_sent_once_a_second() {
        let (_, key) = keys();
        let start = Instant::now();
        let mut queue = Queue::default();
        let mut sent = 0;
        for step in 0..300_u32 {
            let now = start + Duration::from_millis(10) * step;
            queue.mark(key("log"), Change::Writing, now);
            sent += taken(&mut queue, now).len();
        }
        assert_eq!(sent, 2);
    }

    #[test]
    fn deletions_are_gathered_while_more_of_them_come() {
        let (_, key) = keys();
        let start = Instant::now();
        let mut queue = Queue::default();
        for step in 0..10_u32 {
            let now = start + Duration::from_millis(10) * step;
            queue.mark(key(&step.to_string()), Change::Gone, now);
            assert!(taken(&mut queue, now).is_empty());
        }
        let quiet = start + Duration::from_millis(90) + GONE_QUIET;
        assert_eq!(queue.next_due(), Some(quiet));
        assert_eq!(taken(&mut queue, quiet).len(), 10);
        // Without an end they do not wait for ever, and a file that is made anew does not wait at all.
        for step in 0..200_u32 {
            let now = quiet + Duration::from_millis(10) * step;
            queue.mark(key(&step.to_string()), Change::Gone, now);
        }
        let now = quiet + Duration::from_millis(1990);
        queue.mark(key("199"), Change::Whole, now);
        assert_eq!(taken(&mut queue, now + GATHER).len(), 176);
        let mut few = Queue::default();
        few.mark(key("new.tmp"), Change::Gone, now);
        few.mark(key("new"), Change::Whole, now);
        assert_eq!(taken(&mut few, now + GATHER), ["new", "new.tmp"]);
    }

    #[test]
    fn who_waits_comes_first() {
        let (_, key) = keys();
        let now = Instant::now();
        let mut queue = Queue::default();
        for number in 0..2 * SMALL_BATCH {
            queue.mark(key(&number.to_string()), Change::Whole, now);
        }
        queue.mark(key("waited"), Change::Writing, now);
        queue.wait(key("waited"), 7, now);
        let first = queue.take(now + GATHER, 10_000, |_| false);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].1.waiters, [7]);
        queue.put_back(first, now);
        assert_eq!(queue.take(now, 10_000, |_| false)[0].1.waiters, [7]);
    }

    #[test]
    fn a_busy_name_stays_and_a_returned_one_keeps_its_age() {
        let (_, key) = keys();
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut queue = Queue::default();
        queue.mark(key("a"), Change::Whole, start);
        let busy = key("a");
        assert!(queue.take(later, 10, |k| *k == busy).is_empty());
        let mut batch = queue.take(later, 10, |_| false);
        queue.mark(key("a"), Change::Gone, later);
        queue.put_back(batch.drain(..), later);
        assert_eq!((queue.len(), queue.oldest()), (1, Some(start)));
    }

    #[test]
    fn what_lies_in_a_lost_directory_is_counted_and_forgotten() {
        let (root, key) = keys();
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.mark(key("a"), Change::Gone, now);
        queue.mark(key("b"), Change::Gone, now);
        queue.wait(key("b"), 3, now);
        assert_eq!(queue.forget(&HashSet::from([root])), (2, vec![3]));
        assert_eq!(queue.len(), 0);
    }
}
