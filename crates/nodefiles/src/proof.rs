//! What a standby knows of its own completeness, under one lock: `proof.json` in the run directory, a primary's
//! last pledges, and `stale.json` in the state directory, since when this node may lack writes.
//!
//! The two exclude each other. A proof counts only when it was asked for after the node became stale, so an
//! answer that was on its way for long brings nothing back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use role::Proof;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::{FileError, JsonFile, Lock, Sharing, Wait};

/// When a primary showed its pledge.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// When it was asked, in seconds since boot.
    pub asked_at: f64,
    /// Its window, in ms: for so long it acknowledges nothing alone after it has taken its pledge back.
    pub window_ms: u64,
}

/// `proof.json`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Proofs {
    /// The boot that the moments count from.
    pub boot_id: String,
    /// By the primary's name.
    pub shown: BTreeMap<String, Shown>,
}

/// `stale.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stale {
    /// Since when, in words, by the wall clock.
    pub since: String,
    /// The primary whose writes may be missing.
    pub primary: String,
    /// Why, for a person.
    pub why: String,
    /// When it was written, in seconds since boot.
    pub at: f64,
    /// The boot that this counts from.
    pub boot_id: String,
}

/// What is known at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// By peer name; none while this node is stale.
    pub proofs: BTreeMap<String, Proof>,
    /// Since when this node may lack writes, in words.
    pub stale_since: Option<String>,
    /// Peers that have ever shown a pledge in this boot.
    pub pledging: Vec<String>,
}

/// This boot and its clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Now {
    /// Seconds since boot.
    pub at: f64,
    /// Names the boot.
    pub boot_id: String,
}

/// How long the lock is waited for: longer than any holder takes, since none waits for anything but the disk.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// A note that cannot be read says at least that it was written.
const NOT_KNOWN: &str = "a time that is not known";

fn proofs(settings: &Settings) -> JsonFile<Proofs> {
    JsonFile::volatile(settings.paths.run.join("proof.json"), 1)
}

fn stale(settings: &Settings) -> JsonFile<Stale> {
    JsonFile::durable(settings.paths.state.join("stale.json"), 1)
        .public()
        .or_in(&settings.paths.run)
}

fn lock(settings: &Settings) -> Result<Option<Lock>, FileError> {
    let path: PathBuf = settings.paths.run.join("proof.lock");
    Lock::take(&path, Sharing::Exclusive, Wait::AtMost(PATIENCE))
}

/// Keeps every other program from changing what is known, as long as the value lives; none when one of them
/// does not end in time.
pub fn keep(settings: &Settings) -> Result<Option<Lock>, FileError> {
    lock(settings)
}

/// What is known now. A file that cannot be read proves nothing, and a note that this node is stale holds
/// whatever its form.
pub fn known(settings: &Settings, now: &Now) -> Known {
    let stale_since = match stale(settings).read() {
        Ok(stale) => stale.map(|stale| stale.since),
        Err(_) => Some(NOT_KNOWN.to_owned()),
    };
    let shown = proofs(settings)
        .read()
        .ok()
        .flatten()
        .filter(|proofs| proofs.boot_id == now.boot_id)
        .map(|proofs| proofs.shown)
        .unwrap_or_default();
    let age = |shown: &Shown| Duration::try_from_secs_f64(now.at - shown.asked_at).ok();
    Known {
        pledging: shown.keys().cloned().collect(),
        proofs: if stale_since.is_some() {
            BTreeMap::new()
        } else {
            shown
                .iter()
                .filter_map(|(name, shown)| {
                    let window = Duration::from_millis(shown.window_ms);
                    // A moment in the future is a clock that cannot be trusted.
                    Some((
                        name.clone(),
                        Proof {
                            age: age(shown)?,
                            window,
                        },
                    ))
                })
                .collect()
        },
        stale_since,
    }
}

/// What became of a proof that was shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Noted {
    /// It is written down.
    Kept,
    /// It is, and this node, stale until then, is complete again.
    CompleteAgain(Stale),
    /// It was asked for before this node became stale.
    TooOld,
    /// The lock was not to be had in time.
    Busy,
}

/// Writes down that `peer` has shown its pledge.
pub fn note(settings: &Settings, now: &Now, peer: &str, shown: Shown) -> Result<Noted, FileError> {
    let Some(_lock) = lock(settings)? else {
        return Ok(Noted::Busy);
    };
    let before = match stale(settings).read() {
        Ok(before) => before,
        // It says nothing but that it was written: by now everything is here.
        Err(FileError::Damaged { .. }) => Some(Stale {
            since: NOT_KNOWN.to_owned(),
            primary: peer.to_owned(),
            why: "its note is damaged".to_owned(),
            at: 0.0,
            boot_id: String::new(),
        }),
        Err(error) => return Err(error),
    };
    if let Some(before) = &before
        && before.boot_id == now.boot_id
        && before.at >= shown.asked_at
    {
        return Ok(Noted::TooOld);
    }
    let mut all = proofs(settings)
        .read()
        .ok()
        .flatten()
        .filter(|proofs| proofs.boot_id == now.boot_id)
        .unwrap_or_else(|| Proofs {
            boot_id: now.boot_id.clone(),
            shown: BTreeMap::new(),
        });
    all.shown.insert(peer.to_owned(), shown);
    proofs(settings).replace(&all)?;
    Ok(match before {
        None => Noted::Kept,
        Some(before) => {
            stale(settings).remove()?;
            Noted::CompleteAgain(before)
        }
    })
}

