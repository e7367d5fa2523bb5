//! The audit: looks, decides, acts. Started by the timer and by every hook.

use std::path::Path;
use std::time::{Duration, Instant};

use alerts::Severity;
use clap::Parser;
use nodefiles::cause::Topic;
use nodefiles::role_lock::{LockError, RoleLock};
use nodefiles::role_state::NodeRole;
use nodefiles::writable::{self, Place};
use nodefiles::{hook_sequence, maintenance, track, valid_settings};
use observe::Session;
use role::{Decision, Intent, Known, PromotionKind};
use settings::Settings;

use crate::act;
use crate::automatic;
use crate::cancel::Cancel;
use crate::cli::{Common, Exit, answer};
use crate::diverged::{self, DivergedError, Settled};
use crate::link::Link;
use crate::look::{Depth, Look, look, look_unless, rules};
use crate::promote::{PromoteError, carry_out};
use crate::slave_position::PositionError;
use crate::{events, node_role, relay_log, replicas, resident, statements, takeover, tell};

/// Causes that end by themselves within a few ticks are alerted only after this many seconds.
const PATIENCE_SECONDS: f64 = 8.0;

/// Keepalived obeys its track file within milliseconds; a tick comes every two seconds.
const HEED: Duration = Duration::from_millis(1500);
/// Windows that differ for so long are told.
const WINDOWS: Duration = Duration::from_secs(10);
/// A closed database that does not answer for so long is killed, so that it comes back as a standby.
const STALL: Duration = Duration::from_secs(5);
/// Between two tries.
const TRIES: Duration = Duration::from_millis(100);
/// Runs the resident program.
const LINKS_UNIT: &str = "keepalived-companion-links.service";
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
    let settings = match arguments.common.settings_in_force() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    if arguments.dry_run {
        let seen = look(&settings, Depth::Nodes).seen;
        let rules = rules(&settings);
        let refused = role::refusal(Intent::Audit, &seen, rules)
            .or_else(|| role::forbidden_by_own_data(&seen, rules));
        answer(&match refused {
            Some(refusal) => format!("refused: {refusal}"),
            None => format!("{:?}", Intent::Audit.decide(&seen, rules)),
        });
        return Exit::Done;
    }
    if let Err(error) = writable::begin(&settings, &resident::now()) {
        log::error!("{error}");
    }
    // Hooks that fire while this runs only raise the number: look again until it stands still.
    let mut exit = Exit::Done;
    loop {
        let before = hook_sequence::read(&settings);
        let fired = || hook_sequence::read(&settings) != before;
        if let Err(error) = tick(&settings, fired, &arguments.common.config) {
            log::error!("{error}");
            exit = Exit::Undone;
        }
        if hook_sequence::read(&settings) == before {
            return exit;
        }
    }
}

/// Keeps the settings while they are valid, and calls a person when they are not. Gives why they could not be kept.
fn keep_settings(settings: &Settings, config: &Path) -> Option<String> {
    let text = settings.mistake.as_ref().map(|mistake| {
        format!("{mistake}; the last valid settings are in force. Next: mend the file, then: audit --check-config")
    });
    tell::cause(
        settings,
        Topic::Settings,
        text.as_deref().map(|text| (text, 0.0)),
    );
    if writable::may_hang(settings, Place::State, &resident::now()) {
        return None;
    }
    valid_settings::keep(settings, config)
        .err()
        .map(|error| error.to_string())
}

