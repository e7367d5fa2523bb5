//! The end of a dead primary's binlog, fetched from its host over ssh and applied here before the
//! opening. GTIDs are kept, so the old primary can become a replica again as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use process::{ProcessError, Program};
use role::GtidSet;
use settings::{Node, Settings};

use crate::binlog;
use crate::link::ssh;
use crate::path_error::{PathError, at};
use crate::sql_client::{Credentials, CredentialsError};

/// The second command that the peers' ssh key may ask for, with one argument: a list of GTIDs.
pub const COMMAND: &str = "binlog-tail";

/// Copying a tail takes long only when replication was far behind.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why the tail could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum HarvestError {
    /// ssh, mariadb-binlog or the client failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file.
    #[error(transparent)]
    File(#[from] PathError),
    /// The toolkit's account.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The host does not answer any more.
    #[error("{0} does not answer on its ssh port")]
    Gone(String),
    /// The list of binlogs is empty.
    #[error("{0} names no binlog")]
    NoBinlog(PathBuf),
}

/// On the dead server's host: prints what its binlogs have after the position, as SQL.
pub fn print_tail(settings: &Settings, after: &GtidSet) -> Result<(), HarvestError> {
    let index = &settings.database.binlog_index;
    let logs = binlog::files(index).map_err(at(index))?;
    if logs.is_empty() {
        return Err(HarvestError::NoBinlog(index.clone()));
    }
    let spool = settings.paths.state.join("binlog-tail.sql");
    // A log that begins after the position is refused; so one file, then two, four, and so on.
    let mut count = 1;
    let printed = loop {
        let begin = logs.len().saturating_sub(count);
        let outcome = Program::new("mariadb-binlog")
            .arg("--no-defaults")
            .arg(format!("--start-position={after}"))
            .args(&logs[begin..])
            .stdout_to(&spool)
            .deadline(PATIENCE)
            .run()?
            .success();
        match outcome {
            Err(error) if begin > 0 => {
                log::debug!("{error}");
                count *= 2;
            }
            Ok(_) | Err(_) => break outcome,
        }
    };
    printed?;
    let mut file = File::open(&spool).map_err(at(&spool))?;
    let mut output = io::stdout().lock();
    io::copy(&mut file, &mut output)
        .and_then(|_| output.flush())
        .map_err(at(&spool))?;
    Ok(fs::remove_file(&spool).map_err(at(&spool))?)
}

/// Fetches what `peer` has after the position, and applies it to the local, still read-only server.
/// What was fetched stays in the state directory when applying fails.
pub fn harvest(settings: &Settings, peer: &Node, after: &GtidSet) -> Result<(), HarvestError> {
    let address = observe::reachable(settings, peer, settings.peer.port)
        .ok_or_else(|| HarvestError::Gone(peer.name.clone()))?;
    let tail = settings
        .paths
        .state
        .join(format!("harvest-{}.sql", peer.name));
    ssh(settings, address)
        .arg(format!("{COMMAND} {after}"))
        .stdout_to(&tail)
        .deadline(PATIENCE)
        .run()?
        .success()?;
    let credentials = Credentials::write(settings, "harvest")?;
    // What is harvested belongs into this server's binlog, too: a later replica needs it.
    let applied = credentials
        .execute(&tail, true)
        .deadline(PATIENCE)
        .run()
        .and_then(process::Output::success);
    applied?;
    Ok(fs::remove_file(&tail).map_err(at(&tail))?)
}
