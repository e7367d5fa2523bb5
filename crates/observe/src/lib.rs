//! Reads the state of this node and of its peers. Nothing here changes a role.

mod contact;
mod server;
mod session;
mod sync_request;

pub use contact::{
    kernel_answers, observe_peer_database, reachable, reachable_within, witness_answers,
};
pub use host::{UnitState, Vrrp, VrrpState, boot_id, unit, uptime_seconds, vrrp};
pub use server::{
    Waits, channel_sql_errors, last_io_errors, observe_server, read_epoch, waits_for,
};
pub use session::{Session, SqlError, Target, quote};
pub use sync_request::sync_request;

use std::time::Duration;

use host::{NotKnown, Process};
use role::{Database, Known, NodeView};
use settings::Settings;

/// Whether the VIP's address is on its interface. Why it could not be told goes to the log.
pub fn vip_present(settings: &Settings) -> Known {
    known(host::vip_present(settings))
}

/// Whether a Keepalived runs here. Why it could not be told goes to the log.
pub fn keepalived_running() -> Known {
    known(host::keepalived_running())
}

fn known(answer: Result<bool, NotKnown>) -> Known {
    match answer {
        Ok(yes) => yes.into(),
        Err(why) => {
            log::warn!("not known: {why}");
            Known::NotKnown
        }
    }
}

/// This node as it sees itself, but for what it remembers. The session is kept by the caller for what follows.
pub fn observe_local(settings: &Settings) -> (NodeView, Option<Session>) {
    let (database, session) = local_database(settings);
    let view = NodeView {
        name: settings.local().name.clone(),
        vip: vip_present(settings),
        keepalived: keepalived_running(),
        database,
        highest_epoch: 0,
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
    (without_answer(settings), None)
}

/// What a database that does not answer is.
fn without_answer(settings: &Settings) -> Database {
    let pid = match host::mariadb_process(settings) {
        Process::Is(pid) => pid,
        Process::Gone => return Database::Down,
        Process::NotKnown(why) => {
            log::warn!("not known: {why}");
            return Database::NotKnown;
        }
    };
    match host::can_acknowledge(settings, pid) {
        Ok(true) => Database::Silent,
        // It is no danger, and killing it again and again would only keep it from starting.
        Ok(false) => Database::Starting,
        Err(why) => {
            log::warn!("not known: {why}");
            Database::NotKnown
        }
    }
}
