//! `epoch.json` in the state directory: the highest epoch that this node has ever seen.
//!
//! The release before reads the number alone in `highest-epoch`, where one that is cut off is a number as well. It is
//! still written, for a node that goes back to that release.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::{Durability, FileError, JsonFile, read_text, replace};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Highest {
    epoch: u64,
}

fn file(settings: &Settings) -> JsonFile<Highest> {
    JsonFile::durable(settings.paths.state.join("epoch.json"), 1)
}

fn file_before(settings: &Settings) -> PathBuf {
    settings.paths.state.join("highest-epoch")
}

/// The highest epoch; 0 when none was seen yet. A damaged file is an error, because guessing an epoch could
/// open old data.
pub fn read(settings: &Settings) -> Result<u64, FileError> {
    if let Some(highest) = file(settings).read()? {
        return Ok(highest.epoch);
    }
    let path = file_before(settings);
    let Some(text) = read_text(&path)? else {
        return Ok(0);
    };
    let text = text.trim();
    text.parse()
        .map_err(|_| FileError::damaged(&path, &format!("`{text}` is not a number")))
}

/// Writes a higher one. It is on the disk when this returns.
pub fn write(settings: &Settings, epoch: u64) -> Result<(), FileError> {
    file(settings).replace(&Highest { epoch })?;
    let text = epoch.to_string();
    replace(
        &file_before(settings),
        0o600,
        text.as_bytes(),
        Durability::OnDisk,
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_damaged_epoch_is_never_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(read(&settings).unwrap(), 0);
        write(&settings, 17).unwrap();
        assert_eq!(read(&settings).unwrap(), 17);
        let whole = fs::read(file(&settings).path()).unwrap();
        for length in 0..whole.len() {
            fs::write(file(&settings).path(), &whole[..length]).unwrap();
            let error = read(&settings).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn the_file_of_the_release_before_is_read_until_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        fs::create_dir_all(&settings.paths.state).unwrap();
        fs::write(file_before(&settings), "8\n").unwrap();
        assert_eq!(read(&settings).unwrap(), 8);
        for damaged in ["", "seven", "-1", "7 8", "18446744073709551616"] {
            fs::write(file_before(&settings), damaged).unwrap();
            let error = read(&settings).unwrap_err();
            assert!(matches!(error, FileError::Damaged { .. }), "{error}");
        }
        write(&settings, 9).unwrap();
        assert_eq!(read(&settings).unwrap(), 9);
        assert_eq!(fs::read(file_before(&settings)).unwrap(), b"9");
    }

    #[test]
    fn the_form_is_that_of_every_version() {
        crate::testing::assert_form(
            &file,
            &Highest { epoch: 7 },
            r#"{"version":1,"epoch":7}"#,
            &[],
        );
    }
}
