//! Effects on this node alone: fence, kill, remove an address.

use std::time::{Duration, Instant};

use observe::{Session, SqlError, Target, UnitState, mariadb_process, unit_state};
use process::{ProcessError, Program};
use settings::Settings;

use crate::{node_role, statements};

/// How long a killed server may take to be gone.
const DEATH: Duration = Duration::from_secs(5);

/// What systemd is only asked for takes no longer.
const ASKING: Duration = Duration::from_secs(3);

/// Runs systemctl.
pub fn systemctl(words: &[&str], limit: Duration) -> Result<(), ProcessError> {
    Program::new("systemctl")
        .args(words)
        .deadline(limit)
        .run()?
        .success()?;
    Ok(())
}

/// Asks systemd to do something to a unit, and does not wait until it is done.
pub fn ask_systemd(verb: &str, unit: &str) -> Result<(), ProcessError> {
    systemctl(&["--no-block", verb, unit], ASKING)
}

/// What looks at the nodes and acts on what it sees, by itself every two seconds.
const ROLE_UNIT: &str = "keepalived-companion-role.service";

/// Asks for a look now. The role lock must not be held: the look needs it where it acts.
pub fn start_audit() {
    if let Err(error) = ask_systemd("start", ROLE_UNIT) {
        log::error!("{error}; the timer looks within two seconds");
    }
}

/// Why an effect on this node failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The server outlived SIGKILL.
    #[error(
        "MariaDB (pid {pid}) still exists {DEATH:?} after SIGKILL; it hangs in the kernel: power the node off"
    )]
    Undead {
        /// The process.
        pid: u32,
    },
}

/// Makes the local database unable to write, and its clients' sessions end. When this returns,
/// nothing more is acknowledged here: a server that does not answer is killed, and so is one with
/// commits that wait for a replica, because ending those sessions would let them commit.
pub fn fence_local(settings: &Settings) -> Result<(), ActError> {
    // Before: once it is closed another node may be opened, and two must never send files.
    node_role::stand_by(settings);
    match close_local(settings) {
        Ok(()) => Ok(()),
        // It boots read-only, and a crash recovery that is killed begins anew.
        Err(_) if unit_state(&settings.database.unit) == UnitState::Starting => Ok(()),
        Err(why) => {
            log::warn!("fencing by SIGKILL: {why}");
            kill_local(settings)
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
    statements::set_semi_sync(&mut session, settings, false)?;
    Ok(())
}

/// SIGKILL for the local server. systemd may start it again: it boots read-only.
pub fn kill_local(settings: &Settings) -> Result<(), ActError> {
    node_role::stand_by(settings);
    let Some(pid) = mariadb_process(settings) else {
        return Ok(());
    };
    let unit = &settings.database.unit;
    systemctl(
        &["kill", "--kill-whom=main", "--signal=SIGKILL", unit],
        ASKING,
    )?;
    let start = Instant::now();
    while mariadb_process(settings) == Some(pid) {
        if start.elapsed() > DEATH {
            return Err(ActError::Undead { pid });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes the VIP's address, left behind by a Keepalived that was killed.
pub fn remove_address(settings: &Settings) -> Result<(), ActError> {
    let vip = settings.cluster.vip.to_string();
    let listed = Program::new("ip")
        .args([
            "-o",
            "address",
            "show",
            "dev",
            &settings.cluster.vip_interface,
            "to",
            &vip,
        ])
        .deadline(Duration::from_secs(1))
        .run()?
        .success()?
        .text();
    for address in listed.split_whitespace().filter(|word| {
        word.split_once('/')
            .is_some_and(|(address, _)| address == vip)
    }) {
        Program::new("ip")
            .args([
                "address",
                "del",
                address,
                "dev",
                &settings.cluster.vip_interface,
            ])
            .deadline(Duration::from_secs(1))
            .run()?
            .success()?;
    }
    Ok(())
}
