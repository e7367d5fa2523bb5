//! Tests only: random changes of a tree, and between them, at random, the reader's turns and the worker's
//! steps. The standby is a model: what a transfer would have read of each name. Nothing waits and nothing
//! runs at the same time, so a seed gives the same order each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags};

use crate::batch::{self, Links, below};
use crate::compare::{Comparison, Losses, Scope, is_directory};
use crate::dirs::Key;
use crate::queue::{Change, Rename};
use crate::root;
use crate::state::Shared;
use crate::trace;
use crate::watch::tests::Tree;

fn below_of(paths: Vec<Vec<u8>>) -> Comparison {
    Comparison {
        tree: 0,
        scope: Scope::Below(paths),
        losses: Losses::Seen,
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn name(&mut self) -> String {
        let levels = [1, 2, 2, 3][usize::try_from(self.below(4)).unwrap()];
        let letter =
            |random: &mut Self| ["a", "b", "c", "d"][usize::try_from(random.below(4)).unwrap()];
        let parts: Vec<&str> = (0..levels).map(|_| letter(self)).collect();
        parts.join("/")
    }
}

/// One operation of an application; it may fail.
fn operate(root: &Path, random: &mut Random) -> String {
    let (one, other) = (random.name(), random.name());
    let (path, to) = (root.join(&one), root.join(&other));
    let text =
        vec![u8::try_from(random.below(256)).unwrap(); usize::try_from(random.below(50)).unwrap()];
    let mut made = String::new();
    if random.below(3) == 0 {
        drop(fs::create_dir_all(path.parent().unwrap()));
        made = format!(
            "[mkdir -p {}] ",
            path.parent().unwrap().strip_prefix(root).unwrap().display()
        );
    }
    let time = UNIX_EPOCH + Duration::from_nanos(random.next() >> 3);
    let (what, done) = match random.below(30) {
        0..=4 => ("write", fs::write(&path, &text)),
        5 => (
            "overwrite",
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.write_all_at(&text, 0)),
        ),
        6..=11 => ("rename", fs::rename(&path, &to)),
        12 => (
            "exchange",
            rustix::fs::renameat_with(CWD, &path, CWD, &to, RenameFlags::EXCHANGE)
                .map_err(Into::into),
        ),
        13 | 14 => ("delete", fs::remove_file(&path)),
        15 => ("delete all", fs::remove_dir_all(&path)),
        16..=18 => ("mkdir", fs::create_dir(&path)),
        19..=22 => ("link", fs::hard_link(&path, &to)),
        23 | 24 => {
            let bits = 0o600 + u32::try_from(random.below(64)).unwrap();
            (
                "chmod",
                fs::set_permissions(&path, fs::Permissions::from_mode(bits | 0o100)),
            )
        }
        25..=27 => (
            "touch",
            fs::File::open(&path).and_then(|file| file.set_modified(time)),
        ),
        _ => {
            let new = root.join("new");
            (
                "replace",
                fs::write(&new, &text).and_then(|()| fs::rename(&new, &path)),
            )
        }
    };
    match done {
        Ok(()) => format!("{made}{what} {one} ({other})"),
        Err(_) => made,
    }
}

/// What a transfer reads of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    directory: bool,
    mode: u32,
    time: (i64, i64),
    content: Vec<u8>,
}

fn look(path: &Path) -> Option<Look> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some(Look {
        directory: metadata.is_dir(),
        mode: metadata.mode(),
        // A directory's own time is not modelled.
        time: if metadata.is_dir() {
            (0, 0)
        } else {
            (metadata.mtime(), metadata.mtime_nsec())
        },
        content: fs::read(path).unwrap_or_default(),
    })
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
}

struct Site {
    tree: Tree,
    links: Links,
    standby: BTreeMap<Vec<u8>, Look>,
    now: Instant,
    random: Random,
    log: Vec<String>,
}

impl Site {
    fn new(seed: u64) -> Self {
        let tree = Tree::with(&[]);
        Self {
            tree,
            links: Links::default(),
            standby: BTreeMap::new(),
            now: Instant::now(),
            random: Random(seed),
            log: Vec::new(),
        }
    }

    fn root(&self) -> PathBuf {
        self.tree.root.clone()
    }

    fn some_operations(&mut self, most: u64) {
        for _ in 0..self.random.below(most) {
            let done = operate(&self.tree.root, &mut self.random);
            if !done.is_empty() {
                self.log.push(done);
            }
        }
    }

