//! What runs beside a worker in threads of its own: comparisons, and large files. What changes meanwhile
//! is sent as ever.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use process::Program;
use settings::Settings;

use crate::batch::{Entry, below};
use crate::compare::{self, Scope};
use crate::dirs::Key;
use crate::hold;
use crate::link::complaint;
use crate::outcome::{DeletionLimit, Outcome, outcome};
use crate::queue::Change;
use crate::state::{Filling, Shared, TreeState};
use crate::tell;

/// After a failure that is not a name's own: the connection may be about to be given up.
const PAUSE: Duration = Duration::from_secs(1);

/// What such a thread needs.
#[derive(Debug)]
pub struct Beside {
    /// The settings.
    pub settings: Settings,
    /// The state.
    pub shared: Arc<Shared>,
    /// The standby's place in the state.
    pub index: usize,
    /// The standby.
    pub name: String,
    /// When deletions are held.
    pub limit: DeletionLimit,
}

impl Beside {
    /// Sends large files, one after another.
    pub fn send_large(&self, root: &Path, program: &Program, large: Vec<(Entry, u64)>) {
        for (entry, size) in large {
            let start = Instant::now();
            let mut list = b"./".to_vec();
            list.extend_from_slice(&entry.path);
            list.push(0);
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let ended = program.start().and_then(|running| {
                running.finish(&list, |_| (), || self.shared.lock().may_send())
            });
            let (fate, why) = match &ended {
                Ok(output) => (outcome(output.status.code()), complaint(output)),
                Err(error) => (Outcome::Retry, error.to_string()),
            };
            let mut state = self.shared.lock();
            let standby = &mut state.standbys[self.index];
            standby.large.remove(&entry.key);
            let text = match fate {
                Outcome::Sent | Outcome::LookAgain => {
                    standby.quarantine.remove(&entry.key);
                    if let Some(filling) = &mut standby.filling {
                        filling.sent(1, size);
                    }
                    standby.unflushed.extend(entry.mark.waiters);
                    format!(
                        "{}: {path}, {size} bytes in {:.1?}",
                        self.name,
                        start.elapsed()
                    )
                }
                Outcome::Partial => {
                    drop(state);
                    self.set_aside(entry, root, &why);
                    self.shared.notify();
                    continue;
                }
                Outcome::Hold | Outcome::Unsupported | Outcome::Retry => {
                    let due = Instant::now() + PAUSE;
                    standby.queue.put_back([(entry.key, entry.mark)], due);
                    format!("{}: {path} was not sent: {why}", self.name)
                }
            };
            drop(state);
            self.shared.notify();
            tell::log(&self.settings, &text);
        }
    }

    /// A name cannot be transferred: see [`crate::state::State::set_aside`]. Everything else goes on.
    pub fn set_aside(&self, entry: Entry, root: &Path, why: &str) {
        let path = below(root, &entry.path);
        let told = self
            .shared
            .lock()
            .set_aside(self.index, entry, why, Instant::now());
        if told {
            let text = format!(
                "{} cannot take {}: {why}; everything else is sent",
                self.name,
                path.display()
            );
            tell::log(&self.settings, &text);
            alerts::raise(&self.settings, "sync-path", Severity::Warning, &text);
        }
    }

    /// Compares, and notes each difference as a name, which is looked at again when its turn comes.
    pub fn compare(&self, jobs: Vec<(u16, TreeState, Scope, Program)>) {
        for (tree_index, tree, scope, program) in jobs {
            let start = Instant::now();
            let mut differences = Differences::default();
            let ended = program.start().and_then(|running| {
                running.finish(
                    &scope.list(),
                    |bytes| differences.take_in(bytes),
                    || !self.shared.lock().stopped,
                )
            });
            let failed = match &ended {
                // Files that vanish or cannot be read meanwhile are told of in another way.
                Ok(output) if matches!(output.status.code(), Some(0 | 23 | 24)) => None,
                Ok(output) => Some(complaint(output)),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = failed {
                log::warn!("{}: the comparison failed: {why}", self.name);
                self.shared.lock().standbys[self.index]
                    .compare
                    .push((tree_index, scope));
                thread::sleep(PAUSE);
                continue;
            }
            self.note(tree_index, &tree, &scope, &differences);
            if let Scope::Names(_) = scope {
                let mut state = self.shared.lock();
                let sampled = &mut state.standbys[self.index].sampled;
                sampled.open = sampled.open.saturating_sub(1);
                sampled.differing.append(&mut differences.found);
                drop(state);
                self.shared.notify();
                continue;
            }
            let found = differences.found.len();
            if found > 0 || scope == Scope::Whole {
                let text = format!(
                    "{}: compared {}{} in {:.1?}: {found} names differ, {} of them are only there",
                    self.name,
                    tree.path.display(),
                    match scope {
                        Scope::Whole => "",
                        Scope::Below(_) => " in part",
                        Scope::NamesInRoot => " at the top",
                        Scope::Names(_) => " by sample",
                    },
                    start.elapsed(),
                    differences.extraneous
                );
                tell::log(&self.settings, &text);
            }
        }
        self.shared.lock().standbys[self.index].comparing = false;
        self.shared.notify();
    }

    /// Differences become names in the queue of this standby.
    fn note(&self, tree_index: u16, tree: &TreeState, scope: &Scope, differences: &Differences) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let (_, _, files) = state.dirs.totals(tree_index);
        if state.needs_word(self.limit, differences.extraneous, files, now) {
            let why = format!(
                "{} has {} names that {} here has not, where {files} files are left: nothing is sent until a \
                 person has looked. If they are to be deleted there: sync-realtime --release",
                self.name,
                differences.extraneous,
                tree.path.display()
            );
            hold::begin(&self.settings, state, why);
        }
        let standby = &mut state.standbys[self.index];
        if !standby.complete && !matches!(scope, Scope::Names(_)) {
            let names = differences.found.len() as u64;
            standby.filling = Some(Filling::new(now, names, differences.bytes));
        }
        let mut seen = HashSet::new();
        for path in &differences.found {
            // A directory that only the standby has is not known here: the topmost known one stands for it.
            let mut path = path.as_slice();
            let mut cut = false;
            let key = loop {
                if path.is_empty() {
                    break Key {
                        dir: tree.root,
                        name: (&b""[..]).into(),
                    };
                }
                if let Some(key) = state.dirs.find(tree.root, path) {
                    break key;
                }
                cut = true;
                let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path = &path[..slash];
            };
            if !seen.insert(key.clone()) {
                continue;
            }
            let queue = &mut state.standbys[self.index].queue;
            queue.mark(key.clone(), Change::Whole, now);
            if cut {
                queue.vacate(&key, 0);
                // If it is here, the watcher has not come to it yet: it is compared again then.
                if compare::is_directory(&tree.path, path) {
                    state.unknown.push(key);
                }
            }
        }
    }
}

/// Differences as they come out of rsync, in pieces.
#[derive(Debug, Default)]
struct Differences {
    rest: Vec<u8>,
    found: Vec<Vec<u8>>,
    extraneous: u64,
    bytes: u64,
}

impl Differences {
    fn take_in(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            if let Some(difference) = compare::read_line(&self.rest[start..start + length]) {
                self.extraneous += u64::from(difference.extraneous);
                self.bytes += difference.bytes;
                self.found.push(difference.path);
            }
            start += length + 1;
        }
        self.rest.drain(..start);
    }
}
