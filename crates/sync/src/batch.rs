//! From names that have changed to the list that rsync reads: each is looked at now, not as it was
//! when its event came.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dirs::Key;
use crate::queue::Mark;
use crate::root;
use crate::trash::{Aside, Kind};

/// A name to be sent.
#[derive(Debug)]
pub struct Entry {
    /// Which.
    pub key: Key,
    /// Since when, and who waits.
    pub mark: Mark,
    /// Its path, relative to the root.
    pub path: Vec<u8>,
}

/// A list for one run of rsync.
#[derive(Debug, Default)]
pub struct Batch {
    /// Paths, each with `./` before it and a NUL behind.
    pub list: Vec<u8>,
    /// What the list stands for.
    pub entries: Vec<Entry>,
    /// Large files, to be sent beside it, with their sizes.
    pub large: Vec<(Entry, u64)>,
    /// Files that it deletes, as far as they were counted.
    pub deletions: u64,
    /// Names where the standby may have something that is deleted, or gives way to something of another kind.
    pub aside: Vec<Aside>,
    /// Names that would delete something, left out while deletions are held.
    pub withheld: Vec<Entry>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Names where the standby may have a directory that is gone here. If a directory stands here after the
    /// transfer, what the first one held may still be over there.
    pub vacated: Vec<Vec<u8>>,
}

/// Names of files with several names: all of them must be in one list, or the standby's fall apart.
#[derive(Debug, Default, Clone)]
pub struct Links {
    names: HashMap<u64, Vec<Vec<u8>>>,
    /// The same the other way round, sorted: a directory takes all below it along.
    inodes: BTreeMap<Vec<u8>, u64>,
    /// With how many names a search found fewer: the others are outside the tree.
    searched: HashMap<u64, u64>,
    /// The same for [`Links::names_of`], which makes sure.
    confirmed: HashMap<u64, u64>,
    /// How many directories had moved when that was known.
    moves: u64,
}

/// What a search for files has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Their names.
    pub names: Vec<Vec<u8>>,
    /// Those that have one name, or none.
    pub single: Vec<u64>,
    /// Those with more names than were found. The others are outside the tree, or in a directory that moved
    /// during the search: they are to be asked for again.
    pub incomplete: Vec<u64>,
}

/// The path below a root.
pub fn below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// Looks at every entry and makes the list. Files of `large` bytes or more are left out of it, and what would delete
/// something while deletions are `held`. Of the further names of files only those that are `known` are in it: what
/// becomes of the others would not be noticed.
pub fn build(
    root: &Path,
    entries: Vec<Entry>,
    links: &mut Links,
    large: u64,
    held: bool,
    known: impl Fn(&[u8]) -> bool,
) -> Batch {
    let mut batch = Batch::default();
    let mut list = List {
        root,
        bytes: Vec::new(),
        listed: HashSet::new(),
        ancestors: HashMap::new(),
    };
    let mut linked: Vec<(u64, u64, Vec<u8>)> = Vec::new();
    let mut others: Vec<(Vec<u8>, Option<u64>)> = Vec::new();
    for entry in entries {
        if entry.path.is_empty() {
            // The root's own attributes go with anything in it, and this is nowhere.
            list.add(root::CANARY.as_bytes());
            batch.entries.push(entry);
            continue;
        }
        if let Some(bad) = list.bad_ancestor(parent(&entry.path)) {
            // rsync would make a directory of it: what stands there now is sent instead.
            if held {
                batch.withheld.push(entry);
                continue;
            }
            batch.aside.push(Aside {
                path: bad.path.clone(),
                kind: bad.kind,
            });
            if bad.kind == Kind::Nothing {
                batch.deletions += entry.mark.lost;
                batch.vacated.push(bad.path.clone());
            }
            list.add(&bad.path);
            batch.entries.push(entry);
            continue;
        }
        let found = fs::symlink_metadata(below(root, &entry.path));
        // A file in the place of a directory deletes what that held.
        let deletes = found
            .as_ref()
            .map_or(true, |m| entry.mark.vacated && !m.is_dir());
        if held && deletes {
            batch.withheld.push(entry);
            continue;
        }
        let kind = Kind::of(found.as_ref().ok());
        if kind != Kind::File || entry.mark.vacated {
            batch.aside.push(Aside {
                path: entry.path.clone(),
                kind,
            });
        }
        if entry.mark.vacated || found.is_err() {
            batch.vacated.push(entry.path.clone());
        }
        others.push((entry.path.clone(), found.as_ref().ok().map(Metadata::ino)));
        match found {
            Ok(metadata) => {
                if metadata.is_file() && metadata.len() >= large && metadata.nlink() == 1 {
                    batch.large.push((entry, metadata.len()));
                    continue;
                }
                if !metadata.is_dir() && metadata.nlink() > 1 {
                    linked.push((metadata.ino(), metadata.nlink(), entry.path.clone()));
                }
                batch.bytes += if metadata.is_file() {
                    metadata.len()
                } else {
                    0
                };
            }
            Err(_) => batch.deletions += entry.mark.lost.max(1),
        }
        list.add(&entry.path);
        batch.entries.push(entry);
    }
    let mut names = links.left_behind(root, &others, &batch.vacated);
    names.append(&mut links.all_names(root, &linked));
    for path in names.iter().filter(|path| known(path)) {
        list.add(path);
    }
    batch.list = list.bytes;
    batch
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|byte| *byte == b'/')
        .map_or(b"", |slash| &path[..slash])
}

