//! sync-realtime as the checks of this node see it, and what a fault of it means for the VIP.
//!
//! Most of what can be wrong with the file synchronisation gets worse by a failover: what was not
//! sent stays behind. So only a fault of the active node itself lets go of the VIP, only when repair
//! has had its time, and only when some other node may do better. A standby serves the files that it
//! has received, for which it needs no sync-realtime, so it stays eligible whatever is wrong here.

use std::time::Duration;

use nodefiles::role_state::{NodeRole, RoleState};
use nodefiles::sync_status::SyncStatus;
use observe::UnitState;
use settings::{Checks, Settings};

use crate::audited;
use crate::clock::Moment;
use crate::repair::{self, Condition, History, WhenHung};
use crate::run::{Finding, Scene, Unit};
use crate::verdict::Verdict;

/// Its unit.
pub(crate) const UNIT: &str = "sync-realtime.service";

/// The last that it said of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LastWord {
    /// What it said.
    pub status: SyncStatus,
    /// How long ago; the longest time when that cannot be told.
    pub age: Duration,
    /// For how long the process that said it has been alive; none when it is not.
    pub lived: Option<Duration>,
}

impl LastWord {
    /// Reads it; none when nothing was said in this boot.
    pub fn read(settings: &Settings) -> Option<Self> {
        let status = nodefiles::sync_status::read(settings)?;
        // Not the moment of the check, which may be older than this word.
        let now = Moment::now();
        let said = now.same_boot(status.at);
        let age = said.age(&now).unwrap_or(Duration::MAX);
        let lived = host::started(status.pid).and_then(|at| now.same_boot(at).age(&now));
        Some(Self { status, age, lived })
    }

    /// Whether it is a sign of life.
    pub fn is_fresh(&self, limits: &Checks) -> bool {
        self.age <= limits.verdict_age
    }
}

/// Something is wrong with sync-realtime on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What, for a person.
    pub what: String,
    /// The unit, as far as repair cares.
    pub condition: Condition,
}

impl Fault {
    /// A fault of a unit that is restarted when it hangs.
    pub fn of(unit: &Unit, what: String) -> Self {
        Self {
            what,
            condition: Condition::of(unit.state, unit.alive, WhenHung::Restart),
        }
    }
}

/// Whether sync-realtime lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// It does.
    Steady,
    /// It is being started, or was a moment ago.
    Beginning(String),
    /// It does not.
    Fault(Fault),
}

/// It lives when its unit does and it has said something a moment ago.
pub(crate) fn judge_life(unit: &Unit, word: Option<&LastWord>, limits: &Checks) -> Life {
    let beginning = || Life::Beginning(unit.to_string());
    let Some(word) = word else {
        return match unit.state {
            UnitState::Failed | UnitState::Running => Life::Fault(Fault::of(
                unit,
                format!("sync-realtime has said nothing since the boot; {unit}"),
            )),
            // A node that boots runs its checks before every unit is up.
            UnitState::Starting | UnitState::Stopping | UnitState::Stopped | UnitState::Unknown => {
                beginning()
            }
        };
    };
    match (unit.state, unit.alive) {
        // Its last word may be fresh and yet its last.
        (UnitState::Failed | UnitState::Stopped, _) | (UnitState::Running, false) => {
            return Life::Fault(Fault::of(unit, unit.to_string()));
        }
        (UnitState::Running, true)
        | (UnitState::Starting | UnitState::Stopping | UnitState::Unknown, _) => {}
    }
    if word.is_fresh(limits) {
        return match word.lived {
            Some(lived) if lived >= limits.verdict_age => Life::Steady,
            Some(lived) => Life::Beginning(format!("started {} ago", seconds(lived))),
            None => beginning(),
        };
    }
    if unit.state == UnitState::Starting {
        return beginning();
    }
    Life::Fault(Fault::of(
        unit,
        format!(
            "no sign of life from sync-realtime for {}; {unit}",
            seconds(word.age)
        ),
    ))
}

