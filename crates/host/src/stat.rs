//! Processes, as the kernel tells them in `/proc/PID/stat`.
//!
//! A process is never looked for by its command line: a search for a word in there also finds the script
//! that searches.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::uptime_seconds;

/// The kernel keeps so many bytes of a name.
const LONGEST: usize = 15;

/// The pid of a process of exactly this name that is neither a zombie nor this process. `proc` is the
/// kernel's `/proc`.
pub fn find(proc: &Path, name: &str) -> io::Result<Option<u32>> {
    let name = &name.as_bytes()[..name.len().min(LONGEST)];
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // One that has ended meanwhile is none.
        let Ok(text) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if Stat::parse(&text).is_some_and(|stat| stat.name == name && stat.alive()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Whether the error says that there is no such file, or that its process has ended since it was opened.
pub(crate) fn absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// When a living process was started, in seconds since boot; none for one that is dead, a zombie
/// too.
pub fn started(pid: u32) -> Option<f64> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = Stat::parse(&text)?;
    stat.alive().then(|| stat.started())?
}

/// How long a process has lived.
pub(crate) fn age(pid: u32) -> Option<Duration> {
    Duration::try_from_secs_f64((uptime_seconds() - started(pid)?).max(0.0)).ok()
}

/// `PID (NAME) STATE …`, proc(5).
#[derive(Debug, PartialEq)]
pub(crate) struct Stat<'a> {
    /// It may hold anything, brackets too.
    pub(crate) name: &'a [u8],
    state: u8,
    /// The fields behind the state.
    rest: &'a [u8],
}

impl<'a> Stat<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        Some(Self {
            name: text.get(open + 1..close)?,
            state: *text.get(close + 2)?,
            rest: text.get(close + 3..)?,
        })
    }

    /// Neither a zombie nor dead.
    pub(crate) fn alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }

    /// Its start in seconds since boot: the 22nd field, the 19th behind the state, in ticks.
    fn started(&self) -> Option<f64> {
        let rest = std::str::from_utf8(self.rest).ok()?;
        let ticks: f64 = rest.split_ascii_whitespace().nth(18)?.parse().ok()?;
        let a_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        Some(ticks / f64::from(a_second))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Lines as Linux 6.1 writes them, cut after a few fields.
    const PROCESSES: [(u32, &str); 5] = [
        (10, "10 (inotifywait) S 1 10 10 0 -1 4194560"),
        (11, "11 (sync-files (old) S 1 11 11 0 -1 4194560"),
        (12, "12 (defunct) Z 1 12 12 0 -1 4227084"),
        (13, "13 (a-name-of-fifte) D 1 13 13 0 -1 4194560"),
        (14, "14 (bash) S 1 14 14 0 -1 4194560"),
    ];

    #[test]
    fn a_process_is_found_by_its_whole_name() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, stat) in PROCESSES {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cmdline"), "bash\0only-in-cmdline\0").unwrap();
        }
        fs::create_dir(proc.path().join("self")).unwrap();
        // It has just ended.
        fs::create_dir(proc.path().join("15")).unwrap();
        for (name, expected) in [
            ("inotifywait", Some(10)),
            ("inotify", None),
            ("inotifywaits", None),
            ("sync-files (old", Some(11)),
            ("defunct", None),
            ("a-name-of-fifte", Some(13)),
            ("a-name-of-fifteen", Some(13)),
            ("only-in-cmdline", None),
            ("", None),
        ] {
            assert_eq!(find(proc.path(), name).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn this_process_does_not_find_itself() {
        let own = fs::read("/proc/self/stat").unwrap();
        let stat = Stat::parse(&own).unwrap();
        let name = String::from_utf8(stat.name.to_vec()).unwrap();
        assert_ne!(
            find(Path::new("/proc"), &name).unwrap(),
            Some(std::process::id())
        );
    }

    #[test]
    fn what_is_no_stat_is_nothing() {
        for text in ["", "1", "1 (", "1 (a", "1 (a)", ")(", "1 )a( S"] {
            assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_read() {
        let text =
            b"812 (sync ) (x) S 1 812 812 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 9 0 123456 1 2 3";
        // On every architecture of Debian a tick is a hundredth of a second.
        assert_eq!(Stat::parse(text).unwrap().started(), Some(1234.56));
        assert_eq!(Stat::parse(b"812 (sync) S 1 812").unwrap().started(), None);
        assert!(!Stat::parse(b"812 (sync) Z 1 812").unwrap().alive());
        let age = age(std::process::id()).unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}
