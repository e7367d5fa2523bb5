//! The whole cluster: up, down, faults, and what its roles are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use process::{Output, Program};

use crate::node::{self, wait_until};
use crate::provision;
use crate::{LIVE, LabError, NodeName, Side, Suite, VIP, at, image, network, release_before, tell};

/// `vrrp_startup_delay` of the shipped configuration, with a second for its first checks.
const STARTUP_DELAY: f64 = 6.0;

/// Roles that a fault has left come to rest within this time.
const STANDS: Duration = Duration::from_secs(10);

/// How the cluster is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The release.
    pub suite: Suite,
    /// Keepalived's `advert_int`, in seconds.
    pub advert_int: String,
    /// The node that has the release before this one; the other one has this one.
    pub not_upgraded: Option<NodeName>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            suite: Suite::Bookworm,
            advert_int: "1".to_owned(),
            not_upgraded: None,
        }
    }
}

/// A cluster on this machine.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The `lab` program, which nodes and clients are started with.
    program: PathBuf,
}

/// Who is what, as the nodes themselves say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// Nodes with the VIP's address.
    pub vip: Vec<NodeName>,
    /// Nodes whose database is writable.
    pub writable: Vec<NodeName>,
    /// Nodes that replicate, both threads running.
    pub replicating: Vec<NodeName>,
}

impl Roles {
    /// One primary with the VIP, and the other node replicates.
    pub fn whole(&self) -> bool {
        self.writable.len() == 1
            && self.replicating.len() == 1
            && self.replicating != self.writable
            && self.vip == self.writable
    }
}

impl Lab {
    /// `program` is the path of the `lab` binary.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// Brings the cluster up; a cluster that is up already stays as it is.
    pub fn up(&self, options: &Options) -> Result<(), LabError> {
        fit_machine()?;
        let start = Instant::now();
        let image = image::image(options.suite)?;
        fs::create_dir_all(LIVE).map_err(at(LIVE))?;
        let marker = Path::new(LIVE).join("image");
        let not_upgraded = options.not_upgraded.map_or_else(String::new, |node| {
            format!("{node} has the release before\n")
        });
        let wanted = format!(
            "{}\n{}\n{not_upgraded}",
            image.display(),
            options.advert_int
        );
        match fs::read_to_string(&marker) {
            Ok(found) if found != wanted => {
                return Err(LabError::Unfit(
                    "a lab with other options is there; scripts/lab wipe first".to_owned(),
                ));
            }
            Ok(_) | Err(_) => fs::write(&marker, wanted).map_err(at(&marker))?,
        }
        network::up()?;
        let keys = provision::make_secrets()?;
        for node in NodeName::ALL {
            let fresh = !node.root().exists();
            node::mount(node, &image)?;
            if fresh {
                let (tree, binaries) = if options.not_upgraded == Some(node) {
                    let tree = release_before()?;
                    let binaries = tree.join("target/release");
                    (tree, binaries)
                } else {
                    let binaries = self.program.parent().unwrap_or(Path::new("/")).to_owned();
                    (provision::repository(), binaries)
                };
                let release = provision::Release { tree, binaries };
                provision::furnish(node, &keys, &options.advert_int, &release)?;
            }
        }
        tell(&format!("booting the nodes ({:.1?})", start.elapsed()));
        for node in NodeName::ALL {
            node::boot(node, &self.program)?;
        }
        let founded = Path::new(LIVE).join("founded");
        if !founded.exists() {
            tell(&format!("making the databases ({:.1?})", start.elapsed()));
            provision::found(&keys)?;
            self.exec(NodeName::Node1, &["systemctl", "start", "keepalived"])?
                .success()?;
            self.await_vip(NodeName::Node1)?;
            self.exec(NodeName::Node2, &["systemctl", "start", "keepalived"])?
                .success()?;
            self.settled(NodeName::Node1, Duration::from_secs(30))?;
            self.past_startup_delay(NodeName::Node2)?;
            fs::write(&founded, "").map_err(at(&founded))?;
        }
        tell(&format!("up after {:.1?}", start.elapsed()));
        Ok(())
    }

