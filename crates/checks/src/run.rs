//! One run of a check, from its command line to its exit status.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::Verb;
use nodefiles::{Lock, Sharing, Wait, valid_settings};
use observe::{Session, SqlError, Target, UnitState};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::audited;
use crate::cli::{Common, Output};
use crate::clock::Moment;
use crate::record::{self, Note, Notice, Weight};
use crate::repair::{self, Action, Condition, History, WhenHung};
use crate::store;
use crate::verdict::{Level, Timing, Verdict};
use crate::watchdog::Watchdog;

/// While a role change is in progress, a verdict on the database is kept so long after it was
/// judged. Longer than a switch-over's freeze, shorter than what an operator would wait.
const KEPT_DURING_CHANGE: Duration = Duration::from_secs(10);

/// Longest time for systemd to tell the state of a unit or to take a restart.
const SYSTEMD_PATIENCE: Duration = Duration::from_millis(200);

/// Where a bad settings file of the real node is noted: the paths are in that file.
const DEFAULT_RUN: &str = "/run/keepalived-companion";
const DEFAULT_LOG: &str = "/var/log/keepalived";

/// A check: what it is called and how it looks.
pub(crate) trait Check: clap::Parser {
    /// The options that every check has.
    fn common(&self) -> &Common;
    /// How it is called where.
    fn names(&self) -> Names;
    /// Whether it asks the database and so keeps still during a role change.
    fn asks_database(&self) -> bool;
    /// The unit that a repair restarts.
    fn unit<'a>(&self, settings: &'a Settings) -> Option<&'a str>;
    /// Looks and judges.
    fn look(&self, scene: &Scene<'_>) -> Finding;
}

/// How a check is called where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Its program.
    pub program: &'static str,
    /// Its log, as the original script called it.
    pub log: &'static str,
    /// The stem of its files in the run directory.
    pub state: &'static str,
    /// What it watches, for a person.
    pub service: &'static str,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// What is the matter with the unit; none when nothing is.
    pub condition: Option<Condition>,
    /// An alert to send when the verdict has changed to this one.
    pub alert: Option<String>,
}

impl Finding {
    /// Whatever the verdict is, the service itself is up: nothing to repair.
    pub fn healthy(verdict: Verdict) -> Self {
        Self {
            verdict,
            condition: None,
            alert: None,
        }
    }

    /// The service is not well, and nobody has looked at its unit yet.
    pub fn failed(verdict: Verdict) -> Self {
        Self {
            condition: Some(Condition::LeftAlone),
            ..Self::healthy(verdict)
        }
    }
}

/// What a check works with.
pub(crate) struct Scene<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// How the check is called where.
    names: Names,
    /// The moment of this run.
    pub now: Moment,
    /// The deadline.
    pub watchdog: &'a Watchdog,
}

/// A unit as systemd sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: UnitState,
    /// Whether it has a process.
    pub alive: bool,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, state, alive } = self;
        match (state, alive) {
            (UnitState::Running, true) => write!(f, "{name} is running"),
            (UnitState::Running, false) => write!(f, "{name} is active without a process"),
            (UnitState::Starting, _) => write!(f, "{name} is starting"),
            (UnitState::Stopping, _) => write!(f, "{name} is stopping"),
            (UnitState::Stopped, _) => write!(f, "{name} is stopped"),
            (UnitState::Failed, _) => write!(f, "{name} has failed"),
            (UnitState::Unknown, _) => write!(f, "systemd does not tell the state of {name}"),
        }
    }
}

impl Scene<'_> {
    /// Asks systemd for a unit, in bounded time.
    pub fn ask_unit(&self, name: &str) -> Unit {
        self.watchdog.doing(format!("asking systemd for {name}"));
        let (state, alive) = observe::unit(name, self.watchdog.left().min(SYSTEMD_PATIENCE));
        Unit {
            name: name.to_owned(),
            state,
            alive,
        }
    }

    /// What has been done for the unit so far.
    pub fn history(&self) -> History {
        history(self.settings, self.names)
    }

    /// A part of the time that is left for the main question; the rest is for asking systemd when
    /// there is no answer.
    pub fn question_limit(&self) -> Duration {
        self.watchdog.left() * 3 / 4
    }

    /// Connects to the local database.
    pub fn connect(&self) -> Result<Session, SqlError> {
        let socket = self.settings.database.socket.display();
        self.watchdog
            .doing(format!("connecting to MariaDB at {socket}"));
        Session::connect_bare(self.settings, Target::Local, self.question_limit())
    }

    /// Whether the local database is read-only.
    pub fn read_only(&self, session: &mut Session) -> Result<bool, SqlError> {
        self.watchdog
            .doing("asking MariaDB whether it is read-only");
        session.row("SELECT @@read_only")
    }

    /// The verdict on a database that cannot be asked.
    pub fn database_unreachable(&self, error: &SqlError) -> Finding {
        if matches!(error, SqlError::Password(_)) {
            return Finding::failed(Verdict::unjudged(error.to_string()));
        }
        if error.no_connection_left() {
            // The clients have them, and would come along to another node.
            return Finding::healthy(no_connection_left(error));
        }
        // A server that refuses is alive, whatever is wrong with it.
        if error.server_code().is_some() {
            return Finding::failed(Verdict::failed(error.to_string()));
        }
        let unit = self.ask_unit(&self.settings.database.unit);
        Finding {
            condition: Some(Condition::of(unit.state, unit.alive, WhenHung::LeaveAlone)),
            ..Finding::failed(Verdict::failed(format!("{error}; {unit}")))
        }
    }
}

