//! What this node wrote and the primary never had: found in the binlogs, saved for a person, and taken
//! back where that can be done row by row.
//!
//! Order, and what a death leaves: the report is on the disk before anything is taken back; the rows go
//! back in one transaction together with a note of it; the binlogs stay as links beside the report; and
//! while the note is there, the next attachment sets the place in the history that belongs to it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alerts::Severity;
use nodefiles::recovered;
use observe::{Session, SqlError, Target};
use process::{ProcessError, Program};
use role::{GtidSet, Server};
use settings::{Node, Settings};

use crate::binlog::{self, BinlogError, Transaction};
use crate::lost_rows;
use crate::path_error::{PathError, at};
use crate::sql_client::{Credentials, CredentialsError};
use crate::{statements, tell};

/// To print, or to take back, what a lost node wrote in minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// For one statement: RESET MASTER deletes files, STOP SLAVE ends a large event first.
const STATEMENT: Duration = Duration::from_secs(60);

/// Why something could not be saved or taken back. Nothing is lost then.
#[derive(Debug, thiserror::Error)]
pub enum DivergedError {
    /// A binlog.
    #[error(transparent)]
    Binlog(#[from] BinlogError),
    /// A file.
    #[error(transparent)]
    File(#[from] PathError),
    /// A program.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The local server.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The toolkit's account.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Something wrote here while they were taken back.
    #[error(
        "something else wrote to this node's database meanwhile, past read_only; it is looked at anew"
    )]
    Moved,
    /// The histories differ, and no binlog says by what.
    #[error(
        "this node has {missing}, which the primary never had, and its binlogs do not have them any more"
    )]
    Purged {
        /// GTIDs.
        missing: GtidSet,
    },
}

/// The transactions that only this node has.
#[derive(Debug)]
pub struct Divergence {
    /// This node's history before the first of them.
    before: GtidSet,
    /// In the order of the binlog.
    transactions: Vec<Transaction>,
    /// The binlogs that have them, the oldest first.
    logs: Vec<PathBuf>,
    /// After the first of them came something that the primary has.
    mixed: bool,
    /// What the primary has.
    primary: GtidSet,
}

/// What became of it.
#[derive(Debug)]
pub enum Settled {
    /// Taken back; this node replicates from the primary.
    TakenBack {
        /// The report.
        report: PathBuf,
    },
    /// Only a copy of the primary helps; why, for a person.
    NeedsRebuild(String),
}

/// Saves what only this node has, and takes it back where that is possible. The role lock is held.
pub fn settle(
    settings: &Settings,
    primary: &Node,
    server: &Server,
) -> Result<Settled, DivergedError> {
    match save_and_take_back(settings, primary, server) {
        // No binlog that can be read: there is no report, and the data themselves stay.
        Err(
            error @ (DivergedError::Purged { .. }
            | DivergedError::Binlog(_)
            | DivergedError::Process(_)),
        ) => Ok(Settled::NeedsRebuild(error.to_string())),
        settled => settled,
    }
}

fn save_and_take_back(
    settings: &Settings,
    primary: &Node,
    server: &Server,
) -> Result<Settled, DivergedError> {
    // That of a look is less patient.
    let session = &mut Session::connect(settings, Target::Local, STATEMENT)?;
    let (divergence, report) = write_down_with(settings, session, primary, server)?;
    let obstacle = match divergence.obstacle(session)? {
        Some(why) => Some(why),
        None => match divergence.take_back(settings, session, &report) {
            // The client's transaction was rolled back: the rows are as they were.
            Err(DivergedError::Process(error)) => Some(error.to_string()),
            taken => taken.map(|()| None)?,
        },
    };
    if let Some(why) = obstacle {
        return Ok(Settled::NeedsRebuild(format!(
            "this node has transactions that {} never had, written down in {}, and they cannot be taken back: {why}",
            primary.name,
            report.display()
        )));
    }
    statements::demote(session, settings, primary)?;
    Ok(Settled::TakenBack { report })
}

