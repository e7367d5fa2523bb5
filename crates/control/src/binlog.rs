//! A server's binlogs as files: which there are, and the transactions in them.
//!
//! Only event headers and the few events that name transactions and tables are read
//! (mariadb.com/kb: "Replication Protocol", events 2, 19, 162, 163, 164). Their content is printed by
//! mariadb-binlog.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use role::{Gtid, GtidSet};

use crate::path_error::{PathError, at};

/// The four bytes that a binlog begins with.
const MAGIC: &[u8; 4] = b"\xfebin";
/// Time, type, server, length, end, flags.
const HEADER: usize = 19;
/// More than any event that is read whole here: a state with a few servers, or two names.
const SMALL_EVENT: u64 = 1024 * 1024;

const QUERY: u8 = 2;
const FORMAT_DESCRIPTION: u8 = 15;
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
/// `WRITE`, `UPDATE` and `DELETE_ROWS_EVENT_V1`.
const ROWS: std::ops::RangeInclusive<u8> = 23..=25;
const ANNOTATE_ROWS: u8 = 160;
const GTID: u8 = 162;
const GTID_LIST: u8 = 163;
const START_ENCRYPTION: u8 = 164;
/// `FL_STANDALONE` of a GTID event: one event follows, without a COMMIT.
const STANDALONE: u8 = 1;
/// `FL_GROUP_COMMIT_ID`: eight bytes of it follow the flags.
const GROUP_COMMIT_ID: u8 = 2;
/// `FL_START_ALTER_E1`, `FL_COMMIT_ALTER_E1`, `FL_ROLLBACK_ALTER_E1` of the second byte of flags
/// (`binlog_alter_two_phase`): the first is written before anything is done.
const PART_OF_ALTER: u8 = 2 | 4 | 8;
/// `FL_TRANSACTIONAL`
const TRANSACTIONAL: u8 = 4;
/// `FL_DDL`
const DDL: u8 = 32;

/// The binlogs that the server's index names, the oldest first.
pub fn files(index: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = index.parent().unwrap_or(Path::new("/"));
    Ok(fs::read_to_string(index)?
        .lines()
        .filter(|line| !line.is_empty())
        // Absolute, or beside the index.
        .map(|line| directory.join(line))
        .collect())
}

/// A group of events under one GTID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its name.
    pub gtid: Gtid,
    /// When, in seconds since 1970.
    pub time: u32,
    /// Where its first event begins in its file.
    pub position: u64,
    /// It consists of row changes of transactional tables only, so it can be taken back.
    pub rows_only: bool,
    /// The statement, perhaps with a checksum behind it, where that is all there is, as with ALTER TABLE.
    pub statement: Option<String>,
    /// Database and name of each table whose rows it changed.
    pub tables: BTreeSet<(String, String)>,
}

/// What a binlog file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The server's history before the file.
    pub before: GtidSet,
    /// In order.
    pub transactions: Vec<Transaction>,
}

/// Why a binlog cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BinlogError {
    /// The file.
    #[error(transparent)]
    File(#[from] PathError),
    /// It is not a binlog.
    #[error("{0} is not a binlog")]
    NotABinlog(PathBuf),
    /// Its content cannot be seen from outside of the server.
    #[error("{0} is encrypted (encrypt_binlog), so it cannot be read here")]
    Encrypted(PathBuf),
}

/// Reads a binlog. An end that is cut off in mid-event is no error: a server that died leaves it.
pub fn read(path: &Path) -> Result<Content, BinlogError> {
    scan(path, |_| true)
}

/// What the server had before the file.
pub fn before(path: &Path) -> Result<GtidSet, BinlogError> {
    Ok(scan(path, |kind| kind < GTID || kind == GTID_LIST)?.before)
}

