//! Secrets: read late, from files that only their owner can read, and never printed.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Account, SettingsError};

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself; for the one place that uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("«redacted»")
    }
}

impl Account {
    /// The password, read now: a tool never needs to read the secrets of the others.
    pub fn password(&self) -> Result<Secret, SettingsError> {
        read_secret(&self.password_file, Some(&self.user))
    }
}

/// Reads a secret of one line. A systemd credential of that name wins over the file.
pub fn read_secret(path: &Path, credential: Option<&str>) -> Result<Secret, SettingsError> {
    let from_systemd = std::env::var_os("CREDENTIALS_DIRECTORY")
        .zip(credential)
        .map(|(directory, name)| PathBuf::from(directory).join(OsStr::new(name)))
        .filter(|file| file.exists());
    match from_systemd {
        // systemd itself sees to the mode of its credentials.
        Some(file) => one_line(&file),
        None => private(path).and_then(|()| one_line(path)),
    }
}

fn refused(path: &Path, reason: String) -> SettingsError {
    SettingsError::Secret {
        path: path.to_owned(),
        reason,
    }
}

fn private(path: &Path) -> Result<(), SettingsError> {
    let mode = fs::metadata(path)
        .map_err(|error| refused(path, format!("the secret cannot be read: {error}")))?
        .mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mode = mode & 0o777;
    Err(refused(
        path,
        format!("others can use this secret (mode {mode:o}): chmod 600"),
    ))
}

fn one_line(path: &Path) -> Result<Secret, SettingsError> {
    let text = fs::read_to_string(path)
        .map_err(|error| refused(path, format!("the secret cannot be read: {error}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if line.is_empty() || line.contains('\n') {
        return Err(refused(
            path,
            "expected one line with the secret".to_owned(),
        ));
    }
    Ok(Secret(line.to_owned()))
}
