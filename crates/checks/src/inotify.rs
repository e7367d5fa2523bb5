//! check-inotify: does the watcher see what happens in every tree?
//!
//! It is asked by a real event: a token is written into each tree, and sync-realtime has to tell that
//! its watcher has read it. That a process exists, or that a queue is empty, proves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nodefiles::role_state::RoleState;
use nodefiles::sync_status::{SyncState, SyncStatus};
use observe::UnitState;
use settings::{Checks, Settings};

use crate::cli::{Common, EXIT_HELP};
use crate::clock::Moment;
use crate::daemon::{self, Fault, LastWord, UNIT};
use crate::probe::{self, Obstacle};
use crate::repair::Condition;
use crate::run::{Check, Finding, Names, Scene, Unit};
use crate::verdict::{Measure, Quantity, Timing, Verdict};

/// Between two questions whether the token has been seen, since nobody tells when it has. A watcher
/// that is well needs less than the first; one that is busy is not to be kept busy with answers.
const FIRST_PAUSE: Duration = Duration::from_millis(3);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

const MAX_WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

const EXAMPLES: &str = "\
Examples:
  check-inotify                         as Keepalived calls it: exit 0 or 1
  check-inotify --output nagios         one line, how much is watched, and exit 0 to 3
  check-inotify --process inotifywait   is there a process of that name? For the original script

A token is written to .keepalived-companion/probe in every tree, and the watcher of sync-realtime must see
it. When it does not, or a tree is not there, the check fails only on the active node, when restarts
within the limits of [checks] in the settings have not helped, and when a peer may do better. A
watcher that lives and does not see it is restarted by this check, a dead one by check-sync.
A disk that hangs while the token is written fails it on any node. Directories that cannot be watched are a
warning: exit 0, an alert.
";

/// Check that the watcher of the synchronised trees lives and sees every tree.
#[derive(Debug, clap::Parser)]
#[command(name = "check-inotify", version, after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub(crate) struct CheckInotify {
    #[command(flatten)]
    common: Common,
    /// Instead of all that: look for a process of exactly this name (the kernel keeps 15 bytes of it)
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    process: Option<String>,
}

impl Check for CheckInotify {
    fn common(&self) -> &Common {
        &self.common
    }

    fn names(&self) -> Names {
        Names {
            program: "check-inotify",
            log: "check_inotify.log",
            // Two questions, two answers to remember.
            state: if self.process.is_some() {
                "check_inotify.process"
            } else {
                "check_inotify"
            },
            service: "watcher of the trees",
        }
    }

    fn asks_database(&self) -> bool {
        false
    }

    fn unit<'a>(&self, _settings: &'a Settings) -> Option<&'a str> {
        Some(UNIT)
    }

    fn look(&self, scene: &Scene<'_>) -> Finding {
        match &self.process {
            Some(name) => look_for_process(scene, name),
            None => look_for_token(scene),
        }
    }
}

fn look_for_process(scene: &Scene<'_>, name: &str) -> Finding {
    scene.watchdog.doing(format!("looking for {name}"));
    let what = match host::find(Path::new("/proc"), name) {
        Ok(Some(pid)) => {
            return Finding::healthy(Verdict::ok(format!("{name} is process {pid}")));
        }
        Ok(None) => format!("there is no process {name}"),
        Err(error) => {
            return Finding::failed(Verdict::unjudged(format!("/proc: {error}")));
        }
    };
    let unit = scene.ask_unit(UNIT);
    let role = nodefiles::role_state::read(scene.settings);
    let fault = Fault::of(&unit, format!("{what}; {unit}"));
    daemon::judge_fault(scene, role.as_ref(), &fault)
}

