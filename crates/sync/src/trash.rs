//! What was deleted on a standby, or gave way to something of another kind: moved aside in the tree's own directory,
//! by one rename where it is a whole directory, and kept for a while.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use process::Program;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, StatVfs, fstat, fstatvfs, mkdirat,
    openat, renameat_with, statat, statvfs,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::root::{self, Mount, OWN};

const TRASH: &str = "trash";
/// So often may the same name go within a minute.
const MOST_AT_ONCE: u64 = 1000;
/// From then on nothing comes to what went in a minute.
const CLOSED: Duration = Duration::from_secs(120);
/// Below this part of a file system deletions free their space at once.
const FREE: f64 = 0.05;
/// Younger than this, something goes only where space is short.
const YOUNG: Duration = Duration::from_secs(24 * 3600);
/// Between two purges.
const PURGES: Duration = Duration::from_secs(60);
/// A clock that runs away from the time since the last purge by more than this was set.
const JUMP: Duration = Duration::from_secs(3600);

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing.
    Nothing,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Something else: a link, a device.
    Other,
}

impl Kind {
    /// Of what was found by a look that follows no link.
    pub fn of(found: Option<&fs::Metadata>) -> Self {
        match found {
            None => Self::Nothing,
            Some(found) if found.is_dir() => Self::Directory,
            Some(found) if found.is_file() => Self::File,
            Some(_) => Self::Other,
        }
    }

    fn of_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File,
            _ => Self::Other,
        }
    }
}

/// A name, and what stands there on the active node now. What the standby has of another kind is moved aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Relative to the root, in bytes.
    pub path: Vec<u8>,
    /// There.
    pub kind: Kind,
}

/// Whether deletions are kept in a tree: the settings say so, and there is space.
pub fn keeps(settings: &Settings, root: &Path) -> bool {
    !settings.sync.trash_age.is_zero() && statvfs(root).is_ok_and(|found| has_space(&found))
}

fn has_space(found: &StatVfs) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = |free: u64, all: u64| free as f64 / all.max(1) as f64;
    // Some file systems have no number of inodes.
    let inodes = found.f_files == 0 || share(found.f_favail, found.f_files) >= FREE;
    inodes && share(found.f_bavail, found.f_blocks) >= FREE
}

/// The open trash of a tree; made where `make` says so. The tree belongs to the web server, which could put its own
/// directory, or a link to one of root's, in the place of ours.
fn open(root: impl AsFd, make: bool) -> io::Result<OwnedFd> {
    let own = openat(root, OWN, DIRECTORY, Mode::empty())?;
    only_roots(&own)?;
    if make {
        directory(&own, TRASH.as_bytes())?;
    }
    let trash = openat(&own, TRASH, DIRECTORY, Mode::empty())?;
    only_roots(&trash)?;
    Ok(trash)
}

fn only_roots(directory: &OwnedFd) -> io::Result<()> {
    let found = fstat(directory)?;
    if found.st_uid == rustix::process::geteuid().as_raw() && found.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "others than root can write in the trash",
    ))
}

