//! What the nodes say to each other, as JSON lines. The two nodes of a pair are upgraded one after the other,
//! so each line is also read by the releases before and after this one.
//!
//! - [`Request::Observe`], [`Request::Lock`] and [`Request::Fence`], the line `stay` and the command
//!   `binlog-tail GTIDS` are frozen: a failover needs them between any two versions. Their questions never get
//!   another field (version 0 hangs up on one), and their answers keep every field and value that they have.
//! - Fields that are not known are ignored. Missing ones have a default where one is harmless.
//! - A verb that is not known is answered with [`Response::Unsupported`].
//! - The version is told in the answer to `observe`; version 0 does not tell it. Planned changes are
//!   refused between versions that are not neighbours: see [`check_versions`].

use role::{GtidSet, Known};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::Sealed;

/// The version of the conversation that this release speaks. Raised by any change of the lines that are
/// not frozen.
pub const PROTOCOL: u32 = 1;

/// What is told to version 0, which knows only yes and no, where it is not known whether a node has the VIP. A
/// node that may have it is not switched away from.
const VIP_NOT_KNOWN: bool = true;

/// What a peer may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Request {
    /// Tell everything about yourself. Frozen.
    Observe {},
    /// Tell what your sender of files says.
    Files {},
    /// Take your role lock and hold it while this conversation lasts. Frozen.
    Lock {
        /// How long to wait for it, in ms.
        #[serde(default)]
        patience_ms: u64,
    },
    /// Write down that `to` has the right to write; empty takes it back.
    Grant {
        /// A node's name, or empty. Without a default: a missing name would take it back.
        to: String,
    },
    /// Let your sender of files send its queue, and nothing after it.
    SealFiles {
        /// How long it may take, in ms.
        limit_ms: u64,
    },
    /// Let your sender of files go on.
    UnsealFiles {},
    /// Make your database unable to write, by SIGKILL when it does not answer. Frozen.
    Fence {},
    /// Leave the VIP to the others (on), or take part again.
    Standby {
        /// Which.
        on: bool,
    },
    /// Restart Keepalived.
    RestartKeepalived {},
    /// Tell whether your pledge stands, as the one who asked over SQL would see it.
    Pledge {
        /// The window that the asker goes by, in ms.
        window_ms: u64,
    },
    /// Your primary asks: say whether you rely on its pledge still, and give that up if you can.
    Renounce {
        /// The primary's name.
        from: String,
    },
}

/// Why a line is no [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRequest {
    /// A verb that is not known here, or whose fields are not those that are known.
    Unsupported {
        /// The verb.
        verb: String,
    },
    /// Not a question at all.
    NotAQuestion,
}

impl Request {
    /// Reads a line.
    pub fn read(line: &[u8]) -> Result<Self, NoRequest> {
        #[derive(Deserialize)]
        struct Asked {
            verb: String,
        }
        serde_json::from_slice(line).map_err(|_| match serde_json::from_slice(line) {
            Ok(Asked { verb }) => NoRequest::Unsupported { verb },
            Err(_) => NoRequest::NotAQuestion,
        })
    }
}

/// What a peer answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Response {
    /// Done. Frozen.
    Done {},
    /// Its state. Frozen.
    Node {
        /// The state.
        node: Box<Node>,
        /// The version of the conversation that it speaks: 0 when it does not say so.
        #[serde(default)]
        protocol: u32,
        /// The window W that its resident program goes by, in ms. Asked for a person only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window_ms: Option<u64>,
    },
    /// What its sender of files says; nothing when none runs.
    Files {
        /// This.
        status: Option<Box<nodefiles::sync_status::SyncStatus>>,
    },
    /// What became of its files.
    Sealed {
        /// This.
        files: Sealed,
    },
    /// The pledge as its own node sees it.
    Pledge {
        /// What it shows.
        shows: Shows,
        /// `@@gtid_binlog_pos`
        position: GtidSet,
        /// The epoch row, by its number and name.
        epoch: Option<(u64, String)>,
    },
    /// How a standby stands to its primary's pledge.
    Standing {
        /// This.
        standby: Standing,
    },
    /// The lock is held by another change. Frozen.
    Busy {},
    /// Not done, and why. Frozen.
    Failed {
        /// For a person.
        #[serde(default)]
        why: String,
    },
    /// The question is not known in this form; nothing was done. Version 0 hangs up instead.
    Unsupported {
        /// The verb.
        verb: String,
    },
}

