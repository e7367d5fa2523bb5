//! The way back on real nodes: under writing clients, in a row, killed, refused. Nothing that was
//! acknowledged is lost, and never do two nodes write.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lab::writer::{Report, Writer, now};
use lab::{Lab, LabError, NodeName, OpenSession, Output, Roles, Side, Turn, VIP, wait_until};

use NodeName::{Node1, Node2};

/// Generous: figures are printed, bars are for the benchmark.
const LIMIT: Duration = Duration::from_secs(90);
const FAILBACK: &str = "/usr/libexec/keepalived-companion/failback";
const PROMOTE: &str = "/usr/libexec/keepalived-companion/promote";

/// Node1 is the preferred node and the primary.
fn whole_lab() -> (Turn, Lab) {
    Lab::whole(env!("CARGO_BIN_EXE_lab"), LIMIT).unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}\n{}",
        output.text(),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a tool, which must end with that exit code; gives what it said.
fn ends_with(lab: &Lab, node: NodeName, command: &[&str], code: i32) -> String {
    let output = lab.exec(node, command).unwrap();
    let said = said(&output);
    if output.status.code() != Some(code) {
        // A refusal names these.
        let logs = "tail -n 5 /var/log/keepalived/check_*.log";
        let logs = lab.exec(node, &["sh", "-c", logs]).unwrap().text();
        panic!(
            "{command:?} on {node}: {}, not {code}: {said}\n{logs}",
            output.status
        );
    }
    said
}

/// Node2 becomes the primary, as after a failover. `failback` waits until its Keepalived can take the VIP.
fn hand_over(lab: &Lab) {
    ends_with(lab, Node2, &[FAILBACK, "--to", "node2"], 0);
    lab.settled(Node2, LIMIT).unwrap();
}

fn await_rows(writer: &Writer, more: usize) {
    writer.await_more(more, LIMIT).unwrap();
}

fn start_writer(lab: &Lab, writers: u32) -> Writer {
    let first = lab::event::first_row();
    let writer = Writer::start(lab, writers, first).unwrap();
    await_rows(&writer, 100);
    writer
}

/// Nothing acknowledged is missing on the primary, and both nodes have the same tables in the end.
fn assert_whole(lab: &Lab, report: &Report, primary: NodeName) {
    assert_eq!(
        report.lost(lab, primary).unwrap(),
        [],
        "acknowledged and lost"
    );
    assert_equal_tables(lab);
}

fn assert_equal_tables(lab: &Lab) {
    lab.equal_tables("ha_app.rows, keepalived_companion.epoch", LIMIT)
        .unwrap();
}

#[test]
fn the_primary_comes_back_under_a_writing_client() {
    let (_one_at_a_time, lab) = whole_lab();
    hand_over(&lab);
    let planned = ends_with(&lab, Node1, &[FAILBACK, "--dry-run"], 0);
    for part in ["SET GLOBAL read_only = 0", "undone by: peer: UNLOCK TABLES"] {
        assert!(planned.contains(part), "{planned}");
    }
    // With --force, too, a living primary is frozen and caught up with: a fence would lose its last writes.
    let forced = ends_with(&lab, Node1, &[PROMOTE, "--dry-run", "--force"], 0);
    assert!(forced.contains("FLUSH TABLES WITH READ LOCK"), "{forced}");
    assert_eq!(
        lab.roles().unwrap().writable,
        [Node2],
        "a dry run changed something"
    );
    let writer = start_writer(&lab, 1);
    let struck = now();
    let told = ends_with(&lab, Node1, &[FAILBACK], 0);
    assert!(told.contains("verified: the VIP is here"), "{told}");
    lab.settled(Node1, LIMIT).unwrap();
    await_rows(&writer, 100);
    let report = writer.stop().unwrap();
    println!(
        "failback: {:.2} s without a write, {} acknowledged",
        report.longest_gap(struck),
        report.rows.len()
    );
    assert_whole(&lab, &report, Node1);
    let again = ends_with(&lab, Node1, &[FAILBACK], 0);
    assert!(again.contains("already"), "{again}");
    let log = lab
        .exec(Node1, &["cat", "/var/log/keepalived/failback-node1.log"])
        .unwrap()
        .text();
    assert!(log.contains("done: node1 is the primary"), "{log}");
}

/// An administrator, whom `read_only` does not stop, types at whatever answers behind the VIP.
fn administrator(lab: &Lab, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<u64>> {
    let (lab, stop) = (lab.clone(), Arc::clone(stop));
    thread::spawn(move || {
        let mut done = Vec::new();
        for n in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let insert = format!("INSERT INTO ha_app.administrator VALUES ({n})");
            let client = [
                "mariadb",
                "--connect-timeout=1",
                "-h",
                VIP,
                "-u",
                "administrator",
            ];
            let typed = lab.exec(
                Node1,
                &[&client[..], &["-plab-only", "-e", &insert]].concat(),
            );
            if typed.is_ok_and(|output| output.status.success()) {
                done.push(n);
            }
        }
        done
    })
}

#[test]
fn there_and_back_five_times_under_load() {
    let (_one_at_a_time, lab) = whole_lab();
    lab.sql(
        Node1,
        "CREATE TABLE IF NOT EXISTS ha_app.administrator (n BIGINT PRIMARY KEY); TRUNCATE ha_app.administrator;
         CREATE OR REPLACE USER administrator@'%' IDENTIFIED BY 'lab-only'; GRANT ALL ON *.* TO administrator@'%'",
    )
    .unwrap();
    // As many as a standby could not follow when it synced each event and applied with one thread.
    let writer = start_writer(&lab, 8);
    let stop = Arc::new(AtomicBool::new(false));
    let administrator = administrator(&lab, &stop);
    let mut began = Vec::new();
    for target in [Node2, Node1, Node2, Node1, Node2, Node1] {
        began.push(now());
        // Typed on node1 in either direction.
        ends_with(&lab, Node1, &[FAILBACK, "--to", &target.to_string()], 0);
        lab.settled(target, LIMIT).unwrap();
        await_rows(&writer, 400);
    }
    stop.store(true, Ordering::Relaxed);
    let typed = administrator.join().unwrap();
    let report = writer.stop().unwrap();
    let gaps: Vec<String> = began
        .iter()
        .zip(began.iter().skip(1).chain([&report.ended]))
        .map(|(from, to)| format!("{:.2}", report.longest_gap_within(*from, *to)))
        .collect();
    println!(
        "six in a row, 8 writers: {} s without a write, {} acknowledged, {} by the administrator",
        gaps.join(", "),
        report.rows.len(),
        typed.len()
    );
    assert_whole(&lab, &report, Node1);
    assert!(!typed.is_empty(), "the administrator could not type");
    let kept = lab
        .sql(Node1, "SELECT COUNT(*) FROM ha_app.administrator")
        .unwrap();
    assert!(
        kept.parse::<usize>().unwrap() >= typed.len(),
        "{kept} of {}",
        typed.len()
    );
}

