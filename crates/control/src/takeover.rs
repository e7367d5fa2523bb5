//! Executes a promotion's plan: journal, effect, verification, step by step; undone in reverse
//! before the database is opened, forward only from there on.

use std::fmt;
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alerts::Severity;
use nodefiles::alone::{self, Alone};
use nodefiles::journal::{Journal, JournalError};
use nodefiles::role_state::NodeRole;
use nodefiles::track;
use observe::{Session, SqlError, Target};
use role::{Contact, GtidSet, Plan, PromotionKind, Step};
use settings::{Node, Settings};

use crate::act::ActError;
use crate::cancel::Cancel;
use crate::files::{self, Sealed};
use crate::harvest;
use crate::link::{Link, LinkError};
use crate::look::{self, Look};
use crate::step_log::StepLog;
use crate::{link, node_role, resident, statements, tell, vip};

/// VRRP moves the VIP within its skew time, a fraction of a second, once the old node leaves it.
const VIP_PATIENCE: Duration = Duration::from_secs(3);
/// After this time the old node's Keepalived does not heed its track file, and is restarted.
const TRACK_FILE_PATIENCE: Duration = Duration::from_secs(1);
/// Before that the checks here must have seen the open database: the original's rise x interval is 10 s.
const CHECKS_PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any step but a wait for data.
const STEP: Duration = Duration::from_secs(60);
/// To fetch the end of a binlog, and to apply it.
const HARVEST: Duration = Duration::from_secs(600);
/// One slice of a long wait, after which progress is told.
const SLICE: Duration = Duration::from_secs(1);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The peer's forced command failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An effect on this node failed.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The end of the old primary's binlog cannot be had, and it did not wait for its replica.
    #[error("{0}; acknowledged writes may be in it: repair, or promote --accept-loss")]
    Harvest(#[from] harvest::HarvestError),
    /// A file of this node cannot be read or locked.
    #[error(transparent)]
    File(#[from] nodefiles::FileError),
    /// No connection that the step needs.
    #[error("no connection to {node}'s {what}")]
    NoConnection {
        /// The node.
        node: String,
        /// `database`, `forced command` or `host`.
        what: &'static str,
    },
    /// Time ran out.
    #[error("{what} was not finished within {limit:?}")]
    TooLate {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The histories differ after catching up.
    #[error("after catching up this node still lacks {missing}")]
    StillMissing {
        /// GTIDs.
        missing: GtidSet,
    },
    /// A person's Ctrl-C.
    #[error("stopped by a signal")]
    Cancelled,
    /// The proof that nothing is missing here has become too old.
    #[error(
        "the proof that this node has everything of {peer} has become too old{}: {peer} may acknowledge alone by now; bring it back, or accept the loss: promote --accept-loss",
        age.map_or_else(String::new, |age| format!(" ({age:.1?})"))
    )]
    ProofExpired {
        /// The peer.
        peer: String,
        /// The proof's age; none when it is gone.
        age: Option<Duration>,
    },
    /// The receiving thread does not end.
    #[error("the receiving thread still runs after it was ended")]
    StillReceiving,
    /// A peer that was silent answers: it may be open.
    #[error("{peer} answers again, so it is looked at anew")]
    PeerIsBack {
        /// The peer.
        peer: String,
    },
    /// The drained data are older than an epoch that was seen.
    #[error(
        "everything received is applied and this data is at epoch {mine}, older than epoch {seen} that was seen; start the node with the newer data, or: promote --accept-loss"
    )]
    StaleEpoch {
        /// Here.
        mine: u64,
        /// The highest seen.
        seen: u64,
    },
}

/// How the execution ended when it did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Nothing has changed for good.
    #[error("step «{step}» failed and everything was undone: {why}")]
    Undone {
        /// The step.
        step: String,
        /// The reason.
        why: StepError,
    },
    /// Not everything could be undone.
    #[error(
        "step «{step}» failed ({why}), and undoing failed too: {undo}; both databases may be read-only: promote"
    )]
    NotUndone {
        /// The step.
        step: String,
        /// The reason.
        why: StepError,
        /// What failed in undoing.
        undo: StepError,
    },
    /// The database is open or may be; only forward.
    #[error("step «{step}» failed past the point of no return: {why}; run it again: promote")]
    Forward {
        /// The step.
        step: String,
        /// The reason.
        why: StepError,
    },
}

