//! A node that is silent, cut off, slow or stopped, under a writing client: the active one goes on alone only when
//! the standby can no longer open by itself, and the standby opens with everything that was acknowledged, or not at
//! all. The client's address is the witness.
//!
//! The tests share one lab and run one after another. With `LAB_ALL=1` in the environment there are more rows, at
//! random moments: `LAB_SEED` repeats a run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use std::time::Duration;

use lab::event;
use lab::trial::{
    ALONE, BUSY, LIMIT, RESIDENT, SIGN, STALE, Trial, await_moment, complete, is_there, json,
};
use lab::writer::now;
use lab::{Lab, LabError, NodeName, Side, Turn, wait_until};

use NodeName::{Node1, Node2};

fn quiet_lab() -> (Turn, Lab) {
    lab::trial::quiet_lab(env!("CARGO_BIN_EXE_lab"))
}

fn all() -> bool {
    std::env::var_os("LAB_ALL").is_some()
}

/// Moments that differ from run to run, and can be repeated.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let seed = std::env::var("LAB_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(event::first_row);
        println!("LAB_SEED={seed}");
        Self(seed)
    }

    /// Between 0 and 1 (splitmix64).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let thousandths = u32::try_from((mixed ^ (mixed >> 31)) % 1000).unwrap_or(0);
        f64::from(thousandths) / 1000.0
    }
}
/// Seconds of silence, with what is added to them and to the moment of the power loss.
fn silences(gate: f64) -> Vec<(f64, f64, f64)> {
    if !all() {
        return vec![(gate, 0.0, 0.0)];
    }
    let mut moments = Moments::new();
    [2.0, 6.0, 20.0]
        .into_iter()
        .flat_map(|seconds| [seconds; 3])
        .map(|seconds| (seconds, moments.next(), moments.next()))
        .collect()
}

#[test]
fn a_standby_that_was_cut_off_opens_with_everything_or_not_at_all() {
    let (_one_at_a_time, lab) = quiet_lab();
    for (seconds, more, later) in silences(6.0) {
        let what =
            format!("standby cut off for {seconds} + {more} s, then power loss of the active");
        let mut run = Trial::start(&lab, what);
        let begun = now();
        lab.partition(Node2, Side::Both).unwrap();
        await_moment(begun + seconds + more);
        lab.heal().unwrap();
        // It has just begun to catch up.
        await_moment(now() + later / 4.0);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        run.opens_with_everything_or_refuses(begun, lost_at);
    }
}

#[test]
fn a_standby_without_sql_opens_with_everything_or_not_at_all() {
    let (_one_at_a_time, lab) = quiet_lab();
    for (seconds, more, _) in silences(20.0) {
        let what = format!(
            "port 3306 between the nodes dropped for {seconds} + {more} s, then power loss of the active"
        );
        let mut run = Trial::start(&lab, what);
        let begun = now();
        lab.cut_port(3306).unwrap();
        await_moment(begun + seconds + more);
        let lost_at = now();
        lab.power_off(Node1).unwrap();
        run.opens_with_everything_or_refuses(begun, lost_at);
    }
}

#[test]
fn power_loss_of_the_standby_stops_commits_for_the_window() {
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "power loss of the standby");
    let struck = now();
    lab.power_off(Node2).unwrap();
    let pause = run.node1_goes_on(struck);
    assert!(is_there(&lab, Node1, ALONE).unwrap());
    run.assert_within_window(pause);
    lab.power_on(Node2).unwrap();
    lab.settled(Node1, LIMIT).unwrap();
    complete(&lab, Node1);
}

/// Such a statement holds locks over the accounts while it waits, and who asks for one of them waits with it.
#[test]
fn an_account_statement_that_waits_for_the_standby_is_let_go_as_well() {
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "CREATE USER at the power loss of the standby");
    let struck = now();
    lab.power_off(Node2).unwrap();
    lab.sql(Node1, "CREATE OR REPLACE USER ha_waits@localhost")
        .unwrap();
    let waited = now() - struck;
    let pause = run.node1_goes_on(struck);
    run.assert_within_window(waited);
    run.assert_within_window(pause);
    lab.power_on(Node2).unwrap();
    lab.settled(Node1, LIMIT).unwrap();
    complete(&lab, Node1);
}