#[test]
fn power_loss_then_the_node_returns_and_takes_over_again() {
    let (_one_at_a_time, lab) = whole_lab();
    let writer = start_writer(&lab, 1);
    lab.power_off(Node1).unwrap();
    lab.await_roles("the standby to take over", LIMIT, |roles| {
        roles.writable == [Node2]
    })
    .unwrap();
    await_rows(&writer, 200);
    lab.power_on(Node1).unwrap();
    let returned = now();
    lab.settled(Node2, LIMIT).unwrap();
    println!(
        "rejoined by itself {:.1} s after its power was back",
        now() - returned
    );
    let struck = now();
    ends_with(&lab, Node1, &[FAILBACK], 0);
    await_rows(&writer, 200);
    let report = writer.stop().unwrap();
    println!(
        "failback after it: {:.2} s without a write",
        report.longest_gap(struck)
    );
    assert_whole(&lab, &report, Node1);
}

/// The next role change on node1 is killed, or stopped, at that moment.
fn inject(lab: &Lab, fault: &str) {
    let write = format!("echo '{fault}' > /var/lib/keepalived-companion/fault");
    ends_with(lab, Node1, &["sh", "-c", &write], 0);
}

/// At the steps that differ most, or with `LAB_ALL=1` at each.
#[test]
fn killed_at_any_step_it_ends_well() {
    let (_one_at_a_time, lab) = whole_lab();
    let most = [
        "after seal-files",
        "after grant",
        "after open",
        "before demote",
    ];
    let others = ["after freeze-peer", "before open", "after claim-epoch"];
    let all = std::env::var_os("LAB_ALL").is_some();
    for point in most.into_iter().chain(others.into_iter().filter(|_| all)) {
        lab.make_whole(Node1, LIMIT).unwrap();
        hand_over(&lab);
        let writer = start_writer(&lab, 1);
        inject(&lab, point);
        let struck = now();
        let output = lab.exec(Node1, &[FAILBACK]).unwrap();
        assert!(
            !output.status.success(),
            "{point}: it was not killed: {}",
            said(&output)
        );
        // Whoever is the primary now: clients go on, and there is one.
        await_rows(&writer, 100);
        let roles = lab.roles().unwrap();
        assert!(roles.writable.len() < 2, "{point}: {roles:?}");
        let stopped = now();
        wait_until("a run that ends well", LIMIT, || {
            let output = lab.exec(Node1, &[FAILBACK, "--resume"])?;
            Ok(if output.status.success() {
                Ok(())
            } else {
                Err(said(&output))
            })
        })
        .unwrap();
        lab.settled(Node1, LIMIT).unwrap();
        await_rows(&writer, 100);
        let report = writer.stop().unwrap();
        println!(
            "killed {point}: {:.2} s without a write, then {:.2} s",
            report.longest_gap_within(struck, stopped),
            report.longest_gap(stopped)
        );
        assert_whole(&lab, &report, Node1);
    }
}

/// What strikes while `failback` on node1 stands still in the middle of the switch-over from node2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    /// The nodes' own network is cut; they can reach each other on the clients'.
    Private,
    /// Node2 is cut off on both networks.
    Both,
    /// Node2 loses its power.
    Power,
    /// Node1, with `failback` on it, loses its power; node2 does not hear that its connections are gone.
    Driver,
    /// Nothing else: `failback` itself hangs until its peer has gone on alone.
    Hang,
}

/// Those that differ most, or with `LAB_ALL=1` in the environment each of them.
fn strikes() -> Vec<(&'static str, Strike)> {
    use Strike::{Both, Driver, Hang, Power, Private};
    let usual = [
        ("freeze-peer", Hang),
        ("freeze-peer", Private),
        ("grant", Private),
        ("grant", Both),
        ("freeze-peer", Power),
        ("grant", Driver),
    ];
    let more = [
        ("seal-files", Private),
        ("open", Private),
        ("claim-epoch", Private),
        ("freeze-peer", Both),
        ("open", Both),
        ("grant", Power),
        ("open", Power),
    ];
    let all = std::env::var_os("LAB_ALL").is_some();
    usual
        .into_iter()
        .chain(more.into_iter().filter(|_| all))
        .collect()
}

/// Whether two nodes were seen writable at once, by looking all the time.
struct Watchman {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<Vec<String>>,
}

impl Watchman {
    fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (lab, over) = (lab.clone(), Arc::clone(&stop));
        let seen = thread::spawn(move || {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match lab.roles() {
                    Ok(roles) if roles.writable.len() > 1 => seen.push(format!("{roles:?}")),
                    Ok(_) | Err(_) => {}
                }
            }
            seen
        });
        Self { stop, seen }
    }

    fn assert_never_two(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.seen.join().unwrap(), Vec::<String>::new());
    }
}

