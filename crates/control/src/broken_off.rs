//! A change that a peer drove here has broken off: the peer died, hangs, or cannot be heard any more. What it
//! left is put right before the role lock goes.

use alerts::Severity;
use observe::{MemoryError, SqlError};
use role::{Decision, Policy, decide};
use settings::Settings;

use crate::look::{Depth, look};
use crate::{files, node_role, statements, tell};

/// How far the peer's change had come.
#[derive(Debug, Default)]
pub struct Left {
    /// The sender of files was stopped, and nobody was granted the right to write since.
    pub sealed: bool,
    /// The database was open when the peer took the role lock, and nobody was granted the right to write since.
    pub was_open: bool,
}

#[derive(Debug, thiserror::Error)]
enum ReopenError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Puts it right. The role lock is still held, so neither the audit here nor the peer, which cannot go on
/// without this lock, changes anything meanwhile.
pub fn put_right(settings: &Settings, left: &Left) {
    if left.was_open
        && let Err(error) = reopen(settings)
    {
        log::error!("a switch-over broke off and this database may be frozen: {error}");
    }
    if left.sealed
        && let Err(error) = files::unseal(settings)
    {
        log::error!("sync-realtime was not told to go on: {error}");
    }
    node_role::look_again(settings);
}

/// Ends a freeze whose driver is gone. The target opens with a grant only, and has none, so this node may go
/// on alone where it would be the one to be promoted: not if it is cut off, and not if another one is open.
/// Its epoch and its replica stay what they were.
fn reopen(settings: &Settings) -> Result<(), ReopenError> {
    let mut seen = look(settings, Depth::Nodes)?;
    let policy = Policy {
        promote_unmet_after_boot: settings.role.promote_unmet_after_boot,
        // What a person's maintenance finds is the state before.
        maintenance: false,
    };
    let decision = decide(&seen.seen, policy);
    let Some(session) = seen.local.as_mut() else {
        return Ok(());
    };
    // The peer's session holds the lock on all tables until TCP gives up a connection that is dead.
    let ended = statements::end_remote_tools(session, settings)?;
    if seen.seen.local.database.writable() {
        return Ok(());
    }
    if !matches!(decision, Decision::Promote(_)) {
        log::warn!("a switch-over broke off ({ended} sessions ended); this database stays closed");
        return Ok(());
    }
    statements::open(session)?;
    tell::alert(
        settings,
        "broken-off",
        Severity::Warning,
        "a switch-over to another node broke off before it had the right to write; this database is open again",
    );
    Ok(())
}
