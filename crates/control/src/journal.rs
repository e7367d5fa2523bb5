//! What a role change did, step by step, on disk before each effect.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use role::Step;
use serde::Serialize;
use settings::Settings;

/// The journal of one change: a line of JSON for each event.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// The journal cannot be written: nothing may be changed then.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; a role change is not begun without its journal")]
pub struct JournalError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
enum Entry<'a> {
    Begun {
        at: String,
        plan: &'a role::Plan,
    },
    Started {
        at: String,
        step: &'a Step,
    },
    Done {
        at: String,
        step: &'a Step,
    },
    Failed {
        at: String,
        step: &'a Step,
        why: String,
    },
    Ended {
        at: String,
        outcome: &'a str,
    },
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

impl Journal {
    /// Begins the journal of a plan; the previous one is kept as `.last`.
    pub fn begin(settings: &Settings, plan: &role::Plan) -> Result<Self, JournalError> {
        let path = settings.paths.state.join("role-journal.jsonl");
        let open = || -> io::Result<File> {
            fs::create_dir_all(&settings.paths.state)?;
            match fs::rename(&path, path.with_extension("jsonl.last")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            OpenOptions::new().create(true).append(true).open(&path)
        };
        let file = open().map_err(|source| JournalError {
            path: path.clone(),
            source,
        })?;
        let mut journal = Self { path, file };
        journal.write(&Entry::Begun { at: now(), plan })?;
        Ok(journal)
    }

    /// Before the effect.
    pub fn started(&mut self, step: &Step) -> Result<(), JournalError> {
        self.write(&Entry::Started { at: now(), step })
    }

    /// After the effect was verified.
    pub fn done(&mut self, step: &Step) -> Result<(), JournalError> {
        self.write(&Entry::Done { at: now(), step })
    }

    /// The effect failed.
    pub fn failed(&mut self, step: &Step, why: &dyn std::fmt::Display) -> Result<(), JournalError> {
        self.write(&Entry::Failed {
            at: now(),
            step,
            why: why.to_string(),
        })
    }

    /// The change is over.
    pub fn ended(&mut self, outcome: &str) -> Result<(), JournalError> {
        self.write(&Entry::Ended { at: now(), outcome })
    }

    fn write(&mut self, entry: &Entry<'_>) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| JournalError {
                path: self.path.clone(),
                source,
            })
    }
}
