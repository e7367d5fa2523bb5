//! Serves one standby: connects, compares it if it is not known to be complete, and then sends what
//! changes. Each standby has a thread of its own, so a dead one does not slow the others.

use std::fmt::Write;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alerts::Severity;
use process::{Finished, Output, Running};
use settings::{Node, Settings};

use crate::batch::{self, Batch, Entry, Links};
use crate::beside::Beside;
use crate::checkpoint::{Checkpoint, wall_clock};
use crate::compare::{self, Comparison, Losses, Scope};
use crate::dirs::Key;
use crate::hold;
use crate::link::{Content, Link, LinkError, complaint, has_finished};
use crate::linked::Inode;
use crate::outcome::{Backoff, DeletionLimit, Outcome, outcome};
use crate::queue::{Change, Rename};
use crate::root;
use crate::state::{Shared, State, TreeState};
use crate::tell;

/// Most names in one run of rsync: a larger backlog is sent in several, so that its progress is seen
/// and a name that somebody waits for gets its turn.
const MOST_NAMES: usize = 10_000;
/// More deletions than this are not remembered between two flushes.
const MOST_GOING: usize = 100_000;
/// Between two looks whether an unreachable standby answers again: one SYN to each of its addresses.
const PROBE: Duration = Duration::from_millis(500);
/// While roles change, a standby may not know for a moment that it is one: that is no alert.
const PATIENCE: Duration = Duration::from_secs(5);
/// Without anything to do, the connection is looked at so often.
const IDLE: Duration = Duration::from_secs(1);
/// While large files are under way, others look so often whether it is their turn.
const LARGE_AGAIN: Duration = Duration::from_millis(100);
/// rsyncs that end while the next one works.
const MOST_LEAVING: usize = 2;
/// One that has said goodbye and has not ended for so long is ended: its work is done.
const LONGEST_FAREWELL: Duration = Duration::from_secs(5);
/// A transfer that has not come to its end within this time stands: see [`patience`].
const STANDS: Duration = Duration::from_secs(15);
/// What the slowest disk that a standby may have takes for each name.
const EACH_NAME: Duration = Duration::from_millis(20);
/// The same in bytes a second.
const SLOWEST: u64 = 256 * 1024;
/// A file of which not all names were found is looked for again after this time, when what moved meanwhile is
/// known.
const FIND_AGAIN: Duration = Duration::from_millis(50);
/// A name that is due in less is waited for so long: the kernel's own grain.
const SHORTEST_WAIT: Duration = Duration::from_micros(200);
/// Deletions within this time count together.
const DELETION_WINDOW: Duration = Duration::from_secs(60);
/// Between two checkpoints, each of which asks the standby to write to its disk.
const CHECKPOINT: Duration = Duration::from_secs(2);

/// Why serving has ended.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The service stops, or the epoch is another one.
    #[error("stopped")]
    Stopped,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    Transfer(String),
}

impl From<process::ProcessError> for Trouble {
    fn from(error: process::ProcessError) -> Self {
        Self::Link(error.into())
    }
}

/// What the first look at the trees has found for a standby.
#[derive(Debug)]
pub struct Found {
    /// Names the standby's complete state that the look went on from, if it did.
    pub token: Option<String>,
    /// Files with several names, by tree.
    pub links: Vec<Links>,
}

/// What one rsync is to do.
struct Transfer {
    list: Vec<u8>,
    entries: Vec<Entry>,
    deletions: u64,
    bytes: u64,
    /// Directories that something else may have taken the place of.
    vacated: Vec<Vec<u8>>,
}

/// An rsync that has done its work and ends by itself.
#[derive(Debug)]
struct Leaving {
    running: Running,
    /// What it sent.
    keys: Vec<Key>,
    since: Instant,
}

/// How long a transfer may take before it is given up, with its connection: nothing of it can come after what is sent
/// next. rsync's own time-out counts from the last sign of life, and is no help where the sender itself stands.
fn patience(names: u64, bytes: u64) -> Duration {
    let names = u32::try_from(names).unwrap_or(u32::MAX);
    STANDS + EACH_NAME.saturating_mul(names) + Duration::from_secs(bytes / SLOWEST)
}

