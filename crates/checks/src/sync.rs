//! check-sync: does sync-realtime live, and does it do what this node's role asks for?

use nodefiles::role_state::{NodeRole, RoleState};
use nodefiles::sync_status::{StandbyState, StandbyStatus, SyncState, SyncStatus};
use settings::{Checks, Settings};

use crate::cli::{Common, EXIT_HELP};
use crate::clock::Moment;
use crate::daemon::{self, Fault, LastWord, Life, UNIT};
use crate::repair::Condition;
use crate::run::{Check, Finding, Names, Scene};
use crate::verdict::{Measure, Quantity, Verdict};

const EXAMPLES: &str = "\
Examples:
  check-sync                        as Keepalived calls it: exit 0 or 1
  check-sync --verbose              the same, and the reason in words
  check-sync --output nagios        one line, what is not sent yet, and exit 0 to 3

It fails only on the active node, when sync-realtime is dead, silent, or does not follow the role, when
restarts within the limits of [checks] in the settings have not helped, and when a peer may do better.
A standby that is away, full or behind, and files held for a person, are a warning: exit 0, an alert.
";

/// Check the file synchronisation of this node.
#[derive(Debug, clap::Parser)]
#[command(name = "check-sync", version, after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub(crate) struct CheckSync {
    #[command(flatten)]
    common: Common,
}

impl Check for CheckSync {
    fn common(&self) -> &Common {
        &self.common
    }

    fn names(&self) -> Names {
        Names {
            program: "check-sync",
            log: "check_sync_realtime.log",
            state: "check_sync_realtime",
            service: "file synchronisation",
        }
    }

    fn asks_database(&self) -> bool {
        false
    }

    fn unit<'a>(&self, _settings: &'a Settings) -> Option<&'a str> {
        Some(UNIT)
    }

    fn look(&self, scene: &Scene<'_>) -> Finding {
        let limits = &scene.settings.checks;
        let unit = scene.ask_unit(UNIT);
        scene.watchdog.doing("reading what sync-realtime says");
        let word = LastWord::read(scene.settings);
        let role = nodefiles::role_state::read(scene.settings);
        let life = daemon::judge_life(&unit, word.as_ref(), limits);
        let begins = matches!(life, Life::Beginning(_));
        let lives = match life {
            Life::Steady => Ok(()),
            Life::Beginning(what) => {
                daemon::judge_beginning(&what, &scene.history(), limits, &scene.now)
            }
            Life::Fault(fault) => Err(fault),
        };
        let word = word.filter(|word| word.is_fresh(limits));
        let judged = lives.and_then(|()| match &word {
            Some(word) => judge(&word.status, role.as_ref(), limits, &Moment::now())
                .map_err(|what| Fault::of(&unit, what)),
            None => Ok(Finding::healthy(Verdict::ok(unit.to_string()))),
        });
        let mut finding = match judged {
            Ok(finding) if begins => Finding {
                // Not counted as well, so that a later run knows since when it begins.
                condition: Some(Condition::LeftAlone),
                ..finding
            },
            Ok(finding) => finding,
            Err(fault) => daemon::judge_fault(scene, role.as_ref(), &fault),
        };
        if let Some(word) = word {
            finding.verdict = finding.verdict.with_measures(measures(&word.status));
        }
        finding
    }
}

/// What a living sync-realtime says, on a node of that role; an error when it does not follow the
/// role.
fn judge(
    status: &SyncStatus,
    role: Option<&RoleState>,
    limits: &Checks,
    now: &Moment,
) -> Result<Finding, String> {
    let serves = match status.state {
        SyncState::Standby => Some(false),
        // Either role may be held up, but only the active one has standbys.
        SyncState::Held | SyncState::Degraded if status.standbys.is_empty() => None,
        SyncState::Starting
        | SyncState::InSync
        | SyncState::Behind
        | SyncState::Held
        | SyncState::Degraded => Some(true),
    };
    if let Some(RoleState {
        role: role @ (NodeRole::Active | NodeRole::Standby),
        at,
        ..
    }) = role
    {
        if serves.is_some_and(|serves| serves != (*role == NodeRole::Active)) {
            let age = now.same_boot(*at).age(now).unwrap_or_default();
            let (is, became) = (word(status.state), role_word(*role));
            if age > limits.verdict_age {
                return Err(format!(
                    "sync-realtime still says `{is}` {} after this node became {became}",
                    daemon::seconds(age)
                ));
            }
            return Ok(Finding::healthy(Verdict::ok(format!(
                "says `{is}` and is about to follow: this node has just become {became}"
            ))));
        }
    }
    Ok(told(status, limits))
}

