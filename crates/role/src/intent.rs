//! Who asks for a change of roles, and what follows from that: the policy, the limits and the decision.
//!
//! This is the only home of policy. Programs say what they want as an [`Intent`]; none of them changes an
//! observation or overrides a decision by itself.

use serde::{Deserialize, Serialize};

use crate::{
    Database, Decision, Known, Limits, NodeView, Observation, Policy, PromotionKind, Refusal,
    decide, plan_promotion,
};

/// What the settings and the operator's flag say, whoever asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// `role.promote_unmet_after_boot`
    pub promote_unmet_after_boot: bool,
    /// `role.loss_limit`: transactions that a take-over may lose.
    pub loss_limit: u64,
    /// The maintenance flag is set on this node.
    pub maintenance: bool,
}

/// Who asks, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// The audit: what this node does by itself.
    Audit,
    /// A person wants this node to be the primary.
    Promote {
        /// `--force`
        force: bool,
        /// `--accept-loss`
        accept_loss: bool,
    },
    /// This node, in order, takes the primary's place: the last part of `failback`.
    Failback,
    /// A person or a unit wants this node to follow the primary: the first part of `failback`.
    Rejoin,
    /// A switch-over to another node broke off: would this node, closed for it, be left open?
    Reopening,
}

impl Intent {
    /// What the table may assume.
    pub fn policy(self, rules: Rules) -> Policy {
        Policy {
            promote_unmet_after_boot: match self {
                Self::Promote { force, .. } => force || rules.promote_unmet_after_boot,
                Self::Audit | Self::Reopening | Self::Failback => rules.promote_unmet_after_boot,
                Self::Rejoin => false,
            },
            maintenance: match self {
                Self::Audit => rules.maintenance,
                // A person's word counts more than the person's flag, and what a broken switch-over
                // finds is the state before it.
                Self::Promote { .. } | Self::Failback | Self::Rejoin | Self::Reopening => false,
            },
        }
    }

    /// What a promotion may lose or leave out.
    pub fn limits(self, rules: Rules) -> Limits {
        match self {
            Self::Promote { force, accept_loss } => Limits {
                loss: rules.loss_limit,
                accept_loss,
                open_unmet: force,
                unfenced: force,
            },
            Self::Audit => Limits {
                loss: rules.loss_limit,
                accept_loss: false,
                open_unmet: rules.promote_unmet_after_boot,
                unfenced: false,
            },
            Self::Failback | Self::Rejoin | Self::Reopening => Limits::default(),
        }
    }

    /// What the table answers.
    pub fn decide(self, seen: &Observation, rules: Rules) -> Decision {
        let policy = self.policy(rules);
        match self {
            Self::Audit | Self::Rejoin => decide(seen, policy),
            // A person's wish replaces the VIP: what would an entitled node do?
            Self::Promote { .. } | Self::Failback => decide(&entitled(seen), policy),
            Self::Reopening => decide(&open(seen), policy),
        }
    }
}

fn entitled(seen: &Observation) -> Observation {
    Observation {
        local: NodeView {
            vip: Known::Yes,
            keepalived: Known::Yes,
            ..seen.local.clone()
        },
        ..seen.clone()
    }
}

fn open(seen: &Observation) -> Observation {
    let mut seen = seen.clone();
    if let Database::Answering(server) = &mut seen.local.database {
        server.writable = true;
    }
    seen
}

/// Why this node would not be opened if the VIP were here, where it is its own data that forbid it: no answer of a
/// peer would change that, so there is no point in its taking the VIP again and again to find it out.
pub fn forbidden_by_own_data(seen: &Observation, rules: Rules) -> Option<Refusal> {
    refusal(Intent::Audit, &entitled(seen), rules).filter(Refusal::own_data)
}

/// Why what the table answers is not carried out, where it is a take-over and there is no safe plan for it.
pub fn refusal(intent: Intent, seen: &Observation, rules: Rules) -> Option<Refusal> {
    match intent.decide(seen, rules) {
        Decision::Promote(_) => {
            plan_promotion(seen, PromotionKind::TakeOver, intent.limits(rules)).err()
        }
        _ => None,
    }
}

/// What becomes of a wish to be the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promotion {
    /// This node is it already.
    Already,
    /// In this way.
    By(PromotionKind),
    /// Not now, and why.
    Declined {
        /// The reason.
        why: String,
        /// The next step.
        next: String,
    },
}

