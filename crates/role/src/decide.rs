//! The decision table: what a node does, looking at itself and at its peers.
//!
//! Hooks, timer, `promote` and `failback` all ask this one function.

use serde::{Deserialize, Serialize};

use crate::plan::harvestable;
use crate::{Contact, Database, Known, Observation, PeerView, Server};

/// What the settings allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// A node that met nobody since its boot may open when the others are silent.
    pub promote_unmet_after_boot: bool,
    /// A person works on this node: nothing is changed by itself, only fenced.
    pub maintenance: bool,
}

/// What to do, and why in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// All is as it should be, or nothing can be done here.
    Stay(&'static str),
    /// Nothing to do now; alert when it lasts.
    Wait(&'static str),
    /// This node, the writable primary, writes the epoch row that an interrupted promotion left out.
    ClaimEpoch,
    /// This node, the writable primary, removes the replication channel that an interrupted promotion
    /// left: it would replicate from its own replica.
    ForgetChannel,
    /// A standby still waits for a replica of its own: semi-synchronous replication is switched off there. On
    /// a primary it belongs to the resident program alone ([`crate::alone`]).
    SemiSyncOff,
    /// The other nodes are gone or read-only: open here.
    Promote(&'static str),
    /// The named peer is the writable primary and the VIP is here: orderly switch-over.
    SwitchOver {
        /// The present primary.
        from: String,
    },
    /// Read-only with the VIP; the named peer has what this node lacks. Replicate, then look again.
    CatchUp {
        /// Who has it.
        from: String,
    },
    /// A standby without replication: attach it to the primary.
    Attach {
        /// The primary.
        to: String,
    },
    /// A standby with transactions that the primary never had: they are saved and taken back, then
    /// it is attached.
    Diverged {
        /// The primary.
        from: String,
    },
    /// Make the local database read-only and end its clients' sessions.
    Fence {
        /// Also leave the VIP to the others.
        give_up_vip: bool,
        /// For the log and the alert.
        why: &'static str,
    },
    /// Two primaries at the same epoch: fence both and call a person.
    FenceAll {
        /// The peers to fence.
        peers: Vec<String>,
    },
    /// The named peers write at a lower epoch: fence them.
    FencePeers {
        /// The peers to fence.
        peers: Vec<String>,
    },
    /// The local server does not answer and another node is taking over: SIGKILL.
    KillLocal,
    /// Leave the VIP to the others; the database stays as it is.
    GiveUpVip(&'static str),
    /// The VIP's address is here although no Keepalived runs: remove it.
    RemoveAddress,
    /// Change nothing and call a person.
    Refuse {
        /// For the log and the alert.
        why: &'static str,
        /// The command to type.
        next: &'static str,
    },
}

impl Decision {
    /// Whether this node's database is opened.
    fn opens(&self) -> bool {
        match self {
            Self::Promote(_) | Self::SwitchOver { .. } => true,
            Self::Stay(_)
            | Self::Wait(_)
            | Self::ClaimEpoch
            | Self::ForgetChannel
            | Self::SemiSyncOff
            | Self::CatchUp { .. }
            | Self::Attach { .. }
            | Self::Diverged { .. }
            | Self::Fence { .. }
            | Self::FenceAll { .. }
            | Self::FencePeers { .. }
            | Self::KillLocal
            | Self::GiveUpVip(_)
            | Self::RemoveAddress
            | Self::Refuse { .. } => false,
        }
    }

    /// Whether maintenance forbids it: it hands the right to write or the VIP over, or begins to
    /// replicate. Fencing, and completing what has begun, are never forbidden.
    fn waits_for_maintenance(&self) -> bool {
        match self {
            Self::Promote(_)
            | Self::SwitchOver { .. }
            | Self::CatchUp { .. }
            | Self::Attach { .. }
            | Self::Diverged { .. }
            | Self::GiveUpVip(_) => true,
            Self::Stay(_)
            | Self::Wait(_)
            | Self::ClaimEpoch
            | Self::ForgetChannel
            | Self::SemiSyncOff
            | Self::Fence { .. }
            | Self::FenceAll { .. }
            | Self::FencePeers { .. }
            | Self::KillLocal
            | Self::RemoveAddress
            | Self::Refuse { .. } => false,
        }
    }
}

/// What this node does, given what it sees. Every combination has an answer.
pub fn decide(seen: &Observation, policy: Policy) -> Decision {
    let decision = decide_by_table(seen, policy);
    if policy.maintenance && decision.waits_for_maintenance() {
        return Decision::Refuse {
            why: "maintenance is on, so roles are not changed by themselves",
            next: "promote here by hand, or: maintenance off",
        };
    }
    if seen.unread.is_some() && decision.opens() {
        return Decision::Refuse {
            why: "this node's notes of epochs and grants cannot be read, so another node may have newer data",
            next: "read the file that the failover log names; only if the peer's data are older: promote --force",
        };
    }
    decision
}

fn decide_by_table(seen: &Observation, policy: Policy) -> Decision {
    if seen.local.vip == Known::Yes && seen.local.keepalived == Known::No {
        return Decision::RemoveAddress;
    }
    match &seen.local.database {
        Database::Down | Database::Starting => Decision::Stay(
            "the local database is down or starting; its check fails and the VIP goes",
        ),
        Database::Silent | Database::NotKnown => {
            if seen
                .peers
                .iter()
                .any(|p| p.writable() || p.entitled() == Known::Yes)
            {
                Decision::KillLocal
            } else {
                Decision::Wait("the local database does not answer and no peer has taken over yet")
            }
        }
        Database::Answering(server) if server.writable => writable(seen, server),
        Database::Answering(server) => match seen.local.entitled() {
            Known::Yes => entitled_read_only(seen, server, policy),
            Known::No => standby(seen, server),
            // Neither may be done at the wrong place: one opens, the other takes rows back.
            Known::NotKnown => Decision::Wait(
                "it cannot be told whether the VIP is here, so this closed database is left as it is",
            ),
        },
    }
}

/// The local database is open for writes.
fn writable(seen: &Observation, me: &Server) -> Decision {
    let entitled = seen.local.entitled();
    let writers: Vec<&PeerView> = seen.peers.iter().filter(|p| p.writable()).collect();
    let epoch_of = |p: &PeerView| p.server().map_or(0, Server::epoch_number);
    if let Some(highest) = writers.iter().map(|p| epoch_of(p)).max() {
        let names = || writers.iter().map(|p| p.name.clone()).collect();
        return match me.epoch_number().cmp(&highest) {
            std::cmp::Ordering::Greater => Decision::FencePeers { peers: names() },
            std::cmp::Ordering::Less => Decision::Fence {
                give_up_vip: entitled != Known::No,
                why: "a peer is writable at a higher epoch",
            },
            std::cmp::Ordering::Equal => Decision::FenceAll { peers: names() },
        };
    }
    let newer = seen
        .peers
        .iter()
        .filter_map(PeerView::server)
        .map(Server::epoch_number)
        .max()
        .unwrap_or(0)
        .max(seen.highest_epoch);
    if me.epoch_number() < newer {
        return Decision::Fence {
            give_up_vip: entitled != Known::No,
            why: "this database is older than an epoch that was seen elsewhere",
        };
    }
    if let Some(target) = &seen.granted_to
        && *target != seen.local.name
    {
        return Decision::Fence {
            give_up_vip: false,
            why: "the right to write was granted to a peer",
        };
    }
    if seen.cut_off() {
        return Decision::Fence {
            give_up_vip: true,
            why: "neither a peer nor a witness answers: this node is cut off",
        };
    }
    if entitled == Known::No && seen.all_silent() {
        return Decision::Fence {
            give_up_vip: false,
            why: "the VIP is not here and no peer answers: perhaps this node is cut off",
        };
    }
    if me
        .epoch
        .as_ref()
        .is_none_or(|epoch| epoch.primary != seen.local.name)
    {
        return Decision::ClaimEpoch;
    }
    if !me.channels.is_empty() {
        return Decision::ForgetChannel;
    }
    match entitled {
        Known::Yes => Decision::Stay("primary with the VIP"),
        Known::No | Known::NotKnown if seen.peers.iter().any(|p| p.entitled() == Known::Yes) => {
            Decision::Wait("a peer holds the VIP and will switch over to itself")
        }
        Known::No => {
            Decision::Stay("primary without the VIP; nobody entitled is known to hand over to")
        }
        Known::NotKnown => Decision::Wait("primary, and it cannot be told whether the VIP is here"),
    }
}

/// The VIP is here and the database is closed.
fn entitled_read_only(seen: &Observation, me: &Server, policy: Policy) -> Decision {
    if let Some((primary, server)) = seen.primary() {
        return match primary.entitled() {
            Known::Yes => Decision::Refuse {
                why: "two nodes hold the VIP and the peer is the primary: the clients' network is split",
                next: "repair the network between the nodes' front addresses",
            },
            // A switch-over from here was interrupted after the other node had opened.
            Known::No if seen.granted_to.as_ref() == Some(&primary.name) => Decision::GiveUpVip(
                "the right to write went to a peer, and it is open: the VIP follows",
            ),
            Known::No if !me.follows() && !me.history().contains(&server.history()) => {
                Decision::CatchUp {
                    from: primary.name.clone(),
                }
            }
            Known::No => Decision::SwitchOver {
                from: primary.name.clone(),
            },
            Known::NotKnown if matches!(primary.contact, Contact::Node(_)) => Decision::Refuse {
                why: "the primary itself cannot tell whether it holds the VIP",
                next: "there: ip address, journalctl -u keepalived-companion-role; then: promote",
            },
            Known::NotKnown => Decision::Refuse {
                why: "the primary answers over SQL, but its forced command does not, so nobody can tell whether it holds the VIP",
                next: "repair ssh between the nodes, then: promote",
            },
        };
    }
    if seen.highest_epoch > me.epoch_number() && !me.unapplied() {
        let newer_peer = seen.peers.iter().any(|p| {
            p.server()
                .is_some_and(|s| s.epoch_number() > me.epoch_number())
                || harvestable(&p.contact)
        });
        if !newer_peer {
            return Decision::Refuse {
                why: "this database is older than an epoch that this node has seen",
                next: "start the node with the newer data; only if it is lost: promote --accept-loss",
            };
        }
    }
    if seen.cut_off() {
        return Decision::Wait(
            "neither a peer nor a witness answers: this node is cut off and stays closed",
        );
    }
    let unknown: Vec<&PeerView> = seen.peers.iter().filter(|p| p.server().is_none()).collect();
    if unknown.iter().any(|p| !p.met) && !policy.promote_unmet_after_boot {
        return Decision::Wait(
            "no answer from a peer that this node has not met since its boot: it may know more. \
             If it is lost for good: promote --force",
        );
    }
    if let Some(target) = &seen.granted_to
        && *target != seen.local.name
        && unknown.iter().any(|p| p.name == *target)
    {
        return Decision::Refuse {
            why: "the right to write was granted to a peer that does not answer now",
            next: "bring the peer back; only if it is lost for good: promote --force",
        };
    }
    if seen
        .peers
        .iter()
        .filter_map(PeerView::server)
        .any(|peer| same_epoch_twice(peer, me))
    {
        return Decision::Refuse {
            why: "two nodes opened at the same epoch and both have data that the other lacks",
            next: "compare them, then on the node that shall go on: promote --force",
        };
    }
    match best_peer(seen, me) {
        None => Decision::Promote("nobody else writes and this node has the newest data"),
        Some((peer, server)) => {
            if server.history().contains(&me.history()) {
                Decision::CatchUp {
                    from: peer.name.clone(),
                }
            } else {
                Decision::GiveUpVip(
                    "a read-only peer has the better history, and this node's has diverged from it",
                )
            }
        }
    }
}

/// Two nodes opened at one epoch while neither saw the other; no rule can say whose data count.
fn same_epoch_twice(a: &Server, b: &Server) -> bool {
    match (&a.epoch, &b.epoch) {
        (Some(first), Some(second)) => {
            first.number == second.number && first.primary != second.primary
        }
        (_, None) | (None, _) => false,
    }
}

/// The answering read-only peer whose data is better than the local one's.
fn best_peer<'a>(seen: &'a Observation, me: &Server) -> Option<(&'a PeerView, &'a Server)> {
    let mut best: Option<(&PeerView, &Server)> = None;
    for peer in &seen.peers {
        if let Some(server) = peer.server()
            && better(server, &peer.name, best.map_or(me, |(_, s)| s))
        {
            best = Some((peer, server));
        }
    }
    best
}

/// Higher epoch first; then the history that contains the other; then the node the epoch names.
fn better(candidate: &Server, candidate_name: &str, than: &Server) -> bool {
    if candidate.epoch_number() != than.epoch_number() {
        return candidate.epoch_number() > than.epoch_number();
    }
    let (theirs, ours) = (candidate.holdings(), than.holdings());
    match (theirs.contains(&ours), ours.contains(&theirs)) {
        (true, false) => true,
        // Equal data: whoever has the VIP may go ahead.
        (false | true, true) => false,
        (false, false) => candidate
            .epoch
            .as_ref()
            .is_some_and(|epoch| epoch.primary == candidate_name),
    }
}

/// The VIP is elsewhere and the database is closed.
fn standby(seen: &Observation, me: &Server) -> Decision {
    let Some((primary, server)) = seen.primary() else {
        return Decision::Wait("no primary is seen; VRRP decides who is entitled");
    };
    if server.epoch_number() < me.epoch_number().max(seen.highest_epoch) {
        return Decision::Wait(
            "a peer is writable at an older epoch than this node has seen; it is closed as soon as it looks",
        );
    }
    if me.semi_sync.enabled {
        return Decision::SemiSyncOff;
    }
    if me.channels.iter().any(|c| c.sql_errno != 0) {
        return Decision::Refuse {
            why: "replication stopped at an error",
            next: "read Last_SQL_Error in SHOW ALL SLAVES STATUS; if the data differ: failback --rejoin-only --rebuild",
        };
    }
    if let Some(channel) = me
        .channels
        .iter()
        .find(|c| c.io != crate::IoThread::Stopped)
    {
        return if channel.io == crate::IoThread::Connecting && channel.io_errno != 0 {
            Decision::Wait(
                "this standby cannot connect to its primary, or is refused there, so it receives nothing; \
                 Last_IO_Error in SHOW ALL SLAVES STATUS says why",
            )
        } else if channel.sql_running {
            Decision::Stay("standby")
        } else {
            // What it receives is safe in the relay log and is drained before a promotion.
            Decision::Wait(
                "the applying thread was stopped by hand: changes are received and not applied; \
                 go on with START SLAVE SQL_THREAD",
            )
        };
    }
    if server.history().contains(&me.history()) {
        Decision::Attach {
            to: primary.name.clone(),
        }
    } else {
        Decision::Diverged {
            from: primary.name.clone(),
        }
    }
}
