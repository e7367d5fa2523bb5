//! `fitness.json` in the run directory: the audit's verdict on this node, for the checks.

use role::Fitness;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// A verdict and its moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnVerdict {
    /// When it was made, in seconds since boot.
    pub at: f64,
    /// The boot that this counts from; moments of two boots cannot be compared.
    pub boot_id: String,
    /// Whether this node may hold the VIP.
    pub fitness: Fitness,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<OwnVerdict> {
    JsonFile::volatile(settings.paths.run.join("fitness.json"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let verdict = OwnVerdict {
            at: 12.5,
            boot_id: "b".to_owned(),
            fitness: Fitness::Unfit("stale".to_owned()),
        };
        crate::testing::assert_form(
            &file,
            &verdict,
            r#"{"version":1,"at":12.5,"boot_id":"b","fitness":{"verdict":"unfit","why":"stale"}}"#,
            &[r#"{"at":12.5,"boot_id":"b","fitness":{"verdict":"unfit","why":"stale"}}"#],
        );
    }
}
