//! One node: an overlay of the image, booted with its own systemd.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use process::{Output, Program};

use crate::{LIVE, LabError, at, network};

/// The nodes of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum NodeName {
    /// The preferred one.
    Node1,
    /// The other one.
    Node2,
}

impl NodeName {
    /// Every node.
    pub const ALL: [Self; 2] = [Self::Node1, Self::Node2];

    /// Its `server_id`.
    pub fn server_id(self) -> u32 {
        match self {
            Self::Node1 => 1,
            Self::Node2 => 2,
        }
    }

    /// Address on the private network.
    pub fn private(self) -> String {
        format!("192.168.137.1{}", self.server_id())
    }

    /// Address on the front network.
    pub fn front(self) -> String {
        format!("192.168.100.1{}", self.server_id())
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Node1 => Self::Node2,
            Self::Node2 => Self::Node1,
        }
    }

    fn directory(self) -> PathBuf {
        Path::new(LIVE).join(self.to_string())
    }

    /// The node's file system on the host.
    pub fn root(self) -> PathBuf {
        self.directory().join("root")
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.server_id())
    }
}

/// Mounts the node's file system over the image.
pub fn mount(node: NodeName, image: &Path) -> Result<(), LabError> {
    let directory = node.directory();
    for part in ["upper", "work", "root"] {
        let part = directory.join(part);
        fs::create_dir_all(&part).map_err(at(&part))?;
    }
    if mounted(&node.root())? {
        return Ok(());
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        image.display(),
        directory.join("upper").display(),
        directory.join("work").display()
    );
    Program::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(node.root())
        .run()?
        .success()?;
    Ok(())
}

fn mounted(path: &Path) -> Result<bool, LabError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(at("/proc/self/mounts"))?;
    let wanted = path.to_string_lossy();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&wanted)))
}

fn unmount(node: NodeName) -> Result<(), LabError> {
    if mounted(&node.root())? {
        Program::new("umount").arg(node.root()).run()?.success()?;
    }
    Ok(())
}

/// Removes the node's file system.
pub fn delete(node: NodeName) -> Result<(), LabError> {
    unmount(node)?;
    let directory = node.directory();
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(at(&directory))?;
    }
    Ok(())
}

/// Becomes the node's nspawn, in a cgroup of its own: two systemds in one tree would kill each
/// other's services. Only returns on failure.
pub fn become_node(node: NodeName) -> LabError {
    let own = format!("kc-{node}");
    let pid = std::process::id().to_string();
    let hierarchies: Vec<PathBuf> = fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let path = fields.nth(1)?;
            matches!(fields.next(), Some("cgroup" | "cgroup2")).then(|| PathBuf::from(path))
        })
        .collect();
    for hierarchy in hierarchies {
        let group = hierarchy.join(&own);
        if let Err(error) = fs::create_dir_all(&group) {
            return at(&group)(error);
        }
        // A new cpuset has no processors until it is told some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(parent) = fs::read_to_string(hierarchy.join(file)) {
                drop(fs::write(group.join(file), parent.trim()));
            }
        }
        let procs = group.join("cgroup.procs");
        if let Err(error) = fs::write(&procs, &pid) {
            return at(procs)(error);
        }
    }
    let pid_file = node.directory().join("nspawn.pid");
    let identity = format!(
        "{pid} {}",
        start_time(std::process::id()).unwrap_or_default()
    );
    if let Err(error) = fs::write(&pid_file, identity) {
        return at(pid_file)(error);
    }
    let source = std::os::unix::process::CommandExt::exec(
        Command::new("systemd-nspawn")
            .args(["--quiet", "--register=no", "--keep-unit"])
            .arg("-D")
            .arg(node.root())
            .arg(format!("--machine=kc-{node}"))
            .arg(format!("--hostname={node}"))
            .arg("--capability=CAP_NET_ADMIN,CAP_SYS_NICE,CAP_IPC_LOCK")
            .arg(format!(
                "--network-namespace-path=/run/netns/{}",
                network::namespace(node)
            ))
            .args([
                "--resolv-conf=off",
                "--timezone=off",
                "--boot",
                "--console=pipe",
            ]),
    );
    at("systemd-nspawn")(source)
}

