//! The primary's side: holds the pledge, takes it back, lets commits go alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use nodefiles::alone::{self, Alone};
use nodefiles::resident;
use observe::{Session, SqlError, Target, boot_id, read_epoch};
use role::alone::{Next, Primary, Standby, TROUBLE, reliance};
use role::{Epoch, GtidSet, Known};
use settings::{Node, Settings};

use super::{alive, pledge_name, raise, wall_clock};
use crate::link::Link;
use crate::window::Window;
use crate::{look, statements, tell};

/// The heartbeat row's acknowledgement: more than a replica that keeps up needs. It is waited for twice, by the row
/// and by what ends the session, and both within the watchdog.
const BEAT: Duration = Duration::from_millis(500);
/// A replica that could not be pledged to is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// Between two questions to a standby in trouble.
const ASK_AGAIN: Duration = Duration::from_millis(150);
/// An answer of the standby, with the connection where there is none yet.
const ANSWER: Duration = Duration::from_millis(1500);
/// All of them.
const ASKING: Duration = Duration::from_secs(2);
/// A replica that is so far behind, in time, is not waited for yet.
const BEHIND: Duration = Duration::from_millis(200);

/// What one session knows of the open database.
struct Sight {
    bound: bool,
    /// The session that holds the pledge, and this one.
    holder: Option<u64>,
    me: u64,
    replicas: u32,
    /// Commits that wait: session and statement.
    waiting: Vec<(u64, u64)>,
    epoch: Option<Epoch>,
}

pub struct Guard<'a> {
    settings: &'a Settings,
    window: Duration,
    /// When this program began, and the window of the one before it: standbys may have proofs of that one's pledge,
    /// which last for as long.
    before: Option<(Instant, Duration)>,
    name: String,
    /// Since when the database is open without this program's pledge.
    unpledged_since: Option<Instant>,
    was_bound: bool,
    /// Commits that were seen waiting, and since when. The process list knows only since when a statement runs.
    waits: BTreeMap<(u64, u64), Instant>,
    tried: Option<Instant>,
    asked: Option<Instant>,
    /// Told once that a commit waits and nothing can be done.
    told: Option<String>,
}

impl<'a> Guard<'a> {
    pub fn new(settings: &'a Settings, window: &Window) -> Self {
        Self {
            settings,
            window: window.length,
            before: resident::window_ms(settings, &boot_id())
                .map(|before| (Instant::now(), Duration::from_millis(before))),
            name: pledge_name(window.milliseconds()),
            unpledged_since: None,
            was_bound: false,
            waits: BTreeMap::new(),
            tried: None,
            asked: None,
            told: None,
        }
    }

    /// The database is closed: there is nothing to pledge.
    pub fn closed(&mut self, session: &mut Session) -> Result<(), SqlError> {
        if self.unpledged_since.take().is_some() || self.told.take().is_some() {
            session.execute(&format!("DO RELEASE_LOCK({})", self.quoted()))?;
        }
        Ok(())
    }

    /// The session is gone, and the pledge with it.
    pub fn lost(&mut self) {
        if self.unpledged_since.is_some() {
            self.unpledged_since = Some(Instant::now());
        }
    }

    fn window(&self) -> Duration {
        let before = self.before.map(|(begun, before)| (begun.elapsed(), before));
        reliance(self.window, before)
    }

    fn quoted(&self) -> String {
        statements::quote(&self.name)
    }

