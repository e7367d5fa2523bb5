//! The way to a writable primary, as data: steps that describe themselves.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Contact, Database, Known, Observation};

/// Why a node opens, which decides the steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromotionKind {
    /// No other node writes: the primary is gone, or all are read-only.
    TakeOver,
    /// The named peer writes and is asked to stop.
    SwitchOver {
        /// The present primary.
        from: String,
    },
}

/// What a person or the settings allow; the default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Transactions that a take-over may lose, counted from the primary's last known position.
    pub loss: u64,
    /// `--accept-loss`
    pub accept_loss: bool,
    /// Open although a peer that was not met since boot is silent: `--force`, or
    /// `role.promote_unmet_after_boot`.
    pub open_unmet: bool,
    /// Go on without fencing a host that is up, and without its role lock: `--force` alone.
    pub unfenced: bool,
}

/// One step. Executors match on it exhaustively; a person reads its `Display`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// A host that is up and cannot be fenced: nothing more is received from it, for good. What it commits
    /// from then on waits for this node, and is acknowledged to nobody.
    StopReceivingFrom {
        /// The peer.
        peer: String,
    },
    /// The peer's database is made read-only, or killed when it does not answer.
    FencePeer {
        /// The peer.
        peer: String,
    },
    /// The primary stops writing: `read_only`, a held global read lock, its clients' sessions ended.
    FreezePeer {
        /// The primary.
        peer: String,
    },
    /// The primary sends the files that wait to be sent, and none after them.
    SealFiles {
        /// The primary.
        peer: String,
    },
    /// Everything the frozen primary has is applied here.
    CatchUp {
        /// The primary.
        peer: String,
    },
    /// The right to write goes over, written down by the old primary first.
    Grant {
        /// The old primary.
        peer: String,
    },
    /// Everything received is applied here.
    Drain,
    /// What the dead primary's binlog has and never sent is fetched from its host and applied.
    Harvest {
        /// The old primary.
        peer: String,
    },
    /// Replication from the old primary ends. Its return is awaited after the opening.
    StopReplication,
    /// What receives files here from another node ends: from now on this node changes them itself.
    StopReceiving,
    /// This node's own note that it had given the right to write away is removed, before it opens:
    /// the audit fences a primary that gave its right away.
    TakeBackGrant,
    /// `read_only = 0`: the point of no return.
    Open,
    /// The new epoch is written, as the first transaction and the proof that writes work.
    ClaimEpoch {
        /// The new epoch's number.
        epoch: u64,
    },
    /// The replication channel's settings are removed.
    ForgetChannel,
    /// The VIP comes here: the old primary leaves it. Before its lock on all tables goes, so that a session
    /// of an administrator, whom `read_only` does not stop, finds the new primary behind the VIP.
    FetchVip {
        /// The old primary.
        peer: String,
    },
    /// The old primary becomes a replica of this node.
    Demote {
        /// The old primary.
        peer: String,
    },
}

