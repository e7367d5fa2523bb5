//! Looks for files that have changed and that no event leads to: a file that was changed through a further
//! name which was gone before the watcher could look at it. Its time of change tells.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::batch::below;
use crate::dirs::{Key, NodeId};
use crate::queue::Change;
use crate::state::{Shared, State};
use crate::watch::changed_since;

/// Such a look reads all of the tree: it may take this part of the time, at most.
const REST: u32 = 20;
/// When a directory has moved meanwhile, it is looked at again after this time.
const MOVED: Duration = Duration::from_millis(20);

/// Starts a look where one is asked for, and is not under way.
pub fn start(shared: &Arc<Shared>, state: &mut State, now: Instant) {
    let resting = state.seal.is_none() && state.trace_again.is_some_and(|again| now < again);
    if state.tracing || resting {
        return;
    }
    if let Some(since) = state.traceless.take() {
        state.tracing = true;
        let shared = Arc::clone(shared);
        thread::spawn(move || run(&shared, since));
    }
}

fn run(shared: &Shared, since: SystemTime) {
    loop {
        let start = Instant::now();
        let complete = look(shared, since);
        let rest = start.elapsed() * REST;
        let mut state = shared.lock();
        if complete || state.stopped {
            state.tracing = false;
            state.trace_again = Some(Instant::now() + rest);
            drop(state);
            shared.notify();
            return;
        }
        let again = Instant::now() + rest.max(MOVED);
        while !state.stopped && state.seal.is_none() && Instant::now() < again {
            let left = again.saturating_duration_since(Instant::now());
            state = shared.wait(state, left);
        }
    }
}

/// Marks every file that has changed since then; whether each directory was found in its place.
pub fn look(shared: &Shared, since: SystemTime) -> bool {
    let (directories, moves) = {
        let state = shared.lock();
        let roots = state.trees.iter().map(|tree| tree.root);
        let all: Vec<NodeId> = roots.flat_map(|root| state.dirs.below(root)).collect();
        (all, state.moves)
    };
    let mut complete = true;
    for dir in directories {
        let path = {
            let state = shared.lock();
            if state.stopped {
                return false;
            }
            let Some(path) = state.dirs.path(dir) else {
                continue;
            };
            below(&state.trees[usize::from(state.dirs.tree(dir))].path, &path)
        };
        let Ok(entries) = fs::read_dir(path) else {
            complete = false;
            continue;
        };
        let changed: Vec<Key> = entries
            .flatten()
            .filter(|entry| {
                // Not following a link.
                entry
                    .metadata()
                    .is_ok_and(|found| !found.is_dir() && changed_since(&found, since))
            })
            .map(|entry| Key {
                dir,
                name: entry.file_name().as_bytes().into(),
            })
            .collect();
        if !changed.is_empty() {
            let mut state = shared.lock();
            for key in changed {
                state.mark(&key, false, Change::Whole, Instant::now());
            }
        }
    }
    complete && shared.lock().moves == moves
}