fn look_for_token(scene: &Scene<'_>) -> Finding {
    let limits = &scene.settings.checks;
    let start = Instant::now();
    let probes: Vec<Probe> = scene
        .settings
        .sync
        .trees
        .iter()
        .enumerate()
        .map(|(number, tree)| Probe::write(scene, &tree.path, number))
        .collect();
    scene
        .watchdog
        .doing("asking sync-realtime for the probes that its watcher has seen");
    let seen = wait_for_watcher(scene, &probes);
    let timing = Timing::new("probe", start.elapsed(), limits.deadline);
    let word = LastWord::read(scene.settings);
    let role = nodefiles::role_state::read(scene.settings);
    let outcome = judge(&probes, &seen, word.as_ref(), limits, &Moment::now());
    let mut finding = conclude(scene, outcome, word.as_ref(), role.as_ref());
    finding.verdict = finding.verdict.with_time(timing);
    if let Some(word) = word.filter(|word| word.is_fresh(limits)) {
        finding.verdict = finding.verdict.with_measures(measures(&word.status));
    }
    finding
}

fn conclude(
    scene: &Scene<'_>,
    outcome: Outcome,
    word: Option<&LastWord>,
    role: Option<&RoleState>,
) -> Finding {
    match outcome {
        Outcome::Seen => coverage(word, &scene.settings.checks, || {
            std::fs::read_to_string(MAX_WATCHES)
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
        }),
        Outcome::NotYet(why) => Finding::healthy(Verdict::ok(why)),
        Outcome::Warning(why) => daemon::degraded(why),
        Outcome::Blind { what, restart } => {
            let unit = scene.ask_unit(UNIT);
            let fresh = word.is_some_and(|word| word.is_fresh(&scene.settings.checks));
            match blind(&unit, &what, restart, fresh) {
                None => Finding::healthy(Verdict::ok(format!("{unit}; {what}"))),
                Some(fault) => daemon::judge_fault(scene, role, &fault),
            }
        }
    }
}

/// A token for one tree.
#[derive(Debug)]
struct Probe {
    tree: PathBuf,
    token: String,
    written: Result<(), Obstacle>,
}

impl Probe {
    fn write(scene: &Scene<'_>, tree: &Path, number: usize) -> Self {
        // A disk that hangs ends the check here.
        scene
            .watchdog
            .doing(format!("writing a probe into {}", tree.display()));
        let token = probe::token(&scene.now, number);
        Self {
            written: probe::write(tree, &token),
            tree: tree.to_owned(),
            token,
        }
    }
}

/// The last token that the watcher has seen in each tree, or why that is not known.
type Seen = Result<BTreeMap<String, String>, String>;

/// Asks until every token was seen or the time is over. A sync-realtime that is just being restarted
/// answers after a moment, so its silence does not end it.
fn wait_for_watcher(scene: &Scene<'_>, probes: &[Probe]) -> Seen {
    let (start, limit) = (Instant::now(), scene.question_limit());
    if probes.iter().all(|probe| probe.written.is_err()) {
        return Ok(BTreeMap::new());
    }
    let mut pause = FIRST_PAUSE;
    let mut seen = Err("it was not asked in time".to_owned());
    loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return seen;
        }
        let answer = observe::sync_request(scene.settings, "probe", left)
            .map_err(|error| error.to_string())
            .and_then(|line| {
                // Such as `error only root may ask that`.
                serde_json::from_str(&line).map_err(|_| format!("it answers `{line}`"))
            });
        match answer {
            Ok(tokens) if probes.iter().all(|probe| probe.is_done(&tokens)) => return Ok(tokens),
            Ok(tokens) => seen = Ok(tokens),
            // The last question has hardly any time, and what was answered before tells more.
            Err(why) if seen.is_err() => seen = Err(why),
            Err(_) => {}
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Probe {
    fn last<'a>(&self, seen: &'a BTreeMap<String, String>) -> Option<&'a str> {
        seen.get(&*self.tree.to_string_lossy()).map(String::as_str)
    }

    fn was_seen(&self, seen: &BTreeMap<String, String>) -> bool {
        self.last(seen) == Some(&self.token)
    }

    /// Whether there is nothing to wait for.
    fn is_done(&self, seen: &BTreeMap<String, String>) -> bool {
        self.written.is_err() || self.was_seen(seen)
    }
}

