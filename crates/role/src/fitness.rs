//! May this node hold the VIP? The question of check-master.

use serde::{Deserialize, Serialize};

use crate::{Contact, Database, IoThread, NodeView, Observation, PeerView};

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
    }
}

/// The question of `check-master --or-promotable`.
pub fn fitness(seen: &Observation) -> Fitness {
    let server = match &seen.local.database {
        Database::Answering(server) => server,
        Database::Starting => return Fitness::Unfit("the database is starting".to_owned()),
        Database::Silent => return Fitness::Unfit("the database does not answer".to_owned()),
        Database::Down => return Fitness::Unfit("the database is down".to_owned()),
    };
    let Some((peer, primary)) = seen.primary() else {
        // Compare with the last position of a primary that is silent now.
        if server.writable {
            return Fitness::Fit("writable primary".to_owned());
        }
        return Fitness::Fit("promotable: no primary is alive to be behind of".to_owned());
    };
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
    let receiving = server.channels.iter().any(|c| c.io == IoThread::Running);
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
    let view = |name: &str, database| NodeView {
        name: name.to_owned(),
        vip: false,
        keepalived: true,
        database,
    };
    fitness(&Observation {
        local: view(&peer.name, Database::Answering(Box::new(server.clone()))),
        peers: vec![PeerView {
            name: seen.local.name.clone(),
            contact: Contact::Node(Box::new(seen.local.clone())),
            met: true,
            last_primary: None,
        }],
        highest_epoch: seen.highest_epoch,
        witness: None,
        granted_to: None,
    })
}
