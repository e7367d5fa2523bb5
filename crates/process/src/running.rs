//! A program that is started ahead of its work and waits for its input.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::{OUTPUT_CAP, Output, ProcessError, Program, collect};

/// How often a wait asks whether it goes on.
const LOOK: Duration = Duration::from_millis(200);
/// A program that has stood in the opening of a named pipe for so long has taken it for a file: nobody has the other
/// end, and no signal of its own wakes it.
const NO_PARTNER: Duration = Duration::from_secs(2);
/// The kernel's function in which it stands (fs/fifo.c, now fs/pipe.c), as in `/proc/PID/wchan`.
const WAITS_FOR_PARTNER: &[u8] = b"wait_for_partner";
/// The same, where a change wakes it.
const WAKE: Duration = Duration::from_secs(1);

/// A started program whose standard input is still open. Dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    reaped: bool,
}

impl Program {
    /// Starts the program in a process group of its own; it gets its input by [`Running::finish`].
    pub fn start(&self) -> Result<Running, ProcessError> {
        self.spawn(
            self.command()
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
    }

    fn spawn(&self, command: &mut Command) -> Result<Running, ProcessError> {
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|source| self.not_spawned(source))?;
        Ok(Running {
            command: self.command_line(),
            child,
            reaped: false,
        })
    }