/// What an intent to make this node the primary comes to: `promote`, or `failback` at its end.
pub fn promotion(intent: Intent, seen: &Observation, rules: Rules) -> Promotion {
    let decision = intent.decide(seen, rules);
    match decision {
        Decision::Promote(_) => Promotion::By(PromotionKind::TakeOver),
        Decision::SwitchOver { from } => Promotion::By(PromotionKind::SwitchOver { from }),
        Decision::Stay(_)
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSyncOff
            if seen.local.database.writable() =>
        {
            Promotion::Already
        }
        Decision::Refuse { why, next } => {
            let limits = intent.limits(rules);
            let primary = seen
                .peers
                .iter()
                .find(|p| p.writable() && p.entitled() == Known::Yes);
            match primary {
                // A living primary that holds the VIP is exactly what a person's switch-over starts from; with
                // --force, too: to take over from it would lose what it has acknowledged and not sent yet.
                Some(primary) => Promotion::By(PromotionKind::SwitchOver {
                    from: primary.name.clone(),
                }),
                None if limits.unfenced || limits.accept_loss => {
                    Promotion::By(PromotionKind::TakeOver)
                }
                None => declined(why, next),
            }
        }
        Decision::Wait(why) | Decision::Stay(why) | Decision::GiveUpVip(why) => {
            declined(why, "nothing was changed")
        }
        Decision::CatchUp { from } => declined(
            format!("{from} has newer data and is read-only"),
            "run promote there, or wait until the audit here has caught up",
        ),
        Decision::Fence { why, .. } => declined(why, "the audit fences this node"),
        Decision::FenceAll { .. } => {
            declined("two primaries at the same epoch", "the audit fences both")
        }
        Decision::FencePeers { .. } => {
            declined("a peer writes at a lower epoch", "the audit fences it")
        }
        Decision::KillLocal => declined(
            "the local database does not answer",
            "systemctl status mariadb",
        ),
        Decision::RemoveAddress => declined(
            "the VIP is here without Keepalived",
            "systemctl start keepalived",
        ),
        Decision::Attach { to } => declined(format!("{to} is the primary"), "nothing was changed"),
        Decision::Diverged { from } => declined(
            format!("this node has transactions that {from} never had"),
            "failback --rejoin-only",
        ),
        Decision::ClaimEpoch | Decision::ForgetChannel | Decision::SemiSyncOff => {
            declined("nothing to do", "nothing was changed")
        }
    }
}

fn declined(why: impl Into<String>, next: impl Into<String>) -> Promotion {
    Promotion::Declined {
        why: why.into(),
        next: next.into(),
    }
}

/// How this node can follow the primary that is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoin {
    /// It does, or nothing needs to be done for it here.
    Follows,
    /// With its own data.
    Attach,
    /// What the primary never had is saved and taken back first.
    TakeBack,
    /// Not with its own data as they are.
    Refused {
        /// The reason.
        why: String,
        /// The next step; none where the database does not answer, which a person looks at first.
        next: Option<String>,
        /// A copy of the primary in their place would do.
        copy_helps: bool,
    },
}

/// How this node follows the primary at a person's word.
pub fn rejoin(seen: &Observation, rules: Rules) -> Rejoin {
    let copy_helps = useless(&seen.local.database);
    if seen.local.database.server().is_none() {
        return Rejoin::Refused {
            why: "the local database does not answer".to_owned(),
            next: None,
            copy_helps,
        };
    }
    match Intent::Rejoin.decide(seen, rules) {
        Decision::Attach { .. } => Rejoin::Attach,
        Decision::Diverged { .. } => Rejoin::TakeBack,
        Decision::Refuse { why, next } => Rejoin::Refused {
            why: why.to_owned(),
            next: Some(next.to_owned()),
            copy_helps,
        },
        Decision::Stay(_)
        | Decision::Wait(_)
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSyncOff
        | Decision::Promote(_)
        | Decision::SwitchOver { .. }
        | Decision::CatchUp { .. }
        | Decision::Fence { .. }
        | Decision::FenceAll { .. }
        | Decision::FencePeers { .. }
        | Decision::KillLocal
        | Decision::GiveUpVip(_)
        | Decision::RemoveAddress => Rejoin::Follows,
    }
}

/// Whether this node's data are of no use as they are: its server is down, and not just slow or starting, or
/// replication has stopped at an error. Nothing else that is refused says so.
fn useless(database: &Database) -> bool {
    match database {
        Database::Down => true,
        Database::Answering(me) => me.channels.iter().any(|c| c.sql_errno != 0),
        Database::Starting | Database::Silent | Database::NotKnown => false,
    }
}

/// Whether this node, closed for a switch-over that broke off, may be opened again alone: the table would
/// leave it open.
pub fn may_reopen(seen: &Observation, rules: Rules) -> bool {
    seen.local.database.server().is_some()
        // The right to write may have been given away.
        && seen.unread.is_none()
        && matches!(
            Intent::Reopening.decide(seen, rules),
            Decision::Stay(_) | Decision::Wait(_) | Decision::SemiSyncOff
        )
}

impl Refusal {
    /// Whether it is this node's own data that forbid the promotion: such a node does not keep the VIP.
    pub fn own_data(&self) -> bool {
        match self {
            Self::Diverged { .. }
            | Self::Behind { .. }
            | Self::SqlError { .. }
            | Self::StaleEpoch { .. }
            | Self::Filtered
            | Self::NotGtid
            | Self::ManyChannels { .. } => true,
            Self::LocalDatabaseDown
            | Self::BothThreadsStopped
            | Self::CannotFence { .. }
            // It serves reads, and takes no turn with a peer that may return: it would be the better one.
            | Self::MayLack { .. }
            | Self::Unmet { .. }
            | Self::NotPrimary { .. } => false,
        }
    }
}
