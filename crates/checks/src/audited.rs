//! What the audit, a role change and the operator left for the checks.

use nodefiles::{fitness, peers, role_lock};
use role::Fitness;
use settings::Settings;

use crate::clock::Moment;
use crate::store;

/// The audit's verdict on this node, when it is young enough to be believed.
pub(crate) fn fitness(settings: &Settings, now: &Moment) -> Option<Fitness> {
    let verdict = store::read(&fitness::file(settings))?;
    is_young(settings, now, verdict.at, verdict.boot_id).then_some(verdict.fitness)
}

/// Why no peer may hold the VIP; none when one may, or when nothing recent is known of them.
pub(crate) fn every_peer_unfit(settings: &Settings, now: &Moment) -> Option<String> {
    let verdicts = store::read(&peers::file(settings))?;
    if !is_young(settings, now, verdicts.at, verdicts.boot_id) {
        return None;
    }
    let mut reasons = Vec::new();
    for peer in settings.peers() {
        // A peer that the audit does not name is not known to be unfit.
        let verdict = verdicts.peers.iter().find(|v| v.name == peer.name)?;
        if verdict.fit {
            return None;
        }
        reasons.push(format!("{}: {}", verdict.name, verdict.why));
    }
    // A single node has nowhere to go, but Keepalived need not run there at all.
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn is_young(settings: &Settings, now: &Moment, at: f64, boot_id: String) -> bool {
    Moment { at, boot_id }.is_young(now, settings.checks.verdict_age)
}

/// Whether a role change is in progress here.
pub(crate) fn role_is_changing(settings: &Settings) -> bool {
    role_lock::is_held(settings).unwrap_or_else(|error| {
        log::warn!("{error}");
        false
    })
}
