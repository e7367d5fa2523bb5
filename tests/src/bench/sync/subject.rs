//! What is measured: our daemon, and what else keeps two trees in step over rsync and ssh.

use std::fs;
use std::path::{Path, PathBuf};

use nodefiles::sync_status::SyncState;

use super::tree;
use crate::{Lab, LabError, NodeName, at, mirror};

use NodeName::{Node1, Node2};

/// Everything that the benchmark puts on the nodes, apart from our own tree.
const PLACE: &str = "/srv/bench";
/// The competitors' tree.
pub const TREE: &str = "/srv/bench/tree";
/// What the competitors are given as rsync. A link, except while the tries are counted.
const RSYNC: &str = "/srv/bench/rsync";
/// Marks the key that node2 accepts during the benchmark.
const KEY_MARK: &str = "key-of-bench-sync-may-be-removed";
/// How the competitors reach node2: `standby` with a new connection each time, `kept` over one that
/// stays open. A connection that went dead is noticed after 10 s.
pub const SSH: &str = "/usr/bin/ssh -F /srv/bench/ssh_config";

/// Something that brings the changes of a tree from node1 to node2.
pub trait Subject {
    /// For the table.
    fn name(&self) -> &'static str;
    /// The unit on node1, without `.service`.
    fn unit(&self) -> &'static str;
    /// The tree, on both nodes.
    fn tree(&self) -> &'static str;
    /// Whom the tree's files belong to on the standby.
    fn owner(&self) -> &'static str {
        "root"
    }
    /// Why it cannot be measured here.
    fn missing(&self, _lab: &Lab) -> Result<Option<String>, LabError> {
        Ok(None)
    }
    /// What is done before the clock starts.
    fn prepare(&self, lab: &Lab) -> Result<(), LabError>;
    /// Starts it on node1.
    fn start(&self, lab: &Lab) -> Result<(), LabError>;
    /// Stops it, on both nodes.
    fn stop(&self, lab: &Lab) -> Result<(), LabError>;
    /// Lets node2 forget what it was, so that it is like a new node; it is stopped meanwhile.
    fn forget(&self) -> Result<(), LabError> {
        Ok(())
    }
    /// Whether it says itself that node2 has everything; none where it says nothing.
    fn in_sync(&self) -> Result<Option<bool>, LabError> {
        Ok(None)
    }
    /// Whether [`Subject::start`] returns when it is ready, and not at once.
    fn tells_ready(&self) -> bool {
        false
    }
    /// Lets the tries be counted from now on.
    fn count_tries(&self, on: bool) -> Result<(), LabError>;
    /// Tries to reach node2 so far.
    fn tries(&self) -> Result<u64, LabError>;
    /// Its part of the limit of a row.
    fn patience(&self) -> f64 {
        1.0
    }
}

/// The daemon of this toolkit, with its own tree.
#[derive(Debug)]
pub struct Ours;

const OUR_UNIT: &str = "sync-realtime";
const STATUS: &str = "/run/keepalived-companion/sync.json";

/// Without the daemon they would start it again, or move the VIP away.
const CHECKS: [&str; 2] = ["check-sync", "check-inotify"];

impl Subject for Ours {
    fn name(&self) -> &'static str {
        "sync-realtime"
    }

    fn unit(&self) -> &'static str {
        OUR_UNIT
    }

    fn tree(&self) -> &'static str {
        mirror::TREE
    }

    fn owner(&self) -> &'static str {
        "www-data"
    }

    fn missing(&self, lab: &Lab) -> Result<Option<String>, LabError> {
        for node in NodeName::ALL {
            let unit = lab.exec(node, &["systemctl", "cat", "sync-realtime.service"])?;
            if !unit.status.success() {
                return Ok(Some(format!("{node} has no sync-realtime.service")));
            }
        }
        Ok(None)
    }

    fn prepare(&self, lab: &Lab) -> Result<(), LabError> {
        // What the last run said is not news.
        drop(fs::remove_file(mirror::inside(Node1, STATUS)?));
        lab.exec(Node2, &["systemctl", "start", OUR_UNIT])?
            .success()?;
        Ok(())
    }

    fn start(&self, lab: &Lab) -> Result<(), LabError> {
        lab.exec(Node1, &["systemctl", "start", OUR_UNIT])?
            .success()?;
        Ok(())
    }

    fn stop(&self, lab: &Lab) -> Result<(), LabError> {
        for node in NodeName::ALL {
            lab.exec(node, &["systemctl", "stop", OUR_UNIT])?
                .success()?;
        }
        Ok(())
    }

    fn forget(&self) -> Result<(), LabError> {
        // Or a tree without its marker is taken for one that is not mounted.
        tree::remove(&on_host(Node2, "/var/lib/keepalived-companion/sync"))
    }

    fn in_sync(&self) -> Result<Option<bool>, LabError> {
        let status = mirror::status(Node1)?;
        Ok(Some(status.is_some_and(|s| s.state == SyncState::InSync)))
    }

    fn tells_ready(&self) -> bool {
        true
    }

    fn count_tries(&self, _on: bool) -> Result<(), LabError> {
        Ok(())
    }

    fn tries(&self) -> Result<u64, LabError> {
        mirror::status(Node1)?
            .map(|status| status.retries)
            .ok_or_else(|| LabError::Unfit("sync-realtime tells nothing".to_owned()))
    }
}

