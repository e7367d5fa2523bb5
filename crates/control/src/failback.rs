//! `failback`: the preferred node becomes the primary again. It rejoins, catches up, and then takes the
//! right to write in the same switch-over as `promote`.

use std::io::Read;
use std::time::{Duration, Instant};

use alerts::Severity;
use clap::Parser;
use observe::SqlError;
use role::{Database, Decision, GtidSet, Limits, Plan, Policy, Refusal, decide};
use serde::Serialize;
use settings::{Node, Settings};

use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer, answer_step};
use crate::diverged::{self, DivergedError, Settled};
use crate::files::{self, Sampled};
use crate::link::{LinkError, ssh};
use crate::lock::{LockError, RoleLock};
use crate::look::{Depth, Look, look};
use crate::preflight::{self, Obstacle};
use crate::promote::{PromoteError, Promoted, promote};
use crate::rebuild::{self, RebuildError};
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
    let Some(address) = observe::reachable(settings, node, settings.peer.port) else {
        log::error!("{} does not answer on any network", node.name);
        return Exit::Unreachable;
    };
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
    match ssh(settings, address)
        .arg(words)
        .run_passing_on(|| !cancel.asked())
    {
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
    Memory(#[from] observe::MemoryError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Diverged(#[from] DivergedError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

impl FailbackError {
    fn exit(&self) -> Exit {
        match self {
            Self::Cancelled
            | Self::TooLate { .. }
            | Self::Diverged(_)
            | Self::Rebuild(_)
            | Self::Memory(_)
            | Self::Sql(_)
            | Self::Lock(LockError::Io { .. }) => Exit::Undone,
            Self::NoPrimary | Self::Obstacles(_) | Self::Refused { .. } => Exit::Refused,
            Self::Unverified(_) => Exit::Forward,
            Self::Promote(error) => error.exit(),
            Self::Lock(LockError::Busy { .. }) | Self::Link(LinkError::Busy { .. }) => Exit::Locked,
            Self::Link(_) => Exit::Unreachable,
        }
    }
}

/// How this node can follow the primary.
enum Attached {
    /// With its own data, or it does already.
    AsItIs,
    /// With a copy of the primary; the refusal without one.
    OnlyByCopy(FailbackError),
}

/// What the decision table says of this node, at a person's word.
fn decision(seen: &Look) -> Decision {
    let policy = Policy {
        promote_unmet_after_boot: false,
        // A person's word counts more than the person's flag.
        maintenance: false,
    };
    decide(&seen.seen, policy)
}

/// Whether this node's data are of no use as they are: its server is down, and not just slow or starting, or
/// replication has stopped at an error. Nothing else that is refused says so.
fn useless(seen: &Look) -> bool {
    match &seen.seen.local.database {
        Database::Down => true,
        Database::Answering(me) => me.channels.iter().any(|c| c.sql_errno != 0),
        Database::Starting | Database::Silent => false,
    }
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
        let seen = look(settings, Depth::Nodes)?;
        if seen.seen.local.database.writable() {
            return Ok(Done::AlreadyPrimary);
        }
        let Some(primary) = seen.seen.primary().map(|(peer, _)| peer.name.clone()) else {
            return Err(FailbackError::NoPrimary);
        };
        drop(seen);
        if self.options.dry_run {
            if let Some(planned) = self.rebuild_planned(&primary)? {
                return Ok(planned);
            }
        } else {
            self.rejoin(&primary)?;
        }
        if self.options.rejoin_only {
            return Ok(Done::Replica { of: primary });
        }
        if !self.options.dry_run {
            // After a rejoin its checks need a moment.
            self.wait("Keepalived here", || {
                Ok(preflight::not_ready(self.settings))
            })?;
        }
        self.preflight(&primary)?;
        if self.options.dry_run {
            return match self.switch_over(true)? {
                Promoted::Planned(plan) => Ok(Done::Planned { plan }),
                Promoted::Already | Promoted::Done(..) => Ok(Done::AlreadyPrimary),
            };
        }
        // Last what is behind again soonest.
        self.await_files(&primary)?;
        self.catch_up(&primary)?;
        let took = match self.switch_over(false)? {
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
        alerts::log_line(&self.settings.paths.log.join(file), &text);
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.options.timeout)
    }

    /// Waits for something that comes by itself, and says what is missing once a second.
    fn wait(
        &self,
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
            if self.start.elapsed() > self.limit() {
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
    fn rebuild_planned(&self, primary: &str) -> Result<Option<Done>, FailbackError> {
        let seen = look(self.settings, Depth::Nodes)?;
        let diverged = matches!(decision(&seen), Decision::Diverged { .. });
        let Some(node) = takeover::node(self.settings, primary)
            .filter(|_| self.options.rebuild && (useless(&seen) || diverged))
        else {
            return Ok(None);
        };
        let mut steps = rebuild::steps(self.settings, node);
        if diverged {
            let first = "write down what only this node has, and take it back; what follows only if it is more \
                         than changes of rows";
            steps.insert(0, first.to_owned());
        }
        Ok(Some(Done::RebuildPlanned { steps }))
    }

    /// Becomes a replica of the primary, as the audit would do at its next tick.
    fn rejoin(&self, primary: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        let node = takeover::node(settings, primary).ok_or(FailbackError::NoPrimary)?;
        if let Attached::OnlyByCopy(refused) = self.attach(node)? {
            if !self.options.rebuild {
                return Err(refused);
            }
            self.say(&format!("{refused}; a rebuild was asked for"));
            let kept = rebuild::rebuild(settings, node, self.cancel, &|text| self.say(text))?;
            tell::alert(
                settings,
                "rebuilt",
                Severity::Warning,
                &format!(
                    "this node's data are a copy of {primary} now; the old ones are in {}: look, then delete them",
                    kept.display()
                ),
            );
        }
        self.wait(&format!("replication from {primary}"), || {
            let (me, _) = observe::observe_local(settings);
            let Some(server) = me.database.server() else {
                return Ok(Some("the local database does not answer".to_owned()));
            };
            if server.channels.iter().any(|c| c.io == role::IoThread::Running && c.sql_running) {
                return Ok(None);
            }
            let errno = server.channels.iter().map(|c| c.io_errno).find(|e| *e != 0);
            Ok(Some(errno.map_or_else(
                || "the threads do not run yet".to_owned(),
                |errno| format!("error {errno}; see SHOW ALL SLAVES STATUS (1236: the primary has not got the binlogs any more, so: --rebuild)"),
            )))
        })
    }

    /// Follows the primary as this node is, where that can be.
    fn attach(&self, primary: &Node) -> Result<Attached, FailbackError> {
        const NEXT: &str = "failback --rejoin-only --rebuild";
        let settings = self.settings;
        let _lock = RoleLock::take(settings, Duration::from_secs(5))?;
        let mut seen = look(settings, Depth::Nodes)?;
        let decision = decision(&seen);
        let Some(session) = seen.local.as_mut() else {
            let refused = FailbackError::Refused {
                why: "the local database does not answer".to_owned(),
                next: format!(
                    "systemctl status {}, or when it cannot be started: {NEXT}",
                    settings.database.unit
                ),
            };
            return if useless(&seen) {
                Ok(Attached::OnlyByCopy(refused))
            } else {
                Err(refused)
            };
        };
        match decision {
            Decision::Attach { .. } => {
                statements::attach(session, settings, primary)?;
                self.say(&format!("replicates from {}", primary.name));
            }
            Decision::Diverged { .. } => {
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
            Decision::Refuse { why, next } => {
                let refused = FailbackError::Refused {
                    why: why.to_owned(),
                    next: next.to_owned(),
                };
                if !useless(&seen) {
                    return Err(refused);
                }
                if self.options.rebuild
                    && let Some((_, server)) = seen.seen.primary()
                {
                    self.write_down(primary, server);
                }
                return Ok(Attached::OnlyByCopy(refused));
            }
            _ => {}
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

    fn preflight(&self, primary: &str) -> Result<(), FailbackError> {
        let mut seen = look(self.settings, Depth::Nodes)?;
        let found = preflight::obstacles(self.settings, &mut seen, primary)?;
        if found.is_empty() {
            return Ok(());
        }
        Err(FailbackError::Obstacles(found))
    }

    /// Everything that the primary has now is applied here within one slice: the freeze will not be long.
    fn catch_up(&self, primary: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        self.wait(&format!("catching up with {primary}"), || {
            let mut seen = look(settings, Depth::Databases)?;
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
            let small = |s: &observe::StandbyStatus| {
                s.state == observe::StandbyState::InSync
                    || (s.state == observe::StandbyState::Behind && s.paths_behind < 100)
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
        let mut seen = look(self.settings, Depth::Nodes)?;
        seen.links
            .remove(peer)
            .ok_or_else(|| FailbackError::Refused {
                why: format!("the forced command of {peer} does not answer"),
                next: "repair ssh between the nodes".to_owned(),
            })
    }

    fn switch_over(&self, dry_run: bool) -> Result<Promoted, FailbackError> {
        let limits = Limits {
            loss: 0,
            accept_loss: false,
            force: false,
        };
        // It looks for obstacles once more: the waits may have been long.
        promote(self.settings, limits, dry_run, self.cancel).map_err(|error| match error {
            PromoteError::Obstacles(found) => FailbackError::Obstacles(found),
            other => Box::new(other).into(),
        })
    }

    /// The roles as they should be, a row written here and read there, and files on their way back.
    fn verify(&self, former: &str) -> Result<(), FailbackError> {
        let settings = self.settings;
        let start = Instant::now();
        let mut missing = String::new();
        let mut written = false;
        while start.elapsed() < VERIFY {
            let mut seen = look(settings, Depth::Nodes)?;
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
        if !seen.seen.local.entitled() {
            return Ok(Some("the VIP is not here".to_owned()));
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
