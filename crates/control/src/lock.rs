//! The role lock: one a node, held by an open file, so it goes when the tool dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
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
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&settings.paths.run).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            if start.elapsed() >= patience {
                return Err(LockError::Busy { path });
            }
            // flock has no time limit of its own; this is the interval of asking again.
            thread::sleep(Duration::from_millis(10));
        }
    }
}
