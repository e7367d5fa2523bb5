//! When a failed service is restarted, and when it is left alone.
//!
//! A restart is asked for with `systemctl --no-block`, so no run waits for one; the attempts are
//! counted from run to run in a file of the run directory. The verdict stays failed meanwhile.
//!
//! Left alone are: a unit that is starting (a server in crash recovery, or systemd's own automatic
//! restart), a unit that is stopping, one that an administrator stopped (`inactive`), and a MariaDB
//! whose process lives but does not answer. That last one may be stopped with its clients still
//! connected; what to do with it is a question of roles, and the role service answers it with
//! SIGKILL. A restart would send SIGTERM, at which a primary acknowledges what no replica has.

use std::time::Duration;

use observe::UnitState;
use serde::{Deserialize, Serialize};
use settings::Checks;

use crate::clock::Moment;

/// What to do about a process that lives and does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenHung {
    /// Restart it.
    Restart,
    /// Leave it to the role service.
    LeaveAlone,
}

/// The unit of a service that failed its check, as far as repair cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is dead, and systemd calls it failed, or active without a process.
    Dead,
    /// It runs and does not answer well.
    Unwell,
    /// It is being stopped and still has a process.
    Stopping,
    /// It runs or moves and must not be touched.
    LeftAlone,
}

impl Condition {
    /// Sorts a unit's state.
    pub fn of(state: UnitState, process_lives: bool, hung: WhenHung) -> Self {
        match (state, process_lives, hung) {
            (UnitState::Failed | UnitState::Running, false, _) => Self::Dead,
            (UnitState::Running, true, WhenHung::Restart) => Self::Unwell,
            (UnitState::Stopping, true, WhenHung::Restart) => Self::Stopping,
            // A process of a failed unit still holds its files or its port.
            (UnitState::Failed, true, _)
            | (UnitState::Running, true, WhenHung::LeaveAlone)
            | (
                UnitState::Starting | UnitState::Stopping | UnitState::Stopped | UnitState::Unknown,
                _,
                _,
            ) => Self::LeftAlone,
        }
    }
}

/// What has been done so far, kept between runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    /// Restarts asked for.
    pub attempts: u32,
    /// The attempt whose stop was ended by force.
    #[serde(default)]
    pub killed: u32,
    /// The last restart.
    pub last: Option<Moment>,
    /// Since when every run failed.
    pub failing_since: Option<Moment>,
    /// Since when every run was good.
    pub healthy_since: Option<Moment>,
    /// What the operator was told last.
    pub told: Told,
}

/// What the operator was told last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Told {
    /// Nothing, or that all is well again.
    #[default]
    Nothing,
    /// Repair has begun.
    Begun,
    /// Repair has been given up.
    Exhausted,
}

/// What to do in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Wait,
    /// Restart the unit; this is the attempt of that number. The first one is announced.
    Restart {
        /// From 1.
        attempt: u32,
        /// The operator is told that repair begins.
        announce: bool,
    },
    /// End what the restart's stop does not end: a process that stands still heeds no SIGTERM, and systemd waits for it
    /// for a minute and a half.
    Kill,
    /// Tell that no restart is left.
    GiveUp,
    /// Tell that the service is well again.
    Recovered,
}

/// Decides what to do, and what to remember if it is done. `condition` is none when the service
/// is healthy.
pub(crate) fn decide(
    history: &History,
    condition: Option<Condition>,
    limits: &Checks,
    now: &Moment,
) -> (Action, History) {
    match condition {
        None => healthy(history, limits, now),
        Some(condition) => failing(history, condition, limits, now),
    }
}

fn healthy(history: &History, limits: &Checks, now: &Moment) -> (Action, History) {
    if history.attempts == 0 && history.told == Told::Nothing {
        return (Action::Wait, History::default());
    }
    let since = history.healthy_since.clone().unwrap_or_else(|| now.clone());
    let stable = since.age(now).unwrap_or_default();
    let mut next = History {
        healthy_since: Some(since),
        failing_since: None,
        // The attempt has ended well: a later stop is a person's.
        killed: history.attempts,
        ..history.clone()
    };
    // A crash loop is well for a moment between two crashes.
    let recovered = history.told != Told::Nothing && stable >= limits.repair_backoff;
    if recovered {
        next.told = Told::Nothing;
    }
    if next.told == Told::Nothing && stable >= limits.repair_forget {
        next = History::default();
    }
    let action = if recovered {
        Action::Recovered
    } else {
        Action::Wait
    };
    (action, next)
}

