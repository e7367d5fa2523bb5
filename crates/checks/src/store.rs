//! What a check keeps from run to run: small JSON files in the run directory.

use std::io;
use std::path::Path;

use nodefiles::{FileError, JsonFile};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Of the form of every file of a check.
const VERSION: u32 = 1;

/// A file of a check.
pub(crate) fn file<T>(path: &Path) -> JsonFile<T> {
    JsonFile::volatile(path.to_owned(), VERSION)
}

/// Reads a file; one that is missing, unreadable or damaged is no file.
pub(crate) fn read<T: DeserializeOwned>(file: &JsonFile<T>) -> Option<T> {
    match file.read() {
        Ok(value) => value,
        Err(error) => {
            log::warn!("ignored: {error}");
            None
        }
    }
}

/// Replaces a file, so that a reader sees the old or the new one whole. Its directory is made.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    file(path).replace(value).map_err(reason)
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    nodefiles::remove(path).map(drop).map_err(reason)
}

/// Without the path, which the callers tell.
fn reason(error: FileError) -> io::Error {
    match error {
        FileError::Io { source, .. } => source,
        FileError::Damaged { detail, .. } => io::Error::other(detail),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    #[test]
    fn missing_and_damaged_are_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let state = BTreeMap::from([("a".to_owned(), 1)]);
        let read = || read::<BTreeMap<String, u8>>(&file(&path));
        assert_eq!(read(), None);
        fs::write(&path, "[1,").unwrap();
        assert_eq!(read(), None);
        write(&path, &state).unwrap();
        assert_eq!(read().map(|found| found["a"]), Some(1));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(), None);
    }
}