    /// Waits until `primary` is the writable primary with the VIP, and the others replicate with
    /// semi-synchronous acknowledgements.
    pub fn settled(&self, primary: NodeName, limit: Duration) -> Result<(), LabError> {
        let wanted = Roles {
            vip: vec![primary],
            writable: vec![primary],
            replicating: NodeName::ALL
                .into_iter()
                .filter(|n| *n != primary)
                .collect(),
        };
        wait_until(
            &format!("{primary} as the primary with a standby"),
            limit,
            || {
                let roles = self.roles()?;
                if roles != wanted {
                    return Ok(Err(format!("{roles:?}")));
                }
                let semi_sync =
                    provision::sql(primary, "SHOW STATUS LIKE 'Rpl_semi_sync_master_status'")?;
                Ok(if semi_sync.ends_with("ON") {
                    Ok(())
                } else {
                    Err(format!("{roles:?}, {semi_sync}"))
                })
            },
        )
    }

    /// Waits until Keepalived's `vrrp_startup_delay` is over: before that it takes no VIP.
    pub fn past_startup_delay(&self, node: NodeName) -> Result<(), LabError> {
        wait_until(
            &format!("{node}'s Keepalived past its startup delay"),
            Duration::from_secs(30),
            || {
                let since = self
                    .exec(
                        node,
                        &[
                            "systemctl",
                            "show",
                            "-P",
                            "ActiveEnterTimestampMonotonic",
                            "keepalived",
                        ],
                    )?
                    .text();
                let age = since
                    .parse::<f64>()
                    .map_or(0.0, |us| crate::writer::now() - us / 1e6);
                Ok(if since != "0" && age > STARTUP_DELAY {
                    Ok(())
                } else {
                    Err(format!("{age:.1} s old"))
                })
            },
        )
    }

    fn await_vip(&self, node: NodeName) -> Result<(), LabError> {
        let what = format!("the VIP on {node}");
        self.await_roles(&what, Duration::from_secs(30), |roles| roles.vip == [node])
    }

