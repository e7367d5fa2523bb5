//! Delivery: for each channel in order and beside the others, with back-off that survives restarts. At least once: a
//! kill between the answer and the note of it repeats one alert.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use nodefiles::{Durability, Wait, read_json, replace_json};
use serde::{Deserialize, Serialize};
use settings::{Channel, ChannelKind, Settings, read_secret};

use crate::send::{Outcome, send};
use crate::spool::{self, AlertsError, QueueEntry};

/// Longest wait between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(900);
/// A channel that refuses one alert this often, while it takes others, loses that alert.
const REFUSALS: u32 = 3;
/// More than an entry takes.
const BLOCK: usize = 4096;

/// What a flush did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Deliveries made.
    pub delivered: usize,
    /// Deliveries that are still to be made.
    pub waiting: usize,
    /// Another flush is running.
    pub busy: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Backoff {
    failures: u32,
    not_before: Option<Timestamp>,
    /// The last try.
    #[serde(default)]
    tried: Option<Timestamp>,
    /// The server named the time.
    #[serde(default)]
    named: bool,
}

impl Backoff {
    fn is_over(&self) -> bool {
        let wait = self
            .not_before
            .map(|at| at.duration_since(Timestamp::now()));
        // A clock that was set back must not make the wait longer than it can be.
        !wait.is_some_and(|wait| wait.is_positive() && wait.unsigned_abs() <= LONGEST_BACKOFF)
    }

    /// What happened since the last try is tried at once, unless the server asked for patience.
    fn is_over_for(&self, newest: Option<Timestamp>) -> bool {
        self.is_over() || (!self.named && newest > self.tried)
    }

    fn later(&mut self, settings: &Settings, after: Option<Duration>) {
        self.tried = Some(Timestamp::now());
        self.named = after.is_some();
        let doubled = settings
            .alerts
            .backoff
            .saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        let wait = after.unwrap_or(doubled).min(LONGEST_BACKOFF);
        self.not_before = Some(Timestamp::now() + wait);
    }
}

/// Delivers what is due. A second flush at the same time returns at once. A queue that cannot be used does not keep
/// the other one from it; the first failure is the answer.
pub fn flush(settings: &Settings) -> Result<Report, AlertsError> {
    let mut report = Report::default();
    let mut first = Ok(());
    for directory in spool::usable(settings) {
        // The one in the run directory is there only when it was needed.
        if directory.exists() || directory.starts_with(&settings.paths.state) {
            let flushed = flush_queue(settings, &directory, &mut report);
            first = first.and(flushed);
        }
    }
    first?;
    report.waiting = spool::queue(settings)?
        .iter()
        .map(|e| e.pending.len())
        .sum();
    Ok(report)
}

fn flush_queue(
    settings: &Settings,
    directory: &Path,
    report: &mut Report,
) -> Result<(), AlertsError> {
    let Some(_lock) = spool::lock(directory, "delivery.lock", Wait::AtMost(Duration::ZERO))? else {
        report.busy = true;
        return Ok(());
    };
    let path = directory.join("backoff");
    let mut backoffs: BTreeMap<String, Backoff> = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let entries = spool::read_all(directory)?;
    let waits_for = |channel: &Channel| -> VecDeque<_> {
        let all = entries.iter();
        all.filter(|(_, entry)| entry.pending.contains(&channel.name))
            .cloned()
            .collect()
    };
    let due: Vec<_> = settings
        .alerts
        .channels
        .iter()
        .map(|channel| (channel, waits_for(channel)))
        .filter(|(channel, waiting)| {
            let newest = waiting.iter().map(|(_, entry)| entry.at).max();
            backoffs
                .get(&channel.name)
                .is_none_or(|backoff| backoff.is_over_for(newest))
        })
        .collect();
    // Beside each other: one that hangs holds up no other.
    let ended: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = due
            .into_iter()
            .map(|(channel, waiting)| Delivery {
                settings,
                directory,
                channel,
                waiting,
                backoff: backoffs.remove(&channel.name).unwrap_or_default(),
                delivered: 0,
                refused: Vec::new(),
            })
            .map(|delivery| scope.spawn(|| delivery.run()))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let mut first = Ok(());
    for (delivery, result) in ended {
        report.delivered += delivery.delivered;
        backoffs.insert(delivery.channel.name.clone(), delivery.backoff);
        first = first.and(result);
    }
    if let Err(error) = replace_json(&path, 0o600, &backoffs, Durability::Visible) {
        log::warn!("{error}");
    }
    first?;
    spool::forget_delivered(settings, directory)
}

