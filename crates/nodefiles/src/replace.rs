//! One file replaced at once, and one removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What must be true when the file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Readers see it; a power loss may take it back. For files in memory, and for those made anew.
    Visible,
    /// It is on the disk, and so is its name.
    OnDisk,
}

/// Why a file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is not what was written there.
    #[error("{path}: damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        detail: String,
    },
}

impl FileError {
    /// What is wrong with the content.
    pub(crate) fn damaged(path: &Path, detail: &dyn std::fmt::Display) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// For `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Replaces a file; its directory is made. The mode is exact, whatever the umask. When it fails, the file is
/// what it was, and nothing is left beside it.
pub fn replace(
    path: &Path,
    mode: u32,
    bytes: &[u8],
    durability: Durability,
) -> Result<(), FileError> {
    write(path, mode, bytes, durability).map_err(FileError::io(path))
}

/// Removes a file; gives whether it was there.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    // A read-only file system refuses before it looks whether there is anything to remove, and a directory whose disk
    // hangs holds whoever removes something in it.
    if is_gone(path) {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::io(path)(error)),
    }
}

fn is_gone(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn write(path: &Path, mode: u32, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // Two writers at once each have their own.
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let file = match create(&temporary, mode) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(directory)?;
            create(&temporary, mode)?
        }
        other => other?,
    };
    let replaced = fill(file, mode, bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // A disk that is full must not stay so because of half a file.
        let _ = fs::remove_file(&temporary);
    }
    replaced?;
    if durability == Durability::OnDisk {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn create(temporary: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(temporary)
}

fn fill(mut file: File, mode: u32, bytes: &[u8], durability: Durability) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if durability == Durability::OnDisk {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file.
        let path = directory.path().join("state");
        fs::create_dir(&path).unwrap();
        for durability in [Durability::Visible, Durability::OnDisk] {
            let error = replace(&path, 0o600, b"new", durability).unwrap_err();
            assert!(matches!(error, FileError::Io { .. }), "{error}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        assert!(path.is_dir());
    }

    #[test]
    fn a_removed_file_was_there_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::write(&path, "x").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert!(remove(directory.path()).is_err());
    }
}
