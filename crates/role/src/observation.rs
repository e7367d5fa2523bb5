//! What was seen of every node at one moment. Facts only; the judgement is in `decide`.

use serde::{Deserialize, Serialize};

use crate::GtidSet;

/// One row of the epoch table, written by each new primary as its first transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows with every opening of a database for writes.
    pub number: u64,
    /// The node that opened.
    pub primary: String,
}

/// State of a replication channel's receiving thread (`Slave_IO_Running`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IoThread {
    /// `No`
    Stopped,
    /// `Connecting` or `Preparing`
    Connecting,
    /// `Yes`
    Running,
}

/// One row of SHOW ALL SLAVES STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Database {
    /// It answered.
    Answering(Box<Server>),
    /// Its unit is starting or in crash recovery.
    Starting,
    /// A process exists but does not answer in time: stopped, hung, or out of connections.
    Silent,
    /// No process.
    Down,
}

impl Database {
    /// The server when it answered.
    pub fn server(&self) -> Option<&Server> {
        match self {
            Self::Answering(server) => Some(server),
            Self::Starting | Self::Silent | Self::Down => None,
        }
    }

    /// Whether it answered and is writable.
    pub fn writable(&self) -> bool {
        self.server().is_some_and(|server| server.writable)
    }
}

/// A node seen by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name in the settings.
    pub name: String,
    /// The VIP's address is on the interface.
    pub vip: bool,
    /// A Keepalived process runs here.
    pub keepalived: bool,
    /// Its database.
    pub database: Database,
}

impl NodeView {
    /// Holds the VIP by right: an address left behind by a killed Keepalived does not entitle.
    pub fn entitled(&self) -> bool {
        self.vip && self.keepalived
    }
}

/// How far a peer could be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerView {
    /// Its name in the settings.
    pub name: String,
    /// What it answered.
    pub contact: Contact,
    /// It answered once since this node's boot, or this node was the primary in this boot.
    pub met: bool,
    /// What it was when it last answered as a writable primary, since this node's boot.
    pub last_primary: Option<LastPrimary>,
}

/// A primary's last known state, written down by its standby at every look.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LastPrimary {
    /// Everything it had applied.
    pub history: GtidSet,
    /// Its commits waited for a replica, so a failover loses nothing that was acknowledged.
    pub semi_sync: bool,
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

    /// Whether it holds the VIP by right; none when it could not be asked.
    pub fn entitled(&self) -> Option<bool> {
        match &self.contact {
            Contact::Node(node) => Some(node.entitled()),
            Contact::Silent | Contact::HostUp | Contact::Database(_) => None,
        }
    }

    /// Whether its database answered and is writable.
    pub fn writable(&self) -> bool {
        self.server().is_some_and(|server| server.writable)
    }
}

/// Every node at one moment, seen from one of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