/// Saves what only this node has, and no more; gives the report.
pub fn write_down(
    settings: &Settings,
    primary: &Node,
    server: &Server,
) -> Result<PathBuf, DivergedError> {
    let session = &mut Session::connect(settings, Target::Local, STATEMENT)?;
    Ok(write_down_with(settings, session, primary, server)?.1)
}

fn write_down_with(
    settings: &Settings,
    session: &mut Session,
    primary: &Node,
    server: &Server,
) -> Result<(Divergence, PathBuf), DivergedError> {
    let local = observe::observe_server(session, settings)?;
    let missing = local.errant_against(server);
    let divergence = find(
        &settings.database.binlog_index,
        &local.slave_pos,
        &server.history(),
    )?
    .ok_or(DivergedError::Purged { missing })?;
    let report = divergence.save(settings, session, primary, server.epoch_number())?;
    Ok((divergence, report))
}

/// Reads the binlogs from the newest that the primary's history still covers. What is known by the position of
/// replication alone, as after a copy by hand, belongs to what was before.
fn find(
    index: &Path,
    slave_pos: &GtidSet,
    primary: &GtidSet,
) -> Result<Option<Divergence>, DivergedError> {
    let all = binlog::files(index).map_err(at(index))?;
    let mut begin = all.len();
    let mut before = GtidSet::default();
    while begin > 0 {
        begin -= 1;
        before = binlog::before(&all[begin])?;
        if primary.contains(&before) {
            break;
        }
    }
    let mut found = Divergence {
        before,
        transactions: Vec::new(),
        logs: Vec::new(),
        mixed: false,
        primary: primary.clone(),
    };
    if !primary.contains(&found.before) {
        return Ok(None);
    }
    for log in &all[begin..] {
        for transaction in binlog::read(log)?.transactions {
            if !primary.includes(transaction.gtid) {
                found.transactions.push(transaction);
            } else if found.transactions.is_empty() {
                found.before.add(transaction.gtid);
            } else {
                found.mixed = true;
            }
        }
        if !found.transactions.is_empty() {
            found.logs.push(log.clone());
        }
    }
    found.before = found.before.union(&slave_pos.within(primary));
    Ok((!found.transactions.is_empty()).then_some(found))
}

impl Divergence {
    /// From the first to the last, and when it began: what was taken back leaves its GTIDs free.
    fn name(&self) -> String {
        let (Some(first), Some(last)) = (self.transactions.first(), self.transactions.last())
        else {
            return String::new();
        };
        let began = jiff::Timestamp::from_second(first.time.into()).unwrap_or_default();
        format!("{}_{}-{}", first.gtid, last.gtid, tell::stamp(began))
    }

    fn binlog(&self, options: &[&str]) -> Program {
        let position = self.transactions.first().map_or(4, |t| t.position);
        Program::new("mariadb-binlog")
            // The client's settings may name what it does not know.
            .arg("--no-defaults")
            .args(options)
            // Counts in the first of the files.
            .arg(format!("--start-position={position}"))
            .args(&self.logs)
            .deadline(PATIENCE)
    }

