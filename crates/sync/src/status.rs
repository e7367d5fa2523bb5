//! From the threads' state to what `sync.json` says. Pure but for the clock.

use std::time::Instant;

use nodefiles::sync_status::{
    Quarantined, StandbyState as Served, StandbyStatus, SyncState, SyncStatus, TreeStatus,
};
use settings::Settings;

use crate::state::{Filling, StandbyState, State};

/// Paths of the quarantine that are listed.
const LISTED: usize = 100;

/// The status of a node that watches.
pub fn of_state(
    settings: &Settings,
    state: &State,
    epoch: Option<u64>,
    known_epoch: u64,
) -> SyncStatus {
    let now = Instant::now();
    let trees: Vec<TreeStatus> = state
        .trees
        .iter()
        .zip(0..)
        .map(|(tree, index)| {
            let (watches, polled, files) = state.dirs.totals(index);
            TreeStatus {
                path: tree.path.clone(),
                watches,
                // On a standby nothing is watched, and nothing is to be.
                polled: if epoch.is_some() { polled } else { 0 },
                files,
            }
        })
        .collect();
    let standbys: Vec<StandbyStatus> = state
        .standbys
        .iter()
        .map(|standby| of_standby(state, standby, now))
        .collect();
    let mut status = SyncStatus {
        state: SyncState::Standby,
        reason: None,
        epoch: epoch.unwrap_or(known_epoch),
        paths_behind: standbys.iter().map(|s| s.paths_behind).max().unwrap_or(0),
        bytes_behind: standbys.iter().map(|s| s.bytes_behind).max().unwrap_or(0),
        oldest_unsent_seconds: standbys
            .iter()
            .filter_map(|s| s.oldest_unsent_seconds)
            .reduce(f64::max),
        last_acknowledged: standbys
            .iter()
            .filter_map(|s| s.last_acknowledged)
            .reduce(f64::min),
        watches: trees.iter().map(|tree| tree.watches).sum(),
        overflows: state.overflows,
        retries: standbys.iter().map(|s| s.retries).sum(),
        trees,
        standbys,
        ..empty(settings)
    };
    if epoch.is_some() && !state.scanned {
        status.state = SyncState::Starting;
    } else if epoch.is_some() {
        (status.state, status.reason) = judge(
            &status,
            state.held.as_deref().or(state.lost_root.as_deref()),
        );
    }
    status
}

/// The status of a node that watches nothing, and why.
pub fn blocked(settings: &Settings, why: Option<&str>, epoch: u64) -> SyncStatus {
    SyncStatus {
        state: if why.is_some() {
            SyncState::Held
        } else {
            SyncState::Standby
        },
        reason: why.map(str::to_owned),
        epoch,
        ..empty(settings)
    }
}

/// The status before anything is known.
pub fn starting(settings: &Settings, epoch: u64) -> SyncStatus {
    SyncStatus {
        epoch,
        ..empty(settings)
    }
}

fn empty(settings: &Settings) -> SyncStatus {
    SyncStatus {
        node: settings.local().name.clone(),
        at: observe::uptime_seconds(),
        pid: std::process::id(),
        state: SyncState::Starting,
        reason: None,
        epoch: 0,
        paths_behind: 0,
        bytes_behind: 0,
        oldest_unsent_seconds: None,
        last_acknowledged: None,
        watches: 0,
        overflows: 0,
        retries: 0,
        trees: Vec::new(),
        standbys: Vec::new(),
    }
}