    /// Waits until the roles are as they should be.
    pub fn await_roles(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Roles) -> bool,
    ) -> Result<(), LabError> {
        wait_until(what, limit, || {
            let roles = self.roles()?;
            Ok(if wanted(&roles) {
                Ok(())
            } else {
                Err(format!("{roles:?}"))
            })
        })
    }

    /// Waits until these tables, a list as in SQL, are the same on both nodes.
    pub fn equal_tables(&self, tables: &str, limit: Duration) -> Result<(), LabError> {
        let statement = format!("CHECKSUM TABLE {tables} EXTENDED");
        wait_until("equal tables on both nodes", limit, || {
            let [here, there] = NodeName::ALL.map(|node| self.sql(node, &statement));
            let (here, there) = (here?, there?);
            Ok(if here == there {
                Ok(())
            } else {
                Err(format!("{here} and {there}"))
            })
        })
    }

    /// Who is what now. A node that is off or whose database does not answer is nothing.
    pub fn roles(&self) -> Result<Roles, LabError> {
        let mut roles = Roles {
            vip: Vec::new(),
            writable: Vec::new(),
            replicating: Vec::new(),
        };
        for node in NodeName::ALL {
            if node::leader(node).is_none() {
                continue;
            }
            let addresses =
                node::exec(node, &["ip", "-o", "address", "show", "dev", "enp0s9"])?.text();
            if addresses.contains(&format!(" {VIP}/")) {
                roles.vip.push(node);
            }
            let query =
                "SELECT IF(@@read_only, 'closed', 'open-for-writes'); SHOW ALL SLAVES STATUS\\G";
            // With column names: a stopped channel has other fields that are Yes.
            let asked = node::feed(node, &["timeout", "5", "mariadb", "-B"], query)?;
            if !asked.status.success() {
                continue;
            }
            let text = asked.text();
            if text.lines().any(|line| line == "open-for-writes") {
                roles.writable.push(node);
            }
            if replicates(&text) {
                roles.replicating.push(node);
            }
        }
        // The nodes are asked one after another; a switch-over in between looks like two writable
        // nodes. The first one is one only if it still is after the last one was.
        if roles.writable.len() > 1 {
            roles.writable.retain(|node| {
                *node == NodeName::ALL[NodeName::ALL.len() - 1]
                    || provision::sql(*node, "SELECT @@read_only + 0").is_ok_and(|text| text == "0")
            });
        }
        Ok(roles)
    }

    /// Runs a command in a node.
    pub fn exec(&self, node: NodeName, command: &[&str]) -> Result<Output, LabError> {
        node::exec(node, command)
    }

    /// Runs SQL in a node as root; tab-separated lines without column names.
    pub fn sql(&self, node: NodeName, statements: &str) -> Result<String, LabError> {
        provision::sql(node, statements)
    }

    /// Runs a command at the client's place.
    pub fn client(&self, command: &[&str]) -> Result<Output, LabError> {
        let prefix = network::client_command();
        Ok(Program::new(prefix[0])
            .args(&prefix[1..])
            .args(command)
            .deadline(Duration::from_secs(300))
            .run()?)
    }

    /// The `lab` program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Cuts the node's power.
    pub fn power_off(&self, node: NodeName) -> Result<(), LabError> {
        node::kill(node)
    }

    /// Shuts the node down in order, and waits until it is off.
    pub fn shut_down(&self, node: NodeName) -> Result<(), LabError> {
        self.halt(node, &["systemctl", "poweroff"])?;
        self.power_off(node)
    }

    /// Runs a command by which the node goes down, and waits until it has. Its kernel still answers for its addresses,
    /// until [`Self::power_off`].
    pub fn halt(&self, node: NodeName, command: &[&str]) -> Result<(), LabError> {
        self.exec(node, command)?.success()?;
        wait_until(
            &format!("{node} to shut down"),
            Duration::from_secs(60),
            || {
                Ok(match node::leader(node) {
                    None => Ok(()),
                    Some(leader) => Err(format!("its init {leader} still runs")),
                })
            },
        )
    }

    /// Reboots the node in order; the network is silent between the halt and the boot.
    pub fn reboot(&self, node: NodeName) -> Result<(), LabError> {
        self.shut_down(node)?;
        self.power_on(node)
    }

    /// Boots the node again with the disk it had.
    pub fn power_on(&self, node: NodeName) -> Result<(), LabError> {
        let marker = Path::new(LIVE).join("image");
        let text = fs::read_to_string(&marker).map_err(at(&marker))?;
        let image = text.lines().next().unwrap_or_default().to_owned();
        node::mount(node, Path::new(&image))?;
        node::boot(node, &self.program)
    }

    /// Cuts a node off on a network; its carrier stays.
    pub fn partition(&self, node: NodeName, side: Side) -> Result<(), LabError> {
        network::partition(node, side)
    }

    /// Drops what the nodes send each other from and to a TCP port, on both networks.
    pub fn cut_port(&self, port: u16) -> Result<(), LabError> {
        network::cut_port(port)
    }

    /// Ends every partition.
    pub fn heal(&self) -> Result<(), LabError> {
        network::heal()
    }

    /// Makes a node a fresh replica of the other one, from a backup; its own data go.
    pub fn rebuild(&self, node: NodeName) -> Result<(), LabError> {
        let source = node.other();
        tell(&format!("rebuilding {node} from {source}"));
        let backup = "/var/lib/lab-backup";
        // What the source had from other servers; the backup's own position comes on top.
        let state = self.sql(source, "SELECT @@gtid_binlog_state")?;
        self.exec(source, &["rm", "-rf", backup])?.success()?;
        let target = format!("--target-dir={backup}");
        self.exec(
            source,
            &["mariadb-backup", "--backup", "--user=root", &target],
        )?
        .success()?;
        self.exec(source, &["mariadb-backup", "--prepare", &target])?
            .success()?;
        // Or its audit attaches it as soon as it is started, before its position is set.
        let maintenance = "/usr/libexec/keepalived-companion/maintenance";
        self.exec(node, &[maintenance, "on", "--for", "10m"])?
            .success()?;
        self.exec(node, &["systemctl", "stop", "keepalived", "mariadb"])?
            .success()?;
        self.exec(
            node,
            &["find", "/var/lib/mysql", "-mindepth", "1", "-delete"],
        )?
        .success()?;
        Program::new("cp")
            .arg("-a")
            .arg(source.root().join("var/lib/lab-backup/."))
            .arg(node.root().join("var/lib/mysql"))
            .deadline(Duration::from_secs(600))
            .run()?
            .success()?;
        self.exec(source, &["rm", "-rf", backup])?.success()?;
        self.exec(node, &["chown", "-R", "mysql:mysql", "/var/lib/mysql"])?
            .success()?;
        // The restored gtid_slave_pos can be stale, so the position is the backup's own.
        let info = ["xtrabackup_binlog_info", "mariadb_backup_binlog_info"]
            .iter()
            .find_map(|name| fs::read_to_string(node.root().join("var/lib/mysql").join(name)).ok())
            .ok_or_else(|| LabError::Unfit("the backup names no binlog position".to_owned()))?;
        let position = info.split_whitespace().nth(2).unwrap_or_default();
        self.exec(node, &["systemctl", "start", "mariadb"])?
            .success()?;
        self.sql(
            node,
            &format!(
                "STOP ALL SLAVES; RESET SLAVE ALL; RESET MASTER; \
                 SET GLOBAL gtid_binlog_state = '{state}'; SET GLOBAL gtid_slave_pos = '{position}'"
            ),
        )?;
        self.exec(node, &[maintenance, "off"])?.success()?;
        // The audit attaches it.
        self.exec(node, &["systemctl", "start", "keepalived"])?
            .success()?;
        self.settled(source, Duration::from_secs(60))
    }

    /// Ends every fault, powers everything on, and makes `primary` the primary with a standby.
    pub fn make_whole(&self, primary: NodeName, limit: Duration) -> Result<(), LabError> {
        self.heal()?;
        for node in NodeName::ALL {
            self.power_on(node)?;
            for command in [
                &["systemctl", "unmask", "--runtime", "mariadb", "apache2"][..],
                &["systemctl", "start", "mariadb", "apache2", "keepalived"],
            ] {
                self.exec(node, command)?.success()?;
            }
        }
        self.await_roles("a primary with a standby", limit, Roles::whole)?;
        let other = primary.other();
        // A fault that has just ended may still move the roles: not before they stand is it known whose they are.
        let stands = self.roles()?.writable == [primary] && self.settled(primary, STANDS).is_ok();
        if !stands && self.roles()?.writable != [primary] {
            // VRRP gives the VIP back only when the other node leaves it.
            self.settled(other, limit)?;
            self.past_startup_delay(primary)?;
            self.exec(other, &["systemctl", "stop", "keepalived"])?
                .success()?;
            self.settled(primary, limit)?;
            self.exec(other, &["systemctl", "start", "keepalived"])?
                .success()?;
        }
        self.settled(primary, limit)?;
        NodeName::ALL
            .iter()
            .try_for_each(|node| self.past_startup_delay(*node))
    }

    /// Stops the nodes; their disks stay.
    pub fn down(&self) -> Result<(), LabError> {
        for node in NodeName::ALL {
            if network_exists()? {
                node::kill(node)?;
            }
        }
        network::down()
    }

    /// Removes everything but the image.
    pub fn wipe(&self) -> Result<(), LabError> {
        self.down()?;
        for node in NodeName::ALL {
            node::delete(node)?;
        }
        let live = Path::new(LIVE);
        if live.exists() {
            fs::remove_dir_all(live).map_err(at(live))?;
        }
        Ok(())
    }
}