/// The topmost ancestor that is not a directory.
#[derive(Debug, Clone)]
struct Bad {
    path: Vec<u8>,
    kind: Kind,
}

struct List<'a> {
    root: &'a Path,
    bytes: Vec<u8>,
    listed: HashSet<Vec<u8>>,
    ancestors: HashMap<Vec<u8>, Option<Bad>>,
}

impl List<'_> {
    /// Without `./` a name that begins with `#` or `;` is skipped in silence.
    fn add(&mut self, path: &[u8]) {
        if self.listed.insert(path.to_vec()) {
            self.bytes.extend_from_slice(b"./");
            self.bytes.extend_from_slice(path);
            self.bytes.push(0);
        }
    }

    fn bad_ancestor(&mut self, directory: &[u8]) -> Option<Bad> {
        if directory.is_empty() {
            return None;
        }
        if let Some(known) = self.ancestors.get(directory) {
            return known.clone();
        }
        let bad = self.bad_ancestor(parent(directory)).or_else(|| {
            let found = fs::symlink_metadata(below(self.root, directory));
            let kind = Kind::of(found.as_ref().ok());
            (kind != Kind::Directory).then(|| Bad {
                path: directory.to_vec(),
                kind,
            })
        });
        self.ancestors.insert(directory.to_vec(), bad.clone());
        bad
    }
}

impl Links {
    /// A name of a file with several names, as a look at the tree has found it.
    pub fn know(&mut self, inode: u64, path: Vec<u8>) {
        self.names.entry(inode).or_default().push(path.clone());
        self.inodes.insert(path, inode);
    }

    /// A directory was moved, with all below it.
    pub fn moved(&mut self, from: &[u8], to: &[u8]) {
        for (path, inode) in self.known_below(from) {
            let mut new = to.to_vec();
            new.extend_from_slice(&path[from.len()..]);
            self.inodes.remove(&path);
            self.know(inode, new);
        }
    }

    /// So many directories have moved by now: what was not found before may be found.
    pub fn note_moves(&mut self, moves: u64) {
        if moves != self.moves {
            self.moves = moves;
            self.searched.clear();
            self.confirmed.clear();
        }
    }

    /// The names of files that have changed through one that is not known.
    pub fn names_of(&mut self, root: &Path, inodes: &[u64]) -> Named {
        let mut wanted = HashSet::new();
        for inode in inodes {
            let count = self.retain_names(root, *inode);
            let known = self.names.get(inode).map_or(0, Vec::len) as u64;
            if (known == 0 || known < count) && self.confirmed.get(inode) != Some(&count) {
                wanted.insert(*inode);
            }
        }
        if !wanted.is_empty() {
            search(root, &mut Vec::new(), &wanted, &mut self.names);
        }
        let mut found = Named::default();
        for inode in inodes {
            let count = self.retain_names(root, *inode);
            let names = self.names.get(inode).cloned().unwrap_or_default();
            if count < 2 {
                found.single.push(*inode);
            }
            if wanted.contains(inode) && (names.is_empty() || (names.len() as u64) < count) {
                self.confirmed.insert(*inode, count);
                found.incomplete.push(*inode);
            }
            for name in names {
                self.inodes.insert(name.clone(), *inode);
                found.names.push(name);
            }
        }
        found
    }

    /// Forgets the names that are not a file's any more; gives how many it has, here or elsewhere, and 0 when no
    /// name of it is known.
    fn retain_names(&mut self, root: &Path, inode: u64) -> u64 {
        let mut count = 0;
        if let Some(names) = self.names.get_mut(&inode) {
            names.retain(|name| {
                let found = fs::symlink_metadata(below(root, name));
                let found = found.ok().filter(|found| found.ino() == inode);
                count = found.as_ref().map_or(count, Metadata::nlink);
                found.is_some()
            });
            if names.is_empty() {
                self.names.remove(&inode);
            }
        }
        count
    }

    fn known_below(&self, directory: &[u8]) -> Vec<(Vec<u8>, u64)> {
        let mut prefix = directory.to_vec();
        prefix.push(b'/');
        self.inodes
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .map(|(path, inode)| (path.clone(), *inode))
            .collect()
    }