impl Step {
    /// The statements that the step runs, as `--dry-run` prints them.
    pub fn statements(&self) -> Vec<String> {
        let lines: &[&str] = match self {
            Self::StopReceivingFrom { .. } => &[
                "KILL CONNECTION of the receiving thread",
                "STOP ALL SLAVES IO_THREAD, and Slave_IO_Running read back",
            ],
            Self::FencePeer { .. } => &[
                "peer: SET GLOBAL read_only = 1",
                "peer: KILL CONNECTION of every client session",
                "peer, when it does not answer: SIGKILL",
            ],
            Self::FreezePeer { .. } => &[
                "peer: SET GLOBAL read_only = 1",
                "peer: FLUSH TABLES WITH READ LOCK",
                "peer: KILL CONNECTION of every client session",
                "peer: SELECT @@gtid_binlog_pos, twice the same",
            ],
            Self::SealFiles { .. } => &[
                "peer: seal <limit>, asked of sync-realtime",
                "what is not sent in time does not stop the plan; it is alerted",
            ],
            Self::CatchUp { .. } => &["SELECT MASTER_GTID_WAIT(<the peer's position>, <limit>)"],
            Self::Grant { .. } => &["peer: grant to this node, written durably"],
            Self::Drain => &["SELECT MASTER_GTID_WAIT(<Gtid_IO_Pos>, <limit>)"],
            Self::Harvest { .. } => &[
                "peer: mariadb-binlog --start-position=<@@gtid_current_pos>",
                "here: mariadb < its output",
            ],
            Self::StopReplication => &["STOP ALL SLAVES"],
            Self::StopReceiving => &[
                "role.json: changing",
                "flock of receive.lock, at most 1 s: held until every receiver has ended",
            ],
            Self::TakeBackGrant => &["remove the grant to the peer, durably"],
            Self::Open => &["SET GLOBAL read_only = 0", "SELECT @@read_only"],
            Self::ClaimEpoch { epoch } => {
                return vec![format!(
                    "REPLACE INTO epoch VALUES (1, {epoch}, <this node>, NOW(6), <position>)"
                )];
            }
            Self::ForgetChannel => &["RESET SLAVE ALL"],
            Self::FetchVip { .. } => &["peer: Keepalived's track file `standby`: 1"],
            Self::Demote { .. } => &[
                "peer: KILL CONNECTION of every client session",
                "peer: UNLOCK TABLES",
                "peer: CHANGE MASTER TO <this node>, MASTER_USE_GTID = slave_pos, MASTER_DEMOTE_TO_SLAVE = 1",
                "peer: START SLAVE",
            ],
        };
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    /// How a failed plan takes the step back; none where there is nothing to take back, or no way.
    pub fn undo(&self) -> Option<&'static str> {
        match self {
            Self::FreezePeer { .. } => Some("peer: UNLOCK TABLES; SET GLOBAL read_only = 0"),
            Self::SealFiles { .. } => Some("peer: unseal"),
            Self::Grant { .. } => Some("peer: the grant is removed"),
            Self::StopReplication | Self::StopReceivingFrom { .. } => Some("START ALL SLAVES"),
            Self::StopReceiving => Some("role.json: standby"),
            Self::FencePeer { .. }
            | Self::CatchUp { .. }
            | Self::Drain
            | Self::Harvest { .. }
            | Self::TakeBackGrant
            | Self::Open
            | Self::ClaimEpoch { .. }
            | Self::ForgetChannel
            | Self::FetchVip { .. }
            | Self::Demote { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopReceivingFrom { peer } => {
                write!(f, "stop receiving from {peer}, which cannot be fenced")
            }
            Self::FencePeer { peer } => write!(f, "fence {peer}"),
            Self::FreezePeer { peer } => write!(f, "freeze writes on {peer}"),
            Self::SealFiles { peer } => write!(f, "let {peer} send its last files"),
            Self::CatchUp { peer } => write!(f, "catch up with {peer}"),
            Self::Grant { peer } => write!(f, "take the right to write from {peer}"),
            Self::Drain => write!(f, "apply everything received"),
            Self::Harvest { peer } => write!(f, "harvest the end of {peer}'s binlog"),
            Self::StopReplication => write!(f, "stop replication"),
            Self::StopReceiving => write!(f, "stop receiving files"),
            Self::TakeBackGrant => write!(f, "take back the right to write"),
            Self::Open => write!(f, "open the database for writes"),
            Self::ClaimEpoch { epoch } => write!(f, "write epoch {epoch}"),
            Self::ForgetChannel => write!(f, "forget the old replication channel"),
            Self::FetchVip { peer } => write!(f, "fetch the VIP from {peer}"),
            Self::Demote { peer } => write!(f, "make {peer} a replica"),
        }
    }
}

/// Steps in order. Those before [`Step::Open`] can be undone; from it on only forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The node that opens.
    pub target: String,
    /// Why.
    pub kind: PromotionKind,
    /// What to do.
    pub steps: Vec<Step>,
    /// Transactions of the old primary that are known to be lost, when a person accepted it.
    pub accepted_loss: u64,
    /// Peers whose hosts are up and which are neither locked nor fenced before: a proof stands in for that.
    pub unfenced: Vec<String>,
    /// The database opens with its commits waiting for a replica: a peer may rely on that for a while.
    pub bound: bool,
    /// The opening is safe only while the proof holds, which is looked at once more right before it.
    pub rests_on_proof: bool,
}

impl Plan {
    /// The epoch that the opening begins.
    pub fn epoch(&self) -> u64 {
        self.steps
            .iter()
            .find_map(|step| match step {
                Step::ClaimEpoch { epoch } => Some(*epoch),
                _ => None,
            })
            .unwrap_or_default()
    }
}

