//! The watched directories as a tree of (parent, name, watch): renaming one is a change of one entry,
//! whatever lies below it.

use std::collections::HashMap;
use std::sync::Arc;

/// The bytes of a file name.
pub type Name = Arc<[u8]>;

/// A directory; never reused for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    index: u32,
    generation: u32,
}

/// A name in a directory; an empty name means the root directory itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The directory.
    pub dir: NodeId,
    /// The name in it.
    pub name: Name,
}

#[derive(Debug)]
struct Node {
    /// None for a root.
    parent: Option<NodeId>,
    name: Name,
    /// None when it cannot be watched and is polled.
    wd: Option<i32>,
    tree: u16,
    subdirectories: u32,
    /// Files in it, about: counted at the scan and by the events since.
    files: u32,
}

/// Every known directory of every tree.
#[derive(Debug, Default)]
pub struct Dirs {
    nodes: Vec<(u32, Option<Node>)>,
    free: Vec<u32>,
    children: HashMap<Key, NodeId>,
    watches: HashMap<i32, NodeId>,
}

impl Dirs {
    /// Adds the root of a tree.
    pub fn add_root(&mut self, tree: u16) -> NodeId {
        self.insert(Node {
            parent: None,
            name: Arc::from(&b""[..]),
            wd: None,
            tree,
            subdirectories: 0,
            files: 0,
        })
    }

    /// Adds a directory, or finds it.
    pub fn add(&mut self, parent: NodeId, name: &Name) -> NodeId {
        let key = Key {
            dir: parent,
            name: Arc::clone(name),
        };
        if let Some(known) = self.children.get(&key) {
            return *known;
        }
        let tree = self.tree(parent);
        let id = self.insert(Node {
            parent: Some(parent),
            name: Arc::clone(name),
            wd: None,
            tree,
            subdirectories: 0,
            files: 0,
        });
        self.children.insert(key, id);
        self.count_child(parent, true);
        id
    }

