//! Locks held by an open file, so they go when the program dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use crate::FileError;

/// Who may hold the lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else.
    Exclusive,
    /// Others that share it.
    Shared,
}

/// How long to wait while others hold the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// At most so long; zero tries once.
    AtMost(Duration),
    /// Until they let it go.
    Forever,
}

/// Held as long as the value lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of this file, which is made with its directory; none when others hold it for all of the
    /// time. The file stays: to remove it would let two programs hold two locks of the same name.
    pub fn take(path: &Path, sharing: Sharing, wait: Wait) -> Result<Option<Self>, FileError> {
        let file = match create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
                    .and_then(|()| create(path))
            }
            // To lock it needs no writing: what is read-only is locked all the same.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
            other => other,
        }
        .map_err(FileError::io(path))?;
        let locked = wait_for(&file, sharing, wait).map_err(|e| FileError::io(path)(e.into()))?;
        Ok(locked.then_some(Self { file }))
    }

    /// Whether anybody holds the lock of this file exclusively. It is tried and let go at once; a missing file
    /// is held by nobody.
    pub fn is_held(path: &Path) -> Result<bool, FileError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(FileError::io(path)(error)),
        };
        wait_for(&file, Sharing::Shared, Wait::AtMost(Duration::ZERO))
            .map(|locked| !locked)
            .map_err(|e| FileError::io(path)(e.into()))
    }

    /// Lets programs that are started from now on hold it, too: it goes with the last of them.
    pub fn inherit(&self) -> io::Result<()> {
        Ok(fcntl_setfd(&self.file, FdFlags::empty())?)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// Whether the lock was taken.
fn wait_for(file: &File, sharing: Sharing, wait: Wait) -> Result<bool, Errno> {
    let start = Instant::now();
    loop {
        match flock(file, operation(sharing, wait)) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        match wait {
            Wait::AtMost(patience) if start.elapsed() >= patience => return Ok(false),
            // flock has no time limit of its own; this is the interval of asking again.
            Wait::AtMost(_) => thread::sleep(Duration::from_millis(10)),
            Wait::Forever => {}
        }
    }
}

fn operation(sharing: Sharing, wait: Wait) -> FlockOperation {
    match (sharing, wait) {
        (Sharing::Exclusive, Wait::AtMost(_)) => FlockOperation::NonBlockingLockExclusive,
        (Sharing::Exclusive, Wait::Forever) => FlockOperation::LockExclusive,
        (Sharing::Shared, Wait::AtMost(_)) => FlockOperation::NonBlockingLockShared,
        (Sharing::Shared, Wait::Forever) => FlockOperation::LockShared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Wait = Wait::AtMost(Duration::ZERO);

    #[test]
    fn a_shared_lock_keeps_an_exclusive_one_out_until_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/receive.lock");
        let take = |sharing, wait| Lock::take(&path, sharing, wait).unwrap();
        assert!(take(Sharing::Exclusive, ONCE).is_some());
        let receiver = take(Sharing::Shared, ONCE).unwrap();
        assert!(take(Sharing::Shared, Wait::Forever).is_some());
        let patience = Wait::AtMost(Duration::from_millis(20));
        assert!(take(Sharing::Exclusive, patience).is_none());
        drop(receiver);
        assert!(take(Sharing::Exclusive, Wait::Forever).is_some());
    }

    #[test]
    fn only_an_exclusive_lock_is_seen_and_none_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("role.lock");
        assert!(!Lock::is_held(&path).unwrap());
        assert!(!path.exists());
        let shared = Lock::take(&path, Sharing::Shared, ONCE).unwrap();
        assert!(!Lock::is_held(&path).unwrap());
        drop(shared);
        let _lock = Lock::take(&path, Sharing::Exclusive, ONCE).unwrap();
        assert!(Lock::is_held(&path).unwrap());
    }
}
