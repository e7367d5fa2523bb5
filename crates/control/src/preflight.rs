//! What would make a switch-over fail or hurt, found before anything is touched.

use std::time::Duration;

use nodefiles::sync_status::SyncState;
use observe::{Session, SqlError, VrrpState};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::look::Look;

/// A transaction that is open for longer would be lost to its client in the freeze.
const LONG_TRANSACTION: Duration = Duration::from_secs(3);

/// Something on the present primary, or on this node. Each names the way on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "obstacle")]
pub enum Obstacle {
    /// An open transaction, which the switch-over would end.
    #[error(
        "session {id} of {user} on {node} has had a transaction open for {seconds} s, and the switch-over would end it; wait, or end it there: KILL {id}"
    )]
    LongTransaction {
        /// The primary.
        node: String,
        /// The session.
        id: u64,
        /// Its user.
        user: String,
        /// Since when.
        seconds: u64,
    },
    /// `LOCK TABLES`: the freeze would wait for it.
    #[error("session {id} of {user} on {node} holds LOCK TABLES; wait, or end it there: KILL {id}")]
    LockedTables {
        /// The primary.
        node: String,
        /// The session.
        id: u64,
        /// Its user.
        user: String,
    },
    /// A backup, or another global read lock.
    #[error(
        "session {id} of {user} on {node} runs a backup or holds a global read lock; let it finish, or end it there: KILL {id}"
    )]
    Backup {
        /// The primary.
        node: String,
        /// The session.
        id: u64,
        /// Its user.
        user: String,
    },
    /// The VIP could not come here.
    #[error("Keepalived on {node} would not take the VIP: {why}")]
    NoVip {
        /// This node.
        node: String,
        /// Why.
        why: String,
    },
    /// This node is on its way down itself.
    #[error("{node} is shutting down or rebooting; wait until it is up again")]
    GoingDown {
        /// This node.
        node: String,
    },
    /// Files are held until a person has looked.
    #[error("the files of {node} are held: {why}. Look, then there: sync-realtime --release")]
    FilesHeld {
        /// The primary.
        node: String,
        /// Why.
        why: String,
    },
}

impl Obstacle {
    /// Whether it goes away by itself within moments, so that it is waited for.
    pub fn passes(&self) -> bool {
        match self {
            Self::NoVip { .. } => true,
            Self::LongTransaction { .. }
            | Self::LockedTables { .. }
            | Self::Backup { .. }
            | Self::GoingDown { .. }
            | Self::FilesHeld { .. } => false,
        }
    }

    /// The session of the primary that would have to end.
    fn session(&self) -> Option<u64> {
        match self {
            Self::LongTransaction { id, .. }
            | Self::LockedTables { id, .. }
            | Self::Backup { id, .. } => Some(*id),
            Self::NoVip { .. } | Self::GoingDown { .. } | Self::FilesHeld { .. } => None,
        }
    }
}