    /// Writes them down as SQL and as JSON below recovered/, and tells a person, once.
    fn save(
        &self,
        settings: &Settings,
        session: &mut Session,
        primary: &Node,
        epoch: u64,
    ) -> Result<PathBuf, DivergedError> {
        let directory = recovered::of_epoch(settings, epoch);
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        let json = directory.join(format!("transactions-{}.json", self.name()));
        if json.exists() {
            return Ok(json);
        }
        let sql = json.with_extension("sql");
        let printed = directory.join("printed");
        self.binlog(&["--verbose"])
            .stdout_to(&printed)
            .run()?
            .success()?;
        let me = &settings.local().name;
        let heading = format!(
            "-- {} transactions that {me} wrote and {} (primary of epoch {epoch}) never had: {}\n\
             -- The lines after `#Q>` are the statements, those after `###` the rows. What is still wanted is\n\
             -- to be written again on the primary.\n",
            self.transactions.len(),
            primary.name,
            self.name()
        );
        lost_rows::with_heading(&heading, &printed, &sql).map_err(at(&sql))?;
        let columns = lost_rows::columns(session, self.tables())?;
        let summary = serde_json::json!({
            "node": me,
            "primary": primary.name,
            "epoch": epoch,
            "common": self.before.position(),
            "count": self.transactions.len(),
        });
        // Last: it says that the report is whole.
        let part = directory.join("printed.json");
        let whole = lost_rows::as_json(&summary, &printed, &columns, &part)
            .and_then(|()| fs::rename(&part, &json));
        if whole.is_err() {
            // Half a report is none, and may be large.
            let _ = fs::remove_file(&part);
        }
        whole
            .and_then(|()| File::open(&directory)?.sync_all())
            .map_err(at(&json))?;
        fs::remove_file(&printed).map_err(at(&printed))?;
        tell::alert(
            settings,
            "diverged",
            Severity::Critical,
            &format!(
                "{me} has {} transactions that {} never had; they are written down in {} and .json",
                self.transactions.len(),
                primary.name,
                sql.display()
            ),
        );
        Ok(json)
    }

    fn tables(&self) -> impl Iterator<Item = &(String, String)> {
        self.transactions.iter().flat_map(|t| &t.tables)
    }

    /// Why they cannot be taken back row by row.
    fn obstacle(&self, session: &mut Session) -> Result<Option<String>, DivergedError> {
        if let Some(other) = self.transactions.iter().find(|t| !t.rows_only) {
            return Ok(Some(format!(
                "{} is not a change of rows alone (a change of a table's structure, or a statement)",
                other.gtid
            )));
        }
        if self.mixed {
            return Ok(Some(
                "the primary's own transactions stand between them".to_owned(),
            ));
        }
        // InnoDB does not write the rows that a foreign key changes into the binlog. The flags are those of
        // ON DELETE CASCADE and SET NULL, ON UPDATE CASCADE and SET NULL.
        let following: Vec<String> = session.rows(
            "SELECT REF_NAME FROM information_schema.INNODB_SYS_FOREIGN WHERE TYPE & 15 <> 0",
        )?;
        Ok(self
            .tables()
            .find(|table| may_be_among(table, &following))
            .map(|(schema, table)| {
                format!("rows of other tables follow those of {schema}.{table} by a foreign key, and the binlog does not have them")
            }))
    }

    fn take_back(
        &self,
        settings: &Settings,
        session: &mut Session,
        report: &Path,
    ) -> Result<(), DivergedError> {
        statements::set_semi_sync(session, settings, false)?;
        session.execute("STOP ALL SLAVES")?;
        let name = self.name();
        if statements::flashback_note(session, settings)?.is_none_or(|note| note.undone != name) {
            let raw = settings.paths.state.join("flashback-raw.sql");
            self.binlog(&["--flashback", "--skip-annotate-row-events"])
                .stdout_to(&raw)
                .run()?
                .success()?;
            let sql = settings.paths.state.join("flashback.sql");
            let note = statements::note_flashback(settings, &name, &self.before);
            one_transaction(&raw, &sql, &note).map_err(at(&sql))?;
            fs::remove_file(&raw).map_err(at(&raw))?;
            Credentials::write(settings, "flashback")?
                .execute(&sql, false)
                .deadline(PATIENCE)
                .run()?
                .success()?;
            fs::remove_file(&sql).map_err(at(&sql))?;
        }
        // Its relay log is of the wrong history.
        session.execute("RESET SLAVE ALL")?;
        // One of its own each time: binlogs begin with the same numbers again.
        let now = tell::stamp(jiff::Timestamp::now());
        let directory = report.with_extension(format!("binlogs-{now}"));
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        for log in &self.logs {
            let kept = directory.join(log.file_name().unwrap_or_default());
            keep(log, &kept).map_err(at(&kept))?;
        }
        File::open(&directory)
            .and_then(|directory| directory.sync_all())
            .map_err(at(&directory))?;
        // What was written here meanwhile is in no report yet.
        let slave_pos = observe::observe_server(session, settings)?.slave_pos;
        let now = find(&settings.database.binlog_index, &slave_pos, &self.primary)?;
        let note = statements::flashback_note(session, settings)?;
        if now.is_none_or(|now| now.name() != name) || note.is_none_or(|note| note.undone != name) {
            return Err(DivergedError::Moved);
        }
        session.execute("RESET MASTER")?;
        statements::finish_flashback(session, settings)?;
        tell::failover_log(
            settings,
            &format!("took back {} transactions: {name}", self.transactions.len()),
        );
        Ok(())
    }
}

