//! The queue on disk: one file an alert, in the order of their names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
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

pub(crate) fn directory(settings: &Settings) -> PathBuf {
    settings.paths.state.join("alerts")
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> AlertsError + '_ {
    move |source| AlertsError {
        path: path.to_owned(),
        source,
    }
}

/// An exclusive lock on the queue, or on its delivery, as long as the value lives.
pub(crate) fn lock(
    settings: &Settings,
    name: &str,
    wait: bool,
) -> Result<Option<File>, AlertsError> {
    let directory = directory(settings);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(failed(&directory))?;
    let path = directory.join(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed(&path))?;
    let operation = if wait {
        FlockOperation::LockExclusive
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(&path)(error.into())),
    }
}

/// Writes an alert to disk; when this returns it survives a crash. An equal one within the fold
/// window is counted instead.
pub fn enqueue(settings: &Settings, alert: &Alert) -> Result<(), AlertsError> {
    let _lock = lock(settings, "queue.lock", true)?;
    let now = Timestamp::now();
    let window = settings.alerts.fold_window;
    let entries = read_all(settings)?;
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
    write(
        &directory(settings).join(format!("{next:012}.json")),
        &entry,
    )
}

/// Delivered entries stay until the fold window is over, so that repeats find them.
pub(crate) fn forget_delivered(settings: &Settings) -> Result<(), AlertsError> {
    let _lock = lock(settings, "queue.lock", true)?;
    let now = Timestamp::now();
    let entries = read_all(settings)?;
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
    Ok(read_all(settings)?
        .into_iter()
        .map(|(_, entry)| entry)
        .filter(|entry| !entry.pending.is_empty())
        .collect())
}

pub(crate) fn read_all(settings: &Settings) -> Result<Vec<(PathBuf, QueueEntry)>, AlertsError> {
    let directory = directory(settings);
    let mut paths = Vec::new();
    match fs::read_dir(&directory) {
        Ok(listing) => {
            for item in listing {
                let path = item.map_err(failed(&directory))?.path();
                if path.extension().is_some_and(|e| e == "json") {
                    paths.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&directory)(error)),
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
    let write = || -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(entry)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(failed(path))
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
