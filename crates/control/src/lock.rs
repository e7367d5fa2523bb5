//! Locks held by an open file, so they go when the tool dies. The role lock: one a node.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use settings::Settings;

/// Held as long as the value lives.
#[derive(Debug)]
pub struct RoleLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Someone else has it.
    #[error("another role change holds {path}; wait for it, or see who: fuser -v {path}")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("{path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl RoleLock {
    /// Takes this node's role lock, waiting at most `patience`.
    pub fn take(settings: &Settings, patience: Duration) -> Result<Self, LockError> {
        let path = settings.paths.run.join("role.lock");
        match exclusive(&path, patience) {
            Ok(Some(file)) => Ok(Self { _file: file }),
            Ok(None) => Err(LockError::Busy { path }),
            Err(source) => Err(LockError::Io { path, source }),
        }
    }
}

/// The file with an exclusive lock on it; none when others hold it for all of `patience`.
pub fn exclusive(path: &Path, patience: Duration) -> io::Result<Option<File>> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let start = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if start.elapsed() >= patience {
            return Ok(None);
        }
        // flock has no time limit of its own; this is the interval of asking again.
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_lock_keeps_an_exclusive_one_out_until_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/receive.lock");
        assert!(exclusive(&path, Duration::ZERO).unwrap().is_some());
        let receiver = File::open(&path).unwrap();
        flock(&receiver, FlockOperation::LockShared).unwrap();
        assert!(
            exclusive(&path, Duration::from_millis(20))
                .unwrap()
                .is_none()
        );
        drop(receiver);
        assert!(exclusive(&path, Duration::ZERO).unwrap().is_some());
    }
}
