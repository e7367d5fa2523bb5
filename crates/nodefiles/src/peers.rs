//! `peers.json` in the run directory: the audit's verdicts on the peers, for the checks.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// The verdicts and their moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerVerdicts {
    /// When they were made, in seconds since boot.
    pub at: f64,
    /// The boot that this counts from; moments of two boots cannot be compared.
    pub boot_id: String,
    /// One for each peer.
    pub peers: Vec<PeerVerdict>,
}

/// Whether a peer may hold the VIP, as far as its database tells from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerVerdict {
    /// The peer.
    pub name: String,
    /// Whether it may.
    pub fit: bool,
    /// The reason, for a person.
    pub why: String,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<PeerVerdicts> {
    JsonFile::volatile(settings.paths.run.join("peers.json"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let verdicts = PeerVerdicts {
            at: 12.5,
            boot_id: "b".to_owned(),
            peers: vec![PeerVerdict {
                name: "b".to_owned(),
                fit: false,
                why: "stale".to_owned(),
            }],
        };
        crate::testing::assert_form(
            &file,
            &verdicts,
            r#"{"version":1,"at":12.5,"boot_id":"b","peers":[{"name":"b","fit":false,"why":"stale"}]}"#,
            &[r#"{"at":12.5,"boot_id":"b","peers":[{"name":"b","fit":false,"why":"stale"}]}"#],
        );
    }
}
