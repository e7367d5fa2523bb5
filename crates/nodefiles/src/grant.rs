//! `grant.json` in the state directory: the node that was given the right to write, by its name.
//!
//! The release before reads the name alone in `granted-to`, and nothing for nobody: what a damaged disk leaves, too. It
//! is still written, for a node that goes back to that release.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::{Durability, FileError, JsonFile, read_text, replace};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    /// None when the right to write is this node's.
    to: Option<String>,
}

fn file(settings: &Settings) -> JsonFile<Grant> {
    JsonFile::durable(settings.paths.state.join("grant.json"), 1)
}

fn file_before(settings: &Settings) -> PathBuf {
    settings.paths.state.join("granted-to")
}

/// The node; none when the right to write is this one's.
pub fn read(settings: &Settings) -> Result<Option<String>, FileError> {
    if let Some(grant) = file(settings).read()? {
        return Ok(grant.to);
    }
    let name = read_text(&file_before(settings))?.map(|text| text.trim().to_owned());
    Ok(name.filter(|name| !name.is_empty()))
}

/// Writes down that the right to write went to another node, or came back. It is on the disk when this returns.
pub fn write(settings: &Settings, to: Option<&str>) -> Result<(), FileError> {
    let name = to.unwrap_or_default();
    let to = to.map(str::to_owned);
    file(settings).replace(&Grant { to })?;
    replace(
        &file_before(settings),
        0o600,
        name.as_bytes(),
        Durability::OnDisk,
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_grant_is_kept_and_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(read(&settings).unwrap(), None);
        write(&settings, Some("b")).unwrap();
        assert_eq!(read(&settings).unwrap().as_deref(), Some("b"));
        let whole = fs::read(file(&settings).path()).unwrap();
        for length in 0..whole.len() {
            fs::write(file(&settings).path(), &whole[..length]).unwrap();
            let error = read(&settings).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "{error}");
        }
        write(&settings, None).unwrap();
        assert_eq!(read(&settings).unwrap(), None);
    }

    #[test]
    fn the_file_of_the_release_before_is_read_until_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        fs::create_dir_all(&settings.paths.state).unwrap();
        fs::write(file_before(&settings), "b").unwrap();
        assert_eq!(read(&settings).unwrap().as_deref(), Some("b"));
        write(&settings, None).unwrap();
        assert_eq!(read(&settings).unwrap(), None);
        assert_eq!(fs::read(file_before(&settings)).unwrap(), b"");
    }

    #[test]
    fn the_form_is_that_of_every_version() {
        let grant = Grant {
            to: Some("b".to_owned()),
        };
        crate::testing::assert_form(&file, &grant, r#"{"version":1,"to":"b"}"#, &[]);
    }
}
