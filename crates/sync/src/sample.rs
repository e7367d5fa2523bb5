//! A proof by sample: some files of the trees, chosen at random, are compared with a standby by their digests.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use crate::batch::below;
use crate::compare::{Comparison, Losses, Scope};
use crate::dirs::Key;
use crate::root;
use crate::state::{Shared, State};

/// Most names of one directory that one is chosen from.
const NAMES: usize = 1000;

/// What a standby's sample has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Files that were compared.
    pub files: usize,
    /// Trees whose comparison is not finished.
    pub open: usize,
    /// Paths that differed; they are sent again.
    pub differing: Vec<Vec<u8>>,
}

/// Compares about so many files, none of them larger than so many bytes, with the standby and answers
/// `same FILES`, `differ COUNT FILES PATH` or `error WHY`.
pub fn sample(
    shared: &Shared,
    files: usize,
    largest: u64,
    standby: &str,
    limit: Duration,
) -> String {
    let start = Instant::now();
    // Before the disk is read for nothing; and once more, since that takes time.
    if let Err(why) = ready(&shared.lock(), standby) {
        return format!("error {why}");
    }
    let chosen = choose(shared, files, largest);
    let mut state = shared.lock();
    let index = match ready(&state, standby) {
        Ok(index) => index,
        Err(why) => return format!("error {why}"),
    };
    state.standbys[index].sampled = Sampled {
        files: chosen.iter().map(|(_, names)| names.len()).sum(),
        open: chosen.len(),
        differing: Vec::new(),
    };
    let scopes = chosen.into_iter().map(|(tree, names)| Comparison {
        tree,
        scope: Scope::Names(names),
        losses: Losses::Seen,
    });
    state.standbys[index].compare.extend(scopes);
    shared.notify();
    while state.standbys[index].sampled.open > 0 {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() || state.stopped {
            return format!("error the comparison was not finished within {limit:?}");
        }
        state = shared.wait(state, left);
    }
    state.standbys[index].sampled.answer()
}

/// The standby's place, where it can be compared now.
fn ready(state: &State, name: &str) -> Result<usize, String> {
    if !state.scanned {
        return Err("the trees are still read".to_owned());
    }
    let Some(index) = state.standbys.iter().position(|s| s.name == name) else {
        return Err(format!("{name} is no standby of the settings"));
    };
    let standby = &state.standbys[index];
    if !standby.connected {
        return Err(format!("{name} is not connected yet"));
    }
    if standby.comparing || !standby.compare.is_empty() {
        return Err(format!("{name} is being compared"));
    }
    Ok(index)
}

impl Sampled {
    fn answer(&self) -> String {
        match self.differing.first() {
            None => format!("same {}", self.files),
            Some(path) => format!(
                "differ {} {} {}",
                self.differing.len(),
                self.files,
                String::from_utf8_lossy(path).replace('\n', " ")
            ),
        }
    }
}

/// Files of each tree at random, as paths below its root.
fn choose(shared: &Shared, files: usize, largest: u64) -> Vec<(u16, Vec<Vec<u8>>)> {
    let directories = {
        let state = shared.lock();
        let mut directories = Vec::new();
        for (tree, index) in state.trees.iter().zip(0..) {
            let found = state.dirs.with_files(index);
            let some: Vec<_> = (0..if found.is_empty() { 0 } else { files })
                .map(|_| found[random_below(found.len())])
                .filter_map(|id| Some((id, state.dirs.path(id)?)))
                .collect();
            directories.push((index, tree.path.clone(), some));
        }
        directories
    };
    let mut chosen = Vec::new();
    for (tree, root, some) in directories {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for (id, directory) in some {
            let Ok(entries) = fs::read_dir(below(&root, &directory)) else {
                continue;
            };
            let mut found: Vec<Vec<u8>> = entries
                .flatten()
                .take(NAMES)
                .filter(|entry| {
                    // Not following a link.
                    entry
                        .metadata()
                        .is_ok_and(|found| found.is_file() && found.len() <= largest)
                })
                .map(|entry| entry.file_name().into_vec())
                .collect();
            let state = shared.lock();
            found.retain(|name| {
                let name = name.as_slice().into();
                !state.stays_here(&Key { dir: id, name }, false)
            });
            drop(state);
            if found.is_empty() {
                continue;
            }
            let mut path = directory;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.append(&mut found.swap_remove(random_below(found.len())));
            if !names.contains(&path) {
                names.push(path);
            }
        }
        if !names.is_empty() {
            chosen.push((tree, names));
        }
    }
    chosen
}

/// A number below `end`, which is not 0.
fn random_below(end: usize) -> usize {
    usize::from_str_radix(&root::random()[..8], 16).unwrap_or(0) % end
}