/// Moves names of a tree aside. What is mounted in it, `mounts`, and all above it stays.
/// `proceed` is asked again and again whether this may go on. Fails, after all others, where something was not moved:
/// a file system that is nearly full has to get its space from deletions, and what is mounted cannot be moved.
pub fn set_aside(
    root: &OwnedFd,
    names: &[Aside],
    mounts: &[Mount],
    now: SystemTime,
    proceed: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let mut places: Option<Places> = None;
    let mut failed = None;
    for name in names {
        proceed()?;
        if let Err(error) = set_one_aside(root, name, mounts, now, &mut places, proceed) {
            if error.kind() == io::ErrorKind::Interrupted {
                return Err(error);
            }
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn set_one_aside(
    root: &OwnedFd,
    name: &Aside,
    mounts: &[Mount],
    now: SystemTime,
    places: &mut Option<Places>,
    proceed: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let (parent, last) = match root::parent(root, &name.path) {
        Ok(found) => found,
        // Its directory is not there either, or is a link: then there is nothing of ours.
        Err(error) if is_elsewhere(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    match statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if Kind::of_mode(found.st_mode) == name.kind => return Ok(()),
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let path = Path::new(OsStr::from_bytes(&name.path));
    if mounts.iter().any(|mount| mount.name.starts_with(path)) {
        return Err(Errno::XDEV.into());
    }
    let places = match places {
        Some(places) => places,
        None => {
            if !has_space(&fstatvfs(root)?) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            places.insert(Places::open(root, now)?)
        }
    };
    places.take(&parent, &name.path, last, proceed)
}

/// Where things of one minute go: one directory for all of them, and others for names that were there before.
struct Places {
    trash: OwnedFd,
    minute: u64,
}

impl Places {
    fn open(root: &OwnedFd, now: SystemTime) -> io::Result<Self> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self {
            trash: open(root, true)?,
            minute: seconds / 60 * 60_000,
        })
    }

    fn take(
        &self,
        parent: &OwnedFd,
        path: &[u8],
        last: &[u8],
        proceed: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        for id in self.minute..self.minute + MOST_AT_ONCE {
            let place = directory(&self.trash, id.to_string().as_bytes())?;
            let Some(directory) = directories(&place, &path[..path.len() - last.len()])? else {
                // A file is where a directory would have to be.
                continue;
            };
            match renameat_with(parent, last, &directory, last, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST)
                    if is_directory(parent, last) && is_directory(&directory, last) =>
                {
                    // The rest of one that goes in pieces.
                    return self.take_content(parent, path, last, proceed);
                }
                Err(Errno::EXIST) => {}
                // Gone meanwhile.
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// All that is in a directory; it stays, empty, for rsync to remove.
    fn take_content(
        &self,
        parent: &OwnedFd,
        path: &[u8],
        last: &[u8],
        proceed: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let content = openat(parent, last, DIRECTORY, Mode::empty())?;
        for entry in Dir::read_from(&content)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            proceed()?;
            self.take(&content, &[path, b"/", name].concat(), name, proceed)?;
        }
        Ok(())
    }
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| Kind::of_mode(found.st_mode) == Kind::Directory)
}

fn is_elsewhere(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn directory(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

/// Makes the directories of a path, which ends with a slash or is empty; none where something else is in the way.
fn directories(place: &OwnedFd, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    let mut found = place.try_clone()?;
    for part in path.split(|byte| *byte == b'/').filter(|p| !p.is_empty()) {
        found = match directory(&found, part) {
            Ok(found) => found,
            Err(error) if is_elsewhere(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(Some(found))
}

/// What went in one minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its name, by which it is restored: milliseconds since 1970.
    pub id: u64,
    /// When, for a person.
    pub at: String,
    /// The tree.
    pub tree: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// One of them; bytes that are not UTF-8 are replaced.
    pub first: String,
}

/// The trash of a tree, as a path that leads to it whatever becomes of the names on the way.
struct Folder {
    fd: OwnedFd,
}

impl Folder {
    fn open(tree: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, tree, flags, Mode::empty())?;
        Ok(Self {
            fd: open(root, false)?,
        })
    }

    fn place(&self, id: u64) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{id}", self.fd.as_raw_fd()))
    }

    fn kept(&self, id: u64, tree: &Path) -> Kept {
        let mut kept = Kept {
            id,
            at: moment(id),
            tree: tree.to_owned(),
            files: 0,
            bytes: 0,
            first: String::new(),
        };
        let place = self.place(id);
        look(&place, &place, &mut kept);
        kept
    }

    /// The oldest first.
    fn ids(&self) -> Vec<u64> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let mut ids: Vec<u64> = fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        ids.sort_unstable();
        ids
    }
}

/// Everything that is kept, the oldest first.
pub fn list(settings: &Settings) -> Vec<Kept> {
    let mut all = Vec::new();
    for tree in &settings.sync.trees {
        let Ok(folder) = Folder::open(&tree.path) else {
            continue;
        };
        for id in folder.ids() {
            all.push(folder.kept(id, &tree.path));
        }
    }
    all.sort_by_key(|kept| kept.id);
    all
}

fn moment(id: u64) -> String {
    i64::try_from(id)
        .ok()
        .and_then(|id| jiff::Timestamp::from_millisecond(id).ok())
        .map_or_else(
            || "-".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        )
}

fn look(place: &Path, directory: &Path, kept: &mut Kept) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(found) if found.is_dir() => look(place, &path, kept),
            Ok(found) => {
                kept.files += 1;
                kept.bytes += found.blocks() * 512;
                if kept.first.is_empty() {
                    let path = path.strip_prefix(place).unwrap_or(&path);
                    kept.first = path.to_string_lossy().into_owned();
                }
            }
            Err(_) => {}
        }
    }
}

/// Removes what is too old or too much, as long as the program lives.
pub fn purge_for_ever(settings: &Settings) -> ! {
    let mut purger = Purger::default();
    loop {
        purger.purge(settings, SystemTime::now(), Instant::now());
        thread::sleep(PURGES);
    }
}

/// Copies what went in a minute to a directory; it stays in the trash.
pub fn restore(settings: &Settings, id: u64, to: &Path) -> Result<(), RestoreError> {
    let folders: Vec<Folder> = settings
        .sync
        .trees
        .iter()
        .filter_map(|tree| Folder::open(&tree.path).ok())
        .filter(|folder| folder.place(id).is_dir())
        .collect();
    if folders.is_empty() {
        return Err(RestoreError::Unknown(id));
    }
    let full =
        std::path::absolute(to).map_err(|error| RestoreError::Directory(to.to_owned(), error))?;
    let active = matches!(
        nodefiles::role_state::read(settings),
        Some(state) if state.role == nodefiles::role_state::NodeRole::Active
    );
    let inside = settings
        .sync
        .trees
        .iter()
        .find(|tree| full.starts_with(&tree.path));
    if let Some(tree) = inside.filter(|_| !active) {
        return Err(RestoreError::Standby(tree.path.clone()));
    }
    let failed = |error| RestoreError::Directory(full.clone(), error);
    fs::create_dir_all(&full).map_err(failed)?;
    if fs::read_dir(&full).map_err(failed)?.next().is_some() {
        return Err(RestoreError::NotEmpty(full));
    }
    for folder in folders {
        let place = format!(
            "/proc/{}/fd/{}/{id}/.",
            std::process::id(),
            folder.fd.as_raw_fd()
        );
        Program::new("cp")
            .args(["-a", "--"])
            .arg(place)
            .arg(&full)
            .run()?
            .success()?;
    }
    Ok(())
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such minute.
    #[error("nothing is kept as {0}; see: sync-realtime --trash")]
    Unknown(u64),
    /// What is put into a standby's tree is deleted again.
    #[error(
        "{0} is mirrored to this node; restore to a directory outside of it, and copy it to the active node"
    )]
    Standby(PathBuf),
    /// There is something in it.
    #[error("{0} is not empty; name a new directory")]
    NotEmpty(PathBuf),
    /// The directory cannot be made.
    #[error("{0}: {1}")]
    Directory(PathBuf, io::Error),
    /// cp failed.
    #[error(transparent)]
    Copy(#[from] process::ProcessError),
}