/// One that begins again and again. systemd restarts it for ever, so its unit never fails, and between two
/// crashes it looks well: only that it never gets old tells.
pub(crate) fn judge_beginning(
    what: &str,
    history: &History,
    limits: &Checks,
    now: &Moment,
) -> Result<(), Fault> {
    let since = history.failing_since.as_ref();
    // As long as repair may take, for it may be repair that makes it begin, and then until it is old.
    let patience = repair::round(limits) + limits.verdict_age * 2;
    if since.is_none_or(|since| since.is_young(now, patience)) {
        return Ok(());
    }
    Err(Fault {
        what: format!("sync-realtime does not stay up: {what}"),
        condition: Condition::LeftAlone,
    })
}

/// What bears on a fault.
#[derive(Debug)]
pub(crate) struct Bearings<'a> {
    /// What this node is; none when that is not known.
    pub role: Option<&'a RoleState>,
    /// Why no peer may hold the VIP.
    pub nowhere_to_go: Option<String>,
    /// What repair has done.
    pub history: History,
    /// Its limits.
    pub limits: &'a Checks,
    /// The moment of this run.
    pub now: &'a Moment,
}

impl Bearings<'_> {
    /// Why the VIP stays in spite of a fault; none when it is to move.
    fn why_kept(&self, condition: Condition) -> Option<String> {
        let role = match self.role {
            Some(state) => match state.role {
                NodeRole::Active => state,
                NodeRole::Standby => {
                    return Some(
                        "a standby can take over with the files that it has received".to_owned(),
                    );
                }
                NodeRole::Changing => return Some("this node's role is changing".to_owned()),
            },
            None => return Some("this node's role is not known".to_owned()),
        };
        if let Some(why) = &self.nowhere_to_go {
            return Some(format!("the peer is unfit ({why})"));
        }
        if repair::may_still_help(&self.history, condition, self.limits, self.now) {
            return Some(format!(
                "repair may still help, {} of {} restarts tried",
                self.history.attempts,
                repair::allowed(self.limits)
            ));
        }
        // Nobody tells a node of its peer's sync-realtime. A fault that both nodes have must not pass
        // the VIP to and fro: it stays where the fault was there before, and where it came just now.
        let became_active = self.now.same_boot(role.at);
        if let Some(since) = &self.history.failing_since {
            if since.age(&became_active).is_some_and(|age| !age.is_zero()) {
                return Some(
                    "it was so before this node became the active one, and no other is known to \
                     be better"
                        .to_owned(),
                );
            }
        }
        let active_for = became_active.age(self.now).unwrap_or_default();
        (active_for < self.limits.repair_forget).then(|| {
            format!(
                "this node has been the active one for {} only",
                seconds(active_for)
            )
        })
    }

    /// The verdict on a fault.
    pub fn judge(&self, fault: &Fault) -> Finding {
        let what = &fault.what;
        let finding = match self.why_kept(fault.condition) {
            None => Finding::failed(Verdict::failed(what)),
            Some(why) => Finding {
                alert: Some(format!("kept: {why}, and here {what}")),
                ..Finding::failed(Verdict::degraded(format!("kept: {why}; {what}")))
            },
        };
        Finding {
            condition: Some(fault.condition),
            ..finding
        }
    }
}

/// The verdict on a fault of this node in this run.
pub(crate) fn judge_fault(scene: &Scene<'_>, role: Option<&RoleState>, fault: &Fault) -> Finding {
    Bearings {
        role,
        nowhere_to_go: audited::every_peer_unfit(scene.settings, &scene.now),
        history: scene.history(),
        limits: &scene.settings.checks,
        now: &scene.now,
    }
    .judge(fault)
}

/// The VIP stays, a person should know, and no restart would help.
pub(crate) fn degraded(reason: impl Into<String>) -> Finding {
    let reason = reason.into();
    Finding {
        alert: Some(reason.clone()),
        ..Finding::healthy(Verdict::degraded(reason))
    }
}

/// A time as a person reads it.
pub(crate) fn seconds(time: Duration) -> String {
    // A moment that cannot be compared is infinitely long ago.
    format!("{:.1} s", time.as_secs_f64().min(1e6))
}

