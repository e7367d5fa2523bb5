//! What was seen of every node at one moment. Facts only; the judgement is in `decide`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::GtidSet;

/// One row of the epoch table, written by each new primary as its first transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Grows with every opening of a database for writes.
    pub number: u64,
    /// The node that opened.
    pub primary: String,
}

/// State of a replication channel's receiving thread (`Slave_IO_Running`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoThread {
    /// `No`
    Stopped,
    /// `Connecting` or `Preparing`
    Connecting,
    /// `Yes`
    Running,
}

/// One row of SHOW ALL SLAVES STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    /// `Connection_name`; empty for the default channel.
    pub name: String,
    /// `Master_Host`
    pub source: String,
    /// `Slave_IO_Running`
    pub io: IoThread,
    /// `Slave_SQL_Running` is `Yes`
    pub sql_running: bool,
    /// `Using_Gtid` is `Slave_Pos`; anything else is refused.
    pub follows_slave_pos: bool,
    /// `Last_IO_Errno`
    pub io_errno: u32,
    /// `Last_SQL_Errno`
    pub sql_errno: u32,
    /// `Gtid_IO_Pos`: received, perhaps not applied.
    pub received: GtidSet,
    /// Any replicate_* filter or a skipped error code is set on this server.
    pub filtered: bool,
}

/// Semi-synchronous replication as this server sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SemiSync {
    /// `@@rpl_semi_sync_master_enabled`
    pub enabled: bool,
    /// `Rpl_semi_sync_master_status`: commits really wait.
    pub active: bool,
    /// `Rpl_semi_sync_master_clients`
    pub clients: u32,
    /// Threads `Binlog Dump`: connected replicas of either kind.
    pub replicas: u32,
}

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// `@@server_id`
    pub server_id: u32,
    /// `@@read_only` is OFF.
    pub writable: bool,
    /// The replicated epoch row; none before the first primary.
    pub epoch: Option<Epoch>,
    /// `@@gtid_binlog_state`: everything in this server's own binlog history.
    pub binlog_state: GtidSet,
    /// `@@gtid_slave_pos`
    pub slave_pos: GtidSet,
    /// Replication channels.
    pub channels: Vec<Channel>,
    /// Semi-synchronous replication.
    pub semi_sync: SemiSync,
}

impl Server {
    /// Everything that this server has applied.
    pub fn history(&self) -> GtidSet {
        self.binlog_state.union(&self.slave_pos)
    }

    /// Everything that this server has, applied or only received.
    pub fn holdings(&self) -> GtidSet {
        self.channels
            .iter()
            .fold(self.history(), |all, channel| all.union(&channel.received))
    }

    /// What is here and never was on `primary`; empty on a good standby. The two are not read at the
    /// same instant, so what a running channel brings from the primary itself may be newer here
    /// than in what was read there, and does not count.
    pub fn errant_against(&self, primary: &Self) -> GtidSet {
        let mine = self.history();
        primary.history().missing_from(&if self.receives() {
            mine.without_server(primary.server_id)
        } else {
            mine
        })
    }

    /// Whether a channel receives.
    pub fn receives(&self) -> bool {
        self.channels.iter().any(|c| c.io == IoThread::Running)
    }

    /// Whether a channel receives, or tries to.
    pub fn follows(&self) -> bool {
        self.channels.iter().any(|c| c.io != IoThread::Stopped)
    }

    /// Whether events were received that are not applied yet; the epoch row may be among them.
    pub fn unapplied(&self) -> bool {
        let applied = self.history();
        self.channels.iter().any(|c| !applied.contains(&c.received))
    }

    /// The epoch's number; 0 before the first primary.
    pub fn epoch_number(&self) -> u64 {
        self.epoch.as_ref().map_or(0, |epoch| epoch.number)
    }
}

