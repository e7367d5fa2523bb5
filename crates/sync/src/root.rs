//! The root of a tree on this node: its own directory in it, and the marker by which an unmounted,
//! emptied or exchanged root is told from the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use nodefiles::OWN;
use nodefiles::{Durability, FileError, JsonFile, open_own, read_json, replace_json};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::octal;

/// Written and removed at the start of a connection, to see that both arrive.
pub const CANARY: &str = ".keepalived-companion-canary";
/// Written by check-inotify, to see that the watcher notices.
pub const PROBE: &str = "probe";
/// Written by this program, to know that every event before it has been read.
pub const BARRIER: &str = "barrier";
/// Where rsync keeps a file until it is whole: on the same file system, and out of sight.
pub const TEMPORARY: &str = "tmp";
const MARKER: &str = "marker";

/// Why a root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It is not the one that was adopted.
    #[error(
        "{path} is not the directory that was synchronised before ({detail}); mount it, or if the new one is right: sync-realtime --release"
    )]
    Exchanged {
        /// The root.
        path: PathBuf,
        /// What is different.
        detail: String,
    },
    /// A file system that was mounted in the tree is not there.
    #[error(
        "{path} was a mounted file system before and is none now; mount it, or if that is right: sync-realtime --release"
    )]
    Unmounted {
        /// Where it was.
        path: PathBuf,
    },
    /// There is no such directory.
    #[error("{path}: {source}; the tree must exist on every node")]
    Missing {
        /// The root.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file of ours.
    #[error(transparent)]
    State(#[from] FileError),
    /// A directory of ours.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Device and inode: which directory it is, as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// The markers of the roots that this node has adopted, by path. Without a version: a program that knows none
/// would take it for a root.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Adopted(BTreeMap<String, String>);

/// File systems that were mounted in the trees.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Mounts {
    /// By tree: as paths below it.
    trees: BTreeMap<String, BTreeSet<String>>,
}

/// A file system that is mounted in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub path: PathBuf,
    /// The same, below the root.
    pub name: PathBuf,
    identity: Identity,
}

fn mounts_file(settings: &Settings) -> JsonFile<Mounts> {
    JsonFile::durable(settings.paths.state.join("sync/mounts.json"), 1).private()
}

fn record(settings: &Settings) -> PathBuf {
    settings.paths.state.join("sync/trees.json")
}

/// A path in our directory of a root.
pub fn own(root: &Path, name: &str) -> PathBuf {
    root.join(OWN).join(name)
}

/// Whether a name in the root is ours.
pub fn is_own(name: &[u8]) -> bool {
    name == OWN.as_bytes() || name == CANARY.as_bytes()
}

/// Replaces the content of a file of ours.
pub fn write_own(root: &Path, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    open_own(root, name, flags)?.write_all(text.as_bytes())
}

