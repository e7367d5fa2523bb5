//! `role-journal.jsonl` in the state directory: what a role change did, step by step, on disk before each effect.
//! A person reads it; no program does. Where that directory is full or read-only it is in the run directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use role::Step;
use serde::Serialize;
use settings::Settings;

/// Of the form of the lines; it stands in the first one.
const VERSION: u32 = 1;

/// The journal of one change: a line of JSON for each event.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Where it goes on when this place takes no more.
    instead: Option<PathBuf>,
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
        version: u32,
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
        let place = |directory: &Path| directory.join("role-journal.jsonl");
        let instead = place(&settings.paths.run);
        let mut journal = match open(&place(&settings.paths.state)) {
            Ok(file) => Self {
                path: place(&settings.paths.state),
                file,
                instead: Some(instead),
            },
            Err(error) => Self {
                file: open(&instead).map_err(|_| error)?,
                path: instead,
                instead: None,
            },
        };
        journal.write(&Entry::Begun {
            version: VERSION,
            at: now(),
            plan,
        })?;
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
        let append = |journal: &mut Self| {
            journal
                .file
                .write_all(&line)
                .and_then(|()| journal.file.sync_data())
                .map_err(failed(&journal.path))
        };
        match (append(self), self.instead.take()) {
            (Ok(()), instead) => {
                self.instead = instead;
                Ok(())
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(instead)) => {
                let Ok(file) = open(&instead) else {
                    return Err(error);
                };
                (self.file, self.path) = (file, instead);
                append(self)
            }
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> JournalError + '_ {
    move |source| JournalError {
        path: path.to_owned(),
        source,
    }
}

/// Begins a file; the previous one is kept as `.last`.
fn open(path: &Path) -> Result<File, JournalError> {
    let open = || -> io::Result<File> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        match fs::rename(path, path.with_extension("jsonl.last")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        OpenOptions::new().create(true).append(true).open(path)
    };
    open().map_err(failed(path))
}

#[cfg(test)]
mod tests {
    use role::Plan;

    use super::*;

    fn plan() -> Plan {
        Plan {
            target: "a".to_owned(),
            kind: role::PromotionKind::TakeOver,
            steps: vec![Step::Open],
            accepted_loss: 0,
            unfenced: Vec::new(),
            bound: false,
            rests_on_proof: false,
        }
    }

    #[test]
    fn each_event_is_a_line_and_the_last_journal_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let plan = plan();
        for name in ["first", "second"] {
            let mut journal = Journal::begin(&settings, &plan).unwrap();
            journal.started(&Step::Open).unwrap();
            journal.failed(&Step::Open, &"gone").unwrap();
            journal.ended(name).unwrap();
        }
        let read = |name: &str| fs::read_to_string(settings.paths.state.join(name)).unwrap();
        let lines = read("role-journal.jsonl");
        let events: Vec<serde_json::Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let names: Vec<_> = events.iter().map(|event| event["event"].clone()).collect();
        assert_eq!(names, ["begun", "started", "failed", "ended"]);
        assert_eq!(events[0]["version"], 1);
        assert_eq!(events[3]["outcome"], "second");
        assert!(read("role-journal.jsonl.last").contains("first"));
    }

    #[test]
    fn without_the_state_directory_it_is_in_the_run_directory() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        // Root may write anywhere; a file where the directory should be stops it, too.
        fs::write(&settings.paths.state, "").unwrap();
        let plan = plan();
        let mut journal = Journal::begin(&settings, &plan).unwrap();
        journal.ended("done").unwrap();
        let written = settings.paths.run.join("role-journal.jsonl");
        assert_eq!(fs::read_to_string(written).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_disk_that_fills_up_in_the_middle_does_not_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let mut journal = Journal::begin(&settings, &plan()).unwrap();
        // Every write to it fails for want of space.
        journal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        journal.started(&Step::Open).unwrap();
        journal.ended("done").unwrap();
        let written = settings.paths.run.join("role-journal.jsonl");
        assert_eq!(fs::read_to_string(written).unwrap().lines().count(), 2);
    }
}
