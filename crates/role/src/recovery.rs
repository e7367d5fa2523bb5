//! What a server that crashed may do with the end of its binlog when it starts again.

use crate::Observation;

/// How mariadbd recovers transactions that are in its binlog and not yet committed in InnoDB: the
/// last second before a crash. They may be acknowledged, or never have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CrashRecovery {
    /// Commit them: this may be the only copy (`init_rpl_role = MASTER`).
    Keep(&'static str),
    /// Roll them back and cut them off the binlog: another node went on without them, and with them
    /// this node could not follow it (`init_rpl_role = SLAVE`).
    CutOff {
        /// The node that went on.
        primary: String,
    },
}

/// Cutting off needs proof that another node has gone on; anything less keeps.
pub fn crash_recovery(seen: &Observation) -> CrashRecovery {
    let Some((peer, server)) = seen.primary() else {
        return CrashRecovery::Keep("no other node is seen as the primary");
    };
    if server.epoch_number() < seen.highest_epoch {
        return CrashRecovery::Keep("the node that is writable has older data than were seen here");
    }
    CrashRecovery::CutOff {
        primary: peer.name.clone(),
    }
}