/// Runs `failback` on node1 until it stands still after a step.
fn stopped_after(lab: &Lab, step: &str) -> JoinHandle<Output> {
    inject(lab, &format!("stop after {step}"));
    let running = {
        let lab = lab.clone();
        // A shell between: nsenter stops with its child.
        let command = format!("{FAILBACK}; exit $?");
        thread::spawn(move || lab.exec(Node1, &["sh", "-c", &command]).unwrap())
    };
    wait_until("failback to stand still", LIMIT, || {
        if running.is_finished() {
            return Ok(Ok(()));
        }
        let states = lab.exec(Node1, &["ps", "-C", "failback", "-o", "stat="])?;
        Ok(if states.text().starts_with('T') {
            Ok(())
        } else {
            Err(states.text())
        })
    })
    .unwrap();
    assert!(
        !running.is_finished(),
        "failback did not stand still: {}",
        said(&running.join().unwrap())
    );
    running
}

fn rows_on(lab: &Lab, node: NodeName) -> u64 {
    lab::event::rows(lab, node).unwrap()
}

#[test]
fn what_breaks_in_the_middle_of_a_switch_over_ends_well() {
    let (_one_at_a_time, lab) = whole_lab();
    for (step, strike) in strikes() {
        lab.make_whole(Node1, LIMIT).unwrap();
        hand_over(&lab);
        let writer = start_writer(&lab, 1);
        let watchman = Watchman::start(&lab);
        let struck = now();
        let running = stopped_after(&lab, step);
        match strike {
            Strike::Private => lab.partition(Node2, Side::Private).unwrap(),
            Strike::Both => lab.partition(Node2, Side::Both).unwrap(),
            Strike::Power => lab.power_off(Node2).unwrap(),
            Strike::Driver => {
                lab.power_off(Node1).unwrap();
                lab.power_on(Node1).unwrap();
            }
            Strike::Hang => {
                let before = rows_on(&lab, Node2);
                wait_until("node2 to go on alone", LIMIT, || {
                    let rows = rows_on(&lab, Node2);
                    Ok(if rows > before + 50 {
                        Ok(())
                    } else {
                        Err(rows.to_string())
                    })
                })
                .unwrap();
            }
        }
        if strike != Strike::Driver {
            ends_with(&lab, Node1, &["pkill", "-CONT", "-x", "failback"], 0);
        }
        let output = running.join().unwrap();
        await_rows(&writer, 200);
        let went_on = now();
        lab.heal().unwrap();
        lab.power_on(Node2).unwrap();
        lab.await_roles("one primary with a standby", LIMIT, Roles::whole)
            .unwrap();
        let primary = lab.roles().unwrap().writable[0];
        lab.settled(primary, LIMIT).unwrap();
        await_rows(&writer, 100);
        watchman.assert_never_two();
        let report = writer.stop().unwrap();
        let outage = report.longest_gap_within(struck, went_on);
        println!(
            "{strike:?} after {step}: {outage:.2} s without a write, exit {:?}, then {primary} with {:.2} s at most",
            output.status.code(),
            report.longest_gap(went_on)
        );
        assert_whole(&lab, &report, primary);
        // Both nodes are well and reach each other: writes are frozen for no longer than freeze_limit_ms.
        if matches!(strike, Strike::Private | Strike::Hang) {
            assert!(outage < 5.0, "{}", said(&output));
        }
        // The old primary has not given the right to write away: it has it back.
        if strike == Strike::Hang {
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert_eq!(primary, Node2);
        }
    }
}

/// The standby's applying thread stops at a row that is there already; gives its number.
fn stop_applying(lab: &Lab, standby: NodeName) -> u64 {
    let n = lab::event::first_row();
    let row = format!("INSERT INTO ha_app.rows (writer, n, at) VALUES (78, {n}, NOW(6))");
    lab.sql(standby, &format!("SET sql_log_bin = 0; {row}"))
        .unwrap();
    lab.sql(standby.other(), &row).unwrap();
    wait_until("the applying thread to stop", LIMIT, || {
        let errno = lab.sql(standby, "SHOW ALL SLAVES STATUS")?;
        Ok(if errno.contains("1062") {
            Ok(())
        } else {
            Err(errno)
        })
    })
    .unwrap();
    n
}

fn go_on_applying(lab: &Lab, standby: NodeName, row: u64) {
    let repaired = format!(
        "SET sql_log_bin = 0; DELETE FROM ha_app.rows WHERE writer = 78 AND n = {row}; START SLAVE"
    );
    lab.sql(standby, &repaired).unwrap();
}

#[test]
fn what_stands_in_the_way_is_named_before_anything_is_touched() {
    let (_one_at_a_time, lab) = whole_lab();
    hand_over(&lab);
    let writer = start_writer(&lab, 1);
    let struck = now();
    for (statements, word) in [
        (
            "SET autocommit = 0; INSERT INTO ha_app.rows (writer, n, at) VALUES (77, 1, NOW(6))",
            "transaction open",
        ),
        (
            "CREATE TABLE IF NOT EXISTS ha_app.other (n INT); LOCK TABLES ha_app.other WRITE",
            "LOCK TABLES",
        ),
        ("BACKUP STAGE START", "backup"),
    ] {
        let session = OpenSession::holding(Node2, statements).unwrap();
        let mut told = String::new();
        wait_until("the refusal", LIMIT, || {
            let output = lab.exec(Node1, &[FAILBACK, "--dry-run"])?;
            told = said(&output);
            Ok(if output.status.code() == Some(3) {
                Ok(())
            } else {
                Err(told.clone())
            })
        })
        .unwrap();
        assert!(
            told.contains(word) && told.contains("KILL"),
            "{word}: {told}"
        );
        ends_with(&lab, Node1, &[FAILBACK], 3);
        drop(session);
    }
    await_rows(&writer, 50);
    let report = writer.stop().unwrap();
    println!(
        "refused six times: {:.2} s without a write",
        report.longest_gap(struck)
    );
    assert_eq!(lab.roles().unwrap().writable, [Node2]);
    // And a standby that does not apply.
    let row = stop_applying(&lab, Node1);
    let told = ends_with(&lab, Node1, &[FAILBACK], 3);
    assert!(told.contains("replication stopped"), "{told}");
    go_on_applying(&lab, Node1, row);
    ends_with(&lab, Node1, &[FAILBACK], 0);
}

const MAINTENANCE: &str = "/usr/libexec/keepalived-companion/maintenance";