/// What a competitor runs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Loop,
    Lsyncd { delay: u32, host: &'static str },
}

/// A program written or configured for the benchmark, run as a transient unit.
#[derive(Debug)]
pub struct Competitor {
    name: &'static str,
    kind: Kind,
}

/// The usual three lines of shell. The first transfer is what most have; without it, a start brings nothing.
pub const LOOP: Competitor = Competitor {
    name: "inotifywait loop",
    kind: Kind::Loop,
};

/// lsyncd with a delay of a second instead of its 15, and a connection for each transfer.
pub const LSYNCD: Competitor = Competitor {
    name: "lsyncd delay 1",
    kind: Kind::Lsyncd {
        delay: 1,
        host: "standby",
    },
};

/// lsyncd as fast as it can be made.
pub const TUNED: Competitor = Competitor {
    name: "lsyncd delay 0 + ControlMaster",
    kind: Kind::Lsyncd {
        delay: 0,
        host: "kept",
    },
};

const UNIT: &str = "kc-bench-competitor";
/// What is done by hand.
pub const HAND_UNIT: &str = "kc-bench-by-hand";

impl Competitor {
    /// The file that it is started with, and the command.
    fn program(&self) -> (String, Vec<&'static str>) {
        match self.kind {
            Kind::Loop => (
                format!(
                    "send() {{ {RSYNC} -a --delete -e '{SSH}' {TREE}/ standby:{TREE}/; }}\n\
                     send\n\
                     while inotifywait -qq -r -e modify,create,delete,move {TREE}; do send; done\n"
                ),
                vec!["bash", "/srv/bench/program"],
            ),
            Kind::Lsyncd { delay, host } => (
                format!(
                    "settings {{ nodaemon = true, insist = true }}\n\
                     sync {{ default.rsync, source = '{TREE}/', target = '{host}:{TREE}/', delay = {delay}, \
                     maxProcesses = 1, rsync = {{ binary = '{RSYNC}', archive = true, rsh = '{SSH}' }} }}\n"
                ),
                vec!["lsyncd", "/srv/bench/program"],
            ),
        }
    }
}

impl Subject for Competitor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn unit(&self) -> &'static str {
        UNIT
    }

    fn tree(&self) -> &'static str {
        TREE
    }

    fn prepare(&self, _lab: &Lab) -> Result<(), LabError> {
        tree::write(&place(Node1).join("program"), self.program().0.as_bytes())
    }

    fn start(&self, lab: &Lab) -> Result<(), LabError> {
        run_unit(lab, UNIT, &self.program().1)
    }

    fn stop(&self, lab: &Lab) -> Result<(), LabError> {
        stop_unit(lab, UNIT)
    }

    fn count_tries(&self, on: bool) -> Result<(), LabError> {
        if !on {
            return link_rsync();
        }
        let counting = place(Node1).join("counting");
        tree::write(&place(Node1).join("tries"), b"")?;
        tree::write(
            &counting,
            b"#!/bin/sh\necho >> /srv/bench/tries\nexec /usr/bin/rsync \"$@\"\n",
        )?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&counting, mode).map_err(at(&counting))?;
        // In one step: a try in between finds either.
        fs::rename(&counting, rsync()).map_err(at(&counting))
    }

    fn tries(&self) -> Result<u64, LabError> {
        Ok(tree::size(&place(Node1).join("tries")).unwrap_or(0))
    }

    fn patience(&self) -> f64 {
        // What it has lost it sends with the next change only, so waiting is in vain.
        if matches!(self.kind, Kind::Loop) {
            0.5
        } else {
            1.0
        }
    }
}

/// The benchmark's directory in a node, on the host.
pub fn place(node: NodeName) -> PathBuf {
    on_host(node, PLACE)
}

/// A node's path, on the host.
pub fn on_host(node: NodeName, path: &str) -> PathBuf {
    node.root().join(path.trim_start_matches('/'))
}

fn rsync() -> PathBuf {
    on_host(Node1, RSYNC)
}

