//! Mistakes in the settings, and files and directories of the toolkit that are damaged, full or read-only, under a
//! writing client: nothing happens but alerts, and what happens afterwards ends as it would have without them, or in
//! a refusal that says why.
//!
//! The tests share one lab and run one after another. With `LAB_ALL=1` in the environment there are more rows.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use lab::trial::{BUSY, LIMIT, RESIDENT, SIGN, Trial, complete, json};
use lab::writer::now;
use lab::{Lab, NodeName, Turn, wait_until};

use NodeName::{Node1, Node2};

const SETTINGS: &str = "/etc/keepalived/companion.toml";
const STATE: &str = "/var/lib/keepalived-companion";
const RUN: &str = "/run/keepalived-companion";
const LIBEXEC: &str = "/usr/libexec/keepalived-companion";

fn all() -> bool {
    std::env::var_os("LAB_ALL").is_some()
}

fn quiet_lab() -> (Turn, Lab) {
    lab::trial::quiet_lab(env!("CARGO_BIN_EXE_lab"))
}

fn sh(lab: &Lab, node: NodeName, script: &str) -> String {
    let output = lab.exec(node, &["sh", "-c", script]).unwrap();
    let said = format!(
        "{}{}",
        output.text(),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{node}: {script}: {said}");
    said
}

/// Runs a program, which must end with that code, and gives what it said.
fn ends_with(lab: &Lab, node: NodeName, program: &str, code: i32) -> String {
    let command = format!("{LIBEXEC}/{program}; echo \"code $?\"");
    let said = sh(lab, node, &format!("({command}) 2>&1"));
    assert!(
        said.ends_with(&format!("code {code}")),
        "{node}: {program}: {said}"
    );
    said
}

/// Waits until a check says something.
fn check_says(lab: &Lab, node: NodeName, check: &str, wanted: &str) {
    wait_until(&format!("{check} on {node} to say {wanted}"), LIMIT, || {
        let command = format!("{LIBEXEC}/{check} --output nagios");
        let said = lab.exec(node, &["sh", "-c", &command])?.text();
        Ok(if said.contains(wanted) {
            Ok(())
        } else {
            Err(said)
        })
    })
    .unwrap();
}

#[test]
fn a_window_that_differs_is_named_and_a_new_one_holds_without_a_restart() {
    const CONF: &str = "/etc/keepalived/keepalived.conf";
    let (_one_at_a_time, lab) = quiet_lab();
    let mut trial = Trial::start(&lab, "W of 8.5 s on one node, then on both, then as it was");
    let begun = now();
    let lengthen = format!("cp {CONF} /root/conf; sed -i 's/advert_int 1$/advert_int 2/' {CONF}");
    let shorten = format!("mv /root/conf {CONF}");
    sh(&lab, Node1, &lengthen);
    trial.arrives(Node2, &["standby-stale"]);
    let told = trial.arrival(Node2, &["windows-differ"]);
    assert!(
        told.contains("4.5 s here") && told.contains("s on node1"),
        "{told}"
    );
    sh(&lab, Node2, &lengthen);
    complete(&lab, Node1);
    trial.arrives(Node2, &["windows-agree"]);
    for node in [Node1, Node2] {
        sh(&lab, node, &shorten);
    }
    wait_until("the first window on both", LIMIT, || {
        let signs = [Node1, Node2].map(|node| json(&lab, node, SIGN));
        Ok(
            if signs.iter().all(|sign| {
                sign.as_ref()
                    .is_ok_and(|sign| sign.as_ref().is_some_and(|s| s["window_ms"] == 4500))
            }) {
                Ok(())
            } else {
                Err(format!("{signs:?}"))
            },
        )
    })
    .unwrap();
    complete(&lab, Node1);
    let pause = trial.node1_goes_on(begun);
    assert!(pause < 1.0, "{pause:.2} s without a write");
}

/// Somebody's mistake.
#[derive(Debug, Clone, Copy)]
enum Mistake {
    /// A line that no program understands; the number makes it another one, since an alert that is told again within a
    /// short time is only counted.
    Line(u8),
    /// The file is not there any more.
    Missing,
    /// The host has another name than in the file.
    HostName(u8),
}

impl Mistake {
    fn make(self, lab: &Lab, node: NodeName) {
        match self {
            Self::Line(number) => sh(
                lab,
                node,
                &format!(
                    "cp {SETTINGS} /root/kept; printf '[rol{number}]\\nfreeze = 1\\n' >>{SETTINGS}"
                ),
            ),
            Self::Missing => sh(lab, node, &format!("mv {SETTINGS} /root/kept")),
            Self::HostName(number) => sh(lab, node, &format!("hostname www{number}")),
        };
    }

    fn mend(self, lab: &Lab, node: NodeName) {
        match self {
            Self::Line(_) | Self::Missing => sh(lab, node, &format!("mv /root/kept {SETTINGS}")),
            Self::HostName(_) => sh(lab, node, &format!("hostname {node}")),
        };
    }

    /// In every message about it.
    fn named(self) -> String {
        match self {
            Self::Line(number) => format!("rol{number}: unknown key"),
            Self::Missing => "companion.toml: cannot be read".to_owned(),
            Self::HostName(number) => format!("this node is called `www{number}`"),
        }
    }
}

#[test]
fn a_mistake_in_the_settings_costs_nothing_but_an_alert() {
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [
        (Mistake::Line(1), &[Node1][..]),
        (Mistake::HostName(1), &[Node1, Node2]),
    ];
    let more = [
        (Mistake::Line(2), &[Node1, Node2][..]),
        (Mistake::Line(3), &[Node2]),
        (Mistake::Missing, &[Node1, Node2]),
        (Mistake::HostName(2), &[Node1]),
    ];
    for (mistake, nodes) in usual.into_iter().chain(more.into_iter().filter(|_| all())) {
        let what = format!("{mistake:?} as a mistake on {nodes:?}, then power loss of the active");
        let mut trial = Trial::start(&lab, what);
        let begun = now();
        for node in nodes {
            mistake.make(&lab, *node);
        }
        for node in nodes {
            trial.arrives(*node, &["settings-mistake"]);
            for check in [
                "check-mariadb",
                "check-master --or-promotable",
                "check-apache",
                "check-sync",
            ] {
                check_says(&lab, *node, check, &mistake.named());
                let said = sh(
                    &lab,
                    *node,
                    &format!("{LIBEXEC}/{check} --output nagios; true"),
                );
                assert!(said.starts_with("WARNING"), "{check}: {said}");
            }
            for program in [
                "promote",
                "failback",
                "maintenance on --for 5m",
                "audit --check-config",
            ] {
                let said = ends_with(&lab, *node, program, 2);
                assert!(said.contains(&mistake.named()), "{program}: {said}");
            }
            // What is started anew has nothing but the settings of before.
            sh(
                &lab,
                *node,
                &format!("systemctl restart {RESIDENT} sync-realtime"),
            );
        }
        complete(&lab, Node1);
        assert_eq!(lab.roles().unwrap().vip, [Node1]);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        trial.opens_with_everything(begun, lost_at);
        for node in nodes {
            // The host's name is that of the file again after its boot.
            if !(matches!(mistake, Mistake::HostName(_)) && *node == Node1) {
                mistake.mend(&lab, *node);
            }
        }
        trial.arrives(nodes[nodes.len() - 1], &["settings-mended"]);
    }
}

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Garbage,
    Truncated,
    Missing,
}