/// What one channel gets of a queue, in its order.
struct Delivery<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    channel: &'a Channel,
    waiting: VecDeque<(PathBuf, QueueEntry)>,
    backoff: Backoff,
    delivered: usize,
    /// What it did not take, and its answers.
    refused: Vec<(PathBuf, String)>,
}

impl Delivery<'_> {
    fn run(mut self) -> (Self, Result<(), AlertsError>) {
        let result = self.deliver().and_then(|()| self.count_refusals());
        (self, result)
    }

    fn deliver(&mut self) -> Result<(), AlertsError> {
        while let Some((path, entry)) = self.waiting.pop_front() {
            let markable = self.markable(&path);
            let name = Beside::name(&path, &entry);
            if Beside::read(self.settings).has(&name, self.channel) {
                if markable.is_ok() {
                    self.take_off(&path)?;
                    self.beside(|sent| sent.forget(&name, self.channel))?;
                }
                continue;
            }
            let marked_beside = markable.is_err();
            if let Err(error) = markable {
                // One that could not be marked anywhere would be sent again and again.
                self.beside(|_| ()).map_err(|_| error)?;
            }
            match send(self.settings, self.channel, &entry) {
                Outcome::Delivered => {
                    self.delivered += 1;
                    self.backoff = Backoff::default();
                    if marked_beside {
                        let channel = self.channel;
                        self.beside(|sent| sent.add(name, channel))?;
                    } else {
                        self.take_off(&path)?;
                    }
                }
                Outcome::Refused(why) => {
                    self.refused.push((path, why));
                    match self.refused.len() {
                        // It may be the channel, and not the alerts: the newest tells.
                        2 if self.delivered == 0 => {
                            if let Some(newest) = self.waiting.pop_back() {
                                self.waiting.push_front(newest);
                            }
                        }
                        3.. if self.delivered == 0 => return Ok(()),
                        _ => {}
                    }
                }
                Outcome::Later(why, after) => {
                    log::warn!("{}: not delivered: {why}", self.channel.name);
                    self.backoff.later(self.settings, after);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// An alert that is refused while others are taken is at fault itself, and is given up after some tries. Where none
    /// is taken it is the channel, which may be mended: then nothing is given up.
    fn count_refusals(&mut self) -> Result<(), AlertsError> {
        let name = &self.channel.name;
        for (path, why) in std::mem::take(&mut self.refused) {
            if self.delivered == 0 {
                log::warn!("{name}: refused: {why}");
                self.backoff.later(self.settings, None);
                return Ok(());
            }
            change(self.directory, &path, |entry| {
                let count = entry.refusals.entry(name.clone()).or_default();
                *count += 1;
                log::warn!("{name}: refused, try {count} of {REFUSALS}: {why}");
                if *count >= REFUSALS {
                    log::error!("{name}: gave up on: {}", entry.alert.message);
                    entry.pending.retain(|pending| pending != name);
                }
            })?;
        }
        Ok(())
    }

    /// This channel has it.
    fn take_off(&self, path: &Path) -> Result<(), AlertsError> {
        change(self.directory, path, |entry| {
            entry.pending.retain(|name| *name != self.channel.name);
        })
    }

    fn beside(&self, change: impl FnOnce(&mut Beside)) -> Result<(), AlertsError> {
        let _lock = spool::lock(self.directory, "queue.lock", Wait::Forever)?;
        let mut sent = Beside::read(self.settings);
        change(&mut sent);
        sent.keep(self.settings)
    }

    /// Whether this entry can be replaced; tried beside it.
    fn markable(&self, path: &Path) -> Result<(), AlertsError> {
        let _lock = spool::lock(self.directory, "queue.lock", Wait::Forever)?;
        let beside = path.with_extension("tried");
        let tried = fs::write(&beside, [0; BLOCK]);
        // Also after a failure: an empty file may be there.
        let _ = fs::remove_file(&beside);
        tried.map_err(spool::failed(path))
    }
}

/// Changes an entry under the lock of the queue, as it is by now: a hook may have counted it up. One that is damaged or
/// forgotten meanwhile is left.
fn change(
    directory: &Path,
    path: &Path,
    change: impl FnOnce(&mut QueueEntry),
) -> Result<(), AlertsError> {
    let _lock = spool::lock(directory, "queue.lock", Wait::Forever)?;
    let Ok(Some(mut entry)) = read_json::<QueueEntry>(path) else {
        return Ok(());
    };
    change(&mut entry);
    spool::write(path, &entry).or_else(|error| {
        // Full since it was tried. To remove it needs no space, and once everybody has it nothing is lost.
        if entry.pending.is_empty() {
            fs::remove_file(path).map_err(spool::failed(path))?;
        }
        Err(error)
    })
}

/// `alerts-sent.json` in the run directory: by the name of an entry, the channels that have it where the entry itself
/// could not be marked.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Beside(BTreeMap<String, BTreeSet<String>>);

impl Beside {
    fn path(settings: &Settings) -> PathBuf {
        settings.paths.run.join("alerts-sent.json")
    }

    /// A damaged file is an empty one: an alert that is told twice is better than one that is not told.
    fn read(settings: &Settings) -> Self {
        read_json(&Self::path(settings))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// The moment belongs to it: an empty queue begins its numbers anew.
    fn name(path: &Path, entry: &QueueEntry) -> String {
        format!("{} {}", path.display(), entry.at)
    }

    fn has(&self, name: &str, channel: &Channel) -> bool {
        let sent = self.0.get(name);
        sent.is_some_and(|channels| channels.contains(&channel.name))
    }

    fn add(&mut self, name: String, channel: &Channel) {
        let sent = self.0.entry(name).or_default();
        sent.insert(channel.name.clone());
    }

    fn forget(&mut self, name: &str, channel: &Channel) {
        if let Some(channels) = self.0.get_mut(name) {
            channels.remove(&channel.name);
        }
        self.0.retain(|_, channels| !channels.is_empty());
    }

    fn keep(&self, settings: &Settings) -> Result<(), AlertsError> {
        let path = Self::path(settings);
        Ok(replace_json(&path, 0o600, self, Durability::Visible)?)
    }
}

/// What is wrong with the channels' secrets, which are read when an alert is delivered: a wrong one costs its channel
/// only.
pub fn wrong_secrets(settings: &Settings) -> Vec<String> {
    let wrong = settings.alerts.channels.iter().filter_map(|channel| {
        let read = match &channel.kind {
            ChannelKind::Telegram { token_file, .. } | ChannelKind::Bale { token_file, .. } => {
                read_secret(token_file, None)
            }
            ChannelKind::Webhook { url } => url.read(),
        };
        let why = read.err()?;
        Some(format!("alerts.channel `{}`: {why}", channel.name))
    });
    wrong.collect()
}

/// Sends a test alert to every channel now, and says what came back.
pub fn test_channels(settings: &Settings) -> Vec<(String, Result<(), String>)> {
    let entry = QueueEntry {
        alert: crate::Alert {
            event: "test".to_owned(),
            severity: crate::Severity::Info,
            message: "test of the alerts; nothing has happened".to_owned(),
        },
        node: settings.local().name.clone(),
        at: Timestamp::now(),
        count: 1,
        pending: Vec::new(),
        refusals: BTreeMap::new(),
    };
    settings
        .alerts
        .channels
        .iter()
        .map(|channel| {
            let result = match send(settings, channel, &entry) {
                Outcome::Delivered => Ok(()),
                Outcome::Refused(why) | Outcome::Later(why, _) => Err(why),
            };
            (channel.name.clone(), result)
        })
        .collect()
}
