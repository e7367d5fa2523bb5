//! Keepalived's track files in the run directory: `standby` (1 = FAULT on purpose) and `entitled` (1 = primary
//! with the VIP).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use settings::Settings;

use crate::FileError;

/// A track file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}; Keepalived reads the old value")]
pub struct TrackError(#[from] FileError);

fn standby_file(settings: &Settings) -> PathBuf {
    settings.paths.run.join("standby")
}

/// Leaves the VIP to the others, or takes part again.
pub fn set_standby(settings: &Settings, on: bool) -> Result<(), TrackError> {
    set(&standby_file(settings), on)
}

/// Whether this node has left the VIP to the others.
pub fn standby(settings: &Settings) -> bool {
    fs::read_to_string(standby_file(settings)).is_ok_and(|text| text.trim() == "1")
}

/// For how long this node has left the VIP to the others; none where it has not.
pub fn standby_age(settings: &Settings) -> Option<Duration> {
    let written = fs::metadata(standby_file(settings))
        .and_then(|file| file.modified())
        .ok()?;
    standby(settings).then(|| written.elapsed().unwrap_or_default())
}

/// Tells VRRP which node is the entitled primary.
pub fn set_entitled(settings: &Settings, on: bool) -> Result<(), TrackError> {
    set(&settings.paths.run.join("entitled"), on)
}

/// Keepalived watches the file itself, so it is rewritten in place and only when it changes: a rename would take
/// the watched file away. It is not emptied before: on a full disk it would stay so.
fn set(path: &Path, on: bool) -> Result<(), TrackError> {
    let text = if on { "1\n" } else { "0\n" };
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))
    };
    Ok(write().map_err(FileError::io(path))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_track_file_is_rewritten_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        fs::create_dir_all(&settings.paths.run).unwrap();
        assert!(!standby(&settings));
        set_standby(&settings, false).unwrap();
        let inode = || fs::metadata(standby_file(&settings)).unwrap().ino();
        let first = inode();
        assert_eq!(standby_age(&settings), None);
        set_standby(&settings, true).unwrap();
        assert_eq!(inode(), first);
        assert!(standby(&settings) && standby_age(&settings).is_some());
    }
}
