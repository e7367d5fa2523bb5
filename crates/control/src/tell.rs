//! What others are told: the failover log, alerts, and the verdicts that checks read.

use std::path::Path;

use alerts::Severity;
use nodefiles::cause::{self, Cause, Topic};
use nodefiles::fitness::{self, OwnVerdict};
use nodefiles::peers::{self, PeerVerdict, PeerVerdicts};
use nodefiles::writable::{self, Place};
use nodefiles::{Durability, JsonFile, replace_json};
use observe::{boot_id, uptime_seconds};
use role::Observation;
use serde::Serialize;
use settings::Settings;

use crate::resident;

/// A line in the failover log, in the original's form. Where the disk of the logs may hang it is in the journal alone:
/// who changes roles must not be held.
pub fn failover_log(settings: &Settings, text: &str) {
    log_line(settings, &settings.paths.failover_log, text);
}

/// The same in another log.
pub fn log_line(settings: &Settings, path: &Path, text: &str) {
    if logs_may_hang(settings) {
        log::info!("{text}");
    } else {
        alerts::log_line(path, text);
    }
}

/// Whether who writes to a log may be held for ever.
pub fn logs_may_hang(settings: &Settings) -> bool {
    writable::may_hang(settings, Place::Logs, &resident::now())
}

/// An alert and a line in the failover log.
pub fn alert(settings: &Settings, event: &str, severity: Severity, text: &str) {
    failover_log(settings, text);
    alerts::raise(settings, event, severity, text);
}

/// Writes this node's fitness, and what is known of the peers', for the checks.
pub fn verdicts(settings: &Settings, seen: &Observation) {
    let at = uptime_seconds();
    let own = OwnVerdict {
        at,
        boot_id: boot_id(),
        fitness: role::fitness(seen),
    };
    write(&fitness::file(settings), &own);
    let peers = seen
        .peers
        .iter()
        .map(|peer| {
            let fitness = role::peer_fitness(seen, peer);
            PeerVerdict {
                name: peer.name.clone(),
                fit: fitness.is_fit(),
                why: fitness.into_reason(),
            }
        })
        .collect();
    let peers = PeerVerdicts {
        at,
        boot_id: boot_id(),
        peers,
    };
    write(&peers::file(settings), &peers);
}

/// Alerts a cause once when it has lasted for `after` seconds, and forgets it when it is gone.
pub fn cause(settings: &Settings, topic: Topic, cause: Option<(&str, f64)>) {
    let file = cause::file(settings, topic);
    let told = cause::read(settings, topic);
    let (attention, settled) = match topic {
        Topic::Role => ("role-attention", "role-settled"),
        Topic::Settings => ("settings-mistake", "settings-mended"),
        Topic::Files => ("files-unusable", "files-usable"),
        Topic::Window => ("windows-differ", "windows-agree"),
        Topic::Events => ("events-attention", "events-settled"),
    };
    let Some((text, after)) = cause else {
        if told != Cause::default() {
            if told.alerted {
                alert(
                    settings,
                    settled,
                    Severity::Info,
                    &format!("settled: {}", told.cause),
                );
            }
            write(&file, &Cause::default());
        }
        return;
    };
    let now = uptime_seconds();
    // One from the future is of another boot.
    let mut next = if told.cause == text && told.since <= now {
        told.clone()
    } else {
        Cause {
            cause: text.to_owned(),
            since: now,
            alerted: false,
        }
    };
    let repeat = now - next.since > settings.role.realert.as_secs_f64();
    if now - next.since >= after && (!next.alerted || repeat) {
        alert(settings, attention, Severity::Critical, text);
        next.alerted = true;
        next.since = if repeat { now } else { next.since };
    }
    if next != told {
        write(&file, &next);
    }
}

/// A moment as a part of a file's name.
pub fn stamp(moment: jiff::Timestamp) -> String {
    moment.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Replaces a file at once.
pub fn write<T: Serialize>(file: &JsonFile<T>, value: &T) {
    if let Err(error) = file.replace(value) {
        log::error!("{error}");
    }
}

/// The same for a value without a version. Any account may read it, whatever the umask of who typed a command.
pub fn write_json(path: &Path, value: &impl Serialize) {
    if let Err(error) = replace_json(path, 0o644, value, Durability::Visible) {
        log::error!("{error}");
    }
}
