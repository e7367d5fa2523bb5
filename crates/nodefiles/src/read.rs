//! One small file read whole: missing, unreadable, or damaged.

use std::fs;
use std::io;
use std::path::Path;

use crate::FileError;

/// Its bytes; none when there is no file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io(path)(error)),
    }
}

/// Its text; none when there is no file. One that is not UTF-8 is damaged.
pub fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    let text = read(path)?.map(String::from_utf8).transpose();
    text.map_err(|error| FileError::damaged(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_missing_unreadable_or_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        assert_eq!(read_text(&path).unwrap(), None);
        fs::write(&path, "7\n").unwrap();
        assert_eq!(read_text(&path).unwrap().as_deref(), Some("7\n"));
        fs::write(&path, b"\xff").unwrap();
        let damaged = read_text(&path).unwrap_err();
        assert!(matches!(damaged, FileError::Damaged { .. }), "{damaged}");
        let unreadable = read_text(directory.path()).unwrap_err();
        assert!(matches!(unreadable, FileError::Io { .. }), "{unreadable}");
    }
}