/// How the probes ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// All of them were seen.
    Seen,
    /// Not all, and that is as it should be for now.
    NotYet(String),
    /// Something that a failover would not cure.
    Warning(String),
    /// The watcher does not see what happens here.
    Blind {
        /// Why, for a person.
        what: String,
        /// Whether a restart may help.
        restart: bool,
    },
}

/// The worst of all trees.
fn judge(
    probes: &[Probe],
    seen: &Seen,
    word: Option<&LastWord>,
    limits: &Checks,
    now: &Moment,
) -> Outcome {
    let status = word
        .filter(|word| word.is_fresh(limits))
        .map(|word| &word.status);
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Seen => 0,
        Outcome::NotYet(_) => 1,
        Outcome::Warning(_) => 2,
        // Where no restart helps, none is tried for the others.
        Outcome::Blind { restart: true, .. } => 3,
        Outcome::Blind { restart: false, .. } => 4,
    };
    probes
        .iter()
        .map(|probe| judge_tree(probe, seen, status, limits, now))
        .max_by_key(rank)
        .unwrap_or(Outcome::Seen)
}

fn judge_tree(
    probe: &Probe,
    seen: &Seen,
    status: Option<&SyncStatus>,
    limits: &Checks,
    now: &Moment,
) -> Outcome {
    let tree = probe.tree.display();
    match &probe.written {
        Ok(()) => {}
        Err(Obstacle::Here(why)) => {
            return Outcome::Blind {
                what: why.clone(),
                restart: false,
            };
        }
        Err(Obstacle::Anywhere(why)) => return Outcome::Warning(why.clone()),
    }
    let last = match seen {
        Ok(seen) if probe.was_seen(seen) => return Outcome::Seen,
        Ok(seen) => probe.last(seen),
        Err(_) => None,
    };
    match status.map(|status| (status.state, &status.reason)) {
        // It has never seen one, and gives its sign of life meanwhile.
        Some((SyncState::Starting, _)) if seen.is_ok() && last.is_none_or(str::is_empty) => {
            return Outcome::NotYet(format!("starting: {tree} is not watched yet"));
        }
        // It watches nothing, and says why.
        Some((SyncState::Held, reason)) if last.is_none() && seen.is_ok() => {
            let reason = reason.as_deref().unwrap_or("sync-realtime gives no reason");
            return Outcome::Warning(format!("held: {reason}"));
        }
        Some(_) | None => {}
    }
    // Events come in their order: after a hundred thousand of them the probe has its turn late, and a
    // restart would only add to the work.
    let late = last.and_then(probe::written_at).and_then(|at| {
        let written = Moment { at, ..now.clone() };
        written.age(now)
    });
    if let Some(late) = late.filter(|late| *late <= limits.verdict_age) {
        return Outcome::NotYet(format!(
            "the watcher is busy: it was in {tree} {} ago",
            daemon::seconds(late)
        ));
    }
    let what = match (seen, last, late) {
        (Err(why), _, _) => {
            format!("sync-realtime does not tell what its watcher sees in {tree}: {why}")
        }
        (Ok(_), None, _) => format!("sync-realtime does not watch {tree}"),
        (Ok(_), Some(_), None) => format!("the watcher does not see the probe in {tree}"),
        (Ok(_), Some(_), Some(late)) => format!(
            "the watcher does not see the probe in {tree}; it last saw one {} ago",
            daemon::seconds(late)
        ),
    };
    Outcome::Blind {
        what,
        restart: true,
    }
}

/// A blind watcher as a fault; none while its unit is being restarted and was alive just now.
fn blind(unit: &Unit, what: &str, restart: bool, fresh: bool) -> Option<Fault> {
    if fresh && matches!(unit.state, UnitState::Starting | UnitState::Stopping) {
        return None;
    }
    let fault = Fault::of(unit, format!("{what}; {unit}"));
    // One that is dead or silent is restarted by check-sync. Two checks would restart it twice as
    // often as the settings allow, and the second would cut off the start that the first has asked for.
    let condition = match fault.condition {
        Condition::Unwell if restart && fresh => Condition::Unwell,
        Condition::Dead | Condition::Unwell | Condition::Stopping | Condition::LeftAlone => {
            Condition::LeftAlone
        }
    };
    Some(Fault { condition, ..fault })
}