#[derive(Debug, Default)]
struct Purger {
    last: Option<(SystemTime, Instant)>,
    /// The clock was set: by it nothing is known to be old.
    jumped: bool,
    /// What lies there does not change.
    bytes: BTreeMap<(PathBuf, u64), u64>,
}

impl Purger {
    /// One look at every tree.
    fn purge(&mut self, settings: &Settings, now: SystemTime, at: Instant) {
        if let Some((then, before)) = self.last.replace((now, at)) {
            let by_clock = now.duration_since(then).unwrap_or_default();
            let really = at.saturating_duration_since(before);
            if by_clock.abs_diff(really) > JUMP && !self.jumped {
                log::warn!("the clock was set: nothing is removed from the trash for its age");
                self.jumped = true;
            }
        }
        for tree in &settings.sync.trees {
            let Ok(folder) = Folder::open(&tree.path) else {
                continue;
            };
            for id in self.surplus(settings, &tree.path, &folder, now) {
                self.remove(&tree.path, &folder, id);
            }
            // One at a time: each may be enough.
            for id in folder.ids() {
                match statvfs(&tree.path) {
                    Ok(found) if !has_space(&found) => self.remove(&tree.path, &folder, id),
                    Ok(_) | Err(_) => break,
                }
            }
        }
    }

