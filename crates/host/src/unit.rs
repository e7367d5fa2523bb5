//! Units, as systemd tells them and starts them.

use std::time::Duration;

use process::{ProcessError, Program};

/// A unit's state, as far as checks and roles care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// `active`, `reloading`
    Running,
    /// `activating`: starting, in crash recovery, or waiting for an automatic restart.
    Starting,
    /// `deactivating`
    Stopping,
    /// `inactive`: stopped on purpose.
    Stopped,
    /// `failed`
    Failed,
    /// systemd did not answer, or the unit does not exist.
    Unknown,
}

/// Asks systemd for the state of a unit.
pub(crate) fn unit_state(name: &str) -> UnitState {
    unit(name, Duration::from_secs(1)).0
}

/// Asks systemd, within the deadline, for the state of a unit and whether it has a process.
pub fn unit(name: &str, deadline: Duration) -> (UnitState, bool) {
    Program::new("systemctl")
        .args([
            "show",
            "--property=LoadState,ActiveState,MainPID,TasksCurrent",
            name,
        ])
        .deadline(deadline)
        .run()
        .map_or((UnitState::Unknown, false), |output| {
            parse_unit(&output.text())
        })
}

fn parse_unit(text: &str) -> (UnitState, bool) {
    let value = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
    };
    let state = match value("ActiveState") {
        Some("active" | "reloading") => UnitState::Running,
        Some("activating") => UnitState::Starting,
        Some("deactivating") => UnitState::Stopping,
        Some("failed") => UnitState::Failed,
        Some("inactive") if value("LoadState") != Some("not-found") => UnitState::Stopped,
        Some(_) | None => UnitState::Unknown,
    };
    // A unit made from an init script has no main process. `[not set]` and the highest number
    // both mean that systemd does not count its tasks.
    let number = |key| value(key).and_then(|n: &str| n.parse::<u64>().ok());
    let main_process = number("MainPID").is_some_and(|pid| pid != 0);
    let tasks = number("TasksCurrent").is_some_and(|tasks| tasks != 0 && tasks != u64::MAX);
    (state, main_process || tasks)
}

/// What systemd is asked to do to a unit. Stopping is not among it: that is an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `start`
    Start,
    /// `restart`
    Restart,
    /// `kill` with SIGKILL, of every process of it
    Kill,
}

/// Asks systemd to start, restart or kill a unit, and does not wait until it is done. `patience` bounds
/// the asking.
pub fn ask(verb: Verb, unit: &str, patience: Duration) -> Result<(), ProcessError> {
    let verb: &[&str] = match verb {
        Verb::Start => &["start"],
        Verb::Restart => &["restart"],
        Verb::Kill => &["kill", "--signal=SIGKILL"],
    };
    Program::new("systemctl")
        .arg("--no-block")
        .args(verb)
        .arg(unit)
        .deadline(patience)
        .run()?
        .success()
        .map(drop)
}

/// Whether this host is on its way down or to a reboot. When systemd does not say so, it is not.
pub fn shutting_down() -> bool {
    Program::new("systemctl")
        .arg("is-system-running")
        .deadline(Duration::from_secs(1))
        .run()
        .is_ok_and(|output| output.text().trim() == "stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `systemctl show` of systemd 252 prints.
    #[test]
    fn units_are_read() {
        for (load, active, pid, tasks, expected) in [
            ("loaded", "active", "812", "9", (UnitState::Running, true)),
            ("loaded", "active", "0", "3", (UnitState::Running, true)),
            (
                "loaded",
                "active",
                "0",
                "[not set]",
                (UnitState::Running, false),
            ),
            (
                "loaded",
                "active",
                "0",
                "18446744073709551615",
                (UnitState::Running, false),
            ),
            (
                "loaded",
                "activating",
                "0",
                "0",
                (UnitState::Starting, false),
            ),
            (
                "loaded",
                "deactivating",
                "812",
                "1",
                (UnitState::Stopping, true),
            ),
            (
                "loaded",
                "failed",
                "0",
                "[not set]",
                (UnitState::Failed, false),
            ),
            (
                "loaded",
                "inactive",
                "0",
                "[not set]",
                (UnitState::Stopped, false),
            ),
            (
                "not-found",
                "inactive",
                "0",
                "[not set]",
                (UnitState::Unknown, false),
            ),
        ] {
            let text = format!(
                "MainPID={pid}\nTasksCurrent={tasks}\nLoadState={load}\nActiveState={active}\n"
            );
            assert_eq!(parse_unit(&text), expected, "{text}");
        }
        assert_eq!(parse_unit(""), (UnitState::Unknown, false));
    }
}