/// Why there is no plan. Each names the way on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The local database does not answer.
    #[error("the local database does not answer; start it first: systemctl start mariadb")]
    LocalDatabaseDown,
    /// More than one replication channel.
    #[error(
        "{count} replication channels are configured and the toolkit handles one; remove the others with RESET SLAVE 'name' ALL"
    )]
    ManyChannels {
        /// How many.
        count: usize,
    },
    /// The channel does not follow GTIDs.
    #[error(
        "replication does not use GTIDs (Using_Gtid is not Slave_Pos), so it cannot be known what is missing; CHANGE MASTER TO MASTER_USE_GTID=slave_pos"
    )]
    NotGtid,
    /// The channel filters or skips events.
    #[error(
        "replication is filtered (replicate_* or slave_skip_errors), so this copy is not complete; remove the filter and rebuild this node"
    )]
    Filtered,
    /// The applying thread stopped at an error.
    #[error(
        "replication stopped at error {errno}; read Last_SQL_Error in SHOW ALL SLAVES STATUS, then repair or rebuild this node"
    )]
    SqlError {
        /// `Last_SQL_Errno`
        errno: u32,
    },
    /// Relay log is unapplied and both threads are stopped.
    #[error(
        "both replication threads are stopped with events received and not applied; starting them would purge the relay log. Save the relay log's files and call for help, or: promote --accept-loss"
    )]
    BothThreadsStopped,
    /// The data is known to be behind the lost primary.
    #[error(
        "this node lacks about {transactions} transactions of {primary}, which was not waiting for its replica; bring {primary} back, or accept the loss: promote --accept-loss"
    )]
    Behind {
        /// The primary.
        primary: String,
        /// Transactions missing.
        transactions: u64,
    },
    /// It cannot be known that this node has everything that was acknowledged.
    #[error(
        "this node may lack writes that {peer} acknowledged{}{}; bring {peer} back, or accept the loss: promote --accept-loss",
        since.as_ref().map_or_else(String::new, |at| format!(" since {at}")),
        at_least.map_or_else(String::new, |n| format!(", {n} at least"))
    )]
    MayLack {
        /// The peer that may have acknowledged more.
        peer: String,
        /// Since when, in words.
        since: Option<String>,
        /// Transactions known to be missing, when there are any.
        at_least: Option<u64>,
    },
    /// This node's data has a part that the primary never had.
    #[error(
        "this node has transactions that {primary} never had ({gtids}); it must be rebuilt, not promoted"
    )]
    Diverged {
        /// The primary.
        primary: String,
        /// Which.
        gtids: String,
    },
    /// A peer's server may be open and cannot be reached to be fenced.
    #[error(
        "{peer} is up, but its forced command cannot be reached to fence its database; repair ssh, or power {peer} off and: promote --force"
    )]
    CannotFence {
        /// The peer.
        peer: String,
    },
    /// A peer not met since this node's boot is silent.
    #[error(
        "{peer} is silent and was not met since this node's boot: it may have newer data. Only if it is lost for good: promote --force"
    )]
    Unmet {
        /// The peer.
        peer: String,
    },
    /// The plan's peer is not writable any more.
    #[error("{peer} is not the writable primary; look again")]
    NotPrimary {
        /// The peer.
        peer: String,
    },
    /// An epoch was seen that this data does not know.
    #[error(
        "this data is at epoch {mine}, and epoch {seen} was seen: another node has newer data. Start that node; only if it is lost for good: promote --accept-loss"
    )]
    StaleEpoch {
        /// The local epoch.
        mine: u64,
        /// The highest ever seen.
        seen: u64,
    },
}