/// Calls a person while there is time: what cannot be read or written now is missed in a change of roles. It comes after
/// the change and what the others are told: it may write to a disk.
fn tell_of_node(settings: &Settings, seen: &Look, config: &Path) {
    let unkept = keep_settings(settings, config);
    let unkept = unkept.as_deref();
    let flag = maintenance::unread(settings).map(|error| {
        format!("{error}: it counts as set, so nothing is taken over. Next: maintenance off")
    });
    let observed = &seen.seen;
    let reasons: Vec<&str> = [
        observed.unread.as_deref(),
        observed.unwritable.as_deref(),
        unkept.filter(|_| observed.unwritable.is_none()),
        flag.as_deref(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let logs = writable::logs_refused(settings, &resident::now());
    let text = match (reasons.is_empty(), logs) {
        (true, None) => None,
        (true, Some(logs)) => Some(format!("nothing is logged: {logs}")),
        (false, _) => Some(format!(
            "this node would miss in a change of roles what it cannot read or write: {}",
            reasons.join("; ")
        )),
    };
    tell::cause(
        settings,
        Topic::Files,
        text.as_deref().map(|text| (text, 0.0)),
    );
}

/// A standby that gets no proof, although its primary answers, may go by another window: then neither shows the other
/// anything, and a person has to make the two files alike.
fn compare_windows(settings: &Settings, seen: &Look) {
    let primary = seen.seen.primary().filter(|_| {
        let local = seen.seen.local.database.server();
        local.is_some_and(|me| !me.writable) && seen.seen.stale_since.is_some()
    });
    let Some((peer, _)) = primary else {
        tell::cause(settings, Topic::Window, None);
        return;
    };
    // Where it cannot be asked, what was told before still holds.
    let Some(theirs) = window_of(settings, &peer.name) else {
        return;
    };
    let Some(own) = nodefiles::resident::window_ms(settings, &observe::boot_id()) else {
        return;
    };
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    let text = (theirs != own).then(|| {
        format!(
            "the window W is {:.1} s here and {:.1} s on {}, so this standby gets no proof that it has everything, \
             and does not take over by itself. Next: the same advert_int and priorities in keepalived.conf, and the \
             same role.alone_after_ms and timeouts in companion.toml, on both nodes; links --check-config shows W",
            seconds(own),
            seconds(theirs),
            peer.name
        )
    });
    // While somebody edits one node's files and then the other's, there is nothing to tell.
    let text = text.as_deref().map(|text| (text, WINDOWS.as_secs_f64()));
    tell::cause(settings, Topic::Window, text);
}

fn window_of(settings: &Settings, peer: &str) -> Option<u64> {
    let node = settings.peers().find(|node| node.name == peer)?;
    let address = observe::reachable(settings, node, settings.peer.port)?;
    let mut link = Link::open(settings, node, address).ok()?;
    link.observe().ok()?;
    link.window_ms()
}

/// Why a tick could not act.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    File(#[from] nodefiles::FileError),
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
    Position(#[from] PositionError),
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
fn tick(
    settings: &Settings,
    hook_fired: impl Fn() -> bool,
    config: &Path,
) -> Result<(), AuditError> {
    // With the VIP here and the database closed every moment counts: go straight to the whole look.
    let urgent = observe::vip_present(settings) == Known::Yes && !locally_writable(settings);
    if !urgent {
        let Some(mut glance) = look_unless(settings, Depth::Databases, hook_fired) else {
            // The loop comes back at once.
            return Ok(());
        };
        replicas::end_silent(settings, &mut glance);
        if unknown_release(&glance) {
            // Which rule holds for a take-over from it depends on that; it is told once.
            drop(look(settings, Depth::Nodes));
        }
        let decision = Intent::Audit.decide(&glance.seen, rules(settings));
        if let Decision::Stay(_) | Decision::Wait(_) = decision {
            refresh_role(settings, &glance);
            relay_log::pace(settings, &mut glance)?;
            let settled = settle(settings, &mut glance, &decision, None);
            tell_of_node(settings, &glance, config);
            compare_windows(settings, &glance);
            if let Some(server) = glance.seen.local.database.server() {
                events::follow(settings, server.writable);
            }
            settled?;
            return Ok(automatic::consider(settings, &glance)?);
        }
    }
    let lock = RoleLock::take(settings, Duration::from_secs(1))?;
    let mut seen = look(settings, Depth::Nodes);
    let decision = Intent::Audit.decide(&seen.seen, rules(settings));
    log::debug!("{:?} -> {decision:?}", seen.seen);
    if !tells_the_role(&decision) {
        let database = &seen.seen.local.database;
        node_role::follow(settings, database, seen.memory.highest_epoch);
    }
    let acted = act_on(settings, &mut seen, &decision);
    let settled = match &acted {
        Ok(needed) => settle(settings, &mut seen, &decision, needed.as_deref()),
        Err(error) => {
            tell::verdicts(settings, &seen.seen);
            tell::cause(settings, Topic::Role, Some((&error.to_string(), 0.0)));
            Ok(())
        }
    };
    tell_of_node(settings, &seen, config);
    drop(lock);
    // Whatever keeps it from being a standby in order: a closed server has no scheduler.
    if seen
        .seen
        .local
        .database
        .server()
        .is_some_and(|me| !me.writable)
    {
        events::follow(settings, false);
    }
    settled?;
    acted.map(drop)
}

/// Whether a peer's database answers and its release was never told.
fn unknown_release(glance: &Look) -> bool {
    glance.seen.peers.iter().any(|peer| {
        peer.server().is_some() && !glance.memory.boot.protocols.contains_key(&peer.name)
    })
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
        | Decision::SemiSyncOff
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
    locally_closed(settings).is_ok_and(|closed| !closed)
}

fn locally_closed(settings: &Settings) -> Result<bool, observe::SqlError> {
    Session::connect(settings, observe::Target::Local, settings.checks.deadline)?
        .row("SELECT @@read_only")
}

/// The local database does not answer, and another node takes over.
fn kill_silent(settings: &Settings) -> Result<(), AuditError> {
    // A standby's disk may stall. What was seen closed cannot write when it goes on.
    if node_role::is_closed(settings) && answers_again(settings) {
        log::warn!("the local database did not answer for a moment; it was closed, and goes on");
        return Ok(());
    }
    act::kill_local(settings)?;
    tell::alert(
        settings,
        "fenced",
        Severity::Critical,
        "the local database did not answer while another node takes over: killed, it starts again read-only",
    );
    Ok(())
}

/// Waits for the local database, as long as a closed one may take.
fn answers_again(settings: &Settings) -> bool {
    let start = Instant::now();
    loop {
        match locally_closed(settings) {
            // An open one is another matter: it is killed, or the next look says what becomes of it.
            Ok(closed) => return closed,
            Err(_) if start.elapsed() > STALL => return false,
            Err(_) => std::thread::sleep(TRIES),
        }
    }
}

/// systemd starts the resident program again when it dies or hangs. Where that has not helped, a person should
/// know: without it a primary whose standby goes acknowledges nothing any more, and a standby opens no more.
fn supervise(settings: &Settings) {
    let now = resident::now();
    let sign = nodefiles::resident::file(settings).read().ok().flatten();
    let lives = sign.is_some_and(|sign| {
        sign.boot_id == now.boot_id && now.at - sign.at < resident::LIFELESS.as_secs_f64()
    });
    // After a boot it starts when the database has.
    if lives || now.at < resident::LIFELESS.as_secs_f64() * 3.0 {
        return;
    }
    if writable::run_refused(settings).is_some() {
        // Its signs of life cannot be seen; that the directory takes nothing is told.
        return;
    }
    if let Err(error) = act::ask_systemd(host::Verb::Restart, LINKS_UNIT) {
        log::error!("{error}");
    }
    let text = "the resident program (keepalived-companion-links.service) shows no sign of life and is started anew; \
                see: systemctl status keepalived-companion-links";
    tell::alert(settings, "resident-lifeless", Severity::Critical, text);
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
    supervise(settings);
    forget_grant(settings, seen)?;
    // A promotion has just marked this node itself; what was seen before it is old.
    if !matches!(decision, Decision::Promote(_) | Decision::SwitchOver { .. }) {
        let writable = seen.seen.local.database.writable();
        match seen.seen.local.entitled() {
            // Told a "no" it would lower the priority of a healthy primary.
            Known::NotKnown if writable => {}
            entitled => track::set_entitled(settings, writable && entitled == Known::Yes)?,
        }
    }
    let left_vip = track::standby(settings);
    let forbidden = (left_vip && !seen.seen.local.database.writable())
        .then(|| role::forbidden_by_own_data(&seen.seen, rules(settings)))
        .flatten();
    let text;
    let cause = match decision {
        // In the words of the refusal for which the VIP was left: it is one cause, and told once.
        Decision::Stay(_) | Decision::Wait(_) if forbidden.is_some() => {
            text = forbidden
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            Some((text.as_str(), 0.0))
        }
        Decision::Refuse { why, next } => {
            text = format!("{why}; next: {next}");
            Some((text.as_str(), 0.0))
        }
        Decision::Wait(why) => Some((*why, PATIENCE_SECONDS)),
        Decision::Stay(_)
        | Decision::ClaimEpoch
        | Decision::ForgetChannel
        | Decision::SemiSyncOff
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
    tell::cause(settings, Topic::Role, cause);
    // A VIP given up for a cause that is gone: take part again.
    let local = &seen.seen.local;
    if left_vip
        && forbidden.is_none()
        && matches!(decision, Decision::Stay(_) | Decision::Wait(_))
        && (local.entitled() == Known::No || local.database.writable())
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
    let changed = change(settings, seen, decision);
    if let Err(AuditError::Position(error @ PositionError::OnlyByCopy { .. })) = &changed
        && settings.failback.rebuild_automatic
        && settings.mistake.is_none()
    {
        automatic::start_rebuild(settings)?;
        return Ok(Some(format!("{error}; a rebuild runs")));
    }
    changed.map(|()| None)
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
    if settings.failback.rebuild_automatic && settings.mistake.is_none() {
        automatic::start_rebuild(settings)?;
        return Ok(Some(format!("{why}; a rebuild from {from} runs")));
    }
    Ok(Some(format!(
        "{why}; next: failback --rejoin-only --rebuild"
    )))
}

fn change(settings: &Settings, seen: &mut Look, decision: &Decision) -> Result<(), AuditError> {
    let limits = Intent::Audit.limits(rules(settings));
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
            if let Err(error) = seen.memory.saw_epoch(settings, epoch) {
                // It is in the database.
                log::error!("{error}");
            }
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
        Decision::SemiSyncOff => Ok(statements::set_semi_sync(local(seen)?, settings, false)?),
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
        Decision::KillLocal => kill_silent(settings),
        Decision::GiveUpVip(why) => {
            leave_vip(settings)?;
            let text = format!("the VIP is left to the others: {why}");
            tell::alert(settings, "vip-given-up", Severity::Warning, &text);
            Ok(())
        }
        Decision::RemoveAddress => {
            host::act::remove_address(settings)?;
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
    let mut own = Ok(());
    let (peers, text) = match decision {
        Decision::FenceAll { peers } => {
            // The peers are closed whatever became of it.
            own = act::fence_local(settings);
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
    let fenced = fence_peers(settings, seen, peers);
    let closed = own.map_err(AuditError::from).and(fenced);
    let text = match &closed {
        Ok(()) => text,
        Err(error) => format!("two primaries, and not every one is closed: {error}"),
    };
    tell::alert(settings, "two-primaries", Severity::Critical, &text);
    closed
}

/// Leaves the VIP to the others: by the track file, which Keepalived obeys at once. One that has not obeyed it
/// for longer than a tick does not load it, as with the original's keepalived.conf, and is stopped: clients that
/// find a closed database are no better off, and nobody else could serve them.
fn leave_vip(settings: &Settings) -> Result<(), AuditError> {
    let unheeded = track::standby_age(settings).is_some_and(|age| age > HEED);
    let why = if unheeded && observe::vip_present(settings) == Known::Yes {
        "Keepalived does not heed the standby track file".to_owned()
    } else {
        match track::set_standby(settings, true) {
            Ok(()) => return Ok(()),
            Err(error) => error.to_string(),
        }
    };
    host::act::systemctl(&["stop", "keepalived.service"], KEEPALIVED_STOP)?;
    let text = format!(
        "{why}, so Keepalived is stopped here to leave the VIP to the others; \
         once this node is in order: systemctl start keepalived"
    );
    tell::alert(settings, "keepalived-stopped", Severity::Critical, &text);
    Ok(())
}

/// A node whose own data forbid the promotion does not keep the VIP.
fn give_up_after_refusal(
    settings: &Settings,
    promoted: Result<(), PromoteError>,
) -> Result<(), AuditError> {
    if let Err(PromoteError::Refused(refusal)) = &promoted
        && refusal.own_data()
    {
        leave_vip(settings)?;
    }
    Ok(promoted?)
}

fn fence_peers(settings: &Settings, seen: &mut Look, peers: &[String]) -> Result<(), AuditError> {
    every(peers, |peer| fence_peer(settings, seen, peer))
}

/// Does it for every peer: one that fails does not keep the others from it. The first failure is the answer.
fn every(
    peers: &[String],
    mut fence: impl FnMut(&str) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let mut first = Ok(());
    for peer in peers {
        if let Err(error) = fence(peer) {
            log::error!("{peer} is not fenced: {error}");
            first = first.and(Err(error));
        }
    }
    first
}

/// By its forced command, which can kill, or else over SQL.
fn fence_peer(settings: &Settings, seen: &mut Look, peer: &str) -> Result<(), AuditError> {
    let unreachable = AuditError::Gone("a second primary cannot be reached to be fenced");
    let by_link = seen.links.get_mut(peer).map(Link::fence);
    if let Some(Ok(())) = by_link {
        return Ok(());
    }
    if let Some(session) = seen.sessions.get_mut(peer) {
        statements::close(session)?;
        // A transaction that is open may still be committed by its session.
        statements::end_clients(session, settings)?;
        return Ok(());
    }
    by_link.map_or(Err(unreachable), |failed| Ok(failed?))
}

fn local(seen: &mut Look) -> Result<&mut Session, AuditError> {
    seen.local
        .as_mut()
        .ok_or(AuditError::Gone("the local database went away"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_that_cannot_be_fenced_does_not_keep_the_others_open() {
        let peers = ["b", "c", "d"].map(str::to_owned);
        let mut asked = Vec::new();
        let outcome = every(&peers, |peer| {
            asked.push(peer.to_owned());
            match peer {
                "b" => Err(AuditError::Gone("first")),
                "c" => Err(AuditError::Gone("second")),
                _ => Ok(()),
            }
        });
        assert_eq!(asked, peers);
        assert!(matches!(outcome, Err(AuditError::Gone("first"))));
        assert!(every(&peers, |_| Ok(())).is_ok());
    }
}