#[cfg(test)]
pub(crate) mod examples {
    //! What the tests of both checks begin with.

    use std::path::PathBuf;

    use nodefiles::sync_status::{StandbyState, StandbyStatus, SyncState, TreeStatus};

    use super::*;

    const BOOT: &str = "boot";

    pub(crate) fn limits() -> Checks {
        Checks {
            deadline: Duration::from_millis(700),
            commit_patience: Duration::from_secs(5),
            repair: true,
            repair_attempts: 3,
            repair_backoff: Duration::from_secs(5),
            repair_forget: Duration::from_secs(300),
            verdict_age: Duration::from_secs(10),
        }
    }

    pub(crate) fn now() -> Moment {
        Moment {
            at: 1000.0,
            boot_id: BOOT.to_owned(),
        }
    }

    pub(crate) fn unit(state: UnitState, alive: bool) -> Unit {
        Unit {
            name: UNIT.to_owned(),
            state,
            alive,
        }
    }

    /// A role since so many seconds.
    pub(crate) fn role(role: NodeRole, since: f64) -> RoleState {
        RoleState {
            role,
            epoch: 3,
            at: now().at - since,
            closed: false,
        }
    }

    /// What an active node says with one standby, and a standby with none.
    pub(crate) fn status(state: SyncState) -> SyncStatus {
        let tree = |path: &str| TreeStatus {
            path: PathBuf::from(path),
            watches: 40,
            polled: 0,
            files: 500,
        };
        let standby = StandbyStatus {
            name: "node2".to_owned(),
            state: StandbyState::InSync,
            reason: None,
            paths_behind: 0,
            bytes_behind: 0,
            oldest_unsent_seconds: None,
            progress: None,
            last_acknowledged: None,
            retries: 0,
            quarantined: Vec::new(),
        };
        SyncStatus {
            node: "node1".to_owned(),
            at: now().at,
            pid: 812,
            state,
            reason: matches!(state, SyncState::Held | SyncState::Degraded)
                .then(|| "look here".to_owned()),
            epoch: 3,
            paths_behind: 0,
            bytes_behind: 0,
            oldest_unsent_seconds: None,
            last_acknowledged: None,
            watches: 80,
            overflows: 0,
            retries: 0,
            trees: vec![tree("/srv/a"), tree("/srv/b")],
            standbys: match state {
                SyncState::Standby => Vec::new(),
                _ => vec![standby],
            },
        }
    }

    /// The status as it was said so many seconds ago.
    pub(crate) fn word(status: SyncStatus, age: f64) -> LastWord {
        LastWord {
            status,
            age: Duration::from_secs_f64(age),
            lived: Some(Duration::from_secs(3600)),
        }
    }
}

#[cfg(test)]
mod tests {
    use nodefiles::sync_status::SyncState;

    use super::examples::{limits, now, role, status, unit, word};
    use super::*;
    use crate::repair::Told;
    use crate::verdict::Level;

