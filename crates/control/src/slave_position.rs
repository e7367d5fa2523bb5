//! Where replication goes on after a crash of a replica.
//!
//! Changes of InnoDB's rows commit together with `gtid_slave_pos`, so crash recovery never parts the two. A
//! statement such as ALTER TABLE is executed, then written to this server's own binlog, and then, in a transaction of its
//! own, to `gtid_slave_pos`. A death in between leaves a position before a statement that the binlog has, and
//! strict mode refuses to apply it a second time (1950), for ever. The same is left by a promotion that died after
//! it had applied the end of the old primary's binlog, since that does not go through a channel.
//!
//! Rows that the binlog has after a recovery are committed: it is the coordinator of the commit. For tables and indexes the binlog is right: what it has was executed before, and what it has not is undone or
//! finished at the start, by MariaDB's DDL log (10.6 and later). For accounts and routines it is not: their rows in
//! the schema `mysql` reach the disk after the binlog. With 10.11.19, a replica killed at random moments: the
//! statement had taken effect in all of 16 cases of the one kind, and had not in 4 of 14 of the other.

use observe::{Session, SqlError};
use role::{GtidSet, Server};
use settings::Settings;

use crate::binlog::{self, BinlogError, Content, Transaction};
use crate::path_error::at;
use crate::statements::quote;

/// Why replication is not started.
#[derive(Debug, thiserror::Error)]
pub enum PositionError {
    /// The local server.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Its binlog.
    #[error(transparent)]
    Binlog(#[from] BinlogError),
    /// The primary cannot send what comes next here.
    #[error(
        "{primary} cannot send what this server needs next (error {NOT_IN_BINLOGS}; Last_IO_Error in SHOW ALL SLAVES \
         STATUS says more): its binlogs were purged, or the histories differ; next: failback --rejoin-only --rebuild"
    )]
    OnlyByCopy {
        /// Who cannot.
        primary: String,
    },
    /// Receiving ended at an error, and what was received is not applied.
    #[error(
        "receiving from {primary} ended at error {errno} (Last_IO_Error in SHOW ALL SLAVES STATUS says more), and what was \
         received is not applied: {next}"
    )]
    Unapplied {
        /// From whom.
        primary: String,
        /// `Last_IO_Errno`
        errno: u32,
        /// What to do.
        next: &'static str,
    },
    /// Receiving ended at an error.
    #[error(
        "receiving from {primary} ended at error {errno}; it is tried again every half a minute; mend what \
         Last_IO_Error in SHOW ALL SLAVES STATUS names"
    )]
    Ended {
        /// From whom.
        primary: String,
        /// `Last_IO_Errno`
        errno: u32,
    },
    /// The binlog is ahead of the position, and it is not proved that what it has took effect.
    #[error("{why}; next: {next}")]
    NotKnown {
        /// What is ahead of what.
        why: String,
        /// A command.
        next: String,
    },
}

/// `ER_MASTER_FATAL_ERROR_READING_BINLOG`
pub const NOT_IN_BINLOGS: u32 = 1236;

fn not_known(binlog: &GtidSet, position: &GtidSet) -> PositionError {
    PositionError::NotKnown {
        why: format!(
            "this database has died, its binlog goes up to {binlog} and gtid_slave_pos to {position}, and it cannot \
             be told whether what lies between took effect"
        ),
        next: format!(
            "failback --rejoin-only --rebuild; or, where mariadb-binlog and the tables show that it did: \
             mariadb -e \"SET GLOBAL gtid_slave_pos = '{binlog}'\""
        ),
    }
}