/// Fifty rows that only node1 has, as after asynchronous replication: node2 does not receive them, and takes
/// over by force when node1's power is gone. Then node1's power is back.
fn diverge(lab: &Lab, structure: &str) {
    lab.make_whole(Node1, LIMIT).unwrap();
    lab.sql(
        Node1,
        "DELETE FROM ha_app.rows WHERE writer IN (499, 500, 501); \
         INSERT INTO ha_app.rows (writer, n, at) VALUES (499, 1, NOW(6)), (499, 2, NOW(6))",
    )
    .unwrap();
    ends_with(lab, Node2, &[MAINTENANCE, "on", "--for", "10m"], 0);
    lab.sql(Node2, "STOP SLAVE IO_THREAD").unwrap();
    wait_until("commits that wait for nobody", LIMIT, || {
        let on = lab.sql(Node1, "SELECT @@rpl_semi_sync_master_enabled")?;
        Ok(if on == "0" { Ok(()) } else { Err(on) })
    })
    .unwrap();
    let mut lost = String::from(structure);
    for n in 0..50 {
        writeln!(
            lost,
            "INSERT INTO ha_app.rows (writer, n, at) VALUES (500, {n}, NOW(6));"
        )
        .unwrap();
    }
    // What the standby has, changed and deleted by what it has not.
    lost.push_str("UPDATE ha_app.rows SET at = NOW(6) WHERE writer = 499 AND n = 1;");
    lost.push_str("DELETE FROM ha_app.rows WHERE writer = 499 AND n = 2;");
    lab.sql(Node1, &lost).unwrap();
    lab.power_off(Node1).unwrap();
    ends_with(lab, Node2, &[MAINTENANCE, "off"], 0);
    wait_until("the new primary", LIMIT, || {
        let output = lab.exec(Node2, &[PROMOTE, "--accept-loss", "--force"])?;
        Ok(if output.status.success() {
            Ok(())
        } else {
            Err(said(&output))
        })
    })
    .unwrap();
    lab.sql(
        Node2,
        "INSERT INTO ha_app.rows (writer, n, at) VALUES (501, 1, NOW(6))",
    )
    .unwrap();
    lab.power_on(Node1).unwrap();
}

/// The newest report of lost transactions on node1.
fn report_of_lost(lab: &Lab) -> serde_json::Value {
    let newest =
        "cat $(ls -t /var/lib/keepalived-companion/recovered/*/transactions-*.json | head -1)";
    let text = lab
        .exec(Node1, &["sh", "-c", newest])
        .unwrap()
        .success()
        .unwrap()
        .text();
    serde_json::from_str(&text).unwrap()
}

/// Of the application's schema, too.
fn assert_equal_schema(lab: &Lab) {
    assert_equal_tables(lab);
    let [here, there] = NodeName::ALL.map(|node| lab.sql(node, "SHOW TABLES FROM ha_app").unwrap());
    assert_eq!(here, there);
}

/// All fifty are written down. The end of the binlog, which InnoDB had not committed on the disk when the
/// power went, is cut off at the start and has a report of its own.
fn assert_all_written_down(lab: &Lab, report: &serde_json::Value) {
    let transactions = report["transactions"].as_array().unwrap();
    let told: Vec<i64> = transactions
        .iter()
        .flat_map(|t| t["rows"].as_array().into_iter().flatten())
        .filter(|row| row["after"]["writer"] == 500)
        .map(|row| row["after"]["n"].as_i64().unwrap())
        .collect();
    let newest =
        "cat $(ls -t /var/lib/keepalived-companion/recovered/binlog-*/cut-off.sql | head -1)";
    let cut_off = lab.exec(Node1, &["sh", "-c", newest]).unwrap().text();
    let mut in_report = 0;
    for n in 0..50 {
        if told.contains(&n) {
            in_report += 1;
        } else {
            assert!(
                cut_off.contains(&format!("VALUES (500, {n}, ")),
                "row {n} is in no report: {report}"
            );
        }
    }
    println!("{in_report} of 50 in the report, the rest in that of what was cut off");
}

#[test]
fn what_only_the_old_primary_had_is_written_down_and_taken_back() {
    let (_one_at_a_time, lab) = whole_lab();
    diverge(&lab, "");
    let returned = now();
    lab.settled(Node2, LIMIT).unwrap();
    println!(
        "taken back and a replica {:.1} s after its power was back",
        now() - returned
    );
    let report = report_of_lost(&lab);
    assert_all_written_down(&lab, &report);
    assert_equal_schema(&lab);
    // Nothing of it is in the way later: there and back.
    ends_with(&lab, Node1, &[FAILBACK], 0);
    lab.settled(Node1, LIMIT).unwrap();
    hand_over(&lab);
    assert_equal_schema(&lab);
}

