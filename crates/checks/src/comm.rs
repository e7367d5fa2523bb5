//! Finds a process by the name that the kernel has for it.
//!
//! Never by its command line: a search for a word in there also finds the script that searches.

use std::fs;
use std::io;
use std::path::Path;

/// The kernel keeps so many bytes of a name.
const LONGEST: usize = 15;

/// The pid of a process of exactly this name that is neither a zombie nor this process.
pub(crate) fn find(proc: &Path, name: &str) -> io::Result<Option<u32>> {
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
        let Ok(stat) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if parse(&stat).is_some_and(|(comm, state)| comm == name && !matches!(state, b'Z' | b'X')) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Name and state from `PID (NAME) STATE …`. The name may hold anything, brackets too.
fn parse(stat: &[u8]) -> Option<(&[u8], u8)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(open + 1..close)?;
    let state = *stat.get(close + 2)?;
    Some((name, state))
}

#[cfg(test)]
mod tests {
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
        let (name, _) = parse(&own).unwrap();
        let name = String::from_utf8(name.to_vec()).unwrap();
        assert_ne!(
            find(Path::new("/proc"), &name).unwrap(),
            Some(std::process::id())
        );
    }

    #[test]
    fn what_is_no_stat_is_nothing() {
        for text in ["", "1", "1 (", "1 (a", "1 (a)", ")(", "1 )a( S"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