    fn remove(&mut self, tree: &Path, folder: &Folder, id: u64) {
        match fs::remove_dir_all(folder.place(id)) {
            Ok(()) => log::info!("{}: what was deleted {} goes", tree.display(), moment(id)),
            Err(error) => log::warn!("{}: the trash of {}: {error}", tree.display(), moment(id)),
        }
        self.bytes.remove(&(tree.to_owned(), id));
    }

    /// What has to go for its age or its size, the oldest first.
    fn surplus(
        &mut self,
        settings: &Settings,
        tree: &Path,
        folder: &Folder,
        now: SystemTime,
    ) -> Vec<u64> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = |id: u64| now.saturating_sub(Duration::from_millis(id));
        let sizes: Vec<(u64, u64)> = folder
            .ids()
            .into_iter()
            .map(|id| (id, self.size(tree, folder, id, age(id))))
            .collect();
        let mut all: u64 = sizes.iter().map(|(_, bytes)| bytes).sum();
        let mut gone = Vec::new();
        for (id, bytes) in sizes {
            let old = !self.jumped && age(id) > settings.sync.trash_age;
            let much = all > settings.sync.trash_bytes && (self.jumped || age(id) > YOUNG);
            if old || much {
                all = all.saturating_sub(bytes);
                gone.push(id);
            }
        }
        gone
    }

    fn size(&mut self, tree: &Path, folder: &Folder, id: u64, age: Duration) -> u64 {
        let known = (tree.to_owned(), id);
        if let Some(bytes) = self.bytes.get(&known) {
            return *bytes;
        }
        let bytes = folder.kept(id, tree).bytes;
        if age > CLOSED {
            self.bytes.insert(known, bytes);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(directory: &Path) -> (Settings, PathBuf, OwnedFd) {
        let root = directory.join("srv/tree");
        fs::create_dir_all(root.join(OWN)).unwrap();
        let text = format!(
            "[cluster]\nvip = \"192.0.2.9\"\n\
             [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"192.0.2.2\"\n\
             [sync]\ntrash_days = 7\ntrash_mib = 1\n[[sync.tree]]\npath = \"{}\"\n",
            root.display()
        );
        let settings = settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap();
        let fd = OwnedFd::from(fs::File::open(&root).unwrap());
        (settings, root, fd)
    }

    fn aside(path: &str, kind: Kind) -> Aside {
        Aside {
            path: path.into(),
            kind,
        }
    }

    fn aside_at(fd: &OwnedFd, names: &[Aside], now: SystemTime) -> io::Result<()> {
        set_aside(fd, names, &[], now, &mut || Ok(()))
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn what_goes_and_what_gives_way_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, root, fd) = tree(directory.path());
        fs::create_dir_all(root.join("photos/2026")).unwrap();
        fs::write(root.join("photos/2026/one"), "1").unwrap();
        fs::create_dir(root.join("page")).unwrap();
        fs::write(root.join("page/below"), "2").unwrap();
        fs::write(root.join("stays"), "3").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let now = SystemTime::now();
        let names = [
            aside("photos", Kind::Nothing),
            aside("photos/2026/one", Kind::Nothing),
            aside("page", Kind::File),
            aside("stays", Kind::File),
            aside("link/passwd", Kind::Nothing),
            aside("never/was", Kind::Nothing),
        ];
        aside_at(&fd, &names, now).unwrap();
        assert!(!root.join("photos").exists() && !root.join("page").exists());
        assert!(root.join("stays").exists() && root.join("link").is_symlink());
        let kept = list(&settings);
        assert_eq!((kept.len(), kept[0].files), (1, 2));
        let folder = Folder::open(&root).unwrap();
        let place = folder.place(kept[0].id);
        assert_eq!(
            fs::read_to_string(place.join("photos/2026/one")).unwrap(),
            "1"
        );
        assert_eq!(fs::read_to_string(place.join("page/below")).unwrap(), "2");
        // What goes again within the minute has another place, and so has what was a directory before.
        fs::create_dir_all(root.join("photos/2026")).unwrap();
        fs::write(root.join("photos/2026/later"), "4").unwrap();
        aside_at(&fd, &[aside("photos", Kind::Nothing)], now).unwrap();
        assert_eq!(
            fs::read_to_string(place.join("photos/2026/later")).unwrap(),
            "4"
        );
        assert_eq!(fs::read_dir(root.join("photos/2026")).unwrap().count(), 0);
        fs::remove_dir_all(root.join("photos")).unwrap();
        fs::write(root.join("photos"), "5").unwrap();
        let names = [
            aside("photos", Kind::Nothing),
            aside("stays", Kind::Nothing),
        ];
        aside_at(&fd, &names, now).unwrap();
        let kept: Vec<u64> = list(&settings).iter().map(|kept| kept.files).collect();
        assert_eq!(kept, [4, 1]);
    }

    #[test]
    fn nothing_leaves_the_tree() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, root, fd) = tree(directory.path());
        for path in ["../srv", "", "a//b", "./a", ".keepalived-companion/trash"] {
            let failed = aside_at(&fd, &[aside(path, Kind::Nothing)], SystemTime::now());
            assert!(failed.is_err(), "{path}");
        }
        assert!(root.join(OWN).exists());
        assert!(list(&settings).is_empty());
    }

    #[test]
    fn one_that_cannot_be_kept_does_not_keep_the_others_from_it() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, root, fd) = tree(directory.path());
        fs::create_dir_all(root.join("media/mounted")).unwrap();
        fs::write(root.join("page"), "x").unwrap();
        let names = [aside("media", Kind::Nothing), aside("page", Kind::Nothing)];
        let mounts = [root::any_mount(&root, "media/mounted")];
        let now = SystemTime::now();
        let failed = set_aside(&fd, &names, &mounts, now, &mut || Ok(()));
        assert!(failed.is_err());
        assert!(root.join("media/mounted").exists() && !root.join("page").exists());
        assert_eq!(list(&settings).len(), 1);
        // Somebody else may send by now.
        fs::write(root.join("page"), "later").unwrap();
        let stop = &mut || Err(io::ErrorKind::Interrupted.into());
        set_aside(&fd, &names[1..], &[], now, stop).unwrap_err();
        assert!(root.join("page").exists());
    }

    #[test]
    fn a_trash_that_is_not_roots_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, root, fd) = tree(directory.path());
        let precious = directory.path().join("precious");
        fs::create_dir_all(precious.join("3")).unwrap();
        std::os::unix::fs::symlink(&precious, root::own(&root, TRASH)).unwrap();
        Purger::default().purge(&settings, SystemTime::now(), Instant::now());
        assert!(precious.join("3").exists());
        assert!(list(&settings).is_empty());
        fs::write(root.join("page"), "x").unwrap();
        aside_at(&fd, &[aside("page", Kind::Nothing)], SystemTime::now()).unwrap_err();
        fs::remove_file(root::own(&root, TRASH)).unwrap();
        fs::create_dir_all(root::own(&root, TRASH).join("3")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(root.join(OWN), mode).unwrap();
        Purger::default().purge(&settings, SystemTime::now(), Instant::now());
        assert!(root::own(&root, TRASH).join("3").exists());
    }

    #[test]
    fn it_goes_by_its_age_and_its_size_but_not_by_a_clock_that_was_set() {
        let directory = tempfile::tempdir().unwrap();
        let (settings, root, fd) = tree(directory.path());
        let now = SystemTime::now();
        for (days, bytes) in [(8, 10), (3, 900_000), (2, 900_000), (0, 900_000)] {
            fs::write(root.join("file"), vec![b'x'; bytes]).unwrap();
            aside_at(&fd, &[aside("file", Kind::Nothing)], now - DAY * days).unwrap();
        }
        let at = Instant::now();
        let mut purger = Purger::default();
        purger.purge(&settings, now, at);
        // 8 days are too old, and the older two of what is too much go; what is young stays.
        assert_eq!(list(&settings).len(), 1);
        let mut set = Purger::default();
        set.purge(&settings, now, at);
        set.purge(&settings, now + DAY * 400, at + PURGES);
        assert_eq!(list(&settings).len(), 1);
        // Days have really passed.
        purger.purge(&settings, now + DAY * 8, at + DAY * 8);
        assert!(list(&settings).is_empty());
    }
}
