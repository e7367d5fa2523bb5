//! Reads the state of this node and of its peers. Nothing here changes a role.

mod contact;
mod host;
mod memory;
mod server;
mod session;

pub use contact::{observe_peer_database, reachable, witness_answers};
pub use host::{UnitState, keepalived_running, mariadb_process, unit, unit_state, vip_present};
pub use memory::{Memory, MemoryError};
pub use server::{channel_sql_errors, observe_server, read_epoch};
pub use session::{Session, SqlError, Target};

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

/// The local database, and the session that asked it.
pub fn local_database(settings: &Settings) -> (Database, Option<Session>) {
    let asked = Session::connect(settings, Target::Local, settings.role.answer_timeout)
        .and_then(|mut session| Ok((observe_server(&mut session, settings)?, session)));
    match asked {
        Ok((server, session)) => (Database::Answering(Box::new(server)), Some(session)),
        Err(error) => {
            log::debug!("local database: {error}");
            let state = match unit_state(&settings.database.unit) {
                UnitState::Starting => Database::Starting,
                UnitState::Running | UnitState::Stopping if mariadb_process(settings).is_some() => {
                    Database::Silent
                }
                UnitState::Running
                | UnitState::Stopping
                | UnitState::Stopped
                | UnitState::Failed
                | UnitState::Unknown => {
                    // A server outside its unit can be open for writes just the same.
                    if mariadb_process(settings).is_some() {
                        Database::Silent
                    } else {
                        Database::Down
                    }
                }
            };
            (state, None)
        }
    }
}
