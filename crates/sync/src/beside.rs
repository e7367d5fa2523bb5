//! What runs beside a worker in threads of its own: comparisons, and large files. What changes meanwhile
//! is sent as ever.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use process::Program;
use settings::Settings;

use crate::batch::{Entry, below};
use crate::compare::{self, Comparison, Losses, Scope};
use crate::dirs::{Dirs, Key, NodeId};
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
    pub fn compare(&self, jobs: Vec<(TreeState, Comparison, Program)>) {
        for (tree, comparison, program) in jobs {
            let scope = &comparison.scope;
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
                    .push(comparison);
                thread::sleep(PAUSE);
                continue;
            }
            self.note(&tree, &comparison, &differences);
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
            if found > 0 || *scope == Scope::Whole {
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
                    differences.extraneous()
                );
                tell::log(&self.settings, &text);
            }
        }
        self.shared.lock().standbys[self.index].comparing = false;
        self.shared.notify();
    }

    /// Differences become names in the queue of this standby.
    fn note(&self, tree: &TreeState, comparison: &Comparison, differences: &Differences) {
        let (tree_index, scope) = (comparison.tree, &comparison.scope);
        let now = Instant::now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        let (_, _, files) = state.dirs.totals(tree_index);
        let kept = comparison.losses == Losses::Seen && state.standbys[self.index].trash;
        let many = !kept && state.needs_word(self.limit, differences.extraneous(), files, now);
        let unseen = match comparison.losses {
            Losses::Seen | Losses::Copied => Unseen::default(),
            Losses::Unseen | Losses::UnseenTwice => {
                let standby = &state.standbys[self.index];
                unseen(&differences.lost, |path| {
                    let (key, _) = known(&state.dirs, tree.root, path);
                    standby.queue.contains(&key) || standby.going.contains(&key)
                })
            }
        };
        let unwatched = self
            .limit
            .exceeded_unseen(unseen.files, unseen.whole.is_some())
            && !state.is_allowed(now);
        if unwatched && !many && comparison.losses == Losses::Unseen {
            // Some of them may go in this moment.
            state.standbys[self.index].compare.push(Comparison {
                losses: Losses::UnseenTwice,
                ..comparison.clone()
            });
            return;
        }
        if many || unwatched {
            let unwatched = match (&unseen.whole, unwatched) {
                (_, false) => String::new(),
                (None, true) => format!(", and nobody watched when {} of them went", unseen.files),
                (Some(path), true) => format!(
                    ", and nobody watched when {} went with all that it held",
                    String::from_utf8_lossy(path)
                ),
            };
            let why = format!(
                "{} has {} names that {} here has not, where {files} files are left{unwatched}: nothing is deleted \
                 there until a person has looked; new and changed files are sent. If they are to be deleted there: \
                 sync-realtime --release",
                self.name,
                differences.extraneous(),
                tree.path.display()
            );
            hold::begin(&self.settings, state, why);
        }
        let standby = &mut state.standbys[self.index];
        if !standby.complete && !matches!(scope, Scope::Names(_)) {
            let names = differences.found.len() as u64;
            standby.filling = Some(Filling::new(now, names, differences.bytes));
        }
        let mut lost: HashMap<Key, u64> = HashMap::new();
        for file in differences.lost.iter().filter(|lost| !lost.directory) {
            let (key, _) = known(&state.dirs, tree.root, &file.path);
            *lost.entry(key).or_default() += 1;
        }
        let mut seen = HashSet::new();
        for path in &differences.found {
            let (key, path) = known(&state.dirs, tree.root, path);
            let cut = path.is_some();
            if !seen.insert(key.clone()) {
                continue;
            }
            let queue = &mut state.standbys[self.index].queue;
            queue.mark(key.clone(), Change::Whole, now);
            if cut {
                queue.vacate(&key, lost.get(&key).copied().unwrap_or_default());
                // If it is here, the watcher has not come to it yet: it is compared again then.
                if path.is_some_and(|path| compare::is_directory(&tree.path, path)) {
                    state.unknown.push(key);
                }
            }
        }
    }
}

/// The name of a path. A directory that only the standby has is not known here: the topmost known name stands for
/// what is in it, and its path is given.
fn known<'a>(dirs: &Dirs, root: NodeId, path: &'a [u8]) -> (Key, Option<&'a [u8]>) {
    let mut path = path;
    let mut cut = None;
    loop {
        if path.is_empty() {
            let name = (&b""[..]).into();
            return (Key { dir: root, name }, cut.map(|()| path));
        }
        if let Some(key) = dirs.find(root, path) {
            return (key, cut.map(|()| path));
        }
        cut = Some(());
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        path = &path[..slash];
    }
}

/// A name that only the standby has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    path: Vec<u8>,
    directory: bool,
}

/// What went while nobody watched.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unseen {
    files: u64,
    /// A directory that is gone with a file in it.
    whole: Option<Vec<u8>>,
}

fn unseen(lost: &[Lost], seen: impl Fn(&[u8]) -> bool) -> Unseen {
    let lost: Vec<&Lost> = lost.iter().filter(|lost| !seen(&lost.path)).collect();
    let directories: HashSet<&[u8]> = lost
        .iter()
        .filter(|lost| lost.directory)
        .map(|lost| lost.path.as_slice())
        .collect();
    let mut unseen = Unseen::default();
    for file in lost.iter().filter(|lost| !lost.directory) {
        unseen.files += 1;
        let slash = file.path.iter().rposition(|byte| *byte == b'/');
        let parent = &file.path[..slash.unwrap_or(0)];
        if unseen.whole.is_none() && directories.contains(parent) {
            unseen.whole = Some(parent.to_vec());
        }
    }
    unseen
}

/// Differences as they come out of rsync, in pieces.
#[derive(Debug, Default)]
struct Differences {
    rest: Vec<u8>,
    found: Vec<Vec<u8>>,
    /// Those of them that only the standby has.
    lost: Vec<Lost>,
    bytes: u64,
}

impl Differences {
    fn extraneous(&self) -> u64 {
        self.lost.len() as u64
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            if let Some(difference) = compare::read_line(&self.rest[start..start + length]) {
                if difference.extraneous {
                    self.lost.push(Lost {
                        path: difference.path.clone(),
                        directory: difference.directory,
                    });
                }
                self.bytes += difference.bytes;
                self.found.push(difference.path);
            }
            start += length + 1;
        }
        self.rest.drain(..start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_unseen_is_told_from_what_was_seen_to_go() {
        let lost: Vec<Lost> = ["d/", "d/one", "d/two", "three", "e/", "f/four"]
            .iter()
            .map(|path| Lost {
                path: path.trim_end_matches('/').into(),
                directory: path.ends_with('/'),
            })
            .collect();
        let all = unseen(&lost, |_| false);
        assert_eq!((all.files, all.whole.as_deref()), (4, Some(&b"d"[..])));
        // Its directory was seen to go, and stands for what it held.
        let seen = unseen(&lost, |path| path.starts_with(b"d"));
        assert_eq!((seen.files, seen.whole), (2, None));
        // An empty directory is nothing that was lost.
        assert_eq!(unseen(&lost[4..5], |_| false), Unseen::default());
    }
}
