//! `recovered/` in the state directory: what was taken out of the way and waits for a person. Nothing of it is
//! used any more.

use std::path::PathBuf;

use settings::Settings;

/// What was kept when the primary of this epoch went on: transactions that it never had, and files that it has not,
/// or has otherwise.
pub fn of_epoch(settings: &Settings, epoch: u64) -> PathBuf {
    directory(settings).join(epoch.to_string())
}

/// What was cut off a binlog at a start; `moment` tells one start from another.
pub fn of_start(settings: &Settings, moment: &str) -> PathBuf {
    directory(settings).join(format!("binlog-{moment}"))
}

fn directory(settings: &Settings) -> PathBuf {
    settings.paths.state.join("recovered")
}
