//! May this node hold the VIP? The question of check-master.

use serde::{Deserialize, Serialize};

use crate::plan::{harvestable, opened_here};
use crate::{Contact, Database, IoThread, Known, NodeView, Observation, PeerView};

const UNTOLD: &str = "the database does not answer, and it cannot be told what it does";

/// Whether a node may hold the VIP. A fit standby may have unapplied events and no live
/// primary: they are drained. Unreceived ones make it stale while the primary is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Fitness {
    /// It may.
    Fit(String),
    /// It may not, and why.
    Unfit(String),
}

impl Fitness {
    /// The reason, for a person.
    pub fn into_reason(self) -> String {
        match self {
            Self::Fit(why) | Self::Unfit(why) => why,
        }
    }

    /// Whether the node may hold the VIP.
    pub fn is_fit(&self) -> bool {
        match self {
            Self::Fit(_) => true,
            Self::Unfit(_) => false,
        }
    }
}

/// The default question of check-master: is the local database the writable primary?
pub fn is_writable_primary(database: &Database) -> Fitness {
    match database {
        Database::Answering(server) if server.writable && server.channels.is_empty() => {
            Fitness::Fit("writable primary".to_owned())
        }
        Database::Answering(server) if server.writable => Fitness::Unfit(
            "the database is writable and has a replication channel: not a clean primary"
                .to_owned(),
        ),
        Database::Answering(_) => Fitness::Unfit("the database is read-only".to_owned()),
        Database::Starting => Fitness::Unfit("the database is starting".to_owned()),
        Database::Silent => Fitness::Unfit("the database does not answer".to_owned()),
        Database::Down => Fitness::Unfit("the database is down".to_owned()),
        Database::NotKnown => Fitness::Unfit(UNTOLD.to_owned()),
    }
}

/// The question of `check-master --or-promotable`.
pub fn fitness(seen: &Observation) -> Fitness {
    let server = match &seen.local.database {
        Database::Answering(server) => server,
        Database::Starting => return Fitness::Unfit("the database is starting".to_owned()),
        Database::Silent => return Fitness::Unfit("the database does not answer".to_owned()),
        Database::Down => return Fitness::Unfit("the database is down".to_owned()),
        Database::NotKnown => return Fitness::Unfit(UNTOLD.to_owned()),
    };
    if let Some(why) = seen.unread.as_ref().filter(|_| !server.writable) {
        return Fitness::Unfit(format!("its notes cannot be read: {why}"));
    }
    // Of its own epoch it lacks nothing.
    // A dead database on a host that answers: what is missing here is fetched from its binlog.
    let to_harvest = seen
        .peers
        .iter()
        .any(|p| p.contact == Contact::HostUp || harvestable(&p.contact));
    if let Some(since) = seen.stale_since.as_ref()
        && !server.writable
        && !opened_here(seen, server)
        && !to_harvest
    {
        return Fitness::Unfit(format!("may lack writes of the primary since {since}"));
    }
    let Some((peer, primary)) = seen.primary() else {
        if server.writable {
            return Fitness::Fit("writable primary".to_owned());
        }
        return Fitness::Fit("promotable: no primary is alive to be behind of".to_owned());
    };
    if let Some(why) = seen.unwritable.as_ref().filter(|_| !server.writable) {
        return Fitness::Unfit(format!("it cannot write down a change of roles: {why}"));
    }
    if server.writable {
        return if server.epoch_number() > primary.epoch_number() {
            Fitness::Fit("writable primary at the higher epoch".to_owned())
        } else {
            Fitness::Unfit(format!(
                "{} is writable too, at the same or a higher epoch",
                peer.name
            ))
        };
    }
    if !server.errant_against(primary).is_empty() {
        return Fitness::Unfit(format!(
            "this node has transactions that {} never had",
            peer.name
        ));
    }
    if let Some(channel) = server.channels.iter().find(|c| c.sql_errno != 0) {
        return Fitness::Unfit(format!(
            "replication stopped at error {}",
            channel.sql_errno
        ));
    }
    // One that has just been started, and has not failed yet, says nothing against a node that has just become a
    // standby; a proof that is not to be had for longer than W makes it stale above.
    let receiving = server.channels.iter().any(|c| match c.io {
        IoThread::Running => true,
        IoThread::Connecting => c.io_errno == 0,
        IoThread::Stopped => false,
    });
    if receiving || server.holdings().contains(&primary.history()) {
        Fitness::Fit("promotable standby".to_owned())
    } else {
        Fitness::Unfit(format!(
            "stale: {} is alive and this node does not receive its changes",
            peer.name
        ))
    }
}

/// The same question for a peer, as far as its database tells from here.
pub fn peer_fitness(seen: &Observation, peer: &PeerView) -> Fitness {
    let Some(server) = peer.server() else {
        return Fitness::Unfit("its database does not answer".to_owned());
    };
    let me = seen.local.database.server();
    if me.is_some_and(|me| me.writable && !me.semi_sync.enabled) && !server.writable {
        return Fitness::Unfit("commits are acknowledged here without it".to_owned());
    }
    let view = |name: &str, database| NodeView {
        name: name.to_owned(),
        vip: Known::No,
        keepalived: Known::Yes,
        database,
        highest_epoch: 0,
    };
    fitness(&Observation {
        local: view(&peer.name, Database::Answering(Box::new(server.clone()))),
        peers: vec![PeerView {
            name: seen.local.name.clone(),
            contact: Contact::Node(Box::new(seen.local.clone())),
            met: true,
            last_primary: None,
            proof: None,
        }],
        highest_epoch: seen.highest_epoch,
        witness: None,
        granted_to: None,
        alone_at: None,
        stale_since: None,
        unread: None,
        unwritable: None,
    })
}
