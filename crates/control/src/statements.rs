//! The statements that change a server's role. Everything else only reads.

use std::time::{Duration, Instant};

pub use observe::quote;
use observe::{Session, SqlError};
use role::{Channel, GtidSet, Server};
use settings::{Node, Settings};

use crate::slave_position::{self, NOT_IN_BINLOGS, PositionError};

/// Between two tries of what ended at an error, in seconds; each tick of the audit is one of them.
const AGAIN: f64 = 30.0;
const TICK: f64 = 2.0;

/// A primary that was away, or had no connection left: the client's error numbers of 2002 and on, and the server's.
const PASSES: [u32; 10] = [1040, 1129, 1158, 1159, 1160, 1161, 2002, 2003, 2006, 2013];

/// Whether an error 1236 cannot pass: what is needed is not there. The others are a packet that was too large, or a binlog
/// that could not be read for once. The words are those of MariaDB 10.11.
fn is_final(error: &str) -> bool {
    [
        "Could not find GTID state",
        "not in the master's binlog",
        "purged",
    ]
    .iter()
    .any(|words| error.contains(words))
}

/// Makes the server read-only and reads it back.
pub fn close(session: &mut Session) -> Result<(), SqlError> {
    session.execute("SET GLOBAL read_only = 1")?;
    expect_read_only(session, true)
}

/// Opens the server for writes and reads it back.
pub fn open(session: &mut Session) -> Result<(), SqlError> {
    session.execute("SET GLOBAL read_only = 0")?;
    expect_read_only(session, false)
}

fn expect_read_only(session: &mut Session, wanted: bool) -> Result<(), SqlError> {
    let statement = "SELECT @@read_only";
    let found: bool = session.row(statement)?;
    if found == wanted {
        return Ok(());
    }
    Err(SqlError::Answer {
        statement: statement.to_owned(),
        answer: u8::from(found).to_string(),
        expected: if wanted { "1" } else { "0" },
    })
}

/// Ends every client's session; the toolkit's own, replication's and the server's own stay.
pub fn end_clients(session: &mut Session, settings: &Settings) -> Result<(), SqlError> {
    let database = &settings.database;
    let which = format!(
        "USER NOT IN ('system user', 'event_scheduler', {}, {})",
        quote(&database.account.user),
        quote(&database.replication.user),
    );
    end_sessions(session, &which)
}

/// Ends the sessions that the toolkit on other nodes has here, but for this one.
pub fn end_remote_tools(session: &mut Session, settings: &Settings) -> Result<(), SqlError> {
    let user = quote(&settings.database.account.user);
    // A session over the unix socket is at localhost, one over TCP at ADDRESS:PORT.
    end_sessions(session, &format!("USER = {user} AND HOST <> 'localhost'"))
}