fn of_standby(state: &State, standby: &StandbyState, now: Instant) -> StandbyStatus {
    let paths_behind = standby.behind() + state.unread();
    let served = match (standby.connected, &standby.reason) {
        (true, _) if !standby.complete => Served::Filling,
        (true, _) if paths_behind > 0 => Served::Behind,
        (true, _) => Served::InSync,
        (false, None) => Served::Connecting,
        (false, Some(_)) if standby.refusing => Served::Refusing,
        (false, Some(_)) => Served::Unreachable,
    };
    StandbyStatus {
        name: standby.name.clone(),
        state: served,
        reason: standby.reason.clone(),
        paths_behind: paths_behind as u64,
        bytes_behind: standby
            .filling
            .as_ref()
            .map_or(standby.bytes, Filling::bytes_left),
        progress: standby
            .filling
            .as_ref()
            .map(|filling| filling.for_a_person(now)),
        oldest_unsent_seconds: standby
            .queue
            .oldest()
            .map(|at| now.saturating_duration_since(at).as_secs_f64()),
        last_acknowledged: standby.last_acknowledged,
        retries: standby.retries,
        quarantined: standby
            .quarantine
            .iter()
            // One try may have met a change in its middle.
            .filter(|(_, (_, tries))| *tries > 1)
            .take(LISTED)
            .map(|(key, (reason, _))| Quarantined {
                path: state
                    .dirs
                    .path_of(key)
                    .map(|path| String::from_utf8_lossy(&path).into_owned())
                    .unwrap_or_default(),
                reason: reason.clone(),
            })
            .collect(),
    }
}

/// The one word for the whole, and what a person should know.
fn judge(status: &SyncStatus, held: Option<&str>) -> (SyncState, Option<String>) {
    if let Some(why) = held {
        return (SyncState::Held, Some(why.to_owned()));
    }
    for standby in &status.standbys {
        if matches!(standby.state, Served::Unreachable | Served::Refusing) {
            let why = standby.reason.as_deref().unwrap_or_default();
            return (
                SyncState::Degraded,
                Some(format!("{}: {why}", standby.name)),
            );
        }
        if let Some(path) = standby.quarantined.first() {
            let text = format!(
                "{} cannot take {}: {}",
                standby.name, path.path, path.reason
            );
            return (SyncState::Degraded, Some(text));
        }
    }
    let polled: u64 = status.trees.iter().map(|tree| tree.polled).sum();
    if polled > 0 {
        let text = format!(
            "{polled} directories cannot be watched and are polled every 5 s; raise fs.inotify.max_user_watches"
        );
        return (SyncState::Degraded, Some(text));
    }
    let any = |wanted: &[Served]| status.standbys.iter().any(|s| wanted.contains(&s.state));
    if any(&[Served::Connecting, Served::Filling]) {
        (SyncState::Starting, None)
    } else if any(&[Served::Behind]) {
        (SyncState::Behind, None)
    } else {
        (SyncState::InSync, None)
    }
}

/// The status in a few lines for a person.
pub fn for_a_person(status: &SyncStatus, age_seconds: f64) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} of {}", word(status.state), status.node);
    // Writing to a String cannot fail.
    if let Some(reason) = &status.reason {
        let _ = write!(text, ": {reason}");
    }
    let _ = write!(
        text,
        "\n  epoch {}, told {age_seconds:.1} s ago by pid {}",
        status.epoch, status.pid
    );
    for tree in &status.trees {
        let _ = write!(
            text,
            "\n  {}: {} directories watched",
            tree.path.display(),
            tree.watches
        );
        if tree.polled > 0 {
            let _ = write!(text, ", {} polled", tree.polled);
        }
        let _ = write!(text, ", about {} files", tree.files);
    }
    for standby in &status.standbys {
        let _ = write!(
            text,
            "\n  {}: {:?}, {} names behind, {} failed tries",
            standby.name, standby.state, standby.paths_behind, standby.retries
        );
        if let Some(oldest) = standby.oldest_unsent_seconds {
            let _ = write!(text, ", the oldest for {oldest:.1} s");
        }
        if let Some(progress) = &standby.progress {
            let _ = write!(text, "\n    {progress}");
        }
        for path in &standby.quarantined {
            let _ = write!(text, "\n    set aside: {}: {}", path.path, path.reason);
        }
    }
    if status.overflows > 0 {
        let _ = write!(
            text,
            "\n  the kernel's queue has overflowed {} times since the start",
            status.overflows
        );
    }
    text
}

fn word(state: SyncState) -> &'static str {
    match state {
        SyncState::Starting => "starting: the standby is not known to be complete",
        SyncState::InSync => "in sync",
        SyncState::Behind => "behind",
        SyncState::Held => "HELD",
        SyncState::Degraded => "degraded",
        SyncState::Standby => "standby",
    }
}