/// The standby was away for longer than the primary keeps its binlogs.
#[test]
fn a_standby_whose_binlogs_were_purged_is_told_of_once_and_rebuilt() {
    /// Looks of the audit in which a loop would show itself.
    const LOOKS: usize = 4;
    /// A second, and what a busy machine adds.
    const BEGINS: f64 = 3.0;
    const MAINTENANCE: &str = "/usr/libexec/keepalived-companion/maintenance";
    let (_one_at_a_time, lab) = whole_lab();
    let lines = |words: &str| -> Result<usize, LabError> {
        let log = lab.exec(Node2, &["cat", "/var/log/keepalived_failover.log"])?;
        let log = log.text();
        Ok(log.lines().filter(|line| line.contains(words)).count())
    };
    let looks = || -> Result<usize, LabError> {
        let unit = "keepalived-companion-role";
        let log = lab.exec(
            Node2,
            &["journalctl", "-q", "-u", unit, "-o", "cat", "--no-pager"],
        )?;
        Ok(log.text().matches("Starting ").count())
    };
    // Or its audit attaches it at once.
    ends_with(&lab, Node2, &[MAINTENANCE, "on", "--for", "10m"], 0);
    lab.sql(Node2, "STOP SLAVE").unwrap();
    lab.sql(
        Node1,
        "CREATE OR REPLACE TABLE ha_app.purged (n INT PRIMARY KEY); INSERT INTO ha_app.purged VALUES (1); \
         FLUSH BINARY LOGS",
    )
    .unwrap();
    let newest = lab.sql(Node1, "SHOW BINARY LOGS").unwrap();
    let newest = newest
        .lines()
        .last()
        .and_then(|line| line.split('\t').next())
        .unwrap();
    // Not while the connection of the standby still reads one of them.
    wait_until("the binlogs to be purged", LIMIT, || {
        lab.sql(Node1, &format!("PURGE BINARY LOGS TO '{newest}'"))?;
        let left = lab.sql(Node1, "SHOW BINARY LOGS")?;
        Ok(if left.starts_with(newest) {
            Ok(())
        } else {
            Err(left)
        })
    })
    .unwrap();
    lab.sql(Node1, "INSERT INTO ha_app.purged VALUES (2)")
        .unwrap();
    let (told, attached) = (
        lines("error 1236").unwrap(),
        lines("replicates from").unwrap(),
    );
    ends_with(&lab, Node2, &[MAINTENANCE, "off"], 0);
    let once = |words: &str, before: usize| {
        wait_until(words, LIMIT, || {
            let news = lines(words)? - before;
            Ok(if news == 1 {
                Ok(())
            } else {
                Err(format!("{news} times"))
            })
        })
        .unwrap();
    };
    once("error 1236", told);
    let before = looks().unwrap();
    wait_until("more looks of the audit", LIMIT, || {
        let news = looks()? - before;
        Ok(if news >= LOOKS {
            Ok(())
        } else {
            Err(news.to_string())
        })
    })
    .unwrap();
    once("error 1236", told);
    // The channel is not made anew for the same answer.
    assert!(lines("replicates from").unwrap() <= attached + 1);
    let refused = ends_with(&lab, Node2, &[FAILBACK, "--rejoin-only"], 3);
    assert!(refused.contains("--rejoin-only --rebuild"), "{refused}");
    let said = ends_with(&lab, Node2, &[FAILBACK, "--rejoin-only", "--rebuild"], 0);
    let begun = said
        .lines()
        .find(|line| line.contains("a rebuild was asked for"))
        .unwrap();
    // [  0.12 s]
    let seconds = begun
        .split_once(" s]")
        .and_then(|(before, _)| before.rsplit_once('['))
        .and_then(|(_, seconds)| seconds.trim().parse::<f64>().ok())
        .unwrap();
    println!("a rebuild begins after {seconds} s");
    assert!(seconds < BEGINS, "{seconds} s");
    lab.settled(Node1, LIMIT).unwrap();
    lab.equal_tables("ha_app.purged", LIMIT).unwrap();
}

#[test]
fn what_cannot_be_taken_back_needs_a_copy_of_the_primary() {
    let (_one_at_a_time, lab) = whole_lab();
    diverge(&lab, "CREATE TABLE ha_app.extra (n INT PRIMARY KEY);");
    let told = "written down in";
    wait_until("a person to be called", LIMIT, || {
        let log = lab
            .exec(Node1, &["cat", "/var/log/keepalived_failover.log"])?
            .text();
        Ok(
            if log.contains(told) && log.contains("--rejoin-only --rebuild") {
                Ok(())
            } else {
                Err(log)
            },
        )
    })
    .unwrap();
    let report = report_of_lost(&lab);
    assert_all_written_down(&lab, &report);
    assert!(report.to_string().contains("CREATE TABLE ha_app.extra"));
    let refused = ends_with(&lab, Node1, &[FAILBACK], 3);
    assert!(refused.contains("--rejoin-only --rebuild"), "{refused}");
    let plan = ends_with(&lab, Node1, &[FAILBACK, "--dry-run", "--rebuild"], 0);
    assert!(plan.contains("change places"), "{plan}");
    let writer = start_writer(&lab, 1);
    let struck = now();
    let told = ends_with(&lab, Node1, &[FAILBACK, "--rejoin-only", "--rebuild"], 0);
    println!("rebuilt in {:.1} s", now() - struck);
    assert!(told.contains("fetching the copy"), "{told}");
    lab.settled(Node2, LIMIT).unwrap();
    await_rows(&writer, 100);
    ends_with(&lab, Node1, &[FAILBACK], 0);
    lab.settled(Node1, LIMIT).unwrap();
    let report = writer.stop().unwrap();
    println!(
        "rebuild and failback: {:.2} s without a write",
        report.longest_gap(struck)
    );
    assert_whole(&lab, &report, Node1);
    assert_equal_schema(&lab);
    let kept = lab
        .exec(
            Node1,
            &[
                "sh",
                "-c",
                "ls -d /var/lib/mysql.before-*/ha_app && rm -r /var/lib/mysql.before-*",
            ],
        )
        .unwrap();
    assert!(kept.status.success(), "{}", said(&kept));
}

/// Changes lines of a node's settings; gives the settings as they were.
/// How often a node has taken the VIP, as its hook has logged it.
fn vip_taken(lab: &Lab, node: NodeName) -> usize {
    let lines = lab::trial::log_lines(lab, node);
    lines
        .iter()
        .filter(|l| l.contains("State changed to MASTER"))
        .count()
}