impl Damage {
    const ALL: [Self; 3] = [Self::Garbage, Self::Truncated, Self::Missing];

    fn command(self, path: &str) -> String {
        match self {
            Self::Garbage => format!("printf '\\377\\0garbage' >'{path}'"),
            Self::Truncated => {
                format!("truncate -s $(($(stat -c %s '{path}') / 2)) '{path}'")
            }
            Self::Missing => format!("rm -f '{path}'"),
        }
    }
}

/// Every file that programs leave for each other. A lock has no content, and Keepalived's own track files are its
/// settings.
fn files(lab: &Lab, node: NodeName) -> Vec<String> {
    let find = format!(
        "find {STATE} {RUN} -xdev -type f ! -name '*.lock' ! -name standby ! -name entitled \
         ! -name install-manifest ! -path '*/recovered/*' ! -name '*.new.*' ! -name 'writable.*'"
    );
    let mut files: Vec<String> = sh(lab, node, &find).lines().map(str::to_owned).collect();
    files.sort();
    files
}

fn damage(lab: &Lab, node: NodeName, how: Damage, files: &[String]) {
    let script: Vec<String> = files.iter().map(|path| how.command(path)).collect();
    // One that has just been removed by its program is damaged enough.
    sh(lab, node, &format!("{}; true", script.join("; ")));
}

