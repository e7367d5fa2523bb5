//! `alone.json` in the state directory: since when this node, a primary, acknowledges commits without a replica.
//! It is on the disk before the first of them.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// Since when, and at which epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// By the wall clock, in words.
    pub since: String,
    /// The epoch that this node had opened.
    pub epoch: u64,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<Alone> {
    JsonFile::durable(settings.paths.state.join("alone.json"), 1)
        .public()
        .or_in(&settings.paths.run)
}

/// The epoch at which this node acknowledges alone. What cannot be read says nothing: then the careful side is
/// that a peer may have everything.
pub fn epoch(settings: &Settings) -> Option<u64> {
    file(settings)
        .read()
        .ok()
        .flatten()
        .map(|alone| alone.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let alone = Alone {
            since: "2026-11-27 03:12:09".to_owned(),
            epoch: 7,
        };
        crate::testing::assert_form(
            &file,
            &alone,
            r#"{"version":1,"since":"2026-11-27 03:12:09","epoch":7}"#,
            &[],
        );
    }

    #[test]
    fn a_damaged_note_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(epoch(&settings), None);
        std::fs::create_dir_all(&settings.paths.state).unwrap();
        std::fs::write(file(&settings).path(), "{\"epoch\":7").unwrap();
        assert_eq!(epoch(&settings), None);
    }
}