/// How long a change took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// From the first step to the last.
    pub whole: Duration,
    /// Of a switch-over: from the freeze of the old primary to the first write on the new one. Clients notice
    /// besides how long the VIP takes to move, and to connect again.
    pub frozen: Option<Duration>,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2?}", self.whole)?;
        match self.frozen {
            Some(frozen) => write!(f, ", of which no database took writes for {frozen:.2?}"),
            None => Ok(()),
        }
    }
}

/// What the steps of one execution share.
struct Execution<'a> {
    settings: &'a Settings,
    look: &'a mut Look,
    plan: &'a Plan,
    accept_loss: bool,
    /// The frozen primary's position and whole history.
    frozen: Option<(GtidSet, GtidSet)>,
    freeze_began: Option<Instant>,
    frozen_for: Option<Duration>,
    /// STOP SLAVE takes two seconds when the primary has just died; it runs beside the opening.
    stopping: Option<JoinHandle<Result<(), SqlError>>>,
    /// The peers that were silent are asked once more while the first steps run: a short cut ends, a dead
    /// host stays silent.
    asked_again: Vec<(String, JoinHandle<bool>)>,
    /// Peers that are passed for a proof: the opening is safe only while it holds.
    rests_on: Vec<String>,
    opened: bool,
    /// What went wrong without ending the plan: event and text. Alerted once the database is open,
    /// because to queue an alert takes time, and a plan that is undone loses nothing.
    warnings: Vec<(&'static str, String)>,
}

/// Carries out the plan, and says each step. The role locks of all nodes concerned are held by the caller.
pub fn execute(
    settings: &Settings,
    look: &mut Look,
    plan: &Plan,
    accept_loss: bool,
    cancel: &Cancel,
    steps: &mut StepLog,
) -> Result<Took, Box<TakeoverError>> {
    let start = Instant::now();
    let asked_again = ask_silent_again(settings, look);
    let silent = |peer: &&role::PeerView| {
        matches!(peer.contact, Contact::Silent | Contact::HostUp) && peer.proof.is_some()
    };
    let rests_on = if plan.rests_on_proof {
        let peers = look.seen.peers.iter().filter(silent);
        peers.map(|peer| peer.name.clone()).collect()
    } else {
        Vec::new()
    };
    let mut execution = Execution {
        settings,
        look,
        plan,
        accept_loss,
        frozen: None,
        freeze_began: None,
        frozen_for: None,
        stopping: None,
        asked_again,
        rests_on,
        opened: false,
        warnings: Vec::new(),
    };
    let mut journal = Journal::begin(settings, plan).map_err(|why| {
        Box::new(TakeoverError::Undone {
            step: "journal".to_owned(),
            why: why.into(),
        })
    })?;
    let mut done: Vec<&Step> = Vec::new();
    for step in &plan.steps {
        let step_start = Instant::now();
        execution.hold_locks(step);
        crate::fault::point(settings, step, "before");
        let outcome = if cancel.asked() && !execution.opened {
            Err(StepError::Cancelled)
        } else {
            journal
                .started(step)
                .map_err(StepError::from)
                .and_then(|()| execution.run_past_cuts(step))
        };
        crate::fault::point(settings, step, "after");
        match outcome {
            Ok(()) => {
                let took = format!("{step}: done in {:.0?}", step_start.elapsed());
                log::info!("{took}, {:.0?} since the start", start.elapsed());
                steps.say(&took);
                if let Err(error) = journal.done(step) {
                    // The state on the servers is the truth; the journal tells a person.
                    log::error!("{error}");
                }
                done.push(step);
            }
            Err(why) => {
                log::error!("{step}: {why}");
                steps.say(&format!("{step}: {why}"));
                if let Err(error) = journal.failed(step, &why) {
                    log::error!("{error}");
                }
                let step = step.to_string();
                if execution.opened {
                    execution.alert_warnings();
                    return Err(Box::new(TakeoverError::Forward { step, why }));
                }
                done.push(&plan.steps[done.len()]);
                let undone = execution.undo(&done);
                let outcome = if undone.is_ok() {
                    "undone"
                } else {
                    "not undone"
                };
                if let Err(error) = journal.ended(outcome) {
                    log::error!("{error}");
                }
                return Err(Box::new(match undone {
                    Ok(()) => TakeoverError::Undone { step, why },
                    Err(undo) => TakeoverError::NotUndone { step, why, undo },
                }));
            }
        }
    }
    if let Err(error) = journal.ended("done") {
        log::error!("{error}");
    }
    let took = Took {
        whole: start.elapsed(),
        frozen: execution.frozen_for,
    };
    execution.alert_warnings();
    Ok(took)
}