fn failing(
    history: &History,
    condition: Condition,
    limits: &Checks,
    now: &Moment,
) -> (Action, History) {
    let since = history.failing_since.clone().unwrap_or_else(|| now.clone());
    let failing_for = since.age(now).unwrap_or_default();
    let mut next = History {
        healthy_since: None,
        failing_since: Some(since),
        ..history.clone()
    };
    let asked = history
        .last
        .as_ref()
        .and_then(|last| last.age(now))
        .is_some_and(|age| age >= limits.repair_backoff);
    // Only a stop that is ours: a person may wait for another one.
    if condition == Condition::Stopping && asked && history.killed < history.attempts {
        next.killed = history.attempts;
        return (Action::Kill, next);
    }
    let due = match condition {
        Condition::Dead => true,
        // One slow answer under load is no reason to drop every connection.
        Condition::Unwell => failing_for >= limits.repair_backoff,
        Condition::Stopping | Condition::LeftAlone => false,
    };
    if !due || !backed_off(history, limits, now) {
        return (Action::Wait, next);
    }
    if history.attempts < allowed(limits) {
        next.attempts += 1;
        next.last = Some(now.clone());
        next.told = Told::Begun;
        let action = Action::Restart {
            attempt: next.attempts,
            announce: history.told == Told::Nothing,
        };
        return (action, next);
    }
    if history.attempts > 0 && history.told != Told::Exhausted {
        next.told = Told::Exhausted;
        return (Action::GiveUp, next);
    }
    (Action::Wait, next)
}

/// Whether repair may still bring a failing service back, so that it is too early to move away from
/// it: a restart is left, or the last one has not had its time yet. Becomes false in the run in which
/// [`decide`] gives up.
pub(crate) fn may_still_help(
    history: &History,
    condition: Condition,
    limits: &Checks,
    now: &Moment,
) -> bool {
    match condition {
        Condition::Dead | Condition::Unwell => {
            history.attempts < allowed(limits)
                || (history.attempts > 0 && !backed_off(history, limits, now))
        }
        // A crash loop that waits for systemd's own restart.
        Condition::LeftAlone | Condition::Stopping if history.told == Told::Exhausted => false,
        // Somebody else is at it, and gets as long as repair would take for all of its restarts.
        Condition::LeftAlone | Condition::Stopping => history.failing_since.as_ref().map_or_else(
            || allowed(limits) > 0,
            // One of another boot cannot be compared, and is too old to be patient with.
            |since| since.age(now).is_some_and(|age| age < round(limits)),
        ),
    }
}

/// Restarts that the settings allow.
pub(crate) fn allowed(limits: &Checks) -> u32 {
    if limits.repair {
        limits.repair_attempts
    } else {
        0
    }
}

/// From the first restart to giving up: the sum of every back-off.
pub(crate) fn round(limits: &Checks) -> Duration {
    (0..allowed(limits)).map(|n| wait_after(n, limits)).sum()
}

/// Whether enough time has passed since the last restart.
fn backed_off(history: &History, limits: &Checks, now: &Moment) -> bool {
    let Some(last) = &history.last else {
        return true;
    };
    let wait = wait_after(history.attempts.saturating_sub(1), limits);
    // A moment of another boot: the unit was started since.
    last.age(now).is_none_or(|age| age >= wait)
}

