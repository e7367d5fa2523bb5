//! `met.json` in the run directory: what is known of the peers, until the next boot.

use std::collections::BTreeMap;

use role::LastPrimary;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// What is true only until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootMemory {
    /// By peer name: the peers that answered in this boot, and the last state of one that was the primary.
    pub peers: BTreeMap<String, Option<LastPrimary>>,
    /// This node was the primary in this boot.
    pub was_primary: bool,
    /// By peer name: the version of the conversation between the nodes that it has told.
    pub protocols: BTreeMap<String, u32>,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<BootMemory> {
    JsonFile::volatile(settings.paths.run.join("met.json"), 1).private()
}

/// What is remembered. A file that cannot be read is an empty memory: it is rebuilt within a tick, and an empty one
/// only makes the node more careful.
pub fn read(settings: &Settings) -> BootMemory {
    file(settings).read().ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let last = LastPrimary {
            history: "0-1-7,0-2-9".parse().unwrap(),
            semi_sync: true,
            pledges: true,
        };
        let memory = BootMemory {
            peers: [("b".to_owned(), Some(last)), ("c".to_owned(), None)].into(),
            was_primary: true,
            protocols: [("b".to_owned(), 1)].into(),
        };
        crate::testing::assert_form(
            &file,
            &memory,
            r#"{"version":1,"peers":{"b":{"history":"0-1-7,0-2-9","semi_sync":true,"pledges":true},"c":null},"was_primary":true,"protocols":{"b":1}}"#,
            &[],
        );
        // Before pledges there was no such thing to know, and not known counts as yes.
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let earlier = r#"{"peers":{"b":{"history":"0-1-7,0-2-9","semi_sync":true},"c":null},"was_primary":true}"#;
        fs::create_dir_all(&settings.paths.run).unwrap();
        fs::write(file(&settings).path(), earlier).unwrap();
        let expected = BootMemory {
            protocols: BTreeMap::new(),
            ..memory
        };
        assert_eq!(read(&settings), expected);
    }

    #[test]
    fn a_damaged_memory_is_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let met = BootMemory {
            was_primary: true,
            ..BootMemory::default()
        };
        assert_eq!(read(&settings), BootMemory::default());
        file(&settings).replace(&met).unwrap();
        assert_eq!(read(&settings), met);
        fs::write(file(&settings).path(), r#"{"was_primary":tr"#).unwrap();
        assert_eq!(read(&settings), BootMemory::default());
    }
}