impl Execution<'_> {
    /// Runs the step. Past the point of no return one that fails towards a peer is tried once more over new
    /// connections: one of the two networks may be cut. Before it, nothing is: the peer goes on alone when the
    /// old ones are silent, so a plan that lost them is undone.
    fn run_past_cuts(&mut self, step: &Step) -> Result<(), StepError> {
        let outcome = self.run(step);
        match (outcome, step) {
            (Err(why), Step::FetchVip { peer } | Step::Demote { peer }) if self.opened => {
                log::warn!("{step}: {why}; once more over new connections");
                self.reconnect(peer)?;
                self.run(step)
            }
            (outcome, _) => outcome,
        }
    }

    /// New connections to a peer, and its role lock, by whatever network it answers on.
    fn reconnect(&mut self, peer: &str) -> Result<(), StepError> {
        let settings = self.settings;
        self.look.links.remove(peer);
        self.look.sessions.remove(peer);
        let (node, address) = reach(settings, peer, settings.peer.port, "forced command")?;
        let mut link = Link::open(settings, node, address)?;
        // It gives the lock up when the old conversation has been silent for long enough.
        link.lock(settings.role.freeze_limit)?;
        let (_, address) = reach(settings, peer, settings.database.port, "database")?;
        let patience = settings.role.answer_timeout;
        let mut session = Session::connect(settings, Target::Peer(address), patience)?;
        if self.opened {
            // Statements of administrators, whom `read_only` does not stop, wait for the old session's lock on
            // all tables and must not be carried out when it goes.
            statements::end_clients(&mut session, settings)?;
        }
        // It would stay for as long as TCP does not give the connection up.
        statements::end_remote_tools(&mut session, settings)?;
        if self.opened {
            // Two sessions cannot have it at once, so for a millisecond nobody has.
            session.execute("FLUSH TABLES WITH READ LOCK")?;
            statements::end_clients(&mut session, settings)?;
        }
        self.look.links.insert(peer.to_owned(), link);
        self.look.sessions.insert(peer.to_owned(), session);
        Ok(())
    }

    fn run(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::StopReceivingFrom { .. } => self.stop_receiving_rows(),
            Step::FencePeer { peer } => self.fence_peer(peer),
            Step::FreezePeer { peer } => self.freeze(peer),
            Step::SealFiles { peer } => self.seal_files(peer),
            Step::CatchUp { peer } => self.catch_up(peer),
            Step::Grant { peer } => {
                let me = self.settings.local().name.clone();
                Ok(self.link(peer)?.grant(Some(&me))?)
            }
            Step::Drain => self.drain(),
            Step::Harvest { peer } => self.harvest(peer),
            Step::StopReplication => {
                self.stop_replication();
                Ok(())
            }
            Step::StopReceiving => {
                self.stop_receiving();
                Ok(())
            }
            Step::TakeBackGrant => Ok(self.look.memory.grant(self.settings, None)?),
            Step::Open => self.open(),
            Step::ClaimEpoch { epoch } => {
                let settings = self.settings;
                if self.plan.bound {
                    // It waits for a replica, or until the resident program lets it go.
                    let patience = crate::window::window(settings).length + SLICE * 5;
                    let mut patient = self.patient_session(patience)?;
                    statements::claim_epoch(&mut patient, settings, *epoch)?;
                } else {
                    statements::claim_epoch(self.local()?, settings, *epoch)?;
                }
                self.frozen_for = self.freeze_began.map(|began| began.elapsed());
                // From now on a copy that does not know this epoch is old.
                if let Err(error) = self.look.memory.saw_epoch(settings, *epoch) {
                    // It is in the database.
                    self.warn("files-unusable", error.to_string());
                }
                node_role::write(settings, NodeRole::Active, *epoch);
                Ok(())
            }
            Step::ForgetChannel => self.forget_channel(),
            Step::FetchVip { peer } => self.fetch_vip(peer),
            Step::Demote { peer } => self.demote(peer),
        }
    }

    /// The peers' role locks last for as long as the step may take: one that hangs, be it in the journal or in
    /// a terminal that nobody reads, must not keep the old primary frozen.
    fn hold_locks(&self, step: &Step) {
        let role = &self.settings.role;
        let spent = self.freeze_began.map_or(Duration::ZERO, |at| at.elapsed());
        let limit = match step {
            Step::FreezePeer { .. }
            | Step::SealFiles { .. }
            | Step::CatchUp { .. }
            | Step::Grant { .. } => role
                .freeze_limit
                .saturating_sub(spent + link::silence(self.settings)),
            Step::Drain | Step::Harvest { .. } => role.drain_timeout.max(HARVEST) + STEP,
            Step::StopReceivingFrom { .. }
            | Step::FencePeer { .. }
            | Step::StopReplication
            | Step::StopReceiving
            | Step::TakeBackGrant
            | Step::Open
            | Step::ClaimEpoch { .. }
            | Step::ForgetChannel
            | Step::FetchVip { .. }
            | Step::Demote { .. } => STEP,
        };
        for link in self.look.links.values() {
            link.hold(limit);
        }
    }

    /// Nothing more is received from a host that cannot be fenced: what it commits from now on waits for this
    /// node, and nobody is told that it is safe. The thread is ended, and gone, before it is stopped: towards a
    /// host that hangs STOP SLAVE of a running one takes two seconds.
    fn stop_receiving_rows(&mut self) -> Result<(), StepError> {
        let settings = self.settings;
        let mut session = self.patient_session(SLICE * 3)?;
        end_receivers(&mut session)?;
        let start = Instant::now();
        while !receivers(&mut session)?.is_empty() {
            if start.elapsed() > SLICE {
                return Err(StepError::StillReceiving);
            }
            // The interval between two looks at the process list.
            thread::sleep(Duration::from_millis(5));
        }
        session.execute("STOP ALL SLAVES IO_THREAD")?;
        if observe::observe_server(&mut session, settings)?.follows() {
            return Err(StepError::StillReceiving);
        }
        Ok(())
    }

    fn fence_peer(&mut self, peer: &str) -> Result<(), StepError> {
        if self.look.links.contains_key(peer) {
            return Ok(self.link(peer)?.fence()?);
        }
        let settings = self.settings;
        let session = self.session(peer)?;
        statements::close(session)?;
        statements::end_clients(session, settings)?;
        Ok(())
    }

    fn freeze(&mut self, peer: &str) -> Result<(), StepError> {
        self.freeze_began = Some(Instant::now());
        let settings = self.settings;
        let limit = settings.role.freeze_limit;
        let session = self.session(peer)?;
        statements::close(session)?;
        session.execute("FLUSH TABLES WITH READ LOCK")?;
        statements::end_clients(session, settings)?;
        self.frozen = Some(statements::stable_position(session, limit)?);
        Ok(())
    }

    /// The freeze goes on meanwhile, and what is not sent is not lost: only a peer that cannot be
    /// spoken to ends the plan here, since it could not grant either.
    fn seal_files(&mut self, peer: &str) -> Result<(), StepError> {
        let limit = files::seal_limit(self.settings.role.freeze_limit);
        let sealed = match self.link(peer)?.seal_files(limit) {
            Ok(sealed) => sealed,
            Err(error @ LinkError::Process { .. }) => return Err(error.into()),
            Err(error) => Sealed::Unknown {
                why: error.to_string(),
            },
        };
        if sealed == (Sealed::NoSender {}) {
            log::info!("{peer}: no sync-realtime runs there, so no files are waited for");
        }
        let epoch = self.plan.epoch();
        if let Some(text) = files::unsent(self.settings, peer, &sealed, epoch) {
            self.warn("files-not-sent", text);
        }
        Ok(())
    }

    fn stop_receiving(&mut self) {
        let epoch = self.look.memory.highest_epoch;
        node_role::write(self.settings, NodeRole::Changing, epoch);
        if let Err(error) = files::await_receivers(self.settings) {
            self.warn("receiver-stuck", error.to_string());
        }
    }

    fn warn(&mut self, event: &'static str, text: String) {
        log::warn!("{text}");
        self.warnings.push((event, text));
    }

    fn alert_warnings(&mut self) {
        for (event, text) in self.warnings.drain(..) {
            tell::alert(self.settings, event, Severity::Warning, &text);
        }
    }

    fn catch_up(&mut self, _peer: &str) -> Result<(), StepError> {
        let limit = self.settings.role.freeze_limit;
        let spent = self.freeze_began.map_or(Duration::ZERO, |at| at.elapsed());
        let (position, whole) = self.frozen.clone().unwrap_or_default();
        let late = StepError::TooLate {
            what: "catching up with the frozen primary",
            limit,
        };
        let mut waiter = self.patient_session(limit)?;
        if !statements::wait_for(&mut waiter, &position, limit.saturating_sub(spent))? {
            return Err(late);
        }
        // The wait compares sequence numbers only, so the whole histories are compared too.
        let mine = observe::observe_server(&mut waiter, self.settings)?.history();
        if !mine.contains(&whole) {
            return Err(StepError::StillMissing {
                missing: mine.missing_from(&whole),
            });
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), StepError> {
        let limit = self.settings.role.drain_timeout;
        let start = Instant::now();
        let mut session = self.patient_session(SLICE * 5)?;
        let mut server = observe::observe_server(&mut session, self.settings)?;
        if server.channels.iter().any(|c| !c.sql_running) {
            // The receiving thread is not stopped (the plan has refused that), so the relay log stays.
            session.execute("START SLAVE SQL_THREAD")?;
        }
        let received = server
            .channels
            .iter()
            .fold(GtidSet::default(), |all, channel| {
                all.union(&channel.received)
            });
        while !statements::wait_for(&mut session, &received, SLICE)? {
            server = observe::observe_server(&mut session, self.settings)?;
            if let Some(errno) = server
                .channels
                .iter()
                .map(|c| c.sql_errno)
                .find(|e| *e != 0)
            {
                log::error!("replication stopped at error {errno} while draining");
                return Err(StepError::StillMissing {
                    missing: server.history().missing_from(&received),
                });
            }
            if start.elapsed() > limit {
                return Err(StepError::TooLate {
                    what: "applying what was received",
                    limit,
                });
            }
            log::info!(
                "draining: {} transactions left after {:.0?}",
                server.history().transactions_behind(&received),
                start.elapsed()
            );
        }
        Ok(())
    }

    /// Not to get the tail is a loss only when clients may have been told that it is safe.
    fn harvest(&mut self, peer: &str) -> Result<(), StepError> {
        let settings = self.settings;
        let after = statements::gtids(self.local()?, "SELECT @@gtid_current_pos")?;
        let Some(node) = node(settings, peer) else {
            return Ok(());
        };
        let Err(error) = harvest::harvest(settings, node, &after) else {
            return Ok(());
        };
        let views = self.look.seen.peers.iter();
        let view = views.into_iter().find(|view| view.name == peer);
        if view.is_some_and(role::PeerView::nothing_is_missing) && !self.accept_loss {
            // Looked at once more before the opening.
            self.rests_on
                .extend(view.and_then(|view| view.proof.map(|_| view.name.clone())));
            log::warn!("the end of {peer}'s binlog is left there: {error}");
            return Ok(());
        }
        if self.accept_loss {
            log::warn!("the end of {peer}'s binlog is left there: {error}");
            return Ok(());
        }
        Err(error.into())
    }

    fn stop_replication(&mut self) {
        let settings = self.settings.clone();
        let host_gone = self
            .look
            .seen
            .peers
            .iter()
            .all(|peer| peer.contact == Contact::Silent);
        self.stopping = Some(thread::spawn(move || {
            let mut session = Session::connect(&settings, Target::Local, Duration::from_secs(30))?;
            if host_gone {
                // Towards a host that is gone the thread hangs in a connect for two seconds.
                end_receivers(&mut session)?;
            }
            session.execute("STOP ALL SLAVES")
        }));
    }

    fn open(&mut self) -> Result<(), StepError> {
        let settings = self.settings;
        let seen = self.look.seen.highest_epoch;
        let accept = self.accept_loss;
        let session = self.local()?;
        let mine = observe::read_epoch(session, settings)?.map_or(0, |epoch| epoch.number);
        if mine < seen && !accept {
            return Err(StepError::StaleEpoch { mine, seen });
        }
        for (peer, answer) in self.asked_again.drain(..) {
            if answer.join().unwrap_or(true) {
                return Err(StepError::PeerIsBack { peer });
            }
        }
        if self.plan.kind == PromotionKind::TakeOver {
            // The steps before may have been long. A peer that was cut off meanwhile has given its lock up and
            // may have opened; in a switch-over it has granted.
            for (name, link) in &mut self.look.links {
                reach(settings, name, settings.peer.port, "host")?;
                link.still_locked()?;
            }
        }
        // Of a switch-over that broke off: a lock on all tables that nobody will release.
        statements::end_remote_tools(self.local()?, settings)?;
        let bound = self.plan.bound;
        statements::set_semi_sync(self.local()?, settings, bound)?;
        if !bound {
            // From now on commits are acknowledged here alone, until a replica is pledged to.
            let note = Alone {
                since: resident::wall_clock(Duration::ZERO),
                epoch: self.plan.epoch(),
            };
            if let Err(error) = alone::file(settings).replace(&note) {
                log::error!("{error}");
            }
        }
        // Until it is open nobody here gives the proof up.
        let kept = nodefiles::proof::keep(settings)?;
        if kept.is_none() && !self.rests_on.is_empty() {
            return Err(StepError::TooLate {
                what: "keeping the proof while it is rested on",
                limit: nodefiles::proof::PATIENCE,
            });
        }
        self.look_at_proofs()?;
        self.opened = true;
        statements::open(self.local()?)?;
        drop(kept);
        // What this node lacked, or was shown, belongs to the history before.
        if let Err(error) = nodefiles::proof::forget(settings) {
            log::error!("{error}");
        }
        Ok(())
    }

    /// Right before the opening: the steps before may have been long. A drain may take longer than any proof
    /// holds. What was silent when it began with a proof, and is silent still, has not gone on alone: it would
    /// have had to see this node without the VIP, or cut off from the witness.
    fn look_at_proofs(&self) -> Result<(), StepError> {
        let settings = self.settings;
        let known = nodefiles::proof::known(settings, &resident::now());
        for peer in &self.rests_on {
            let proof = known.proofs.get(peer);
            let silent = || {
                let views = &self.look.seen.peers;
                views
                    .iter()
                    .any(|view| view.name == *peer && view.contact == Contact::Silent)
                    && node(settings, peer).is_some_and(|node| {
                        observe::reachable(settings, node, settings.peer.port).is_none()
                    })
                    && look::witness(settings) != Some(false)
            };
            if !(proof.is_some_and(role::Proof::holds) || known.stale_since.is_none() && silent()) {
                return Err(StepError::ProofExpired {
                    peer: peer.clone(),
                    age: proof.map(|proof| proof.age),
                });
            }
        }
        Ok(())
    }

    fn forget_channel(&mut self) -> Result<(), StepError> {
        if let Some(stopping) = self.stopping.take() {
            match stopping.join() {
                Ok(stopped) => stopped?,
                Err(_) => log::error!("the thread that stops replication died"),
            }
        }
        Ok(self.local()?.execute("RESET SLAVE ALL")?)
    }

    /// The old primary leaves the VIP by its standby file, and its audit takes part again once it stands by. A
    /// keepalived.conf without that track file, as the original's, leaves it at a restart only, and takes it
    /// back soon while the checks here still cost priority. The role locks are held meanwhile, or that audit
    /// would switch back. A VIP that does not come stops nothing: the database is open here, and the audits
    /// bring the two together.
    fn fetch_vip(&mut self, peer: &str) -> Result<(), StepError> {
        self.link(peer)?.standby(true)?;
        if vip::await_presence(self.settings, true, TRACK_FILE_PATIENCE) {
            return Ok(());
        }
        let instance = &self.settings.cluster.vrrp_instance;
        let start = Instant::now();
        while observe::vrrp(instance).is_some_and(|vrrp| vrrp.handicap > 0)
            && start.elapsed() < CHECKS_PATIENCE
        {
            // The interval between two questions; a check runs every few seconds.
            thread::sleep(Duration::from_millis(200));
        }
        log::info!("{peer} keeps the VIP: its Keepalived is restarted");
        self.link(peer)?.restart_keepalived()?;
        if !vip::await_presence(self.settings, true, VIP_PATIENCE) {
            let text = format!(
                "the VIP has not come here within {VIP_PATIENCE:?}; see systemctl status keepalived on both nodes"
            );
            self.warn("vip-not-here", text);
        }
        Ok(())
    }

    fn demote(&mut self, peer: &str) -> Result<(), StepError> {
        let settings = self.settings;
        let session = self.session(peer)?;
        // Statements that wait for the lock would be carried out when it goes, past `read_only` if they may.
        statements::end_clients(session, settings)?;
        session.execute("UNLOCK TABLES")?;
        statements::demote(session, settings, settings.local())?;
        // At once, and not at the audit's next tick: until then nothing slows busy clients down to what the
        // new replica can take, and it might never catch up. It connects within milliseconds.
        statements::set_semi_sync(self.local()?, settings, true)?;
        // It follows now; the note that it gave the right to write away has done its work.
        self.link(peer)?.grant(None)?;
        Ok(())
    }

    /// Undoes the steps in reverse: here, and on the old primary, over new connections where the old ones are
    /// dead. The local database was not opened, so the old primary may go on.
    fn undo(&mut self, done: &[&Step]) -> Result<(), StepError> {
        let here = self.undo_here(done);
        let PromotionKind::SwitchOver { from } = &self.plan.kind else {
            return here;
        };
        let settings = self.settings;
        if let Err(gone) = reach(settings, from, settings.peer.port, "host") {
            // Every second that is waited here for a dead host is one in which the audit cannot take over.
            return here.and(Err(gone));
        }
        if let Err(why) = self.undo_there(done) {
            log::warn!("undoing: {why}; once more over new connections");
            self.reconnect(from)?;
            self.undo_there(done)?;
        }
        here
    }

    fn undo_here(&mut self, done: &[&Step]) -> Result<(), StepError> {
        if done.contains(&&Step::StopReceiving) {
            let epoch = self.look.memory.highest_epoch;
            node_role::write(self.settings, NodeRole::Standby, epoch);
        }
        let stopped =
            |step: &&Step| matches!(step, Step::StopReplication | Step::StopReceivingFrom { .. });
        if done.iter().any(stopped) {
            if let Some(stopping) = self.stopping.take()
                && let Ok(stopped) = stopping.join()
            {
                stopped?;
            }
            // Threads that both stood before stay so: their start would throw the relay log away.
            let database = &self.look.seen.local.database;
            if database
                .server()
                .is_some_and(|me| me.follows() || me.channels.iter().any(|c| c.sql_running))
            {
                self.local()?.execute("START ALL SLAVES")?;
            }
        }
        Ok(())
    }

    /// The first that fails ends it: a peer whose grant stays must not be opened.
    fn undo_there(&mut self, done: &[&Step]) -> Result<(), StepError> {
        for step in done.iter().rev() {
            match step {
                Step::Grant { peer } => self.link(peer)?.grant(None)?,
                Step::SealFiles { peer } => {
                    // The peer does it by itself when this conversation ends; the database must not
                    // stay closed for it.
                    if let Err(error) = self.link(peer)?.unseal_files() {
                        log::warn!("{error}");
                    }
                }
                Step::FreezePeer { peer } => {
                    let settings = self.settings;
                    let session = self.session(peer)?;
                    session.execute("UNLOCK TABLES")?;
                    // Its replica saw it closed, and may rely on that.
                    statements::set_semi_sync(session, settings, true)?;
                    statements::open(session)?;
                }
                Step::StopReceivingFrom { .. }
                | Step::FencePeer { .. }
                | Step::CatchUp { .. }
                | Step::Drain
                | Step::Harvest { .. }
                | Step::StopReplication
                | Step::StopReceiving
                | Step::TakeBackGrant
                | Step::Open
                | Step::ClaimEpoch { .. }
                | Step::ForgetChannel
                | Step::FetchVip { .. }
                | Step::Demote { .. } => {}
            }
        }
        Ok(())
    }

    fn local(&mut self) -> Result<&mut Session, StepError> {
        let node = self.settings.local().name.clone();
        self.look.local.as_mut().ok_or(StepError::NoConnection {
            node,
            what: "database",
        })
    }

    fn session(&mut self, peer: &str) -> Result<&mut Session, StepError> {
        self.look
            .sessions
            .get_mut(peer)
            .ok_or_else(|| StepError::NoConnection {
                node: peer.to_owned(),
                what: "database",
            })
    }

    fn link(&mut self, peer: &str) -> Result<&mut Link, StepError> {
        self.look
            .links
            .get_mut(peer)
            .ok_or_else(|| StepError::NoConnection {
                node: peer.to_owned(),
                what: "forced command",
            })
    }

    /// A local session whose answers may take as long as a wait does.
    fn patient_session(&self, limit: Duration) -> Result<Session, StepError> {
        Ok(Session::connect(
            self.settings,
            Target::Local,
            limit + SLICE,
        )?)
    }
}