/// Sets `gtid_slave_pos` to the end of the binlog where a crash has left it before what took effect. The binlog
/// must be contained in the primary's. Nothing is done while a channel applies.
pub fn after_crash(session: &mut Session, settings: &Settings) -> Result<(), PositionError> {
    let server = observe::observe_server(session, settings)?;
    if ahead(&server).is_none() || server.channels.iter().any(|channel| channel.sql_running) {
        return Ok(());
    }
    // The applying thread may have gone on between the two halves of the look.
    session.execute("STOP ALL SLAVES")?;
    let server = observe::observe_server(session, settings)?;
    let Some(binlog) = ahead(&server) else {
        return Ok(());
    };
    let newest = newest(settings)?;
    if !took_effect(&server, &binlog, &newest) {
        return Err(not_known(&binlog, &server.slave_pos));
    }
    log::warn!(
        "a crash has left gtid_slave_pos at {}, before what took effect: set to {binlog}",
        server.slave_pos
    );
    session.execute(&format!(
        "SET GLOBAL gtid_slave_pos = {}",
        quote(&binlog.to_string())
    ))?;
    Ok(())
}

/// The end of the binlog where it is replication's own, and `gtid_slave_pos` does not know it. What this server
/// wrote itself, as a primary, is MariaDB's affair: CHANGE MASTER with `MASTER_DEMOTE_TO_SLAVE`.
fn ahead(server: &Server) -> Option<GtidSet> {
    let end = server.history().position();
    let replicated = end.without_server(server.server_id);
    (!server.slave_pos.contains(&replicated)).then_some(end)
}

/// The newest binlog that has a transaction: a start begins a new one.
fn newest(settings: &Settings) -> Result<Content, BinlogError> {
    let index = &settings.database.binlog_index;
    for log in binlog::files(index).map_err(at(index))?.iter().rev() {
        let content = binlog::read(log)?;
        if !content.transactions.is_empty() {
            return Ok(content);
        }
    }
    Ok(Content::default())
}

/// Whether everything between `gtid_slave_pos` and the end is in that binlog, came from the primary, and took effect.
fn took_effect(server: &Server, end: &GtidSet, newest: &Content) -> bool {
    let start = server.slave_pos.position();
    let after = |set: &GtidSet| server.slave_pos.union(set).position() != start;
    let between: Vec<&Transaction> = newest
        .transactions
        .iter()
        .filter(|t| after(&GtidSet::from_iter([t.gtid])))
        // Without what the death cut off in its middle: the server does not count it.
        .filter(|t| server.binlog_state.includes(t.gtid))
        .collect();
    let reaches = between.last().is_some_and(|last| end.includes(last.gtid));
    let proved = |t: &&Transaction| {
        let statement = t.statement.as_deref();
        t.gtid.server != server.server_id
            && (t.rows_only || statement.is_some_and(is_undone_unless_in_binlog))
    };
    !after(&newest.before) && reaches && between.iter().all(proved)
}

