//! The audit: looks, decides, acts. Started by the timer and by every hook.

use std::fs;
use std::time::Duration;

use alerts::Severity;
use clap::Parser;
use observe::{NodeRole, Session};
use role::{Decision, Limits, Policy, PromotionKind, decide};
use settings::Settings;

use crate::act;
use crate::automatic;
use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer};
use crate::diverged::{self, DivergedError, Settled};
use crate::lock::{LockError, RoleLock};
use crate::look::{Depth, Look, look, look_unless};
use crate::promote::{PromoteError, carry_out};
use crate::{node_role, relay_log, replicas, statements, takeover, tell, track};

/// Causes that end by themselves within a few ticks are alerted only after this many seconds.
const PATIENCE_SECONDS: f64 = 8.0;

/// Keepalived obeys its track file within milliseconds; a tick comes every two seconds.
const HEED: Duration = Duration::from_millis(1500);
/// Keepalived removes its addresses and tells the others before it ends.
const KEEPALIVED_STOP: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(
    name = "audit",
    version,
    about = "Looks at the nodes, decides who may write, and acts; run by a timer and by the hooks",
    after_help = "Examples:\n  audit             one look, and what follows from it\n  audit --dry-run   say what would be done\n\n\
                  Exit: 0 looked and acted, 1 an action failed (the next tick tries again), 2 settings"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Entry point of `audit`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if arguments.dry_run {
        return match look(&settings, Depth::Nodes) {
            Ok(seen) => {
                answer(&format!("{:?}", decide(&seen.seen, policy(&settings))));
                Exit::Done
            }
            Err(error) => {
                log::error!("{error}");
                Exit::Undone
            }
        };
    }
    // Hooks that fire while this runs only raise the number: look again until it stands still.
    let mut exit = Exit::Done;
    loop {
        let before = hook_sequence(&settings);
        if let Err(error) = tick(&settings, || hook_sequence(&settings) != before) {
            log::error!("{error}");
            exit = Exit::Undone;
        }
        if hook_sequence(&settings) == before {
            return exit;
        }
    }
}

fn hook_sequence(settings: &Settings) -> Option<String> {
    fs::read_to_string(settings.paths.run.join("hook-sequence")).ok()
}

fn policy(settings: &Settings) -> Policy {
    Policy {
        promote_unmet_after_boot: settings.role.promote_unmet_after_boot,
        maintenance: observe::maintenance(settings).is_some(),
    }
}