    fn read_events(&mut self) {
        self.log.push("--- events".to_owned());
        let mut buffer = vec![MaybeUninit::uninit(); 256 * 1024];
        self.tree
            .watcher
            .turn(&mut self.tree.state, &mut buffer, self.now);
        assert_eq!(self.tree.state.overflows, 0);
    }

    /// Looks for what no event leads to.
    fn trace(&mut self) {
        if let Some(since) = self.tree.state.traceless {
            let shared = Shared::default();
            std::mem::swap(&mut *shared.lock(), &mut self.tree.state);
            let complete = trace::look(&shared, since);
            std::mem::swap(&mut *shared.lock(), &mut self.tree.state);
            self.log.push(format!("--- traced {complete}"));
            if complete {
                self.tree.state.traceless = None;
            }
        }
    }

    /// One step of the worker, with operations between its parts. Whether there was something to do.
    fn work(&mut self, operations: u64) -> bool {
        let root = self.root();
        if self.tree.state.standbys[0].queue.has_renames() {
            let renames = self.tree.state.standbys[0].queue.take_renames();
            self.some_operations(operations);
            self.rename(renames);
            return true;
        }
        if !self.tree.state.standbys[0].compare.is_empty() {
            for comparison in std::mem::take(&mut self.tree.state.standbys[0].compare) {
                self.some_operations(operations);
                self.compare(&comparison.scope);
            }
            return true;
        }
        self.links.note_moves(self.tree.state.moves);
        let inodes = self.tree.state.standbys[0].queue.take_inodes(self.now);
        if !inodes.is_empty() {
            self.some_operations(operations);
            let numbers: Vec<u64> = inodes.iter().map(|inode| inode.number).collect();
            let found = self.links.names_of(&root, &numbers);
            self.some_operations(operations);
            self.log.push(format!("--- named {numbers:?} {found:?}"));
            self.tree.state.note_names(0, 0, &found, self.now);
            return true;
        }
        let taken = self.tree.state.standbys[0]
            .queue
            .take(self.now, 1000, |_| false);
        if taken.is_empty() {
            return false;
        }
        let entries: Vec<_> = self
            .tree
            .state
            .resolve(0, taken)
            .into_iter()
            .map(|(_, entry)| entry)
            .collect();
        self.some_operations(operations);
        let batch = batch::build(&root, entries, &mut self.links, u64::MAX, false, |path| {
            self.tree.state.knows(0, path)
        });
        self.some_operations(operations);
        let listed: Vec<Vec<u8>> = batch
            .list
            .split(|byte| *byte == 0)
            .filter_map(|path| path.strip_prefix(b"./"))
            .map(<[u8]>::to_vec)
            .collect();
        self.log.push(format!(
            "--- sent {:?}",
            listed
                .iter()
                .map(|p| String::from_utf8_lossy(p))
                .collect::<Vec<_>>()
        ));
        let mut failed = false;
        for path in &listed {
            failed |= !self.send(path);
        }
        let mut vacated = batch.vacated;
        vacated.retain(|path| is_directory(&root, path));
        if !vacated.is_empty() {
            self.tree.state.standbys[0].compare.push(below_of(vacated));
        }
        if failed {
            let again = batch
                .entries
                .into_iter()
                .map(|entry| (entry.key, entry.mark));
            self.tree.state.standbys[0].queue.put_back(again, self.now);
        }
        true
    }

    /// What rsync does with one name of its list; false for an error.
    fn send(&mut self, path: &[u8]) -> bool {
        if path == root::CANARY.as_bytes() {
            return true;
        }
        let root = self.root();
        let ancestors: Vec<&[u8]> = (0..path.len())
            .filter(|i| path[*i] == b'/')
            .map(|i| &path[..i])
            .collect();
        let mut missing = false;
        for ancestor in ancestors {
            match look(&below(&root, ancestor)) {
                Some(found) if found.directory => {
                    self.put(ancestor, found);
                }
                Some(_) => return false,
                None => {
                    missing = true;
                    break;
                }
            }
        }
        match look(&below(&root, path)).filter(|_| !missing) {
            Some(found) => self.put(path, found),
            None => self
                .standby
                .retain(|known, _| known != path && !is_below(known, path)),
        }
        true
    }

    fn put(&mut self, path: &[u8], found: Look) {
        if !found.directory {
            self.standby.retain(|known, _| !is_below(known, path));
        }
        self.standby.insert(path.to_vec(), found);
    }