#[test]
fn damaged_files_are_not_believed_and_made_anew() {
    let (_one_at_a_time, lab) = quiet_lab();
    let rows = if all() {
        &Damage::ALL[..]
    } else {
        &[Damage::Truncated]
    };
    for &how in rows {
        let what =
            format!("{how:?}: every file of both nodes, a while before power loss of the active");
        let mut trial = Trial::start(&lab, what);
        let begun = now();
        for node in NodeName::ALL {
            let files = files(&lab, node);
            println!("{node}: {} files", files.len());
            damage(&lab, node, how, &files);
        }
        trial.writer().await_more(200, LIMIT).unwrap();
        complete(&lab, Node1);
        check_says(
            &lab,
            Node2,
            "check-master --or-promotable",
            "promotable standby",
        );
        check_says(&lab, Node1, "check-sync", "in sync");
        assert_eq!(lab.roles().unwrap().vip, [Node1]);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        trial.opens_with_everything(begun, lost_at);
    }
}

#[test]
fn files_that_are_damaged_in_the_moment_of_a_power_loss_lose_nothing() {
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [Damage::Garbage];
    let more = [Damage::Truncated, Damage::Missing];
    for how in usual.into_iter().chain(more.into_iter().filter(|_| all())) {
        let what = format!("{how:?}: every file of the standby, with the power loss of the active");
        let mut trial = Trial::start(&lab, what);
        let files = files(&lab, Node2);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        damage(&lab, Node2, how, &files);
        trial.opens_with_everything_or_refuses(lost_at, lost_at);
    }
    if !all() {
        return;
    }
    // One at a time, on either node.
    for node in NodeName::ALL {
        lab.make_whole(Node1, LIMIT).unwrap();
        for path in files(&lab, node) {
            for how in Damage::ALL {
                let what =
                    format!("{how:?}: {path} of {node}, with the power loss of the other node");
                let mut trial = Trial::start(&lab, what);
                let struck = now();
                lab.power_off(node.other()).unwrap();
                damage(&lab, node, how, std::slice::from_ref(&path));
                if node == Node2 {
                    trial.opens_with_everything_or_refuses(struck, struck);
                } else {
                    let pause = trial.node1_goes_on(struck);
                    trial.assert_within_window(pause);
                    lab.power_on(Node2).unwrap();
                    lab.settled(Node1, LIMIT).unwrap();
                    complete(&lab, Node1);
                }
            }
        }
    }
}

/// A directory that takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    State,
    Run,
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Full,
    ReadOnly,
}

/// What a timer does every half a minute.
fn try_directories(lab: &Lab, node: NodeName) {
    let units = "keepalived-companion-try-state keepalived-companion-try-logs";
    // They fail where their answer cannot be written down, either.
    sh(lab, node, &format!("systemctl start {units}; true"));
}

