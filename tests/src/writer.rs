//! A client that writes one row after another through the VIP, and remembers what was acknowledged.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Lab, LabError, NodeName, VIP, at, network, wait_until};

/// Without an answer for this long the client gives the connection up and tries a new one.
const PATIENCE: Duration = Duration::from_millis(300);
/// The kernel's own SYN retry after one second would hide what is measured.
const CONNECT: Duration = Duration::from_millis(150);

/// One acknowledged row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Which writer.
    pub writer: u32,
    /// Its number.
    pub n: u64,
    /// Seconds on the monotonic clock.
    pub at: f64,
    /// The server that acknowledged.
    pub server: u32,
}

/// What a writer saw.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order of arrival.
    pub rows: Vec<Acknowledged>,
    /// When the writer stopped.
    pub ended: f64,
}

/// Seconds on the monotonic clock, which all namespaces share.
pub fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
    .as_secs_f64()
}

/// The longest time between two moments in a row, of which `from` is the first and `to` the last, in seconds.
pub fn longest_gap(moments: impl Iterator<Item = f64>, from: f64, to: f64) -> f64 {
    let mut times: Vec<f64> = moments.filter(|at| (from..to).contains(at)).collect();
    times.push(to);
    times.sort_by(f64::total_cmp);
    let mut last = from;
    let mut longest: f64 = 0.0;
    for at in times {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// What a client's process prints, a value a line, until it ends.
pub fn json_lines<T: DeserializeOwned>(output: Option<ChildStdout>) -> impl Iterator<Item = T> {
    output
        .into_iter()
        .flat_map(|output| BufReader::new(output).lines())
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
}

impl Report {
    /// The longest time without an acknowledgement after `since`, in seconds.
    pub fn longest_gap(&self, since: f64) -> f64 {
        self.longest_gap_within(since, self.ended)
    }

    /// The same between two moments, both of which bound a gap.
    pub fn longest_gap_within(&self, from: f64, to: f64) -> f64 {
        longest_gap(self.rows.iter().map(|row| row.at), from, to)
    }

    /// Rows that were acknowledged and are not on the node.
    pub fn lost(&self, lab: &Lab, node: NodeName) -> Result<Vec<Acknowledged>, LabError> {
        let present: BTreeSet<String> = lab
            .sql(node, "SELECT CONCAT(writer, ' ', n) FROM ha_app.rows")?
            .lines()
            .map(str::to_owned)
            .collect();
        Ok(self
            .rows
            .iter()
            .filter(|row| !present.contains(&format!("{} {}", row.writer, row.n)))
            .copied()
            .collect())
    }

    /// How many rows a server acknowledged after `since`.
    pub fn by_server_after(&self, server: u32, since: f64) -> usize {
        self.rows
            .iter()
            .filter(|r| r.server == server && r.at > since)
            .count()
    }
}

/// A running client in the client's namespace.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: JoinHandle<Vec<Acknowledged>>,
    count: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts `writers` writers whose rows begin at `first`.
    pub fn start(lab: &Lab, writers: u32, first: u64) -> Result<Self, LabError> {
        let mut child = network::client_process(lab.program())
            .args([
                "writer",
                "--writers",
                &writers.to_string(),
                "--first",
                &first.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(at(lab.program()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let reader = thread::spawn(move || {
            json_lines(stdout)
                .inspect(|_: &Acknowledged| {
                    counted.fetch_add(1, Ordering::Relaxed);
                })
                .collect()
        });
        Ok(Self {
            child,
            stdin,
            reader,
            count,
        })
    }

    /// How many rows were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more are.
    pub fn await_more(&self, more: usize, limit: Duration) -> Result<(), LabError> {
        let wanted = self.acknowledged() + more;
        wait_until("acknowledged rows", limit, || {
            let rows = self.acknowledged();
            Ok(if rows >= wanted {
                Ok(())
            } else {
                Err(format!("{rows} of {wanted}"))
            })
        })
    }

    /// Stops the client and gives what it saw.
    pub fn stop(mut self) -> Result<Report, LabError> {
        self.stdin = None;
        let status = self.child.wait().map_err(at("lab writer"))?;
        let ended = now();
        let rows = self.reader.join().unwrap_or_default();
        if !status.success() || rows.is_empty() {
            return Err(LabError::Unfit(format!(
                "the writer ended with {status} after {} rows",
                rows.len()
            )));
        }
        Ok(Report { rows, ended })
    }
}

/// The client itself: writes until standard input closes.
pub fn run(writers: u32, first: u64) {
    for writer in 0..writers {
        thread::spawn(move || write_for_ever(writer, first));
    }
    let mut rest = Vec::new();
    // The end of the input is the sign to stop; the threads go with the process.
    drop(std::io::stdin().read_to_end(&mut rest));
}

fn write_for_ever(writer: u32, first: u64) {
    let mut n = first;
    let mut connection: Option<(Conn, u32)> = None;
    loop {
        let Some((open, server)) = &mut connection else {
            connection = connect();
            if connection.is_none() {
                thread::sleep(Duration::from_millis(10));
            }
            continue;
        };
        let insert =
            format!("INSERT INTO ha_app.rows (writer, n, at) VALUES ({writer}, {n}, NOW(6))");
        match open.query_drop(insert) {
            Ok(()) => {
                let row = Acknowledged {
                    writer,
                    n,
                    at: now(),
                    server: *server,
                };
                let mut line = serde_json::to_vec(&row).unwrap_or_default();
                line.push(b'\n');
                let mut output = std::io::stdout().lock();
                if output
                    .write_all(&line)
                    .and_then(|()| output.flush())
                    .is_err()
                {
                    return;
                }
            }
            // Unknown or refused: never counted as acknowledged.
            Err(_) => connection = None,
        }
        n += 1;
        // About 200 rows a second: a client, not a load test.
        thread::sleep(Duration::from_millis(3));
    }
}

fn connect() -> Option<(Conn, u32)> {
    let options = OptsBuilder::new()
        .ip_or_hostname(Some(VIP))
        .user(Some("ha_user"))
        .pass(Some("securepass"))
        .prefer_socket(false)
        .tcp_connect_timeout(Some(CONNECT))
        .read_timeout(Some(PATIENCE))
        .write_timeout(Some(PATIENCE))
        .max_allowed_packet(Some(1 << 24));
    let mut connection = Conn::new(options).ok()?;
    let server = connection.query_first("SELECT @@server_id").ok()??;
    Some((connection, server))
}
