//! A messenger at the client's place that receives the nodes' alerts over HTTP. It may be out of order at first: it
//! fails, asks for patience, and hangs, before it accepts anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::writer::json_lines;
use crate::{Lab, LabError, NodeName, at, network};

/// So many answers are those of one that is out of order.
const OUT_OF_ORDER: usize = 3;
/// Where the nodes' settings point to.
pub const ADDRESS: &str = "192.168.100.50:8080";

/// An alert that was answered with 200.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Received {
    /// The node that raised it.
    pub node: String,
    /// When, as the node says.
    pub time: String,
    /// Its kind.
    pub event: String,
    /// For a person.
    pub text: String,
    /// How often it was raised.
    pub count: u32,
}

/// The running messenger; it ends with the value, or with the process that has it.
#[derive(Debug)]
pub struct Messenger {
    child: Child,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Messenger {
    /// Starts it in the client's namespace. Both nodes forget how long they wanted to wait for the one before it.
    pub fn start(lab: &Lab) -> Result<Self, LabError> {
        for node in NodeName::ALL {
            let forget = ["rm", "-f", "/var/lib/keepalived-companion/alerts/backoff"];
            lab.exec(node, &forget)?.success()?;
        }
        Self::run(lab, &[])
    }

    /// The same, out of order at first.
    pub fn start_out_of_order(lab: &Lab) -> Result<Self, LabError> {
        Self::run(lab, &["--out-of-order"])
    }

    fn run(lab: &Lab, options: &[&str]) -> Result<Self, LabError> {
        let mut child = network::client_process(lab.program())
            .arg("messenger")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(at(lab.program()))?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let (all, stdout) = (Arc::clone(&received), child.stdout.take());
        thread::spawn(move || {
            for alert in json_lines(stdout) {
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(alert);
            }
        });
        Ok(Self { child, received })
    }

    /// What arrived so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// The messenger itself: until standard input closes.
pub fn run(out_of_order: bool) -> Result<(), LabError> {
    let listener = TcpListener::bind(ADDRESS).map_err(at(ADDRESS))?;
    let first = if out_of_order { 0 } else { OUT_OF_ORDER };
    thread::spawn(move || {
        for (number, stream) in (first..).zip(listener.incoming().flatten()) {
            thread::spawn(move || drop(answer(number, stream)));
        }
    });
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
    Ok(())
}

fn answer(number: usize, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let status = match number {
        0 => "500 Internal Server Error\r\nContent-Length: 0",
        1 => "429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0",
        2 => {
            // Hangs until the node gives up.
            reader.read_to_end(&mut body)?;
            return Ok(());
        }
        _ => {
            if let Ok(alert) = serde_json::from_slice::<Received>(&body) {
                let mut line = serde_json::to_vec(&alert)?;
                line.push(b'\n');
                let mut output = std::io::stdout().lock();
                output.write_all(&line)?;
                output.flush()?;
            }
            "200 OK\r\nContent-Length: 0"
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n")
}