/// The server cannot be asked, and a failover would not help.
fn no_connection_left(error: &SqlError) -> Verdict {
    Verdict::degraded(format!(
        "alive, but every connection is used, so nothing more is known: {error}. Next: SHOW PROCESSLIST; extra_port in \
         MariaDB's configuration and companion.toml lets the tools in"
    ))
}

/// The last verdict of a check, in the run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// When it was judged.
    #[serde(flatten)]
    judged: Moment,
    /// Since when it has been at this level.
    since: Moment,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Kept {
    /// What to keep after the verdict of this moment, and whether that is a change.
    fn after(before: Option<Self>, verdict: &Verdict, now: &Moment) -> (Self, bool) {
        let since = before
            .filter(|kept| !kept.verdict.level.differs(verdict.level))
            .map(|kept| kept.since);
        let changed = since.is_none();
        let kept = Self {
            judged: now.clone(),
            since: since.unwrap_or_else(|| now.clone()),
            verdict: verdict.clone(),
        };
        (kept, changed)
    }
}

/// What is needed to make a verdict known, by the check or by its watchdog.
#[derive(Debug, Clone)]
struct Context {
    settings: Settings,
    common: Common,
    names: Names,
}

/// The program of a check.
pub(crate) fn main<C: Check>() -> ExitCode {
    let start = Instant::now();
    // Keepalived's is 0177, which makes directories that nobody can enter.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let check = match C::try_parse() {
        Ok(check) => check,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let common = check.common().clone();
    env_logger::Builder::new()
        .filter_level(if common.verbose {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Warn
        })
        .init();
    let names = check.names();
    if common.check_config {
        return check_config(&common);
    }
    if common.record {
        return record(&common, names);
    }
    let mut watchdog = Watchdog::start(start);
    watchdog.doing(format!("reading {}", common.config.display()));
    let settings = match valid_settings::load(&common.config, common.node.as_deref()) {
        Ok(settings) => settings,
        Err(error) => {
            let verdict = Verdict::unjudged(format!("{}: {error}", common.config.display()));
            let status = exit_status(verdict.level, common.output);
            watchdog.claim(status);
            note_bad_settings(&common, names, &verdict);
            say(&common, names, &verdict, None);
            return ExitCode::from(status);
        }
    };
    let context = Arc::new(Context {
        settings,
        common,
        names,
    });
    let status = judge_and_say(&check, &context, &mut watchdog);
    ExitCode::from(status)
}

fn judge_and_say(check: &impl Check, context: &Arc<Context>, watchdog: &mut Watchdog) -> u8 {
    let Context {
        settings,
        common,
        names,
    } = &**context;
    let now = Moment::now();
    // Against overlapping runs; it goes with the process.
    let once = Wait::AtMost(Duration::ZERO);
    let lock = match Lock::take(&context.path("lock"), Sharing::Exclusive, once) {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => {
            let verdict = context.of_the_run_in_progress(&now);
            return context.end(watchdog, &verdict);
        }
        Err(error) => {
            // That says nothing of the service.
            log::warn!("runs that overlap are not kept apart: {error}");
            None
        }
    };
    let late = Arc::clone(context);
    watchdog.set(settings.checks.deadline, move |doing, deadline| {
        late.at_the_deadline(doing, deadline)
    });
    watchdog.doing("looking for a role change in progress");
    if check.asks_database() && audited::role_is_changing(settings) {
        if let Some(kept) = context.kept() {
            if kept.judged.is_young(&now, KEPT_DURING_CHANGE) {
                let mut verdict = kept.verdict;
                verdict.reason = format!("{} (kept: a role change is in progress)", verdict.reason);
                return context.end(watchdog, &verdict);
            }
        }
    }
    let scene = Scene {
        settings,
        names: *names,
        now,
        watchdog,
    };
    let mut finding = check.look(&scene);
    let now = scene.now;
    finding.verdict = finding
        .verdict
        .with_mistake(settings.mistake.as_deref())
        .with_time(Timing::new(
            "time",
            watchdog.elapsed(),
            settings.checks.deadline,
        ));
    let status = exit_status(finding.verdict.level, common.output);
    watchdog.claim(status);
    let mut noted = context.keep(&finding, &now);
    if common.output == Output::Keepalived {
        if let Some(unit) = check.unit(settings) {
            let held = check.asks_database() && audited::role_is_changing(settings);
            if !held {
                noted |= context.repair(unit, &finding, &now, watchdog.left());
            }
        }
    }
    context.write_down(&now, noted);
    say(common, *names, &finding.verdict, Some(watchdog.elapsed()));
    drop(lock);
    status
}