/// Shorter than the time after which a closed one is killed, and longer than the audit's tick.
#[test]
fn a_standby_whose_database_stalls_for_a_moment_is_not_killed() {
    /// Seconds.
    const STALLS: f64 = 3.0;
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, format!("the standby's database stalls {STALLS} s"));
    let process = || {
        let show = ["systemctl", "show", "-P", "MainPID", "mariadb"];
        lab.exec(Node2, &show).unwrap().text().trim().to_owned()
    };
    let signal = |name: &str| {
        let kill = ["systemctl", "kill", "-s", name, "mariadb"];
        lab.exec(Node2, &kill).unwrap().success().unwrap();
    };
    let before = process();
    let struck = now();
    signal("STOP");
    await_moment(struck + STALLS);
    signal("CONT");
    let pause = run.node1_goes_on(struck);
    run.assert_within_window(pause);
    complete(&lab, Node1);
    assert_eq!(process(), before, "killed");
}

#[test]
fn a_standby_that_leaves_in_order_stops_nothing() {
    /// Seconds.
    const MOST: f64 = 1.0;
    let (_one_at_a_time, lab) = quiet_lab();
    for what in [
        "systemctl stop mariadb on the standby",
        "systemctl poweroff of the standby",
    ] {
        let mut run = Trial::start(&lab, what);
        let struck = now();
        if what.contains("poweroff") {
            lab.shut_down(Node2).unwrap();
        } else {
            let stop = ["systemctl", "stop", "mariadb"];
            lab.exec(Node2, &stop).unwrap().success().unwrap();
        }
        let pause = run.node1_goes_on(struck);
        assert!(pause <= MOST, "{what}: {pause:.2} s");
    }
    lab.make_whole(Node1, LIMIT).unwrap();
    complete(&lab, Node1);
}

/// What the service that hands over says of itself.
const HANDED_OVER: &str = "node2 has taken over";

/// How often the active node has handed over so far.
fn handed_over(lab: &Lab) -> usize {
    let lines = lab::trial::log_lines(lab, Node1);
    lines
        .iter()
        .filter(|line| line.contains(HANDED_OVER))
        .count()
}

#[test]
fn an_active_node_that_goes_down_in_order_hands_over_first() {
    /// Seconds.
    const MOST: f64 = 1.0;
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [(
        "systemctl reboot of the active",
        &["systemctl", "poweroff"][..],
    )];
    let more = [(
        "a halt of the active past logind",
        &["kill", "-s", "RTMIN+4", "1"][..],
    )];
    for (what, command) in usual.into_iter().chain(more.into_iter().filter(|_| all())) {
        let mut run = Trial::start(&lab, what);
        let before = handed_over(&lab);
        let struck = now();
        lab.halt(Node1, command).unwrap();
        let down = now();
        assert_eq!(lab.sql(Node2, "SELECT @@read_only + 0").unwrap(), "0");
        // A while with a kernel that still answers, as of a host that takes long to go.
        run.writer().await_more(200, LIMIT).unwrap();
        lab.power_off(Node1).unwrap();
        lab.power_on(Node1).unwrap();
        assert_eq!(handed_over(&lab), before + 1, "{what}");
        let (primary, pause) = run.goes_on(struck);
        println!("{what}: down after {:.2} s", down - struck);
        assert_eq!(primary, Node2);
        assert!(pause <= MOST + BUSY, "{what}: {pause:.2} s");
    }
}

