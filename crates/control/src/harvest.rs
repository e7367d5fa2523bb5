//! The end of a dead primary's binlog, fetched from its host over ssh and applied here before the
//! opening. GTIDs are kept, so the old primary can become a replica again as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::{ProcessError, Program};
use role::GtidSet;
use settings::{Account, Node, Settings, SettingsError};

use crate::link::ssh;

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
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The password of the toolkit's account.
    #[error(transparent)]
    Password(#[from] SettingsError),
    /// The host does not answer any more.
    #[error("{0} does not answer on its ssh port")]
    Gone(String),
    /// The list of binlogs is empty.
    #[error("{0} names no binlog")]
    NoBinlog(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HarvestError + '_ {
    move |source| HarvestError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The binlogs that the server's index names, the oldest first.
pub fn binlogs(index: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = index.parent().unwrap_or(Path::new("/"));
    Ok(fs::read_to_string(index)?
        .lines()
        .filter(|line| !line.is_empty())
        // Absolute, or beside the index.
        .map(|line| directory.join(line))
        .collect())
}

/// On the dead server's host: prints what its binlogs have after the position, as SQL.
pub fn print_tail(settings: &Settings, after: &GtidSet) -> Result<(), HarvestError> {
    let index = &settings.database.binlog_index;
    let logs = binlogs(index).map_err(at(index))?;
    if logs.is_empty() {
        return Err(HarvestError::NoBinlog(index.clone()));
    }
    let spool = settings.paths.state.join("binlog-tail.sql");
    // A log that begins after the position is refused; so one file, then two, four, and so on.
    let mut count = 1;
    let printed = loop {
        let begin = logs.len().saturating_sub(count);
        let outcome = Program::new("mariadb-binlog")
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
    fs::remove_file(&spool).map_err(at(&spool))
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
    let account = &settings.database.account;
    let credentials = settings.paths.run.join("harvest.cnf");
    write_credentials(&credentials, account)?;
    let applied = Program::new("mariadb")
        .arg(format!("--defaults-file={}", credentials.display()))
        .arg(format!("--socket={}", settings.database.socket.display()))
        .arg("--binary-mode")
        .stdin_from(&tail)
        .deadline(PATIENCE)
        .run()
        .and_then(process::Output::success);
    fs::remove_file(&credentials).map_err(at(&credentials))?;
    applied?;
    fs::remove_file(&tail).map_err(at(&tail))
}

/// For the client, which takes no password from anywhere but a file that is safe.
fn write_credentials(path: &Path, account: &Account) -> Result<(), HarvestError> {
    let password = account.password()?;
    let quoted = password.reveal().replace('\\', "\\\\").replace('"', "\\\"");
    // One that a killed run left may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            write!(
                file,
                "[client]\nuser = {}\npassword = \"{quoted}\"\n",
                account.user
            )
        })
        .map_err(at(path))
}
