//! `hook-sequence` in the run directory: raised by each hook of Keepalived, so that an audit that runs already
//! looks once more.

use std::path::PathBuf;

use settings::Settings;

use crate::{Durability, FileError, read_text, replace};

fn file(settings: &Settings) -> PathBuf {
    settings.paths.run.join("hook-sequence")
}

/// What the last hook wrote, to be compared only; none before the first one.
pub fn read(settings: &Settings) -> Option<String> {
    read_text(&file(settings)).ok().flatten()
}

/// Raises it; `uptime_seconds` is the present moment, in seconds since boot.
pub fn raise(settings: &Settings, uptime_seconds: f64) -> Result<(), FileError> {
    // Two hooks at once write two different texts; the reader only compares.
    let text = format!("{uptime_seconds} {}", std::process::id());
    replace(&file(settings), 0o644, text.as_bytes(), Durability::Visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hook_changes_it() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(read(&settings), None);
        raise(&settings, 1.5).unwrap();
        let first = read(&settings);
        assert!(first.is_some());
        raise(&settings, 1.501).unwrap();
        assert_ne!(read(&settings), first);
    }
}