impl Context {
    fn path(&self, suffix: &str) -> PathBuf {
        path(&self.settings, self.names, suffix)
    }

    fn kept(&self) -> Option<Kept> {
        store::read(&store::file(&self.path("json")))
    }

    /// Another run has the lock: its predecessor's verdict counts while it is young.
    fn of_the_run_in_progress(&self, now: &Moment) -> Verdict {
        match self.kept() {
            Some(kept) if kept.judged.is_young(now, self.settings.checks.verdict_age) => {
                let mut verdict = kept.verdict;
                verdict.reason = format!("{} (kept: another run is in progress)", verdict.reason);
                verdict
            }
            Some(_) | None => {
                Verdict::unjudged("another run is in progress, and no recent verdict is known")
            }
        }
    }

    /// Says a verdict that is not this run's own.
    fn end(&self, watchdog: &Watchdog, verdict: &Verdict) -> u8 {
        let status = exit_status(verdict.level, self.common.output);
        watchdog.claim(status);
        say(&self.common, self.names, verdict, Some(watchdog.elapsed()));
        status
    }

    /// The watchdog's side: the check still waits for something.
    fn at_the_deadline(&self, doing: &str, deadline: Duration) -> u8 {
        let finding = Finding::failed(Verdict::unjudged(format!(
            "no verdict within {deadline:?}, still {doing}"
        )));
        let now = Moment::now();
        let noted = self.keep(&finding, &now);
        self.write_down(&now, noted);
        say(&self.common, self.names, &finding.verdict, Some(deadline));
        exit_status(finding.verdict.level, self.common.output)
    }

    /// Writes the verdict to the run directory and leaves a note when it has changed. Gives
    /// whether it has.
    fn keep(&self, finding: &Finding, now: &Moment) -> bool {
        let (kept, changed) = Kept::after(self.kept(), &finding.verdict, now);
        if let Err(error) = store::write(&self.path("json"), &kept) {
            // Without it every run would look like a change, so nothing is noted either.
            log::warn!("{}: {error}", self.path("json").display());
            return false;
        }
        if !changed {
            return false;
        }
        let Verdict { level, reason, .. } = &finding.verdict;
        let text = format!("{} {}: {reason}", self.names.service, level.word());
        let alert = finding.alert.as_ref().map(|text| Notice {
            weight: Weight::Warning,
            event: format!("{}-kept", self.names.program),
            text: text.clone(),
        });
        self.note(now, 0, &text, alert);
        true
    }

    fn note(&self, now: &Moment, number: u32, text: &str, alert: Option<Notice>) {
        let note = Note {
            log: self.names.log.to_owned(),
            line: record::line(text),
            alert,
        };
        if let Err(error) = record::leave(&self.settings, now, number, &note) {
            log::warn!("not logged: {text}: {error}");
        }
    }

    /// Has notes written down: new ones at once, and what an earlier run could not finish in one
    /// second of ten.
    fn write_down(&self, now: &Moment, noted: bool) {
        if noted || (now.at % 10.0 < 1.0 && !record::pending(&self.settings).is_empty()) {
            record::start(&self.common, self.settings.checks.deadline / 10);
        }
    }