/// What a primary shows on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shows {
    /// The pledge stands.
    Pledge,
    /// The database is closed.
    Closed,
    /// Neither, or what is not known here.
    #[serde(other)]
    Nothing,
}

/// What a standby may say of itself, a part of [`role::alone::Standby`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It has written down that it may lack writes.
    Renounced,
    /// It is about to be the primary, or may be.
    TakesOver,
    /// It relies on the pledge, or says what is not known here.
    #[serde(other)]
    Relies,
}

/// [`role::NodeView`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    #[serde(default)]
    name: String,
    /// Always written as yes or no; null or missing is read as not known.
    vip: Option<bool>,
    /// False where `vip` is only a stand-in.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    vip_known: bool,
    keepalived: bool,
    database: Database,
    /// Version 0 does not tell it.
    #[serde(default)]
    highest_epoch: u64,
}

fn yes() -> bool {
    true
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_yes(value: &bool) -> bool {
    *value
}

impl Node {
    /// Whether the VIP is there; none when that is not known.
    fn vip(&self) -> Option<bool> {
        self.vip.filter(|_| self.vip_known)
    }

    /// What to write for it.
    fn write_vip(vip: Option<bool>) -> (Option<bool>, bool) {
        (Some(vip.unwrap_or(VIP_NOT_KNOWN)), vip.is_some())
    }
}

/// [`role::Database`] on the wire. A later release may add values to those of a database that cannot be asked;
/// one that answers is always `Answering`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
enum Database {
    Answering(Box<Server>),
    Starting,
    Silent,
    Down,
    /// Not known here, and never sent.
    #[serde(skip_serializing)]
    Unknown,
}

impl TryFrom<Value> for Database {
    type Error = serde_json::Error;

    /// A server that answers and is not understood is an error, so that SQL tells about it: to take it for a
    /// silent one could cost a healthy primary its role.
    fn try_from(mut value: Value) -> Result<Self, Self::Error> {
        if let Some(server) = value.get_mut("Answering") {
            return serde_json::from_value(server.take()).map(Self::Answering);
        }
        Ok(match value.as_str() {
            Some("Starting") => Self::Starting,
            Some("Silent") => Self::Silent,
            Some("Down") => Self::Down,
            Some(_) | None => Self::Unknown,
        })
    }
}

/// [`role::Server`] on the wire. What the right to write depends on has no default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are the names on the wire")]
struct Server {
    server_id: u32,
    writable: bool,
    epoch: Option<Epoch>,
    binlog_state: GtidSet,
    slave_pos: GtidSet,
    #[serde(default)]
    channels: Vec<Channel>,
    #[serde(default)]
    semi_sync: SemiSync,
}

/// [`role::Epoch`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Epoch {
    number: u64,
    primary: String,
}

/// [`role::Channel`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    name: String,
    source: String,
    io: IoThread,
    sql_running: bool,
    follows_slave_pos: bool,
    #[serde(default)]
    io_errno: u32,
    #[serde(default)]
    sql_errno: u32,
    #[serde(default)]
    received: GtidSet,
    #[serde(default)]
    filtered: bool,
}

/// [`role::IoThread`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum IoThread {
    Stopped,
    Running,
    /// Also any value that is not known here: neither stopped nor receiving for certain.
    #[serde(other)]
    Connecting,
}

/// [`role::SemiSync`] on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct SemiSync {
    enabled: bool,
    active: bool,
    clients: u32,
    replicas: u32,
}

impl From<role::NodeView> for Node {
    fn from(view: role::NodeView) -> Self {
        // Where Keepalived cannot be told it is not known either whether the VIP is there by right.
        let (vip, vip_known) = Self::write_vip(match view.keepalived {
            Known::NotKnown => view.entitled().into(),
            Known::Yes | Known::No => view.vip.into(),
        });
        Self {
            name: view.name,
            vip,
            vip_known,
            keepalived: view.keepalived != Known::No,
            database: view.database.into(),
            highest_epoch: view.highest_epoch,
        }
    }
}

impl From<Node> for role::NodeView {
    fn from(node: Node) -> Self {
        Self {
            vip: node.vip().into(),
            name: node.name,
            keepalived: node.keepalived.into(),
            database: node.database.into(),
            highest_epoch: node.highest_epoch,
        }
    }
}

