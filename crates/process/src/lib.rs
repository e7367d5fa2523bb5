//! The one place that runs programs: argv only, a deadline, capped output, no shell.

mod conversation;
mod running;

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

pub use conversation::{Conversation, Heard, Until};
pub use running::{Finished, Running};

/// Most bytes of each stream that are kept; the rest is read and dropped.
const OUTPUT_CAP: u64 = 4 * 1024 * 1024;

/// A program to run, with its arguments and its limits.
#[derive(Debug, Clone)]
pub struct Program {
    argv: Vec<OsString>,
    deadline: Duration,
    stdin: Vec<u8>,
    stdin_file: Option<PathBuf>,
    stdout_file: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program by name or path; the deadline is 10 s until told otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            argv: vec![program.as_ref().to_owned()],
            deadline: Duration::from_secs(10),
            stdin: Vec::new(),
            stdin_file: None,
            stdout_file: None,
            environment: Vec::new(),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.argv.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<I, S>(mut self, arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.argv
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable. Never a secret: the environment of a process can be read.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The program's process group is killed when it runs longer than this.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Bytes for standard input; without them it is `/dev/null`.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// A file for standard input.
    pub fn stdin_from(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdin_file = Some(path.into());
        self
    }

    /// A file for standard output, made anew and readable by its owner only, without a cap.
    pub fn stdout_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout_file = Some(path.into());
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            // Keepalived's and systemd's notification sockets are not for our children.
            .env_remove("NOTIFY_SOCKET");
        command
    }

    fn not_spawned(&self, source: io::Error) -> ProcessError {
        ProcessError::Spawn {
            command: self.command_line(),
            source,
        }
    }

