//! Runs around each start of mariadbd: says how it may recover from a crash, and saves what it is
//! about to cut off its binlog.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alerts::Severity;
use clap::{Parser, Subcommand};
use nodefiles::{Durability, FileError, JsonFile, recovered, replace};
use process::Program;
use role::CrashRecovery;
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::cli::{Common, Exit};
use crate::look::{Depth, look};
use crate::path_error::{PathError, at, remove};
use crate::tell;
use crate::{binlog, events};

/// Read by mariadb.service; Debian's unit passes the variable on to mariadbd.
const ENVIRONMENT: &str = "mariadb.env";
/// Writing the report out is no reason to hold up the unit for longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Parser)]
#[command(
    name = "crash-recovery",
    version,
    about = "Says how mariadbd may recover from a crash, and saves what it cuts off",
    after_help = "Started by mariadb.service.\n\n\
                  A database keeps what its binlog has, unless another node is the primary already: then the end\n\
                  that was never acknowledged is rolled back, and kept below recovered/ as SQL.\n\n\
                  Exit: 0 done, 1 something failed and the data are kept as they are, 2 settings"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    when: Option<When>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum When {
    /// Ask the peers, and save the end of the binlog where it may be cut off
    BeforeStart,
    /// See what was cut off, and tell
    AfterStart,
}

/// What could not be read, saved or asked.
#[derive(Debug, thiserror::Error)]
enum RecoveryError {
    #[error(transparent)]
    File(#[from] PathError),
    #[error(transparent)]
    State(#[from] FileError),
}

/// Entry point of `crash-recovery`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings_in_force() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let outcome = match arguments.when {
        Some(When::BeforeStart) => before_start(&settings),
        Some(When::AfterStart) => after_start(&settings),
        None => {
            log::error!("expected before-start or after-start; see --help");
            return Exit::Usage;
        }
    };
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            log::error!("{error}");
            Exit::Undone
        }
    }
}

/// The copy of the binlog that may lose its end, until [`after_start`] has looked.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// The binlog itself.
    original: PathBuf,
    /// The primary that went on.
    primary: String,
}

/// Where the copy and its description are.
struct Place {
    copy: PathBuf,
    note: JsonFile<Saved>,
}

impl Place {
    fn of(settings: &Settings) -> Self {
        Self {
            copy: settings.paths.state.join("binlog-before-start"),
            note: JsonFile::durable(settings.paths.state.join("binlog-before-start.json"), 1),
        }
    }
}

fn before_start(settings: &Settings) -> Result<(), RecoveryError> {
    // First: an answer from an earlier start is none for this one.
    let environment = settings.paths.run.join(ENVIRONMENT);
    remove(&environment)?;
    let scheduler = events::start_option();
    if let Some(option) = scheduler {
        write_options(&environment, &[option])?;
    }
    let Some(unclosed) = binlog::unclosed(&settings.database.binlog_index)? else {
        log::info!("the binlog was closed in order: nothing to recover");
        return Ok(());
    };
    let primary = match role::crash_recovery(&look(settings, Depth::Databases).seen) {
        CrashRecovery::Keep(why) => {
            log::info!("{why}: the database keeps all that its binlog has");
            return Ok(());
        }
        CrashRecovery::CutOff { primary } => primary,
    };
    let place = Place::of(settings);
    if place.note.path().exists() {
        // A start that did not come to its end: what it saved is not overwritten.
        report(settings, &place)?;
    }
    let copied = fs::copy(&unclosed, &place.copy)
        .and_then(|_| File::open(&place.copy)?.sync_all())
        .map_err(at(&place.copy));
    if copied.is_err() {
        // A disk that is full must not stay so because of half a copy.
        remove(&place.copy)?;
    }
    copied?;
    let saved = Saved {
        original: unclosed,
        primary,
    };
    // On the disk before anything is cut off: a second power loss must not take the report.
    place.note.replace(&saved)?;
    // Last: without it nothing is cut off.
    let options: Vec<&str> = scheduler
        .into_iter()
        .chain(["--init-rpl-role=SLAVE"])
        .collect();
    write_options(&environment, &options)?;
    log::info!(
        "{} is the primary: the end of {} that was never acknowledged is rolled back",
        saved.primary,
        saved.original.display()
    );
    Ok(())
}

fn write_options(environment: &Path, options: &[&str]) -> Result<(), FileError> {
    let line = format!("MYSQLD_OPTS={}\n", options.join(" "));
    replace(environment, 0o644, line.as_bytes(), Durability::Visible)
}

fn after_start(settings: &Settings) -> Result<(), RecoveryError> {
    remove(&settings.paths.run.join(ENVIRONMENT))?;
    let place = Place::of(settings);
    if place.note.path().exists() {
        report(settings, &place)?;
    }
    Ok(())
}

/// Writes what the original lacks by now as SQL for a person, and forgets the copy.
fn report(settings: &Settings, place: &Place) -> Result<(), RecoveryError> {
    let saved = match place.note.read() {
        Ok(saved) => saved,
        Err(FileError::Damaged { .. }) => None,
        Err(error @ FileError::Io { .. }) => return Err(error.into()),
    };
    let copied = fs::metadata(&place.copy).map_err(at(&place.copy))?.len();
    let left = saved
        .as_ref()
        .and_then(|saved| fs::metadata(&saved.original).ok())
        .map(|original| original.len());
    if let Some(saved) = &saved
        && let Some(left) = left
        && left >= copied
    {
        log::info!("nothing was cut off {}", saved.original.display());
    } else {
        let moment = tell::stamp(jiff::Timestamp::now());
        let directory = recovered::of_start(settings, &moment);
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        let sql = directory.join("cut-off.sql");
        // From where the original ends now; the whole copy when that is not known.
        let from = left.unwrap_or(4);
        let written = Program::new("mariadb-binlog")
            .arg("--no-defaults")
            .args(["--verbose", &format!("--start-position={from}")])
            .arg(&place.copy)
            .stdout_to(&sql)
            .deadline(PATIENCE)
            .run()
            .and_then(process::Output::success);
        if let Err(error) = written {
            // A gigabyte at most, and only where the text of it failed.
            let raw = directory.join("binlog");
            fs::rename(&place.copy, &raw).map_err(at(&raw))?;
            log::error!("{error}; the binlog itself is {}", raw.display());
        }
        tell::alert(
            settings,
            "binlog-cut-off",
            Severity::Warning,
            &format!(
                "{} bytes were cut off this database's binlog at its start, since {} has gone on; \
                 what it has of them comes back by replication. Read {}",
                copied - left.unwrap_or(0).min(copied),
                saved.map_or_else(|| "another node".to_owned(), |saved| saved.primary),
                sql.display()
            ),
        );
    }
    remove(&place.copy)?;
    place.note.remove()?;
    Ok(())
}
