//! A program that stays: one line out, one line back, each with a deadline.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::{ProcessError, Program};

/// Longest line accepted from the other side, in bytes.
const LINE_CAP: usize = 1024 * 1024;

/// A running program that answers line by line. Dropping it closes its input and kills it.
#[derive(Debug)]
pub struct Conversation {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Program {
    /// Starts the program for a conversation over its standard input and output.
    pub fn converse(&self) -> Result<Conversation, ProcessError> {
        let command = self.command_line();
        let mut child = Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ProcessError::Spawn {
                command: command.clone(),
                source,
            })?;
        let (sender, lines) = mpsc::channel();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            for line in BufReader::new(stdout).lines() {
                // A closed channel means that nobody listens any more.
                let Ok(line) = line else { return };
                if line.len() > LINE_CAP || sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Conversation {
            command,
            child,
            stdin,
            lines,
        })
    }
}

impl Conversation {
    /// Sends one line and waits for one line.
    pub fn ask(&mut self, line: &str, deadline: Duration) -> Result<String, ProcessError> {
        if let Some(stdin) = &mut self.stdin {
            stdin
                .write_all(format!("{line}\n").as_bytes())
                .and_then(|()| stdin.flush())
                .map_err(|source| ProcessError::Wait {
                    command: self.command.clone(),
                    source,
                })?;
        }
        self.lines
            .recv_timeout(deadline)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => ProcessError::Deadline {
                    command: self.command.clone(),
                    deadline,
                },
                RecvTimeoutError::Disconnected => ProcessError::Ended {
                    command: self.command.clone(),
                },
            })
    }
}

impl Conversation {
    /// Waits, without a limit, until the program closes its output; what it says is dropped.
    pub fn wait_for_end(self) {
        while self.lines.recv().is_ok() {}
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.stdin = None;
        // Already ended is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
