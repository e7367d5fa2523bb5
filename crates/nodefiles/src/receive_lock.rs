//! `receive.lock` in the run directory: shared by all receivers of files; a promotion waits until it is free.

use std::path::PathBuf;
use std::time::Duration;

use settings::Settings;

use crate::{FileError, Lock, Sharing, Wait};

/// Where the lock is.
pub fn file(settings: &Settings) -> PathBuf {
    settings.paths.run.join("receive.lock")
}

/// For a receiver; none while [`exclude`]d.
pub fn share(settings: &Settings) -> Result<Option<Lock>, FileError> {
    let wait = Wait::AtMost(Duration::ZERO);
    Lock::take(&file(settings), Sharing::Shared, wait)
}

/// Keeps receivers out; none when one does not end within `patience`.
pub fn exclude(settings: &Settings, patience: Duration) -> Result<Option<Lock>, FileError> {
    let wait = Wait::AtMost(patience);
    Lock::take(&file(settings), Sharing::Exclusive, wait)
}
