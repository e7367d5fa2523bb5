//! A pair that is half upgraded: node1 has the release before, node2 this one. Each of them takes over from the
//! other when its power is lost, takes files from it, and switches over with it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use std::time::Duration;

use lab::event::first_row;
use lab::writer::{Writer, now};
use lab::{Lab, NodeName, Options, wait_until};

use NodeName::{Node1, Node2};

/// Generous: figures are printed, bars are for the benchmark.
const LIMIT: Duration = Duration::from_secs(60);
const FAILBACK: &str = "/usr/libexec/keepalived-companion/failback";

/// The active node loses its power under a writing client, the other one goes on, and the lost one follows it.
fn fails_over(lab: &Lab, active: NodeName) {
    let survivor = active.other();
    lab.past_startup_delay(survivor).unwrap();
    let writer = Writer::start(lab, 1, first_row()).unwrap();
    writer.await_more(100, LIMIT).unwrap();
    let struck = now();
    lab.power_off(active).unwrap();
    let open = format!("{survivor} to open");
    lab.await_roles(&open, LIMIT, |roles| {
        roles.writable == [survivor] && roles.vip == [survivor]
    })
    .unwrap();
    writer.await_more(200, LIMIT).unwrap();
    let report = writer.stop().unwrap();
    let lost = report.lost(lab, survivor).unwrap();
    println!(
        "power loss of {active}: {:.2} s without a write, {} acknowledged, {} lost",
        report.longest_gap(struck - 0.1),
        report.rows.len(),
        lost.len()
    );
    assert_eq!(lost, [], "acknowledged and lost");
    lab.power_on(active).unwrap();
    lab.settled(survivor, LIMIT).unwrap();
    sends_files(lab, survivor);
}

/// A failback typed on `target`, which carries it out; the other one answers.
fn switches_over(lab: &Lab, target: NodeName) {
    let name = target.to_string();
    let done = lab.exec(target, &[FAILBACK, "--to", &name]).unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "failback to {target}: {said}");
    lab.settled(target, LIMIT).unwrap();
    sends_files(lab, target);
}

/// A file that is made on the active node arrives on the other one.
fn sends_files(lab: &Lab, active: NodeName) {
    let path = format!("/var/www/html/made-{}", now());
    lab.exec(active, &["touch", &path])
        .unwrap()
        .success()
        .unwrap();
    wait_until("a file on the other node", LIMIT, || {
        let arrived = lab.exec(active.other(), &["test", "-e", &path])?;
        Ok(if arrived.status.success() {
            Ok(())
        } else {
            Err(path.clone())
        })
    })
    .unwrap();
}

#[test]
fn a_pair_that_is_half_upgraded_fails_over_and_back() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    lab.up(&Options {
        not_upgraded: Some(Node1),
        ..Options::default()
    })
    .unwrap();
    lab.make_whole(Node1, LIMIT).unwrap();
    sends_files(&lab, Node1);
    fails_over(&lab, Node1);
    // The release before carries this one out, and this release answers; then the other way round.
    switches_over(&lab, Node1);
    switches_over(&lab, Node2);
    fails_over(&lab, Node2);
}
