//! `failback`: the preferred node becomes the primary again. It rejoins, catches up, and then takes the
//! right to write in the same switch-over as `promote`.

use std::io::Read;
use std::time::{Duration, Instant};

use alerts::Severity;
use clap::Parser;
use nodefiles::role_lock::{LockError, RoleLock};
use nodefiles::sync_status::{StandbyState, StandbyStatus};
use observe::{Session, SqlError, Target};
use role::{GtidSet, Intent, Known, Plan, Refusal, Rejoin};
use serde::Serialize;
use settings::{Node, Settings};

use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer, answer_step};
use crate::diverged::{self, DivergedError, Settled};
use crate::files::{self, Sampled};
use crate::link::{LinkError, ssh};
use crate::look::{Depth, Look, look, rules};
use crate::preflight::{self, Obstacle};
use crate::promote::{PromoteError, Promoted, promote};
use crate::rebuild::{self, RebuildError};
use crate::slave_position::{NOT_IN_BINLOGS, PositionError};
use crate::takeover::Took;
use crate::{statements, takeover, tell};

/// The third command that the peers' ssh key may ask for, with the options of [`Options`].
pub const COMMAND: &str = "failback";
/// Between two lines of progress.
const TELL: Duration = Duration::from_secs(1);
/// Between two looks at what changes by itself.
const PAUSE: Duration = Duration::from_millis(200);
/// Files that are compared by their digests.
const SAMPLE: usize = 20;
/// How long the result may take to show itself.
const VERIFY: Duration = Duration::from_secs(20);
/// A row, which may wait for a standby's acknowledgement.
const ROW: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(
    name = "failback",
    version,
    about = "Makes the preferred node the primary again, without losing a write",
    after_help = "Examples:\n  failback                on the preferred node: rejoin, catch up, switch over, check\n  \
                  failback --dry-run      say what stands in the way, and print every statement\n  \
                  failback --to node2     make node2 the primary, typed anywhere\n  \
                  failback --rejoin-only  become a replica of the present primary, no more\n  \
                  failback --rejoin-only --rebuild   the same, with a copy of the primary when nothing else helps\n\n\
                  Ctrl-C before the database opens undoes everything. A failback that was killed is run again:\n  \
                  it goes on from what it finds.\n\n\
                  Exit: 0 done or nothing to do, 1 failed and undone, 2 settings or arguments, 3 refused,\n  \
                  4 stopped past the point of no return (run it again), 5 a node is unreachable, 6 lock held"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The node that is to become the primary [default: the preferred one of the settings], or with
    /// --rejoin-only a replica [default: this one]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// What may also be asked over ssh.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print the preconditions and every statement, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Become a replica of the present primary, and no more
    #[arg(long, conflicts_with = "dry_run")]
    rejoin_only: bool,
    /// Replace this node's data by a copy of the primary when they cannot follow it otherwise; the old data
    /// are kept beside it
    #[arg(long)]
    rebuild: bool,
    /// Alert when it does not succeed, as the units do that run it
    #[arg(long)]
    automatic: bool,
    /// Go on after an interruption; the same as a new run
    #[arg(long)]
    resume: bool,
    /// How long the waits before the switch-over may take in all, in seconds
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u64,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// The options as the forced command of a peer takes them.
#[derive(Debug, Parser)]
#[command(name = "failback", no_binary_name = true)]
struct Remote {
    #[command(flatten)]
    options: Options,
}

/// Entry point of `failback`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let usual = if arguments.options.rejoin_only {
        &settings.local().name
    } else {
        &settings.cluster.preferred
    };
    let target = arguments.to.as_ref().unwrap_or(usual);
    let Some(node) = takeover::node(&settings, target) else {
        let known: Vec<&str> = settings.nodes.iter().map(|n| n.name.as_str()).collect();
        log::error!(
            "--to {target}: no such node in the settings; there are {}",
            known.join(", ")
        );
        return Exit::Usage;
    };
    let cancel = match Cancel::on_signals() {
        Ok(cancel) => cancel,
        Err(exit) => return exit,
    };
    if node.name == settings.local().name {
        return here(&settings, &arguments.options, &cancel);
    }
    there(&settings, node, &arguments.options, &cancel)
}

