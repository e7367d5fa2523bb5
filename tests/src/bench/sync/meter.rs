//! CPU time and memory of a unit in a node, read on the host from its control group.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Lab, LabError, NodeName, at};

/// Everything that serves an incoming ssh connection. Where PAM tells logind of it, it is moved to
/// `user.slice`.
const INCOMING: [&str; 2] = ["system.slice/ssh.service", "user.slice"];
/// How often the memory is looked at while its peak is wanted.
const SAMPLE: Duration = Duration::from_millis(20);

/// A node's control group of version 2: it counts CPU time without any controller, also where the
/// controllers themselves are mounted as version 1.
fn payload(node: NodeName) -> Result<PathBuf, LabError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(at("/proc/self/mounts"))?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2")
                .then(|| Path::new(path).join(format!("kc-{node}/payload")))
        })
        .ok_or_else(|| LabError::Unfit("no cgroup2 is mounted: CPU time is unknown".to_owned()))
}

/// The CPU seconds of a group since it was made; none when it is not there.
fn cpu(group: &Path) -> Result<Option<f64>, LabError> {
    let path = group.join("cpu.stat");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at(&path))?,
    };
    text.lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok())
        .map(|microseconds| Some(microseconds / 1e6))
        .ok_or_else(|| LabError::Unfit(format!("{}: no usage_usec", path.display())))
}

/// A reading of both nodes' CPU time.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    at: Instant,
    /// The subject's unit on node1, with every process in it.
    sender: f64,
    /// Incoming ssh on node2, and the subject's own unit if it has one there.
    receiver: f64,
}

/// What is counted for one subject.
#[derive(Debug, Clone)]
pub struct Meter {
    sender: PathBuf,
    receivers: Vec<PathBuf>,
    /// CPU seconds in a second on node2 while nothing changes: the toolkit's own connections.
    idle: f64,
}

impl Meter {
    /// The meter of a unit of node1, and of the same on node2.
    pub fn new(unit: &str) -> Result<Self, LabError> {
        let standby = payload(NodeName::Node2)?;
        let own = format!("system.slice/{unit}.service");
        Ok(Self {
            sender: payload(NodeName::Node1)?.join(&own),
            receivers: INCOMING
                .iter()
                .map(|group| standby.join(group))
                .chain([standby.join(own)])
                .collect(),
            idle: 0.0,
        })
    }

    /// Measures what node2 takes while nothing changes.
    pub fn idle(mut self, time: Duration) -> Result<Self, LabError> {
        let before = self.read()?;
        std::thread::sleep(time);
        let after = self.read()?;
        self.idle =
            (after.receiver - before.receiver) / after.at.duration_since(before.at).as_secs_f64();
        Ok(self)
    }

    /// The reading of now.
    pub fn read(&self) -> Result<Cpu, LabError> {
        let sender = cpu(&self.sender)?
            .ok_or_else(|| LabError::Unfit(format!("{}: not running", self.sender.display())))?;
        self.with(sender)
    }

    /// The reading of a unit that is started later.
    pub fn not_started(&self) -> Result<Cpu, LabError> {
        self.with(0.0)
    }

    fn with(&self, sender: f64) -> Result<Cpu, LabError> {
        let mut receiver = 0.0;
        for group in &self.receivers {
            receiver += cpu(group)?.unwrap_or(0.0);
        }
        Ok(Cpu {
            at: Instant::now(),
            sender,
            receiver,
        })
    }

    /// CPU seconds on node1 and on node2 since a reading.
    pub fn since(&self, before: &Cpu) -> Result<(f64, f64), LabError> {
        let after = self.read()?;
        if after.sender < before.sender {
            return Err(LabError::Unfit(format!(
                "{}: was restarted meanwhile",
                self.sender.display()
            )));
        }
        let idle = self.idle * after.at.duration_since(before.at).as_secs_f64();
        Ok((
            after.sender - before.sender,
            (after.receiver - before.receiver - idle).max(0.0),
        ))
    }

    /// The main process of the unit, as the host numbers it.
    fn main_pid(&self, lab: &Lab, unit: &str) -> Result<u32, LabError> {
        let own = lab
            .exec(
                NodeName::Node1,
                &["systemctl", "show", "-P", "MainPID", unit],
            )?
            .text();
        processes(&self.sender)
            .into_iter()
            // The last of its numbers is the one in the node.
            .find(|pid| {
                field(*pid, "NSpid:")
                    .is_some_and(|ids| ids.split_whitespace().next_back() == Some(&own))
            })
            .ok_or_else(|| LabError::Unfit(format!("{unit}: its main process {own} is gone")))
    }

    /// MB of the unit's main process, and of its children together. What processes share is counted
    /// in each.
    pub fn memory(&self, lab: &Lab, unit: &str) -> Result<Memory, LabError> {
        let main = self.main_pid(lab, unit)?;
        Ok(Memory::of(main, &self.sender))
    }

    /// The same while something runs: the peak of either.
    pub fn peak<T>(
        &self,
        lab: &Lab,
        unit: &str,
        work: impl FnOnce() -> T,
    ) -> Result<(T, Memory), LabError> {
        let main = self.main_pid(lab, unit)?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut peak = Memory::default();
                while !over.load(Ordering::Relaxed) {
                    let now = Memory::of(main, &self.sender);
                    peak.main = peak.main.max(now.main);
                    peak.children = peak.children.max(now.children);
                    std::thread::sleep(SAMPLE);
                }
                peak
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            let peak = sampler
                .join()
                .map_err(|_| LabError::Unfit("the memory's sampler failed".to_owned()))?;
            Ok((result, peak))
        })
    }
}

/// Resident memory in MB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Of the main process.
    pub main: f64,
    /// Of all others in its group.
    pub children: f64,
}

impl Memory {
    fn of(main: u32, group: &Path) -> Self {
        let mut memory = Self::default();
        for pid in processes(group) {
            // One that has ended meanwhile has none.
            let kib = field(pid, "VmRSS:")
                .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
                .unwrap_or(0.0);
            let megabytes = kib * 1024.0 / 1e6;
            if pid == main {
                memory.main = megabytes;
            } else {
                memory.children += megabytes;
            }
        }
        memory
    }
}

fn processes(group: &Path) -> Vec<u32> {
    fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// A line of a process's status.
fn field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}