    fn insert(&mut self, node: Node) -> NodeId {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.nodes[index as usize];
            slot.0 += 1;
            slot.1 = Some(node);
            return NodeId {
                index,
                generation: slot.0,
            };
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push((0, Some(node)));
        NodeId {
            index,
            generation: 0,
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        let (generation, node) = self.nodes.get(id.index as usize)?;
        (*generation == id.generation).then_some(node.as_ref()?)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        let (generation, node) = self.nodes.get_mut(id.index as usize)?;
        (*generation == id.generation).then_some(node.as_mut()?)
    }

    fn count_child(&mut self, parent: NodeId, more: bool) {
        if let Some(node) = self.node_mut(parent) {
            node.subdirectories = if more {
                node.subdirectories + 1
            } else {
                node.subdirectories.saturating_sub(1)
            };
        }
    }

    /// The tree that a directory belongs to.
    pub fn tree(&self, id: NodeId) -> u16 {
        self.node(id).map_or(0, |node| node.tree)
    }

    /// Whether the directory is still known.
    pub fn contains(&self, id: NodeId) -> bool {
        self.node(id).is_some()
    }

    /// The directory of that name in another one.
    pub fn child(&self, dir: NodeId, name: &Name) -> Option<NodeId> {
        self.children
            .get(&Key {
                dir,
                name: Arc::clone(name),
            })
            .copied()
    }

    /// The directory that a watch belongs to.
    pub fn by_watch(&self, wd: i32) -> Option<NodeId> {
        self.watches.get(&wd).copied()
    }

    /// The watch of a directory.
    pub fn watch(&self, id: NodeId) -> Option<i32> {
        self.node(id)?.wd
    }

    /// Whether the directory is watched.
    pub fn watched(&self, id: NodeId) -> bool {
        self.watch(id).is_some()
    }

    /// Notes the watch of a directory. The kernel has one for each directory: gives the one that it was
    /// known to belong to until now, which does not stand in its place any more.
    pub fn set_watch(&mut self, id: NodeId, wd: i32) -> Option<NodeId> {
        let old = self.node_mut(id)?.wd.replace(wd);
        if let Some(old) = old
            && self.watches.get(&old) == Some(&id)
        {
            self.watches.remove(&old);
        }
        let former = self.watches.insert(wd, id).filter(|former| *former != id)?;
        self.node_mut(former)?.wd = None;
        Some(former)
    }

    /// The kernel has dropped a watch.
    pub fn drop_watch(&mut self, wd: i32) {
        if let Some(id) = self.watches.remove(&wd)
            && let Some(node) = self.node_mut(id)
            && node.wd == Some(wd)
        {
            node.wd = None;
        }
    }

    /// Counts a file that came (or went).
    pub fn count_file(&mut self, id: NodeId, came: bool) {
        if let Some(node) = self.node_mut(id) {
            node.files = if came {
                node.files + 1
            } else {
                node.files.saturating_sub(1)
            };
        }
    }

    /// Sets the number of files as a scan counted it.
    pub fn set_files(&mut self, id: NodeId, files: u32) {
        if let Some(node) = self.node_mut(id) {
            node.files = files;
        }
    }

    /// Moves a directory to another place and name. What stood there is removed first by the caller.
    pub fn rename(&mut self, id: NodeId, parent: NodeId, name: &Name) {
        let Some((old_parent, old_name)) = self
            .node(id)
            .and_then(|node| Some((node.parent?, Arc::clone(&node.name))))
        else {
            return;
        };
        self.children.remove(&Key {
            dir: old_parent,
            name: old_name,
        });
        self.count_child(old_parent, false);
        let tree = self.tree(parent);
        if let Some(node) = self.node_mut(id) {
            node.parent = Some(parent);
            node.name = Arc::clone(name);
            node.tree = tree;
        }
        self.children.insert(
            Key {
                dir: parent,
                name: Arc::clone(name),
            },
            id,
        );
        self.count_child(parent, true);
    }

    /// Removes a directory and all below it; gives what was removed and how many files they had.
    pub fn remove(&mut self, id: NodeId) -> Removed {
        let mut removed = Removed::default();
        self.remove_into(id, &mut removed);
        removed
    }

    fn remove_into(&mut self, id: NodeId, removed: &mut Removed) {
        if self.node(id).is_some_and(|node| node.subdirectories > 0) {
            // Only a directory that leaves as a whole has any: `rm -r` removes them one by one before.
            let below: Vec<NodeId> = self
                .children
                .iter()
                .filter(|(key, _)| key.dir == id)
                .map(|(_, child)| *child)
                .collect();
            for child in below {
                self.remove_into(child, removed);
            }
        }
        let slot = &mut self.nodes[id.index as usize];
        if slot.0 != id.generation {
            return;
        }
        let Some(node) = slot.1.take() else { return };
        self.free.push(id.index);
        // A directory that was moved unseen may have its watch under its new place by now.
        if let Some(wd) = node.wd
            && self.watches.get(&wd) == Some(&id)
        {
            self.watches.remove(&wd);
            removed.watches.push(wd);
        }
        removed.directories.push(id);
        removed.files += u64::from(node.files);
        if let Some(parent) = node.parent {
            self.children.remove(&Key {
                dir: parent,
                name: node.name,
            });
            self.count_child(parent, false);
        }
    }

    /// The path of a directory, relative to its root and without a slash at either end; none when it
    /// is not known any more.
    pub fn path(&self, id: NodeId) -> Option<Vec<u8>> {
        let mut parts: Vec<&Name> = Vec::new();
        let mut at = self.node(id)?;
        while let Some(parent) = at.parent {
            parts.push(&at.name);
            at = self.node(parent)?;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        Some(path)
    }

    /// The path of a name in a directory.
    pub fn path_of(&self, key: &Key) -> Option<Vec<u8>> {
        let mut path = self.path(key.dir)?;
        if !path.is_empty() && !key.name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&key.name);
        Some(path)
    }

    /// Whether a directory is another one, or lies below it.
    pub fn is_within(&self, id: NodeId, other: NodeId) -> bool {
        let mut at = Some(id);
        while let Some(dir) = at {
            if dir == other {
                return true;
            }
            at = self.node(dir).and_then(|node| node.parent);
        }
        false
    }

    /// Where a directory stands in its parent; none for a root.
    pub fn key(&self, id: NodeId) -> Option<Key> {
        let node = self.node(id)?;
        Some(Key {
            dir: node.parent?,
            name: Arc::clone(&node.name),
        })
    }

    /// The key of a relative path below a root; none when its directory is not known.
    pub fn find(&self, root: NodeId, path: &[u8]) -> Option<Key> {
        let mut dir = root;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let name: Name = Arc::from(part);
            if parts.peek().is_none() {
                return Some(Key { dir, name });
            }
            dir = self.child(dir, &name)?;
        }
        None
    }

    /// A directory and every one below it.
    pub fn below(&self, id: NodeId) -> Vec<NodeId> {
        let mut children: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for (key, child) in &self.children {
            children.entry(key.dir).or_default().push(*child);
        }
        let mut found = vec![id];
        let mut next = 0;
        while let Some(dir) = found.get(next) {
            if let Some(more) = children.get(dir) {
                found.extend_from_slice(more);
            }
            next += 1;
        }
        found
    }

