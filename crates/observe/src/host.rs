//! What the kernel and systemd say of this node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use process::Program;
use settings::Settings;

/// Where Keepalived's packages of Debian 12 and 13 keep the parent's pid.
const KEEPALIVED_PID_FILES: [&str; 2] = ["/run/keepalived.pid", "/run/keepalived/keepalived.pid"];

/// Whether the VIP's address is on its interface, as the kernel lists it.
pub fn vip_present(settings: &Settings) -> bool {
    Program::new("ip")
        .args([
            "-o",
            "address",
            "show",
            "dev",
            &settings.cluster.vip_interface,
            "to",
        ])
        .arg(settings.cluster.vip.to_string())
        .deadline(Duration::from_secs(1))
        .run()
        .is_ok_and(|output| output.status.success() && !output.text().is_empty())
}

/// Whether a Keepalived parent process lives.
pub fn keepalived_running() -> bool {
    keepalived_process().is_some()
}

/// The pid of Keepalived's parent process.
pub(crate) fn keepalived_process() -> Option<u32> {
    KEEPALIVED_PID_FILES.iter().find_map(|file| {
        let pid = fs::read_to_string(file).ok()?.trim().parse::<u32>().ok()?;
        (command_name(pid).as_deref() == Some("keepalived")).then_some(pid)
    })
}

/// The pid of the local MariaDB server, whether it answers or not.
pub fn mariadb_process(settings: &Settings) -> Option<u32> {
    let pid = Program::new("systemctl")
        .args([
            "show",
            "--property=MainPID",
            "--value",
            &settings.database.unit,
        ])
        .deadline(Duration::from_secs(1))
        .run()
        .ok()?
        .text()
        .parse::<u32>()
        .ok()?;
    (pid != 0 && Path::new("/proc").join(pid.to_string()).exists()).then_some(pid)
}

fn command_name(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .ok()
        .map(|name| name.trim().to_owned())
}

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
pub fn unit_state(name: &str) -> UnitState {
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