fn link_rsync() -> Result<(), LabError> {
    let link = place(Node1).join("link");
    std::os::unix::fs::symlink("/usr/bin/rsync", &link)
        .and_then(|()| fs::rename(&link, rsync()))
        .map_err(at(link))
}

/// Starts a transient unit on node1. What it prints costs time in the journal, so it goes nowhere.
pub fn run_unit(lab: &Lab, unit: &str, command: &[&str]) -> Result<(), LabError> {
    let unit = format!("--unit={unit}");
    let mut words = vec![
        "systemd-run",
        "--quiet",
        "--collect",
        &unit,
        "-p",
        "StandardOutput=null",
        "-p",
        "StandardError=null",
        "-p",
        "TimeoutStopSec=5",
    ];
    words.extend_from_slice(command);
    lab.exec(Node1, &words)?.success()?;
    Ok(())
}

/// Stops a transient unit with all its processes; one that is not there is stopped.
pub fn stop_unit(lab: &Lab, unit: &str) -> Result<(), LabError> {
    lab.exec(Node1, &["systemctl", "stop", unit])?;
    let state = lab.exec(Node1, &["systemctl", "is-active", unit])?.text();
    if matches!(state.as_str(), "inactive" | "unknown" | "failed") {
        Ok(())
    } else {
        Err(LabError::Unfit(format!("{unit} does not stop: {state}")))
    }
}

/// Lets node1's root log in to node2 with a key made for this run, and writes what the competitors need.
pub fn furnish(lab: &Lab) -> Result<(), LabError> {
    for node in NodeName::ALL {
        let tree = on_host(node, TREE);
        fs::create_dir_all(&tree).map_err(at(&tree))?;
    }
    let key = format!("{PLACE}/key");
    lab.exec(
        Node1,
        &[
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            KEY_MARK,
            "-f",
            &key,
        ],
    )?
    .success()?;
    let public = place(Node1).join("key.pub");
    let public = fs::read_to_string(&public).map_err(at(&public))?;
    let accepted = accepted_keys();
    let keys = fs::read_to_string(&accepted).map_err(at(&accepted))?;
    let line = format!("from=\"{}\" {public}", Node1.private());
    tree::write(&accepted, format!("{keys}{line}").as_bytes())?;
    tree::write(
        &place(Node1).join("ssh_config"),
        format!(
            "Host *\n  HostName {}\n  User root\n  IdentityFile {key}\n  IdentitiesOnly yes\n  BatchMode yes\n  \
             UserKnownHostsFile /etc/keepalived/secrets/known_hosts\n  ConnectTimeout 5\n  \
             ServerAliveInterval 5\n  ServerAliveCountMax 2\n\
             Host kept\n  ControlMaster auto\n  ControlPath {PLACE}/mux\n  ControlPersist yes\n",
            Node2.private()
        )
        .as_bytes(),
    )?;
    link_rsync()
}

fn checks() -> impl Iterator<Item = PathBuf> {
    NodeName::ALL.into_iter().flat_map(|node| {
        CHECKS.map(|check| on_host(node, "/usr/libexec/keepalived-companion").join(check))
    })
}

/// Lets the checks of the daemon be content with everything.
pub fn hush_checks() -> Result<(), LabError> {
    for check in checks().filter(|check| check.exists()) {
        let content = check.with_extension("content");
        fs::hard_link(&check, kept(&check))
            .and_then(|()| std::os::unix::fs::symlink("/usr/bin/true", &content))
            // In one step: Keepalived finds either.
            .and_then(|()| fs::rename(&content, &check))
            .map_err(at(&check))?;
    }
    Ok(())
}

/// Ends what [`hush_checks`] began.
pub fn restore_checks() -> Result<(), LabError> {
    for check in checks() {
        let kept = kept(&check);
        if kept.exists() {
            fs::rename(&kept, &check).map_err(at(&check))?;
        }
    }
    Ok(())
}

fn kept(check: &Path) -> PathBuf {
    check.with_extension("kept")
}

/// Takes everything back. All of it is tried; the first failure is told.
pub fn clear(lab: &Lab) -> Result<(), LabError> {
    let stopped = stop_unit(lab, UNIT).and(stop_unit(lab, HAND_UNIT));
    let accepted = accepted_keys();
    let forgotten = fs::read_to_string(&accepted)
        .map(|keys| {
            let kept = keys
                .split_inclusive('\n')
                .filter(|line| !line.contains(KEY_MARK));
            kept.collect::<String>()
        })
        .and_then(|kept| fs::write(&accepted, kept))
        .map_err(at(&accepted));
    let removed = tree::remove(&place(Node1)).and(tree::remove(&place(Node2)));
    stopped.and(forgotten).and(removed)
}

fn accepted_keys() -> PathBuf {
    on_host(Node2, "/root/.ssh/authorized_keys")
}