    /// One look at the open database, and what follows.
    pub fn look(&mut self, session: &mut Session) -> Result<(), SqlError> {
        let sight = self.see(session)?;
        if let Some(other) = sight.holder.filter(|holder| *holder != sight.me) {
            // A session of this program that was given up and has not ended yet. What it shows counts.
            log::warn!("session {other} still holds the pledge: it is ended");
            // Gone already is as good.
            let _ = session.execute(&format!("KILL CONNECTION {other}"));
            self.unpledged_since = Some(Instant::now());
            return Ok(());
        }
        let pledged = sight.holder.is_some();
        // Counted from the first look at an open database, and anew from the moment at which commits wait: what
        // was before is not known.
        let since = match self.unpledged_since {
            Some(since) if !pledged && (self.was_bound || !sight.bound) => since,
            _ => Instant::now(),
        };
        self.was_bound = sight.bound;
        self.unpledged_since = Some(since);
        let mut seen = Primary {
            bound: sight.bound,
            pledged,
            unpledged_for: since.elapsed(),
            replicas: sight.replicas,
            waiting: self.longest_wait(&sight.waiting),
            standby: Standby::NotAsked,
            entitled: Some(true),
            outdated: false,
            witness: None,
        };
        // Looked at in trouble, and before a pledge: its row would wait.
        let doubtful = !seen.pledged || seen.waiting.is_some_and(|waiting| waiting > TROUBLE);
        if seen.replicas > 0 && doubtful && self.out_of_reach() {
            // The connection is only not known to be dead yet.
            seen.replicas = 0;
        }
        let window = self.window();
        let mut next = seen.next(window);
        if next == Next::TakeBack {
            // And on at once: a standby that left in order is asked in the same look.
            self.take_back(session, &mut seen)?;
            next = seen.next(window);
        }
        if next == Next::Ask {
            if self.asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
                return Ok(());
            }
            self.ask(&mut seen, sight.epoch.as_ref());
            self.asked = Some(Instant::now());
            seen.unpledged_for = self
                .unpledged_since
                .map_or(Duration::ZERO, |at| at.elapsed());
            next = seen.next(window);
            if next == Next::Wait {
                self.tell_once(&seen);
            }
        } else {
            self.asked = None;
        }
        match next {
            Next::Wait | Next::Ask | Next::TakeBack => Ok(()),
            Next::Pledge => self.pledge(session, &seen),
            Next::GoAlone => self.go_alone(session, &seen, sight.epoch.as_ref()),
        }
    }

    /// Whether no standby's kernel answers on the network that replication uses.
    fn out_of_reach(&self) -> bool {
        let settings = self.settings;
        !settings.peers().any(|peer| {
            let address = SocketAddr::new(peer.private, settings.peer.port);
            observe::kernel_answers(address, settings.role.connect_timeout)
        })
    }

    fn take_back(&mut self, session: &mut Session, seen: &mut Primary) -> Result<(), SqlError> {
        session.execute(&format!("DO RELEASE_LOCK({})", self.quoted()))?;
        self.unpledged_since = Some(Instant::now());
        seen.pledged = false;
        seen.unpledged_for = Duration::ZERO;
        log::warn!(
            "the pledge is taken back: {}",
            match seen.waiting {
                Some(waiting) => format!("a commit has waited for {waiting:.0?}"),
                None => "no replica is connected".to_owned(),
            }
        );
        Ok(())
    }

    fn longest_wait(&mut self, waiting: &[(u64, u64)]) -> Option<Duration> {
        self.waits.retain(|wait, _| waiting.contains(wait));
        for wait in waiting {
            self.waits.entry(*wait).or_insert_with(Instant::now);
        }
        self.waits.values().map(Instant::elapsed).max()
    }

    fn see(&self, session: &mut Session) -> Result<Sight, SqlError> {
        // Only what hangs behind no client's statement: the commits that this program lets go may be theirs.
        // The count in a part of its own: in one SELECT with sums over the process list MariaDB 10.11 gives 0 for the
        // variable and the lock.
        let (bound, holder, me, dumps): (bool, Option<u64>, u64, u32) = session.row(&format!(
            "SELECT @@rpl_semi_sync_master_enabled, IS_USED_LOCK({}), CONNECTION_ID(), \
             (SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump')",
            self.quoted()
        ))?;
        let clients = observe::waits_for(session)?.replicas;
        let waiting = session.rows(
            "SELECT ID, QUERY_ID FROM information_schema.PROCESSLIST \
             WHERE STATE LIKE 'Waiting for semi-sync ACK%'",
        )?;
        Ok(Sight {
            bound,
            holder,
            me,
            // While semi-synchronous replication is off its replicas are not counted.
            replicas: if bound { clients } else { dumps },
            waiting,
            epoch: read_epoch(session, self.settings)?,
        })
    }

    /// What everybody else says. With several standbys the one that says least counts.
    fn ask(&self, seen: &mut Primary, epoch: Option<&Epoch>) {
        let settings = self.settings;
        let number = epoch.map_or(0, |epoch| epoch.number);
        seen.outdated = nodefiles::epoch::read(settings).map_or(true, |highest| highest > number);
        seen.standby = Standby::Renounced;
        for peer in settings.peers() {
            seen.standby = least(seen.standby, ask_beside(settings, peer, number));
        }
        seen.entitled = observe::vip_present(settings)
            .and(observe::keepalived_running())
            .into();
        if seen.standby == Standby::Silent {
            alive();
            seen.witness = look::witness(settings);
        }
    }

    /// Semi-synchronous replication on, a row that the replica acknowledges, and then the pledge.
    fn pledge(&mut self, session: &mut Session, seen: &Primary) -> Result<(), SqlError> {
        if self.tried.is_some_and(|at| at.elapsed() < AGAIN) {
            return Ok(());
        }
        let others = usize::try_from(seen.replicas).unwrap_or(usize::MAX);
        if seen.bound && others > self.settings.peers().count() {
            // One acknowledgement is enough for MariaDB, and it may be that of a replica that is no standby.
            self.tried = Some(Instant::now());
            log::warn!(
                "{others} semi-synchronous replicas are connected, more than there are standbys: no pledge. \
                 Switch rpl_semi_sync_slave_enabled off on the others"
            );
            return Ok(());
        }
        if !seen.bound && !self.keeps_up(session)? {
            return Ok(());
        }
        // Also where it is on: with a time-out of an earlier release a commit would be let go after a second.
        statements::set_semi_sync(session, self.settings, true)?;
        alive();
        let beat = Session::connect(self.settings, Target::Local, BEAT)
            .and_then(|mut own| statements::beat(&mut own, self.settings));
        if let Err(error) = beat {
            // It goes on waiting in the server, and is trouble by itself there.
            log::warn!("the replica does not acknowledge: {error}");
            self.tried = Some(Instant::now());
            return Ok(());
        }
        // After its own time-out MariaDB waits for nobody until a replica has caught up, whatever the variable says.
        if !observe::waits_for(session)?.active {
            self.tried = Some(Instant::now());
            return Ok(());
        }
        let file = alone::file(self.settings);
        let before = file.read().ok().flatten();
        if let Err(error) = file.remove() {
            // It would say that no peer has everything.
            log::error!("{error}");
            self.tried = Some(Instant::now());
            return Ok(());
        }
        let taken: Option<bool> = session.row(&format!("SELECT GET_LOCK({}, 0)", self.quoted()))?;
        if taken != Some(true) {
            self.tried = Some(Instant::now());
            log::warn!("another session holds the pledge {}", self.name);
            return Ok(());
        }
        self.tried = None;
        self.told = None;
        tell::failover_log(
            self.settings,
            &match before {
                Some(before) => format!(
                    "a replica is connected and has everything: commits wait for it from now on; they were \
                     acknowledged alone since {}",
                    before.since
                ),
                None => "a replica is connected: commits wait for it from now on".to_owned(),
            },
        );
        Ok(())
    }

    /// Whether a standby has received what this server had a moment ago: to wait for one that is far behind
    /// would stop every client until it has caught up.
    fn keeps_up(&self, session: &mut Session) -> Result<bool, SqlError> {
        let wanted = statements::gtids(session, "SELECT @@gtid_binlog_pos")?;
        let start = Instant::now();
        loop {
            alive();
            if self.settings.peers().any(|peer| {
                self.received(peer)
                    .is_ok_and(|received| received.contains(&wanted))
            }) {
                return Ok(true);
            }
            if start.elapsed() > BEHIND {
                return Ok(false);
            }
            // The interval between two questions.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn received(&self, peer: &Node) -> Result<GtidSet, SqlError> {
        let mut session = Session::connect(self.settings, Target::Peer(peer.private), BEHIND)?;
        Ok(observe::observe_server(&mut session, self.settings)?.holdings())
    }

    fn go_alone(
        &mut self,
        session: &mut Session,
        seen: &Primary,
        epoch: Option<&Epoch>,
    ) -> Result<(), SqlError> {
        let settings = self.settings;
        let note = Alone {
            since: wall_clock(Duration::ZERO),
            epoch: epoch.map_or(0, |epoch| epoch.number),
        };
        alive();
        // Before the first of them. A disk that cannot take it must not stop the only primary.
        if let Err(error) = alone::file(settings).replace(&note) {
            log::error!("{error}");
        }
        statements::set_semi_sync(session, settings, false)?;
        let why = match seen.standby {
            Standby::Renounced => "the standby says that it does not have everything".to_owned(),
            Standby::Silent | Standby::Relies | Standby::NotAsked | Standby::TakesOver => {
                format!("the standby has been silent for {:.1?}", seen.unpledged_for)
            }
        };
        raise(
            settings,
            "no-replica",
            Severity::Warning,
            format!(
                "commits are acknowledged with one copy only since {}: {why}",
                note.since
            ),
        );
        Ok(())
    }

    /// Commits wait and may not be let go: a person should know why.
    fn tell_once(&mut self, seen: &Primary) {
        if seen.unpledged_for < self.window
            || seen.waiting.is_none_or(|waiting| waiting < self.window * 2)
        {
            return;
        }
        let why = if seen.outdated {
            "a higher epoch was seen"
        } else if seen.entitled != Some(true) {
            "it is not known that the VIP is here"
        } else if seen.standby == Standby::TakesOver {
            "another node takes over"
        } else {
            "neither the standby nor a witness answers"
        };
        if self.told.as_deref() != Some(why) {
            self.told = Some(why.to_owned());
            raise(
                self.settings,
                "commits-wait",
                Severity::Critical,
                format!("commits wait for a replica and are not let go: {why}"),
            );
        }
    }
}

