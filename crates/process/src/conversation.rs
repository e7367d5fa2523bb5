//! A program that stays: one line out, one line back, each with a deadline.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{ProcessError, Program};

/// Longest line accepted from the other side, in bytes.
const LINE_CAP: usize = 1024 * 1024;

/// Most of its standard error that is read, in bytes.
const COMPLAINT_CAP: u64 = 1024 * 1024;

/// Its output has ended: how long its standard error may take to end, too.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running program that answers line by line. Dropping it closes its input and kills it.
#[derive(Debug)]
pub struct Conversation {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// The last line of its standard error.
    complaint: Receiver<String>,
    /// While it is there, a line is repeated.
    repeating: Option<Sender<()>>,
    /// No answer came in time: a later one would be taken for that to another question.
    given_up: bool,
}

/// What a program said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// One line.
    Line(String),
    /// Nothing, for as long as was listened.
    Silence,
    /// It says nothing any more.
    End,
}

/// Until when a line is repeated; shared with the thread that does it.
#[derive(Debug, Clone)]
pub struct Until(Arc<Mutex<Instant>>);

impl Until {
    /// So long from now.
    pub fn after(limit: Duration) -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + limit)))
    }

    /// So long from now, whatever was said before. Too late once the time is over.
    pub fn extend(&self, limit: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + limit;
    }

    fn is_over(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) < Instant::now()
    }
}

impl Program {
    /// Starts the program for a conversation over its standard input and output.
    pub fn converse(&self) -> Result<Conversation, ProcessError> {
        let command = self.command_line();
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| self.not_spawned(source))?;
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
        let (last_words, complaint) = mpsc::channel();
        let stderr = child.stderr.take();
        thread::spawn(move || {
            let Some(stderr) = stderr else { return };
            let lines = BufReader::new(stderr.take(COMPLAINT_CAP)).lines();
            let last = lines
                .map_while(Result::ok)
                .inspect(|line| log::debug!("{line}"))
                .last();
            // Nobody listens any more when the conversation was given up.
            let _ = last_words.send(last.unwrap_or_default());
        });
        Ok(Conversation {
            command,
            child,
            stdin,
            lines,
            complaint,
            repeating: None,
            given_up: false,
        })
    }
}

impl Conversation {
    /// Sends one line and waits for one line. After a deadline was missed nothing more is asked.
    pub fn ask(&mut self, line: &str, deadline: Duration) -> Result<String, ProcessError> {
        if self.given_up {
            return Err(self.ended());
        }
        if let Some(mut stdin) = self.stdin.as_ref() {
            stdin
                .write_all(format!("{line}\n").as_bytes())
                .and_then(|()| stdin.flush())
                .map_err(|_| self.ended())?;
        }
        match self.lines.recv_timeout(deadline) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                self.given_up = true;
                Err(ProcessError::Deadline {
                    command: self.command.clone(),
                    deadline,
                })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }
}

impl Conversation {
    /// Sends a line, which is not answered, again and again from a thread of its own until the conversation is
    /// dropped or the time is over: also while an answer is awaited, and while nothing is asked. It must be
    /// shorter than the kernel's `PIPE_BUF`, 4096 bytes, up to which a line is never mixed with another.
    pub fn repeat(&mut self, line: &str, every: Duration, until: &Until) -> std::io::Result<()> {
        let Some(stdin) = &self.stdin else {
            return Ok(());
        };
        let mut stdin = File::from(stdin.as_fd().try_clone_to_owned()?);
        let line = format!("{line}\n");
        let (sender, dropped) = mpsc::channel::<()>();
        self.repeating = Some(sender);
        let until = until.clone();
        thread::spawn(move || {
            while dropped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // Nobody reads any more when the program has ended.
                if until.is_over() || stdin.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Waits for a line that it says without a question.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// Whether the program has ended.
    pub fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn ended(&self) -> ProcessError {
        ProcessError::Ended {
            command: self.command.clone(),
            stderr: self.complaint.recv_timeout(LAST_WORDS).unwrap_or_default(),
        }
    }

    /// Waits, without a limit, until the program ends; what it says is dropped. The end of its output is none: ssh -N
    /// of OpenSSH 9.2 closes it as soon as it is connected.
    pub fn wait_for_end(mut self) {
        while self.lines.recv().is_ok() {}
        // Only a process that is no child of this one cannot be waited for.
        let _ = self.child.wait();
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