/// Why a tick could not act.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Memory(#[from] observe::MemoryError),
    #[error(transparent)]
    Promote(Box<PromoteError>),
    #[error(transparent)]
    Act(#[from] act::ActError),
    #[error(transparent)]
    Sql(#[from] observe::SqlError),
    #[error(transparent)]
    Track(#[from] track::TrackError),
    #[error(transparent)]
    Link(#[from] crate::link::LinkError),
    #[error(transparent)]
    Diverged(#[from] DivergedError),
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    #[error("{0}")]
    Gone(&'static str),
}

impl From<PromoteError> for AuditError {
    fn from(error: PromoteError) -> Self {
        Self::Promote(Box::new(error))
    }
}

/// One look and what follows. The steady state needs no lock and no forced command.
fn tick(settings: &Settings, hook_fired: impl Fn() -> bool) -> Result<(), AuditError> {
    // With the VIP here and the database closed every moment counts: go straight to the whole look.
    let urgent = observe::vip_present(settings) && !locally_writable(settings);
    if !urgent {
        let Some(mut glance) = look_unless(settings, Depth::Databases, hook_fired)? else {
            // The loop comes back at once.
            return Ok(());
        };
        replicas::end_silent(settings, &mut glance);
        let decision = decide(&glance.seen, policy(settings));
        if let Decision::Stay(_) | Decision::Wait(_) = decision {
            refresh_role(settings, &glance);
            relay_log::pace(settings, &mut glance)?;
            settle(settings, &mut glance, &decision, None)?;
            return Ok(automatic::consider(settings, &glance)?);
        }
    }
    let _lock = RoleLock::take(settings, Duration::from_secs(1))?;
    let mut seen = look(settings, Depth::Nodes)?;
    let decision = decide(&seen.seen, policy(settings));
    log::debug!("{:?} -> {decision:?}", seen.seen);
    if !tells_the_role(&decision) {
        let database = &seen.seen.local.database;
        node_role::follow(settings, database, seen.memory.highest_epoch);
    }
    let acted = act_on(settings, &mut seen, &decision);
    match &acted {
        Ok(needed) => settle(settings, &mut seen, &decision, needed.as_deref())?,
        Err(error) => {
            tell::verdicts(settings, &seen.seen);
            tell::cause(settings, Some((&error.to_string(), 0.0)));
        }
    }
    acted.map(drop)
}

/// The steady state needs no role lock, but without it a change may be under way that this look was
/// too early to see. Whoever holds the lock tells the role.
fn refresh_role(settings: &Settings, glance: &Look) {
    let database = &glance.seen.local.database;
    if node_role::is_new(settings, database, glance.memory.highest_epoch)
        && let Ok(_lock) = RoleLock::take(settings, Duration::ZERO)
    {
        node_role::look_again(settings);
    }
}

/// Whether acting on the decision tells a role that is not what the database says before it.
fn tells_the_role(decision: &Decision) -> bool {
    match decision {
        // The epoch of a new primary is not written yet: the old one is still another node's.
        Decision::ClaimEpoch
        | Decision::Fence { .. }
        | Decision::FenceAll { .. }
        | Decision::KillLocal => true,
        // A promotion begins as a standby.
        Decision::Promote(_)
        | Decision::SwitchOver { .. }
        | Decision::Stay(_)
        | Decision::Wait(_)
        | Decision::ForgetChannel
        | Decision::SemiSync(_)
        | Decision::CatchUp { .. }
        | Decision::Attach { .. }
        | Decision::Diverged { .. }
        | Decision::FencePeers { .. }
        | Decision::GiveUpVip(_)
        | Decision::RemoveAddress
        | Decision::Refuse { .. } => false,
    }
}

fn locally_writable(settings: &Settings) -> bool {
    Session::connect(settings, observe::Target::Local, settings.checks.deadline)
        .and_then(|mut session| session.row::<bool>("SELECT @@read_only"))
        .is_ok_and(|read_only| !read_only)
}

/// A node that follows the one that it granted the right to write to needs no note of it any more: a
/// switch-over that was killed after its opening leaves it, and with it the next failover would be refused.
fn forget_grant(settings: &Settings, seen: &mut Look) -> Result<(), AuditError> {
    let local = seen.seen.local.database.server();
    let receives = local.is_some_and(|me| !me.writable && me.receives());
    let primary = seen.seen.primary().map(|(peer, _)| &peer.name);
    let follows = |granted: &String| receives && primary == Some(granted);
    if seen.memory.granted_to.as_ref().is_some_and(follows) {
        seen.memory.grant(settings, None)?;
        tell::failover_log(
            settings,
            "follows the node that it gave the right to write to",
        );
    }
    Ok(())
}

/// Brings the files that others read up to date, and alerts what needs a person: what the decision says,
/// or what acting on it has found.
fn settle(
    settings: &Settings,
    seen: &mut Look,
    decision: &Decision,
    needed: Option<&str>,
) -> Result<(), AuditError> {
    tell::verdicts(settings, &seen.seen);
    forget_grant(settings, seen)?;
    // A promotion has just marked this node itself; what was seen before it is old.
    if !matches!(decision, Decision::Promote(_) | Decision::SwitchOver { .. }) {
        let primary = seen.seen.local.database.writable() && seen.seen.local.entitled();
        track::set_entitled(settings, primary)?;
    }
    let text;
    let cause = match decision {
        Decision::Refuse { why, next } => {
            text = format!("{why}; next: {next}");
            Some((text.as_str(), 0.0))
        }
        Decision::Wait(why) => Some((*why, PATIENCE_SECONDS)),
        Decision::Stay(_)
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSync(_)
        | Decision::Promote(_)
        | Decision::SwitchOver { .. }
        | Decision::CatchUp { .. }
        | Decision::Attach { .. }
        | Decision::Diverged { .. }
        | Decision::Fence { .. }
        | Decision::FenceAll { .. }
        | Decision::FencePeers { .. }
        | Decision::KillLocal
        | Decision::GiveUpVip(_)
        | Decision::RemoveAddress => needed.map(|text| (text, 0.0)),
    };
    tell::cause(settings, cause);
    // A VIP given up for a cause that is gone: take part again.
    let local = &seen.seen.local;
    if track::standby(settings)
        && matches!(decision, Decision::Stay(_) | Decision::Wait(_))
        && (!local.entitled() || local.database.writable())
    {
        track::set_standby(settings, false)?;
        tell::failover_log(settings, "takes part in VRRP again");
    }
    Ok(())
}

/// Gives what a person must do when acting was not enough.
fn act_on(
    settings: &Settings,
    seen: &mut Look,
    decision: &Decision,
) -> Result<Option<String>, AuditError> {
    if let Decision::Diverged { from } = decision {
        return settle_divergence(settings, seen, from);
    }
    change(settings, seen, decision).map(|()| None)
}

/// Saves what only this node has, and takes it back; where that cannot be, a rebuild is started, or a person
/// is asked for it.
fn settle_divergence(
    settings: &Settings,
    seen: &mut Look,
    from: &str,
) -> Result<Option<String>, AuditError> {
    let (Some(primary), Some((_, server))) = (takeover::node(settings, from), seen.seen.primary())
    else {
        return Err(AuditError::Gone("the primary is not in the settings"));
    };
    let why = match diverged::settle(settings, primary, server)? {
        Settled::TakenBack { report } => {
            let text = format!(
                "what {from} never had is taken back, see {}; replicates from {from}",
                report.display()
            );
            tell::alert(settings, "taken-back", Severity::Warning, &text);
            return Ok(None);
        }
        Settled::NeedsRebuild(why) => why,
    };
    if settings.failback.rebuild_automatic {
        automatic::start_rebuild(settings)?;
        return Ok(Some(format!("{why}; a rebuild from {from} runs")));
    }
    Ok(Some(format!(
        "{why}; next: failback --rejoin-only --rebuild"
    )))
}

fn change(settings: &Settings, seen: &mut Look, decision: &Decision) -> Result<(), AuditError> {
    let limits = Limits {
        loss: settings.role.loss_limit,
        accept_loss: false,
        force: settings.role.promote_unmet_after_boot,
    };
    let never = Cancel::default();
    match decision {
        Decision::Stay(_)
        | Decision::Wait(_)
        | Decision::Refuse { .. }
        | Decision::Diverged { .. } => Ok(()),
        Decision::ClaimEpoch => {
            let epoch = seen.memory.highest_epoch + 1;
            let session = local(seen)?;
            statements::claim_epoch(session, settings, epoch)?;
            seen.memory.saw_epoch(settings, epoch)?;
            node_role::write(settings, NodeRole::Active, epoch);
            tell::failover_log(
                settings,
                &format!("wrote epoch {epoch}, which an interrupted change had left out"),
            );
            Ok(())
        }
        Decision::ForgetChannel => {
            let session = local(seen)?;
            session.execute("STOP ALL SLAVES")?;
            session.execute("RESET SLAVE ALL")?;
            tell::failover_log(
                settings,
                "removed the replication channel that an interrupted change had left",
            );
            Ok(())
        }
        Decision::SemiSync(on) => semi_sync(settings, seen, *on),
        Decision::Promote(why) => {
            log::info!("promoting: {why}");
            let promoted = carry_out(
                settings,
                seen,
                PromotionKind::TakeOver,
                limits,
                false,
                &never,
            );
            give_up_after_refusal(settings, promoted.map(drop))
        }
        Decision::SwitchOver { from } => {
            let kind = PromotionKind::SwitchOver { from: from.clone() };
            carry_out(settings, seen, kind, limits, false, &never)?;
            Ok(())
        }
        Decision::CatchUp { from } | Decision::Attach { to: from } => {
            let primary = takeover::node(settings, from)
                .ok_or(AuditError::Gone("the peer is not in the settings"))?;
            statements::attach(local(seen)?, settings, primary)?;
            tell::failover_log(settings, &format!("replicates from {from}"));
            Ok(())
        }
        Decision::Fence { give_up_vip, why } => {
            // The fence waits for nothing else, and the VIP goes whatever became of it.
            let fenced = act::fence_local(settings);
            if *give_up_vip {
                leave_vip(settings)?;
            }
            fenced?;
            tell::alert(
                settings,
                "fenced",
                Severity::Critical,
                &format!("this database is closed: {why}"),
            );
            Ok(())
        }
        Decision::FenceAll { .. } | Decision::FencePeers { .. } => {
            end_second_primary(settings, seen, decision)
        }
        Decision::KillLocal => {
            act::kill_local(settings)?;
            tell::alert(
                settings,
                "fenced",
                Severity::Critical,
                "the local database did not answer while another node takes over: killed, it starts again read-only",
            );
            Ok(())
        }
        Decision::GiveUpVip(why) => {
            leave_vip(settings)?;
            let text = format!("the VIP is left to the others: {why}");
            tell::alert(settings, "vip-given-up", Severity::Warning, &text);
            Ok(())
        }
        Decision::RemoveAddress => {
            act::remove_address(settings)?;
            let text = "the VIP's address was here without a running Keepalived and is removed";
            tell::alert(settings, "address-removed", Severity::Warning, text);
            Ok(())
        }
    }
}

/// Two nodes are writable: closes the peers, and this node too when nobody can tell who is newer.
fn end_second_primary(
    settings: &Settings,
    seen: &mut Look,
    decision: &Decision,
) -> Result<(), AuditError> {
    let (peers, text) = match decision {
        Decision::FenceAll { peers } => {
            act::fence_local(settings)?;
            let text = "two primaries at the same epoch: every one is closed. Compare their data, \
                        then on the right one: promote --force";
            (peers, text.to_owned())
        }
        Decision::FencePeers { peers } => (
            peers,
            format!("{} wrote at an older epoch and is closed", peers.join(", ")),
        ),
        _ => return Ok(()),
    };
    let fenced = fence_peers(seen, peers);
    tell::alert(settings, "two-primaries", Severity::Critical, &text);
    fenced
}

/// Leaves the VIP to the others: by the track file, which Keepalived obeys at once. One that has not obeyed it
/// for longer than a tick does not load it, as with the original's keepalived.conf, and is stopped: clients that
/// find a closed database are no better off, and nobody else could serve them.
fn leave_vip(settings: &Settings) -> Result<(), AuditError> {
    let unheeded = track::standby_age(settings).is_some_and(|age| age > HEED);
    if !(unheeded && observe::vip_present(settings)) {
        return Ok(track::set_standby(settings, true)?);
    }
    act::systemctl(&["stop", "keepalived.service"], KEEPALIVED_STOP)?;
    let text = "Keepalived does not heed the standby track file, so it is stopped here to leave the VIP to the others; \
                once this node is in order: systemctl start keepalived";
    tell::alert(settings, "keepalived-stopped", Severity::Critical, text);
    Ok(())
}

/// A node whose own data forbid the promotion does not keep the VIP.
fn give_up_after_refusal(
    settings: &Settings,
    promoted: Result<(), PromoteError>,
) -> Result<(), AuditError> {
    if let Err(PromoteError::Refused(refusal)) = &promoted {
        let own_data = match refusal {
            role::Refusal::Diverged { .. }
            | role::Refusal::Behind { .. }
            | role::Refusal::SqlError { .. }
            | role::Refusal::StaleEpoch { .. }
            | role::Refusal::Filtered
            | role::Refusal::NotGtid
            | role::Refusal::ManyChannels { .. } => true,
            role::Refusal::LocalDatabaseDown
            | role::Refusal::BothThreadsStopped
            | role::Refusal::CannotFence { .. }
            | role::Refusal::Unmet { .. }
            | role::Refusal::NotPrimary { .. } => false,
        };
        if own_data {
            leave_vip(settings)?;
        }
    }
    Ok(promoted?)
}

fn fence_peers(seen: &mut Look, peers: &[String]) -> Result<(), AuditError> {
    for peer in peers {
        if let Some(link) = seen.links.get_mut(peer) {
            link.fence()?;
        } else if let Some(session) = seen.sessions.get_mut(peer) {
            statements::close(session)?;
        } else {
            return Err(AuditError::Gone(
                "a second primary cannot be reached to be fenced",
            ));
        }
    }
    Ok(())
}

fn semi_sync(settings: &Settings, seen: &mut Look, on: bool) -> Result<(), AuditError> {
    let session = local(seen)?;
    statements::set_semi_sync(session, settings, on)?;
    if on {
        // Its status turns on with the first commit that a replica acknowledges.
        statements::beat(session, settings)?;
        tell::failover_log(
            settings,
            "a replica is connected: commits wait for it from now on",
        );
    } else if seen.seen.local.database.writable() {
        tell::alert(
            settings,
            "no-replica",
            Severity::Warning,
            "no replica is connected: commits are acknowledged with one copy only",
        );
    }
    Ok(())
}

fn local(seen: &mut Look) -> Result<&mut Session, AuditError> {
    seen.local
        .as_mut()
        .ok_or(AuditError::Gone("the local database went away"))
}
