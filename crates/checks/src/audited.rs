//! What the audit, a role change and the operator left for the checks.

use std::fs::File;
use std::io;

use role::Fitness;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use settings::Settings;

use crate::clock::Moment;
use crate::store;

/// The audit's verdict on this node.
const FITNESS_FILE: &str = "fitness.json";
/// The audit's verdicts on the peers.
const PEERS_FILE: &str = "peers.json";
/// Held exclusively by whatever changes a role here.
const ROLE_LOCK: &str = "role.lock";

#[derive(Debug, Deserialize)]
struct FitnessFile {
    #[serde(flatten)]
    moment: Moment,
    fitness: Fitness,
}

#[derive(Debug, Deserialize)]
struct PeersFile {
    #[serde(flatten)]
    moment: Moment,
    peers: Vec<PeerVerdict>,
}

#[derive(Debug, Deserialize)]
struct PeerVerdict {
    name: String,
    fit: bool,
    why: String,
}

/// The audit's verdict on this node, when it is young enough to be believed.
pub(crate) fn fitness(settings: &Settings, now: &Moment) -> Option<Fitness> {
    let file: FitnessFile = store::read(&settings.paths.run.join(FITNESS_FILE))?;
    file.moment
        .is_young(now, settings.checks.verdict_age)
        .then_some(file.fitness)
}

/// Why no peer may hold the VIP; none when one may, or when nothing recent is known of them.
pub(crate) fn every_peer_unfit(settings: &Settings, now: &Moment) -> Option<String> {
    let file: PeersFile = store::read(&settings.paths.run.join(PEERS_FILE))?;
    if !file.moment.is_young(now, settings.checks.verdict_age) {
        return None;
    }
    let mut reasons = Vec::new();
    for peer in settings.peers() {
        // A peer that the audit does not name is not known to be unfit.
        let verdict = file.peers.iter().find(|v| v.name == peer.name)?;
        if verdict.fit {
            return None;
        }
        reasons.push(format!("{}: {}", verdict.name, verdict.why));
    }
    // A single node has nowhere to go, but Keepalived need not run there at all.
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Whether a role change is in progress here. The lock is tried and let go at once.
pub(crate) fn role_is_changing(settings: &Settings) -> bool {
    let path = settings.paths.run.join(ROLE_LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                log::warn!("{}: {error}", path.display());
            }
            return false;
        }
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(rustix::io::Errno::WOULDBLOCK) => true,
        Err(error) => {
            log::warn!("{}: {error}", path.display());
            false
        }
    }
}
