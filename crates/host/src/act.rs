//! What changes this host: units are stopped, processes ended, addresses removed.
//!
//! Behind the feature `act`, which control alone switches on: what only reads cannot reach it.

use std::io;
use std::time::{Duration, Instant};

use process::{ProcessError, Program};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use settings::Settings;

use crate::database::Server;
use crate::{NotKnown, address};

/// Runs systemctl and waits for its end, at most for `limit`.
pub fn systemctl(words: &[&str], limit: Duration) -> Result<(), ProcessError> {
    Program::new("systemctl")
        .args(words)
        .deadline(limit)
        .run()?
        .success()?;
    Ok(())
}

/// Why a process is not known to be dead.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// What the process is.
    #[error(transparent)]
    NotKnown(#[from] NotKnown),
    /// The kernel refused.
    #[error("process {pid} cannot be killed: {source}")]
    Refused {
        /// The process.
        pid: u32,
        /// The reason.
        source: io::Error,
    },
    /// It outlived SIGKILL.
    #[error(
        "MariaDB (pid {pid}) still exists {patience:?} after SIGKILL; it hangs in the kernel: power the node off"
    )]
    Undead {
        /// The process.
        pid: u32,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// SIGKILL for the local MariaDB server, found before as `pid`, and the wait for its end. Nothing is killed
/// where that process has ended and another has its pid.
pub fn kill_mariadb(settings: &Settings, pid: u32, patience: Duration) -> Result<(), KillError> {
    kill(pid, patience, || Server::of(settings).is_server(pid))
}

/// The descriptor stays with the process that it was opened for, so the question that is asked after the
/// opening is about the one that is killed.
fn kill(
    pid: u32,
    patience: Duration,
    is_it: impl FnOnce() -> Result<bool, NotKnown>,
) -> Result<(), KillError> {
    let refused = |source: Errno| KillError::Refused {
        pid,
        source: source.into(),
    };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| refused(Errno::INVAL))?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        process => process.map_err(refused)?,
    };
    if !is_it()? {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(refused(error)),
    }
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let timeout = left.try_into().map_err(|_| refused(Errno::INVAL))?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(KillError::Undead { pid, patience }),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(refused(error)),
        }
    }
}

/// Removes the VIP's address, left behind by a Keepalived that was killed.
pub fn remove_address(settings: &Settings) -> Result<(), ProcessError> {
    let vip = settings.cluster.vip.to_string();
    let listed = address::list(settings)?;
    for address in listed.split_whitespace().filter(|word| {
        word.split_once('/')
            .is_some_and(|(address, _)| address == vip)
    }) {
        Program::new("ip")
            .args([
                "address",
                "del",
                address,
                "dev",
                &settings.cluster.vip_interface,
            ])
            .deadline(Duration::from_secs(1))
            .run()?
            .success()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use rustix::process::kill_process;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn sleeping() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn a_stopped_process_is_killed_and_its_end_awaited() {
        let mut child = sleeping();
        kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
        kill(child.id(), PATIENCE, || Ok(true)).unwrap();
        // It is over already: this does not wait.
        let status = child.try_wait().unwrap().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
        // And so is what has been reaped.
        kill(child.id(), PATIENCE, || Ok(true)).unwrap();
    }

    #[test]
    fn only_the_process_that_was_meant_is_killed() {
        let mut child = sleeping();
        kill(child.id(), PATIENCE, || Ok(false)).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        let unknown = kill(child.id(), PATIENCE, || {
            Err(NotKnown::new("/proc/812/stat", "unreadable"))
        });
        assert!(matches!(unknown, Err(KillError::NotKnown(_))));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