    /// The command line as a person would read it.
    pub fn command_line(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Runs the program to its end. A non-zero exit is not an error here; see [`Output::success`].
    pub fn run(&self) -> Result<Output, ProcessError> {
        let start = Instant::now();
        let mut command = self.command();
        command
            .stdin(self.standard_input()?)
            .stdout(self.standard_output()?)
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(|source| self.not_spawned(source))?;
        let writer = child.stdin.take().map(|mut pipe| {
            let bytes = self.stdin.clone();
            // A program that does not read its input to the end is not an error of ours.
            thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = self.wait(&mut child, start)?;
        if let Some(writer) = writer {
            drop(writer.join());
        }
        // A grandchild may keep the pipes open after the program itself has ended.
        let rest = |pipe: mpsc::Receiver<Vec<u8>>| {
            pipe.recv_timeout(self.deadline.saturating_sub(start.elapsed()))
                .map_err(|_| self.late(Pid::from_child(&child)))
        };
        Ok(Output {
            command: self.command_line(),
            status,
            stdout: rest(stdout)?,
            stderr: rest(stderr)?,
        })
    }

    /// Kills the whole group: a shell script's children go with it.
    fn late(&self, pid: Pid) -> ProcessError {
        let _ = kill_process_group(pid, Signal::KILL);
        ProcessError::Deadline {
            command: self.command_line(),
            deadline: self.deadline,
        }
    }

    fn standard_input(&self) -> Result<Stdio, ProcessError> {
        match &self.stdin_file {
            Some(path) => File::open(path)
                .map(Stdio::from)
                .map_err(|source| ProcessError::File {
                    path: path.clone(),
                    source,
                }),
            None if self.stdin.is_empty() => Ok(Stdio::null()),
            None => Ok(Stdio::piped()),
        }
    }

    fn standard_output(&self) -> Result<Stdio, ProcessError> {
        let Some(path) = &self.stdout_file else {
            return Ok(Stdio::piped());
        };
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map(Stdio::from)
            .map_err(|source| ProcessError::File {
                path: path.clone(),
                source,
            })
    }

    fn wait(&self, child: &mut Child, start: Instant) -> Result<ExitStatus, ProcessError> {
        let failed = |source| ProcessError::Wait {
            command: self.command_line(),
            source,
        };
        let pid = Pid::from_child(child);
        let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        loop {
            let left = self.deadline.saturating_sub(start.elapsed());
            let timeout = left
                .try_into()
                .map_err(|_| failed(io::Error::other("deadline too long")))?;
            match poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    let late = self.late(pid);
                    let _ = child.wait();
                    return Err(late);
                }
                Ok(_) => return child.wait().map_err(failed),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, kept) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let mut limited = pipe.take(OUTPUT_CAP);
            if limited.read_to_end(&mut bytes).is_ok() {
                drop(io::copy(&mut limited.into_inner(), &mut io::sink()));
            }
        }
        // Nobody listens any more when the deadline is over.
        let _ = sender.send(bytes);
    });
    kept
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Output {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, capped.
    pub stdout: Vec<u8>,
    /// Standard error, capped.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Turns an exit other than 0 into an error that carries standard error.
    pub fn success(self) -> Result<Self, ProcessError> {
        if self.status.success() {
            return Ok(self);
        }
        Err(ProcessError::Failed {
            end: match (self.status.code(), self.status.signal()) {
                (Some(code), _) => format!("exit {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "unknown end".to_owned(),
            },
            stderr: String::from_utf8_lossy(&self.stderr).trim().to_owned(),
            command: self.command,
        })
    }

    /// Standard output as text, trimmed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The file for its input or output.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It could not be started.
    #[error("cannot run `{command}`: {source}")]
    Spawn {
        /// The command line.
        command: String,
        /// The reason.
        source: io::Error,
    },
    /// Its end could not be seen.
    #[error("cannot wait for `{command}`: {source}")]
    Wait {
        /// The command line.
        command: String,
        /// The reason.
        source: io::Error,
    },
    /// It was killed at its deadline.
    #[error("`{command}` did not end within {deadline:?} and was killed")]
    Deadline {
        /// The command line.
        command: String,
        /// The limit.
        deadline: Duration,
    },
    /// The caller did not want to wait any longer.
    #[error("`{command}` was stopped")]
    Stopped {
        /// The command line.
        command: String,
    },
    /// It has opened a named pipe, perhaps in the place of a file.
    #[error("`{command}` waits for the other end of a named pipe, and was stopped")]
    NoPartner {
        /// The command line.
        command: String,
    },
    /// It ended in mid-conversation.
    #[error("`{command}` ended before it answered: {stderr}")]
    Ended {
        /// The command line.
        command: String,
        /// The last line that it said.
        stderr: String,
    },
    /// It ended badly.
    #[error("`{command}` failed ({end}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// `exit N` or `signal N`.
        end: String,
        /// What it said.
        stderr: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_input_pass_through() {
        let output = Program::new("cat").stdin("abc").run().unwrap();
        assert_eq!(output.success().unwrap().text(), "abc");
    }

    #[test]
    fn a_failure_carries_stderr() {
        let error = Program::new("ls")
            .arg("/nonexistent")
            .run()
            .unwrap()
            .success();
        assert!(error.unwrap_err().to_string().contains("/nonexistent"));
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_cannot_outlast_the_deadline() {
        let start = Instant::now();
        let error = Program::new("sh")
            .args(["-c", "sleep 60 & exit 0"])
            .deadline(Duration::from_millis(200))
            .run()
            .unwrap_err();
        assert!(matches!(error, ProcessError::Deadline { .. }));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn files_take_the_place_of_the_pipes() {
        let directory = tempfile::tempdir().unwrap();
        let (input, output) = (directory.path().join("in"), directory.path().join("out"));
        std::fs::write(&input, "through").unwrap();
        let ended = Program::new("cat")
            .stdin_from(&input)
            .stdout_to(&output)
            .run()
            .unwrap();
        assert_eq!(ended.success().unwrap().text(), "");
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "through");
        let missing = Program::new("cat")
            .stdin_from(directory.path().join("none"))
            .run();
        assert!(missing.unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn the_deadline_kills_the_whole_group() {
        let start = Instant::now();
        let error = Program::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .deadline(Duration::from_millis(100))
            .run()
            .unwrap_err();
        assert!(matches!(error, ProcessError::Deadline { .. }));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_conversation_answers_and_its_end_is_seen() {
        let second = Duration::from_secs(10);
        let mut cat = Program::new("cat").converse().unwrap();
        assert_eq!(cat.ask("one", second).unwrap(), "one");
        assert_eq!(cat.ask("two", second).unwrap(), "two");
        let mut ends = Program::new("true").converse().unwrap();
        assert!(ends.ask("x", second).is_err());
        let mut silent = Program::new("sleep").arg("60").converse().unwrap();
        let error = silent.ask("x", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProcessError::Deadline { .. }));
    }

    #[test]
    fn what_is_said_without_a_question_is_heard() {
        let mut says = Program::new("sh")
            .args(["-c", "echo one; read line; echo two"])
            .converse()
            .unwrap();
        let long = Duration::from_secs(10);
        assert_eq!(says.hear(long), Heard::Line("one".to_owned()));
        assert_eq!(says.hear(Duration::from_millis(20)), Heard::Silence);
        assert_eq!(says.ask("go on", long).unwrap(), "two");
        assert_eq!(says.hear(long), Heard::End);
    }

    #[test]
    fn a_program_that_opens_a_named_pipe_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let made = Program::new("mkfifo").arg(&fifo).run().unwrap();
        made.success().unwrap();
        let start = Instant::now();
        let reads = Program::new("cat").arg(&fifo).start().unwrap();
        let ended = reads.finish(b"", |_| (), || start.elapsed() < Duration::from_secs(30));
        assert!(
            matches!(ended, Err(ProcessError::NoPartner { .. })),
            "{ended:?}"
        );
    }

    #[test]
    fn a_program_that_closes_its_output_has_not_ended() {
        let start = Instant::now();
        let closes = Program::new("sh")
            .args(["-c", "exec >&-; sleep 0.3"])
            .converse()
            .unwrap();
        closes.wait_for_end();
        assert!(start.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn a_late_answer_is_not_taken_for_that_to_another_question() {
        let script = "read a; read b; echo late; echo later; sleep 60";
        let mut late = Program::new("sh").args(["-c", script]).converse().unwrap();
        let error = late.ask("one", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProcessError::Deadline { .. }));
        let error = late.ask("two", Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, ProcessError::Ended { .. }), "{error}");
    }

    #[test]
    fn a_line_is_repeated_until_its_time_is_over() {
        // The shell answers the first question with what it has read when nothing more comes.
        let script = "read first; n=0; while read -t 2 line; do n=$((n + 1)); done; echo $first $n";
        let mut counts = Program::new("bash")
            .args(["-c", script])
            .converse()
            .unwrap();
        let until = Until::after(Duration::from_millis(300));
        counts
            .repeat("stay", Duration::from_millis(20), &until)
            .unwrap();
        let answer = counts.ask("question", Duration::from_secs(30)).unwrap();
        let lines: u32 = answer.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((1..=15).contains(&lines), "{answer}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::new("/no/such/program").run().unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }

    #[test]
    fn much_output_is_capped_and_does_not_block() {
        let output = Program::new("head")
            .args(["-c", "6000000", "/dev/zero"])
            .run()
            .unwrap();
        assert_eq!(output.stdout.len() as u64, OUTPUT_CAP);
    }
}
