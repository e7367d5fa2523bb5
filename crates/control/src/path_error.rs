//! A file that could not be read or written, with its path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PathError {
    path: PathBuf,
    source: io::Error,
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// For `map_err`.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> PathError + '_ {
    move |source| PathError {
        path: path.to_owned(),
        source,
    }
}