/// At a peer's word: the words after [`COMMAND`]. The peer hangs up to cancel it.
pub fn asked(settings: &Settings, words: &[&str]) -> Exit {
    let remote = match Remote::try_parse_from(words) {
        Ok(remote) => remote,
        Err(error) => {
            log::error!("{error}");
            return Exit::Refused;
        }
    };
    if let Some(mistake) = &settings.mistake {
        log::error!("{mistake}");
        return Exit::Usage;
    }
    let options = &remote.options;
    if options.rebuild && !options.dry_run && !settings.failback.rebuild_automatic {
        log::error!(
            "a rebuild is not begun at a peer's word alone: type it on this node, failback --rejoin-only --rebuild, or \
             set failback.rebuild = \"automatic\" in the settings here"
        );
        return Exit::Refused;
    }
    let cancel = Cancel::default();
    let hung_up = cancel.clone();
    std::thread::spawn(move || {
        // Ends at the end of the input, which nothing is written to.
        let _ = std::io::stdin().lock().read(&mut [0]);
        hung_up.ask();
    });
    here(settings, &remote.options, &cancel)
}

fn there(settings: &Settings, node: &Node, options: &Options, cancel: &Cancel) -> Exit {
    let mut words = format!("{COMMAND} --timeout {}", options.timeout);
    for (on, word) in [
        (options.dry_run, " --dry-run"),
        (options.rejoin_only, " --rejoin-only"),
        (options.rebuild, " --rebuild"),
        (options.automatic, " --automatic"),
        (options.json, " --json"),
    ] {
        if on {
            words.push_str(word);
        }
    }
    ask(settings, node, &words, || !cancel.asked())
}

/// Asks a peer to take over from this node, a primary that is well, within so long.
pub fn by_peer(settings: &Settings, peer: &Node, patience: Duration) -> Exit {
    let start = Instant::now();
    let words = format!("{COMMAND} --timeout {}", patience.as_secs().max(1));
    ask(settings, peer, &words, || start.elapsed() < patience)
}

/// Runs the words there, with this program's own output. As soon as `go_on` says no the peer is told to stop, which it
/// does as long as nothing is lost by it.
fn ask(settings: &Settings, node: &Node, words: &str, go_on: impl Fn() -> bool) -> Exit {
    let Some(address) = observe::reachable(settings, node, settings.peer.port) else {
        log::error!("{} does not answer on any network", node.name);
        return Exit::Unreachable;
    };
    match ssh(settings, address).arg(words).run_passing_on(go_on) {
        Ok(Some(0)) => Exit::Done,
        Ok(Some(code)) => Exit::from_code(code).unwrap_or(Exit::Unreachable),
        Ok(None) => Exit::Unreachable,
        Err(error) => {
            log::error!("{error}");
            Exit::Unreachable
        }
    }
}

fn here(settings: &Settings, options: &Options, cancel: &Cancel) -> Exit {
    let mut failback = Failback {
        settings,
        options,
        cancel,
        start: Instant::now(),
    };
    let outcome = failback.run();
    failback.report(&outcome);
    if let (true, Err(error)) = (options.automatic, &outcome) {
        let text = format!("failback did not succeed: {error}");
        tell::alert(settings, "failback-failed", Severity::Warning, &text);
    }
    match outcome {
        Ok(_) => Exit::Done,
        Err(error) => error.exit(),
    }
}

