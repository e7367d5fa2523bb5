//! Files with several names, each with a watch of its own. The events of a directory tell of the name
//! through which a file was changed; that may be gone when it is looked at, and the change is in the others.

use std::collections::HashMap;

/// A file, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The tree in which it has a name.
    pub tree: u16,
    /// Its number on the tree's file system.
    pub number: u64,
}

/// Which watch belongs to which file. A file with names in several trees has one watch.
#[derive(Debug, Default)]
pub struct LinkedFiles {
    files: HashMap<i32, Vec<Inode>>,
    watches: HashMap<Inode, i32>,
}

impl LinkedFiles {
    /// Notes the watch of a file.
    pub fn set_watch(&mut self, inode: Inode, wd: i32) {
        if let Some(former) = self.watches.insert(inode, wd).filter(|old| *old != wd) {
            // Another file had this number before.
            self.files.remove(&former);
        }
        let files = self.files.entry(wd).or_default();
        if !files.contains(&inode) {
            files.push(inode);
        }
    }

    /// The file of a watch, once for each tree.
    pub fn by_watch(&self, wd: i32) -> Vec<Inode> {
        self.files.get(&wd).cloned().unwrap_or_default()
    }

    /// The kernel has dropped a watch; gives its file.
    pub fn drop_watch(&mut self, wd: i32) -> Vec<Inode> {
        let files = self.files.remove(&wd).unwrap_or_default();
        for inode in &files {
            self.watches.remove(inode);
        }
        files
    }

    /// Forgets a file; gives its watch, which is to be removed.
    pub fn forget(&mut self, inode: Inode) -> Option<i32> {
        let wd = self.watches.get(&inode).copied()?;
        self.drop_watch(wd);
        Some(wd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_known_by_its_file_in_every_tree() {
        let [one, other, reused] =
            [(0, 7), (1, 7), (0, 8)].map(|(tree, number)| Inode { tree, number });
        let mut files = LinkedFiles::default();
        files.set_watch(one, 3);
        files.set_watch(other, 3);
        files.set_watch(reused, 4);
        assert_eq!(files.by_watch(3), [one, other]);
        assert_eq!(files.forget(other), Some(3));
        assert_eq!((files.by_watch(3), files.forget(one)), (Vec::new(), None));
        // The number belongs to another file, and the kernel's word about the first one comes later.
        files.set_watch(reused, 5);
        assert_eq!(files.drop_watch(4), []);
        assert_eq!(files.by_watch(5), [reused]);
        assert_eq!(files.drop_watch(5), [reused]);
        assert_eq!(files.forget(reused), None);
    }
}
