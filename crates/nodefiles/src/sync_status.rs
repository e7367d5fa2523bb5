//! `sync.json` in the run directory: what sync-realtime says of itself. It is written by it alone, and read
//! by the checks, the web application and people.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// How the synchronisation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncState {
    /// The watches do not stand yet, or a standby is not known to be complete yet.
    Starting,
    /// Every standby has everything.
    InSync,
    /// Something is not sent yet.
    Behind,
    /// Nothing is sent until a person has looked: `reason` says why and what to do.
    Held,
    /// It works with less than it should have: `reason` says what is missing.
    Degraded,
    /// Another node is the active one: waits, and protects what it receives.
    Standby,
}

/// How one standby is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandbyState {
    /// Not reached yet since the start.
    Connecting,
    /// It is being compared, or filled for the first time.
    Filling,
    /// It has everything.
    InSync,
    /// Something is not sent yet.
    Behind,
    /// It cannot be reached.
    Unreachable,
    /// It answers and does not take files: `reason` says why.
    Refusing,
}

/// Everything, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// The node's name.
    pub node: String,
    /// When this was written, in seconds since boot: the heartbeat, at least every 2 s.
    pub at: f64,
    /// The process.
    pub pid: u32,
    /// How it is.
    pub state: SyncState,
    /// Why it is held or degraded, and the next step.
    pub reason: Option<String>,
    /// The epoch that is served or followed.
    pub epoch: u64,
    /// Paths not sent to the standby that lacks most.
    pub paths_behind: u64,
    /// Their bytes, as far as they were looked at.
    pub bytes_behind: u64,
    /// Age of the oldest change that is not sent, in seconds.
    pub oldest_unsent_seconds: Option<f64>,
    /// When a standby last had everything, in seconds since 1970.
    pub last_acknowledged: Option<f64>,
    /// Directories that are watched.
    #[serde(default)]
    pub watches: u64,
    /// How often the kernel's queue overflowed since the start.
    #[serde(default)]
    pub overflows: u64,
    /// Tries that failed since the start.
    #[serde(default)]
    pub retries: u64,
    /// The trees.
    pub trees: Vec<TreeStatus>,
    /// The standbys; empty on a standby.
    pub standbys: Vec<StandbyStatus>,
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStatus {
    /// Its directory.
    pub path: PathBuf,
    /// Directories that are watched.
    #[serde(default)]
    pub watches: u64,
    /// Directories that cannot be watched and are polled.
    pub polled: u64,
    /// Files, about.
    pub files: u64,
}

/// One standby.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// The node.
    pub name: String,
    /// How it is served.
    pub state: StandbyState,
    /// Why it is not in sync.
    pub reason: Option<String>,
    /// Paths not sent.
    pub paths_behind: u64,
    /// Their bytes, as far as they were looked at.
    pub bytes_behind: u64,
    /// Age of the oldest change that is not sent, in seconds.
    pub oldest_unsent_seconds: Option<f64>,
    /// How far a first synchronisation is, in words, with the time left.
    #[serde(default)]
    pub progress: Option<String>,
    /// When it last had everything, in seconds since 1970.
    pub last_acknowledged: Option<f64>,
    /// Tries that failed since the start.
    #[serde(default)]
    pub retries: u64,
    /// Paths that it could not take.
    pub quarantined: Vec<Quarantined>,
}

/// A path that cannot be sent for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// What rsync said.
    pub reason: String,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<SyncStatus> {
    JsonFile::volatile(settings.paths.run.join("sync.json"), 1)
}

/// The last status; none when there is no readable one.
pub fn read(settings: &Settings) -> Option<SyncStatus> {
    file(settings).read().ok().flatten()
}

/// Where sync-realtime listens: one request a connection, a line each way. Members of
/// `sync.socket_group` may say `wait PATH`; root may say `probe`, `seal MS`, `unseal`, `release`.
pub fn socket(settings: &Settings) -> PathBuf {
    settings.paths.run.join("sync.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let status = SyncStatus {
            node: "a".to_owned(),
            at: 12.5,
            pid: 7,
            state: SyncState::InSync,
            reason: None,
            epoch: 3,
            paths_behind: 0,
            bytes_behind: 0,
            oldest_unsent_seconds: None,
            last_acknowledged: None,
            watches: 0,
            overflows: 0,
            retries: 0,
            trees: Vec::new(),
            standbys: Vec::new(),
        };
        crate::testing::assert_form(
            &file,
            &status,
            r#"{"version":1,"node":"a","at":12.5,"pid":7,"state":"in-sync","reason":null,"epoch":3,"paths_behind":0,"bytes_behind":0,"oldest_unsent_seconds":null,"last_acknowledged":null,"watches":0,"overflows":0,"retries":0,"trees":[],"standbys":[]}"#,
            &[
                r#"{"node":"a","at":12.5,"pid":7,"state":"in-sync","reason":null,"epoch":3,"paths_behind":0,"bytes_behind":0,"oldest_unsent_seconds":null,"last_acknowledged":null,"watches":0,"overflows":0,"retries":0,"trees":[],"standbys":[]}"#,
            ],
        );
    }
}
