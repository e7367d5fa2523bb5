//! Values as JSON, with the version of their form.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::read::read;
use crate::{Durability, FileError, remove, replace};

/// A file that holds one value with named fields: where it is, who may read it, which version of its form is
/// written, and what a power loss may do to it.
///
/// The version stands beside the fields of the value, and a file without one is of version 0. Readers take the
/// fields that they know, and ignore the others and the version, so programs of different ages on one node
/// understand each other as long as a field keeps its meaning; one with another meaning gets another name.
/// The version tells a person, and a reader that must know, what wrote the file.
pub struct JsonFile<T> {
    path: PathBuf,
    /// Where it is put while it cannot be put there.
    instead: Option<PathBuf>,
    mode: u32,
    version: u32,
    durability: Durability,
    value: PhantomData<fn() -> T>,
}

impl<T> JsonFile<T> {
    /// In the run directory, which does not survive a boot anyway. Any account may read it, a monitoring agent
    /// for one.
    pub fn volatile(path: PathBuf, version: u32) -> Self {
        Self {
            path,
            instead: None,
            mode: 0o644,
            version,
            durability: Durability::Visible,
            value: PhantomData,
        }
    }

    /// In the state directory: on the disk when it is replaced. Only its owner may read it.
    pub fn durable(path: PathBuf, version: u32) -> Self {
        Self {
            mode: 0o600,
            durability: Durability::OnDisk,
            ..Self::volatile(path, version)
        }
    }

    /// Only its owner may read it.
    pub fn private(self) -> Self {
        Self {
            mode: 0o600,
            ..self
        }
    }

    /// Any account may read it.
    pub fn public(self) -> Self {
        Self {
            mode: 0o644,
            ..self
        }
    }

    /// While its directory is full or read-only, it is put into this one. There it is what was written last:
    /// it goes as soon as the file itself can be replaced again.
    pub fn or_in(self, directory: &Path) -> Self {
        let name = self.path.file_name().unwrap_or_default();
        Self {
            instead: Some(directory.join(name)),
            ..self
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it; gives whether it was there.
    pub fn remove(&self) -> Result<bool, FileError> {
        let instead = self.remove_instead();
        Ok(remove(&self.path)? | instead?)
    }

    fn remove_instead(&self) -> Result<bool, FileError> {
        self.instead.as_deref().map_or(Ok(false), remove)
    }
}

impl<T: Serialize> JsonFile<T> {
    /// Replaces it at once. Its directory is made, and the mode is exact, whatever the umask.
    pub fn replace(&self, value: &T) -> Result<(), FileError> {
        let versioned = Versioned {
            version: self.version,
            value,
        };
        let replace = |path| replace_json(path, self.mode, &versioned, self.durability);
        match (replace(&self.path), &self.instead) {
            (Ok(()), _) => self.remove_instead().map(drop),
            // The reason is that of the file itself.
            (Err(error), Some(instead)) => replace(instead).map_err(|_| error),
            (Err(error), None) => Err(error),
        }
    }
}

impl<T: DeserializeOwned> JsonFile<T> {
    /// Its value; none when there is no file.
    pub fn read(&self) -> Result<Option<T>, FileError> {
        if let Some(instead) = &self.instead
            && let Some(newer) = read_json(instead)?
        {
            return Ok(Some(newer));
        }
        read_json(&self.path)
    }
}

impl<T> fmt::Debug for JsonFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JsonFile").field(&self.path).finish()
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    value: &'a T,
}

/// Replaces a file by a value that has no named fields, or is no file of the node: without a version.
pub fn replace_json(
    path: &Path,
    mode: u32,
    value: &impl Serialize,
    durability: Durability,
) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(value).map_err(|error| FileError::damaged(path, &error))?;
    replace(path, mode, &bytes, durability)
}

/// Reads a value; none when there is no file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let value = read(path)?.map(|bytes| serde_json::from_slice(&bytes));
    value
        .transpose()
        .map_err(|error| FileError::damaged(path, &error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_value_comes_back_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/state.json");
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

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct State {
        at: f64,
        name: String,
    }

    #[test]
    fn a_version_is_written_and_programs_of_another_age_are_understood() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let file = JsonFile::volatile(path.clone(), 3);
        let state = || State {
            at: 1.5,
            name: "a".to_owned(),
        };
        assert_eq!(file.read().unwrap(), None);
        file.replace(&state()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"version":3,"at":1.5,"name":"a"}"#);
        for written in [
            r#"{"at":1.5,"name":"a"}"#,
            r#"{"version":3,"at":1.5,"name":"a"}"#,
            r#"{"version":4,"at":1.5,"later":[7],"name":"a"}"#,
        ] {
            fs::write(&path, written).unwrap();
            assert_eq!(file.read().unwrap(), Some(state()), "{written}");
        }
        assert!(file.remove().unwrap());
    }

    #[test]
    fn what_cannot_be_put_in_its_place_is_put_beside_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let (place, other) = (
            directory.path().join("place"),
            directory.path().join("other"),
        );
        // Root may write anywhere; a file where the directory should be stops it, too.
        fs::write(&place, "").unwrap();
        let file = JsonFile::durable(place.join("state.json"), 1).or_in(&other);
        let state = |at: f64| State {
            at,
            name: String::new(),
        };
        file.replace(&state(1.0)).unwrap();
        assert!(other.join("state.json").exists());
        fs::remove_file(&place).unwrap();
        assert_eq!(file.read().unwrap(), Some(state(1.0)));
        file.replace(&state(2.0)).unwrap();
        assert!(!other.join("state.json").exists());
        assert_eq!(file.read().unwrap(), Some(state(2.0)));
        // The newer one counts, whatever is left in its place.
        fs::rename(place.join("state.json"), other.join("state.json")).unwrap();
        file.replace(&state(3.0)).unwrap();
        fs::write(other.join("state.json"), r#"{"at":4,"name":""}"#).unwrap();
        assert_eq!(file.read().unwrap(), Some(state(4.0)));
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
        assert_eq!(file.read().unwrap(), None);
    }

    #[test]
    fn who_may_read_is_said_by_the_kind_of_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = || directory.path().join("state.json");
        for (file, mode) in [
            (JsonFile::volatile(path(), 1), 0o644),
            (JsonFile::volatile(path(), 1).private(), 0o600),
            (JsonFile::durable(path(), 1), 0o600),
            (JsonFile::durable(path(), 1).public(), 0o644),
        ] {
            let state = State {
                at: 0.0,
                name: String::new(),
            };
            file.replace(&state).unwrap();
            let found = fs::metadata(file.path()).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
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