    /// What was written through a name that has been taken away since, perhaps with its directory, is in the
    /// file's other names.
    fn left_behind(
        &mut self,
        root: &Path,
        names: &[(Vec<u8>, Option<u64>)],
        vacated: &[Vec<u8>],
    ) -> Vec<Vec<u8>> {
        if self.inodes.is_empty() {
            return Vec::new();
        }
        let mut gone: Vec<(Vec<u8>, u64)> = Vec::new();
        for (path, inode) in names {
            if let Some(former) = self.inodes.get(path)
                && Some(*former) != *inode
            {
                gone.push((path.clone(), *former));
            }
        }
        for (path, former) in vacated.iter().flat_map(|path| self.known_below(path)) {
            if !fs::symlink_metadata(below(root, &path)).is_ok_and(|m| m.ino() == former) {
                gone.push((path, former));
            }
        }
        let mut left = Vec::new();
        for (path, former) in gone {
            self.inodes.remove(&path);
            if let Some(others) = self.names.get_mut(&former) {
                others.retain(|name| *name != path);
                let is_it = |name: &&Vec<u8>| {
                    fs::symlink_metadata(below(root, name)).is_ok_and(|m| m.ino() == former)
                };
                left.extend(others.iter().filter(is_it).cloned());
                self.searched.remove(&former);
            }
        }
        left
    }