/// Reads on as long as `wanted` says yes to an event's type.
fn scan(path: &Path, wanted: impl Fn(u8) -> bool) -> Result<Content, BinlogError> {
    let file = File::open(path).map_err(at(path))?;
    let length = file.metadata().map_err(at(path))?.len();
    let mut input = BufReader::new(file);
    let mut magic = [0; 4];
    match input.read_exact(&mut magic) {
        Ok(()) if magic == *MAGIC => {}
        Ok(()) => return Err(BinlogError::NotABinlog(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Content::default()),
        Err(error) => return Err(at(path)(error).into()),
    }
    let mut content = Content::default();
    let mut position = MAGIC.len() as u64;
    while position + HEADER as u64 <= length {
        let mut header = [0; HEADER];
        input.read_exact(&mut header).map_err(at(path))?;
        let kind = header[4];
        let size = u64::from(u32_at(&header, 9));
        if kind == START_ENCRYPTION {
            return Err(BinlogError::Encrypted(path.to_owned()));
        }
        if size < HEADER as u64 || position + size > length || !wanted(kind) {
            break;
        }
        let body = size - HEADER as u64;
        if matches!(kind, QUERY | GTID | GTID_LIST | TABLE_MAP) && body <= SMALL_EVENT {
            let mut bytes = vec![0; usize::try_from(body).unwrap_or_default()];
            input.read_exact(&mut bytes).map_err(at(path))?;
            content.take(&header, position, &bytes);
        } else {
            content.take(&header, position, &[]);
            let skip = i64::try_from(body).unwrap_or(i64::MAX);
            input.seek_relative(skip).map_err(at(path))?;
        }
        position += size;
    }
    Ok(content)
}

impl Content {
    fn take(&mut self, header: &[u8; HEADER], position: u64, body: &[u8]) {
        let kind = header[4];
        match kind {
            GTID_LIST => self.before = gtid_list(body),
            GTID if body.len() >= 13 => self.transactions.push(Transaction {
                gtid: Gtid {
                    domain: u32_at(body, 8),
                    server: u32_at(header, 5),
                    sequence: u64_at(body, 0),
                },
                time: u32_at(header, 0),
                position,
                rows_only: body[12] & TRANSACTIONAL != 0 && body[12] & DDL == 0,
                // Told by the next event.
                statement: is_whole_statement(body).then(String::new),
                tables: BTreeSet::new(),
            }),
            // What stands between the transactions.
            ..=1 | 3 | 4 | FORMAT_DESCRIPTION | 161 | ANNOTATE_ROWS | XID => {}
            TABLE_MAP => {
                if let (Some(last), Some(table)) = (self.transactions.last_mut(), table_name(body))
                {
                    last.tables.insert(table);
                }
            }
            _ if ROWS.contains(&kind) => {}
            // A statement, a savepoint, or something newer than this program.
            _ => {
                if let Some(last) = self.transactions.last_mut() {
                    last.rows_only = false;
                    if kind == QUERY && last.statement.is_some() {
                        last.statement = statement(body);
                    }
                }
            }
        }
    }
}

/// Whether one event is all that follows a GTID event, and not one of the two of an ALTER TABLE.
fn is_whole_statement(body: &[u8]) -> bool {
    let flags = body[12];
    let more = if flags & GROUP_COMMIT_ID == 0 { 13 } else { 21 };
    let more = body.get(more).copied().unwrap_or_default();
    flags & STANDALONE != 0 && more & PART_OF_ALTER == 0
}

/// The length is in the low 28 bits.
fn gtid_list(body: &[u8]) -> GtidSet {
    let mut set = GtidSet::default();
    if body.len() < 4 {
        return set;
    }
    let count = usize::try_from(u32_at(body, 0) & 0x0fff_ffff).unwrap_or_default();
    for entry in body[4..].chunks_exact(16).take(count) {
        set.add(Gtid {
            domain: u32_at(entry, 0),
            server: u32_at(entry, 4),
            sequence: u64_at(entry, 8),
        });
    }
    set
}

/// Thirteen bytes, which give the lengths of the database's name and of the variables, those, and a NUL.
fn statement(body: &[u8]) -> Option<String> {
    let name = usize::from(*body.get(8)?);
    let variables = usize::from(u16::from_le_bytes([*body.get(11)?, *body.get(12)?]));
    let text = body.get(13 + variables + name + 1..)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Six bytes of number, two of flags, then twice a length, that many bytes, and a NUL.
fn table_name(body: &[u8]) -> Option<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let rest = body.get(8..)?;
    let length = usize::from(*rest.first()?);
    let database = text(rest.get(1..=length)?);
    let rest = rest.get(length + 2..)?;
    let length = usize::from(*rest.first()?);
    Some((database, text(rest.get(1..=length)?)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The newest binlog when its server did not close it: the flag `LOG_EVENT_BINLOG_IN_USE_F` (1) in the
/// header of its first event.
pub fn unclosed(index: &Path) -> Result<Option<PathBuf>, PathError> {
    let newest = match files(index) {
        Ok(mut logs) => logs.pop(),
        // A new server.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(index)(error)),
    };
    let Some(binlog) = newest else {
        return Ok(None);
    };
    let mut header = [0; HEADER];
    let read = File::open(&binlog).and_then(|mut file| {
        file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
        file.read_exact(&mut header)
    });
    match read {
        Ok(()) => Ok((header[17] & 1 == 1).then_some(binlog)),
        // Died before it had written the header.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(at(&binlog)(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn with_binlog(bytes: &[u8]) -> Option<PathBuf> {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("binlog.index");
        fs::write(&index, "./binlog.000001\n./binlog.000002\n").unwrap();
        fs::write(directory.path().join("binlog.000002"), bytes).unwrap();
        unclosed(&index).unwrap()
    }

    #[test]
    fn only_a_binlog_in_use_needs_recovery() {
        let mut header = [0; 100];
        assert!(with_binlog(&header).is_none());
        header[21] = 1;
        assert!(with_binlog(&header).unwrap().ends_with("binlog.000002"));
        assert!(with_binlog(b"\xfebin").is_none(), "truncated");
        assert!(unclosed(Path::new("/nonexistent/index")).unwrap().is_none());
    }

    fn event(kind: u8, server: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.push(kind);
        bytes.extend(server.to_le_bytes());
        bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_le_bytes());
        bytes.extend([0; 6]);
        bytes.extend(body);
        bytes
    }

    fn gtid(server: u32, sequence: u64, flags: u8) -> Vec<u8> {
        let mut body = sequence.to_le_bytes().to_vec();
        body.extend(0_u32.to_le_bytes());
        body.push(flags);
        body.extend([0; 10]);
        event(GTID, server, &body)
    }

    fn table(database: &str, name: &str) -> Vec<u8> {
        let mut body = vec![0; 8];
        for text in [database, name] {
            body.push(u8::try_from(text.len()).unwrap());
            body.extend(text.as_bytes());
            body.push(0);
        }
        event(TABLE_MAP, 1, &body)
    }

    fn query(text: &str) -> Vec<u8> {
        let mut body = vec![0; 13];
        (body[8], body[11]) = (6, 3);
        body.extend(b"varha_app\0");
        body.extend(text.as_bytes());
        body
    }

    #[test]
    fn half_an_alter_table_is_no_statement() {
        let mut body = vec![0; 19];
        body[12] = STANDALONE | DDL;
        assert!(is_whole_statement(&body));
        body[13] = 2;
        assert!(!is_whole_statement(&body));
        body[12] |= GROUP_COMMIT_ID;
        assert!(is_whole_statement(&body), "a part of the number");
    }

    #[test]
    fn transactions_are_read_with_what_they_are() {
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (server, sequence) in [(1_u32, 84_u64), (2, 87)] {
            list.extend(0_u32.to_le_bytes());
            list.extend(server.to_le_bytes());
            list.extend(sequence.to_le_bytes());
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(event(FORMAT_DESCRIPTION, 2, &[0; 200]));
        bytes.extend(event(GTID_LIST, 2, &list));
        let first = bytes.len() as u64;
        bytes.extend(gtid(2, 88, TRANSACTIONAL));
        bytes.extend(event(ANNOTATE_ROWS, 2, b"insert"));
        bytes.extend(table("ha_app", "rows"));
        bytes.extend(event(23, 2, &[0; 40]));
        bytes.extend(event(XID, 2, &[0; 8]));
        bytes.extend(gtid(2, 89, DDL | 1));
        bytes.extend(event(2, 2, &query("create table")));
        bytes.extend(gtid(2, 90, TRANSACTIONAL));
        bytes.extend(event(2, 2, b"insert as a statement"));
        // A server that died in the middle of an event.
        bytes.extend(&gtid(2, 91, TRANSACTIONAL)[..20]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binlog.000001");
        fs::write(&path, &bytes).unwrap();
        let content = read(&path).unwrap();
        assert_eq!(content.before.to_string(), "0-1-84,0-2-87");
        assert_eq!(before(&path).unwrap(), content.before);
        let seen: Vec<(String, bool)> = content
            .transactions
            .iter()
            .map(|t| (t.gtid.to_string(), t.rows_only))
            .collect();
        assert_eq!(
            seen,
            [
                ("0-2-88".to_owned(), true),
                ("0-2-89".to_owned(), false),
                ("0-2-90".to_owned(), false)
            ]
        );
        let statement = |n: usize| content.transactions[n].statement.as_deref();
        assert_eq!(
            [statement(0), statement(1), statement(2)],
            [None, Some("create table"), None]
        );
        assert_eq!(content.transactions[0].position, first);
        assert_eq!(
            content.transactions[0].tables,
            BTreeSet::from([("ha_app".to_owned(), "rows".to_owned())])
        );
        fs::write(&path, "something else").unwrap();
        assert!(matches!(read(&path), Err(BinlogError::NotABinlog(_))));
    }
}