/// A database process, seen from its own node or over the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Database {
    /// It answered.
    Answering(Box<Server>),
    /// Its unit is starting or in crash recovery.
    Starting,
    /// A process exists but does not answer in time: stopped, hung, or out of connections.
    Silent,
    /// No process.
    Down,
    /// It did not answer, and it could not be told whether there is a process, or what it does.
    NotKnown,
}

impl Database {
    /// The server when it answered.
    pub fn server(&self) -> Option<&Server> {
        match self {
            Self::Answering(server) => Some(server),
            Self::Starting | Self::Silent | Self::Down | Self::NotKnown => None,
        }
    }

    /// Whether it answered and is writable.
    pub fn writable(&self) -> bool {
        self.server().is_some_and(|server| server.writable)
    }
}

/// An answer to a question that may have none. What could not be told is never taken for a "no".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Option<bool>", into = "Option<bool>")]
pub enum Known {
    /// It is so.
    Yes,
    /// It is not so.
    No,
    /// It could not be told.
    NotKnown,
}

impl Known {
    /// Whether both are so.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::NotKnown, _) | (_, Self::NotKnown) => Self::NotKnown,
        }
    }
}

impl From<bool> for Known {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Between the nodes it is `true`, `false` or `null`, which an earlier version, that knows only the first
/// two, does not understand: to it the node has not answered, and that is right.
impl From<Option<bool>> for Known {
    fn from(answer: Option<bool>) -> Self {
        answer.map_or(Self::NotKnown, Self::from)
    }
}

impl From<Known> for Option<bool> {
    fn from(answer: Known) -> Self {
        match answer {
            Known::Yes => Some(true),
            Known::No => Some(false),
            Known::NotKnown => None,
        }
    }
}

/// A node seen by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeView {
    /// Its name in the settings.
    pub name: String,
    /// The VIP's address is on the interface.
    pub vip: Known,
    /// A Keepalived process runs here.
    pub keepalived: Known,
    /// Its database.
    pub database: Database,
    /// The highest epoch that it remembers: its database may be down and cannot tell. 0 when not known.
    pub highest_epoch: u64,
}

impl NodeView {
    /// Holds the VIP by right: an address left behind by a killed Keepalived does not entitle.
    pub fn entitled(&self) -> Known {
        self.vip.and(self.keepalived)
    }
}

/// How far a peer could be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Contact {
    /// It answers on neither network. Never the same as "down".
    Silent,
    /// Its kernel answers, but nothing more is known.
    HostUp,
    /// Its database answered, over SQL, which cannot tell who holds the VIP.
    Database(Box<Server>),
    /// The node told everything about itself.
    Node(Box<NodeView>),
}

/// A peer as seen from here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerView {
    /// Its name in the settings.
    pub name: String,
    /// What it answered.
    pub contact: Contact,
    /// It answered once since this node's boot, or this node was the primary in this boot.
    pub met: bool,
    /// What it was when it last answered as a writable primary, since this node's boot.
    pub last_primary: Option<LastPrimary>,
    /// That this node has everything that the peer ever acknowledged, if it was shown.
    pub proof: Option<Proof>,
}

/// A round trip showed that this node has everything that a peer had acknowledged, and that the peer would
/// not acknowledge anything without it for some time: either the peer was a primary that had pledged to wait
/// for its replica, or its database was closed. It is worth something for a short time only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Proof {
    /// Time since the question was asked. Not since the answer: that one may have been on its way for long.
    pub age: Duration,
    /// For how long the peer acknowledges nothing alone once it has taken its pledge back.
    pub window: Duration,
}

/// Between the last look at a proof's age and the opening that rests on it.
pub const PROOF_MARGIN: Duration = Duration::from_millis(100);

impl Proof {
    /// Whether it still holds, and will for [`PROOF_MARGIN`].
    pub fn holds(&self) -> bool {
        self.age + PROOF_MARGIN <= self.window
    }
}

fn yes() -> bool {
    true
}

