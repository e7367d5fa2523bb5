//! The text of mariadb-binlog as a report: SQL with a heading, and JSON.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use observe::{Session, SqlError};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::statements::quote;

/// The names of each table's columns, in order.
pub type Columns = BTreeMap<(String, String), Vec<String>>;

/// Asks for the columns as they are now; the rows may be older than a change of them.
pub fn columns<'a>(
    session: &mut Session,
    tables: impl Iterator<Item = &'a (String, String)>,
) -> Result<Columns, SqlError> {
    let mut columns = Columns::new();
    for table in tables {
        if columns.contains_key(table) {
            continue;
        }
        // Without a right to the tables; a name with other letters is written otherwise there, and then its
        // columns keep their numbers.
        let names = session.rows::<String>(&format!(
            "SELECT c.NAME FROM information_schema.INNODB_SYS_TABLES t \
             JOIN information_schema.INNODB_SYS_COLUMNS c USING (TABLE_ID) \
             WHERE t.NAME = {} ORDER BY c.POS",
            quote(&format!("{}/{}", table.0, table.1))
        ))?;
        columns.insert(table.clone(), names);
    }
    Ok(columns)
}

/// A new file for rows of the database: for its owner only.
pub fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// The printed binlog behind a heading, on the disk.
pub fn with_heading(heading: &str, printed: &Path, sql: &Path) -> io::Result<()> {
    let mut output = private(sql)?;
    output.write_all(heading.as_bytes())?;
    io::copy(&mut File::open(printed)?, &mut output)?;
    output.sync_all()
}

/// One transaction of the report.
#[derive(Debug, Default, Serialize)]
struct Lost {
    gtid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statements: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Row>,
}

#[derive(Debug, Default, Serialize)]
struct Row {
    change: &'static str,
    table: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    before: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    after: Map<String, Value>,
}

/// Reads what `mariadb-binlog --verbose` printed, and writes `summary` with a list `transactions`. One
/// transaction at a time is in memory.
pub fn as_json(summary: &Value, printed: &Path, columns: &Columns, json: &Path) -> io::Result<()> {
    let mut output = BufWriter::new(private(json)?);
    let heading = serde_json::to_string_pretty(summary)?;
    let open = heading.strip_suffix("\n}").unwrap_or("{");
    write!(output, "{open},\n  \"transactions\": [")?;
    let mut comma = "";
    let mut reader = Reader::new(columns);
    let mut put = |lost: Option<Lost>| -> io::Result<()> {
        if let Some(lost) = lost {
            write!(output, "{comma}\n    {}", serde_json::to_string(&lost)?)?;
            comma = ",";
        }
        Ok(())
    };
    for line in BufReader::new(File::open(printed)?).split(b'\n') {
        put(reader.line(&String::from_utf8_lossy(&line?)))?;
    }
    put(reader.transaction.take())?;
    write!(output, "\n  ]\n}}\n")?;
    output.into_inner()?.sync_all()
}

/// Where in a row's description the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Image {
    Before,
    After,
}

struct Reader<'a> {
    columns: &'a Columns,
    transaction: Option<Lost>,
    /// Database and name of the row's table.
    table: (String, String),
    image: Image,
    /// In a statement that is not a row's: its lines so far.
    query: Option<String>,
}

impl<'a> Reader<'a> {
    fn new(columns: &'a Columns) -> Self {
        Self {
            columns,
            transaction: None,
            table: Default::default(),
            image: Image::Before,
            query: None,
        }
    }

    /// Takes one line; gives the transaction that ended before it.
    fn line(&mut self, line: &str) -> Option<Lost> {
        if let Some(gtid) = gtid(line) {
            self.query = None;
            return self.transaction.replace(Lost {
                gtid: gtid.to_owned(),
                ..Lost::default()
            });
        }
        let transaction = self.transaction.as_mut()?;
        if let Some(statement) = line.strip_prefix("#Q> ") {
            transaction.statements.push(statement.to_owned());
        } else if let Some(text) = line.strip_prefix("### ") {
            self.row(text);
        } else if is_event(line) {
            self.query = line.contains("\tQuery\t").then(String::new);
        } else if let Some(query) = &mut self.query {
            // Session variables come first; the statement may have several lines, up to the delimiter.
            if line == "/*!*/;" {
                let whole = std::mem::take(query);
                if !whole.is_empty() {
                    transaction.statements.push(whole);
                }
            } else if !line.ends_with("/*!*/;") && !line.starts_with("# at ") {
                if !query.is_empty() {
                    query.push('\n');
                }
                query.push_str(line);
            }
        }
        None
    }