/// What it tells.
fn told(status: &SyncStatus, limits: &Checks) -> Finding {
    let reason = || {
        let reason = status.reason.as_deref();
        reason.unwrap_or("sync-realtime gives no reason")
    };
    match status.state {
        SyncState::Held => return daemon::degraded(format!("held: {}", reason())),
        SyncState::Degraded => return daemon::degraded(reason()),
        SyncState::Standby => return Finding::healthy(Verdict::ok("standby: takes what is sent")),
        SyncState::Starting | SyncState::InSync | SyncState::Behind => {}
    }
    let oldest = status.oldest_unsent_seconds.unwrap_or_default();
    let unsent = format!(
        "{} paths, {} bytes, the oldest for {oldest:.1} s",
        status.paths_behind, status.bytes_behind
    );
    let mut troubles: Vec<String> = status.standbys.iter().filter_map(trouble).collect();
    // A site that is written to is always behind by something.
    if oldest > limits.verdict_age.as_secs_f64() {
        troubles.push(format!("a backlog is not sent: {unsent}"));
    }
    if !troubles.is_empty() {
        return daemon::degraded(troubles.join("; "));
    }
    Finding::healthy(Verdict::ok(match status.state {
        SyncState::Behind => format!("sending: {unsent}"),
        SyncState::Starting => {
            "starting: the watches do not stand yet, or no standby is known to be complete"
                .to_owned()
        }
        SyncState::InSync | SyncState::Held | SyncState::Degraded | SyncState::Standby => {
            "in sync".to_owned()
        }
    }))
}

/// What keeps a standby from having everything.
fn trouble(standby: &StandbyStatus) -> Option<String> {
    let name = &standby.name;
    let reason = standby.reason.as_deref().unwrap_or("no reason given");
    match standby.state {
        StandbyState::Unreachable => return Some(format!("{name} cannot be reached: {reason}")),
        StandbyState::Refusing => return Some(format!("{name} does not take files: {reason}")),
        StandbyState::Connecting
        | StandbyState::Filling
        | StandbyState::InSync
        | StandbyState::Behind => {}
    }
    standby
        .quarantined
        .first()
        .map(|path| format!("{name} cannot take {}: {}", path.path, path.reason))
}

fn measures(status: &SyncStatus) -> [Measure; 3] {
    [
        Measure::new("paths_behind", Quantity::Count(status.paths_behind)),
        Measure::new("bytes_behind", Quantity::Bytes(status.bytes_behind)),
        Measure::new(
            "oldest_unsent",
            Quantity::Seconds(status.oldest_unsent_seconds.unwrap_or_default()),
        ),
    ]
}

/// As sync.json has it.
fn word(state: SyncState) -> &'static str {
    match state {
        SyncState::Starting => "starting",
        SyncState::InSync => "in-sync",
        SyncState::Behind => "behind",
        SyncState::Held => "held",
        SyncState::Degraded => "degraded",
        SyncState::Standby => "standby",
    }
}

fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Active => "the active one",
        NodeRole::Standby => "a standby",
        NodeRole::Changing => "neither",
    }
}

#[cfg(test)]
mod tests {
    use nodefiles::sync_status::Quarantined;

    use super::*;
    use crate::daemon::examples::{limits, now, role, status};
    use crate::verdict::Level;

    /// The level, or `None` for a fault; and the text.
    fn judged(status: &SyncStatus, role: Option<&RoleState>) -> (Option<Level>, String) {
        match judge(status, role, &limits(), &now()) {
            Ok(Finding {
                verdict,
                condition,
                alert,
            }) => {
                assert_eq!(condition, None, "nothing to restart");
                assert_eq!(alert.is_some(), verdict.level == Level::Degraded);
                (Some(verdict.level), verdict.reason)
            }
            Err(what) => (None, what),
        }
    }