impl Place {
    fn path(self) -> &'static str {
        match self {
            Self::State => STATE,
            Self::Run => RUN,
            Self::Log => "/var/log/keepalived",
        }
    }

    fn shut(self, lab: &Lab, node: NodeName, how: How) {
        let path = self.path();
        let script = match (how, self) {
            // Some units have mounts of their own below /run, and can write there still.
            (How::ReadOnly, Self::Run) => {
                format!("mount --bind {path} {path} && mount -o remount,bind,ro {path}")
            }
            // Keepalived has files of it open, so it stays where it is.
            (How::Full, Self::Run) => {
                "mount -o remount,size=$(($(df -k --output=used /run | tail -1) + 64))k /run && \
                 dd if=/dev/zero of=/run/filler bs=4k 2>/dev/null; test -s /run/filler"
                    .to_owned()
            }
            (_, Self::State | Self::Log) => {
                let small = format!(
                    "rm -rf /root/small && cp -a {path} /root/small && mount -t tmpfs -o size=1m,mode=700 small {path} && \
                     cp -a /root/small/. {path}"
                );
                let shut = match how {
                    How::Full => format!(
                        "dd if=/dev/zero of={path}/filler bs=4k 2>/dev/null; test -s {path}/filler"
                    ),
                    How::ReadOnly => format!("mount -o remount,ro {path}"),
                };
                format!("{small} && {shut}")
            }
        };
        sh(lab, node, &script);
        try_directories(lab, node);
    }

    fn open(self, lab: &Lab, node: NodeName, how: How) {
        let path = self.path();
        match (how, self) {
            (How::Full, Self::Run) => sh(
                lab,
                node,
                "rm -f /run/filler && mount -o remount,size=50% /run",
            ),
            (How::ReadOnly | How::Full, _) => sh(lab, node, &format!("umount {path}")),
        };
        try_directories(lab, node);
    }
}

#[test]
fn a_standby_that_can_write_nothing_says_so_before_it_is_needed() {
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [(Place::State, How::Full)];
    let more = [
        (Place::Run, How::ReadOnly),
        (Place::State, How::ReadOnly),
        (Place::Run, How::Full),
        (Place::Log, How::Full),
        (Place::Log, How::ReadOnly),
    ];
    for (place, how) in usual.into_iter().chain(more.into_iter().filter(|_| all())) {
        let what = format!("{place:?} of the standby {how:?}, then power loss of the active");
        let mut trial = Trial::start(&lab, what);
        let begun = now();
        place.shut(&lab, Node2, how);
        trial.arrives(Node2, &["files-unusable"]);
        if place != Place::Log {
            // In the run directory the audit's verdict cannot be renewed, and the old one is too old by and by.
            let wanted = if place == Place::State {
                "cannot write down"
            } else {
                "no recent verdict"
            };
            check_says(&lab, Node2, "check-master --or-promotable", wanted);
        }
        trial.writer().await_more(200, LIMIT).unwrap();
        assert_eq!(lab.roles().unwrap().vip, [Node1]);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        match place {
            Place::Log => trial.opens_with_everything(begun, lost_at),
            // Keepalived brings it back from FAULT when its proof is too old; and one that cannot be kept is none.
            Place::State | Place::Run => trial.opens_with_everything_or_refuses(begun, lost_at),
        }
        place.open(&lab, Node2, how);
        trial.arrives(Node2, &["files-usable"]);
    }
}

#[test]
fn a_primary_that_can_write_nothing_goes_on_alone() {
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [(Place::State, How::ReadOnly)];
    let more = [
        (Place::Run, How::Full),
        (Place::State, How::Full),
        (Place::Run, How::ReadOnly),
        (Place::Log, How::Full),
        (Place::Log, How::ReadOnly),
    ];
    for (place, how) in usual.into_iter().chain(more.into_iter().filter(|_| all())) {
        let what = format!("{place:?} of the active {how:?}, then power loss of the standby");
        let mut trial = Trial::start(&lab, what);
        place.shut(&lab, Node1, how);
        trial.arrives(Node1, &["files-unusable"]);
        let struck = now();
        lab.power_off(Node2).unwrap();
        // Longer than a verdict is believed, and than a check needs to fail.
        lab::trial::await_moment(struck + trial.window + BUSY + 15.0);
        let roles = lab.roles().unwrap();
        assert_eq!(
            (roles.vip, roles.writable),
            (vec![Node1], vec![Node1]),
            "{}",
            trial.what
        );
        let pause = trial.node1_goes_on(struck);
        trial.assert_within_window(pause);
        trial.arrives(Node1, &["no-replica"]);
        if place == Place::Run {
            // What it says of itself cannot be renewed before.
            place.open(&lab, Node1, how);
        }
        lab.power_on(Node2).unwrap();
        lab.settled(Node1, LIMIT).unwrap();
        complete(&lab, Node1);
        if place != Place::Run {
            place.open(&lab, Node1, how);
        }
        trial.arrives(Node1, &["files-usable"]);
    }
}
