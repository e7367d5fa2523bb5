//! Reads the state of this node and of its peers. Nothing here changes a role.

mod contact;
mod host;
mod maintenance;
mod memory;
mod role_state;
mod server;
mod session;
mod sync_request;
mod sync_status;
mod vrrp;

pub use contact::{
    kernel_answers, observe_peer_database, reachable, reachable_within, witness_answers,
};
pub use host::{UnitState, keepalived_running, mariadb_process, unit, unit_state, vip_present};
pub use maintenance::{maintenance, maintenance_file};
pub use memory::{Memory, MemoryError};
pub use role_state::{NodeRole, RoleState, boot_id, role_state, role_state_file, uptime_seconds};
pub use server::{channel_sql_errors, observe_server, read_epoch};
pub use session::{Session, SqlError, Target};
pub use sync_request::sync_request;
pub use sync_status::{
    Quarantined, StandbyState, StandbyStatus, SyncState, SyncStatus, TreeStatus, sync_socket,
    sync_status, sync_status_file,
};

pub use vrrp::{Vrrp, VrrpState, vrrp};

use std::time::Duration;

use role::{Database, NodeView};
use settings::Settings;

/// This node as it sees itself. The session is kept by the caller for what follows.
pub fn observe_local(settings: &Settings) -> (NodeView, Option<Session>) {
    let (database, session) = local_database(settings);
    let view = NodeView {
        name: settings.local().name.clone(),
        vip: vip_present(settings),
        keepalived: keepalived_running(),
        database,
    };
    (view, session)
}

/// How long the local database may take for an answer before it counts as silent. A healthy one
/// answers over its socket within milliseconds. Silence alone kills nothing: only together with a
/// peer that takes over, and then every wait here is a time in which nobody writes.
const LOCAL_PATIENCE: Duration = Duration::from_millis(300);

/// The local database, and the session that asked it.
pub fn local_database(settings: &Settings) -> (Database, Option<Session>) {
    let asked = Session::connect(settings, Target::Local, LOCAL_PATIENCE)
        .and_then(|mut session| Ok((observe_server(&mut session, settings)?, session)));
    let error = match asked {
        Ok((server, session)) => return (Database::Answering(Box::new(server)), Some(session)),
        Err(error) => error,
    };
    log::debug!("local database: {error}");
    if mariadb_process(settings).is_none() {
        return (Database::Down, None);
    }
    // A server that listens nowhere starts, or lost its socket: it is no danger, and killing it
    // again and again would only keep it from starting.
    let starting = error.refused() || unit_state(&settings.database.unit) == UnitState::Starting;
    let state = if starting {
        Database::Starting
    } else {
        Database::Silent
    };
    (state, None)
}