#[test]
fn a_lone_standby_that_may_not_open_rests() {
    /// Seconds.
    const LASTS: f64 = 20.0;
    let (_one_at_a_time, lab) = whole_lab();
    let row = lab::event::first_row();
    let insert = format!("INSERT INTO ha_app.rows (writer, n, at) VALUES (99, {row}, NOW(6))");
    lab.sql(Node2, &format!("SET sql_log_bin = 0; {insert}"))
        .unwrap();
    lab.sql(Node1, &insert).unwrap();
    wait_until("replication to stop", LIMIT, || {
        let status = lab.sql(Node2, "SHOW ALL SLAVES STATUS")?;
        Ok(if status.contains("1062") {
            Ok(())
        } else {
            Err(status)
        })
    })
    .unwrap();
    let before = vip_taken(&lab, Node2);
    lab.power_off(Node1).unwrap();
    let lost = now();
    let audit = "/usr/libexec/keepalived-companion/audit --dry-run";
    wait_until("the refusal", LIMIT, || {
        let answer = lab.exec(Node2, &["sh", "-c", audit])?.text();
        Ok(
            if answer.starts_with("refused: ") && answer.contains("1062") {
                Ok(())
            } else {
                Err(answer)
            },
        )
    })
    .unwrap();
    lab::trial::await_moment(lost + LASTS);
    let taken = vip_taken(&lab, Node2) - before;
    println!("a lone standby that may not open: the VIP taken {taken} times in {LASTS} s");
    assert!(taken <= 1, "{taken}");
    lab.power_on(Node1).unwrap();
    wait_until("node1 to be the primary again", LIMIT, || {
        let roles = lab.roles()?;
        Ok(if roles.writable == [Node1] && roles.vip == [Node1] {
            Ok(())
        } else {
            Err(format!("{roles:?}"))
        })
    })
    .unwrap();
    let delete =
        format!("SET sql_log_bin = 0; DELETE FROM ha_app.rows WHERE n = {row}; START SLAVE");
    lab.sql(Node2, &delete).unwrap();
    lab.await_roles("a primary with a standby", LIMIT, Roles::whole)
        .unwrap();
}

/// Idle sessions of the application until none is left for it; one that ends elsewhere is taken, too.
const CROWD: &str = "mysqli_report(MYSQLI_REPORT_OFF); $c = []; $end = time() + 120; while (time() < $end) { \
    $new = @mysqli_connect('localhost', 'ha_user', 'securepass'); if ($new) { $c[] = $new; } else { usleep(20000); } }";

#[test]
fn every_connection_used_up_moves_nothing_and_keeps_no_tool_out() {
    /// Seconds.
    const LASTS: f64 = 10.0;
    let (_one_at_a_time, lab) = whole_lab();
    let writer = start_writer(&lab, 1);
    let struck = now();
    let crowd = [
        "systemd-run",
        "--unit=crowd",
        "--collect",
        "php",
        "-r",
        CROWD,
    ];
    lab.exec(Node1, &crowd).unwrap().success().unwrap();
    let check = "/usr/libexec/keepalived-companion/check-mariadb --output nagios";
    let crowded = "every connection for clients is used";
    wait_until("the last connection to go", LIMIT, || {
        let client = "mariadb -uha_user -psecurepass -e 'SELECT 1' 2>&1";
        let text = lab.exec(Node1, &["sh", "-c", client])?.text();
        Ok(if text.contains("Too many connections") {
            Ok(())
        } else {
            Err(text)
        })
    })
    .unwrap();
    let full = now();
    lab::trial::await_moment(full + LASTS);
    let roles = lab.roles().unwrap();
    assert_eq!((roles.vip, roles.writable), (vec![Node1], vec![Node1]));
    wait_until("the check to say so", LIMIT, || {
        let ended = lab.exec(Node1, &["sh", "-c", check])?;
        // A warning, not a failure.
        Ok(
            if ended.text().contains(crowded) && ended.status.code() == Some(1) {
                Ok(())
            } else {
                Err(ended.text())
            },
        )
    })
    .unwrap();
    let kept = now();
    hand_over(&lab);
    await_rows(&writer, 100);
    let report = writer.stop().unwrap();
    println!(
        "every connection used up: {:.2} s without a write, {:.2} s in the switch-over, {} acknowledged",
        report.longest_gap_within(struck, kept),
        report.longest_gap(kept),
        report.rows.len()
    );
    // The sessions have ended by the switch-over.
    lab.exec(Node1, &["systemctl", "stop", "crowd"]).unwrap();
    assert_whole(&lab, &report, Node2);
}

/// An event a second, one that is disabled, and one of another definer.
const EVENTS: &str = "
    CREATE TABLE ha_app.ticks (id BIGINT AUTO_INCREMENT PRIMARY KEY, server INT NOT NULL, name VARCHAR(20) NOT NULL);
    CREATE EVENT ha_app.ticking ON SCHEDULE EVERY 1 SECOND ON COMPLETION PRESERVE
        DO INSERT INTO ha_app.ticks (server, name) VALUES (@@server_id, 'ticking');
    CREATE EVENT ha_app.sleeping ON SCHEDULE EVERY 1 SECOND DISABLE
        DO INSERT INTO ha_app.ticks (server, name) VALUES (@@server_id, 'sleeping');
    CREATE DEFINER = 'ha_user'@'localhost' EVENT ha_app.`of ``another` ON SCHEDULE EVERY 1 DAY
        DO INSERT INTO ha_app.ticks (server, name) VALUES (@@server_id, 'of another');
    SET GLOBAL event_scheduler = ON";

/// What the primary has of them: all that must not change with the roles.
fn events(lab: &Lab, node: NodeName) -> String {
    lab.sql(
        node,
        "SELECT EVENT_NAME, DEFINER, STATUS, ON_COMPLETION, INTERVAL_VALUE, INTERVAL_FIELD, STARTS, SQL_MODE, TIME_ZONE
         FROM information_schema.EVENTS ORDER BY EVENT_NAME",
    )
    .unwrap()
}

/// How many times an event has run on that server.
fn ticks(lab: &Lab, primary: NodeName, on: NodeName, name: &str) -> u64 {
    let query = format!(
        "SELECT COUNT(*) FROM ha_app.ticks WHERE server = {} AND name = '{name}'",
        on.server_id()
    );
    lab.sql(primary, &query).unwrap().parse().unwrap()
}

/// The event runs on the primary; nothing of it does on the other node, which has no scheduler.
fn events_run_on(lab: &Lab, primary: NodeName, whole: &str) {
    let standby = primary.other();
    for name in ["ticking", "later"] {
        let before = ticks(lab, primary, primary, name);
        let elsewhere = ticks(lab, primary, standby, name);
        let known = whole.contains(name);
        wait_until("an event on the primary", LIMIT, || {
            let now = ticks(lab, primary, primary, name);
            Ok(if now > before + 2 || !known {
                Ok(())
            } else {
                Err(format!("{name}: {now} of {before}"))
            })
        })
        .unwrap();
        assert_eq!(ticks(lab, primary, standby, name), elsewhere, "{name}");
    }
    assert_eq!(ticks(lab, primary, primary, "sleeping"), 0);
    assert_eq!(events(lab, primary), whole);
    wait_until("the standby's events to be disabled", LIMIT, || {
        let state = lab.sql(
            standby,
            "SELECT @@event_scheduler, COUNT(*) FROM information_schema.EVENTS WHERE STATUS = 'ENABLED'",
        )?;
        Ok(if state == "OFF\t0" { Ok(()) } else { Err(state) })
    })
    .unwrap();
    lab.complete(primary, LIMIT).unwrap();
}