/// The steps that make the local node the primary, or why not.
pub fn plan_promotion(
    seen: &Observation,
    kind: PromotionKind,
    limits: Limits,
) -> Result<Plan, Refusal> {
    let me = seen
        .local
        .database
        .server()
        .ok_or(Refusal::LocalDatabaseDown)?;
    check_channels(me, limits)?;
    let epoch_seen = seen
        .peers
        .iter()
        .filter_map(|p| p.server().map(crate::Server::epoch_number))
        .fold(seen.highest_epoch, u64::max);
    let next_epoch = epoch_seen.max(me.epoch_number()) + 1;
    let replicating = !me.channels.is_empty();
    let TakeOver {
        mut steps,
        accepted_loss,
        unfenced,
        rests_on_proof,
    } = match &kind {
        PromotionKind::SwitchOver { from } => TakeOver {
            steps: switch_over(seen, me, from)?,
            accepted_loss: 0,
            unfenced: Vec::new(),
            rests_on_proof: false,
        },
        PromotionKind::TakeOver => take_over(seen, me, limits, epoch_seen)?,
    };
    // The last primary opens again. A peer of the same epoch may have seen its database closed a moment ago, and
    // rely on that. A person who forces it, or accepts a loss, says that there is none.
    let bound = opened_here(seen, me)
        && me.epoch_number() >= epoch_seen
        && !limits.accept_loss
        && !limits.unfenced;
    if replicating {
        steps.push(Step::StopReplication);
    }
    steps.push(Step::StopReceiving);
    if seen.granted_to.is_some() {
        steps.push(Step::TakeBackGrant);
    }
    steps.push(Step::Open);
    steps.push(Step::ClaimEpoch { epoch: next_epoch });
    if replicating {
        steps.push(Step::ForgetChannel);
    }
    if let PromotionKind::SwitchOver { from } = &kind {
        if seen.local.entitled() != Known::Yes {
            steps.push(Step::FetchVip { peer: from.clone() });
        }
        steps.push(Step::Demote { peer: from.clone() });
    }
    Ok(Plan {
        target: seen.local.name.clone(),
        kind,
        steps,
        accepted_loss,
        unfenced,
        bound,
        rests_on_proof,
    })
}

/// The steps before the opening while the named primary is alive.
fn switch_over(seen: &Observation, me: &crate::Server, from: &str) -> Result<Vec<Step>, Refusal> {
    let mut steps = Vec::new();
    let primary = seen
        .peers
        .iter()
        .find(|p| p.name == from)
        .and_then(|p| p.server())
        .filter(|s| s.writable)
        .ok_or_else(|| Refusal::NotPrimary {
            peer: from.to_owned(),
        })?;
    let errant = me.errant_against(primary);
    if !errant.is_empty() {
        return Err(Refusal::Diverged {
            primary: from.to_owned(),
            gtids: errant.to_string(),
        });
    }
    if me.channels.iter().any(|c| !c.sql_running) {
        // Not under the freeze: it may take long.
        steps.push(Step::Drain);
    }
    steps.push(Step::FreezePeer {
        peer: from.to_owned(),
    });
    // Before the wait for the database: meanwhile nothing is written that would need to be sent.
    steps.push(Step::SealFiles {
        peer: from.to_owned(),
    });
    steps.push(Step::CatchUp {
        peer: from.to_owned(),
    });
    steps.push(Step::Grant {
        peer: from.to_owned(),
    });
    Ok(steps)
}

/// The steps before the opening, what is known to be lost, and who is not fenced before.
struct TakeOver {
    steps: Vec<Step>,
    accepted_loss: u64,
    unfenced: Vec<String>,
    rests_on_proof: bool,
}

/// The way to open while nobody writes.
fn take_over(
    seen: &Observation,
    me: &crate::Server,
    limits: Limits,
    epoch_seen: u64,
) -> Result<TakeOver, Refusal> {
    let mut steps = Vec::new();
    // An epoch that is received and not yet applied, or in a binlog that is fetched, is looked at again before
    // the opening.
    let to_harvest = seen.peers.iter().any(|peer| harvestable(&peer.contact));
    if epoch_seen > me.epoch_number() && !me.unapplied() && !to_harvest && !limits.accept_loss {
        return Err(Refusal::StaleEpoch {
            mine: me.epoch_number(),
            seen: epoch_seen,
        });
    }
    let allowed = take_over_checks(seen, me, limits)?;
    let mut accepted_loss = allowed.lost;
    let mut unfenced = Vec::new();
    for peer in &seen.peers {
        match &peer.contact {
            Contact::Silent => {}
            Contact::HostUp if limits.unfenced => {}
            // Its commits wait for this node: what is not received here is acknowledged to nobody there.
            Contact::HostUp
                if peer.proof.is_some_and(|proof| proof.holds())
                    && me.channels.iter().all(|channel| channel.sql_running)
                    && !me.channels.is_empty() =>
            {
                unfenced.push(peer.name.clone());
                steps.push(Step::StopReceivingFrom {
                    peer: peer.name.clone(),
                });
            }
            Contact::HostUp => {
                return Err(Refusal::CannotFence {
                    peer: peer.name.clone(),
                });
            }
            Contact::Database(_) | Contact::Node(_) => steps.push(Step::FencePeer {
                peer: peer.name.clone(),
            }),
        }
    }
    // From a host that was not fenced something may have come since it was looked at.
    if let Some(channel) = me.channels.first()
        && (me.unapplied() || !unfenced.is_empty())
    {
        // Started again now, the applying thread would throw the relay log away, or stop at its error.
        let both_stopped = !channel.sql_running && channel.io == crate::IoThread::Stopped;
        if both_stopped && !limits.accept_loss {
            return Err(Refusal::BothThreadsStopped);
        }
        if both_stopped || channel.sql_errno != 0 {
            accepted_loss += me.history().transactions_behind(&me.holdings());
        } else {
            steps.push(Step::Drain);
        }
    }
    for peer in &seen.peers {
        if harvestable(&peer.contact) {
            steps.push(Step::Harvest {
                peer: peer.name.clone(),
            });
        }
    }
    Ok(TakeOver {
        steps,
        accepted_loss,
        unfenced,
        rests_on_proof: allowed.rests_on_proof,
    })
}

