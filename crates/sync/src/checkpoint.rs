//! Up to when a standby is known to have everything: what a restart of the service goes on from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodefiles::{FileError, JsonFile};
use serde::{Deserialize, Serialize};
use settings::Settings;

/// Times of files are those of the kernel's last tick, and the clock is read a moment later.
const MARGIN: Duration = Duration::from_secs(2);
/// A clock that was set by more than this since makes the times of files worthless.
const CLOCK_SLACK: f64 = 0.5;
/// With more unsent paths than this the next start compares instead.
const MOST_PENDING: usize = 1000;

/// The state of one standby at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The epoch that was served.
    pub epoch: u64,
    /// This boot of this node: after another one the standby is compared.
    pub boot_id: String,
    /// The name of the standby's complete state.
    pub token: String,
    /// The settings that it is complete by: with other owners or exclusions it lacks something.
    trees: String,
    /// Every change before this moment was acknowledged, in seconds since 1970 ...
    at: f64,
    /// ... on a clock that was so far ahead of the time since boot, in seconds.
    clock_offset: f64,
    /// Except for these paths (tree, path), which were set aside.
    pub pending: Vec<(u16, Vec<u8>)>,
}

fn file(settings: &Settings, standby: &str) -> JsonFile<Checkpoint> {
    let name = format!("sync-checkpoint-{standby}.json");
    JsonFile::volatile(settings.paths.run.join(name), 1).private()
}

fn trees(settings: &Settings) -> String {
    let trees = settings.sync.trees.iter();
    let told: Vec<_> = trees
        .map(|tree| (&tree.path, &tree.owner, &tree.exclude))
        .collect();
    format!("{told:?}")
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Seconds since 1970.
pub fn wall_clock() -> f64 {
    seconds(SystemTime::now())
}

fn clock() -> (f64, f64) {
    let wall = wall_clock();
    (wall, wall - observe::uptime_seconds())
}

impl Checkpoint {
    /// Everything until a moment was acknowledged; none when too much is set aside to be listed.
    pub fn new(
        settings: &Settings,
        epoch: u64,
        token: &str,
        until: SystemTime,
        pending: Vec<(u16, Vec<u8>)>,
    ) -> Option<Self> {
        let (_, clock_offset) = clock();
        (pending.len() <= MOST_PENDING).then(|| Self {
            epoch,
            boot_id: observe::boot_id(),
            token: token.to_owned(),
            trees: trees(settings),
            at: seconds(until),
            clock_offset,
            pending,
        })
    }

    /// In the run directory: it is worth nothing after a boot.
    pub fn save(&self, settings: &Settings, standby: &str) -> Result<(), FileError> {
        file(settings, standby).replace(self)
    }

    /// The last one, when a start in this epoch can go on from it.
    pub fn load(settings: &Settings, standby: &str, epoch: u64) -> Option<Self> {
        let checkpoint: Self = match file(settings, standby).read() {
            Ok(checkpoint) => checkpoint?,
            Err(error) => {
                log::warn!("{error}; {standby} is compared instead");
                return None;
            }
        };
        let (now, offset) = clock();
        let usable = checkpoint.trees == trees(settings)
            && checkpoint.usable(epoch, &observe::boot_id(), now, offset);
        usable.then_some(checkpoint)
    }

    /// The next start compares.
    pub fn forget(settings: &Settings, standby: &str) -> Result<(), FileError> {
        file(settings, standby).remove().map(drop)
    }

    fn usable(&self, epoch: u64, boot_id: &str, now: f64, offset: f64) -> bool {
        self.epoch == epoch
            && self.boot_id == boot_id
            && self.at <= now
            && (self.clock_offset - offset).abs() < CLOCK_SLACK
    }

    /// Files and directories with this or a later time of change are looked at.
    pub fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(self.at.max(0.0)).saturating_sub(MARGIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_epoch_boot_and_clock_count() {
        let checkpoint = Checkpoint {
            epoch: 7,
            boot_id: "b".to_owned(),
            token: "t".to_owned(),
            trees: String::new(),
            at: 1000.0,
            clock_offset: 900.0,
            pending: Vec::new(),
        };
        for (epoch, boot, now, offset, usable) in [
            (7, "b", 1010.0, 900.1, true),
            (8, "b", 1010.0, 900.0, false),
            (7, "c", 1010.0, 900.0, false),
            (7, "b", 999.0, 900.0, false),
            // Set back by an hour, and forward.
            (7, "b", 1010.0, -2700.0, false),
            (7, "b", 4610.0, 4500.0, false),
        ] {
            assert_eq!(
                checkpoint.usable(epoch, boot, now, offset),
                usable,
                "{epoch} {boot} {now} {offset}"
            );
        }
        assert_eq!(checkpoint.since(), UNIX_EPOCH + Duration::from_secs(998));
    }

    #[test]
    fn too_much_set_aside_is_no_checkpoint() {
        let settings = crate::settings_in(std::path::Path::new("/nowhere"));
        let with = |pending| {
            Checkpoint::new(
                &settings,
                1,
                "t",
                UNIX_EPOCH,
                vec![(0, Vec::new()); pending],
            )
        };
        assert!(with(1000).is_some());
        assert!(with(1001).is_none());
    }
}
