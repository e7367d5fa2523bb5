//! State files: replaced at once by a rename, so that a reader sees the old or the new one whole;
//! on the disk when the caller says so. And files of ours in a tree of somebody else's.

mod own;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use own::{OWN, open_own};

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
pub enum StateFileError {
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

/// Replaces a file; its directory is made. The mode is exact, whatever the umask.
pub fn replace(
    path: &Path,
    mode: u32,
    bytes: &[u8],
    durability: Durability,
) -> Result<(), StateFileError> {
    write(path, mode, bytes, durability).map_err(|source| StateFileError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The same for a value, as JSON.
pub fn replace_json(
    path: &Path,
    mode: u32,
    value: &impl Serialize,
    durability: Durability,
) -> Result<(), StateFileError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StateFileError::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    replace(path, mode, &bytes, durability)
}

/// Reads a value; none when there is no file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateFileError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateFileError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| StateFileError::Damaged {
            path: path.to_owned(),
            detail: error.to_string(),
        })
}

fn write(path: &Path, mode: u32, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    // Two writers at once each have their own.
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if durability == Durability::OnDisk {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durability == Durability::OnDisk {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/state.json");
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), None);
        for durability in [Durability::Visible, Durability::OnDisk] {
            replace_json(&path, 0o644, &vec![1, 2], durability).unwrap();
        }
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_truncated_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, "[1,").unwrap();
        let error = read_json::<Vec<u8>>(&path).unwrap_err().to_string();
        assert!(
            error.contains("state.json") && error.contains("damaged"),
            "{error}"
        );
    }
}