/// Ends the sessions of the process list for which the condition holds, but for this one.
fn end_sessions(session: &mut Session, which: &str) -> Result<(), SqlError> {
    let found = session.rows::<u64>(&format!(
        "SELECT ID FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID() AND {which}"
    ))?;
    for id in found {
        match session.execute(&format!("KILL CONNECTION {id}")) {
            // ER_NO_SUCH_THREAD: it left by itself.
            Err(error) if error.server_code() != Some(1094) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Sessions whose commit waits for a replica's acknowledgement.
pub fn commits_waiting(session: &mut Session) -> Result<u32, SqlError> {
    session.row(
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for semi-sync ACK%'",
    )
}

/// Switches semi-synchronous replication; its status follows at the next commit.
pub fn set_semi_sync(session: &mut Session, settings: &Settings, on: bool) -> Result<(), SqlError> {
    let timeout = settings.database.semi_sync_last_resort.as_millis();
    // Without `wait_no_slave` a commit would not wait at all while no replica is connected.
    session.execute(&format!(
        "SET GLOBAL rpl_semi_sync_master_timeout = {timeout}, GLOBAL rpl_semi_sync_master_wait_no_slave = 1, \
         GLOBAL rpl_semi_sync_master_enabled = {}",
        u8::from(on)
    ))
}

/// Writes this node's heartbeat row, so that semi-synchronous replication proves itself.
pub fn beat(session: &mut Session, settings: &Settings) -> Result<(), SqlError> {
    replicated(
        session,
        &format!(
            "INSERT INTO `{}`.heartbeat (node, beat, at) VALUES ({}, 1, NOW(6)) \
             ON DUPLICATE KEY UPDATE beat = beat + 1, at = NOW(6)",
            settings.database.schema,
            quote(&settings.local().name)
        ),
    )
}

/// How often this node has written its heartbeat row, as the server of the session knows it.
pub fn beats(session: &mut Session, settings: &Settings) -> Result<u64, SqlError> {
    session.row(&format!(
        "SELECT COALESCE(MAX(beat), 0) FROM `{}`.heartbeat WHERE node = {}",
        settings.database.schema,
        quote(&settings.local().name)
    ))
}

/// Writes the epoch row: the first transaction of a new primary.
pub fn claim_epoch(session: &mut Session, settings: &Settings, epoch: u64) -> Result<(), SqlError> {
    let position: String = session.row("SELECT @@gtid_binlog_pos")?;
    replicated(
        session,
        &format!(
            "REPLACE INTO `{}`.epoch (id, epoch, primary_node, opened_at, gtid) VALUES (1, {epoch}, {}, NOW(6), {})",
            settings.database.schema,
            quote(&settings.local().name),
            quote(&position)
        ),
    )
}

/// The toolkit's sessions keep out of the binlog; these rows must travel with the data.
pub fn replicated(session: &mut Session, statement: &str) -> Result<(), SqlError> {
    session.execute("SET SESSION sql_log_bin = 1")?;
    let written = session.execute(statement);
    // One that did not answer is not asked again: that would be waited for as well, and its late answer be taken for
    // another one.
    if written
        .as_ref()
        .err()
        .is_none_or(|error| error.server_code().is_some())
    {
        session.execute("SET SESSION sql_log_bin = 0")?;
    }
    written
}

/// Waits until everything in `position` is applied; false when the time ran out.
pub fn wait_for(
    session: &mut Session,
    position: &GtidSet,
    limit: Duration,
) -> Result<bool, SqlError> {
    let statement = format!(
        "SELECT MASTER_GTID_WAIT({}, {:.3})",
        quote(&position.to_string()),
        limit.as_secs_f64()
    );
    let answer: i32 = session.row(&statement)?;
    Ok(answer == 0)
}

/// What a statement answers as a list of GTIDs.
pub fn gtids(session: &mut Session, statement: &str) -> Result<GtidSet, SqlError> {
    let answer: String = session.row(statement)?;
    as_gtids(statement, answer)
}

fn as_gtids(statement: &str, answer: String) -> Result<GtidSet, SqlError> {
    answer.parse().map_err(|_| SqlError::Answer {
        statement: statement.to_owned(),
        answer,
        expected: "a list of GTIDs",
    })
}

/// The position of a server that no longer writes: read until it is twice the same.
pub fn stable_position(
    session: &mut Session,
    limit: Duration,
) -> Result<(GtidSet, GtidSet), SqlError> {
    let statement = "SELECT @@gtid_binlog_pos, @@gtid_binlog_state";
    let start = Instant::now();
    let mut last: (String, String) = session.row(statement)?;
    loop {
        let now: (String, String) = session.row(statement)?;
        if now == last {
            return Ok((as_gtids(statement, now.0)?, as_gtids(statement, now.1)?));
        }
        if start.elapsed() > limit {
            return Err(SqlError::Answer {
                statement: statement.to_owned(),
                answer: format!("{} and still moving", now.0),
                expected: "the same position twice under the global read lock",
            });
        }
        last = now;
    }
}

/// Lets the server replicate from `primary` again. Its own binlog must be contained in the
/// primary's. A channel that fits is started and not made anew: RESET SLAVE would delete a relay log
/// that may hold the only second copy of what clients were told is safe.
pub fn attach(
    session: &mut Session,
    settings: &Settings,
    primary: &Node,
) -> Result<(), PositionError> {
    if finish_flashback(session, settings)? {
        return Ok(demote(session, settings, primary)?);
    }
    slave_position::after_crash(session, settings)?;
    let server = observe::observe_server(session, settings)?;
    if let [channel] = server.channels.as_slice()
        && channel.source == primary.private.to_string()
        && channel.follows_slave_pos
    {
        if channel.io_errno != 0 && !PASSES.contains(&channel.io_errno) {
            return receive_again(session, &server, channel, primary);
        }
        set_semi_sync(session, settings, false)?;
        return Ok(session.execute(if channel.sql_running {
            "START SLAVE IO_THREAD"
        } else {
            "START SLAVE"
        })?);
    }
    Ok(demote(session, settings, primary)?)
}

/// A channel whose receiving ended at an error. It is not made anew: that would delete what was received, and the error
/// would come again.
fn receive_again(
    session: &mut Session,
    server: &Server,
    channel: &Channel,
    primary: &Node,
) -> Result<(), PositionError> {
    let (primary, errno) = (primary.name.clone(), channel.io_errno);
    if server.unapplied() {
        let next = if channel.sql_running {
            "it is being applied"
        } else {
            // With both threads stopped a START SLAVE deletes the relay log.
            "copy the relay logs away first; then START SLAVE fetches what is left from the primary"
        };
        return Err(PositionError::Unapplied {
            primary,
            errno,
            next,
        });
    }
    if errno == NOT_IN_BINLOGS
        && observe::last_io_errors(session)?
            .iter()
            .any(|e| is_final(e))
    {
        return Err(PositionError::OnlyByCopy { primary });
    }
    if observe::uptime_seconds() % AGAIN < TICK {
        // Nothing that was received is lost by it: all of it is applied.
        session.execute("START SLAVE")?;
    }
    Err(PositionError::Ended { primary, errno })
}

/// Makes the server a new replica of `primary`.
pub fn demote(session: &mut Session, settings: &Settings, primary: &Node) -> Result<(), SqlError> {
    let replication = &settings.database.replication;
    let password = replication.password()?;
    set_semi_sync(session, settings, false)?;
    session.execute("STOP ALL SLAVES")?;
    session.execute("RESET SLAVE ALL")?;
    session.execute(&format!(
        "CHANGE MASTER TO MASTER_HOST = {}, MASTER_PORT = {}, MASTER_USER = {}, \
         MASTER_SSL = 1, MASTER_SSL_CA = {}, MASTER_SSL_VERIFY_SERVER_CERT = 1, \
         MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 1, \
         MASTER_USE_GTID = slave_pos, MASTER_DEMOTE_TO_SLAVE = 1, MASTER_PASSWORD = {}",
        quote(&primary.private.to_string()),
        settings.database.port,
        quote(&replication.user),
        quote(&settings.database.server_tls_ca.to_string_lossy()),
        quote(password.reveal()),
    ))?;
    session.execute("START SLAVE")
}

/// That transactions were taken back, and what of the binlog's history is left then.
#[derive(Debug)]
pub struct FlashbackNote {
    /// Their name, from the first to the last.
    pub undone: String,
    history: GtidSet,
}

/// The statement that notes it, in the transaction that takes them back.
pub fn note_flashback(settings: &Settings, undone: &str, history: &GtidSet) -> String {
    format!(
        "REPLACE INTO `{}`.flashback (id, undone, history) VALUES (1, {}, {})",
        settings.database.schema,
        quote(undone),
        quote(&history.to_string())
    )
}

/// The note, while what it tells is not finished.
pub fn flashback_note(
    session: &mut Session,
    settings: &Settings,
) -> Result<Option<FlashbackNote>, SqlError> {
    let statement = format!(
        "SELECT undone, history FROM `{}`.flashback WHERE id = 1",
        settings.database.schema
    );
    let rows = match session.rows::<(String, String)>(&statement) {
        // ER_NO_SUCH_TABLE: the schema of an earlier version, which takes nothing back.
        Err(error) if error.server_code() == Some(1146) => return Ok(None),
        rows => rows?,
    };
    let Some((undone, history)) = rows.into_iter().next() else {
        return Ok(None);
    };
    let history = as_gtids(&statement, history)?;
    Ok(Some(FlashbackNote { undone, history }))
}

/// After RESET MASTER: the server knows again what it had written before, and where replication goes on. In
/// strict mode neither can be set while the binlog is there. A death in between leaves the note, and the next
/// attachment makes it good. False when there is none.
pub fn finish_flashback(session: &mut Session, settings: &Settings) -> Result<bool, SqlError> {
    let Some(note) = flashback_note(session, settings)? else {
        return Ok(false);
    };
    let history = quote(&note.history.in_order());
    let state: String = session.row("SELECT @@gtid_binlog_state")?;
    if state.is_empty() {
        session.execute(&format!("SET GLOBAL gtid_binlog_state = {history}"))?;
    }
    if state.is_empty() || state.parse() == Ok(note.history.clone()) {
        session.execute(&format!(
            "SET GLOBAL gtid_slave_pos = {}",
            quote(&note.history.position().to_string())
        ))?;
    }
    session.execute(&format!(
        "DELETE FROM `{}`.flashback",
        settings.database.schema
    ))?;
    Ok(true)
}