/// Reads a small file of ours.
pub fn read_own(root: &Path, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open_own(root, name, OFlags::RDONLY)?
        .take(4096)
        .read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Makes the canary in a root, where no link and no other file is written to.
pub fn make_canary(root: &Path, text: &str) -> io::Result<()> {
    let root = openat(
        CWD,
        root,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match unlinkat(&root, CANARY, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(&root, CANARY, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(text.as_bytes())
}

/// Reads the canary; none when there is no such file.
pub fn read_canary(root: &Path) -> Option<String> {
    let root = openat(
        CWD,
        root,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(&root, CANARY, flags, Mode::empty()).ok()?);
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The roots that were adopted. In the place of a damaged record each root is taken that has a marker, as one has that
/// was adopted; without one it may be unmounted, and a person has to look.
fn adopted(settings: &Settings) -> Result<Adopted, FileError> {
    let error = match read_json(&record(settings)) {
        Err(error @ FileError::Damaged { .. }) => error,
        read => return Ok(read?.unwrap_or_default()),
    };
    log::error!("{error}; it is made anew from the markers in the trees");
    let marked = settings.sync.trees.iter().map(|tree| {
        let marker = read_own(&tree.path, MARKER).ok();
        // Nothing has this one.
        let marker = marker
            .filter(|text| !text.is_empty())
            .unwrap_or_else(random);
        (tree.path.to_string_lossy().into_owned(), marker)
    });
    let adopted = Adopted(marked.collect());
    replace_json(&record(settings), 0o600, &adopted, Durability::OnDisk)?;
    Ok(adopted)
}

/// Makes sure that the root is the one that was adopted, with all that was mounted in it, and adopts one that was
/// never seen before.
pub fn ensure(settings: &Settings, root: &Path) -> Result<(Identity, Vec<Mount>), RootError> {
    let found = ensure_root(settings, root)?;
    let mounts = mounts(root);
    ensure_mounts(settings, root, &mounts)?;
    Ok((found, mounts))
}

/// On the active node: what is mounted in a root belongs to it from now on.
pub fn adopt_mounts(settings: &Settings, root: &Path, mounts: &[Mount]) -> Result<(), RootError> {
    let mut known = known_mounts(settings)?;
    let name = root.to_string_lossy().into_owned();
    let there = names_of(mounts);
    if known.trees.get(&name).cloned().unwrap_or_default() != there {
        known.trees.insert(name, there);
        mounts_file(settings).replace(&known)?;
    }
    Ok(())
}

fn names_of(mounts: &[Mount]) -> BTreeSet<String> {
    let name = |mount: &Mount| mount.name.to_string_lossy().into_owned();
    mounts.iter().map(name).collect()
}

fn known_mounts(settings: &Settings) -> Result<Mounts, FileError> {
    match mounts_file(settings).read() {
        Err(error @ FileError::Damaged { .. }) => {
            log::error!("{error}; it is made anew from what is mounted");
            Ok(Mounts::default())
        }
        read => Ok(read?.unwrap_or_default()),
    }
}

/// What is mounted in a root now. Where the kernel does not tell it, nothing is known to be.
pub fn mounts(root: &Path) -> Vec<Mount> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    // The table has no links.
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let mounted = mounted_below(&table, &root);
    let mount = |path: PathBuf| {
        Some(Mount {
            name: path.strip_prefix(&root).ok()?.to_owned(),
            identity: identity(&path).ok()?,
            path,
        })
    };
    mounted.into_iter().filter_map(mount).collect()
}

/// One that is not what it was, of what was mounted.
pub fn unmounted(mounts: &[Mount]) -> Option<&Path> {
    mounts
        .iter()
        .find(|mount| identity(&mount.path).ok() != Some(mount.identity))
        .map(|mount| mount.path.as_path())
}

/// The mount points below a directory, by mountinfo (proc(5)): the fifth field, blanks and the like in octal.
fn mounted_below(table: &[u8], root: &Path) -> BTreeSet<PathBuf> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|point| PathBuf::from(OsStr::from_bytes(&octal::unescape(point, b"\\"))))
        .filter(|point| {
            point != root && point.starts_with(root) && !point.starts_with(root.join(OWN))
        })
        .collect()
}

/// What was mounted in a root is there.
fn ensure_mounts(settings: &Settings, root: &Path, mounts: &[Mount]) -> Result<(), RootError> {
    let known = known_mounts(settings)?;
    let there = names_of(mounts);
    let before = known.trees.get(root.to_string_lossy().as_ref());
    let gone = before.and_then(|before| before.difference(&there).next());
    gone.map_or(Ok(()), |gone| {
        Err(RootError::Unmounted {
            path: root.join(gone),
        })
    })
}

fn ensure_root(settings: &Settings, root: &Path) -> Result<Identity, RootError> {
    let found = identity(root)?;
    let mut adopted = adopted(settings)?;
    let name = root.to_string_lossy().into_owned();
    let failed = |source| RootError::Io {
        path: own(root, MARKER),
        source,
    };
    match adopted.0.get(&name) {
        Some(wanted) => {
            let detail = match read_own(root, MARKER) {
                Ok(text) if text == *wanted => {
                    prepare(root)?;
                    return Ok(found);
                }
                Ok(_) => "its marker is another one's".to_owned(),
                Err(error) => format!("{}: {error}", own(root, MARKER).display()),
            };
            Err(RootError::Exchanged {
                path: root.to_owned(),
                detail,
            })
        }
        None => {
            prepare(root)?;
            let id = match read_own(root, MARKER) {
                Ok(text) if !text.is_empty() => text,
                Ok(_) | Err(_) => {
                    let id = random();
                    // The marker first: a record without one would hold the tree.
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
                    let mut marker = open_own(root, MARKER, flags).map_err(failed)?;
                    marker.write_all(id.as_bytes()).map_err(failed)?;
                    marker.sync_all().map_err(failed)?;
                    id
                }
            };
            adopted.0.insert(name, id);
            replace_json(&record(settings), 0o600, &adopted, Durability::OnDisk)?;
            Ok(found)
        }
    }
}

/// A person says that the root as it is now is the right one.
pub fn adopt_anew(settings: &Settings, root: &Path) -> Result<(), RootError> {
    let mut adopted = adopted(settings)?;
    let name = root.to_string_lossy().into_owned();
    adopted.0.remove(&name);
    replace_json(&record(settings), 0o600, &adopted, Durability::OnDisk)?;
    let file = mounts_file(settings);
    if let Ok(Some(mut known)) = file.read()
        && known.trees.remove(&name).is_some()
    {
        file.replace(&known)?;
    }
    ensure(settings, root).map(drop)
}

/// The open directory of a path below a root, and its last part. Follows no link, and is never in our directory.
pub fn parent<'a>(root: &OwnedFd, path: &'a [u8]) -> io::Result<(OwnedFd, &'a [u8])> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let name = *parts.last().ok_or_else(invalid)?;
    if is_own(parts[0])
        || parts
            .iter()
            .any(|part| matches!(*part, b"" | b"." | b"..") || part.contains(&0))
    {
        return Err(invalid());
    }
    let directory = path
        .get(..path.len() - name.len())
        .filter(|d| !d.is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let fd = openat2(
        root,
        directory.unwrap_or(b"."),
        flags,
        Mode::empty(),
        inside,
    )?;
    Ok((fd, name))
}

/// Which directory the root is now, and that its marker is there: asked before each batch.
pub fn look(root: &Path) -> Option<Identity> {
    fs::symlink_metadata(own(root, MARKER)).ok()?;
    identity(root).ok()
}

fn identity(root: &Path) -> Result<Identity, RootError> {
    let missing = |source| RootError::Missing {
        path: root.to_owned(),
        source,
    };
    // A root that is a link is followed, as rsync does with its final slash.
    let metadata = fs::metadata(root).map_err(missing)?;
    if !metadata.is_dir() {
        return Err(missing(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

/// A directory as if something were mounted there, for tests.
#[cfg(test)]
pub fn any_mount(root: &Path, name: &str) -> Mount {
    let path = root.canonicalize().unwrap().join(name);
    Mount {
        identity: identity(&path).unwrap(),
        name: PathBuf::from(name),
        path,
    }
}

/// The identity of a directory that was not adopted, for tests.
#[cfg(test)]
pub fn any_identity(path: &Path) -> Identity {
    identity(path).unwrap()
}

/// Makes our directories. The mode is set again: an earlier umask may have been in the way.
fn prepare(root: &Path) -> Result<(), RootError> {
    for path in [root.join(OWN), own(root, TEMPORARY)] {
        let failed = |source| RootError::Io {
            path: path.clone(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            Ok(()) | Err(_) => {}
        }
        // Its time would be an event each time.
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(failed(io::Error::other(
                "is not root's own directory; remove it",
            )));
        }
        if metadata.mode() & 0o777 != 0o700 {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Sixteen random bytes in hexadecimal.
pub fn random() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_or_else(|_| String::new(), |text| text.trim().replace('-', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_a_tree_is_found() {
        let table = b"28 1 0:25 / / rw - overlay overlay rw\n\
            30 28 0:26 / /var/www/html rw - ext4 /dev/a rw\n\
            31 30 0:27 / /var/www/html/my\\040media\\134 rw shared:1 - nfs a:/b rw\n\
            32 28 0:28 / /var/www/html2 rw - ext4 /dev/b rw\n\
            33 30 0:29 / /var/www/html/.keepalived-companion/tmp rw - tmpfs c rw\n";
        let found = mounted_below(table, Path::new("/var/www/html"));
        assert_eq!(
            Vec::from_iter(found),
            [PathBuf::from("/var/www/html/my media\\")]
        );
    }

    #[test]
    fn a_mount_that_is_gone_holds_the_tree_until_a_person_has_looked() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::settings_in(&directory.path().join("state"));
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("media")).unwrap();
        ensure(&settings, &root).unwrap();
        let mounted = any_mount(&root, "media");
        adopt_mounts(&settings, &root, std::slice::from_ref(&mounted)).unwrap();
        assert_eq!(unmounted(std::slice::from_ref(&mounted)), None);
        for _ in 0..2 {
            let held = ensure(&settings, &root).unwrap_err();
            assert!(
                matches!(&held, RootError::Unmounted { path } if *path == root.join("media")),
                "{held}"
            );
        }
        adopt_anew(&settings, &root).unwrap();
        ensure(&settings, &root).unwrap();
        // Another directory of that name is not what was mounted.
        fs::rename(root.join("media"), root.join("before")).unwrap();
        fs::create_dir(root.join("media")).unwrap();
        assert_eq!(
            unmounted(std::slice::from_ref(&mounted)),
            Some(mounted.path.as_path())
        );
    }

    #[test]
    fn a_damaged_record_is_made_anew_from_the_markers() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = format!(
            "[cluster]\nvip = \"192.0.2.9\"\n\
             [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"192.0.2.2\"\n\
             [[sync.tree]]\npath = \"{0}/one\"\n[[sync.tree]]\npath = \"{0}/two\"\n\
             [paths]\nstate = \"{0}/state\"\n",
            directory.path().display()
        );
        let settings = settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap();
        for name in ["one", "two"] {
            fs::create_dir(path(name)).unwrap();
            ensure(&settings, &path(name)).unwrap();
        }
        // The second tree is unmounted.
        fs::rename(path("two"), path("away")).unwrap();
        fs::create_dir(path("two")).unwrap();
        fs::write(record(&settings), "garbage").unwrap();
        ensure(&settings, &path("one")).unwrap();
        for _ in 0..2 {
            let held = ensure(&settings, &path("two")).unwrap_err();
            assert!(matches!(held, RootError::Exchanged { .. }), "{held}");
        }
        // A person says that it is right.
        adopt_anew(&settings, &path("two")).unwrap();
        ensure(&settings, &path("two")).unwrap();
    }
}
