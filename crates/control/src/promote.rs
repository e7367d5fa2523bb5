//! `promote`: makes this node the primary, whoever asks: a person, or the audit.

use std::time::Duration;

use alerts::Severity;
use clap::Parser;
use nodefiles::role_lock::{LockError, RoleLock};
use observe::SqlError;
use role::{
    Contact, Intent, Known, Limits, Plan, Promotion, PromotionKind, Refusal, plan_promotion,
};
use settings::Settings;

use crate::act;
use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer, answer_step};
use crate::link::LinkError;
use crate::look::{Depth, Look, look, rules};
use crate::preflight::{self, Obstacle};
use crate::step_log::StepLog;
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
    let intent = Intent::Promote {
        force: arguments.force,
        accept_loss: arguments.accept_loss,
    };
    let cancel = match Cancel::on_signals() {
        Ok(cancel) => cancel,
        Err(exit) => return exit,
    };
    let outcome = promote(&settings, intent, arguments.dry_run, &cancel);
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
                LinkError::Process { .. }
                | LinkError::Answer { .. }
                | LinkError::Failed { .. }
                | LinkError::Unsupported { .. },
            )
            | Self::Refused(Refusal::CannotFence { .. } | Refusal::Unmet { .. }) => {
                Exit::Unreachable
            }
            Self::Refused(_)
            | Self::Decided { .. }
            | Self::Obstacles(_)
            | Self::Link(LinkError::Versions(_)) => Exit::Refused,
            Self::Lock(LockError::Io { .. }) | Self::Sql(_) => Exit::Undone,
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
    intent: Intent,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Promoted, PromoteError> {
    let outcome = promote_locked(settings, intent, dry_run, cancel);
    if let Err(PromoteError::Takeover(_)) = &outcome {
        // The audit was kept out by the lock, and nobody may be open now.
        act::start_audit();
    }
    outcome
}

fn promote_locked(
    settings: &Settings,
    intent: Intent,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Promoted, PromoteError> {
    let _lock = (!dry_run)
        .then(|| RoleLock::take(settings, LOCK_PATIENCE))
        .transpose()?;
    let mut seen = look(settings, Depth::Nodes);
    let limits = intent.limits(rules(settings));
    let kind = match role::promotion(intent, &seen.seen, rules(settings)) {
        Promotion::Already => return Ok(Promoted::Already),
        Promotion::By(kind) => kind,
        Promotion::Declined { why, next } => return Err(PromoteError::Decided { why, next }),
    };
    if let PromotionKind::SwitchOver { from } = &kind {
        // The audit does not ask: there the VIP has moved already, and waiting helps nobody.
        if let Some(link) = seen.links.get_mut(from) {
            link.fit_for_planned_change()?;
        }
        let found = preflight::obstacles(settings, &mut seen, from)?;
        if !found.is_empty() && !limits.unfenced {
            return Err(PromoteError::Obstacles(found));
        }
    }
    carry_out(settings, &mut seen, kind, limits, dry_run, cancel)
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
            // A proof stands in for its lock and its fence.
            None if plan.unfenced.contains(&peer.name) => {}
            None if limits.unfenced => {
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
    let begun = match &plan.kind {
        PromotionKind::TakeOver => "taking over".to_owned(),
        PromotionKind::SwitchOver { from } => format!("switch-over from {from}"),
    };
    let mut steps = StepLog::begin(settings, &begun);
    let took = takeover::execute(
        settings,
        seen,
        &plan,
        limits.accept_loss,
        cancel,
        &mut steps,
    )
    .inspect_err(|error| steps.say(&error.to_string()))?;
    // A switch-over has fetched the VIP.
    match observe::vip_present(settings).and(observe::keepalived_running()) {
        // The audit marks it as soon as it can be told.
        Known::NotKnown => {}
        entitled => takeover::mark_entitled(settings, entitled == Known::Yes),
    }
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
    let text = format!(
        "{} {how} and is the primary of epoch {epoch} after {took}{loss}",
        plan.target
    );
    steps.say(&text);
    tell::alert(settings, "promoted", Severity::Warning, &text);
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
