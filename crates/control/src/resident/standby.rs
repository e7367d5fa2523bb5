//! The standby's side: asks for the pledge, and writes down when it may lack writes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use alerts::Severity;
use nodefiles::proof::{self, Noted, Shown, Stale};
use observe::{Session, SqlError, Target, read_epoch, uptime_seconds};
use role::alone::QUESTIONS;
use role::{Epoch, GtidSet, IoThread};
use settings::{Node, Settings};

use super::{alive, now, pledge_name, raise, wall_clock};
use crate::link::Link;
use crate::window::Window;
use crate::{statements, tell, wire};

/// A primary that keeps up answers within milliseconds.
const ANSWER: Duration = Duration::from_millis(300);
/// Answers whose position has not arrived yet; older ones are worth nothing.
const CANDIDATES: usize = 16;
/// Between two tries over ssh.
const SSH_AGAIN: Duration = Duration::from_millis(300);
/// The primary asks a standby that leaves within this time, or knows already.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a primary said when it was asked.
pub struct Told {
    /// Its pledge stands, or it is closed: nothing is acknowledged there that its standby lacks.
    pub shows: Shows,
    /// `@@gtid_binlog_pos`
    pub position: GtidSet,
}

impl From<wire::Shows> for Shows {
    fn from(shows: wire::Shows) -> Self {
        match shows {
            wire::Shows::Pledge => Self::Pledge,
            wire::Shows::Closed => Self::Closed,
            wire::Shows::Nothing => Self::Nothing,
        }
    }
}

impl From<Shows> for wire::Shows {
    fn from(shows: Shows) -> Self {
        match shows {
            Shows::Pledge => Self::Pledge,
            Shows::Closed => Self::Closed,
            Shows::Nothing => Self::Nothing,
        }
    }
}

/// What an answer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// The pledge stands.
    Pledge,
    /// Its database is closed.
    Closed,
    /// Neither.
    Nothing,
}

/// Asks a server, locally or over the network.
pub fn pledge_of(session: &mut Session, name: &str) -> Result<Told, SqlError> {
    let statement = format!(
        "SELECT IS_USED_LOCK({}) IS NOT NULL AND @@rpl_semi_sync_master_enabled, @@read_only, @@gtid_binlog_pos",
        statements::quote(name)
    );
    let (pledged, closed, position): (bool, bool, String) = session.row(&statement)?;
    // Afterwards: where it was off in between, a replica has everything by now.
    let active = observe::waits_for(session)?.active;
    Ok(Told {
        shows: match (closed, pledged && active) {
            (true, _) => Shows::Closed,
            (false, true) => Shows::Pledge,
            (false, false) => Shows::Nothing,
        },
        position: position.parse().map_err(|_| SqlError::Answer {
            statement,
            answer: position,
            expected: "a list of GTIDs",
        })?,
    })
}

pub struct Standby<'a> {
    settings: &'a Settings,
    window: Window,
    name: String,
    asked: Option<Instant>,
    session: Option<Session>,
    link: Option<Link>,
    link_tried: Option<Instant>,
    /// Questions whose answer showed something, and the position that must have arrived for it, newest last.
    candidates: VecDeque<(f64, GtidSet)>,
    /// The newest proof, and the primary.
    last: Option<(f64, String)>,
    /// Why a proof could not be written down, as it was logged last.
    unkept: Option<String>,
}

impl<'a> Standby<'a> {
    pub fn new(settings: &'a Settings, window: &Window) -> Self {
        Self {
            settings,
            name: pledge_name(window.milliseconds()),
            window: window.clone(),
            asked: None,
            session: None,
            link: None,
            link_tried: None,
            candidates: VecDeque::new(),
            last: proof::newest(settings, &now()),
            unkept: None,
        }
    }

    /// The database is open: this node is nobody's standby.
    pub fn opened(&mut self) {
        self.last = None;
        self.candidates.clear();
    }