/// A primary's last known state, written down by its standby at every look.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LastPrimary {
    /// Everything it had applied.
    pub history: GtidSet,
    /// Its commits waited for a replica when it was looked at. That says nothing of a moment later, so it
    /// counts only for a primary of a release that gives no pledges.
    pub semi_sync: bool,
    /// Its release gives pledges, so [`Proof`] decides. Not known counts as yes.
    #[serde(default = "yes")]
    pub pledges: bool,
}

impl PeerView {
    /// The peer's database when it answered.
    pub fn server(&self) -> Option<&Server> {
        match &self.contact {
            Contact::Database(server) => Some(server),
            Contact::Node(node) => node.database.server(),
            Contact::Silent | Contact::HostUp => None,
        }
    }

    /// Whether it holds the VIP by right; not known when it could not be asked, too.
    pub fn entitled(&self) -> Known {
        match &self.contact {
            Contact::Node(node) => node.entitled(),
            Contact::Silent | Contact::HostUp | Contact::Database(_) => Known::NotKnown,
        }
    }

    /// Whether its database answered and is writable.
    pub fn writable(&self) -> bool {
        self.server().is_some_and(|server| server.writable)
    }

    /// Whether this node is known to have everything that the peer acknowledged as a primary.
    pub fn nothing_is_missing(&self) -> bool {
        self.proof.is_some_and(|proof| proof.holds())
            || self
                .last_primary
                .as_ref()
                .is_some_and(|last| !last.pledges && last.semi_sync)
    }
}

/// Every node at one moment, seen from one of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Observation {
    /// The node that looks.
    pub local: NodeView,
    /// The others.
    pub peers: Vec<PeerView>,
    /// The highest epoch this node ever saw, kept in a file for the time that the database is down.
    pub highest_epoch: u64,
    /// Whether a witness answered; none when none is configured.
    pub witness: Option<bool>,
    /// This node granted the right to write to another one and was not told that it declined.
    pub granted_to: Option<String>,
    /// This node's commits have been acknowledged without a replica since it opened at this epoch: no peer
    /// can have everything, so none opens by itself.
    pub alone_at: Option<u64>,
    /// Since when this node may lack writes of its primary, in words; none while it has a proof, or never
    /// had one.
    pub stale_since: Option<String>,
    /// What this node cannot read of its own notes of epochs and grants; none when it can read them.
    pub unread: Option<String>,
    /// Why this node cannot write down what a change of roles would have to.
    pub unwritable: Option<String>,
}

impl Observation {
    /// The peer that answers as the writable primary, with its server.
    pub fn primary(&self) -> Option<(&PeerView, &Server)> {
        self.peers
            .iter()
            .find_map(|peer| peer.server().filter(|s| s.writable).map(|s| (peer, s)))
    }

    /// No peer answers on any network.
    pub fn all_silent(&self) -> bool {
        !self.peers.is_empty() && self.peers.iter().all(|p| p.contact == Contact::Silent)
    }

    /// Neither a peer nor a witness answers.
    pub fn cut_off(&self) -> bool {
        self.all_silent() && self.witness == Some(false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_earlier_version_reads_what_is_known_and_refuses_what_is_not() {
        for (answer, text) in [
            (Known::Yes, "true"),
            (Known::No, "false"),
            (Known::NotKnown, "null"),
        ] {
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Known>(text).unwrap(), answer);
            // What an earlier version has in its place.
            assert_eq!(
                serde_json::from_str::<bool>(text).ok(),
                Option::from(answer)
            );
        }
    }

    #[test]
    fn one_no_is_enough() {
        use Known::{No, NotKnown, Yes};
        for (one, other, both) in [
            (Yes, Yes, Yes),
            (Yes, No, No),
            (Yes, NotKnown, NotKnown),
            (No, NotKnown, No),
            (NotKnown, NotKnown, NotKnown),
        ] {
            assert_eq!(one.and(other), both);
            assert_eq!(other.and(one), both);
        }
    }
}