    /// Runs the program with this process's own standard input and output until it ends, or until
    /// `go_on` says no: asked at first, whenever `wake` is readable, and once a second. Then it is killed at
    /// once: at SIGTERM rsync sleeps for 0.4 s first (rsync.c, `sig_int`), and a promotion waits for its end.
    pub fn run_attached(
        &self,
        wake: impl AsFd,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<ExitStatus, ProcessError> {
        let failed = |source: io::Error| ProcessError::Wait {
            command: self.command_line(),
            source,
        };
        // Dropped before its end, it is killed.
        let mut running = self.spawn(&mut self.command())?;
        let pid = Pid::from_child(&running.child);
        let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let look = WAKE
            .try_into()
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        while go_on() {
            let mut fds = [
                PollFd::new(&exit, PollFlags::IN),
                PollFd::new(&wake, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&look)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            if let Some(status) = running.end() {
                return status.ok_or_else(|| failed(io::ErrorKind::Other.into()));
            }
        }
        drop(running);
        Err(ProcessError::Stopped {
            command: self.command_line(),
        })
    }

    /// Runs the program with its standard output as the standard input of `sink`, until both have ended well.
    /// `go_on` gets the number of bytes so far, several times a second at least; when it says no both are
    /// killed. The deadlines of the two do not count.
    pub fn pipe_into(
        &self,
        sink: &Self,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<(), ProcessError> {
        let failed = |source: io::Error| ProcessError::Wait {
            command: self.command_line(),
            source,
        };
        let stopped = || ProcessError::Stopped {
            command: self.command_line(),
        };
        let mut source = self.spawn(
            self.command()
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let mut target = sink.spawn(
            sink.command()
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        )?;
        let source_errors = collect(source.child.stderr.take());
        let target_errors = collect(target.child.stderr.take());
        let look = LOOK
            .try_into()
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut bytes = 0;
        let mut buffer = vec![0; 256 * 1024];
        let (mut from, mut to) = (source.child.stdout.take(), target.child.stdin.take());
        while let (Some(pipe), Some(sink)) = (&mut from, &mut to) {
            let ready = poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&look));
            match ready {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => match pipe.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    count => {
                        bytes += count as u64;
                        // A sink that has ended says why itself.
                        if sink.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                },
                Err(error) => return Err(failed(error.into())),
            }
            if !go_on(bytes) {
                return Err(stopped());
            }
        }
        drop((from.take(), to.take()));
        for (running, errors) in [(&mut target, target_errors), (&mut source, source_errors)] {
            let status = loop {
                match running.end() {
                    Some(status) => {
                        break status.ok_or_else(|| failed(io::ErrorKind::Other.into()))?;
                    }
                    None if go_on(bytes) => std::thread::sleep(LOOK / 10),
                    None => return Err(stopped()),
                }
            };
            Output {
                command: running.command.clone(),
                status,
                stdout: Vec::new(),
                stderr: errors.recv_timeout(LOOK).unwrap_or_default(),
            }
            .success()?;
        }
        Ok(())
    }

    /// Runs the program with this process's standard output and error, and an input that ends when `go_on`,
    /// asked several times a second, says no: that tells the other side of an ssh to stop. Gives its exit
    /// code; none after a death by a signal.
    pub fn run_passing_on(&self, go_on: impl Fn() -> bool) -> Result<Option<i32>, ProcessError> {
        let mut running = self.spawn(self.command().stdin(Stdio::piped()))?;
        loop {
            if let Some(status) = running.end() {
                return Ok(status.and_then(|status| status.code()));
            }
            if !go_on() {
                running.child.stdin = None;
            }
            std::thread::sleep(LOOK / 4);
        }
    }
}

impl Running {
    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.end().is_some()
    }

    /// How it ended; none while it runs, or when that cannot be told.
    pub fn end(&mut self) -> Option<Option<ExitStatus>> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                self.reaped = true;
                Some(Some(status))
            }
            Err(_) => Some(None),
        }
    }

    /// Gives the whole input and waits for the end. Standard output goes to `on_output` as it comes;
    /// standard error is kept, capped. Several times a second `go_on` is asked; when it says no, the
    /// process group is killed and [`ProcessError::Stopped`] is returned.
    pub fn finish(
        self,
        input: &[u8],
        mut on_output: impl FnMut(&[u8]),
        go_on: impl FnMut() -> bool,
    ) -> Result<Output, ProcessError> {
        let command = self.command.clone();
        let never = |bytes: &[u8], _: &[u8]| {
            on_output(bytes);
            false
        };
        match self.finish_until(input, never, go_on)? {
            Finished::Ended(output) => Ok(output),
            Finished::Early(_) => Err(ProcessError::Stopped { command }),
        }
    }

    /// The same, given back before its end as soon as `enough` says so. It is asked with each piece of
    /// standard output and all of standard error so far.
    pub fn finish_until(
        mut self,
        input: &[u8],
        mut enough: impl FnMut(&[u8], &[u8]) -> bool,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Finished, ProcessError> {
        let command = self.command.clone();
        let failed = |source: io::Error| ProcessError::Wait {
            command: command.clone(),
            source,
        };
        let pid = Pid::from_child(&self.child);
        let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let mut stdin = self.child.stdin.take();
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        if let Some(pipe) = &stdin {
            nonblocking(pipe).map_err(failed)?;
        }
        if let Some(pipe) = &stdout {
            nonblocking(pipe).map_err(failed)?;
        }
        if let Some(pipe) = &stderr {
            nonblocking(pipe).map_err(failed)?;
        }
        let mut left = input;
        let mut errors = Vec::new();
        let mut without_partner = None::<Instant>;
        let look = LOOK
            .try_into()
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        loop {
            if let Some(pipe) = &mut stdin {
                match write_some(pipe, &mut left) {
                    Ok(()) if left.is_empty() => stdin = None,
                    Ok(()) => {}
                    // It does not want the rest; its exit says why.
                    Err(_) => stdin = None,
                }
            }
            let mut output = Vec::new();
            read_some(&mut stdout, &mut |bytes: &[u8]| {
                output.extend_from_slice(bytes);
            });
            // Standard error after it: what was said before that output is there by now.
            read_some(&mut stderr, &mut |bytes: &[u8]| {
                if (errors.len() as u64) < OUTPUT_CAP {
                    errors.extend_from_slice(bytes);
                }
            });
            if !output.is_empty() && enough(&output, &errors) {
                self.child.stdout = stdout;
                self.child.stderr = stderr;
                return Ok(Finished::Early(self));
            }
            let mut fds = vec![PollFd::new(&exit, PollFlags::IN)];
            fds.extend(stdin.iter().map(|p| PollFd::new(p, PollFlags::OUT)));
            fds.extend(stdout.iter().map(|p| PollFd::new(p, PollFlags::IN)));
            fds.extend(stderr.iter().map(|p| PollFd::new(p, PollFlags::IN)));
            match poll(&mut fds, Some(&look)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let exited = !fds[0].revents().is_empty();
            drop(fds);
            if exited {
                // What it wrote last is in the pipes; a grandchild may keep them open.
                let mut output = Vec::new();
                read_some(&mut stdout, &mut |bytes: &[u8]| {
                    output.extend_from_slice(bytes);
                });
                read_some(&mut stderr, &mut |bytes: &[u8]| {
                    errors.extend_from_slice(bytes);
                });
                enough(&output, &errors);
                let status = self.child.wait().map_err(failed)?;
                self.reaped = true;
                return Ok(Finished::Ended(Output {
                    command,
                    status,
                    stdout: Vec::new(),
                    stderr: errors,
                }));
            }
            if !go_on() {
                return Err(ProcessError::Stopped { command });
            }
            if self.waits_for_partner() {
                if without_partner.get_or_insert_with(Instant::now).elapsed() > NO_PARTNER {
                    return Err(ProcessError::NoPartner { command });
                }
            } else {
                without_partner = None;
            }
        }
    }

    /// Whether it stands in the opening of a named pipe. Where the kernel does not tell, it does not.
    fn waits_for_partner(&self) -> bool {
        fs::read(format!("/proc/{}/wchan", self.child.id()))
            .is_ok_and(|function| function == WAITS_FOR_PARTNER)
    }
}

/// A program that got its input.
#[derive(Debug)]
pub enum Finished {
    /// It has ended.
    Ended(Output),
    /// It has done enough, and ends by itself.
    Early(Running),
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(pipe)?;
    Ok(fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

fn write_some(pipe: &mut impl Write, left: &mut &[u8]) -> io::Result<()> {
    while !left.is_empty() {
        match pipe.write(left) {
            Ok(count) => *left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what is there; a pipe that is closed is dropped.
fn read_some(pipe: &mut Option<impl Read>, on_bytes: &mut impl FnMut(&[u8])) {
    let Some(open) = pipe else { return };
    let mut buffer = [0; 16 * 1024];
    loop {
        match open.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return;
            }
            Ok(count) => on_bytes(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                *pipe = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn much_input_and_output_pass_at_once() {
        let input = vec![b'x'; 3_000_000];
        let mut seen = 0;
        let output = Program::new("cat")
            .start()
            .unwrap()
            .finish(&input, |bytes| seen += bytes.len(), || true)
            .unwrap();
        assert!(output.status.success());
        assert_eq!(seen, input.len());
    }

    #[test]
    fn a_program_that_waits_is_alive_and_one_that_ended_is_seen() {
        let mut waits = Program::new("cat").start().unwrap();
        assert!(!waits.ended());
        let ends = Program::new("sh").args(["-c", "echo no >&2; exit 3"]);
        let output = ends.start().unwrap().finish(b"x", |_| (), || true).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stderr, b"no\n");
    }

    #[test]
    fn it_is_given_back_when_it_has_done_enough() {
        let program = Program::new("sh").args(["-c", "cat; sleep 60"]);
        let enough = |output: &[u8], errors: &[u8]| output == b"done\n" && errors.is_empty();
        let finished = program
            .start()
            .unwrap()
            .finish_until(b"done\n", enough, || true);
        let Ok(Finished::Early(mut running)) = finished else {
            panic!("{finished:?}");
        };
        assert!(!running.ended());
    }

    #[test]
    fn one_program_feeds_another_and_the_first_that_fails_is_named() {
        let sh = |script: &str| Program::new("sh").args(["-c", script]);
        let mut seen = 0;
        Program::new("head")
            .args(["-c", "3000000", "/dev/zero"])
            .pipe_into(&sh("test $(wc -c) = 3000000"), |bytes| {
                seen = bytes;
                true
            })
            .unwrap();
        assert_eq!(seen, 3_000_000);
        let error = sh("echo half; echo broken >&2; exit 4")
            .pipe_into(&Program::new("cat"), |_| true)
            .unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
        let error = Program::new("yes")
            .pipe_into(&sh("echo full >&2; exit 5"), |_| true)
            .unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        let start = Instant::now();
        let error = Program::new("sleep")
            .arg("60")
            .pipe_into(&Program::new("cat"), |_| false)
            .unwrap_err();
        assert!(matches!(error, ProcessError::Stopped { .. }));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn it_is_killed_when_told_to_stop() {
        let start = Instant::now();
        let stopped = Program::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .start()
            .unwrap()
            .finish(b"", |_| (), || false);
        assert!(matches!(stopped, Err(ProcessError::Stopped { .. })));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