/// InnoDB writes a name with other than plain letters in its own way, so such a one may be any.
fn may_be_among((schema, table): &(String, String), names: &[String]) -> bool {
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain(schema) && plain(table) {
        names.contains(&format!("{schema}/{table}"))
    } else {
        !names.is_empty()
    }
}

/// A second name for a file, or a copy where that is another file system.
fn keep(file: &Path, kept: &Path) -> io::Result<()> {
    if fs::hard_link(file, kept).is_ok() {
        return Ok(());
    }
    fs::copy(file, kept).and_then(|_| File::open(kept)?.sync_all())
}

/// mariadb-binlog prints one reversed transaction after another; all of them become one, with the note
/// that says so, or none.
fn one_transaction(raw: &Path, sql: &Path, note: &str) -> io::Result<()> {
    let mut output = BufWriter::new(lost_rows::private(sql)?);
    let mut begun = false;
    // A COMMIT stands on a line of its own, its delimiter on the next.
    let mut committed = false;
    for line in BufReader::new(File::open(raw)?).split(b'\n') {
        let line = line?;
        if committed && line == b"/*!*/;" {
            committed = false;
            continue;
        }
        match line.as_slice() {
            b"START TRANSACTION/*!*/;" if begun => {}
            b"COMMIT" => committed = true,
            b"DELIMITER ;" if begun => {
                writeln!(output, "DELIMITER ;\n{note};\nCOMMIT;")?;
            }
            _ => {
                begun |= line == b"START TRANSACTION/*!*/;";
                output.write_all(&line)?;
                output.write_all(b"\n")?;
            }
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_table_that_others_follow_is_known() {
        let table = |schema: &str, name: &str| (schema.to_owned(), name.to_owned());
        let names = ["ha_app/parent".to_owned()];
        assert!(may_be_among(&table("ha_app", "parent"), &names));
        assert!(!may_be_among(&table("ha_app", "child"), &names));
        assert!(may_be_among(&table("ha-app", "child"), &names));
        assert!(!may_be_among(&table("ha-app", "child"), &[]));
    }

    #[test]
    fn all_that_is_taken_back_is_one_transaction() {
        let directory = tempfile::tempdir().unwrap();
        let (raw, sql) = (directory.path().join("raw"), directory.path().join("sql"));
        // As MariaDB 10.11.19 prints it, shortened; the header ends with a delimiter, too.
        fs::write(
            &raw,
            "DELIMITER /*!*/;\nROLLBACK/*!*/;\nDELIMITER ;\nDELIMITER /*!*/;\nSTART TRANSACTION/*!*/;\nBINLOG 'b'/*!*/;\n\
             COMMIT\n/*!*/;\nSTART TRANSACTION/*!*/;\nBINLOG 'a'/*!*/;\nCOMMIT\n/*!*/;\nCOMMIT\n/*!*/;\nDELIMITER ;\nROLLBACK;\n",
        )
        .unwrap();
        one_transaction(&raw, &sql, "NOTE").unwrap();
        assert_eq!(
            fs::read_to_string(&sql).unwrap(),
            "DELIMITER /*!*/;\nROLLBACK/*!*/;\nDELIMITER ;\nDELIMITER /*!*/;\nSTART TRANSACTION/*!*/;\nBINLOG 'b'/*!*/;\n\
             BINLOG 'a'/*!*/;\nDELIMITER ;\nNOTE;\nCOMMIT;\nROLLBACK;\n"
        );
    }
}