    /// Restarts the unit, if that is due, and remembers since when it fails. Gives whether a note
    /// was left.
    fn repair(&self, unit: &str, finding: &Finding, now: &Moment, left: Duration) -> bool {
        let path = self.path("repair.json");
        let history = history(&self.settings, self.names);
        let limits = &self.settings.checks;
        let (action, next) = repair::decide(&history, finding.condition, limits, now);
        if matches!(action, Action::Restart { .. } | Action::Kill) {
            // The first thing here that reads the disk, and the verdict is known.
            if let Some(why) = nodefiles::maintenance::forbids(&self.settings) {
                log::debug!("no restart: {why}");
                return false;
            }
        }
        if next == history {
            return false;
        }
        // Counted before it is done: a run that is killed has used its attempt.
        let kept = if next == History::default() {
            store::remove(&path)
        } else {
            store::write(&path, &next)
        };
        if let Err(error) = kept {
            log::warn!("no repair: {}: {error}", path.display());
            return false;
        }
        let service = self.names.service;
        let notice = |weight, event: &str, text: &str| Notice {
            weight,
            event: format!("{}-{event}", self.names.program),
            text: text.to_owned(),
        };
        match action {
            Action::Wait => return false,
            Action::Restart { attempt, announce } => {
                let asked = ask_systemd(Verb::Restart, unit, left);
                let text = format!(
                    "repair of {service}: restart {attempt} of {} of {unit} {}: {}",
                    repair::allowed(limits),
                    match asked {
                        Ok(()) => "asked for".to_owned(),
                        Err(error) => format!("could not be asked for ({error})"),
                    },
                    finding.verdict.reason
                );
                let alert = announce.then(|| notice(Weight::Warning, "repair-begun", &text));
                self.note(now, 1, &text, alert);
            }
            Action::Kill => {
                let text = match ask_systemd(Verb::Kill, unit, left) {
                    Ok(()) => format!("repair of {service}: {unit} did not stop and is killed"),
                    Err(error) => format!("repair of {service}: {unit} does not stop, and {error}"),
                };
                self.note(now, 1, &text, None);
            }
            Action::GiveUp => {
                let text = format!(
                    "repair of {service} given up after {} restarts of {unit}: {}",
                    history.attempts, finding.verdict.reason
                );
                self.note(
                    now,
                    1,
                    &text,
                    Some(notice(Weight::Critical, "repair-exhausted", &text)),
                );
            }
            Action::Recovered => {
                let text = format!(
                    "{service} is well again after {} restarts of {unit}",
                    history.attempts
                );
                self.note(
                    now,
                    1,
                    &text,
                    Some(notice(Weight::Info, "repair-recovered", &text)),
                );
            }
        }
        true
    }
}

/// A file of a check in the run directory.
fn path(settings: &Settings, names: Names, suffix: &str) -> PathBuf {
    settings.paths.run.join(format!("{}.{suffix}", names.state))
}

/// What has been done so far.
fn history(settings: &Settings, names: Names) -> History {
    store::read(&store::file(&path(settings, names, "repair.json"))).unwrap_or_default()
}

fn ask_systemd(verb: Verb, unit: &str, left: Duration) -> Result<(), process::ProcessError> {
    host::ask(verb, unit, left.max(SYSTEMD_PATIENCE))
}

fn exit_status(level: Level, output: Output) -> u8 {
    match output {
        Output::Keepalived | Output::Json => level.keepalived(),
        Output::Nagios => level.nagios().0,
    }
}

/// Prints the verdict for whoever reads it. A reader that has gone changes nothing.
fn say(common: &Common, names: Names, verdict: &Verdict, took: Option<Duration>) {
    let text = match common.output {
        Output::Keepalived => {
            let passed = verdict.level.keepalived() == 0;
            if !passed || common.verbose {
                let word = verdict.level.word();
                let _ = writeln!(
                    io::stderr(),
                    "{}: {word}: {}",
                    names.program,
                    verdict.reason
                );
            }
            return;
        }
        Output::Nagios => verdict.nagios_line(),
        Output::Json => {
            let mut object = serde_json::json!({
                "check": names.program,
                "level": verdict.level,
                "reason": verdict.reason,
                "times": verdict.times,
                "seconds": took.map(|t| t.as_secs_f64()),
            });
            if !verdict.measures.is_empty() {
                object["measures"] = serde_json::json!(verdict.measures);
            }
            object.to_string()
        }
    };
    let _ = writeln!(io::stdout(), "{text}");
}

fn check_config(common: &Common) -> ExitCode {
    match settings::load(&common.config, common.node.as_deref()) {
        Ok(_) => {
            let _ = writeln!(io::stdout(), "ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(2)
        }
    }
}

fn record(common: &Common, names: Names) -> ExitCode {
    let done = valid_settings::load(&common.config, common.node.as_deref())
        .map_err(io::Error::other)
        .and_then(|settings| record::run(&settings));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", names.program);
            ExitCode::FAILURE
        }
    }
}

/// A bad settings file on a real node goes to the log that the original script had, once.
fn note_bad_settings(common: &Common, names: Names, verdict: &Verdict) {
    if common.config != Path::new(settings::DEFAULT_PATH) {
        return;
    }
    let path = Path::new(DEFAULT_RUN).join(format!("{}.json", names.state));
    let now = Moment::now();
    let (kept, changed) = Kept::after(store::read(&store::file(&path)), verdict, &now);
    if !changed {
        return;
    }
    let line = record::line(&format!("{} failed: {}", names.service, verdict.reason));
    let noted = store::write(&path, &kept)
        .and_then(|()| record::append(&Path::new(DEFAULT_LOG).join(names.log), &line));
    if let Err(error) = noted {
        log::warn!("not logged: {error}");
    }
}
