//! `promote`: makes this node the primary, whoever asks: a person, or the audit.

use std::time::Duration;

use alerts::Severity;
use clap::Parser;
use observe::{MemoryError, SqlError};
use role::{
    Contact, Decision, Limits, Plan, Policy, PromotionKind, Refusal, decide, plan_promotion,
};
use settings::Settings;

use crate::act;
use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer, answer_step};
use crate::link::LinkError;
use crate::lock::{LockError, RoleLock};
use crate::look::{Depth, Look, look};
use crate::preflight::{self, Obstacle};
use crate::takeover::{self, TakeoverError, Took};
use crate::tell;

/// How long to wait for another change to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(
    name = "promote",
    version,
    about = "Makes this node the primary without losing what was acknowledged",
    after_help = "Examples:\n  promote --dry-run      print the preconditions and every statement, change nothing\n  \
                  promote                switch over from a living primary, or take over from a dead one\n  \
                  promote --force        open although a peer that may know more is silent\n  \
                  promote --accept-loss  the only way past the loss policy; the loss is written down\n\n\
                  Exit: 0 done or nothing to do, 1 failed and undone, 2 settings or arguments, 3 refused,\n  \
                  4 stopped past the point of no return (run it again), 5 a node is unreachable, 6 lock held"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Print the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Open although a silent peer was not met since this node's boot, or cannot be fenced
    #[arg(long)]
    force: bool,
    /// Accept the loss of transactions that only the old primary has
    #[arg(long)]
    accept_loss: bool,
}

/// Entry point of `promote`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let limits = Limits {
        loss: settings.role.loss_limit,
        accept_loss: arguments.accept_loss,
        force: arguments.force,
    };
    let cancel = match Cancel::on_signals() {
        Ok(cancel) => cancel,
        Err(exit) => return exit,
    };
    let outcome = promote(&settings, limits, arguments.dry_run, &cancel);
    report(&outcome, arguments.json);
    match outcome {
        Ok(_) => Exit::Done,
        Err(error) => error.exit(),
    }
}

/// What `promote` did.
#[derive(Debug)]
pub enum Promoted {
    /// This node is the primary already.
    Already,
    /// What would be done.
    Planned(Plan),
    /// Done, and how long it took.
    Done(Plan, Took),
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The local lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A peer's lock.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// There is no safe plan.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The decision table says no.
    #[error("{why}; {next}")]
    Decided {
        /// The reason.
        why: String,
        /// The next step.
        next: String,
    },
    /// Something on the present primary stands in the way.
    #[error("{}; or, whatever it breaks: promote --force", preflight::list(.0))]
    Obstacles(Vec<Obstacle>),
    /// The present primary's sessions cannot be looked at.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The plan failed.
    #[error(transparent)]
    Takeover(#[from] Box<TakeoverError>),
}

impl PromoteError {
    /// The documented exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Lock(LockError::Busy { .. }) | Self::Link(LinkError::Busy { .. }) => Exit::Locked,
            Self::Link(
                LinkError::Process { .. } | LinkError::Answer { .. } | LinkError::Failed { .. },
            )
            | Self::Refused(Refusal::CannotFence { .. } | Refusal::Unmet { .. }) => {
                Exit::Unreachable
            }
            Self::Refused(_) | Self::Decided { .. } | Self::Obstacles(_) => Exit::Refused,
            Self::Lock(LockError::Io { .. }) | Self::Memory(_) | Self::Sql(_) => Exit::Undone,
            Self::Takeover(error) => match **error {
                TakeoverError::Undone { .. } => Exit::Undone,
                TakeoverError::NotUndone { .. } | TakeoverError::Forward { .. } => Exit::Forward,
            },
        }
    }
}