/// Whether both threads of a channel run, as SHOW ALL SLAVES STATUS\G tells.
fn replicates(status: &str) -> bool {
    ["Slave_IO_Running: Yes", "Slave_SQL_Running: Yes"]
        .iter()
        .all(|thread| status.lines().any(|line| line.trim() == *thread))
}

fn network_exists() -> Result<bool, LabError> {
    let listed = Program::new("ip")
        .args(["netns", "list"])
        .run()?
        .success()?
        .text();
    Ok(listed.contains("kc-switch"))
}

/// Refuses early, with one line, where the lab cannot run.
fn fit_machine() -> Result<(), LabError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::Unfit(
            "the lab needs root: sudo scripts/lab …".to_owned(),
        ));
    }
    for program in [
        "mmdebstrap",
        "systemd-nspawn",
        "nft",
        "ip",
        "openssl",
        "ssh-keygen",
        "setsid",
    ] {
        let found = Program::new("which").arg(program).run()?;
        if !found.status.success() {
            return Err(LabError::Unfit(format!(
                "{program} is missing; scripts/lab installs it"
            )));
        }
    }
    let filesystems = fs::read_to_string("/proc/filesystems").map_err(at("/proc/filesystems"))?;
    if !filesystems.contains("overlay") {
        // It may be a module that is not loaded yet.
        Program::new("modprobe")
            .arg("overlay")
            .run()?
            .success()
            .map_err(|_| LabError::Unfit("this kernel has no overlay file system".to_owned()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_replicates_when_both_threads_run() {
        let status = |io: &str, sql: &str| {
            format!(
                "closed\n  Slave_IO_Running: {io}\n  Slave_SQL_Running: {sql}\n  Master_SSL_Allowed: Yes\n\
                 Master_SSL_Verify_Server_Cert: Yes\n  Slave_SQL_Running_State: waiting\n"
            )
        };
        assert!(replicates(&status("Yes", "Yes")));
        for (io, sql) in [
            ("No", "No"),
            ("Yes", "No"),
            ("No", "Yes"),
            ("Connecting", "Yes"),
        ] {
            assert!(!replicates(&status(io, sql)), "{io} {sql}");
        }
        assert!(!replicates("closed\n"));
    }
}
