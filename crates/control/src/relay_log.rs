//! How carefully a standby keeps what it receives.
//!
//! MariaDB syncs the relay log after each event, of which a transaction has about five. Measured with eight
//! writers on the lab: a standby takes 780 transactions a second that way and 1,770 without, and a primary
//! that does not wait for it writes 1,400.

use observe::SqlError;
use settings::Settings;

use crate::look::Look;
use crate::tell;

/// A standby syncs each event that it receives while the primary's commits wait for it. One that is behind is
/// waited for by nobody, and with a sync for each event it would stay behind a busy primary for ever.
pub fn pace(settings: &Settings, look: &mut Look) -> Result<(), SqlError> {
    let Some(waits) = look
        .seen
        .primary()
        .map(|(_, server)| server.semi_sync.active)
    else {
        return Ok(());
    };
    let standby = look
        .seen
        .local
        .database
        .server()
        .is_some_and(|me| !me.writable);
    let Some(session) = look.local.as_mut().filter(|_| standby) else {
        return Ok(());
    };
    let wanted = u32::from(waits);
    let now: u32 = session.row("SELECT @@sync_relay_log")?;
    if now != wanted {
        session.execute(&format!("SET GLOBAL sync_relay_log = {wanted}"))?;
        tell::failover_log(
            settings,
            if waits {
                "the primary's commits wait for this standby: each event is synced to the disk"
            } else {
                "the primary's commits do not wait for this standby: it catches up without a sync for each event"
            },
        );
    }
    Ok(())
}