/// Of two standbys' words the one that allows less.
fn least(one: Standby, other: Standby) -> Standby {
    let rank = |word: Standby| match word {
        Standby::TakesOver => 0,
        Standby::Silent => 1,
        Standby::Relies => 2,
        Standby::NotAsked => 3,
        Standby::Renounced => 4,
    };
    if rank(other) < rank(one) { other } else { one }
}

/// Asks from a thread of its own, and waits for it no longer than [`ASKING`]: a new connection takes a while, and
/// to give one up, too.
fn ask_beside(settings: &Settings, peer: &Node, epoch: u64) -> Standby {
    let (sender, answer) = mpsc::channel();
    let (its_settings, its_peer) = (settings.clone(), peer.clone());
    thread::spawn(move || {
        let answered = ask_standby(&its_settings, &its_peer, epoch).unwrap_or_else(|error| {
            log::debug!("{}: {error}", its_peer.name);
            Standby::Silent
        });
        // Nobody listens any more when it took too long.
        let _ = sender.send(answered);
    });
    let start = Instant::now();
    while start.elapsed() < ASKING {
        alive();
        if let Ok(answered) = answer.recv_timeout(ASK_AGAIN) {
            return answered;
        }
    }
    Standby::Silent
}

fn ask_standby(settings: &Settings, peer: &Node, epoch: u64) -> Result<Standby, String> {
    let Some(address) = observe::reachable(settings, peer, settings.peer.port) else {
        return Ok(Standby::Silent);
    };
    let mut link = Link::open(settings, peer, address).map_err(|e| e.to_string())?;
    link.answer_within(ANSWER);
    let (node, version) = link.observe_with_version().map_err(|e| e.to_string())?;
    let newer = node
        .highest_epoch
        .max(node.database.server().map_or(0, role::Server::epoch_number))
        > epoch;
    if newer || node.database.writable() || node.entitled() != Known::No {
        return Ok(Standby::TakesOver);
    }
    if version == 0 {
        // The release before knows no pledges, and opens by its own rule.
        return Ok(Standby::Relies);
    }
    link.renounce(&settings.local().name)
        .map_err(|e| e.to_string())
}