/// Locks, looks, plans and executes, at a person's word.
pub fn promote(
    settings: &Settings,
    limits: Limits,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Promoted, PromoteError> {
    let outcome = promote_locked(settings, limits, dry_run, cancel);
    if let Err(PromoteError::Takeover(_)) = &outcome {
        // The audit was kept out by the lock, and nobody may be open now.
        act::start_audit();
    }
    outcome
}

fn promote_locked(
    settings: &Settings,
    limits: Limits,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Promoted, PromoteError> {
    let _lock = (!dry_run)
        .then(|| RoleLock::take(settings, LOCK_PATIENCE))
        .transpose()?;
    let mut seen = look(settings, Depth::Nodes)?;
    let policy = Policy {
        promote_unmet_after_boot: limits.force || settings.role.promote_unmet_after_boot,
        // A person's word counts more than the person's flag.
        maintenance: false,
    };
    // A person's wish replaces the VIP: ask the table what an entitled node would do.
    let mut wish = seen.seen.clone();
    wish.local.vip = true;
    wish.local.keepalived = true;
    let kind = match decide(&wish, policy) {
        Decision::Promote(_) => PromotionKind::TakeOver,
        Decision::SwitchOver { from } => PromotionKind::SwitchOver { from },
        Decision::Stay(_)
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSync(_)
            if wish.local.database.writable() =>
        {
            return Ok(Promoted::Already);
        }
        Decision::Refuse { why, next } => {
            // A living primary that holds the VIP is exactly what a person's switch-over starts from; with
            // --force, too: to take over from it would lose what it has acknowledged and not sent yet.
            match seen
                .seen
                .peers
                .iter()
                .find(|p| p.writable() && p.entitled() == Some(true))
            {
                Some(primary) => PromotionKind::SwitchOver {
                    from: primary.name.clone(),
                },
                None if limits.force || limits.accept_loss => PromotionKind::TakeOver,
                None => {
                    return Err(PromoteError::Decided {
                        why: why.to_owned(),
                        next: next.to_owned(),
                    });
                }
            }
        }
        other => return Err(not_now(&other)),
    };
    if let PromotionKind::SwitchOver { from } = &kind {
        // The audit does not ask: there the VIP has moved already, and waiting helps nobody.
        let found = preflight::obstacles(settings, &mut seen, from)?;
        if !found.is_empty() && !limits.force {
            return Err(PromoteError::Obstacles(found));
        }
    }
    carry_out(settings, &mut seen, kind, limits, dry_run, cancel)
}

fn not_now(decision: &Decision) -> PromoteError {
    let (why, next) = match decision {
        Decision::Wait(why) | Decision::Stay(why) | Decision::GiveUpVip(why) => {
            ((*why).to_owned(), "nothing was changed")
        }
        Decision::CatchUp { from } => (
            format!("{from} has newer data and is read-only"),
            "run promote there, or wait until the audit here has caught up",
        ),
        Decision::Fence { why, .. } => ((*why).to_owned(), "the audit fences this node"),
        Decision::FenceAll { .. } => (
            "two primaries at the same epoch".to_owned(),
            "the audit fences both",
        ),
        Decision::FencePeers { .. } => (
            "a peer writes at a lower epoch".to_owned(),
            "the audit fences it",
        ),
        Decision::KillLocal => (
            "the local database does not answer".to_owned(),
            "systemctl status mariadb",
        ),
        Decision::RemoveAddress => (
            "the VIP is here without Keepalived".to_owned(),
            "systemctl start keepalived",
        ),
        Decision::Attach { to } => (format!("{to} is the primary"), "nothing was changed"),
        Decision::Diverged { from } => (
            format!("this node has transactions that {from} never had"),
            "failback --rejoin-only",
        ),
        Decision::Refuse { why, next } => ((*why).to_owned(), *next),
        Decision::Promote(_)
        | Decision::SwitchOver { .. }
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSync(_) => ("nothing to do".to_owned(), "nothing was changed"),
    };
    PromoteError::Decided {
        why,
        next: next.to_owned(),
    }
}

/// Plans from what was seen, takes the peers' locks, and executes. The local lock is held.
pub fn carry_out(
    settings: &Settings,
    seen: &mut Look,
    kind: PromotionKind,
    limits: Limits,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Promoted, PromoteError> {
    let plan = plan_promotion(&seen.seen, kind, limits)?;
    if dry_run {
        return Ok(Promoted::Planned(plan));
    }
    for peer in &seen.seen.peers {
        if peer.contact == Contact::Silent {
            continue;
        }
        match seen.links.get_mut(&peer.name) {
            Some(link) => link.lock(Duration::from_secs(2))?,
            None if limits.force => {
                log::warn!("{}: its role lock was not taken (--force)", peer.name);
            }
            None => {
                return Err(Refusal::CannotFence {
                    peer: peer.name.clone(),
                }
                .into());
            }
        }
    }
    let took = takeover::execute(settings, seen, &plan, limits.accept_loss, cancel)?;
    // A switch-over has fetched the VIP.
    let entitled = observe::vip_present(settings) && observe::keepalived_running();
    takeover::mark_entitled(settings, entitled);
    let how = match &plan.kind {
        PromotionKind::TakeOver => "took over".to_owned(),
        PromotionKind::SwitchOver { from } => format!("took over from {from} in a switch-over"),
    };
    // The one just claimed. Without it two promotions may have one text, which folds their alerts.
    let epoch = seen.memory.highest_epoch;
    let loss = if plan.accepted_loss > 0 {
        format!(
            "; about {} transactions of the old primary are lost, as accepted",
            plan.accepted_loss
        )
    } else {
        String::new()
    };
    tell::alert(
        settings,
        "promoted",
        Severity::Warning,
        &format!(
            "{} {how} and is the primary of epoch {epoch} after {took}{loss}",
            plan.target
        ),
    );
    Ok(Promoted::Done(plan, took))
}

fn report(outcome: &Result<Promoted, PromoteError>, json: bool) {
    if json {
        let value = match outcome {
            Ok(Promoted::Already) => serde_json::json!({"outcome": "already-primary"}),
            Ok(Promoted::Planned(plan)) => serde_json::json!({"outcome": "planned", "plan": plan}),
            Ok(Promoted::Done(plan, took)) => {
                serde_json::json!({
                    "outcome": "done", "plan": plan, "seconds": took.whole.as_secs_f64(),
                    "frozen_seconds": took.frozen.map(|frozen| frozen.as_secs_f64()),
                })
            }
            Err(error) => {
                serde_json::json!({"outcome": "failed", "exit": error.exit().code(), "why": error.to_string()})
            }
        };
        answer(&value.to_string());
        return;
    }
    match outcome {
        Ok(Promoted::Already) => answer("this node is the primary already; nothing to do"),
        Ok(Promoted::Planned(plan)) => {
            for step in &plan.steps {
                answer_step(step);
            }
        }
        Ok(Promoted::Done(plan, took)) => {
            answer(&format!("{} is the primary after {took}", plan.target));
        }
        Err(error) => log::error!("{error}"),
    }
}