    fn rename(&mut self, renames: Vec<Rename>) {
        for rename in &renames {
            self.links.moved(&rename.from, &rename.to);
        }
        for rename in renames {
            let parent = rename
                .to
                .iter()
                .rposition(|b| *b == b'/')
                .map(|i| rename.to[..i].to_vec());
            let possible = self.standby.contains_key(&rename.from)
                && !self.standby.contains_key(&rename.to)
                && !is_below(&rename.to, &rename.from)
                && parent.is_none_or(|p| self.standby.get(&p).is_some_and(|l| l.directory));
            self.log.push(format!(
                "--- moved {} {} {possible}",
                String::from_utf8_lossy(&rename.from),
                String::from_utf8_lossy(&rename.to)
            ));
            if possible {
                let moved: Vec<Vec<u8>> = self
                    .standby
                    .keys()
                    .filter(|known| **known == rename.from || is_below(known, &rename.from))
                    .cloned()
                    .collect();
                for old in moved {
                    let found = self.standby.remove(&old).unwrap();
                    let mut new = rename.to.clone();
                    new.extend_from_slice(&old[rename.from.len()..]);
                    self.standby.insert(new, found);
                }
            } else {
                self.resend(&rename);
            }
            let state = &mut self.tree.state;
            if let Some(id) = state.dirs.child(rename.new.dir, &rename.new.name)
                && let Some(path) = state.dirs.path(id)
            {
                state.standbys[0].compare.push(below_of(vec![path]));
            }
        }
    }

    fn resend(&mut self, rename: &Rename) {
        let root = self.root();
        let state = &mut self.tree.state;
        let Some(id) = state.dirs.child(rename.new.dir, &rename.new.name) else {
            return;
        };
        for dir in state.dirs.below(id) {
            let Some(path) = state.dirs.path(dir) else {
                continue;
            };
            for entry in fs::read_dir(below(&root, &path))
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name().as_bytes().into();
                state.standbys[0]
                    .queue
                    .mark(Key { dir, name }, Change::Whole, self.now);
            }
        }
    }

    /// rsync compares sizes, times and modes.
    fn compare(&mut self, scope: &Scope) {
        let scopes = match scope {
            Scope::Below(paths) => paths.clone(),
            _ => vec![Vec::new()],
        };
        let root = self.root();
        for scope in scopes {
            if !is_directory(&root, &scope) {
                continue;
            }
            let here = everything(&root);
            let differing: BTreeSet<Vec<u8>> = here
                .keys()
                .chain(self.standby.keys())
                .filter(|path| **path == scope || is_below(path, &scope))
                .filter(|path| {
                    let rough =
                        |look: &Look| (look.directory, look.mode, look.time, look.content.len());
                    here.get(*path).map(rough) != self.standby.get(*path).map(rough)
                })
                .cloned()
                .collect();
            for path in differing {
                self.note(&path);
            }
        }
    }

    fn note(&mut self, path: &[u8]) {
        let root = self.root();
        let state = &mut self.tree.state;
        let mut path = path;
        let mut cut = false;
        let key = loop {
            if let Some(key) = state.dirs.find(state.trees[0].root, path) {
                break key;
            }
            cut = true;
            path = &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)];
        };
        state.standbys[0]
            .queue
            .mark(key.clone(), Change::Whole, self.now);
        if cut {
            state.standbys[0].queue.vacate(&key, 0);
            if is_directory(&root, path) {
                state.unknown.push(key);
            }
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            self.now += Duration::from_secs(2);
            self.read_events();
            self.trace();
            let busy = self.work(1);
            let state = &self.tree.state;
            if !busy && state.standbys[0].behind() + state.unread() == 0 {
                let here = everything(&self.root());
                if here == self.standby {
                    self.tree.is_right();
                    return Ok(());
                }
                let names: BTreeSet<_> = here
                    .keys()
                    .chain(self.standby.keys())
                    .filter(|path| here.get(*path) != self.standby.get(*path))
                    .map(|path| {
                        format!(
                            "{}: here {:?}, there {:?}",
                            String::from_utf8_lossy(path),
                            here.get(path),
                            self.standby.get(path)
                        )
                    })
                    .collect();
                return Err(format!("in sync, but {names:#?}"));
            }
        }
        Err("never in sync".to_owned())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..10 {
            self.log.clear();
            for _ in 0..30 {
                self.some_operations(12);
                self.now += Duration::from_millis(self.random.below(20));
                if self.random.below(2) == 0 {
                    self.read_events();
                }
                if self.random.below(4) == 0 {
                    self.trace();
                }
                if self.random.below(2) == 0 {
                    let operations = 1 + self.random.below(4);
                    self.work(operations);
                }
            }
            self.settle()?;
        }
        Ok(())
    }
}

