//! The queue on disk: one file an alert, in the order of their names. While the state directory is full or
//! read-only, alerts are queued in the run directory: they are told all the same, but a boot forgets them.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nodefiles::writable::{self, Place};
use nodefiles::{FileError, JsonFile, Lock, Sharing, Wait};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::{Alert, Severity};

/// One alert on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// The alert.
    #[serde(flatten)]
    pub alert: Alert,
    /// The node that raised it.
    pub node: String,
    /// When it was raised first.
    pub at: Timestamp,
    /// How often within the fold window.
    pub count: u32,
    /// Channels that still have to get it.
    pub pending: Vec<String>,
    /// Refusals so far, by channel.
    #[serde(default)]
    pub refusals: std::collections::BTreeMap<String, u32>,
}

/// Why the queue could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct AlertsError {
    /// The file or directory.
    pub path: PathBuf,
    /// The reason.
    pub source: io::Error,
}

impl From<FileError> for AlertsError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source } => Self { path, source },
            FileError::Damaged { path, detail } => Self {
                path,
                source: io::Error::other(detail),
            },
        }
    }
}

/// Where alerts are queued, in the order in which it is tried. A state directory that takes nothing, or whose disk may
/// hang whoever writes to it, comes last.
fn directories(settings: &Settings) -> [PathBuf; 2] {
    let mut directories =
        [&settings.paths.state, &settings.paths.run].map(|directory| directory.join("alerts"));
    if writable::refused(settings, &crate::now()).is_some() {
        directories.reverse();
    }
    directories
}

/// The queues that can be used without being held by a disk that hangs, the one in memory first.
pub(crate) fn usable(settings: &Settings) -> Vec<PathBuf> {
    let hangs = writable::may_hang(settings, Place::State, &crate::now());
    let state = (!hangs).then_some(&settings.paths.state);
    [Some(&settings.paths.run), state]
        .into_iter()
        .flatten()
        .map(|directory| directory.join("alerts"))
        .collect()
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> AlertsError + '_ {
    move |source| AlertsError {
        path: path.to_owned(),
        source,
    }
}

/// An exclusive lock on the queue, or on its delivery, as long as the value lives.
pub(crate) fn lock(directory: &Path, name: &str, wait: Wait) -> Result<Option<Lock>, AlertsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed(directory))?;
    Ok(Lock::take(&directory.join(name), Sharing::Exclusive, wait)?)
}

/// Writes an alert to disk; when this returns it survives a crash. An equal one within the fold
/// window is counted instead.
pub fn enqueue(settings: &Settings, alert: &Alert) -> Result<(), AlertsError> {
    let [usual, instead] = directories(settings);
    enqueue_in(settings, &usual, alert).or_else(|error| {
        log::error!("{error}; the alert is queued in {}", instead.display());
        enqueue_in(settings, &instead, alert)
    })
}

fn enqueue_in(settings: &Settings, directory: &Path, alert: &Alert) -> Result<(), AlertsError> {
    let _lock = lock(directory, "queue.lock", Wait::Forever)?;
    let now = Timestamp::now();
    let window = settings.alerts.fold_window;
    let entries = read_all(directory)?;
    for (path, mut entry) in entries.iter().rev().cloned() {
        let age = now.duration_since(entry.at).unsigned_abs();
        if entry.alert == *alert && age < window {
            entry.count = entry.count.saturating_add(1);
            return write(&path, &entry);
        }
    }
    if entries.len() >= settings.alerts.queue_limit {
        make_room(&entries)?;
    }
    let entry = QueueEntry {
        alert: alert.clone(),
        node: settings.local().name.clone(),
        at: now,
        count: 1,
        pending: settings
            .alerts
            .channels
            .iter()
            .map(|c| c.name.clone())
            .collect(),
        refusals: std::collections::BTreeMap::new(),
    };
    // The order is that of the queue, not of a clock that may jump.
    let next = entries
        .last()
        .and_then(|(path, _)| path.file_stem()?.to_str()?.parse::<u64>().ok())
        .map_or(1, |n| n + 1);
    write(&directory.join(format!("{next:012}.json")), &entry)
}

/// Delivered entries stay until the fold window is over, so that repeats find them.
pub(crate) fn forget_delivered(settings: &Settings, directory: &Path) -> Result<(), AlertsError> {
    let _lock = lock(directory, "queue.lock", Wait::Forever)?;
    let now = Timestamp::now();
    let entries = read_all(directory)?;
    // The last file stays: its number is the queue's memory of its order.
    for (path, entry) in entries.iter().rev().skip(1) {
        let age = now.duration_since(entry.at).unsigned_abs();
        if entry.pending.is_empty() && age >= settings.alerts.fold_window {
            fs::remove_file(path).map_err(failed(path))?;
        }
    }
    Ok(())
}

fn make_room(entries: &[(PathBuf, QueueEntry)]) -> Result<(), AlertsError> {
    let oldest_of_least = entries.iter().min_by_key(|(path, entry)| {
        (
            !entry.pending.is_empty(),
            entry.alert.severity,
            path.clone(),
        )
    });
    if let Some((path, entry)) = oldest_of_least {
        log::error!(
            "the queue of alerts is full; dropped: {}",
            entry.alert.message
        );
        fs::remove_file(path).map_err(failed(path))?;
    }
    Ok(())
}

/// Everything in the queue, the oldest first.
pub fn queue(settings: &Settings) -> Result<Vec<QueueEntry>, AlertsError> {
    let mut waiting = Vec::new();
    for directory in usable(settings) {
        let entries = read_all(&directory)?.into_iter();
        waiting.extend(
            entries
                .map(|(_, entry)| entry)
                .filter(|entry| !entry.pending.is_empty()),
        );
    }
    Ok(waiting)
}

pub(crate) fn read_all(directory: &Path) -> Result<Vec<(PathBuf, QueueEntry)>, AlertsError> {
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Ok(listing) => {
            for item in listing {
                let path = item.map_err(failed(directory))?.path();
                if path.extension().is_some_and(|e| e == "json") {
                    paths.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(directory)(error)),
    }
    paths.sort();
    let mut entries = Vec::new();
    for path in paths {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // Forgotten by another process in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path)(error)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(entry) => entries.push((path, entry)),
            Err(error) => set_aside(&path, &error),
        }
    }
    Ok(entries)
}

/// A damaged file must not block the others, and is not thrown away either.
fn set_aside(path: &Path, why: &serde_json::Error) {
    let damaged = path.with_extension("damaged");
    log::error!(
        "{}: damaged ({why}); kept as {}",
        path.display(),
        damaged.display()
    );
    if let Err(error) = fs::rename(path, &damaged) {
        log::error!("{}: {error}", path.display());
    }
}

pub(crate) fn write(path: &Path, entry: &QueueEntry) -> Result<(), AlertsError> {
    Ok(JsonFile::durable(path.to_owned(), 1).replace(entry)?)
}

/// The text a person reads.
pub(crate) fn text(entry: &QueueEntry) -> String {
    let mark = match entry.alert.severity {
        Severity::Info => "INFO",
        Severity::Warning => "WARNING",
        Severity::Critical => "CRITICAL",
    };
    let times = if entry.count > 1 {
        format!(" ({} times)", entry.count)
    } else {
        String::new()
    };
    format!(
        "[{mark}] {} {} {}: {}{times}",
        entry.node,
        entry.at.strftime("%Y-%m-%d %H:%M:%SZ"),
        entry.alert.event,
        entry.alert.message
    )
}