    /// One look of a closed node.
    pub fn look(&mut self, local: &mut Session) -> Result<(), SqlError> {
        if self.asked.is_some_and(|at| at.elapsed() < QUESTIONS / 2) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let settings = self.settings;
        let epoch = read_epoch(local, settings)?;
        let primary = epoch.as_ref().and_then(|epoch| {
            settings
                .peers()
                .find(|peer| peer.name == epoch.primary)
                .map(|peer| (epoch, peer))
        });
        let Some((epoch, primary)) = primary else {
            // The last primary itself, or no history yet: nobody to ask.
            self.candidates.clear();
            self.last = None;
            return Ok(());
        };
        if self
            .last
            .as_ref()
            .is_some_and(|(_, name)| *name != primary.name)
        {
            self.last = None;
            self.candidates.clear();
        }
        let asked_at = uptime_seconds();
        if let Some(told) = self.ask(primary, epoch)
            && told.shows != Shows::Nothing
        {
            self.candidates.push_back((asked_at, told.position));
            if self.candidates.len() > CANDIDATES {
                // The oldest is the first to arrive, the newest is worth most.
                self.candidates.remove(1);
            }
        }
        alive();
        self.confirm(local, primary)?;
        self.age();
        Ok(())
    }

    /// Over SQL, and over ssh where that does not answer.
    fn ask(&mut self, primary: &Node, epoch: &Epoch) -> Option<Told> {
        match self.ask_sql(primary, epoch) {
            Ok(told) => return told,
            Err(error) => {
                log::debug!("{}: {error}", primary.name);
                self.session = None;
            }
        }
        if self.link_tried.is_some_and(|at| at.elapsed() < SSH_AGAIN) && self.link.is_none() {
            return None;
        }
        self.link_tried = Some(Instant::now());
        alive();
        let settings = self.settings;
        let link = match self.link.take() {
            Some(link) => Some(link),
            None => observe::reachable(settings, primary, settings.peer.port).and_then(|address| {
                let mut link = Link::open(settings, primary, address).ok()?;
                link.answer_within(ANSWER * 2);
                // A release that knows no pledges hangs up on the question.
                let (_, version) = link.observe_with_version().ok()?;
                (version > 0).then_some(link)
            }),
        };
        let mut link = link?;
        alive();
        match link.pledge(self.window.milliseconds()) {
            Ok((told, seen)) => {
                self.link = Some(link);
                (seen.as_ref() == Some(epoch)).then_some(told)
            }
            Err(error) => {
                log::debug!("{error}");
                None
            }
        }
    }