/// The peer, and the address at which its kernel answers on that port now.
fn reach<'a>(
    settings: &'a Settings,
    peer: &str,
    port: u16,
    what: &'static str,
) -> Result<(&'a Node, IpAddr), StepError> {
    node(settings, peer)
        .and_then(|node| Some((node, observe::reachable(settings, node, port)?)))
        .ok_or_else(|| StepError::NoConnection {
            node: peer.to_owned(),
            what,
        })
}

fn receivers(session: &mut Session) -> Result<Vec<u64>, SqlError> {
    session.rows("SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Slave_IO'")
}

fn end_receivers(session: &mut Session) -> Result<(), SqlError> {
    for id in receivers(session)? {
        // Gone already is as good.
        let _ = session.execute(&format!("KILL CONNECTION {id}"));
    }
    Ok(())
}

fn ask_silent_again(settings: &Settings, look: &Look) -> Vec<(String, JoinHandle<bool>)> {
    // They were silent for the whole time already; what answers now does so at once.
    let limit = settings.role.connect_timeout / 3;
    let port = settings.peer.port;
    let silent = look
        .seen
        .peers
        .iter()
        .filter(|p| p.contact == Contact::Silent);
    silent
        .filter_map(|peer| node(settings, &peer.name).cloned())
        .map(|peer| {
            let name = peer.name.clone();
            let ask = move || observe::reachable_within(limit, &peer, port).is_some();
            (name, thread::spawn(ask))
        })
        .collect()
}

/// Marks this node as the entitled primary, or not, for VRRP.
pub fn mark_entitled(settings: &Settings, on: bool) {
    if let Err(error) = track::set_entitled(settings, on) {
        log::error!("{error}");
    }
}

/// The node of that name.
pub fn node<'a>(settings: &'a Settings, name: &str) -> Option<&'a Node> {
    settings.nodes.iter().find(|node| node.name == name)
}
