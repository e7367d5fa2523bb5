//! Whether this node can write down what a change of roles will have to: tried before it is needed.
//!
//! A disk that hangs holds whoever writes to it, and such a process cannot even be killed. So the state directory and
//! that of the logs are each tried by a unit of its own, which nothing waits for; what it found is in a file of the
//! run directory, and its silence tells of a disk that hangs. The run directory is in memory and tried on the spot.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::proof::Now;
use crate::{FileError, JsonFile};

/// A block of the usual size: a file that is smaller may be kept in its inode, and tells nothing of the space.
const BLOCK: usize = 4096;
/// Each is tried every half a minute, unless many alerts are delivered slowly: a delivery that takes longer than five
/// minutes is ended. Seconds.
const OLD: f64 = 400.0;

/// Where the block is written.
const OWN: &str = ".tried";

/// A directory on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `paths.state`
    State,
    /// `paths.log`; only the logs depend on it.
    Logs,
}

impl Place {
    fn path(self, settings: &Settings) -> &Path {
        match self {
            Self::State => &settings.paths.state,
            Self::Logs => &settings.paths.log,
        }
    }

    /// The unit that tries it.
    pub fn unit(self) -> &'static str {
        match self {
            Self::State => "keepalived-companion-try-state.service",
            Self::Logs => "keepalived-companion-try-logs.service",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// When, in seconds since boot.
    pub at: f64,
    /// The boot that this counts from.
    pub boot_id: String,
    /// Why it took nothing.
    pub why: Option<String>,
}

/// The file.
pub fn file(settings: &Settings, place: Place) -> JsonFile<Tried> {
    let name = match place {
        Place::State => "writable-state.json",
        Place::Logs => "writable-logs.json",
    };
    JsonFile::volatile(settings.paths.run.join(name), 1)
}

/// Tries a directory and notes what was found. This may hang with a disk.
pub fn try_and_note(settings: &Settings, place: Place, now: Now) -> Result<(), FileError> {
    let why = attempt(place.path(settings)).err();
    file(settings, place).replace(&Tried {
        at: now.at,
        boot_id: now.boot_id,
        why: why.map(|error| error.to_string()),
    })
}

/// The silence of a place counts from now on, where it was not tried yet in this boot.
pub fn begin(settings: &Settings, now: &Now) -> Result<(), FileError> {
    for place in [Place::State, Place::Logs] {
        if tried(settings, place, now).is_none() {
            file(settings, place).replace(&Tried {
                at: now.at,
                boot_id: now.boot_id.clone(),
                why: None,
            })?;
        }
    }
    Ok(())
}

/// Why the state or the run directory takes no more; none when both do, as far as that was tried. Waits for no disk.
pub fn refused(settings: &Settings, now: &Now) -> Option<String> {
    run_refused(settings).or_else(|| told(settings, Place::State, now))
}

/// Why the run directory takes no more.
pub fn run_refused(settings: &Settings) -> Option<String> {
    let tried = attempt(&settings.paths.run);
    tried.err().map(|error| error.to_string())
}

/// Why the directory of the logs takes no more.
pub fn logs_refused(settings: &Settings, now: &Now) -> Option<String> {
    told(settings, Place::Logs, now)
}

/// Whether who writes there may be held for ever: it was not tried for a while.
pub fn may_hang(settings: &Settings, place: Place, now: &Now) -> bool {
    tried(settings, place, now).is_some_and(|tried| tried.is_old(now))
}

impl Tried {
    fn is_old(&self, now: &Now) -> bool {
        now.at - self.at > OLD
    }
}

fn told(settings: &Settings, place: Place, now: &Now) -> Option<String> {
    let tried = tried(settings, place, now)?;
    if tried.is_old(now) {
        // Without an age, which would make each telling a new one.
        return Some(format!(
            "{}: it was not tried since {:.0} s after the boot, so its disk may hang; \
             see: systemctl status {} keepalived-companion-alerts.timer",
            place.path(settings).display(),
            tried.at,
            place.unit()
        ));
    }
    tried.why
}

/// None before the first time in this boot.
fn tried(settings: &Settings, place: Place, now: &Now) -> Option<Tried> {
    let tried = file(settings, place).read().ok().flatten()?;
    (tried.boot_id == now.boot_id).then_some(tried)
}

/// Writes a block, and takes it away again. In a directory of its own: where its disk hangs, who makes a file holds the
/// directory, too.
fn attempt(directory: &Path) -> Result<(), FileError> {
    let own = directory.join(OWN);
    let path = own.join(std::process::id().to_string());
    let written = fs::create_dir_all(&own).and_then(|()| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?
            .write_all(&[0; BLOCK])
    });
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
        Ok(()) | Err(_) => written,
    }
    .map_err(FileError::io(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: f64) -> Now {
        Now {
            at,
            boot_id: "b".to_owned(),
        }
    }

    #[test]
    fn a_directory_that_takes_nothing_is_named_and_nothing_is_left_in_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        // Not tried yet is no reason.
        assert_eq!(refused(&settings, &at(1.0)), None);
        try_and_note(&settings, Place::State, at(2.0)).unwrap();
        assert_eq!(refused(&settings, &at(3.0)), None);
        for path in [&settings.paths.state, &settings.paths.run] {
            assert_eq!(fs::read_dir(path.join(OWN)).unwrap().count(), 0);
        }
        fs::remove_dir_all(&settings.paths.state).unwrap();
        // Root may write anywhere; a file where the directory should be stops it, too.
        fs::write(&settings.paths.state, "").unwrap();
        try_and_note(&settings, Place::State, at(4.0)).unwrap();
        let why = refused(&settings, &at(5.0)).unwrap();
        assert!(
            why.starts_with(&settings.paths.state.display().to_string()),
            "{why}"
        );
        assert_eq!(run_refused(&settings), None);
        // What was found in another boot says nothing.
        let other = Now {
            at: 5.0,
            boot_id: "c".to_owned(),
        };
        assert_eq!(refused(&settings, &other), None);
    }

    #[test]
    fn a_disk_that_hangs_is_told_by_its_silence_and_always_in_the_same_words() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        try_and_note(&settings, Place::State, at(2.0)).unwrap();
        assert_eq!(refused(&settings, &at(2.0 + OLD)), None);
        let why = refused(&settings, &at(3.0 + OLD)).unwrap();
        assert!(why.contains("may hang"), "{why}");
        assert_eq!(refused(&settings, &at(9.0 + OLD)), Some(why));
        // One place's silence is not the other's, and counts also where it was never tried.
        assert_eq!(logs_refused(&settings, &at(9.0 + OLD)), None);
        begin(&settings, &at(9.0 + OLD)).unwrap();
        assert_eq!(logs_refused(&settings, &at(9.0 + 2.0 * OLD)), None);
        assert!(may_hang(&settings, Place::Logs, &at(10.0 + 2.0 * OLD)));
    }

    #[test]
    fn the_form_is_that_of_every_version() {
        let tried = Tried {
            at: 12.5,
            boot_id: "b".to_owned(),
            why: Some("full".to_owned()),
        };
        crate::testing::assert_form(
            &|settings| file(settings, Place::State),
            &tried,
            r#"{"version":1,"at":12.5,"boot_id":"b","why":"full"}"#,
            &[],
        );
    }
}