    /// None where the primary has another history by now: then this node's is not the one that counts.
    fn ask_sql(&mut self, primary: &Node, epoch: &Epoch) -> Result<Option<Told>, SqlError> {
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => Session::connect(self.settings, Target::Peer(primary.private), ANSWER),
        };
        let mut session = session?;
        let told = pledge_of(&mut session, &self.name)?;
        let same = read_epoch(&mut session, self.settings)?.as_ref() == Some(epoch);
        self.session = Some(session);
        self.link = None;
        Ok(same.then_some(told))
    }

    /// A question is a proof once everything has arrived that the primary had then: others than this node may
    /// acknowledge, too.
    fn confirm(&mut self, local: &mut Session, primary: &Node) -> Result<(), SqlError> {
        if self.candidates.is_empty() {
            return Ok(());
        }
        let settings = self.settings;
        let statement =
            "SELECT CONCAT_WS(',', NULLIF(@@gtid_binlog_state, ''), NULLIF(@@gtid_slave_pos, ''))";
        let mut here = statements::gtids(local, statement)?;
        let newest = |here: &GtidSet, all: &VecDeque<(f64, GtidSet)>| {
            all.iter()
                .rposition(|(_, position)| here.contains(position))
        };
        let mut arrived = newest(&here, &self.candidates);
        // SHOW ALL SLAVES STATUS waits for a pending STOP SLAVE, which belongs to a change of roles.
        if arrived != Some(self.candidates.len() - 1)
            && nodefiles::role_lock::is_held(settings).is_ok_and(|held| !held)
        {
            here = observe::observe_server(local, settings)?.holdings();
            arrived = newest(&here, &self.candidates);
        }
        let Some(index) = arrived else {
            return Ok(());
        };
        let (asked_at, _) = self.candidates[index].clone();
        self.candidates.drain(..=index);
        let shown = Shown {
            asked_at,
            window_ms: self.window.milliseconds(),
        };
        match proof::note(settings, &now(), &primary.name, shown) {
            Ok(Noted::Kept) => self.last = Some((asked_at, primary.name.clone())),
            Ok(Noted::CompleteAgain(before)) => {
                self.last = Some((asked_at, primary.name.clone()));
                raise(
                    settings,
                    "standby-complete",
                    Severity::Info,
                    format!(
                        "this standby has everything again that {} acknowledged; it might have lacked writes since {}",
                        primary.name, before.since
                    ),
                );
            }
            Ok(Noted::TooOld | Noted::Busy) => {}
            Err(error) => {
                // Several times a second, for as long as the directory is full.
                let error = error.to_string();
                if self.unkept.as_ref() != Some(&error) {
                    log::error!("{error}");
                    self.unkept = Some(error);
                }
            }
        }
        Ok(())
    }

    /// Writes down that the last proof has become too old. Not while a change of roles runs: a take-over that
    /// has begun with a proof looks at it itself.
    pub fn age(&mut self) {
        let settings = self.settings;
        let Some((asked_at, primary)) = &self.last else {
            return;
        };
        let age = Duration::try_from_secs_f64(uptime_seconds() - asked_at).unwrap_or_default();
        if age <= self.window.length
            || nodefiles::role_lock::is_held(settings).is_ok_and(|held| held)
        {
            return;
        }
        let primary = primary.clone();
        let why =
            format!("{primary} has not shown its pledge, or its last writes have not arrived");
        if renounce(settings, &primary, age, &why) {
            self.last = None;
            self.candidates.clear();
        }
    }

    /// On the way down in order: the primary sees the replica go, asks, and is told, so that it need not wait.
    pub fn leave(&mut self, local: &mut Session) {
        let settings = self.settings;
        let closed: bool = local.row("SELECT @@read_only").unwrap_or(false);
        if !closed || !host::shutting_down() {
            return;
        }
        // One that has just handed the right to write over follows already, and was shown nothing yet.
        let shown = self.last.take().map(|(_, primary)| primary);
        let Some(primary) = shown.or_else(|| receives_from(settings, local)) else {
            return;
        };
        if let Err(error) = local.execute("STOP ALL SLAVES") {
            log::error!("{error}");
        }
        renounce(settings, &primary, Duration::ZERO, "this node shuts down");
        let gone = now();
        let start = Instant::now();
        while start.elapsed() < FAREWELL && !proof::renounced_since(settings, &gone) {
            // The interval between two looks at the note that the peer's question leaves.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The peer whose changes this node receives.
fn receives_from(settings: &Settings, local: &mut Session) -> Option<String> {
    let server = observe::observe_server(local, settings).ok()?;
    let source = &server
        .channels
        .iter()
        .find(|c| c.io == IoThread::Running)?
        .source;
    let peer = settings
        .peers()
        .find(|peer| peer.private.to_string() == *source);
    peer.map(|peer| peer.name.clone())
}

/// This node gives its proof up; `age` is that of the last one. Whether it is written down.
pub fn renounce(settings: &Settings, primary: &str, age: Duration, why: &str) -> bool {
    let now = now();
    let stale = Stale {
        since: wall_clock(age),
        primary: primary.to_owned(),
        why: why.to_owned(),
        at: now.at,
        boot_id: now.boot_id.clone(),
    };
    let before = proof::known(settings, &now).stale_since;
    match proof::renounce(settings, &stale) {
        Ok(true) => {
            if before.is_none() {
                tell::alert(
                    settings,
                    "standby-stale",
                    Severity::Warning,
                    &format!(
                        "this standby may lack writes of {primary} since {}, so it does not take over by itself: {why}",
                        stale.since
                    ),
                );
            }
            true
        }
        Ok(false) => false,
        Err(error) => {
            log::error!("{error}");
            false
        }
    }
}
