//! Keepalived: whether it runs, and its own word on its state. It writes it down when asked by a signal (keepalived(8), SIGUSR1).

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};

use crate::stat::absent;
use crate::{NotKnown, stat};

/// Where Keepalived's packages of Debian 12 and 13 keep the parent's pid.
const PID_FILES: [&str; 2] = ["run/keepalived.pid", "run/keepalived/keepalived.pid"];
/// Where it writes to.
const DUMP: &str = "/tmp/keepalived.data";
/// It does so when it comes to it.
const PATIENCE: Duration = Duration::from_millis(500);
/// More than its dump of a hundred instances.
const LARGEST: u64 = 1024 * 1024;

/// The state of a VRRP instance, as its dump names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VrrpState {
    /// Not decided yet.
    Init,
    /// Ready to take the VIP.
    Backup,
    /// It has the VIP.
    Master,
    /// A check or an interface keeps it from taking part.
    Fault,
}

/// What Keepalived says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vrrp {
    /// The instance's state.
    pub state: VrrpState,
    /// Until then it takes no VIP, whatever its state: what is left of `vrrp_startup_delay`.
    pub startup_left: Duration,
    /// What checks with weights have taken off the configured priority.
    pub handicap: u32,
}

/// Whether a Keepalived parent process lives.
pub fn keepalived_running() -> Result<bool, NotKnown> {
    Ok(keepalived_process(Path::new("/"))?.is_some())
}

/// The pid of Keepalived's parent process. The file is there for as long as it runs, and longer when it
/// was killed.
fn keepalived_process(root: &Path) -> Result<Option<u32>, NotKnown> {
    for file in PID_FILES {
        let file = root.join(file);
        let Some(text) = read(&file)? else {
            continue;
        };
        // Keepalived makes the file before it writes into it.
        let pid: u32 = text
            .trim()
            .parse()
            .map_err(|_| NotKnown::new(file.display(), "it holds no pid"))?;
        let name = root.join(format!("proc/{pid}/comm"));
        if read(&name)?.is_some_and(|name| name.trim() == "keepalived") {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// None when there is no such file, or its process has ended.
fn read(path: &Path) -> Result<Option<String>, NotKnown> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(NotKnown::new(path.display(), error)),
    }
}

/// Asks Keepalived. None when it does not run, or its answer cannot be had or read: some installations give it
/// a /tmp of its own.
pub fn vrrp(instance: &str) -> Option<Vrrp> {
    let pid = keepalived_process(Path::new("/")).ok()??;
    let before = written();
    kill_process(Pid::from_raw(i32::try_from(pid).ok()?)?, Signal::USR1).ok()?;
    let start = Instant::now();
    loop {
        // Read while it is being written it has no state yet.
        if written() != before
            && let Some(told) = dump().and_then(|text| parse(&text, instance))
        {
            return Some(Vrrp {
                state: told.state,
                startup_left: told.startup_delay.saturating_sub(stat::age(pid)?),
                handicap: told.priority.saturating_sub(told.effective_priority),
            });
        }
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn written() -> Option<SystemTime> {
    fs::symlink_metadata(DUMP).ok()?.modified().ok()
}

/// Everybody may put a file into /tmp: only root's is believed.
fn dump() -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(DUMP, flags, Mode::empty()).ok()?);
    let about = file.metadata().ok()?;
    if !about.is_file() || about.uid() != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    state: VrrpState,
    startup_delay: Duration,
    priority: u32,
    effective_priority: u32,
}

fn parse(text: &str, instance: &str) -> Option<Told> {
    let value = |line: &str, key: &str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    let startup_delay = text
        .lines()
        .find_map(|line| value(line, "vrrp_startup_delay")?.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default();
    let of_instance = |key: &str| {
        text.lines()
            .skip_while(|line| value(line, "VRRP Instance").as_deref() != Some(instance))
            .find_map(|line| value(line, key))
    };
    let state = match of_instance("State")?.as_str() {
        "INIT" => VrrpState::Init,
        "BACKUP" => VrrpState::Backup,
        "MASTER" => VrrpState::Master,
        "FAULT" => VrrpState::Fault,
        _ => return None,
    };
    Some(Told {
        state,
        startup_delay,
        priority: of_instance("Priority")?.parse().ok()?,
        effective_priority: of_instance("Effective priority")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Written by Keepalived 2.2.7, shortened.
    const DUMPED: &str = " Min auto priority delay = 1000000 usecs\n vrrp_startup_delay = 5\n\
        ------< VRRP Topology >------\n VRRP Instance = VI_0\n   State = FAULT\n   Priority = 100\n   \
        Effective priority = 0\n VRRP Instance = VI_1\n   VRRP Version = 3\n   State = BACKUP\n   \
        Wantstate = BACKUP\n   Priority = 90\n   Effective priority = 60\n   Total priority = 60\n";

    #[test]
    fn what_is_told_is_that_of_the_instance() {
        let told = parse(DUMPED, "VI_1").unwrap();
        assert_eq!(
            told,
            Told {
                state: VrrpState::Backup,
                startup_delay: Duration::from_secs(5),
                priority: 90,
                effective_priority: 60,
            }
        );
        assert_eq!(parse(DUMPED, "VI_0").unwrap().state, VrrpState::Fault);
        assert_eq!(parse(DUMPED, "VI_2"), None);
        // While it is being written.
        let half = &DUMPED[..DUMPED.find("Total").unwrap() - 20];
        assert_eq!(parse(half, "VI_1"), None);
    }

    #[test]
    fn keepalived_is_gone_only_when_that_can_be_told() {
        let root = tempfile::tempdir().unwrap();
        let running = || keepalived_process(root.path());
        assert_eq!(running(), Ok(None));
        fs::create_dir_all(root.path().join("run")).unwrap();
        let file = root.path().join(PID_FILES[0]);
        fs::write(&file, "").unwrap();
        assert!(running().is_err(), "it is just being written");
        fs::write(&file, "812\n").unwrap();
        assert_eq!(running(), Ok(None), "left behind by one that was killed");
        fs::create_dir_all(root.path().join("proc/812")).unwrap();
        let name = root.path().join("proc/812/comm");
        fs::write(&name, "keepalived\n").unwrap();
        assert_eq!(running(), Ok(Some(812)));
        fs::write(&name, "bash\n").unwrap();
        assert_eq!(running(), Ok(None), "the pid is another's now");
        fs::remove_file(&name).unwrap();
        fs::create_dir(&name).unwrap();
        assert!(running().is_err(), "its name cannot be read");
    }
}