    /// What a unit of that state is found to be.
    fn life(state: UnitState, alive: bool, word: Option<&LastWord>) -> &'static str {
        match judge_life(&unit(state, alive), word, &limits()) {
            Life::Steady => "steady",
            Life::Beginning(_) => "beginning",
            Life::Fault(fault) => match fault.condition {
                Condition::Dead => "dead",
                Condition::Unwell => "unwell",
                Condition::Stopping => "stopping",
                Condition::LeftAlone => "left alone",
            },
        }
    }

    #[test]
    fn life_needs_a_unit_and_a_fresh_word() {
        use UnitState::{Failed, Running, Starting, Stopped, Stopping, Unknown};
        // The last word: of a moment ago, too old, none in this boot.
        for (state, alive, fresh, stale, none) in [
            (Running, true, "steady", "unwell", "unwell"),
            (Running, false, "dead", "dead", "dead"),
            (Failed, false, "dead", "dead", "dead"),
            (Failed, true, "left alone", "left alone", "left alone"),
            (Stopped, false, "left alone", "left alone", "beginning"),
            (Starting, true, "steady", "beginning", "beginning"),
            (Starting, false, "steady", "beginning", "beginning"),
            (Stopping, true, "steady", "stopping", "beginning"),
            (Unknown, false, "steady", "left alone", "beginning"),
        ] {
            let (recent, old) = (
                word(status(SyncState::InSync), 10.0),
                word(status(SyncState::InSync), 10.1),
            );
            let found = [Some(&recent), Some(&old), None].map(|word| life(state, alive, word));
            assert_eq!(found, [fresh, stale, none], "{state:?} {alive}");
        }
    }

    #[test]
    fn who_has_not_lived_long_has_only_begun() {
        use UnitState::{Failed, Running, Starting, Unknown};
        for (state, alive, lived, expected) in [
            (Running, true, Some(10.0), "steady"),
            (Running, true, Some(9.9), "beginning"),
            // systemd is about to start the next one.
            (Starting, false, None, "beginning"),
            (Running, true, None, "beginning"),
            (Unknown, false, Some(1.0), "beginning"),
            (Failed, false, None, "dead"),
        ] {
            let word = LastWord {
                lived: lived.map(Duration::from_secs_f64),
                ..word(status(SyncState::InSync), 1.0)
            };
            assert_eq!(
                life(state, alive, Some(&word)),
                expected,
                "{state:?} {lived:?}"
            );
        }
    }

    #[test]
    fn a_beginning_has_an_end() {
        let off = Checks {
            repair: false,
            ..limits()
        };
        for (limits, since, expected) in [
            (limits(), None, true),
            (limits(), Some(55.0), true),
            (limits(), Some(55.1), false),
            (off.clone(), Some(20.0), true),
            (off, Some(20.1), false),
        ] {
            let history = History {
                failing_since: since.map(|since: f64| now().plus(-since)),
                ..History::default()
            };
            let judged = judge_beginning("it starts", &history, &limits, &now());
            assert_eq!(judged.is_ok(), expected, "{since:?}");
        }
    }

    fn failing(attempts: u32, last: f64, since: f64, told: Told) -> History {
        History {
            attempts,
            killed: 0,
            last: (attempts > 0).then(|| now().plus(-last)),
            failing_since: Some(now().plus(-since)),
            healthy_since: None,
            told,
        }
    }

    /// Level, and the reason why the VIP is kept.
    fn bear(
        role: Option<&RoleState>,
        condition: Condition,
        history: &History,
        limits: &Checks,
        nowhere_to_go: Option<&str>,
    ) -> (Level, String) {
        let fault = Fault {
            what: "broken".to_owned(),
            condition,
        };
        let now = now();
        let finding = Bearings {
            role,
            nowhere_to_go: nowhere_to_go.map(str::to_owned),
            history: history.clone(),
            limits,
            now: &now,
        }
        .judge(&fault);
        assert_eq!(finding.condition, Some(condition));
        assert!(finding.verdict.reason.ends_with("broken"));
        assert_eq!(
            finding.alert.is_some(),
            finding.verdict.level == Level::Degraded
        );
        (finding.verdict.level, finding.verdict.reason)
    }

    #[test]
    fn only_an_active_node_fails_and_only_when_repair_is_over() {
        use Condition::{Dead, LeftAlone, Unwell};
        let limits = limits();
        let active = role(NodeRole::Active, 900.0);
        let untried = History::default();
        let begun = failing(2, 3.0, 8.0, Told::Begun);
        let waited = failing(3, 19.0, 34.0, Told::Begun);
        let over = failing(3, 20.0, 35.0, Told::Begun);
        let told = failing(3, 21.0, 36.0, Told::Exhausted);
        let starting = failing(1, 2.0, 3.0, Told::Begun);
        let stopped = failing(0, 0.0, 34.0, Told::Nothing);
        let long_stopped = failing(0, 0.0, 35.0, Told::Nothing);
        for (condition, history, expected, word) in [
            (Dead, &untried, Level::Degraded, "0 of 3 restarts tried"),
            (Unwell, &untried, Level::Degraded, "0 of 3"),
            (LeftAlone, &untried, Level::Degraded, "0 of 3"),
            (Dead, &begun, Level::Degraded, "2 of 3"),
            (Dead, &waited, Level::Degraded, "3 of 3"),
            (Dead, &over, Level::Failed, ""),
            (Dead, &told, Level::Failed, ""),
            (Unwell, &told, Level::Failed, ""),
            (LeftAlone, &told, Level::Failed, ""),
            (LeftAlone, &starting, Level::Degraded, "1 of 3"),
            (LeftAlone, &stopped, Level::Degraded, "0 of 3"),
            (LeftAlone, &long_stopped, Level::Failed, ""),
        ] {
            let (level, why) = bear(Some(&active), condition, history, &limits, None);
            assert_eq!(level, expected, "{condition:?} {history:?}: {why}");
            assert!(why.contains(word), "{condition:?} {history:?}: {why}");
        }
        // Nobody repairs: nothing to wait for.
        for limits in [
            Checks {
                repair: false,
                ..limits.clone()
            },
            Checks {
                repair_attempts: 0,
                ..limits.clone()
            },
        ] {
            for condition in [Dead, Unwell, LeftAlone] {
                let (level, why) = bear(Some(&active), condition, &untried, &limits, None);
                assert_eq!(level, Level::Failed, "{condition:?} {why}");
            }
        }
    }

    #[test]
    fn a_fault_that_nothing_can_repair_needs_somewhere_to_go() {
        let limits = limits();
        let over = failing(3, 21.0, 36.0, Told::Exhausted);
        let judge = |role: Option<&RoleState>, nowhere| {
            bear(role, Condition::Dead, &over, &limits, nowhere)
        };
        let long = role(NodeRole::Active, 900.0);
        assert_eq!(judge(Some(&long), None).0, Level::Failed);
        for (state, nowhere, word) in [
            (
                Some(long),
                Some("node2: stale"),
                "the peer is unfit (node2: stale)",
            ),
            (
                Some(role(NodeRole::Standby, 900.0)),
                None,
                "a standby can take over",
            ),
            (
                Some(role(NodeRole::Changing, 900.0)),
                None,
                "role is changing",
            ),
            (None, None, "role is not known"),
            // The fault is 36 s old.
            (
                Some(role(NodeRole::Active, 35.0)),
                None,
                "before this node became the active one",
            ),
            (Some(role(NodeRole::Active, 37.0)), None, "for 37.0 s only"),
            (
                Some(role(NodeRole::Active, 299.0)),
                None,
                "for 299.0 s only",
            ),
        ] {
            let (level, why) = judge(state.as_ref(), nowhere);
            assert_eq!(level, Level::Degraded, "{state:?} {nowhere:?}");
            assert!(why.contains(word), "{why}");
        }
    }

    /// Both nodes have a sync-realtime that cannot live: how often does the VIP move in a day?
    #[test]
    fn a_fault_of_both_nodes_does_not_pass_the_vip_to_and_fro() {
        let limits = limits();
        // Dead for ever, and a crash loop that is well for a moment.
        for (period, most) in [(u32::MAX, 1), (3, 86_400 / 300)] {
            let mut histories = [History::default(), History::default()];
            let (mut active, mut since) = (0, 0.0);
            let mut moves = 0;
            for second in 0..86_400 {
                let now = now().plus(f64::from(second));
                let broken = (second + 1) % period != 0;
                for (node, history) in histories.iter_mut().enumerate() {
                    let condition = broken.then_some(Condition::Dead);
                    let role = RoleState {
                        at: since,
                        ..role(NodeRole::Active, 0.0)
                    };
                    let kept = Bearings {
                        role: Some(&role),
                        nowhere_to_go: None,
                        history: history.clone(),
                        limits: &limits,
                        now: &now,
                    }
                    .why_kept(Condition::Dead);
                    *history = repair::decide(history, condition, &limits, &now).1;
                    if node == active && broken && kept.is_none() {
                        (active, since) = (1 - active, now.at);
                        moves += 1;
                        break;
                    }
                }
            }
            assert!(
                (1..=most).contains(&moves),
                "period {period}: {moves} moves"
            );
        }
    }
}