#[test]
fn a_restart_of_services_is_no_shutdown() {
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "services of the active are restarted");
    let before = handed_over(&lab);
    let struck = now();
    for unit in [
        "keepalived-companion-leave",
        "systemd-logind",
        "keepalived-companion-links",
        "sync-realtime",
    ] {
        lab.exec(Node1, &["systemctl", "restart", unit])
            .unwrap()
            .success()
            .unwrap();
    }
    run.node1_goes_on(struck);
    assert_eq!(handed_over(&lab), before);
    let list = lab.exec(Node1, &["systemd-inhibit", "--list"]).unwrap();
    assert!(
        list.text().contains("keepalived-companion"),
        "{}",
        list.text()
    );
}

/// Nothing hands over, and the kernel of the host that has gone still answers.
#[test]
fn an_active_node_that_goes_down_without_a_word_is_taken_over_from() {
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "a halt of the active that hands nothing over");
    let leave = [
        "systemctl",
        "kill",
        "-s",
        "KILL",
        "keepalived-companion-leave",
    ];
    let mask = [
        "systemctl",
        "mask",
        "--runtime",
        "--now",
        "keepalived-companion-leave",
    ];
    lab.exec(Node1, &mask).unwrap().success().unwrap();
    lab.exec(Node1, &leave).unwrap();
    let struck = now();
    lab.halt(Node1, &["systemctl", "poweroff"]).unwrap();
    let down = now();
    wait_until("the standby to open", LIMIT, || {
        let closed = lab.sql(Node2, "SELECT @@read_only + 0")?;
        Ok(if closed == "0" { Ok(()) } else { Err(closed) })
    })
    .unwrap_or_else(|error| run.fails(&error.to_string()));
    run.writer().await_more(200, LIMIT).unwrap();
    lab.power_off(Node1).unwrap();
    lab.power_on(Node1).unwrap();
    let (primary, pause) = run.goes_on(struck);
    println!("down after {:.2} s", down - struck);
    assert_eq!(primary, Node2);
    run.assert_within_window(pause);
}

#[test]
fn an_active_node_whose_programs_hang_writes_nothing_when_they_go_on() {
    /// Seconds.
    const HANGS: f64 = 20.0;
    const MOST: f64 = 6.0;
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "every service of the active hangs for 20 s");
    let signal = |name: &str| {
        let services = ["mariadbd", "keepalived", "sshd", "apache2"]
            .map(|program| format!("pkill -{name} -x {program}"))
            .join("; ");
        // Programs that were ended meanwhile are as good.
        lab.exec(Node1, &["sh", "-c", &services]).unwrap();
    };
    let struck = now();
    signal("STOP");
    await_moment(struck + HANGS);
    signal("CONT");
    let (primary, pause) = run.goes_on(struck);
    assert_eq!(primary, Node2);
    assert!(pause <= MOST, "{pause:.2} s");
}

/// The resident program is sent a signal.
fn strike_resident(lab: &Lab, node: NodeName, signal: &str) {
    let kill = ["systemctl", "kill", "-s", signal, RESIDENT];
    lab.exec(node, &kill).unwrap().success().unwrap();
}

/// Waits until the resident program has shown itself again since that moment, in seconds since boot.
fn resident_lives(lab: &Lab, node: NodeName, since: f64) {
    wait_until("the resident program to live again", LIMIT, || {
        let active = lab.exec(node, &["systemctl", "is-active", RESIDENT])?;
        let at = json(lab, node, SIGN)?.and_then(|sign| sign["at"].as_f64());
        Ok(
            if active.status.success() && at.is_some_and(|at| at > since + 0.5) {
                Ok(())
            } else {
                Err(format!("{}, {at:?} after {since}", active.text()))
            },
        )
    })
    .unwrap();
}

/// The process that keeps the connection to the peer open, as ssh itself tells it.
fn connection_to_peer(lab: &Lab, node: NodeName) -> Result<Result<String, String>, LabError> {
    let path = format!(
        "ControlPath=/run/keepalived-companion/ssh-{}",
        node.other().private()
    );
    let asked = lab.exec(
        node,
        &["ssh", "-F", "none", "-o", &path, "-O", "check", "peer"],
    )?;
    let said = String::from_utf8_lossy(&asked.stderr).trim().to_owned();
    Ok(if asked.status.success() {
        Ok(said)
    } else {
        Err(said)
    })
}