    fn row(&mut self, text: &str) {
        let Some(transaction) = self.transaction.as_mut() else {
            return;
        };
        for (word, change) in [
            ("INSERT INTO ", "insert"),
            ("UPDATE ", "update"),
            ("DELETE FROM ", "delete"),
        ] {
            if let Some(table) = text.strip_prefix(word) {
                self.table = names(table);
                transaction.rows.push(Row {
                    change,
                    table: format!("{}.{}", self.table.0, self.table.1),
                    ..Row::default()
                });
                return;
            }
        }
        match text {
            "WHERE" => self.image = Image::Before,
            "SET" => self.image = Image::After,
            _ => {
                let cell = text.trim_start().strip_prefix('@');
                let cell = cell.and_then(|cell| cell.split_once('='));
                if let (Some((number, value)), Some(row)) = (cell, transaction.rows.last_mut()) {
                    let name = number
                        .parse::<usize>()
                        .ok()
                        .and_then(|n| self.columns.get(&self.table)?.get(n.checked_sub(1)?))
                        .cloned()
                        .unwrap_or_else(|| format!("@{number}"));
                    let image = match self.image {
                        Image::Before => &mut row.before,
                        Image::After => &mut row.after,
                    };
                    image.insert(name, cell_value(value));
                }
            }
        }
    }
}

/// `#261125  8:38:19 server id 2  end_log_pos 437 CRC32 0x8a2a7af3 \tGTID 0-2-88 trans`
fn gtid(line: &str) -> Option<&str> {
    is_event(line)
        .then(|| line.split_once("\tGTID "))
        .flatten()
        .and_then(|(_, rest)| rest.split(' ').next())
}

fn is_event(line: &str) -> bool {
    line.starts_with('#') && line.contains(" server id ") && line.contains(" end_log_pos ")
}

/// "`a`.`b`"
fn names(text: &str) -> (String, String) {
    let text = text.trim_matches('`');
    let (database, table) = text.split_once("`.`").unwrap_or(("", text));
    (database.to_owned(), table.to_owned())
}

/// A quoted text, NULL, or a number as MariaDB prints it; everything else stays its text.
fn cell_value(text: &str) -> Value {
    if text == "NULL" {
        return Value::Null;
    }
    if let Some(inner) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return Value::String(inner.replace("\\'", "'").replace("\\\\", "\\"));
    }
    // A negative number is followed by what it would be without its sign.
    let number = text.split(" (").next().unwrap_or(text);
    number
        .parse::<i64>()
        .map_or_else(|_| Value::String(text.to_owned()), Value::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Printed by MariaDB 10.11.19, shortened.
    const PRINTED: &str = "\
#261125  8:38:19 server id 2  end_log_pos 437 CRC32 0x8a2a7af3 \tGTID 0-2-86 trans
START TRANSACTION
/*!*/;
# at 519
#261125  8:38:19 server id 2  end_log_pos 519 CRC32 0x4a7faccb \tAnnotate_rows:
#Q> update t set n=-1
#Q> where who='o''neill'
### UPDATE `ha_app`.`t`
### WHERE
###   @1='o\\'neill'
###   @2=NULL
### SET
###   @1='o\\'neill'
###   @2=-1 (4294967295)
# Number of rows: 1
#261125  8:38:19 server id 2  end_log_pos 862 CRC32 0x216ee7a9 \tXid = 841
COMMIT/*!*/;
#261125  8:38:19 server id 2  end_log_pos 904 CRC32 0x8372006f \tGTID 0-2-89 ddl
/*M!100001 SET @@session.gtid_seq_no=89*//*!*/;
#261125  8:38:19 server id 2  end_log_pos 1005 CRC32 0xc18024c4 \tQuery\tthread_id=266\texec_time=0
SET TIMESTAMP=1795595899/*!*/;
create table x
 (a int)
/*!*/;
DELIMITER ;
";

    #[test]
    fn rows_and_statements_are_told_with_the_columns_names() {
        let directory = tempfile::tempdir().unwrap();
        let (printed, json) = (directory.path().join("p"), directory.path().join("j"));
        std::fs::write(&printed, PRINTED).unwrap();
        let table = ("ha_app".to_owned(), "t".to_owned());
        let columns = Columns::from([(table, vec!["who".to_owned()])]);
        as_json(&serde_json::json!({"count": 2}), &printed, &columns, &json).unwrap();
        let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(
            report,
            serde_json::json!({
                "count": 2,
                "transactions": [
                    {
                        "gtid": "0-2-86",
                        "statements": ["update t set n=-1", "where who='o''neill'"],
                        "rows": [{
                            "change": "update", "table": "ha_app.t",
                            "before": {"who": "o'neill", "@2": null},
                            "after": {"who": "o'neill", "@2": -1},
                        }],
                    },
                    {"gtid": "0-2-89", "statements": ["create table x\n (a int)"]},
                ],
            })
        );
    }
}
