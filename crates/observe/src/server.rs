//! One server's state, asked in a few read-only statements.

use mysql::prelude::FromValue;
use mysql::{Row, from_value_opt};
use role::{Channel, Epoch, GtidSet, IoThread, SemiSync, Server};
use settings::Settings;

use crate::{Session, SqlError};

const VARIABLES: &str = "SELECT @@server_id, @@read_only, @@gtid_binlog_state, @@gtid_slave_pos, \
     @@rpl_semi_sync_master_enabled, CONCAT(@@replicate_do_db, @@replicate_ignore_db, @@replicate_do_table, \
     @@replicate_ignore_table, @@replicate_wild_do_table, @@replicate_wild_ignore_table, \
     IF(@@slave_skip_errors = 'OFF', '', @@slave_skip_errors))";
const CHANNELS: &str = "SHOW ALL SLAVES STATUS";
const DUMPS: &str =
    "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'";
/// It evaluates only the variables that it shows. `information_schema.GLOBAL_STATUS` evaluates all of them whatever is
/// selected, and some count the accounts: it hangs for as long as a GRANT or a CREATE USER waits for a replica (tried
/// with MariaDB 10.11).
const SEMI_SYNC: &str = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_%'";

/// `ER_NO_SUCH_TABLE` and `ER_BAD_DB_ERROR`: the toolkit's schema is not there yet.
const NO_SCHEMA: [u16; 2] = [1146, 1049];

/// Everything the role logic wants to know of a server.
pub fn observe_server(session: &mut Session, settings: &Settings) -> Result<Server, SqlError> {
    let (server_id, read_only, binlog_state, slave_pos, enabled, filters): (
        u32,
        bool,
        String,
        String,
        bool,
        Option<String>,
    ) = session.row(VARIABLES)?;
    let filtered = filters.is_some_and(|f| !f.is_empty());
    let epoch = read_epoch(session, settings)?;
    let channels = session
        .rows::<Row>(CHANNELS)?
        .into_iter()
        .map(|row| channel(row, filtered))
        .collect::<Result<Vec<_>, _>>()?;
    let waits = waits_for(session)?;
    let replicas = session.row(DUMPS)?;
    Ok(Server {
        server_id,
        writable: !read_only,
        epoch,
        binlog_state: gtids(VARIABLES, &binlog_state)?,
        slave_pos: gtids(VARIABLES, &slave_pos)?,
        channels,
        semi_sync: SemiSync {
            enabled,
            active: waits.active,
            clients: waits.replicas,
            replicas,
        },
    })
}

/// For what the server's commits wait by its own word, whatever its variables say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// They wait; not so after a time-out of its own, until a replica has caught up.
    pub active: bool,
    /// Connected semi-synchronous replicas; 0 while semi-synchronous replication is off.
    pub replicas: u32,
}

/// Asked of the server; this hangs behind no client's statement.
pub fn waits_for(session: &mut Session) -> Result<Waits, SqlError> {
    let shown = session.rows::<(String, String)>(SEMI_SYNC)?;
    let value = |name: &str| {
        shown
            .iter()
            .find(|(shown, _)| shown.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    };
    let read = value("Rpl_semi_sync_master_status")
        .zip(value("Rpl_semi_sync_master_clients").and_then(|text| text.parse().ok()));
    let (status, replicas) = read.ok_or_else(|| SqlError::Answer {
        statement: SEMI_SYNC.to_owned(),
        answer: format!("{shown:?}"),
        expected: "a status and a number of clients",
    })?;
    Ok(Waits {
        active: status == "ON",
        replicas,
    })
}

/// `Last_SQL_Errno` of every replication channel, 0 for a healthy one. The lean question of
/// check-master, asked every second.
pub fn channel_sql_errors(session: &mut Session) -> Result<Vec<u32>, SqlError> {
    of_channels(session, "Last_SQL_Errno")
}

/// `Last_IO_Error` of every replication channel; empty for a healthy one.
pub fn last_io_errors(session: &mut Session) -> Result<Vec<String>, SqlError> {
    of_channels(session, "Last_IO_Error")
}

fn of_channels<T: FromValue>(session: &mut Session, column: &str) -> Result<Vec<T>, SqlError> {
    session
        .rows::<Row>(CHANNELS)?
        .into_iter()
        .map(|mut row| {
            row.take::<mysql::Value, _>(column)
                .and_then(|value| from_value_opt(value).ok())
                .ok_or_else(|| missing(column))
        })
        .collect()
}

/// The epoch row alone. Unlike the whole observation it does not wait for a pending STOP SLAVE.
pub fn read_epoch(session: &mut Session, settings: &Settings) -> Result<Option<Epoch>, SqlError> {
    let statement = format!(
        "SELECT epoch, primary_node FROM `{}`.epoch WHERE id = 1",
        settings.database.schema
    );
    match session.rows::<(u64, String)>(&statement) {
        Ok(rows) => Ok(rows
            .into_iter()
            .next()
            .map(|(number, primary)| Epoch { number, primary })),
        Err(error) if error.server_code().is_some_and(|c| NO_SCHEMA.contains(&c)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn channel(mut row: Row, filtered: bool) -> Result<Channel, SqlError> {
    let mut text = |name: &str| -> Result<String, SqlError> {
        let value = row
            .take::<mysql::Value, _>(name)
            .ok_or_else(|| missing(name))?;
        if value == mysql::Value::NULL {
            return Ok(String::new());
        }
        from_value_opt::<String>(value).map_err(|_| missing(name))
    };
    let number = |name: &str, text: String| text.parse::<u32>().map_err(|_| missing(name));
    Ok(Channel {
        name: text("Connection_name")?,
        source: text("Master_Host")?,
        io: match text("Slave_IO_Running")?.as_str() {
            "Yes" => IoThread::Running,
            "No" => IoThread::Stopped,
            // `Connecting`, and `Preparing` while it starts.
            _ => IoThread::Connecting,
        },
        sql_running: text("Slave_SQL_Running")? == "Yes",
        follows_slave_pos: text("Using_Gtid")? == "Slave_Pos",
        io_errno: number("Last_IO_Errno", text("Last_IO_Errno")?)?,
        sql_errno: number("Last_SQL_Errno", text("Last_SQL_Errno")?)?,
        received: gtids(CHANNELS, &text("Gtid_IO_Pos")?)?,
        filtered,
    })
}

fn missing(column: &str) -> SqlError {
    SqlError::Answer {
        statement: CHANNELS.to_owned(),
        answer: format!("nothing usable in column {column}"),
        expected: "the columns of MariaDB 10.11 or later",
    }
}

fn gtids(statement: &str, text: &str) -> Result<GtidSet, SqlError> {
    text.parse().map_err(|_| SqlError::Answer {
        statement: statement.to_owned(),
        answer: text.to_owned(),
        expected: "a list of GTIDs",
    })
}