    /// Directories without a watch whose parent has one, and roots without one.
    pub fn topmost_polled(&self) -> Vec<NodeId> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| {
                let node = slot.1.as_ref()?;
                let top =
                    node.wd.is_none() && node.parent.is_none_or(|parent| self.watched(parent));
                top.then_some(NodeId {
                    index: u32::try_from(index).ok()?,
                    generation: slot.0,
                })
            })
            .collect()
    }

    /// The directories of a tree that have files.
    pub fn with_files(&self, tree: u16) -> Vec<NodeId> {
        self.nodes
            .iter()
            .zip(0..)
            .filter_map(|(slot, index)| {
                let node = slot.1.as_ref()?;
                (node.tree == tree && node.files > 0).then_some(NodeId {
                    index,
                    generation: slot.0,
                })
            })
            .collect()
    }

    /// Directories watched and polled, and files, of a tree.
    pub fn totals(&self, tree: u16) -> (u64, u64, u64) {
        self.nodes
            .iter()
            .filter_map(|slot| slot.1.as_ref())
            .filter(|node| node.tree == tree)
            .fold((0, 0, 0), |(watched, polled, files), node| {
                (
                    watched + u64::from(node.wd.is_some()),
                    polled + u64::from(node.wd.is_none()),
                    files + u64::from(node.files),
                )
            })
    }
}

/// What left with a directory.
#[derive(Debug, Default)]
pub struct Removed {
    /// The directories.
    pub directories: Vec<NodeId>,
    /// Their watches.
    pub watches: Vec<i32>,
    /// Their files, about.
    pub files: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Arc::from(text.as_bytes())
    }

    fn tree() -> (Dirs, NodeId, NodeId, NodeId) {
        let mut dirs = Dirs::default();
        let root = dirs.add_root(0);
        let a = dirs.add(root, &name("a"));
        let b = dirs.add(a, &name("b"));
        for (wd, id) in [(1, root), (2, a), (3, b)] {
            dirs.set_watch(id, wd);
        }
        (dirs, root, a, b)
    }

    #[test]
    fn a_rename_moves_all_below() {
        let (mut dirs, root, a, b) = tree();
        assert_eq!(dirs.path(b).unwrap(), b"a/b");
        assert_eq!(dirs.path(root).unwrap(), b"");
        dirs.rename(a, root, &name("new"));
        assert_eq!(dirs.path(b).unwrap(), b"new/b");
        assert_eq!(dirs.child(root, &name("a")), None);
        assert_eq!(dirs.child(root, &name("new")), Some(a));
        assert_eq!(dirs.by_watch(3), Some(b));
        let key = dirs.find(root, b"new/b/file").unwrap();
        assert_eq!((key.dir, &*key.name), (b, &b"file"[..]));
        assert_eq!(dirs.path_of(&key).unwrap(), b"new/b/file");
        assert_eq!(dirs.find(root, b"nowhere/file"), None);
        assert!(dirs.is_within(b, a) && dirs.is_within(a, a) && !dirs.is_within(a, b));
    }

    #[test]
    fn what_is_removed_is_not_found_again() {
        let (mut dirs, root, a, b) = tree();
        dirs.set_files(b, 7);
        dirs.count_file(a, true);
        let removed = dirs.remove(a);
        assert_eq!((removed.directories.len(), removed.files), (2, 8));
        assert_eq!(dirs.by_watch(2), None);
        assert_eq!(dirs.path(b), None);
        // The place is used again, and the old name for it is not.
        let c = dirs.add(root, &name("c"));
        let d = dirs.add(c, &name("d"));
        assert!(dirs.contains(c) && dirs.contains(d) && !dirs.contains(a) && !dirs.contains(b));
        assert_eq!(dirs.totals(0), (1, 2, 0));
    }

    #[test]
    fn a_watch_belongs_to_one_directory() {
        let (mut dirs, root, a, b) = tree();
        let c = dirs.add(root, &name("c"));
        assert_eq!(dirs.set_watch(c, 3), Some(b));
        assert_eq!((dirs.by_watch(3), dirs.watch(b)), (Some(c), None));
        // Another directory stands in the place of the first: the watch is not its any more.
        assert_eq!(dirs.set_watch(b, 4), None);
        assert_eq!(dirs.set_watch(a, 4), Some(b));
        assert_eq!((dirs.by_watch(2), dirs.by_watch(3)), (None, Some(c)));
        assert_eq!(dirs.remove(b).watches, [] as [i32; 0]);
        assert_eq!((dirs.by_watch(3), dirs.by_watch(4)), (Some(c), Some(a)));
    }
}