/// The back-off after restart `n`, counted from 0: doubled after each.
fn wait_after(n: u32, limits: &Checks) -> Duration {
    limits.repair_backoff.saturating_mul(1 << n.min(31))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Checks {
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

    fn start() -> Moment {
        Moment {
            at: 1000.0,
            boot_id: "boot".to_owned(),
        }
    }

    /// Runs a check every second; `state` says what each second finds. Gives every action but
    /// `Wait`, with its second.
    fn play(
        limits: &Checks,
        seconds: u32,
        state: impl Fn(u32) -> Option<Condition>,
    ) -> Vec<(u32, Action)> {
        let mut history = History::default();
        let mut actions = Vec::new();
        for second in 0..seconds {
            let (action, next) = decide(
                &history,
                state(second),
                limits,
                &start().plus(f64::from(second)),
            );
            history = next;
            if action != Action::Wait {
                actions.push((second, action));
            }
        }
        actions
    }

    const fn restart(attempt: u32, announce: bool) -> Action {
        Action::Restart { attempt, announce }
    }

    #[test]
    fn a_dead_unit_is_restarted_with_doubled_waits_and_then_given_up_once() {
        let actions = play(&limits(), 1000, |_| Some(Condition::Dead));
        assert_eq!(
            actions,
            [
                (0, restart(1, true)),
                (5, restart(2, false)),
                (15, restart(3, false)),
                (35, Action::GiveUp)
            ]
        );
    }

    #[test]
    fn an_unwell_unit_gets_one_back_off_of_grace() {
        let actions = play(&limits(), 7, |_| Some(Condition::Unwell));
        assert_eq!(actions, [(5, restart(1, true))]);
    }

    #[test]
    fn a_hung_service_is_restarted_and_its_stop_ended_by_force_once() {
        let actions = play(&limits(), 20, |s| {
            Some(if s < 6 {
                Condition::Unwell
            } else {
                Condition::Stopping
            })
        });
        assert_eq!(actions, [(5, restart(1, true)), (10, Action::Kill)]);
        // A person restarts it after a repair.
        let actions = play(&limits(), 60, |s| match s {
            0 => Some(Condition::Dead),
            1..30 => None,
            _ => Some(Condition::Stopping),
        });
        assert_eq!(actions, [(0, restart(1, true)), (6, Action::Recovered)]);
        // Somebody else stops it.
        assert_eq!(play(&limits(), 100, |_| Some(Condition::Stopping)), []);
    }

    #[test]
    fn one_slow_answer_now_and_then_restarts_nothing() {
        let actions = play(&limits(), 1000, |s| {
            (s % 4 == 0).then_some(Condition::Unwell)
        });
        assert_eq!(actions, []);
    }

    #[test]
    fn what_is_left_alone_is_left_alone() {
        assert_eq!(play(&limits(), 1000, |_| Some(Condition::LeftAlone)), []);
    }

    #[test]
    fn recovery_is_told_once_and_after_a_stable_time() {
        let actions = play(&limits(), 100, |s| (s < 3).then_some(Condition::Dead));
        assert_eq!(actions, [(0, restart(1, true)), (8, Action::Recovered)]);
    }

    #[test]
    fn a_crash_loop_ends_in_giving_up_and_not_in_alerts_for_ever() {
        let actions = play(&limits(), 2000, |s| (s % 4 != 0).then_some(Condition::Dead));
        assert_eq!(
            actions.last(),
            actions.iter().find(|(_, a)| *a == Action::GiveUp),
            "{actions:?}"
        );
        assert_eq!(actions.len(), 4, "{actions:?}");
    }

    #[test]
    fn attempts_are_forgotten_after_a_stable_time_only() {
        // Fails for a second at 0, at 100 and at 500.
        let actions = play(&limits(), 600, |s| {
            [0, 100, 500].contains(&s).then_some(Condition::Dead)
        });
        let restarts: Vec<_> = actions
            .into_iter()
            .filter(|(_, a)| *a != Action::Recovered)
            .collect();
        assert_eq!(
            restarts,
            [
                (0, restart(1, true)),
                (100, restart(2, true)),
                (500, restart(1, true))
            ]
        );
    }

    #[test]
    fn no_attempts_means_no_repair_and_no_alert() {
        let limits = Checks {
            repair_attempts: 0,
            ..limits()
        };
        assert_eq!(play(&limits, 100, |_| Some(Condition::Dead)), []);
    }

    #[test]
    fn repair_that_is_off_only_remembers_since_when() {
        let limits = Checks {
            repair: false,
            ..limits()
        };
        assert_eq!(play(&limits, 100, |_| Some(Condition::Dead)), []);
        let (_, next) = decide(
            &History::default(),
            Some(Condition::Dead),
            &limits,
            &start(),
        );
        assert_eq!(next.failing_since, Some(start()));
        let (_, next) = decide(&next, None, &limits, &start());
        assert_eq!(next, History::default());
    }

    /// The first second of a run every second in which repair may not help any more.
    fn hopeless_at(limits: &Checks, condition: Condition) -> Option<u32> {
        let mut history = History::default();
        (0..100).find(|second| {
            let now = start().plus(f64::from(*second));
            let helps = may_still_help(&history, condition, limits, &now);
            history = decide(&history, Some(condition), limits, &now).1;
            !helps
        })
    }

    #[test]
    fn repair_may_help_until_it_is_given_up() {
        let off = Checks {
            repair: false,
            ..limits()
        };
        let none = Checks {
            repair_attempts: 0,
            ..limits()
        };
        let single = Checks {
            repair_attempts: 1,
            ..limits()
        };
        for (limits, condition, expected) in [
            (&limits(), Condition::Dead, 35),
            (&limits(), Condition::Unwell, 40),
            (&limits(), Condition::LeftAlone, 35),
            (&single, Condition::Dead, 5),
            (&single, Condition::LeftAlone, 5),
            (&none, Condition::Dead, 0),
            (&none, Condition::LeftAlone, 0),
            (&off, Condition::Dead, 0),
            (&off, Condition::Unwell, 0),
            (&off, Condition::LeftAlone, 0),
        ] {
            assert_eq!(
                hopeless_at(limits, condition),
                Some(expected),
                "{condition:?} {limits:?}"
            );
        }
        for condition in [Condition::Dead, Condition::Unwell] {
            let given_up = play(&limits(), 100, |_| Some(condition))
                .into_iter()
                .find_map(|(second, action)| (action == Action::GiveUp).then_some(second));
            assert_eq!(given_up, hopeless_at(&limits(), condition), "{condition:?}");
        }
    }

    #[test]
    fn a_crash_loop_is_hopeless_once_repair_was_given_up() {
        let limits = limits();
        let mut history = History::default();
        let mut hopeless = None;
        for second in 0..200 {
            let now = start().plus(f64::from(second));
            // Well for a moment after each restart.
            let condition = match second % 4 {
                0 => None,
                1 => Some(Condition::LeftAlone),
                _ => Some(Condition::Dead),
            };
            if let Some(condition) = condition {
                if may_still_help(&history, condition, &limits, &now) {
                    assert_eq!(hopeless, None, "hope again at {second}");
                } else {
                    hopeless.get_or_insert(second);
                }
            }
            history = decide(&history, condition, &limits, &now).1;
        }
        assert_eq!(hopeless, Some(38));
    }

    #[test]
    fn another_boot_does_not_hold_the_back_off() {
        let history = History {
            attempts: 1,
            last: Some(Moment {
                at: 999_999.0,
                boot_id: "before".to_owned(),
            }),
            ..History::default()
        };
        let (action, _) = decide(&history, Some(Condition::Dead), &limits(), &start());
        assert_eq!(action, restart(2, true));
    }

    #[test]
    fn conditions() {
        use UnitState::{Failed, Running, Starting, Stopped, Stopping, Unknown};
        use WhenHung::{LeaveAlone, Restart};
        for (state, lives, hung, expected) in [
            (Failed, false, LeaveAlone, Condition::Dead),
            (Failed, false, Restart, Condition::Dead),
            (Failed, true, LeaveAlone, Condition::LeftAlone),
            (Running, false, LeaveAlone, Condition::Dead),
            (Running, true, LeaveAlone, Condition::LeftAlone),
            (Running, true, Restart, Condition::Unwell),
            (Starting, false, Restart, Condition::LeftAlone),
            (Starting, true, LeaveAlone, Condition::LeftAlone),
            (Stopping, true, Restart, Condition::Stopping),
            (Stopping, false, Restart, Condition::LeftAlone),
            (Stopping, true, LeaveAlone, Condition::LeftAlone),
            (Stopped, false, Restart, Condition::LeftAlone),
            (Unknown, false, Restart, Condition::LeftAlone),
        ] {
            assert_eq!(
                Condition::of(state, lives, hung),
                expected,
                "{state:?} {lives} {hung:?}"
            );
        }
    }
}
