//! `promote-NODE.log` in the directory of the logs, as the original had it: what a promotion did, step by step.
//!
//! It is written when the promotion has ended, well or not: a disk that hangs must not hold up a change of roles. What
//! outlives a death in the middle is the journal.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use settings::Settings;

use crate::tell;

/// The lines of one promotion; dropping it writes them.
pub struct StepLog {
    /// None where the disk of the logs may hang.
    path: Option<PathBuf>,
    start: Instant,
    lines: String,
}

impl StepLog {
    pub fn begin(settings: &Settings, what: &str) -> Self {
        let name = format!("promote-{}.log", settings.local().name);
        let mut log = Self {
            path: (!tell::logs_may_hang(settings)).then(|| settings.paths.log.join(name)),
            start: Instant::now(),
            lines: String::new(),
        };
        log.say(what);
        log
    }

    /// A line with the local time, and the time since the beginning.
    pub fn say(&mut self, text: &str) {
        let line = format!(
            "{} - [{:6.2} s] {text}\n",
            jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S"),
            self.start.elapsed().as_secs_f64(),
        );
        self.lines.push_str(&line);
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?
            .write_all(self.lines.as_bytes())
    }
}

impl Drop for StepLog {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = self.write(path)
        {
            log::error!("{}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_written_also_where_it_failed() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        for outcome in ["done", "failed"] {
            let mut log = StepLog::begin(&settings, "taking over");
            log.say(outcome);
        }
        let name = format!("promote-{}.log", settings.local().name);
        let text = std::fs::read_to_string(settings.paths.log.join(name)).unwrap();
        let said: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("s] "))
            .map(|(_, said)| said)
            .collect();
        assert_eq!(said, ["taking over", "done", "taking over", "failed"]);
    }
}