impl From<role::Database> for Database {
    fn from(database: role::Database) -> Self {
        match database {
            role::Database::Answering(server) => Self::Answering(Box::new((*server).into())),
            role::Database::Starting => Self::Starting,
            // Something may run there: whoever hears this fences it, and a fence wants proof.
            role::Database::Silent | role::Database::NotKnown => Self::Silent,
            role::Database::Down => Self::Down,
        }
    }
}

impl From<Database> for role::Database {
    fn from(database: Database) -> Self {
        match database {
            Database::Answering(server) => Self::Answering(Box::new((*server).into())),
            Database::Starting => Self::Starting,
            // Something may run there that cannot be asked: the state that is fenced before anything is opened.
            Database::Silent | Database::Unknown => Self::Silent,
            Database::Down => Self::Down,
        }
    }
}

impl From<role::Server> for Server {
    fn from(server: role::Server) -> Self {
        Self {
            server_id: server.server_id,
            writable: server.writable,
            epoch: server
                .epoch
                .map(|role::Epoch { number, primary }| Epoch { number, primary }),
            binlog_state: server.binlog_state,
            slave_pos: server.slave_pos,
            channels: server.channels.into_iter().map(Channel::from).collect(),
            semi_sync: SemiSync {
                enabled: server.semi_sync.enabled,
                active: server.semi_sync.active,
                clients: server.semi_sync.clients,
                replicas: server.semi_sync.replicas,
            },
        }
    }
}

impl From<Server> for role::Server {
    fn from(server: Server) -> Self {
        Self {
            server_id: server.server_id,
            writable: server.writable,
            epoch: server
                .epoch
                .map(|Epoch { number, primary }| role::Epoch { number, primary }),
            binlog_state: server.binlog_state,
            slave_pos: server.slave_pos,
            channels: server
                .channels
                .into_iter()
                .map(role::Channel::from)
                .collect(),
            semi_sync: role::SemiSync {
                enabled: server.semi_sync.enabled,
                active: server.semi_sync.active,
                clients: server.semi_sync.clients,
                replicas: server.semi_sync.replicas,
            },
        }
    }
}

impl From<role::Channel> for Channel {
    fn from(channel: role::Channel) -> Self {
        Self {
            name: channel.name,
            source: channel.source,
            io: match channel.io {
                role::IoThread::Stopped => IoThread::Stopped,
                role::IoThread::Connecting => IoThread::Connecting,
                role::IoThread::Running => IoThread::Running,
            },
            sql_running: channel.sql_running,
            follows_slave_pos: channel.follows_slave_pos,
            io_errno: channel.io_errno,
            sql_errno: channel.sql_errno,
            received: channel.received,
            filtered: channel.filtered,
        }
    }
}

impl From<Channel> for role::Channel {
    fn from(channel: Channel) -> Self {
        Self {
            name: channel.name,
            source: channel.source,
            io: match channel.io {
                IoThread::Stopped => role::IoThread::Stopped,
                IoThread::Connecting => role::IoThread::Connecting,
                IoThread::Running => role::IoThread::Running,
            },
            sql_running: channel.sql_running,
            follows_slave_pos: channel.follows_slave_pos,
            io_errno: channel.io_errno,
            sql_errno: channel.sql_errno,
            received: channel.received,
            filtered: channel.filtered,
        }
    }
}

/// Two nodes are too many versions apart for a planned change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{peer} speaks version {there} of the protocol between the nodes and {me} version {here}, and a planned change \
     needs versions that are at most one apart; upgrade keepalived-companion on {}",
    if there < here { peer } else { me }
)]
pub struct VersionsApart {
    /// This node.
    me: String,
    /// Its version.
    here: u32,
    /// The peer.
    peer: String,
    /// Its version.
    there: u32,
}

