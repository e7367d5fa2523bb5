//! The operator's flag, in the state directory: it outlives a boot.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use settings::Settings;

#[derive(Debug, Deserialize)]
struct MaintenanceFile {
    /// Seconds of the wall clock, as a person gave it.
    until: f64,
}

/// Where the flag is.
pub fn maintenance_file(settings: &Settings) -> PathBuf {
    settings.paths.state.join("maintenance.json")
}

/// Why the operator's maintenance flag forbids repairs and automatic role changes; none when it is not set or has expired.
/// A flag that cannot be read counts as set: to leave things alone is the careful side.
pub fn maintenance(settings: &Settings) -> Option<String> {
    let path = maintenance_file(settings);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("{}: {error}", path.display())),
    };
    let until = match serde_json::from_str::<MaintenanceFile>(&text) {
        Ok(file) => file.until,
        Err(error) => return Some(format!("{}: damaged: {error}", path.display())),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64();
    (now < until).then(|| "maintenance is on".to_owned())
}