/// One to a line.
pub fn list(obstacles: &[Obstacle]) -> String {
    let lines: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Looks at the primary's sessions, and at what its sender of files says.
pub fn obstacles(
    settings: &Settings,
    look: &mut Look,
    node: &str,
) -> Result<Vec<Obstacle>, SqlError> {
    let Some(session) = look.sessions.get_mut(node) else {
        return Ok(Vec::new());
    };
    let mut found = sessions_in_the_way(settings, session, node)?;
    let me = &settings.local().name;
    if host::shutting_down() {
        found.push(Obstacle::GoingDown { node: me.clone() });
    }
    if let Some(why) = not_ready(settings) {
        let node = me.clone();
        found.push(Obstacle::NoVip { node, why });
    }
    let files = look
        .links
        .get_mut(node)
        .and_then(|link| link.files().ok().flatten());
    if let Some(files) = files.filter(|files| files.state == SyncState::Held) {
        found.push(Obstacle::FilesHeld {
            node: node.to_owned(),
            why: files.reason.unwrap_or_default(),
        });
    }
    Ok(found)
}

fn sessions_in_the_way(
    settings: &Settings,
    session: &mut Session,
    node: &str,
) -> Result<Vec<Obstacle>, SqlError> {
    let mut found = transactions(settings, session, node)?;
    found.extend(locks(settings, session, node)?);
    Ok(found)
}

/// Ends the local sessions that a switch-over would wait for, and says which: this host goes down, so they end in any
/// case.
pub fn end_sessions_in_the_way(settings: &Settings, session: &mut Session) -> Result<(), SqlError> {
    let found = sessions_in_the_way(settings, session, &settings.local().name)?;
    for obstacle in found {
        if let Some(id) = obstacle.session() {
            log::warn!("{obstacle}: it is ended, as the host goes down");
            // Gone already is as good.
            let _ = session.execute(&format!("KILL CONNECTION {id}"));
        }
    }
    Ok(())
}

/// Why Keepalived here would not take the VIP now: the clients would find a closed database until it did.
fn not_ready(settings: &Settings) -> Option<String> {
    let instance = &settings.cluster.vrrp_instance;
    let Some(vrrp) = observe::vrrp(instance) else {
        log::warn!("Keepalived was not asked for the state of {instance}; it is taken to be ready");
        return None;
    };
    if vrrp.startup_left > Duration::ZERO {
        return Some(format!(
            "it was just started, and chooses no MASTER for {:.1?} more (vrrp_startup_delay)",
            vrrp.startup_left
        ));
    }
    match vrrp.state {
        VrrpState::Backup | VrrpState::Master => None,
        VrrpState::Init => Some(format!("{instance} is not decided yet")),
        VrrpState::Fault => Some(format!(
            "{instance} is in FAULT; what fails is in check_*.log in {}",
            settings.paths.log.display()
        )),
    }
}

fn is_ours(settings: &Settings, user: &str) -> bool {
    let database = &settings.database;
    user == "system user" || user == database.account.user || user == database.replication.user
}

fn transactions(
    settings: &Settings,
    session: &mut Session,
    node: &str,
) -> Result<Vec<Obstacle>, SqlError> {
    // InnoDB tells the start in the host's own time.
    let open = session.rows::<(u64, String, u64)>(
        "SELECT p.ID, p.USER, GREATEST(0, TIMESTAMPDIFF(SECOND, t.trx_started, \
         CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM'))) \
         FROM information_schema.INNODB_TRX t \
         JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id",
    )?;
    Ok(open
        .into_iter()
        .filter(|(_, user, seconds)| {
            *seconds >= LONG_TRANSACTION.as_secs() && !is_ours(settings, user)
        })
        .map(|(id, user, seconds)| Obstacle::LongTransaction {
            node: node.to_owned(),
            id,
            user,
            seconds,
        })
        .collect())
}

/// Held locks are told by a plugin, which the shipped configuration loads; without it the freeze itself
/// finds them, and is undone.
fn locks(
    settings: &Settings,
    session: &mut Session,
    node: &str,
) -> Result<Vec<Obstacle>, SqlError> {
    let loaded: u64 = session.row(
        "SELECT COUNT(*) FROM information_schema.PLUGINS \
         WHERE PLUGIN_NAME = 'METADATA_LOCK_INFO' AND PLUGIN_STATUS = 'ACTIVE'",
    )?;
    if loaded == 0 {
        log::debug!("{node}: metadata_lock_info is not loaded, so held locks are not seen");
        return Ok(Vec::new());
    }
    let held = session.rows::<(u64, String, String)>(
        "SELECT DISTINCT p.ID, p.USER, m.LOCK_MODE \
         FROM information_schema.METADATA_LOCK_INFO m \
         JOIN information_schema.PROCESSLIST p ON p.ID = m.THREAD_ID \
         WHERE m.LOCK_MODE IN ('MDL_SHARED_READ_ONLY', 'MDL_SHARED_NO_WRITE', 'MDL_SHARED_NO_READ_WRITE') \
         OR m.LOCK_MODE IN ('MDL_BACKUP_START', 'MDL_BACKUP_FLUSH', 'MDL_BACKUP_WAIT_FLUSH', \
         'MDL_BACKUP_WAIT_DDL', 'MDL_BACKUP_WAIT_COMMIT', 'MDL_BACKUP_FTWRL1', 'MDL_BACKUP_FTWRL2')",
    )?;
    Ok(held
        .into_iter()
        .filter(|(_, user, _)| !is_ours(settings, user))
        .map(|(id, user, mode)| {
            let node = node.to_owned();
            if mode.starts_with("MDL_BACKUP") {
                Obstacle::Backup { node, id, user }
            } else {
                Obstacle::LockedTables { node, id, user }
            }
        })
        .collect())
}
