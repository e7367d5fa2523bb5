//! Effects on this node alone: fence, kill.

use std::time::Duration;

use host::act::{KillError, kill_mariadb};
use host::{NotKnown, Process, Verb};
use observe::{Session, SqlError, Target};
use process::ProcessError;
use settings::Settings;

use crate::{events, node_role, statements};

/// How long a killed server may take to be gone.
const DEATH: Duration = Duration::from_secs(5);

/// What systemd is only asked for takes no longer.
const ASKING: Duration = Duration::from_secs(3);

/// Asks systemd to start or restart a unit, and does not wait until it is done.
pub fn ask_systemd(verb: Verb, unit: &str) -> Result<(), ProcessError> {
    host::ask(verb, unit, ASKING)
}

/// What looks at the nodes and acts on what it sees, by itself every two seconds.
const ROLE_UNIT: &str = "keepalived-companion-role.service";

/// Asks for a look now. The role lock must not be held: the look needs it where it acts.
pub fn start_audit() {
    if let Err(error) = ask_systemd(Verb::Start, ROLE_UNIT) {
        log::error!("{error}; the timer looks within two seconds");
    }
}

/// Why this node's database is not known to be closed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// What runs, or what it does.
    #[error(
        "it cannot be told whether MariaDB here still takes writes ({why}), so it does not count as fenced; \
         next: systemctl status {unit} on this node, and if it does not answer, power it off"
    )]
    NotKnown {
        /// What failed.
        why: NotKnown,
        /// The database's unit.
        unit: String,
    },
    /// The server could not be killed.
    #[error(transparent)]
    Kill(#[from] KillError),
}

/// Makes the local database unable to write, and its clients' sessions end. When this returns,
/// nothing more is acknowledged here: a server that does not answer is killed, and so is one with
/// commits that wait for a replica, because ending those sessions would let them commit.
pub fn fence_local(settings: &Settings) -> Result<(), ActError> {
    // Before: once it is closed another node may be opened, and two must never send files.
    node_role::stand_by(settings);
    match close_local(settings) {
        Ok(()) => Ok(()),
        Err(why) => {
            log::warn!("not closed over SQL: {why}");
            kill(settings)
        }
    }
}

/// Why a server cannot be closed over SQL.
#[derive(Debug, thiserror::Error)]
enum CloseError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("{0} commits wait for a replica's acknowledgement")]
    CommitsWaiting(u32),
}

fn close_local(settings: &Settings) -> Result<(), CloseError> {
    // A third of the time for asking, the rest for a SIGKILL: a fence that comes later than the
    // semi-synchronous timeout comes too late.
    let mut session = Session::connect(settings, Target::Local, settings.role.self_fence / 3)?;
    let waiting = statements::commits_waiting(&mut session)?;
    if waiting > 0 {
        return Err(CloseError::CommitsWaiting(waiting));
    }
    statements::close(&mut session)?;
    statements::end_clients(&mut session, settings)?;
    // Events may write past `read_only`. Those that have begun meanwhile are ended as the clients were.
    if events::scheduler_runs(&mut session)? {
        events::stop(settings, settings.role.self_fence / 3);
        statements::end_clients(&mut session, settings)?;
    }
    statements::set_semi_sync(&mut session, settings, false)?;
    Ok(())
}

/// SIGKILL for the local server. systemd may start it again: it boots read-only.
pub fn kill_local(settings: &Settings) -> Result<(), ActError> {
    node_role::stand_by(settings);
    kill(settings)
}

/// Nothing to kill is success only where that is known. A server that cannot acknowledge anything, because it
/// has not come as far, or is past it, is left alone: a crash recovery that is killed begins anew, and it boots
/// read-only. systemd's answer is not waited for: it is slow on a host in trouble, and a fence that comes late
/// is none.
fn kill(settings: &Settings) -> Result<(), ActError> {
    let not_known = |why| ActError::NotKnown {
        why,
        unit: settings.database.unit.clone(),
    };
    let pid = match host::mariadb_process(settings) {
        Process::Is(pid) => pid,
        Process::Gone => return Ok(()),
        Process::NotKnown(why) => return Err(not_known(why)),
    };
    if !host::can_acknowledge(settings, pid).map_err(not_known)? {
        log::info!("MariaDB (pid {pid}) has no socket yet: it starts, and boots read-only");
        return Ok(());
    }
    log::warn!("SIGKILL for MariaDB (pid {pid})");
    Ok(kill_mariadb(settings, pid, DEATH)?)
}