    #[test]
    fn the_state_must_fit_the_role() {
        use NodeRole::{Active, Changing, Standby};
        let (ok, warning) = (Some(Level::Ok), Some(Level::Degraded));
        // For a role since a moment, and for one since long ago.
        for (state, node, at_first, later) in [
            (SyncState::Starting, Active, ok, ok),
            (SyncState::InSync, Active, ok, ok),
            (SyncState::Behind, Active, ok, ok),
            (SyncState::Held, Active, warning, warning),
            (SyncState::Degraded, Active, warning, warning),
            (SyncState::Standby, Active, ok, None),
            (SyncState::Starting, Standby, ok, None),
            (SyncState::InSync, Standby, ok, None),
            (SyncState::Behind, Standby, ok, None),
            (SyncState::Held, Standby, ok, None),
            (SyncState::Degraded, Standby, ok, None),
            (SyncState::Standby, Standby, ok, ok),
            (SyncState::InSync, Changing, ok, ok),
            (SyncState::Held, Changing, warning, warning),
            (SyncState::Standby, Changing, ok, ok),
        ] {
            for (since, expected) in [(10.0, at_first), (10.1, later)] {
                let (found, why) = judged(&status(state), Some(&role(node, since)));
                assert_eq!(
                    found, expected,
                    "{state:?} on {node:?} after {since}: {why}"
                );
            }
        }
        // Nobody knows what it should be.
        for (state, expected) in [
            (SyncState::Starting, ok),
            (SyncState::InSync, ok),
            (SyncState::Held, warning),
            (SyncState::Standby, ok),
        ] {
            assert_eq!(judged(&status(state), None).0, expected, "{state:?}");
        }
    }

    #[test]
    fn a_standby_may_be_held_by_itself() {
        let status = SyncStatus {
            standbys: Vec::new(),
            ..status(SyncState::Held)
        };
        for node in [NodeRole::Active, NodeRole::Standby] {
            assert_eq!(
                judged(&status, Some(&role(node, 900.0))),
                (Some(Level::Degraded), "held: look here".to_owned())
            );
        }
    }

    #[test]
    fn who_does_not_follow_is_told_since_when() {
        let (_, why) = judged(
            &status(SyncState::Standby),
            Some(&role(NodeRole::Active, 42.0)),
        );
        assert_eq!(
            why,
            "sync-realtime still says `standby` 42.0 s after this node became the active one"
        );
    }

    #[test]
    fn a_backlog_and_a_standby_in_trouble_are_warnings() {
        let active = role(NodeRole::Active, 900.0);
        let behind = |oldest| SyncStatus {
            paths_behind: 7,
            bytes_behind: 4096,
            oldest_unsent_seconds: Some(oldest),
            ..status(SyncState::Behind)
        };
        let standby = |change: fn(&mut StandbyStatus)| {
            let mut status = status(SyncState::InSync);
            change(&mut status.standbys[0]);
            status
        };
        for (status, expected, word) in [
            (
                behind(0.2),
                Level::Ok,
                "sending: 7 paths, 4096 bytes, the oldest for 0.2 s",
            ),
            (behind(10.0), Level::Ok, "sending"),
            (
                behind(10.1),
                Level::Degraded,
                "a backlog is not sent: 7 paths",
            ),
            (
                standby(|s| {
                    s.state = StandbyState::Unreachable;
                    s.reason = Some("timed out".to_owned());
                }),
                Level::Degraded,
                "node2 cannot be reached: timed out",
            ),
            (
                standby(|s| s.state = StandbyState::Refusing),
                Level::Degraded,
                "node2 does not take files: no reason given",
            ),
            (
                standby(|s| {
                    s.quarantined.push(Quarantined {
                        path: "a/b".to_owned(),
                        reason: "No space left on device".to_owned(),
                    });
                }),
                Level::Degraded,
                "node2 cannot take a/b: No space left",
            ),
            (
                standby(|s| s.state = StandbyState::Filling),
                Level::Ok,
                "in sync",
            ),
        ] {
            let (level, why) = judged(&status, Some(&active));
            assert_eq!(level, Some(expected), "{why}");
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn the_words_are_those_of_the_file() {
        for state in [
            SyncState::Starting,
            SyncState::InSync,
            SyncState::Behind,
            SyncState::Held,
            SyncState::Degraded,
            SyncState::Standby,
        ] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(text, format!("\"{}\"", word(state)));
        }
    }
}
