//! Keepalived's track files: `standby` (1 = FAULT on purpose) and `entitled` (1 = primary with the VIP).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use settings::Settings;

/// A track file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; Keepalived reads the old value")]
pub struct TrackError {
    path: PathBuf,
    source: io::Error,
}

/// Leaves the VIP to the others, or takes part again.
pub fn set_standby(settings: &Settings, on: bool) -> Result<(), TrackError> {
    set(&settings.paths.run.join("standby"), on)
}

/// Whether this node has left the VIP to the others.
pub fn standby(settings: &Settings) -> bool {
    fs::read_to_string(settings.paths.run.join("standby")).is_ok_and(|text| text.trim() == "1")
}

/// For how long this node has left the VIP to the others; none where it has not.
pub fn standby_age(settings: &Settings) -> Option<Duration> {
    let path = settings.paths.run.join("standby");
    let written = fs::metadata(path).and_then(|file| file.modified()).ok()?;
    standby(settings).then(|| written.elapsed().unwrap_or_default())
}

/// Waits until the VIP is here, or is not; whether it is so within the time.
pub fn await_vip(settings: &Settings, here: bool, limit: Duration) -> bool {
    let start = Instant::now();
    while observe::vip_present(settings) != here {
        if start.elapsed() > limit {
            return false;
        }
        // The interval between two looks at the interface.
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Tells VRRP which node is the entitled primary.
pub fn set_entitled(settings: &Settings, on: bool) -> Result<(), TrackError> {
    set(&settings.paths.run.join("entitled"), on)
}

/// Keepalived watches the file itself, so it is rewritten in place and only when it changes.
fn set(path: &Path, on: bool) -> Result<(), TrackError> {
    let text = if on { "1\n" } else { "0\n" };
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|source| TrackError {
        path: path.to_owned(),
        source,
    })
}
