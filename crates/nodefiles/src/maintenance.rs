//! `maintenance.json` in the state directory: the operator's flag, which outlives a boot.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};
use settings::Settings;

use crate::{FileError, JsonFile};

/// Until when a person works here.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Seconds of the wall clock since 1970, as a person gave it.
    #[serde(serialize_with = "whole_seconds")]
    pub until: f64,
}

/// Programs of version 0 read nothing else.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn whole_seconds<S: Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let since_1970 = Duration::try_from_secs_f64(*seconds).map_err(serde::ser::Error::custom)?;
    serializer.serialize_u64(since_1970.as_secs())
}

/// The file. Any account may read it: a flag that cannot be read counts as set.
pub fn file(settings: &Settings) -> JsonFile<Maintenance> {
    JsonFile::durable(settings.paths.state.join("maintenance.json"), 1).public()
}

/// The longest time for which the flag is set.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the operator's maintenance flag forbids repairs and automatic role changes; none when it is not set or has expired.
/// A flag that cannot be read counts as set: to leave things alone is the careful side.
pub fn forbids(settings: &Settings) -> Option<String> {
    let until = match file(settings).read() {
        Ok(flag) => flag?.until,
        Err(_) => return unread(settings).map(|error| error.to_string()),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64();
    (now < until).then(|| "maintenance is on".to_owned())
}

/// Why the flag cannot be read, as long as it might be set: it was written no longer ago than it may be set for.
pub fn unread(settings: &Settings) -> Option<FileError> {
    let file = file(settings);
    let error = file.read().err()?;
    let age = fs::metadata(file.path())
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| modified.elapsed().ok());
    age.is_none_or(|age| age < LONGEST).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let flag = Maintenance {
            until: 1_800_000_000.0,
        };
        crate::testing::assert_form(
            &file,
            &flag,
            r#"{"version":1,"until":1800000000}"#,
            &[r#"{"until":1800000000}"#, r#"{"until": 1800000000.0}"#],
        );
    }

    #[test]
    fn a_flag_that_cannot_be_read_counts_as_set() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(forbids(&settings), None);
        for (until, on) in [(1.0, false), (4e9, true)] {
            file(&settings).replace(&Maintenance { until }).unwrap();
            assert_eq!(forbids(&settings).is_some(), on);
        }
        fs::write(file(&settings).path(), "soon").unwrap();
        let why = forbids(&settings).unwrap();
        assert!(why.contains("maintenance.json: damaged"), "{why}");
        // No flag is set for longer, so this one is over, whatever it said.
        let old = SystemTime::now() - LONGEST;
        fs::File::options()
            .append(true)
            .open(file(&settings).path())
            .and_then(|file| file.set_modified(old))
            .unwrap();
        assert_eq!(forbids(&settings), None);
    }
}