/// The audit of the primary has noted that the scheduler runs, and what is disabled.
fn events_are_noted(lab: &Lab, standby: NodeName) {
    wait_until("the note of the events", LIMIT, || {
        let noted = lab.sql(
            standby,
            "SELECT GROUP_CONCAT(event_name, status ORDER BY event_name) FROM keepalived_companion.event",
        );
        Ok(match noted {
            Ok(text) if text == "ON,sleepingDISABLED" => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .unwrap();
}

#[test]
fn scheduled_events_run_on_the_primary_as_they_were() {
    let (_one_at_a_time, lab) = whole_lab();
    lab.sql(Node1, EVENTS).unwrap();
    let whole = events(&lab, Node1);
    events_run_on(&lab, Node1, &whole);
    events_are_noted(&lab, Node2);
    hand_over(&lab);
    events_run_on(&lab, Node2, &whole);
    // One that is made while a node is away, with a server that starts its scheduler by itself there.
    let config = Node1.root().join("etc/mysql/mariadb.conf.d/70-events.cnf");
    std::fs::write(&config, "[mariadbd]\nevent_scheduler = ON\n").unwrap();
    lab.shut_down(Node1).unwrap();
    lab.sql(
        Node2,
        "CREATE EVENT ha_app.later ON SCHEDULE EVERY 1 SECOND
         DO INSERT INTO ha_app.ticks (server, name) VALUES (@@server_id, 'later')",
    )
    .unwrap();
    let whole = events(&lab, Node2);
    lab.power_on(Node1).unwrap();
    lab.await_roles("a primary with a standby", LIMIT, Roles::whole)
        .unwrap();
    events_run_on(&lab, Node2, &whole);
    // A crash instead of a switch-over; and the node that crashed comes back with its events enabled.
    lab.power_off(Node2).unwrap();
    wait_until("node1 to take over", LIMIT, || {
        let closed = lab.sql(Node1, "SELECT @@read_only + 0")?;
        Ok(if closed == "0" { Ok(()) } else { Err(closed) })
    })
    .unwrap();
    lab.power_on(Node2).unwrap();
    lab.await_roles("a primary with a standby", LIMIT, Roles::whole)
        .unwrap();
    events_run_on(&lab, Node1, &whole);
    lab.equal_tables("ha_app.rows, keepalived_companion.epoch", LIMIT)
        .unwrap();
    // A scheduler that the site stops stays so.
    lab.sql(Node1, "SET GLOBAL event_scheduler = OFF").unwrap();
    wait_until("the note that the scheduler is off", LIMIT, || {
        let noted = lab.sql(
            Node2,
            "SELECT status FROM keepalived_companion.event WHERE event_name = ''",
        )?;
        Ok(if noted == "OFF" { Ok(()) } else { Err(noted) })
    })
    .unwrap();
    hand_over(&lab);
    // Written once the new primary has done what it does with its scheduler.
    wait_until("node2 to look at its events", LIMIT, || {
        let there = lab::trial::is_there(&lab, Node2, "/run/keepalived-companion/events.json")?;
        Ok(if there { Ok(()) } else { Err(String::new()) })
    })
    .unwrap();
    assert_eq!(lab.sql(Node2, "SELECT @@event_scheduler").unwrap(), "OFF");
    lab.sql(
        Node2,
        "DROP EVENT ha_app.ticking; DROP EVENT ha_app.sleeping; DROP EVENT ha_app.later; \
                    DROP EVENT ha_app.`of ``another`; DROP TABLE ha_app.ticks",
    )
    .unwrap();
    std::fs::remove_file(config).unwrap();
}

fn set(node: NodeName, changes: &[(&str, &str)]) -> String {
    let path = node.root().join("etc/keepalived/companion.toml");
    let before = std::fs::read_to_string(&path).unwrap();
    let mut text = before.clone();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {before}");
        text = text.replace(from, to);
    }
    std::fs::write(&path, text).unwrap();
    before
}

#[test]
fn by_itself_the_old_primary_is_rebuilt_and_comes_back() {
    let (_one_at_a_time, lab) = whole_lab();
    let manual = set(
        Node1,
        &[
            ("mode = \"manual\"", "mode = \"automatic\""),
            ("stable_s = 600", "stable_s = 20"),
            ("rebuild = \"manual\"", "rebuild = \"automatic\""),
        ],
    );
    diverge(&lab, "CREATE TABLE ha_app.extra (n INT PRIMARY KEY);");
    let returned = now();
    let writer = start_writer(&lab, 1);
    let began = now();
    lab.settled(Node2, LIMIT).unwrap();
    let rebuilt = now();
    println!(
        "rebuilt by itself {:.1} s after its power was back",
        rebuilt - returned
    );
    assert_eq!(
        lab.sql(Node1, "SHOW TABLES FROM ha_app LIKE 'extra'")
            .unwrap(),
        ""
    );
    lab.await_roles("node1 to come back by itself", 2 * LIMIT, |roles| {
        roles.writable == [Node1] && roles.vip == [Node1]
    })
    .unwrap();
    println!("came back by itself {:.1} s later", now() - rebuilt);
    lab.settled(Node1, LIMIT).unwrap();
    await_rows(&writer, 100);
    let report = writer.stop().unwrap();
    println!(
        "{:.2} s without a write during the rebuild, {:.2} s in the way back",
        report.longest_gap_within(began, rebuilt),
        report.longest_gap(rebuilt)
    );
    assert_whole(&lab, &report, Node1);
    let settings = Node1.root().join("etc/keepalived/companion.toml");
    std::fs::write(settings, manual).unwrap();
    ends_with(
        &lab,
        Node1,
        &["sh", "-c", "rm -r /var/lib/mysql.before-*"],
        0,
    );
}

/// keepalived.conf in the shape of the original: weights, nopreempt on node1 only, slow checks, no track file.
fn original_configuration(node: NodeName) -> String {
    let (priority, preempt) = match node {
        Node1 => (100, "nopreempt"),
        Node2 => (90, ""),
    };
    let checks = [
        ("check_apache2", 30),
        ("check_mariadb", 20),
        ("check_mariadb_master", 30),
        ("check_sync_realtime", 15),
        ("check_inotifywait", 15),
    ];
    let mut text = String::from(
        "global_defs {\n    router_id original\n    script_user root\n    enable_script_security\n}\n",
    );
    for (name, weight) in checks {
        write!(
            text,
            "vrrp_script {name} {{\n    script \"/etc/keepalived/checks/{name}.sh\"\n    interval 5\n    fall 3\n    \
             rise 2\n    weight -{weight}\n}}\n"
        )
        .unwrap();
    }
    let names = checks.map(|(name, _)| name).join("\n        ");
    let (front, peer) = (node.front(), node.other().front());
    write!(
        text,
        "vrrp_instance VI_1 {{\n    state BACKUP\n    interface enp0s9\n    virtual_router_id 51\n    priority {priority}\n    \
         {preempt}\n    advert_int 1\n    unicast_src_ip {front}\n    unicast_peer {{\n        {peer}\n    }}\n    \
         virtual_ipaddress {{\n        {VIP}/24\n    }}\n    track_script {{\n        {names}\n    }}\n    \
         notify \"/etc/keepalived/notify.sh\"\n}}\n"
    )
    .unwrap();
    text
}

/// Puts a keepalived.conf in place on both nodes and starts Keepalived anew; the VIP stays on node1.
fn configure_keepalived(lab: &Lab, text: impl Fn(NodeName) -> String) {
    ends_with(lab, Node2, &["systemctl", "stop", "keepalived"], 0);
    for node in NodeName::ALL {
        std::fs::write(
            node.root().join("etc/keepalived/keepalived.conf"),
            text(node),
        )
        .unwrap();
    }
    ends_with(lab, Node1, &["systemctl", "restart", "keepalived"], 0);
    lab.await_roles("the VIP on node1", LIMIT, |roles| roles.vip == [Node1])
        .unwrap();
    ends_with(lab, Node2, &["systemctl", "start", "keepalived"], 0);
    lab.settled(Node1, LIMIT).unwrap();
}

fn link_legacy(option: &str) {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_lab"))
        .parent()
        .unwrap();
    for node in NodeName::ALL {
        let output = Command::new(repository.join("scripts/install"))
            .arg("--destdir")
            .arg(node.root())
            .arg("--build-dir")
            .arg(binaries)
            .arg(option)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Without a track file a node that may not be promoted leaves the VIP by stopping Keepalived.
fn a_refused_node_stops_its_keepalived(lab: &Lab) {
    let row = stop_applying(lab, Node2);
    lab.power_off(Node1).unwrap();
    wait_until("Keepalived on node2 to be stopped", LIMIT, || {
        let state = lab.exec(Node2, &["systemctl", "is-active", "keepalived"])?;
        let roles = lab.roles()?;
        Ok(if state.text() == "inactive" && roles.vip.is_empty() {
            Ok(())
        } else {
            Err(format!("{}, {roles:?}", state.text()))
        })
    })
    .unwrap();
    assert_eq!(lab.roles().unwrap().writable, []);
    let log = "/var/log/keepalived_failover.log";
    let told = ends_with(lab, Node2, &["tail", "-n", "5", log], 0);
    assert!(
        told.contains("once this node is in order: systemctl start keepalived"),
        "{told}"
    );
    lab.power_on(Node1).unwrap();
    lab.await_roles("node1 as the primary again", LIMIT, |roles| {
        roles.writable == [Node1] && roles.vip == [Node1]
    })
    .unwrap();
    go_on_applying(lab, Node2, row);
    ends_with(lab, Node2, &["systemctl", "start", "keepalived"], 0);
    lab.settled(Node1, LIMIT).unwrap();
}

#[test]
fn with_the_original_keepalived_conf_nothing_is_lost() {
    let (_one_at_a_time, lab) = whole_lab();
    let ours: Vec<String> = NodeName::ALL
        .iter()
        .map(|node| {
            std::fs::read_to_string(node.root().join("etc/keepalived/keepalived.conf")).unwrap()
        })
        .collect();
    link_legacy("--link-legacy");
    configure_keepalived(&lab, original_configuration);
    let writer = start_writer(&lab, 1);
    let struck = now();
    lab.power_off(Node1).unwrap();
    lab.await_roles("the other node", LIMIT, |roles| {
        roles.vip == [Node2] && roles.writable == [Node2]
    })
    .unwrap();
    await_rows(&writer, 100);
    let taken_over = now();
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    // Typed as it was before.
    let returned = now();
    ends_with(
        &lab,
        Node1,
        &["/etc/keepalived/bin/failback-to-node1.sh"],
        0,
    );
    lab.settled(Node1, LIMIT).unwrap();
    // Longer than the slow checks need: the VIP stays where the database is open.
    await_rows(&writer, 4000);
    lab.settled(Node1, Duration::from_secs(1)).unwrap();
    let report = writer.stop().unwrap();
    println!(
        "with the original keepalived.conf: failover {:.2} s, failback {:.2} s without a write",
        report.longest_gap_within(struck, taken_over),
        report.longest_gap(returned)
    );
    assert_whole(&lab, &report, Node1);
    a_refused_node_stops_its_keepalived(&lab);
    link_legacy("--unlink-legacy");
    configure_keepalived(&lab, |node| ours[usize::from(node == Node2)].clone());
    lab.past_startup_delay(Node1).unwrap();
    lab.past_startup_delay(Node2).unwrap();
}
