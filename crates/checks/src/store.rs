//! Small JSON files in the run directory, replaced whole.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Readable by everyone: a monitoring agent may look. Set on the file, because Keepalived's umask of
/// 0177 would leave 0600.
const MODE: u32 = 0o644;

/// Reads a file; one that is missing, unreadable or damaged is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    match fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                log::warn!("{}: ignored, damaged: {error}", path.display());
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            log::warn!("{}: ignored: {error}", path.display());
            None
        }
    }
}

/// Replaces a file, so that a reader sees the old or the new one whole. Its directory is made.
/// Not durable: the run directory does not survive a boot anyway.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = match File::create(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            File::create(&temporary)?
        }
        other => other?,
    };
    let written = file
        .set_permissions(Permissions::from_mode(MODE))
        .and_then(|()| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Nothing refers to it, and its name is this process's.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file; a missing one is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_back_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/state.json");
        write(&path, &vec![1, 2]).unwrap();
        write(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u8>>(&path), Some(vec![3]));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn missing_and_damaged_are_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read::<Vec<u8>>(&path), None);
        fs::write(&path, "[1,").unwrap();
        assert_eq!(read::<Vec<u8>>(&path), None);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