/// Whether this node, which speaks version `here`, may carry out a planned change with the peer: only versions
/// that are neighbours were tried with each other.
pub fn check_versions(me: &str, here: u32, peer: &str, there: u32) -> Result<(), VersionsApart> {
    if here.abs_diff(there) <= 1 {
        return Ok(());
    }
    Err(VersionsApart {
        me: me.to_owned(),
        here,
        peer: peer.to_owned(),
        there,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(line: &str) -> Option<role::NodeView> {
        match serde_json::from_str(line) {
            Ok(Response::Node { node, .. }) => Some((*node).into()),
            _ => None,
        }
    }

    #[test]
    fn what_a_later_release_adds_to_the_state_does_not_stop_a_failover() {
        let known = view(
            r#"{"answer":"node","node":{"name":"b","vip":false,"keepalived":true,"database":"Silent"}}"#,
        );
        assert!(known.is_some());
        for later in [
            r#"{"answer":"node","protocol":9,"more":[1],"node":{"name":"b","vip":false,"vip_known":true,"keepalived":true,"database":"Upgrading","more":{}}}"#,
            r#"{"answer":"node","node":{"name":"b","vip":false,"keepalived":true,"database":{"Recovering":{"seconds":3}}}}"#,
        ] {
            assert_eq!(view(later), known, "{later}");
        }
        let io = |io: &str| {
            let line = format!(
                r#"{{"name":"","source":"","io":"{io}","sql_running":true,"follows_slave_pos":true,"more":1}}"#
            );
            serde_json::from_str::<Channel>(&line).unwrap().io
        };
        assert_eq!(io("Running"), IoThread::Running);
        assert_eq!(io("Stopped"), IoThread::Stopped);
        assert_eq!(io("Preparing"), IoThread::Connecting);
    }

    #[test]
    fn a_server_that_is_not_understood_is_not_taken_for_a_silent_one() {
        let line = r#"{"answer":"node","node":{"name":"b","vip":true,"keepalived":true,"database":{"Answering":{"server_id":2}}}}"#;
        assert_eq!(view(line), None);
    }

    #[test]
    fn a_vip_that_is_not_known_is_told_to_every_version() {
        for vip in [Some(true), Some(false), None] {
            let (written, vip_known) = Node::write_vip(vip);
            let node = Node {
                name: "b".to_owned(),
                vip: written,
                vip_known,
                keepalived: true,
                database: Database::Down,
                highest_epoch: 0,
            };
            let line = serde_json::to_string(&node).unwrap();
            let told: Value = serde_json::from_str(&line).unwrap();
            assert!(
                told["vip"].is_boolean(),
                "version 0 reads yes or no: {line}"
            );
            assert_eq!(serde_json::from_str::<Node>(&line).unwrap().vip(), vip);
        }
        for line in [
            r#"{"name":"b","vip":null,"keepalived":true,"database":"Down"}"#,
            r#"{"name":"b","keepalived":true,"database":"Down"}"#,
        ] {
            assert_eq!(serde_json::from_str::<Node>(line).unwrap().vip(), None);
        }
    }

    #[test]
    fn a_question_is_read_as_far_as_it_is_known() {
        let unsupported = |verb: &str| {
            let verb = verb.to_owned();
            Err(NoRequest::Unsupported { verb })
        };
        for (line, read) in [
            (r#"{"verb":"observe","more":1}"#, Ok(Request::Observe {})),
            (r#"{"verb":"lock"}"#, Ok(Request::Lock { patience_ms: 0 })),
            (r#"{"verb":"dance","more":1}"#, unsupported("dance")),
            // Nobody is granted anything, nor is a grant taken back, by a guess.
            (r#"{"verb":"grant"}"#, unsupported("grant")),
            (
                r#"{"verb":"standby","on":"perhaps"}"#,
                unsupported("standby"),
            ),
            (r#"{"word":"observe"}"#, Err(NoRequest::NotAQuestion)),
            ("observe", Err(NoRequest::NotAQuestion)),
            ("", Err(NoRequest::NotAQuestion)),
        ] {
            assert_eq!(Request::read(line.as_bytes()), read, "{line}");
        }
    }

    #[test]
    fn planned_changes_need_neighbouring_versions() {
        for (here, there) in [(1, 0), (0, 1), (1, 1), (1, 2), (2, 1)] {
            assert_eq!(check_versions("a", here, "b", there), Ok(()));
        }
        let refused = |here, there| {
            check_versions("a", here, "b", there)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(3, 1),
            "b speaks version 1 of the protocol between the nodes and a version 3, and a planned change needs \
             versions that are at most one apart; upgrade keepalived-companion on b"
        );
        assert_eq!(
            refused(0, 2),
            "b speaks version 2 of the protocol between the nodes and a version 0, and a planned change needs \
             versions that are at most one apart; upgrade keepalived-companion on a"
        );
    }
}