/// Whether it is a statement that is executed before it is written to the binlog, and undone at the start after a
/// crash when it was not. That partitions are exchanged in this order is not proved.
fn is_undone_unless_in_binlog(statement: &str) -> bool {
    let statement = statement.to_ascii_uppercase();
    let mut words = statement.split_whitespace();
    let verb = words.next().unwrap_or_default();
    let object = words
        .find(|word| !matches!(*word, "OR" | "REPLACE" | "UNIQUE" | "ONLINE"))
        .unwrap_or_default();
    matches!(verb, "CREATE" | "ALTER" | "DROP" | "RENAME" | "TRUNCATE")
        && matches!(object, "TABLE" | "INDEX")
        && !statement.contains("PARTITION")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use role::SemiSync;

    use super::*;

    fn set(text: &str) -> GtidSet {
        text.parse().unwrap()
    }

    fn server(binlog_state: &str, slave_pos: &str) -> Server {
        Server {
            server_id: 2,
            writable: false,
            epoch: None,
            binlog_state: set(binlog_state),
            slave_pos: set(slave_pos),
            channels: Vec::new(),
            semi_sync: SemiSync::default(),
        }
    }

    #[test]
    fn only_what_replication_wrote_counts() {
        for (state, position, expected) in [
            ("0-1-38,0-2-20", "0-1-37", Some("0-1-38")),
            ("0-1-38,0-2-20", "0-1-38", None),
            // A copy of the primary, whose position is beyond its binlog.
            ("0-1-30", "0-1-38", None),
            // It was the primary since.
            ("0-1-38,0-2-50", "0-1-38", None),
            ("0-1-38,0-2-50", "0-1-37", None),
            ("", "", None),
        ] {
            assert_eq!(
                ahead(&server(state, position)),
                expected.map(set),
                "{state} {position}"
            );
        }
    }

    const ROWS: Option<&str> = Some("rows");

    fn transaction(gtid: &str, statement: Option<&str>) -> Transaction {
        let mut parts = gtid.split('-').map(|part| part.parse().unwrap());
        Transaction {
            gtid: role::Gtid {
                domain: 0,
                server: parts.nth(1).unwrap(),
                sequence: parts.next().unwrap().into(),
            },
            time: 0,
            position: 4,
            rows_only: statement == ROWS,
            statement: statement.filter(|_| statement != ROWS).map(str::to_owned),
            tables: BTreeSet::new(),
        }
    }

    #[test]
    fn the_position_follows_what_took_effect() {
        let create = Some("CREATE TABLE a (n INT)");
        for (before, transactions, proved) in [
            (
                "0-1-36,0-2-20",
                vec![("0-1-37", ROWS), ("0-1-38", create)],
                true,
            ),
            ("0-1-37", vec![("0-1-38", create)], true),
            // As in a copy of the primary, whose binlog begins after the position.
            ("", vec![("0-1-38", create)], true),
            // The end of the old primary's binlog.
            (
                "0-1-37",
                vec![("0-1-38", ROWS), ("0-1-39", create), ("0-1-40", ROWS)],
                true,
            ),
            ("0-1-37", vec![("0-1-38", Some("CREATE USER a"))], false),
            (
                "0-1-37",
                vec![("0-1-38", Some("CREATE USER a")), ("0-1-39", create)],
                false,
            ),
            // Rows of a table without transactions.
            ("0-1-37", vec![("0-1-38", None)], false),
            // Written here.
            (
                "0-1-37",
                vec![("0-2-38", create), ("0-1-39", create)],
                false,
            ),
            // What an earlier file has is not looked at.
            ("0-1-38", vec![("0-1-39", create)], false),
            ("0-1-36,0-2-38", vec![("0-1-39", create)], false),
            ("0-1-37", vec![], false),
        ] {
            let transactions: Vec<_> = transactions
                .iter()
                .map(|(g, s)| transaction(g, *s))
                .collect();
            let written: GtidSet = transactions.iter().map(|t| t.gtid).collect();
            let me = server(&written.union(&set(before)).to_string(), "0-1-37");
            let end = written.position();
            let mut newest = Content {
                before: set(before),
                transactions,
            };
            assert_eq!(took_effect(&me, &end, &newest), proved, "{newest:?}");
            newest.transactions.push(transaction("0-1-41", None));
            assert_eq!(took_effect(&me, &end, &newest), proved, "cut off");
        }
    }

    #[test]
    fn statements_whose_effect_is_known() {
        for good in [
            "create table a (n int)",
            "CREATE OR REPLACE TABLE a (n INT)",
            "ALTER TABLE a ADD COLUMN b INT",
            "DROP TABLE IF EXISTS `a` /* generated by server */",
            "RENAME TABLE a TO b",
            "TRUNCATE TABLE a",
            "CREATE UNIQUE INDEX i ON a (n)",
            "DROP INDEX i ON a",
        ] {
            assert!(is_undone_unless_in_binlog(good), "{good}");
        }
        for bad in [
            "CREATE USER a",
            "GRANT ALL ON *.* TO a",
            "CREATE PROCEDURE p() BEGIN END",
            "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO ALTER TABLE a FORCE",
            "DROP DATABASE a",
            "ALTER TABLE a DROP PARTITION p0",
            "TRUNCATE a",
            "FLUSH TABLES",
            "",
        ] {
            assert!(!is_undone_unless_in_binlog(bad), "{bad}");
        }
    }
}