/// The watcher sees; how much of the trees it sees is in the status.
fn coverage(
    word: Option<&LastWord>,
    limits: &Checks,
    max_watches: impl FnOnce() -> String,
) -> Finding {
    let Some(word) = word.filter(|word| word.is_fresh(limits)) else {
        return daemon::degraded(
            "the watcher sees the probe, but sync-realtime does not say how much it watches",
        );
    };
    let polled = polled(&word.status);
    if polled > 0 {
        return daemon::degraded(format!(
            "{polled} directories cannot be watched and are polled: raise \
             fs.inotify.max_user_watches, now {}",
            max_watches()
        ));
    }
    Finding::healthy(Verdict::ok(format!(
        "the watcher sees the probe; {} directories are watched",
        word.status.watches
    )))
}

fn polled(status: &SyncStatus) -> u64 {
    status.trees.iter().map(|tree| tree.polled).sum()
}

fn measures(status: &SyncStatus) -> [Measure; 2] {
    [
        Measure::new("watches", Quantity::Count(status.watches)),
        Measure::new("polled", Quantity::Count(polled(status))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::examples::{limits, now, status, unit, word};
    use crate::verdict::Level;

    const FRESH: &str = "1000.000000-7-0";

    fn probe(written: Result<(), Obstacle>) -> Probe {
        Probe {
            tree: PathBuf::from("/srv/a"),
            token: FRESH.to_owned(),
            written,
        }
    }

    fn tokens(token: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("/srv/a".to_owned(), token.to_owned())])
    }

    /// What the outcome is, and its text.
    fn sort(outcome: Outcome) -> (&'static str, String) {
        match outcome {
            Outcome::Seen => ("seen", String::new()),
            Outcome::NotYet(why) => ("not yet", why),
            Outcome::Warning(why) => ("warning", why),
            Outcome::Blind {
                what,
                restart: true,
            } => ("restart", what),
            Outcome::Blind {
                what,
                restart: false,
            } => ("blind", what),
        }
    }

    #[test]
    fn what_the_watcher_has_seen_is_judged() {
        use SyncState::{Held, InSync, Standby, Starting};
        let none = || Ok(BTreeMap::new());
        let mute = || Err("Connection refused".to_owned());
        // Written at 1000, which is now; the limit for a late one is 10 s.
        for (state, seen, expected, text) in [
            (InSync, Ok(tokens(FRESH)), "seen", ""),
            (Standby, Ok(tokens(FRESH)), "seen", ""),
            (Held, Ok(tokens(FRESH)), "seen", ""),
            (
                InSync,
                Ok(tokens("998.5-7-0")),
                "not yet",
                "busy: it was in /srv/a 1.5 s ago",
            ),
            (InSync, Ok(tokens("990.0-7-0")), "not yet", "10.0 s ago"),
            (
                InSync,
                Ok(tokens("989.9-7-0")),
                "restart",
                "last saw one 10.1 s ago",
            ),
            (
                Starting,
                Ok(tokens("989.9-7-0")),
                "restart",
                "last saw one 10.1 s ago",
            ),
            (
                InSync,
                Ok(tokens("1000.5-7-0")),
                "restart",
                "does not see the probe in /srv/a",
            ),
            (InSync, Ok(tokens("")), "restart", "does not see the probe"),
            (
                InSync,
                Ok(tokens("old")),
                "restart",
                "does not see the probe",
            ),
            (Starting, Ok(tokens("")), "not yet", "not watched yet"),
            (Starting, none(), "not yet", "not watched yet"),
            (Starting, mute(), "restart", "Connection refused"),
            (InSync, none(), "restart", "does not watch /srv/a"),
            (Held, none(), "warning", "held: look here"),
            (Held, Ok(tokens("old")), "restart", "does not see the probe"),
            (InSync, mute(), "restart", "Connection refused"),
            (Held, mute(), "restart", "Connection refused"),
        ] {
            let said = word(status(state), 1.0);
            let outcome = judge(&[probe(Ok(()))], &seen, Some(&said), &limits(), &now());
            let (found, why) = sort(outcome);
            assert_eq!(found, expected, "{state:?} {seen:?}: {why}");
            assert!(why.contains(text), "{state:?} {seen:?}: {why}");
        }
    }

    #[test]
    fn an_old_word_excuses_nothing() {
        let old = word(status(SyncState::Starting), 10.5);
        for said in [None, Some(&old)] {
            let outcome = judge(&[probe(Ok(()))], &Ok(tokens("")), said, &limits(), &now());
            assert_eq!(sort(outcome).0, "restart", "{said:?}");
        }
    }

    #[test]
    fn a_probe_that_was_not_written_is_judged_by_the_reason() {
        let (here, anywhere) = (
            || Obstacle::Here("missing".to_owned()),
            || Obstacle::Anywhere("full".to_owned()),
        );
        for (probes, expected) in [
            (vec![Err(here())], "blind"),
            (vec![Err(anywhere())], "warning"),
            (vec![Ok(()), Err(anywhere())], "warning"),
            (vec![Err(anywhere()), Err(here())], "blind"),
            (vec![Err(here()), Ok(())], "blind"),
            (vec![], "seen"),
        ] {
            let probes: Vec<Probe> = probes.into_iter().map(probe).collect();
            let outcome = judge(&probes, &Ok(tokens(FRESH)), None, &limits(), &now());
            assert_eq!(sort(outcome).0, expected, "{probes:?}");
        }
    }

    #[test]
    fn one_blind_tree_of_many_counts() {
        let probes = [
            probe(Ok(())),
            Probe {
                tree: PathBuf::from("/srv/b"),
                ..probe(Ok(()))
            },
        ];
        let outcome = judge(&probes, &Ok(tokens(FRESH)), None, &limits(), &now());
        assert_eq!(
            sort(outcome),
            ("restart", "sync-realtime does not watch /srv/b".to_owned())
        );
    }

    #[test]
    fn a_unit_has_one_check_that_restarts_it() {
        use UnitState::{Failed, Running, Starting, Stopped, Stopping, Unknown};
        let alone = Some(Condition::LeftAlone);
        for (state, alive, restart, fresh, expected) in [
            (Running, true, true, true, Some(Condition::Unwell)),
            (Running, true, false, true, alone),
            (Running, true, true, false, alone),
            (Running, false, true, true, alone),
            (Failed, false, true, true, alone),
            (Stopped, false, true, true, alone),
            (Unknown, false, true, true, alone),
            (Starting, true, true, true, None),
            (Stopping, true, true, true, None),
            (Starting, true, true, false, alone),
            (Stopping, true, true, false, alone),
        ] {
            let fault = blind(&unit(state, alive), "blind", restart, fresh);
            assert_eq!(
                fault.map(|fault| fault.condition),
                expected,
                "{state:?} {alive} {restart} {fresh}"
            );
        }
    }

    #[test]
    fn coverage_is_told() {
        let limits = limits();
        let max = || "8192".to_owned();
        let whole = word(status(SyncState::InSync), 1.0);
        let mut part = whole.clone();
        part.status.trees[1].polled = 12;
        let old = word(status(SyncState::InSync), 11.0);
        let level = |said: Option<&LastWord>| {
            let Finding { verdict, alert, .. } = coverage(said, &limits, max);
            assert_eq!(alert.is_some(), verdict.level == Level::Degraded);
            (verdict.level, verdict.reason)
        };
        assert_eq!(level(Some(&whole)).0, Level::Ok);
        assert_eq!(
            level(Some(&part)),
            (
                Level::Degraded,
                "12 directories cannot be watched and are polled: raise \
                 fs.inotify.max_user_watches, now 8192"
                    .to_owned()
            )
        );
        assert_eq!(level(Some(&old)).0, Level::Degraded);
        assert_eq!(level(None).0, Level::Degraded);
    }
}