    /// Every name of the files given by inode, number of names and one name.
    fn all_names(&mut self, root: &Path, files: &[(u64, u64, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut wanted = HashSet::new();
        for (inode, count, path) in files {
            let names = self.names.entry(*inode).or_default();
            if !names.contains(path) {
                names.push(path.clone());
            }
            let before = names.len();
            names.retain(|name| {
                fs::symlink_metadata(below(root, name)).is_ok_and(|m| m.ino() == *inode)
            });
            if names.len() < before {
                self.searched.remove(inode);
            }
            if (names.len() as u64) < *count && self.searched.get(inode) != Some(count) {
                wanted.insert(*inode);
                self.searched.insert(*inode, *count);
            }
        }
        if !wanted.is_empty() {
            search(root, &mut Vec::new(), &wanted, &mut self.names);
        }
        let mut all = Vec::new();
        for (inode, _, _) in files {
            for name in self.names.get(inode).into_iter().flatten() {
                self.inodes.insert(name.clone(), *inode);
                all.push(name.clone());
            }
        }
        all
    }
}

/// Finds the names of inodes below a directory of the root.
fn search(
    root: &Path,
    path: &mut Vec<u8>,
    wanted: &HashSet<u64>,
    names: &mut HashMap<u64, Vec<Vec<u8>>>,
) {
    let length = path.len();
    for entry in fs::read_dir(below(root, path))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        if length == 0 && root::is_own(name.as_bytes()) {
            continue;
        }
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            search(root, path, wanted, names);
        } else {
            // The inode of a directory's entry costs no look at the file.
            let inode = std::os::unix::fs::DirEntryExt::ino(&entry);
            if wanted.contains(&inode) {
                let known = names.entry(inode).or_default();
                if !known.contains(path) {
                    known.push(path.clone());
                }
            }
        }
        path.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::dirs::Dirs;
    use crate::queue::{Change, Queue};

    fn entries(paths: &[&[u8]]) -> Vec<Entry> {
        let mut dirs = Dirs::default();
        let dir = dirs.add_root(0);
        let now = Instant::now();
        paths
            .iter()
            .map(|path| {
                let mut queue = Queue::default();
                let key = Key {
                    dir,
                    name: Arc::from(*path),
                };
                queue.mark(key, Change::Whole, now);
                let later = now + std::time::Duration::from_secs(1);
                let (key, mark) = queue.take(later, 1, |_| false).remove(0);
                Entry {
                    key,
                    mark,
                    path: path.to_vec(),
                }
            })
            .collect()
    }

    fn listed(batch: &Batch) -> Vec<String> {
        let mut paths: Vec<String> = batch
            .list
            .split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        paths.sort();
        paths
    }

    #[test]
    fn names_are_looked_at_as_they_are_now() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("d/e")).unwrap();
        fs::write(root.join("d/e/#x"), "12345").unwrap();
        fs::write(root.join("large"), vec![0; 2000]).unwrap();
        std::os::unix::fs::symlink("d", root.join("link")).unwrap();
        let batch = build(
            root,
            entries(&[
                b"d/e/#x",
                b"d/gone/deep/er",
                b"d/gone/deep",
                b"link/e/f",
                b"large",
                b"missing",
                b"",
            ]),
            &mut Links::default(),
            1000,
            false,
            |_| true,
        );
        assert_eq!(
            listed(&batch),
            [
                "./.keepalived-companion-canary",
                "./d/e/#x",
                "./d/gone",
                "./link",
                "./missing"
            ]
        );
        assert_eq!((batch.large.len(), batch.bytes, batch.deletions), (1, 5, 1));
        // Each of them may be a directory again when rsync comes to it.
        assert_eq!(batch.vacated, [&b"d/gone"[..], b"d/gone", b"missing"]);
        assert_eq!(batch.entries.len(), 6);
    }

    #[test]
    fn a_file_with_several_names_goes_with_all_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("deep/er")).unwrap();
        fs::write(root.join("a"), "x").unwrap();
        for name in ["b", "deep/er/c"] {
            fs::hard_link(root.join("a"), root.join(name)).unwrap();
        }
        let mut links = Links::default();
        let batch = build(root, entries(&[b"b"]), &mut links, 1000, false, |_| true);
        assert_eq!(listed(&batch), ["./a", "./b", "./deep/er/c"]);
        // One in a directory that is not watched yet comes with that.
        let known = |path: &[u8]| !path.starts_with(b"deep");
        let batch = build(root, entries(&[b"b"]), &mut links, 1000, false, known);
        assert_eq!(listed(&batch), ["./a", "./b"]);
        // Written through one that is gone, and another file has its name.
        fs::remove_file(root.join("b")).unwrap();
        fs::write(root.join("b"), "another").unwrap();
        let batch = build(root, entries(&[b"b"]), &mut links, 1000, false, |_| true);
        assert_eq!(listed(&batch), ["./a", "./b", "./deep/er/c"]);
        let batch = build(root, entries(&[b"b"]), &mut links, 1000, false, |_| true);
        assert_eq!(listed(&batch), ["./b"]);
        fs::remove_file(root.join("b")).unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        // One is moved, which is another name.
        fs::rename(root.join("a"), root.join("moved")).unwrap();
        let batch = build(root, entries(&[b"b"]), &mut links, 1000, false, |_| true);
        assert_eq!(listed(&batch), ["./b", "./deep/er/c", "./moved"]);
        // Written through one whose directory was moved, and is gone then.
        fs::rename(root.join("deep"), root.join("elsewhere")).unwrap();
        links.moved(b"deep", b"elsewhere");
        fs::remove_dir_all(root.join("elsewhere")).unwrap();
        let batch = build(
            root,
            entries(&[b"elsewhere"]),
            &mut links,
            1000,
            false,
            |_| true,
        );
        assert_eq!(listed(&batch), ["./b", "./elsewhere", "./moved"]);
    }

    #[test]
    fn a_file_is_found_by_its_inode_as_long_as_it_has_names() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("a"), "x").unwrap();
        fs::hard_link(root.join("a"), root.join("d/b")).unwrap();
        let inode = fs::metadata(root.join("a")).unwrap().ino();
        let mut links = Links::default();
        let named = |links: &mut Links| {
            let mut found = links.names_of(&root, &[inode]);
            found.names.sort();
            found
        };
        let both = vec![b"a".to_vec(), b"d/b".to_vec()];
        assert_eq!(named(&mut links).names, both);
        // A third one is outside: it is made sure of once, and again when a directory has moved.
        fs::hard_link(root.join("a"), directory.path().join("outside")).unwrap();
        let unsure = named(&mut links);
        assert_eq!((&unsure.names, &unsure.incomplete), (&both, &vec![inode]));
        assert_eq!(named(&mut links).incomplete, [] as [u64; 0]);
        links.note_moves(1);
        assert_eq!(named(&mut links).incomplete, [inode]);
        fs::remove_file(directory.path().join("outside")).unwrap();
        fs::remove_file(root.join("a")).unwrap();
        let left = named(&mut links);
        assert_eq!(
            (left.names, left.single),
            (vec![b"d/b".to_vec()], vec![inode])
        );
    }

    #[test]
    fn while_deletions_are_held_everything_else_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("again")).unwrap();
        fs::write(root.join("new"), "x").unwrap();
        fs::write(root.join("file"), "was a directory").unwrap();
        let mut entries = entries(&[b"gone", b"new", b"again", b"file", b"file/below"]);
        for entry in &mut entries {
            entry.mark.vacated = entry.path == b"again" || entry.path == b"file";
        }
        let mut links = Links::default();
        let batch = build(root, entries, &mut links, 1000, true, |_| true);
        assert_eq!(listed(&batch), ["./again", "./new"]);
        assert_eq!(batch.deletions, 0);
        let mut withheld: Vec<&[u8]> = batch.withheld.iter().map(|e| &*e.path).collect();
        withheld.sort_unstable();
        assert_eq!(withheld, [&b"file"[..], b"file/below", b"gone"]);
        // What the first directory of this name held is looked for.
        assert_eq!(batch.vacated, [b"again".to_vec()]);
    }
}
