//! The trees that are kept in step, written and looked at from the host: both nodes' files are
//! below one kernel, so one clock does.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use process::Program;

use super::subject::place;
use crate::{LabError, NodeName, at};

/// Files in a directory.
const FILES: usize = 10;
/// Directories in a directory.
const DIRECTORIES: usize = 100;
/// Between two looks at the standby: what the figures are exact to.
const LOOK: Duration = Duration::from_micros(200);

/// Where the planted files are, below a subject's tree.
pub const PLANTED: &str = "bench";
/// Where the measured files appear, below the planted ones.
pub const NEW: &str = "new";
/// A directory that rsync comes to after the planted ones.
const LAST: &str = "zz";

/// The same for every planted file, so that both nodes have the same trees.
fn planting_time() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// Makes a tree of `files` small files, ten in a directory. Files of a smaller tree stay.
pub fn plant(base: &Path, files: usize, owner: (u32, u32)) -> Result<(), LabError> {
    for extra in [NEW, LAST] {
        let extra = base.join(extra);
        fs::create_dir_all(&extra).map_err(at(&extra))?;
    }
    let mut directories = vec![base.to_owned(), base.join(NEW), base.join(LAST)];
    for directory in 0..files.div_ceil(FILES) {
        let (group, path) = planted_directory(base, directory);
        fs::create_dir_all(&path).map_err(at(&path))?;
        for file in 0..FILES.min(files - directory * FILES) {
            let content = format!("planted in {directory}\n");
            plant_file(&path.join(format!("f{file}")), &content, owner)?;
        }
        if directory % DIRECTORIES == 0 {
            directories.push(group);
        }
        directories.push(path);
    }
    // After their files, which change a directory's time.
    for path in directories {
        let opened = File::open(&path).map_err(at(&path))?;
        settle(&opened, owner).map_err(at(&path))?;
    }
    Ok(())
}

/// A planted directory, and the one that it is in.
fn planted_directory(base: &Path, number: usize) -> (PathBuf, PathBuf) {
    let group = base.join(format!("{:03}", number / DIRECTORIES));
    let path = group.join(format!("{:02}", number % DIRECTORIES));
    (group, path)
}

/// The planted files, one of each directory first, so that a part of them is spread.
pub fn planted(base: &Path, files: usize) -> impl Iterator<Item = PathBuf> {
    let directories = files.div_ceil(FILES);
    (0..FILES).flat_map(move |file| {
        (0..directories).map(move |directory| {
            planted_directory(base, directory)
                .1
                .join(format!("f{file}"))
        })
    })
}

fn plant_file(path: &Path, content: &str, owner: (u32, u32)) -> Result<(), LabError> {
    let planted = File::create_new(path).and_then(|mut file| {
        file.write_all(content.as_bytes())?;
        settle(&file, owner)
    });
    match planted {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(at(path)),
    }
}

fn settle(file: &File, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    fchown(file, Some(uid), Some(gid))?;
    file.set_modified(planting_time())
}

/// Writes a file as most programs do: made, written, closed.
pub fn write(path: &Path, content: &[u8]) -> Result<(), LabError> {
    fs::write(path, content).map_err(at(path))
}

/// Waits until the disk has what was written before: it is not part of what is timed next.
pub fn quiet() {
    rustix::fs::sync();
}

/// Removes a directory with everything in it, if it is there.
pub fn remove(path: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(path)(error)),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// How long ext4 takes no inode again that was freed. Until then each new file searches through all
/// of them, and 20,000 new files take 6 s instead of 1.
const FREED: Duration = Duration::from_secs(65);

/// The last time that many files were deleted.
#[derive(Debug, Default)]
pub struct Deletions(Cell<Option<Instant>>);

impl Deletions {
    /// Many files have been deleted just now.
    pub fn happened(&self) {
        self.0.set(Some(Instant::now()));
    }

    /// Waits until new files cost what they usually do.
    pub fn forget(&self) {
        quiet();
        if let Some(last) = self.0.get() {
            std::thread::sleep(FREED.saturating_sub(last.elapsed()));
        }
    }
}

/// Takes something out of a tree without deleting it; it is deleted when all is over.
pub fn put_aside(node: NodeName, path: &Path) -> Result<(), LabError> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let aside = place(node).join("aside");
    fs::create_dir_all(&aside).map_err(at(&aside))?;
    let name = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
    match fs::rename(path, aside.join(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(path)(error)),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Leaves nothing in a node's directory.
pub fn empty(node: NodeName, path: &Path) -> Result<(), LabError> {
    for entry in fs::read_dir(path).map_err(at(path))? {
        put_aside(node, &entry.map_err(at(path))?.path())?;
    }
    Ok(())
}

/// Makes node2's planted tree as node1's is, on the host, while nothing watches.
pub fn equalise(here: &Path, there: &Path) -> Result<(), LabError> {
    for (node, base) in [(NodeName::Node1, here), (NodeName::Node2, there)] {
        let new = base.join(NEW);
        put_aside(node, &new)?;
        fs::create_dir_all(&new).map_err(at(&new))?;
    }
    Program::new("rsync")
        .args(["-a", "--delete"])
        .arg(here.join(""))
        .arg(there.join(""))
        .deadline(Duration::from_secs(120))
        .run()?
        .success()?;
    Ok(())
}

/// Where the sign of life is, below the planted files.
pub fn probe(base: &Path) -> PathBuf {
    base.join(LAST).join("probe")
}

/// Its size; none when there is no such file.
pub fn size(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.len())
}

/// Whether nothing has this name.
pub fn gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Files that are to appear with their whole size. rsync writes under another name first, so one
/// that has its size is complete.
#[derive(Debug, Default)]
pub struct Expected {
    files: Vec<(PathBuf, u64)>,
    seen: usize,
}

impl Expected {
    /// One more file.
    pub fn push(&mut self, path: PathBuf, size: u64) {
        self.files.push((path, size));
    }

    /// Everything below `there` that is below `here` now.
    pub fn like(here: &Path, there: &Path) -> Result<Self, LabError> {
        let mut expected = Self::default();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let path = here.join(&directory);
            for entry in fs::read_dir(&path).map_err(at(&path))? {
                let entry = entry.map_err(at(&path))?;
                let found = entry.metadata().map_err(at(entry.path()))?;
                let below = directory.join(entry.file_name());
                if found.is_dir() {
                    directories.push(below);
                } else {
                    expected.push(there.join(below), found.len());
                }
            }
        }
        Ok(expected)
    }

    /// Whether all are there. One that was seen is not looked at again.
    pub fn complete(&mut self) -> bool {
        while let Some((path, wanted)) = self.files.get(self.seen) {
            if size(path) != Some(*wanted) {
                return false;
            }
            self.seen += 1;
        }
        true
    }

    /// How many are there, and how many there are to be.
    pub fn progress(&self) -> String {
        let there = self
            .files
            .iter()
            .filter(|(path, wanted)| size(path) == Some(*wanted))
            .count();
        format!("{there} of {}", self.files.len())
    }
}

/// Looks again and again until it is true; the seconds since `since`, or none after the limit.
pub fn seconds_until(
    since: Instant,
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> Option<f64> {
    loop {
        if done() {
            return Some(since.elapsed().as_secs_f64());
        }
        if since.elapsed() > limit {
            return None;
        }
        // The interval between two looks at a real condition.
        std::thread::sleep(LOOK);
    }
}