fn everything(root: &Path) -> BTreeMap<Vec<u8>, Look> {
    fn walk(root: &Path, path: &[u8], found: &mut BTreeMap<Vec<u8>, Look>) {
        for entry in fs::read_dir(below(root, path))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if path.is_empty() && root::is_own(name.as_bytes()) {
                continue;
            }
            let mut child = path.to_vec();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(name.as_bytes());
            let look = look(&below(root, &child)).unwrap();
            let directory = look.directory;
            found.insert(child.clone(), look);
            if directory {
                walk(root, &child, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, b"", &mut found);
    found
}

/// The same operations and reads for the same seed; `SYNC_SEEDS=0-1000` runs those.
#[test]
fn every_change_is_looked_at_whenever_its_events_are_read() {
    let text = std::env::var("SYNC_SEEDS").unwrap_or_else(|_| "0-10".to_owned());
    let (from, to) = text.split_once('-').unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        let mut site = Site::new(seed);
        if let Err(why) = site.run() {
            panic!("seed {seed}: {why}\n{}", site.log.join("\n"));
        }
    }
}

/// A directory that is new and gone with all its names, and another one in its place.
#[test]
fn a_change_in_a_directory_that_was_never_seen_is_found() {
    let mut site = Site::new(0);
    let root = site.root();
    fs::write(root.join("f"), "x").unwrap();
    site.settle().unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::hard_link(root.join("f"), root.join("d/f")).unwrap();
    fs::write(root.join("d/f"), "through the other name").unwrap();
    fs::remove_dir_all(root.join("d")).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    assert_eq!(site.settle(), Ok(()));
}

/// Changes a file through one of its names, which goes away before it is looked at, whenever events are
/// read in between.
#[test]
fn a_change_through_a_name_that_is_gone_is_in_the_others() {
    let changes: [fn(&Path); 4] = [
        |name| fs::write(name, "another").unwrap(),
        |name| {
            let file = fs::OpenOptions::new().append(true).open(name).unwrap();
            file.write_all_at(b"y", 0)
                .unwrap_or_else(|_| fs::write(name, "longer").unwrap());
        },
        |name| fs::set_permissions(name, fs::Permissions::from_mode(0o600)).unwrap(),
        |name| {
            let file = fs::File::open(name).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1))
                .unwrap();
        },
    ];
    let vanishings: [fn(&Path); 6] = [
        |root| fs::remove_file(root.join("a/e/a")).unwrap(),
        |root| fs::remove_dir_all(root.join("a")).unwrap(),
        |root| {
            fs::write(root.join("new"), "new").unwrap();
            fs::rename(root.join("new"), root.join("a/e/a")).unwrap();
        },
        |root| fs::rename(root.join("a"), root.with_file_name("outside")).unwrap(),
        |root| {
            fs::create_dir_all(root.join("b/a")).unwrap();
            fs::rename(root.join("a"), root.join("b/a/f")).unwrap();
            fs::remove_file(root.join("b/a/f/e/a")).unwrap();
        },
        |root| {
            fs::rename(root.join("a"), root.join("b")).unwrap();
            fs::write(root.join("a"), "in its place").unwrap();
            fs::remove_dir_all(root.join("b")).unwrap();
        },
    ];
    for (change, vanish, reads) in (0..4)
        .flat_map(|change| (0..6).map(move |vanish| (change, vanish)))
        .flat_map(|(change, vanish)| (0..16).map(move |reads| (change, vanish, reads)))
    {
        let mut site = Site::new(0);
        let root = site.root();
        for directory in ["f", "a/e"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("f/e"), "x").unwrap();
        site.settle().unwrap();
        let steps: [&dyn Fn(); 3] = [
            &|| fs::hard_link(root.join("f/e"), root.join("a/e/a")).unwrap(),
            &|| changes[change](&root.join("a/e/a")),
            &|| vanishings[vanish](&root),
        ];
        for (step, happens) in steps.iter().enumerate() {
            happens();
            if reads & (1 << step) != 0 {
                site.now += Duration::from_millis(1);
                site.read_events();
            }
            // Its other name was found by a transfer, or was not.
            if step == 0 && reads & 8 != 0 {
                site.settle().unwrap();
            }
        }
        let settled = site.settle();
        assert_eq!(settled, Ok(()), "change {change}, {vanish}, read {reads:b}");
    }
}