/// Writes down, durably, that this node may lack writes: from now on it does not open by itself. The first
/// note stays, since it knows since when. False when the lock was not to be had in time: then nothing is
/// written.
pub fn renounce(settings: &Settings, note: &Stale) -> Result<bool, FileError> {
    let Some(_lock) = lock(settings)? else {
        return Ok(false);
    };
    let note = match stale(settings).read() {
        Ok(Some(first)) => Stale {
            since: first.since,
            ..note.clone()
        },
        Ok(None) | Err(_) => note.clone(),
    };
    stale(settings).replace(&note)?;
    Ok(true)
}

/// The newest proof of this boot, also one that is too old: when it was asked for, and the primary.
pub fn newest(settings: &Settings, now: &Now) -> Option<(f64, String)> {
    let proofs = proofs(settings).read().ok().flatten()?;
    (proofs.boot_id == now.boot_id).then_some(())?;
    let shown = proofs.shown.into_iter();
    shown
        .map(|(name, shown)| (shown.asked_at, name))
        .max_by(|one, other| one.0.total_cmp(&other.0))
}

/// Whether this node has renounced after that moment of this boot.
pub fn renounced_since(settings: &Settings, then: &Now) -> bool {
    stale(settings)
        .read()
        .is_ok_and(|stale| stale.is_some_and(|s| s.boot_id == then.boot_id && s.at > then.at))
}

/// This node has opened: what it lacked belongs to another history.
pub fn forget(settings: &Settings) -> Result<(), FileError> {
    let _lock = lock(settings)?;
    proofs(settings).remove()?;
    stale(settings).remove()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn now(at: f64) -> Now {
        Now {
            at,
            boot_id: "this".to_owned(),
        }
    }

    fn shown(asked_at: f64) -> Shown {
        Shown {
            asked_at,
            window_ms: 4000,
        }
    }

    fn stale_at(at: f64, boot_id: &str) -> Stale {
        Stale {
            since: format!("then {at}"),
            primary: "b".to_owned(),
            why: "asked to".to_owned(),
            at,
            boot_id: boot_id.to_owned(),
        }
    }

    #[test]
    fn the_form_is_that_of_every_version() {
        let proofs_then = Proofs {
            boot_id: "x".to_owned(),
            shown: [("b".to_owned(), shown(1.5))].into(),
        };
        crate::testing::assert_form(
            &proofs,
            &proofs_then,
            r#"{"version":1,"boot_id":"x","shown":{"b":{"asked_at":1.5,"window_ms":4000}}}"#,
            &[],
        );
        crate::testing::assert_form(
            &stale,
            &stale_at(2.5, "x"),
            r#"{"version":1,"since":"then 2.5","primary":"b","why":"asked to","at":2.5,"boot_id":"x"}"#,
            &[],
        );
    }

    #[test]
    fn an_answer_that_was_on_its_way_for_long_brings_nothing_back() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(known(&settings, &now(1.0)), Known::default());
        assert_eq!(
            note(&settings, &now(10.1), "b", shown(10.0)).unwrap(),
            Noted::Kept
        );
        let proof = known(&settings, &now(10.5)).proofs["b"];
        assert_eq!(proof.age, Duration::from_millis(500));
        assert_eq!(proof.window, Duration::from_secs(4));
        // Of another boot, or of the future: nothing.
        let another = Now {
            at: 10.5,
            boot_id: "another".to_owned(),
        };
        assert!(known(&settings, &another).proofs.is_empty());
        assert!(known(&settings, &now(9.0)).proofs.is_empty());

        assert!(renounce(&settings, &stale_at(11.0, "this")).unwrap());
        let stale = known(&settings, &now(11.0));
        assert!(stale.proofs.is_empty());
        assert_eq!(stale.stale_since.as_deref(), Some("then 11"));
        assert_eq!(stale.pledging, ["b"]);
        assert_eq!(
            note(&settings, &now(12.0), "b", shown(10.9)).unwrap(),
            Noted::TooOld
        );
        assert!(known(&settings, &now(12.0)).proofs.is_empty());
        // The first note knows since when; the newest, what is too old.
        assert!(renounce(&settings, &stale_at(12.5, "this")).unwrap());
        assert_eq!(
            note(&settings, &now(13.0), "b", shown(12.4)).unwrap(),
            Noted::TooOld
        );
        let again = note(&settings, &now(13.0), "b", shown(12.6)).unwrap();
        assert!(matches!(again, Noted::CompleteAgain(stale) if stale.since == "then 11"));
        assert_eq!(known(&settings, &now(13.0)).stale_since, None);
    }

    #[test]
    fn a_note_outlasts_a_boot_and_a_damaged_one_holds() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert!(renounce(&settings, &stale_at(900.0, "before")).unwrap());
        assert!(known(&settings, &now(1.0)).stale_since.is_some());
        let complete = note(&settings, &now(2.0), "b", shown(1.9)).unwrap();
        assert!(matches!(complete, Noted::CompleteAgain(_)));
        for damage in ["", "{\"since\":", "\u{0}\u{0}"] {
            fs::write(stale(&settings).path(), damage).unwrap();
            fs::write(proofs(&settings).path(), damage).unwrap();
            let known = known(&settings, &now(3.0));
            assert_eq!(known.stale_since.as_deref(), Some(NOT_KNOWN), "{damage:?}");
            assert!(known.proofs.is_empty());
        }
        let complete = note(&settings, &now(4.0), "b", shown(3.9)).unwrap();
        assert!(matches!(complete, Noted::CompleteAgain(_)));
        assert!(known(&settings, &now(4.0)).proofs.contains_key("b"));
        forget(&settings).unwrap();
        assert_eq!(known(&settings, &now(4.0)), Known::default());
    }
}
