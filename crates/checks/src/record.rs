//! What goes to a disk: lines of the logs, and alerts.
//!
//! A disk can hang, and a process that waits for one cannot even be killed, so a check only leaves
//! a note in the run directory and starts itself once more to write it down. That second process
//! may take its time. What it did not finish is taken up by a later run.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alerts::{Alert, Severity};
use nodefiles::{Lock, Sharing, Wait};
use process::Program;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::cli::Common;
use crate::clock::Moment;
use crate::store;

const DIRECTORY: &str = "unwritten";
const LOCK: &str = "unwritten.lock";

/// Most notes kept: a service that flaps for days on a node whose disk is full must not fill the
/// memory. The oldest tell how it began, so later ones are dropped.
const MOST_NOTES: usize = 1000;

/// How long the second process may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One thing to write down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// File name in the log directory.
    pub log: String,
    /// The line, with its time.
    pub line: String,
    /// The alert that goes with it.
    pub alert: Option<Notice>,
}

/// An alert to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// How bad it is.
    pub weight: Weight,
    /// A short name of the event, such as `repair-begun`.
    pub event: String,
    /// The text.
    pub text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Weight {
    /// Good news.
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Critical,
}

/// A line as the original scripts wrote it: local time, dash, text.
pub(crate) fn line(text: &str) -> String {
    let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    format!("{now} - {text}")
}

/// Leaves a note. `number` tells notes of one run apart.
pub(crate) fn leave(settings: &Settings, now: &Moment, number: u32, note: &Note) -> io::Result<()> {
    let directory = settings.paths.run.join(DIRECTORY);
    if pending(settings).len() >= MOST_NOTES {
        return Err(io::Error::other(format!(
            "{}: {MOST_NOTES} notes wait for the log; this one is dropped",
            directory.display()
        )));
    }
    // Sorted by name, they are sorted by time.
    let name = format!("{:020.6}-{}-{number}.json", now.at, std::process::id());
    store::write(&directory.join(name), note)
}

/// The notes that wait, oldest first.
pub(crate) fn pending(settings: &Settings) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(settings.paths.run.join(DIRECTORY)) else {
        return Vec::new();
    };
    let mut notes: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("json")))
        .collect();
    notes.sort();
    notes
}

/// Starts the second process, and gives it a moment to finish.
pub(crate) fn start(common: &Common, moment: Duration) {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return log::warn!("cannot find this program to write the log: {error}"),
    };
    let mut program = Program::new(program)
        .arg("--record")
        .arg("--config")
        .arg(&common.config)
        .deadline(PATIENCE);
    if let Some(node) = &common.node {
        program = program.arg("--node").arg(node);
    }
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let ended = program.run().and_then(process::Output::success);
        if let Err(error) = ended {
            log::warn!("{error}");
        }
        // The check has ended when it did not want to wait any longer.
        let _ = done.send(());
    });
    // This process may end before that one: it then goes on by itself.
    let _ = finished.recv_timeout(moment);
}

/// The second process: writes down what waits, oldest first.
pub(crate) fn run(settings: &Settings) -> io::Result<()> {
    let lock = settings.paths.run.join(LOCK);
    let lock = Lock::take(&lock, Sharing::Exclusive, Wait::AtMost(Duration::ZERO));
    let Some(_lock) = lock.map_err(io::Error::other)? else {
        // Another one is at it, perhaps waiting for the disk.
        return Ok(());
    };
    loop {
        let notes = pending(settings);
        if notes.is_empty() {
            return Ok(());
        }
        for path in notes {
            write_down(settings, &path)?;
        }
    }
}

fn write_down(settings: &Settings, path: &Path) -> io::Result<()> {
    let Some(mut note) = store::read::<Note>(&store::file(path)) else {
        // Damaged: nobody can make a line of it.
        return store::remove(path);
    };
    // The alert first: a full disk of the logs must not hold it back.
    if let Some(notice) = note.alert.take() {
        alert(settings, &notice)?;
        store::write(path, &note)?;
    }
    append(&settings.paths.log.join(&note.log), &note.line)?;
    store::remove(path)
}

/// Appends one line to a log, whose directory is made.
pub(crate) fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // One write, so that lines of two processes do not mix.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?
        .write_all(format!("{line}\n").as_bytes())
}

fn alert(settings: &Settings, notice: &Notice) -> io::Result<()> {
    let alert = Alert {
        event: notice.event.clone(),
        severity: match notice.weight {
            Weight::Info => Severity::Info,
            Weight::Warning => Severity::Warning,
            Weight::Critical => Severity::Critical,
        },
        message: notice.text.clone(),
    };
    alerts::enqueue(settings, &alert).map_err(io::Error::other)?;
    if !settings.alerts.channels.is_empty() {
        alerts::wake();
    }
    Ok(())
}