/// Whether this server's replication lets anybody know what is missing.
fn check_channels(me: &crate::Server, limits: Limits) -> Result<(), Refusal> {
    if me.channels.len() > 1 {
        return Err(Refusal::ManyChannels {
            count: me.channels.len(),
        });
    }
    if let Some(channel) = me.channels.first() {
        if !channel.follows_slave_pos {
            return Err(Refusal::NotGtid);
        }
        if channel.filtered {
            return Err(Refusal::Filtered);
        }
        if channel.sql_errno != 0 && !limits.accept_loss {
            return Err(Refusal::SqlError {
                errno: channel.sql_errno,
            });
        }
    }
    Ok(())
}

/// Whether the database is dead, or will be, on a host that answers. What could not be told is known once
/// the fence, which comes first, has succeeded.
pub(crate) fn harvestable(contact: &Contact) -> bool {
    match contact {
        Contact::Node(node) => matches!(
            node.database,
            Database::Down | Database::Silent | Database::NotKnown
        ),
        Contact::Silent | Contact::HostUp | Contact::Database(_) => false,
    }
}

/// What the loss policy lets pass.
#[derive(Default)]
struct Allowed {
    /// Transactions known to be missing.
    lost: u64,
    /// A peer that cannot be asked was passed for its proof alone.
    rests_on_proof: bool,
}

/// The loss policy: what may be missing here, and whether that is allowed.
fn take_over_checks(
    seen: &Observation,
    me: &crate::Server,
    limits: Limits,
) -> Result<Allowed, Refusal> {
    let mut allowed = Allowed::default();
    for peer in &seen.peers {
        if peer.server().is_some() {
            continue;
        }
        if !peer.met && !limits.open_unmet {
            return Err(Refusal::Unmet {
                peer: peer.name.clone(),
            });
        }
        // Its host answers: the rest is harvested from its binlog, or the plan fails at that step.
        if harvestable(&peer.contact) {
            continue;
        }
        if peer.nothing_is_missing() && !limits.accept_loss {
            allowed.rests_on_proof |= peer.proof.is_some_and(|proof| proof.holds());
            continue;
        }
        // The peer lacks what was acknowledged here alone, and knows it: it has not opened.
        if opened_here(seen, me) && seen.alone_at == Some(me.epoch_number()) {
            continue;
        }
        let missing = peer
            .last_primary
            .as_ref()
            .map(|last| me.holdings().transactions_behind(&last.history))
            .filter(|missing| *missing > 0);
        // What is not known may be left open at a person's word, or by the setting after a boot; what is
        // known to be missing, or may be since a known time, may not.
        let unknown_is_accepted = limits.unfenced || !peer.met;
        match missing {
            _ if limits.accept_loss => {}
            None if unknown_is_accepted && seen.stale_since.is_none() => {}
            // The site accepts so much, counted from what is known.
            Some(missing) if limits.loss > 0 && missing <= limits.loss => {}
            None if limits.loss > 0 && peer.last_primary.is_some() => {}
            Some(transactions) if limits.loss > 0 => {
                return Err(Refusal::Behind {
                    primary: peer.name.clone(),
                    transactions,
                });
            }
            at_least => {
                return Err(Refusal::MayLack {
                    peer: peer.name.clone(),
                    since: seen.stale_since.clone(),
                    at_least,
                });
            }
        }
        allowed.lost = allowed.lost.max(missing.unwrap_or_default());
    }
    Ok(allowed)
}

/// Whether this node is the last one that opened, by its own data.
pub(crate) fn opened_here(seen: &Observation, me: &crate::Server) -> bool {
    me.epoch
        .as_ref()
        .is_some_and(|epoch| epoch.primary == seen.local.name)
}
