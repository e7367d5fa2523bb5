//! What this node is, for every program on it: the file `role.json` in the run directory.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use settings::Settings;

/// What a node is to its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// Its database is open for writes: here the data change.
    Active,
    /// Its database is closed: the data come from the active node.
    Standby,
    /// It is becoming the active node: nothing may change its data from outside any more.
    Changing,
}

/// What a node is, and since which epoch. It is made anew after a boot; a missing file means that
/// nothing is known yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleState {
    /// The role.
    pub role: NodeRole,
    /// The highest epoch that this node knows; on the active node its own.
    pub epoch: u64,
    /// When it was written, in seconds since boot.
    pub at: f64,
}

/// Where the file is.
pub fn role_state_file(settings: &Settings) -> PathBuf {
    settings.paths.run.join("role.json")
}

/// This node's role; none when it is not known (yet). The run directory is empty after a boot, so the
/// file is of this one; a boot id in it would not help, since a unit with a /proc of its own may see
/// another one in a container than everybody else does.
pub fn role_state(settings: &Settings) -> Option<RoleState> {
    let text = fs::read(role_state_file(settings)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Names this boot of the machine.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// Seconds since boot; unlike the wall clock it never jumps.
pub fn uptime_seconds() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
    .as_secs_f64()
}
