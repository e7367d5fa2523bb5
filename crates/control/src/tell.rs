//! What others are told: the failover log, alerts, and the verdicts that checks read.

use std::fs;
use std::path::Path;

use alerts::Severity;
use observe::{boot_id, uptime_seconds};
use role::{Fitness, Observation};
use serde::{Deserialize, Serialize};
use settings::Settings;
use statefile::{Durability, replace_json};

/// A line in the failover log, in the original's form.
pub fn failover_log(settings: &Settings, text: &str) {
    alerts::log_line(&settings.paths.failover_log, text);
}

/// An alert and a line in the failover log.
pub fn alert(settings: &Settings, event: &str, severity: Severity, text: &str) {
    failover_log(settings, text);
    alerts::raise(settings, event, severity, text);
}

#[derive(Serialize)]
struct FitnessFile<'a> {
    at: f64,
    boot_id: String,
    fitness: &'a Fitness,
}

#[derive(Serialize)]
struct PeersFile {
    at: f64,
    boot_id: String,
    peers: Vec<PeerFitness>,
}

#[derive(Serialize)]
struct PeerFitness {
    name: String,
    fit: bool,
    why: String,
}

/// Writes this node's fitness, and what is known of the peers', for the checks.
pub fn verdicts(settings: &Settings, seen: &Observation) {
    let at = uptime_seconds();
    let fitness = role::fitness(seen);
    write_json(
        &settings.paths.run.join("fitness.json"),
        &FitnessFile {
            at,
            boot_id: boot_id(),
            fitness: &fitness,
        },
    );
    let peers = seen
        .peers
        .iter()
        .map(|peer| {
            let fitness = role::peer_fitness(seen, peer);
            PeerFitness {
                name: peer.name.clone(),
                fit: fitness.is_fit(),
                why: fitness.into_reason(),
            }
        })
        .collect();
    write_json(
        &settings.paths.run.join("peers.json"),
        &PeersFile {
            at,
            boot_id: boot_id(),
            peers,
        },
    );
}

/// What was alerted last, so that one cause is told once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Told {
    cause: String,
    since: f64,
    alerted: bool,
}

/// Alerts a cause once when it has lasted for `after` seconds, and forgets it when it is gone.
pub fn cause(settings: &Settings, cause: Option<(&str, f64)>) {
    let path = settings.paths.run.join("cause.json");
    let told: Told = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let Some((text, after)) = cause else {
        if told != Told::default() {
            if told.alerted {
                alert(
                    settings,
                    "role-settled",
                    Severity::Info,
                    &format!("settled: {}", told.cause),
                );
            }
            write_json(&path, &Told::default());
        }
        return;
    };
    let now = uptime_seconds();
    let mut next = if told.cause == text {
        told.clone()
    } else {
        Told {
            cause: text.to_owned(),
            since: now,
            alerted: false,
        }
    };
    let repeat = now - next.since > settings.role.realert.as_secs_f64();
    if now - next.since >= after && (!next.alerted || repeat) {
        alert(settings, "role-attention", Severity::Critical, text);
        next.alerted = true;
        next.since = if repeat { now } else { next.since };
    }
    if next != told {
        write_json(&path, &next);
    }
}

/// A moment as a part of a file's name.
pub fn stamp(moment: jiff::Timestamp) -> String {
    moment.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Replaces a file at once. Any account may read it, whatever the umask of who typed a command.
pub fn write_json(path: &Path, value: &impl Serialize) {
    if let Err(error) = replace_json(path, 0o644, value, Durability::Visible) {
        log::error!("{error}");
    }
}
