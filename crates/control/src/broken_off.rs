//! A change that a peer drove here has broken off: the peer died, hangs, or cannot be heard any more. What it
//! left is put right before the role lock goes.

use std::thread;
use std::time::{Duration, Instant};

use alerts::Severity;
use host::Process;
use nodefiles::track;
use observe::{Session, SqlError, Target};
use settings::Settings;

use crate::look::{Depth, look, rules};
use crate::{files, node_role, statements, tell, vip};

/// Keepalived obeys its track file within milliseconds; one that does not load it never does.
const VIP_PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How far the peer's change had come.
#[derive(Debug, Default)]
pub struct Left {
    /// The sender of files was stopped, and nobody was granted the right to write since.
    pub sealed: bool,
    /// The database was open when the peer took the role lock, and nobody was granted the right to write since.
    pub was_open: bool,
    /// The right to write was granted to another node, or may have been.
    pub granted: bool,
    /// The peer has not hung up, it is not heard: what it had open here does not end by itself.
    pub silent: bool,
}

#[derive(Debug, thiserror::Error)]
enum ReopenError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("it does not answer")]
    Silent,
}

/// Puts it right. The role lock is still held, so neither the audit here nor the peer, which cannot go on
/// without this lock, changes anything meanwhile.
pub fn put_right(settings: &Settings, left: &Left) {
    if left.was_open || left.silent {
        insist(settings, left);
    }
    if left.sealed
        && let Err(error) = files::unseal(settings)
    {
        tell::failover_log(
            settings,
            &format!("sync-realtime was not told to go on: {error}"),
        );
    }
    node_role::look_again(settings);
}

/// Tries for as long as a freeze may last: a server whose clients all come back at once may be slow.
fn insist(settings: &Settings, left: &Left) {
    let start = Instant::now();
    while let Err(error) = end_freeze(settings, left) {
        if host::mariadb_process(settings) == Process::Gone {
            // Nothing is frozen, and the other node waits for the lock to take over.
            return;
        }
        if start.elapsed() > settings.role.freeze_limit {
            let text = format!(
                "a role change broke off, and this database may be frozen: {error}; end the sessions of {}: \
                 SHOW PROCESSLIST, KILL",
                settings.database.account.user
            );
            tell::alert(settings, "broken-off", Severity::Critical, &text);
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// Ends a freeze whose driver is gone. Where nobody has the right to write, the target opens with a grant only,
/// so this node may go on alone if the table would leave it open: not if it is cut off, and not if another one is
/// open. Its epoch and its replica stay what they were.
fn end_freeze(settings: &Settings, left: &Left) -> Result<(), ReopenError> {
    let mut session = Session::connect(settings, Target::Local, settings.role.answer_timeout)?;
    let closed: bool = session.row("SELECT @@read_only")?;
    let open_again = closed && left.was_open && would_stay_open(settings)?;
    if closed && left.granted && another_is_open(settings) {
        // Or who writes past `read_only` finds this database behind the VIP when the lock goes.
        leave_vip(settings);
    }
    if closed && !open_again {
        // Statements that wait for the lock would be carried out when it goes, past `read_only` if they may.
        statements::end_clients(&mut session, settings)?;
    }
    // The peer's session holds the lock on all tables until TCP gives up a connection that is dead.
    statements::end_remote_tools(&mut session, settings)?;
    if open_again {
        // Its replica saw it closed, and may rely on that.
        statements::set_semi_sync(&mut session, settings, true)?;
        statements::open(&mut session)?;
        tell::alert(
            settings,
            "broken-off",
            Severity::Warning,
            "a switch-over to another node broke off before it had the right to write; this database is open again",
        );
    } else if closed {
        tell::failover_log(
            settings,
            "a role change that another node drove broke off; this database stays closed",
        );
    }
    Ok(())
}

fn another_is_open(settings: &Settings) -> bool {
    let seen = look(settings, Depth::Databases).seen;
    seen.primary().is_some()
}

/// The audit takes part in VRRP again once this node stands by.
fn leave_vip(settings: &Settings) {
    if let Err(error) = track::set_standby(settings, true) {
        log::error!("{error}");
    }
    // The lock must go in any case: one that stays costs more.
    let _ = vip::await_presence(settings, false, VIP_PATIENCE);
}

/// What the table says of this node as it was before the freeze.
fn would_stay_open(settings: &Settings) -> Result<bool, ReopenError> {
    let seen = look(settings, Depth::Nodes).seen;
    if seen.local.database.server().is_none() {
        return Err(ReopenError::Silent);
    }
    Ok(role::may_reopen(&seen, rules(settings)))
}