/// Without it each question to the peer's forced command waits for a handshake.
#[test]
fn a_connection_to_the_peer_is_kept_open() {
    /// Seconds: more than between two tries.
    const LASTS: f64 = 5.0;
    let (_one_at_a_time, lab) = quiet_lab();
    let kept = |node| {
        let mut master = String::new();
        wait_until("a connection to the peer", LIMIT, || {
            Ok(connection_to_peer(&lab, node)?.map(|said| master = said))
        })
        .unwrap();
        master
    };
    for node in NodeName::ALL {
        let before = kept(node);
        await_moment(now() + LASTS);
        assert_eq!(kept(node), before, "{node}");
        // Its socket stays.
        strike_resident(&lab, node, "KILL");
        assert_ne!(kept(node), before, "{node}");
    }
    complete(&lab, Node1);
}

#[test]
fn a_resident_program_that_dies_or_hangs_comes_back() {
    let (_one_at_a_time, lab) = quiet_lab();
    let usual = [(Node1, "KILL")];
    let more = [(Node2, "KILL"), (Node1, "STOP"), (Node2, "STOP")];
    let rows = usual.into_iter().chain(more.into_iter().filter(|_| all()));
    for (node, signal) in rows {
        let what = format!("SIG{signal} of the resident program on {node}");
        let mut run = Trial::start(&lab, what);
        let (struck, since) = (now(), observe::uptime_seconds());
        strike_resident(&lab, node, signal);
        resident_lives(&lab, node, since);
        // A pause would show itself by then.
        await_moment(struck + run.window + BUSY);
        let pause = run.node1_goes_on(struck);
        run.assert_within_window(pause);
        complete(&lab, Node1);
    }
}

#[test]
fn a_resident_program_that_dies_with_the_other_node_loses_nothing() {
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(
        &lab,
        "the standby's resident program killed with the power loss of the active",
    );
    let lost_at = now();
    strike_resident(&lab, Node2, "KILL");
    lab.power_off(Node1).unwrap();
    run.opens_with_everything_or_refuses(lost_at, lost_at);
    if !all() {
        return;
    }
    let mut run = Trial::start(
        &lab,
        "the active's resident program killed with the power loss of the standby",
    );
    let struck = now();
    strike_resident(&lab, Node1, "KILL");
    lab.power_off(Node2).unwrap();
    let pause = run.node1_goes_on(struck);
    run.assert_within_window(pause);
    lab.power_on(Node2).unwrap();
    lab.settled(Node1, LIMIT).unwrap();
    complete(&lab, Node1);
}

#[test]
fn a_standby_that_is_too_slow_is_left_behind_and_catches_up() {
    /// Seconds.
    const SLOW: f64 = 10.0;
    let (_one_at_a_time, lab) = quiet_lab();
    let mut run = Trial::start(&lab, "the standby's mariadbd stopped for 10 s");
    let signal = |name: &str| {
        let kill = ["systemctl", "kill", "-s", name, "mariadb"];
        lab.exec(Node2, &kill).unwrap().success().unwrap();
    };
    let struck = now();
    signal("STOP");
    // The standby's own audit ends a database that hangs; it may be complete again before the ten seconds are over.
    let limit = Duration::from_secs_f64(run.window + BUSY);
    wait_until("the standby to be left behind", limit, || {
        let alone = is_there(&lab, Node1, ALONE)?;
        let stale = is_there(&lab, Node2, STALE)?;
        Ok(if alone && stale {
            Ok(())
        } else {
            Err(format!("alone: {alone}, stale: {stale}"))
        })
    })
    .unwrap_or_else(|error| run.fails(&error.to_string()));
    await_moment(struck + SLOW);
    signal("CONT");
    complete(&lab, Node1);
    let pause = run.node1_goes_on(struck);
    run.assert_within_window(pause);
    for (node, event) in [
        (Node1, "no-replica"),
        (Node2, "standby-stale"),
        (Node2, "standby-complete"),
    ] {
        run.arrives(node, &[event]);
    }
}