/// How it ended well.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
enum Done {
    /// This node is the primary already.
    AlreadyPrimary,
    /// It is a replica of this one.
    Replica {
        /// The primary.
        of: String,
    },
    /// What would be done.
    Planned {
        /// The steps.
        plan: Plan,
    },
    /// A copy of the primary would take the place of the data.
    RebuildPlanned {
        /// In words.
        steps: Vec<String>,
    },
    /// It is the primary.
    Primary {
        /// From the freeze to the replica.
        switch_over_seconds: f64,
        /// From the freeze to the first write here.
        frozen_seconds: Option<f64>,
    },
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
enum FailbackError {
    #[error("stopped by a signal; nothing was changed")]
    Cancelled,
    #[error(
        "no writable primary is seen, so there is nothing to fail back from; on the node that shall be the primary: promote"
    )]
    NoPrimary,
    #[error("{}", preflight::list(.0))]
    Obstacles(Vec<Obstacle>),
    #[error("{why}; {next}")]
    Refused { why: String, next: String },
    #[error(
        "{what} took longer than {limit:?}; nothing was changed. Try again, with a larger --timeout"
    )]
    TooLate { what: String, limit: Duration },
    #[error("this node is the primary, but {0}; see: journalctl -u keepalived-companion-role")]
    Unverified(String),
    #[error(transparent)]
    Promote(#[from] Box<PromoteError>),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Diverged(#[from] DivergedError),
    #[error(transparent)]
    Position(#[from] PositionError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

impl FailbackError {
    fn exit(&self) -> Exit {
        match self {
            Self::NoPrimary
            | Self::Obstacles(_)
            | Self::Refused { .. }
            | Self::Position(PositionError::OnlyByCopy { .. })
            | Self::Link(LinkError::Versions(_)) => Exit::Refused,
            Self::Cancelled
            | Self::TooLate { .. }
            | Self::Diverged(_)
            | Self::Position(_)
            | Self::Rebuild(_)
            | Self::Sql(_)
            | Self::Lock(LockError::Io { .. }) => Exit::Undone,
            Self::Unverified(_) => Exit::Forward,
            Self::Promote(error) => error.exit(),
            Self::Lock(LockError::Busy { .. }) | Self::Link(LinkError::Busy { .. }) => Exit::Locked,
            Self::Link(_) => Exit::Unreachable,
        }
    }
}

/// What is missing until a row is here that is written on the primary the first time. Under the role lock: this node
/// must not take over meanwhile, or the row would be one that the old primary has alone.
fn row_arrived(
    settings: &Settings,
    primary: &Node,
    wanted: &mut Option<GtidSet>,
) -> Result<Option<String>, FailbackError> {
    let written = if let Some(written) = &*wanted {
        written
    } else {
        let _lock = RoleLock::take(settings, Duration::ZERO)?;
        let mut here = Session::connect(settings, Target::Local, ROW)?;
        let mut there = Session::connect(settings, Target::Peer(primary.private), ROW)?;
        let closed = "SELECT @@read_only";
        if !here.row::<bool>(closed)? || there.row::<bool>(closed)? {
            return Ok(Some(format!("{} is not the primary", primary.name)));
        }
        statements::beat(&mut there, settings)?;
        &*wanted.insert(statements::gtids(&mut there, "SELECT @@gtid_binlog_pos")?)
    };
    let mut here = Session::connect(settings, Target::Local, ROW)?;
    let server = observe::observe_server(&mut here, settings)?;
    let arrived = server.holdings().contains(written);
    Ok((!arrived).then(|| "it was written".to_owned()))
}

/// How this node can follow the primary.
enum Attached {
    /// With its own data, or it does already.
    AsItIs,
    /// With a copy of the primary; the refusal without one.
    OnlyByCopy(FailbackError),
}

struct Failback<'a> {
    settings: &'a Settings,
    options: &'a Options,
    cancel: &'a Cancel,
    start: Instant,
}

impl Failback<'_> {
    fn run(&mut self) -> Result<Done, FailbackError> {
        let settings = self.settings;
        let me = &settings.local().name;
        self.say(&format!("failback to {me}"));
        let mut seen = look(settings, Depth::Nodes);
        if seen.seen.local.database.writable() {
            return Ok(Done::AlreadyPrimary);
        }
        let Some(primary) = seen.seen.primary().map(|(peer, _)| peer.name.clone()) else {
            return Err(FailbackError::NoPrimary);
        };
        // Just to follow the primary with its own data is what this node does by itself, too.
        let planned = self.options.rebuild || !self.options.rejoin_only;
        if let Some(link) = seen.links.get_mut(&primary).filter(|_| planned) {
            link.fit_for_planned_change()?;
        }
        drop(seen);
        if self.options.dry_run {
            if let Some(planned) = self.rebuild_planned(&primary) {
                return Ok(planned);
            }
        } else {
            self.rejoin(&primary)?;
        }
        if self.options.rejoin_only {
            return Ok(Done::Replica { of: primary });
        }
        if self.options.dry_run {
            let found = self.obstacles(&primary)?;
            if !found.is_empty() {
                return Err(FailbackError::Obstacles(found));
            }
            return match self.switch_over(true)? {
                Promoted::Planned(plan) => Ok(Done::Planned { plan }),
                Promoted::Already | Promoted::Done(..) => Ok(Done::AlreadyPrimary),
            };
        }
        let promoted = loop {
            self.prepare(&primary)?;
            match self.switch_over(false) {
                // It looked once more, and a check had failed since: nothing was touched.
                Err(FailbackError::Obstacles(found)) if found.iter().all(Obstacle::passes) => {}
                other => break other?,
            }
        };
        let took = match promoted {
            Promoted::Done(_, took) => took,
            Promoted::Already | Promoted::Planned(_) => Took::default(),
        };
        self.say(&format!("{me} is the primary; the switch-over took {took}"));
        self.verify(&primary)?;
        Ok(Done::Primary {
            switch_over_seconds: took.whole.as_secs_f64(),
            frozen_seconds: took.frozen.map(|frozen| frozen.as_secs_f64()),
        })
    }

    /// A line on the terminal and in the log that the original had, with the time since the start.
    fn say(&self, text: &str) {
        let file = format!("failback-{}.log", self.settings.local().name);
        let text = format!("[{:6.2} s] {text}", self.start.elapsed().as_secs_f64());
        tell::log_line(self.settings, &self.settings.paths.log.join(file), &text);
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.options.timeout)
    }

    /// Waits for something that comes by itself, and says what is missing once a second.
    fn wait(
        &self,
        what: &str,
        missing: impl FnMut() -> Result<Option<String>, FailbackError>,
    ) -> Result<(), FailbackError> {
        self.wait_since(self.start, what, missing)
    }

    /// The same, where the limit counts from this moment.
    fn wait_since(
        &self,
        since: Instant,
        what: &str,
        mut missing: impl FnMut() -> Result<Option<String>, FailbackError>,
    ) -> Result<(), FailbackError> {
        let mut told = None::<Instant>;
        loop {
            let Some(why) = missing()? else {
                return Ok(());
            };
            if self.cancel.asked() {
                return Err(FailbackError::Cancelled);
            }
            if since.elapsed() > self.limit() {
                return Err(FailbackError::TooLate {
                    what: format!("{what} ({why})"),
                    limit: self.limit(),
                });
            }
            if told.is_none_or(|at| at.elapsed() >= TELL) {
                self.say(&format!("{what}: {why}"));
                told = Some(Instant::now());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The steps of a rebuild, where a run with the same options would come to one.
    fn rebuild_planned(&self, primary: &str) -> Option<Done> {
        let seen = look(self.settings, Depth::Nodes);
        let rejoin = role::rejoin(&seen.seen, rules(self.settings));
        let diverged = rejoin == Rejoin::TakeBack;
        let useless = matches!(
            rejoin,
            Rejoin::Refused {
                copy_helps: true,
                ..
            }
        );
        let node = takeover::node(self.settings, primary)
            .filter(|_| self.options.rebuild && (useless || diverged))?;
        let mut steps = rebuild::steps(self.settings, node);
        if diverged {
            let first = "write down what only this node has, and take it back; what follows only if it is more \
                         than changes of rows";
            steps.insert(0, first.to_owned());
        }
        Some(Done::RebuildPlanned { steps })
    }

    /// Becomes a replica of the primary, as the audit would do at its next tick.
    fn rejoin(&self, primary: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        let node = takeover::node(settings, primary).ok_or(FailbackError::NoPrimary)?;
        let by_copy = match self.attach(node)? {
            Attached::OnlyByCopy(refused) => Some(refused),
            Attached::AsItIs => self.await_threads(primary)?,
        };
        if let Some(refused) = by_copy {
            self.copy_from(node, refused)?;
            if let Some(refused) = self.await_threads(primary)? {
                return Err(refused);
            }
        }
        self.await_row(node)
    }

    /// Replaces this node's data by a copy, where that was asked for.
    fn copy_from(&self, primary: &Node, refused: FailbackError) -> Result<(), FailbackError> {
        if !self.options.rebuild {
            return Err(refused);
        }
        self.say(&format!("{refused}; a rebuild was asked for"));
        let kept = rebuild::rebuild(self.settings, primary, self.cancel, &|text| self.say(text))?;
        tell::alert(
            self.settings,
            "rebuilt",
            Severity::Warning,
            &format!(
                "this node's data are a copy of {} now; the old ones are in {}: look, then delete them",
                primary.name,
                kept.display()
            ),
        );
        Ok(())
    }

    /// Waits until both threads run. Gives the refusal where the primary cannot send what is needed.
    fn await_threads(&self, primary: &str) -> Result<Option<FailbackError>, FailbackError> {
        let mut refused = None;
        // A copy may have taken longer than the limit.
        let since = Instant::now();
        self.wait_since(since, &format!("replication from {primary}"), || {
            let (me, _) = observe::observe_local(self.settings);
            let Some(server) = me.database.server() else {
                return Ok(Some("the local database does not answer".to_owned()));
            };
            let channels = &server.channels;
            if channels
                .iter()
                .any(|c| c.io == role::IoThread::Running && c.sql_running)
            {
                return Ok(None);
            }
            let errno = channels.iter().map(|c| c.io_errno).find(|e| *e != 0);
            if errno == Some(NOT_IN_BINLOGS) {
                let primary = primary.to_owned();
                refused = Some(PositionError::OnlyByCopy { primary }.into());
                return Ok(None);
            }
            Ok(Some(errno.map_or_else(
                || "the threads do not run yet".to_owned(),
                |errno| format!("error {errno}; see Last_IO_Error in SHOW ALL SLAVES STATUS"),
            )))
        })?;
        Ok(refused)
    }

    /// Waits until a row is here that is written on the primary from now on: threads that run say little, as they may run
    /// in the gap between two errors. It may wait to be applied.
    fn await_row(&self, node: &Node) -> Result<(), FailbackError> {
        let what = format!("a row of {} to arrive", node.name);
        let mut wanted = None;
        self.wait_since(Instant::now(), &what, || {
            let arrived = row_arrived(self.settings, node, &mut wanted);
            Ok(arrived.unwrap_or_else(|error| Some(error.to_string())))
        })
    }

    /// Follows the primary as this node is, where that can be.
    fn attach(&self, primary: &Node) -> Result<Attached, FailbackError> {
        const NEXT: &str = "failback --rejoin-only --rebuild";
        let settings = self.settings;
        let _lock = RoleLock::take(settings, Duration::from_secs(5))?;
        let mut seen = look(settings, Depth::Nodes);
        match role::rejoin(&seen.seen, rules(settings)) {
            Rejoin::Follows => {}
            Rejoin::Attach => {
                let session = seen.local.as_mut().ok_or_else(|| FailbackError::Refused {
                    why: "the local database went away".to_owned(),
                    next: "try again".to_owned(),
                })?;
                if let Err(error) = statements::attach(session, settings, primary) {
                    return match error {
                        PositionError::NotKnown { why, next } => {
                            Ok(Attached::OnlyByCopy(FailbackError::Refused { why, next }))
                        }
                        PositionError::OnlyByCopy { .. } => Ok(Attached::OnlyByCopy(error.into())),
                        PositionError::Sql(_)
                        | PositionError::Binlog(_)
                        | PositionError::Unapplied { .. }
                        | PositionError::Ended { .. } => Err(error.into()),
                    };
                }
                self.say(&format!("replicates from {}", primary.name));
            }
            Rejoin::TakeBack => {
                let Some((_, server)) = seen.seen.primary() else {
                    return Err(FailbackError::NoPrimary);
                };
                match diverged::settle(settings, primary, server)? {
                    Settled::TakenBack { report } => self.say(&format!(
                        "took back what {} never had, see {}; replicates from it",
                        primary.name,
                        report.display()
                    )),
                    Settled::NeedsRebuild(why) => {
                        let next = NEXT.to_owned();
                        return Ok(Attached::OnlyByCopy(FailbackError::Refused { why, next }));
                    }
                }
            }
            Rejoin::Refused {
                why,
                next,
                copy_helps,
            } => {
                let answers = next.is_some();
                let next = next.unwrap_or_else(|| {
                    let unit = &settings.database.unit;
                    format!("systemctl status {unit}, or when it cannot be started: {NEXT}")
                });
                let refused = FailbackError::Refused { why, next };
                if !copy_helps {
                    return Err(refused);
                }
                if answers
                    && self.options.rebuild
                    && let Some((_, server)) = seen.seen.primary()
                {
                    self.write_down(primary, server);
                }
                return Ok(Attached::OnlyByCopy(refused));
            }
        }
        Ok(Attached::AsItIs)
    }

    /// What only this node has, before its data are replaced; they are kept in any case.
    fn write_down(&self, primary: &Node, server: &role::Server) {
        match diverged::write_down(self.settings, primary, server) {
            Ok(report) => self.say(&format!(
                "what {} never had is written down in {}",
                primary.name,
                report.display()
            )),
            Err(error) => self.say(&format!(
                "no report of transactions that only this node has: {error}"
            )),
        }
    }

    /// Waits for what comes by itself; refuses with what does not. Last what is behind again soonest.
    fn prepare(&self, primary: &str) -> Result<(), FailbackError> {
        // After a rejoin, and after this node has ceased to be the primary, its checks need a moment.
        self.wait("Keepalived here", || {
            let found = self.obstacles(primary)?;
            if found.iter().all(Obstacle::passes) {
                return Ok(found.first().map(ToString::to_string));
            }
            Err(FailbackError::Obstacles(found))
        })?;
        self.await_files(primary)?;
        self.catch_up(primary)
    }

    fn obstacles(&self, primary: &str) -> Result<Vec<Obstacle>, FailbackError> {
        let mut seen = look(self.settings, Depth::Nodes);
        Ok(preflight::obstacles(self.settings, &mut seen, primary)?)
    }

    /// Everything that the primary has now is applied here within one slice: the freeze will not be long.
    fn catch_up(&self, primary: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        self.wait(&format!("catching up with {primary}"), || {
            let mut seen = look(settings, Depth::Databases);
            let Some((_, server)) = seen.seen.primary() else {
                return Err(FailbackError::NoPrimary);
            };
            let wanted: GtidSet = server.history();
            let local = seen.seen.local.database.server();
            let behind = local.map_or(0, |me| me.history().transactions_behind(&wanted));
            if let Some(errno) = local.and_then(|me| {
                me.channels
                    .iter()
                    .map(|c| c.sql_errno)
                    .find(|errno| *errno != 0)
            }) {
                return Err(Box::new(PromoteError::from(Refusal::SqlError { errno })).into());
            }
            let Some(session) = seen.local.as_mut() else {
                return Ok(Some("the local database does not answer".to_owned()));
            };
            // Not longer than the session's own patience.
            let applied = statements::wait_for(session, &wanted, PAUSE)?;
            Ok((!applied).then(|| format!("{behind} transactions left")))
        })
    }

    /// The files of the primary are here, but for those of the last moment, which the switch-over sends.
    fn await_files(&self, primary: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        let mut link = self.link(primary)?;
        self.wait(&format!("the files of {primary}"), || {
            let Some(files) = link.files()? else {
                return Ok(None);
            };
            let me = &settings.local().name;
            let mine = files.standbys.iter().find(|s| s.name == *me);
            let small = |s: &StandbyStatus| {
                s.state == StandbyState::InSync
                    || (s.state == StandbyState::Behind && s.paths_behind < 100)
            };
            Ok(match mine {
                Some(standby) if small(standby) => None,
                Some(standby) => {
                    let progress = standby.progress.as_deref().or(standby.reason.as_deref());
                    Some(format!(
                        "{} names are not here{}",
                        standby.paths_behind,
                        progress.map_or_else(String::new, |text| format!(": {text}"))
                    ))
                }
                None if files.standbys.is_empty() => Some("sync-realtime there begins".to_owned()),
                None => Some(format!("sync-realtime there does not know {me}")),
            })
        })
    }

    fn link(&self, peer: &str) -> Result<crate::link::Link, FailbackError> {
        let mut seen = look(self.settings, Depth::Nodes);
        seen.links
            .remove(peer)
            .ok_or_else(|| FailbackError::Refused {
                why: format!("the forced command of {peer} does not answer"),
                next: "repair ssh between the nodes".to_owned(),
            })
    }

    fn switch_over(&self, dry_run: bool) -> Result<Promoted, FailbackError> {
        // It looks for obstacles once more: the waits may have been long.
        promote(self.settings, Intent::Failback, dry_run, self.cancel).map_err(
            |error| match error {
                PromoteError::Obstacles(found) => FailbackError::Obstacles(found),
                other => Box::new(other).into(),
            },
        )
    }

    /// Whoever asked for it waits no longer, as a host does that goes down once it has handed over: what follows would
    /// only be said to be wrong.
    fn is_left_alone(&self) -> bool {
        let left = self.cancel.asked();
        if left {
            self.say("done, and not verified to its end: whoever asked for it waits no longer");
        }
        left
    }

    /// The roles as they should be, a row written here and read there, and files on their way back.
    fn verify(&self, former: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        let start = Instant::now();
        let mut missing = String::new();
        let mut written = false;
        while start.elapsed() < VERIFY {
            if self.is_left_alone() {
                return Ok(());
            }
            let mut seen = look(settings, Depth::Nodes);
            match self.lacking(&mut seen, former, &mut written) {
                Ok(None) => {
                    self.say(&format!(
                        "verified: the VIP is here, {former} is read-only and has a row just written here"
                    ));
                    return self.verify_files(former);
                }
                Ok(Some(what)) => missing = what,
                Err(error) => missing = error.to_string(),
            }
            std::thread::sleep(PAUSE);
        }
        Err(FailbackError::Unverified(missing))
    }

    /// The new sender compares some files by their digests. What differs it sends again, so the next sample
    /// is equal, unless something keeps them apart. Where it cannot be asked in time, nothing is known to be wrong.
    fn verify_files(&self, former: &str) -> Result<(), FailbackError> {
        let start = Instant::now();
        let mut told = String::new();
        let mut differ = None;
        loop {
            let text = match files::sample(self.settings, SAMPLE, former) {
                Sampled::NoSender {} => {
                    self.say("no sync-realtime runs here, so no files are compared");
                    return Ok(());
                }
                Sampled::Same { files } => {
                    self.say(&format!(
                        "verified: {files} files taken at random are the same on {former}"
                    ));
                    return Ok(());
                }
                Sampled::Differ { what } => {
                    differ = Some(what.clone());
                    what
                }
                Sampled::NotYet { why } => why,
            };
            if text != told {
                self.say(&format!("the files of {former}: {text}"));
                told = text;
            }
            if self.is_left_alone() {
                return Ok(());
            }
            if start.elapsed() > VERIFY {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        match differ {
            Some(what) => Err(FailbackError::Unverified(format!(
                "the files of {former} were not seen to be the same: {what}"
            ))),
            None => {
                self.say(&format!("the files of {former} were not compared: {told}"));
                Ok(())
            }
        }
    }

    fn lacking(
        &self,
        seen: &mut Look,
        former: &str,
        written: &mut bool,
    ) -> Result<Option<String>, SqlError> {
        let settings = self.settings;
        if !seen.seen.local.database.writable() {
            return Ok(Some("its database is not open".to_owned()));
        }
        match seen.seen.local.entitled() {
            Known::Yes => {}
            Known::No => return Ok(Some("the VIP is not here".to_owned())),
            Known::NotKnown => {
                return Ok(Some("it cannot be told whether the VIP is here".to_owned()));
            }
        }
        let peer = seen.seen.peers.iter().find(|p| p.name == former);
        let Some(server) = peer.and_then(role::PeerView::server) else {
            return Ok(Some(format!("{former} does not answer")));
        };
        if server.writable {
            return Ok(Some(format!("{former} is writable")));
        }
        let Some(session) = seen.local.as_mut() else {
            return Ok(Some("the local database does not answer".to_owned()));
        };
        if !*written {
            statements::beat(session, settings)?;
            *written = true;
        }
        let here = statements::beats(session, settings)?;
        let Some(session) = seen.sessions.get_mut(former) else {
            return Ok(Some(format!("the database of {former} does not answer")));
        };
        let there = statements::beats(session, settings)?;
        Ok((there != here).then(|| format!("{former} has not got a row that was written here")))
    }

    fn report(&self, outcome: &Result<Done, FailbackError>) {
        let line = match outcome {
            Ok(Done::AlreadyPrimary) => {
                "this node is the primary already; nothing to do".to_owned()
            }
            Ok(Done::Replica { of }) => format!("this node is a replica of {of}"),
            Ok(Done::Planned { .. }) => "nothing stands in the way; the plan:".to_owned(),
            Ok(Done::RebuildPlanned { .. }) => "this node cannot just follow; the plan:".to_owned(),
            Ok(Done::Primary { .. }) => format!(
                "done: {} is the primary, {:.1} s since the start",
                self.settings.local().name,
                self.start.elapsed().as_secs_f64()
            ),
            Err(error) => error.to_string(),
        };
        self.say(&line);
        if self.options.json {
            let value = match outcome {
                Ok(done) => serde_json::to_value(done).unwrap_or_default(),
                Err(error) => serde_json::json!({
                    "outcome": "failed", "exit": error.exit().code(), "why": error.to_string(),
                    "obstacles": if let FailbackError::Obstacles(found) = error { found.as_slice() } else { &[] },
                }),
            };
            answer(&value.to_string());
        } else if let Ok(Done::Planned { plan }) = outcome {
            for step in &plan.steps {
                answer_step(step);
                if let Some(undo) = step.undo() {
                    answer(&format!("    undone by: {undo}"));
                }
            }
        } else if let Ok(Done::RebuildPlanned { steps }) = outcome {
            for step in steps {
                answer(&format!("- {step}"));
            }
        }
    }
}