/// When a process started, in clock ticks since boot: with it a pid cannot be mistaken.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

fn nspawn(node: NodeName) -> Option<u32> {
    let text = fs::read_to_string(node.directory().join("nspawn.pid")).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == started).then_some(pid)
}

/// The node's own init, seen from the host.
pub fn leader(node: NodeName) -> Option<u32> {
    let nspawn = nspawn(node)?;
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Boots the node and waits until its systemd has started everything.
pub fn boot(node: NodeName, lab: &Path) -> Result<(), LabError> {
    if leader(node).is_some() {
        return Ok(());
    }
    network::connect(node)?;
    let log_path = node.directory().join("console.log");
    let log = fs::File::create(&log_path).map_err(at(&log_path))?;
    // setsid --fork: the node outlives this process and is never its zombie.
    Command::new("setsid")
        .args(["--fork".as_ref(), lab.as_os_str(), "become-node".as_ref()])
        .arg(node.to_string())
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().map_err(at(&log_path))?)
        .stderr(log)
        .status()
        .map_err(at(lab))?;
    wait_until(
        &format!("the boot of {node}"),
        Duration::from_secs(60),
        || {
            if leader(node).is_none() {
                return Ok(Err("no init yet".to_owned()));
            }
            let state = exec(node, &["systemctl", "is-system-running"])?.text();
            Ok(match state.as_str() {
                "running" | "degraded" => Ok(()),
                _ => Err(state),
            })
        },
    )
}

/// Kills the node at once, as a power loss does.
pub fn kill(node: NodeName) -> Result<(), LabError> {
    if let Some(leader) = leader(node) {
        Program::new("kill")
            .args(["-KILL", &leader.to_string()])
            .run()?
            .success()?;
    }
    network::disconnect(node)?;
    wait_until(
        &format!("the end of {node}"),
        Duration::from_secs(20),
        || {
            Ok(match nspawn(node) {
                None => Ok(()),
                Some(pid) => Err(format!("nspawn {pid} still runs")),
            })
        },
    )?;
    remove_cgroups(node);
    unmount(node)
}

/// Removes the node's empty groups; one that is still busy is removed by the next call.
fn remove_cgroups(node: NodeName) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    for line in mounts.lines().filter(|l| l.contains(" cgroup")) {
        if let Some(path) = line.split(' ').nth(1) {
            remove_tree(&Path::new(path).join(format!("kc-{node}")));
        }
    }
}

fn remove_tree(group: &Path) {
    for child in fs::read_dir(group).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove_tree(&child.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Runs a command in the node.
pub fn exec(node: NodeName, command: &[&str]) -> Result<Output, LabError> {
    feed(node, command, "")
}

/// What a command is put behind to run in the node.
pub fn command_in(node: NodeName) -> Result<Vec<String>, LabError> {
    let leader = leader(node).ok_or(LabError::Off(node))?.to_string();
    Ok(["nsenter", "-t", &leader, "-a", "--"]
        .map(str::to_owned)
        .to_vec())
}

/// Runs a command in the node with standard input.
pub fn feed(node: NodeName, command: &[&str], stdin: &str) -> Result<Output, LabError> {
    let prefix = command_in(node)?;
    Ok(Program::new(&prefix[0])
        .args(&prefix[1..])
        .args(command)
        .stdin(stdin)
        .deadline(Duration::from_secs(300))
        .run()?)
}

/// Asks again until the answer is good; the last bad one goes into the error.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Result<(), String>, LabError>,
) -> Result<(), LabError> {
    let start = Instant::now();
    loop {
        match ask()? {
            Ok(()) => return Ok(()),
            Err(state) if start.elapsed() > limit => {
                return Err(LabError::TooLate {
                    what: what.to_owned(),
                    limit,
                    state,
                });
            }
            // The interval between two looks at a real condition.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
