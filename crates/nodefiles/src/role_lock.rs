//! `role.lock` in the run directory: held by whatever changes a role on this node, one at a time.

use std::path::PathBuf;
use std::time::Duration;

use settings::Settings;

use crate::{FileError, Lock, Sharing, Wait};

/// Held as long as the value lives.
#[derive(Debug)]
pub struct RoleLock {
    _lock: Lock,
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
    #[error(transparent)]
    Io(#[from] FileError),
}

fn file(settings: &Settings) -> PathBuf {
    settings.paths.run.join("role.lock")
}

impl RoleLock {
    /// Takes this node's role lock, waiting at most `patience`.
    pub fn take(settings: &Settings, patience: Duration) -> Result<Self, LockError> {
        let path = file(settings);
        match Lock::take(&path, Sharing::Exclusive, Wait::AtMost(patience))? {
            Some(lock) => Ok(Self { _lock: lock }),
            None => Err(LockError::Busy { path }),
        }
    }
}

/// Whether a role change is in progress here.
pub fn is_held(settings: &Settings) -> Result<bool, FileError> {
    Lock::is_held(&file(settings))
}