/// One standby's thread.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    peer: Node,
    index: usize,
    epoch: u64,
    trees: Vec<TreeState>,
    shared: Arc<Shared>,
    links: Vec<Links>,
    /// Threads that compare or send a large file.
    beside: Vec<JoinHandle<()>>,
    leaving: Vec<Leaving>,
    token: Option<String>,
    checkpointed: Option<Instant>,
    /// Something was acknowledged since the last checkpoint.
    progressed: bool,
}

/// What was said about a standby that takes nothing.
#[derive(Debug, Default)]
struct Told {
    why: Option<String>,
    since: Option<Instant>,
    refusing: bool,
    alerted: bool,
}

/// What there is to do.
enum Work {
    Renames(Vec<Rename>),
    Send(Vec<(u16, Entry)>),
    /// Files with several names have changed.
    Name(Vec<Inode>),
    Compare(Vec<Comparison>),
    /// Large files have arrived that somebody waits for.
    Flush(Vec<u64>),
    Checkpoint,
}

impl Worker {
    /// A worker for the standby of that index in the state.
    pub fn new(
        settings: &Settings,
        peer: &Node,
        index: usize,
        epoch: u64,
        trees: &[TreeState],
        found: Found,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            peer: peer.clone(),
            index,
            epoch,
            trees: trees.to_vec(),
            shared,
            links: found.links,
            beside: Vec::new(),
            leaving: Vec::new(),
            token: found.token,
            checkpointed: None,
            progressed: false,
        }
    }

    fn stopped(&self) -> bool {
        self.shared.lock().stopped
    }

    /// Serves until the state is stopped.
    pub fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut told = Told::default();
        while !self.stopped() {
            let trouble = match self.connect() {
                Ok(mut link) => {
                    backoff.reset();
                    if std::mem::take(&mut told).alerted {
                        self.tell_again();
                    }
                    let ended = self.serve(&mut link);
                    // What runs beside ends with the connection.
                    drop(link);
                    self.end_beside();
                    ended
                }
                Err(trouble) => Err(trouble),
            };
            match trouble {
                Ok(()) | Err(Trouble::Stopped) => break,
                Err(trouble) => self.note_trouble(&trouble, &mut told),
            }
            let pause = backoff.next(random_number());
            self.pause(pause, &mut told);
        }
        self.end_beside();
    }

    fn connect(&self) -> Result<Link, Trouble> {
        let address = observe::reachable(&self.settings, &self.peer, self.settings.peer.port)
            .ok_or_else(|| {
                Trouble::Transfer(format!("{} does not answer on any network", self.peer.name))
            })?;
        let (mut link, greeting) =
            Link::open(&self.settings, &self.peer, address, self.epoch, &self.trees)?;
        for (tree, index) in self.trees.iter().zip(0..) {
            link.canary(index, tree)?;
        }
        let known = greeting.complete.is_some() && greeting.complete == self.token;
        let losses = if greeting.keeps {
            Losses::Copied
        } else {
            Losses::Unseen
        };
        let mut state = self.shared.lock();
        let standby = &mut state.standbys[self.index];
        standby.connected = true;
        standby.reason = None;
        standby.refusing = false;
        standby.trash = link.has_trash();
        standby.complete = known;
        if !known {
            standby.compare = (0..)
                .zip(&self.trees)
                .map(|(tree, _)| Comparison {
                    tree,
                    scope: Scope::Whole,
                    losses,
                })
                .collect();
        }
        drop(state);
        tell::log(
            &self.settings,
            &format!(
                "{}: connected{}",
                self.peer.name,
                if known {
                    ""
                } else {
                    "; it is compared, since it is not known to be complete"
                }
            ),
        );
        Ok(link)
    }

    fn serve(&mut self, link: &mut Link) -> Result<(), Trouble> {
        loop {
            match self.next_work(link)? {
                Work::Renames(renames) => {
                    let done = self.rename(link, renames);
                    self.shared.lock().standbys[self.index].in_flight = 0;
                    done?;
                }
                Work::Send(entries) => self.send_all(link, entries)?,
                Work::Name(inodes) => self.name(inodes),
                Work::Compare(scopes) => self.compare(link, scopes),
                Work::Flush(waiters) => self.flush_for(link, &waiters)?,
                Work::Checkpoint => self.checkpoint(link)?,
            }
        }
    }

    /// Waits until there is something to do. While there is nothing, the connection is looked after.
    fn next_work(&mut self, link: &mut Link) -> Result<Work, Trouble> {
        let shared = Arc::clone(&self.shared);
        let mut looked: Option<Instant> = None;
        loop {
            let mut state = shared.lock();
            while looked.is_none_or(|at| at.elapsed() < IDLE) {
                if state.stopped {
                    return Err(Trouble::Stopped);
                }
                let now = Instant::now();
                let sending = state.may_send() && state.lost_root.is_none();
                if sending && let Some(work) = self.work_now(&mut state, now) {
                    return Ok(work);
                }
                if self.finished(&state) && self.due_for_checkpoint(&state) {
                    return Ok(Work::Checkpoint);
                }
                if looked.is_none() {
                    break;
                }
                let until = state.standbys[self.index]
                    .queue
                    .next_due()
                    .filter(|_| sending)
                    .map_or(IDLE, |due| due.saturating_duration_since(now))
                    .clamp(SHORTEST_WAIT, IDLE);
                state = shared.wait(state, until);
            }
            drop(state);
            self.look_after(link)?;
            looked = Some(Instant::now());
        }
    }

    fn look_after(&mut self, link: &mut Link) -> Result<(), Trouble> {
        if link.is_over() {
            // Asking tells why.
            link.flush()?;
            return Err(Trouble::Transfer("the connection has ended".to_owned()));
        }
        for (tree, index) in self.trees.iter().zip(0..) {
            link.prepare(index, tree)?;
        }
        self.reap();
        self.beside.retain(|thread| !thread.is_finished());
        Ok(())
    }

    fn work_now(&mut self, state: &mut State, now: Instant) -> Option<Work> {
        for links in &mut self.links {
            links.note_moves(state.moves);
        }
        let standby = &mut state.standbys[self.index];
        if !standby.unflushed.is_empty() {
            return Some(Work::Flush(std::mem::take(&mut standby.unflushed)));
        }
        if standby.queue.has_renames() {
            // A large file under way must not lose its directory.
            let moved = |path: &[u8]| standby.queue.moves_over(path);
            if standby
                .large
                .iter()
                .filter_map(|key| state.dirs.path_of(key))
                .any(|path| moved(&path))
            {
                return None;
            }
            let renames = standby.queue.take_renames();
            standby.in_flight = renames.len();
            return Some(Work::Renames(renames));
        }
        if !standby.comparing && !standby.compare.is_empty() {
            standby.comparing = true;
            return Some(Work::Compare(std::mem::take(&mut standby.compare)));
        }
        let inodes = standby.queue.take_inodes(now);
        if !inodes.is_empty() {
            standby.in_flight = inodes.len();
            return Some(Work::Name(inodes));
        }
        let large = std::mem::take(&mut standby.large);
        let taken = standby
            .queue
            .take(now, MOST_NAMES, |key| large.contains(key));
        standby.large = large;
        if taken.is_empty() {
            return None;
        }
        standby.in_flight = taken.len();
        if standby.going.len() > MOST_GOING {
            standby.going.clear();
        }
        let gone = taken.iter().filter(|(_, mark)| mark.lost > 0);
        standby.going.extend(gone.map(|(key, _)| key.clone()));
        Some(Work::Send(state.resolve(self.index, taken)))
    }

    /// Nothing waits, and nothing is under way.
    fn finished(&self, state: &State) -> bool {
        let standby = &state.standbys[self.index];
        standby.behind() + state.unread() == standby.quarantine.len()
    }

    fn due_for_checkpoint(&self, state: &State) -> bool {
        let standby = &state.standbys[self.index];
        if !standby.withheld.is_empty() {
            // After a restart they would not be known.
            return false;
        }
        let overdue = self
            .checkpointed
            .is_none_or(|at| at.elapsed() >= CHECKPOINT);
        (!standby.complete && standby.quarantine.is_empty()) || (self.progressed && overdue)
    }

    fn checkpoint(&mut self, link: &mut Link) -> Result<(), Trouble> {
        // What happens from here on belongs to the next one.
        let (pending, complete, until) = {
            let state = self.shared.lock();
            let Some(until) = state.read_until.filter(|_| self.finished(&state)) else {
                return Ok(());
            };
            let standby = &state.standbys[self.index];
            let pending = standby
                .quarantine
                .keys()
                .filter_map(|key| Some((state.dirs.tree(key.dir), state.dirs.path_of(key)?)))
                .collect();
            (pending, standby.complete, until)
        };
        let token = match (&self.token, complete) {
            (Some(token), true) => token.clone(),
            _ => root::random(),
        };
        let checkpoint = Checkpoint::new(&self.settings, self.epoch, &token, until, pending);
        if complete && self.token.is_some() {
            link.flush()?;
        } else {
            link.complete(&token)?;
            tell::log(
                &self.settings,
                &format!("{} has everything", self.peer.name),
            );
        }
        self.token = Some(token);
        self.checkpointed = Some(Instant::now());
        self.progressed = false;
        if let Some(checkpoint) = checkpoint
            && let Err(error) = checkpoint.save(&self.settings, &self.peer.name)
        {
            log::warn!("{error}; a restart will compare instead");
        }
        let mut state = self.shared.lock();
        let standby = &mut state.standbys[self.index];
        standby.complete = true;
        standby.going.clear();
        standby.filling = None;
        standby.last_acknowledged = Some(wall_clock());
        drop(state);
        self.shared.notify();
        Ok(())
    }

    fn rename(&mut self, link: &mut Link, renames: Vec<Rename>) -> Result<(), Trouble> {
        for rename in &renames {
            self.links[usize::from(rename.tree)].moved(&rename.from, &rename.to);
        }
        let mut renames = renames.into_iter();
        while let Some(rename) = renames.next() {
            match link.rename(rename.tree, &rename.from, &rename.to) {
                Ok(None) => tell::log(
                    &self.settings,
                    &format!(
                        "{}: moved {} to {}",
                        self.peer.name,
                        String::from_utf8_lossy(&rename.from),
                        String::from_utf8_lossy(&rename.to)
                    ),
                ),
                Ok(Some(why)) => {
                    log::debug!("{}: not moved ({why}), sent instead", self.peer.name);
                    self.resend(&rename);
                }
                Err(error) => {
                    // What was not moved is sent as it is now, and so are those after it.
                    for rename in std::iter::once(rename).chain(renames) {
                        self.resend(&rename);
                        self.compare_moved(&rename);
                    }
                    return Err(error.into());
                }
            }
            self.compare_moved(&rename);
        }
        self.progressed = true;
        Ok(())
    }

    /// Looks whether both are the same now. Also where nothing was moved: then the standby may have another
    /// directory of that name, with names that have to go.
    fn compare_moved(&self, rename: &Rename) {
        let mut state = self.shared.lock();
        if let Some(id) = state.dirs.child(rename.new.dir, &rename.new.name)
            && let Some(path) = state.dirs.path(id)
        {
            state.standbys[self.index].compare.push(Comparison {
                tree: rename.tree,
                scope: Scope::Below(vec![path]),
                losses: Losses::Seen,
            });
        }
    }

    /// A directory could not be moved over there: all that it holds is marked.
    fn resend(&self, rename: &Rename) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let Some(id) = state.dirs.child(rename.new.dir, &rename.new.name) else {
            return;
        };
        let tree = usize::from(state.dirs.tree(id));
        let queue = &mut state.standbys[self.index].queue;
        for dir in state.dirs.below(id) {
            let Some(path) = state.dirs.path(dir) else {
                continue;
            };
            let path = batch::below(&self.trees[tree].path, &path);
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                let name =
                    std::os::unix::ffi::OsStrExt::as_bytes(entry.file_name().as_os_str()).into();
                queue.mark(Key { dir, name }, Change::Whole, now);
            }
        }
    }

    /// Finds the names of files that have changed, and marks them.
    fn name(&mut self, inodes: Vec<Inode>) {
        let mut by_tree: Vec<Vec<u64>> = self.trees.iter().map(|_| Vec::new()).collect();
        for inode in inodes {
            by_tree[usize::from(inode.tree)].push(inode.number);
        }
        for (numbers, tree) in by_tree.into_iter().zip(0_u16..) {
            if numbers.is_empty() {
                continue;
            }
            let root = &self.trees[usize::from(tree)].path;
            let found = self.links[usize::from(tree)].names_of(root, &numbers);
            let again = Instant::now() + FIND_AGAIN;
            self.shared
                .lock()
                .note_names(self.index, tree, &found, again);
        }
        self.shared.lock().standbys[self.index].in_flight = 0;
        self.shared.notify();
    }

    fn send_all(&mut self, link: &mut Link, entries: Vec<(u16, Entry)>) -> Result<(), Trouble> {
        let mut by_tree: Vec<Vec<Entry>> = self.trees.iter().map(|_| Vec::new()).collect();
        for (tree, entry) in entries {
            by_tree[usize::from(tree)].push(entry);
        }
        let mut sent = Ok(());
        for (entries, index) in by_tree.into_iter().zip(0_u16..) {
            if entries.is_empty() {
                continue;
            }
            if sent.is_err() {
                self.put_back(entries, Instant::now());
                continue;
            }
            sent = self.send(link, index, entries);
        }
        let mut state = self.shared.lock();
        let standby = &mut state.standbys[self.index];
        standby.in_flight = 0;
        standby.bytes = 0;
        drop(state);
        self.shared.notify();
        sent
    }

    fn put_back(&self, entries: Vec<Entry>, due: Instant) {
        let mut state = self.shared.lock();
        let taken = entries.into_iter().map(|entry| (entry.key, entry.mark));
        state.standbys[self.index].queue.put_back(taken, due);
    }

    /// Looks at the names of one tree, holds the deletions that need a person, and sends the rest.
    fn send(&mut self, link: &mut Link, index: u16, entries: Vec<Entry>) -> Result<(), Trouble> {
        let tree = self.trees[usize::from(index)].clone();
        let held = self.shared.lock().held.clone();
        let mut batch = batch::build(
            &tree.path,
            entries,
            &mut self.links[usize::from(index)],
            self.settings.sync.large,
            held.is_some(),
            |path| self.shared.lock().knows(index, path),
        );
        // After the look at the names: what an unmounted root showed as deleted is not believed.
        let lost = if root::look(&tree.path) == Some(tree.identity) {
            root::unmounted(&tree.mounts).map(|path| {
                format!(
                    "{} was a mounted file system and is not the same now: unmounted, or exchanged",
                    path.display()
                )
            })
        } else {
            Some(format!(
                "{} is not the directory that was synchronised before: unmounted, emptied or exchanged",
                tree.path.display()
            ))
        };
        if let Some(why) = lost {
            self.put_back(all_entries(batch), Instant::now());
            self.shared.lock().lost_root.get_or_insert(why);
            self.shared.notify();
            return Ok(());
        }
        if let Some(why) = &held {
            let withheld = std::mem::take(&mut batch.withheld);
            self.shared.lock().withhold(self.index, withheld, why);
        }
        let kept = match link.set_aside(index, &batch.aside) {
            Ok(kept) => kept,
            Err(error) => {
                self.put_back(all_entries(batch), Instant::now());
                return Err(error.into());
            }
        };
        if !kept && let Some(why) = self.hold(index, &batch) {
            // From now on without them.
            self.put_back(all_entries(batch), Instant::now());
            hold::begin(&self.settings, &mut self.shared.lock(), why);
            self.shared.notify();
            return Ok(());
        }
        let Batch {
            list,
            entries,
            large,
            deletions,
            bytes,
            vacated,
            withheld: _,
            aside: _,
        } = batch;
        self.start_large(link, &tree, large);
        if entries.is_empty() {
            return Ok(());
        }
        let transfer = Transfer {
            list,
            entries,
            deletions,
            bytes,
            vacated,
        };
        self.transfer(link, index, &tree, transfer)
    }

    fn transfer(
        &mut self,
        link: &mut Link,
        index: u16,
        tree: &TreeState,
        transfer: Transfer,
    ) -> Result<(), Trouble> {
        let Transfer {
            list,
            entries,
            deletions,
            bytes,
            vacated,
        } = transfer;
        self.shared.lock().standbys[self.index].bytes = bytes;
        self.see_off();
        let running = match link.ready(index, tree) {
            Ok(running) => running,
            Err(error) => {
                self.put_back(entries, Instant::now());
                return Err(error.into());
            }
        };
        let start = Instant::now();
        let patience = patience(entries.len() as u64 + deletions, bytes);
        let finished = running.finish_until(&list, has_finished, || {
            start.elapsed() < patience && self.shared.lock().may_send()
        });
        self.compare_vacated(index, vacated);
        let output = match finished {
            Ok(Finished::Ended(output)) => output,
            Ok(Finished::Early(running)) => {
                self.leaving.push(Leaving {
                    running,
                    keys: entries.iter().map(|entry| entry.key.clone()).collect(),
                    since: Instant::now(),
                });
                return self.acknowledge(link, entries, deletions, bytes, start.elapsed());
            }
            Err(error) => {
                let names = entries.len();
                self.put_back(entries, Instant::now());
                return Err(if start.elapsed() < patience {
                    error.into()
                } else {
                    Trouble::Transfer(format!(
                        "a transfer of {names} names and {bytes} bytes was not done after {patience:.0?}, and is given up"
                    ))
                });
            }
        };
        match outcome(output.status.code()) {
            Outcome::Sent | Outcome::LookAgain => {
                self.acknowledge(link, entries, deletions, bytes, start.elapsed())
            }
            Outcome::Partial => self.divide(link, index, entries, &output),
            Outcome::Hold => {
                self.put_back(entries, Instant::now());
                hold::begin(&self.settings, &mut self.shared.lock(), complaint(&output));
                Ok(())
            }
            Outcome::Unsupported | Outcome::Retry => {
                self.put_back(entries, Instant::now());
                Err(Trouble::Transfer(complaint(&output)))
            }
        }
    }

    /// Directories that have taken the place of others, perhaps between the look and the transfer.
    fn compare_vacated(&self, tree: u16, mut vacated: Vec<Vec<u8>>) {
        let root = &self.trees[usize::from(tree)].path;
        vacated.retain(|path| compare::is_directory(root, path));
        if !vacated.is_empty() {
            let comparison = Comparison {
                tree,
                scope: Scope::Below(vacated),
                losses: Losses::Seen,
            };
            self.shared.lock().standbys[self.index]
                .compare
                .push(comparison);
        }
    }

    /// Looks after rsyncs that have done their work and end. Their sessions count against sshd's limit for
    /// a connection (`MaxSessions`, 10), so there are never many.
    fn see_off(&mut self) {
        while self.leaving.len() > MOST_LEAVING {
            self.reap();
            // Each needs two of rsync's own steps of 20 ms.
            if self.leaving.len() > MOST_LEAVING {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        let mut again = Vec::new();
        self.leaving.retain_mut(
            |Leaving {
                 running,
                 keys,
                 since,
             }| match running.end() {
                // Dropped, it is killed.
                None => since.elapsed() < LONGEST_FAREWELL,
                Some(status) => {
                    let code = status.and_then(|status| status.code());
                    // It said that everything was in place. If it thinks otherwise now, it is looked at again;
                    // a connection that broke in the very last moment changes nothing.
                    if matches!(outcome(code), Outcome::Partial | Outcome::LookAgain) {
                        again.append(keys);
                    }
                    false
                }
            },
        );
        if !again.is_empty() {
            let mut state = self.shared.lock();
            for key in again {
                state.standbys[self.index]
                    .queue
                    .mark(key, Change::Whole, Instant::now());
            }
        }
    }

    /// Why these deletions need a person's word.
    fn hold(&self, index: u16, batch: &Batch) -> Option<String> {
        if batch.deletions == 0 {
            return None;
        }
        let now = Instant::now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let (_, _, files) = state.dirs.totals(index);
        let recent = &mut state.standbys[self.index].deletions;
        recent.retain(|(at, _)| now.saturating_duration_since(*at) < DELETION_WINDOW);
        let deletions = batch.deletions + recent.iter().map(|(_, count)| count).sum::<u64>();
        if state.needs_word(self.limit(), deletions, files, now) {
            return Some(self.too_many(deletions, files, index));
        }
        state.standbys[self.index]
            .deletions
            .push((now, batch.deletions));
        None
    }

    fn limit(&self) -> DeletionLimit {
        let sync = &self.settings.sync;
        DeletionLimit {
            count: sync.delete_limit_count,
            percent: sync.delete_limit_percent,
            unseen: sync.delete_limit_unseen,
        }
    }

    fn too_many(&self, deletions: u64, files: u64, tree: u16) -> String {
        format!(
            "{deletions} deletions in {}, of which {files} files are left: nothing is deleted on {} until a person has \
             looked; new and changed files are sent. If it is right: sync-realtime --release",
            self.trees[usize::from(tree)].path.display(),
            self.peer.name
        )
    }

    fn acknowledge(
        &mut self,
        link: &mut Link,
        entries: Vec<Entry>,
        deletions: u64,
        bytes: u64,
        took: Duration,
    ) -> Result<(), Trouble> {
        self.progressed = true;
        let waiters: Vec<u64> = entries
            .iter()
            .flat_map(|entry| entry.mark.waiters.iter().copied())
            .collect();
        if !waiters.is_empty()
            && let Err(error) = self.flush_for(link, &waiters)
        {
            self.put_back(entries, Instant::now());
            return Err(error);
        }
        let mut state = self.shared.lock();
        let standby = &mut state.standbys[self.index];
        for entry in &entries {
            standby.quarantine.remove(&entry.key);
        }
        let left = standby.queue.len();
        let progress = standby.filling.as_mut().map(|filling| {
            filling.sent(entries.len() as u64, bytes);
            filling.for_a_person(Instant::now())
        });
        drop(state);
        let mut text = format!(
            "{}: {} names, {} bytes in {:.0?}",
            self.peer.name,
            entries.len(),
            bytes,
            took
        );
        // Writing to a String cannot fail.
        if deletions > 0 {
            let _ = write!(text, ", {deletions} deleted");
        }
        if left > 0 {
            let _ = write!(text, "; {left} left");
        }
        if let Some(progress) = progress {
            let _ = write!(text, "; in all {progress}");
        }
        tell::log(&self.settings, &text);
        Ok(())
    }

    /// What was sent is on the standby's disk: so hear those who wait.
    fn flush_for(&self, link: &mut Link, waiters: &[u64]) -> Result<(), Trouble> {
        link.flush()?;
        let mut state = self.shared.lock();
        state.standbys[self.index].going.clear();
        state.answer(self.index, waiters, Ok(()));
        drop(state);
        self.shared.notify();
        Ok(())
    }

    /// Some name of the batch cannot be transferred: halves it until it is found, and sets it aside.
    fn divide(
        &mut self,
        link: &mut Link,
        index: u16,
        mut entries: Vec<Entry>,
        output: &Output,
    ) -> Result<(), Trouble> {
        if entries.len() > 1 {
            let second = entries.split_off(entries.len() / 2);
            let first = self.send(link, index, entries);
            if first.is_err() {
                self.put_back(second, Instant::now());
                return first;
            }
            return self.send(link, index, second);
        }
        let Some(entry) = entries.pop() else {
            return Ok(());
        };
        let root = &self.trees[usize::from(index)].path;
        self.for_a_thread()
            .set_aside(entry, root, &complaint(output));
        Ok(())
    }

    fn start_large(&mut self, link: &Link, tree: &TreeState, large: Vec<(Entry, u64)>) {
        if large.is_empty() {
            return;
        }
        {
            let mut state = self.shared.lock();
            let standby = &mut state.standbys[self.index];
            if !standby.large.is_empty() {
                // One such thread at a time; they are due again when it has ended.
                let taken = large.into_iter().map(|(entry, _)| (entry.key, entry.mark));
                standby.queue.put_back(taken, Instant::now() + LARGE_AGAIN);
                return;
            }
            standby.large = large.iter().map(|(entry, _)| entry.key.clone()).collect();
        }
        let (beside, program) = (self.for_a_thread(), link.transfer(tree, Content::Sent));
        let root = tree.path.clone();
        self.beside.push(thread::spawn(move || {
            beside.send_large(&root, &program, large);
        }));
    }

    fn compare(&mut self, link: &Link, comparisons: Vec<Comparison>) {
        let mut jobs = Vec::new();
        for comparison in comparisons {
            let tree = &self.trees[usize::from(comparison.tree)];
            let scope = match comparison.scope {
                Scope::Below(mut paths) => {
                    paths.retain(|path| compare::is_directory(&tree.path, path));
                    if paths.is_empty() {
                        continue;
                    }
                    Scope::Below(paths)
                }
                other => other,
            };
            let program = link.comparison(tree, &scope);
            let comparison = Comparison {
                scope,
                ..comparison
            };
            jobs.push((tree.clone(), comparison, program));
        }
        let beside = self.for_a_thread();
        self.beside
            .push(thread::spawn(move || beside.compare(jobs)));
    }

    fn for_a_thread(&self) -> Beside {
        Beside {
            settings: self.settings.clone(),
            shared: Arc::clone(&self.shared),
            index: self.index,
            name: self.peer.name.clone(),
            limit: self.limit(),
        }
    }

    fn end_beside(&mut self) {
        for thread in self.beside.drain(..) {
            // They end by themselves, since their rsyncs have lost the connection.
            let _ = thread.join();
        }
    }

    fn note_trouble(&self, trouble: &Trouble, told: &mut Told) {
        let why = trouble.to_string();
        let mut state = self.shared.lock();
        let standby = &mut state.standbys[self.index];
        standby.connected = false;
        standby.refusing = matches!(
            trouble,
            Trouble::Link(LinkError::Refused(_) | LinkError::Canary(_))
        );
        standby.reason = Some(why.clone());
        standby.retries += 1;
        let refusing = standby.refusing;
        let waiting: Vec<u64> = state.waiting.keys().copied().collect();
        state.answer(self.index, &waiting, Err(&why));
        drop(state);
        self.shared.notify();
        if told.why.as_ref() != Some(&why) {
            tell::log(&self.settings, &format!("{}: {why}", self.peer.name));
        }
        told.since.get_or_insert_with(Instant::now);
        told.refusing = refusing;
        told.why = Some(why);
    }

    /// Alerts, once, a standby that has taken nothing for a while.
    fn alert_when_due(&self, told: &mut Told) {
        let (Some(why), Some(since)) = (&told.why, told.since) else {
            return;
        };
        if told.alerted || since.elapsed() < PATIENCE {
            return;
        }
        let event = if told.refusing {
            "sync-refused"
        } else {
            "sync-unreachable"
        };
        let text = format!("files are not sent to {}: {why}", self.peer.name);
        alerts::raise(&self.settings, event, Severity::Warning, &text);
        told.alerted = true;
    }

    fn tell_again(&self) {
        let text = format!("files are sent to {} again", self.peer.name);
        alerts::raise(&self.settings, "sync-reconnected", Severity::Info, &text);
    }

    /// Waits before the next try. One that was silent is asked by a SYN now and then, and tried at once
    /// when it answers.
    fn pause(&self, pause: Duration, told: &mut Told) {
        let start = Instant::now();
        let port = self.settings.peer.port;
        let silent = observe::reachable(&self.settings, &self.peer, port).is_none();
        loop {
            let mut state = self.shared.lock();
            let step = Instant::now();
            while step.elapsed() < PROBE && !state.stopped {
                state = self.shared.wait(state, PROBE);
            }
            if state.stopped {
                return;
            }
            drop(state);
            self.alert_when_due(told);
            let over = if silent {
                observe::reachable(&self.settings, &self.peer, port).is_some()
            } else {
                start.elapsed() >= pause
            };
            if over {
                return;
            }
        }
    }
}

fn all_entries(batch: Batch) -> Vec<Entry> {
    let mut entries = batch.entries;
    entries.extend(batch.withheld);
    entries.extend(batch.large.into_iter().map(|(entry, _)| entry));
    entries
}

fn random_number() -> u64 {
    u64::from_str_radix(&root::random()[..8], 16).unwrap_or(0)
}
