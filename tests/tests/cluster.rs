//! The main job on real nodes: an active node is lost in different ways under a writing client,
//! and nothing that was acknowledged is lost with it.
//!
//! The tests share one lab and run one after another; each leaves node1 as the primary.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use std::time::Duration;

use lab::event::{self, Event};
use lab::trial::{Trial, json, received};
use lab::writer::{Writer, now};
use lab::{Lab, LabError, Messenger, NodeName, Side, Turn, wait_until};

use NodeName::{Node1, Node2};

/// What the role unit said lately.
const ROLE_LOG: [&str; 9] = [
    "journalctl",
    "-u",
    "keepalived-companion-role",
    "-o",
    "cat",
    "-n",
    "60",
    "--no-pager",
    "-q",
];
/// Generous: figures are printed, bars are for the benchmark.
const LIMIT: Duration = Duration::from_secs(60);

/// A tick of the audit, on a busy machine.
const TICK: Duration = Duration::from_secs(5);

/// The role and the epoch that a node tells its programs.
fn told(lab: &Lab, node: NodeName) -> Result<(String, u64), LabError> {
    let file = ["cat", "/run/keepalived-companion/role.json"];
    let text = lab.exec(node, &file)?.text();
    let value = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
    Ok((
        value["role"].as_str().unwrap_or_default().to_owned(),
        value["epoch"].as_u64().unwrap_or_default(),
    ))
}

/// The primary tells that it is the active node of its epoch, the other one that it stands by.
fn roles_are_told(lab: &Lab, primary: NodeName) {
    let query = "SELECT epoch FROM keepalived_companion.epoch";
    let epoch: u64 = lab.sql(primary, query).unwrap().parse().unwrap();
    assert_eq!(told(lab, primary).unwrap(), ("active".to_owned(), epoch));
    wait_until("the standby to tell its role", TICK, || {
        let told = told(lab, primary.other())?;
        Ok(if told == ("standby".to_owned(), epoch) {
            Ok(())
        } else {
            Err(format!("{told:?} in epoch {epoch}"))
        })
    })
    .unwrap();
}

/// Runs one event and asserts what every event must keep: no loss, one writable node.
fn survives(event: &Event) {
    let what = event.name;
    let (_one_at_a_time, lab) = quiet_lab();
    let outcome =
        event::perform(&lab, event, |_| Ok(())).unwrap_or_else(|error| panic!("{what}: {error}"));
    println!(
        "{what}: {:.2} s without a write, {} acknowledged, {} lost",
        outcome.gap,
        outcome.report.rows.len(),
        outcome.lost
    );
    assert_eq!(outcome.lost, 0, "{what}: acknowledged and lost");
    assert_eq!(
        outcome.late, 0,
        "{what}: the old node acknowledged after the new one opened"
    );
}

#[test]
fn power_loss_of_the_active_node() {
    survives(&event::POWER_LOSS);
}

#[test]
fn mariadb_killed_and_unable_to_restart() {
    survives(&event::DATABASE_KILLED);
}

#[test]
fn mariadb_frozen_then_resumed() {
    survives(&event::DATABASE_FROZEN);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    // It was told before the other one opened, so nobody has to wait for it.
    assert_eq!(told(&lab, Node1).unwrap().0, "standby");
    // The new epoch's number comes a tick after its database, which systemd starts again 5 s after the kill.
    lab.settled(Node2, LIMIT).unwrap();
    roles_are_told(&lab, Node2);
}

/// A systemctl that answers late made the fence say "fenced" of a database that was only stopped.
#[test]
fn mariadb_frozen_where_systemd_is_slow() {
    survives(&event::DATABASE_FROZEN_SLOW_SYSTEMD);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    lab.settled(Node2, LIMIT).unwrap();
    roles_are_told(&lab, Node2);
}

/// Ten times each with `LAB_ALL=1`.
#[test]
fn mariadb_frozen_on_a_host_under_pressure() {
    let runs = if std::env::var_os("LAB_ALL").is_some() {
        10
    } else {
        1
    };
    let (_one_at_a_time, lab) = quiet_lab();
    for pressure in [event::CPU_SATURATED, event::MEMORY_TAKEN] {
        for _ in 0..runs {
            let mut run = Trial::start(&lab, pressure.name);
            let struck = now();
            event::freeze_under(&lab, &pressure)
                .unwrap_or_else(|error| run.fails(&error.to_string()));
            run.goes_on(struck);
        }
    }
}

#[test]
fn apache_broken_beyond_repair() {
    survives(&event::APACHE_BROKEN);
}

#[test]
fn apache_hung_is_started_anew() {
    survives(&event::APACHE_HUNG);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    // What Keepalived's own runs found: one by hand would keep them from the repair.
    wait_until("node1 to be fit again", LIMIT, || {
        let kept = json(&lab, Node1, "/run/keepalived-companion/check_apache2.json")?;
        let kept = kept.unwrap_or_default();
        Ok(if kept["level"] == "ok" {
            Ok(())
        } else {
            Err(kept["reason"].to_string())
        })
    })
    .unwrap();
    let promote_log = lab
        .exec(Node2, &["cat", "/var/log/keepalived/promote-node2.log"])
        .unwrap();
    assert!(
        promote_log
            .text()
            .contains("open the database for writes: done")
    );
}

#[test]
fn keepalived_stopped_for_maintenance_is_a_switch_over() {
    survives(&event::KEEPALIVED_STOPPED);
}

#[test]
fn replication_cut_then_the_end_of_the_binlog_is_harvested() {
    survives(&event::UNSENT_TAIL);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    let log = lab.exec(Node2, &ROLE_LOG).unwrap().text();
    assert!(
        log.contains("harvest the end of node1's binlog: done"),
        "nothing was harvested: {log}"
    );
}

#[test]
fn networks_that_are_cut_never_make_two_primaries() {
    survives(&event::STANDBY_CUT_OFF);
    survives(&event::FRONT_SPLIT);
    survives(&event::ACTIVE_CUT_OFF);
    // A commit that nobody was told of may be left on the old primary: it refuses to rejoin, and a
    // person rebuilds it.
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    lab.heal().unwrap();
    lab.rebuild(Node1).unwrap();
}

#[test]
fn a_standby_that_comes_back_does_not_stop_the_primary() {
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    survives(&event::STANDBY_CUT_AGAIN);
    let log = lab.exec(Node2, &ROLE_LOG).unwrap().text();
    assert!(!log.contains("promoting"), "it has promoted itself: {log}");
}

#[test]
fn power_loss_of_the_standby_leaves_the_active_alone() {
    survives(&event::STANDBY_POWER_LOSS);
}

#[test]
fn a_standby_with_a_stopped_sql_thread_drains_first() {
    survives(&event::THOUSAND_BEHIND);
    assert_drained(&Lab::new(env!("CARGO_BIN_EXE_lab")));
}

/// The role unit's log says that the last promotion of node2 drained first.
fn assert_drained(lab: &Lab) {
    let log = lab.exec(Node2, &ROLE_LOG).unwrap().text();
    assert!(
        log.contains("apply everything received: done"),
        "nothing was drained: {log}"
    );
}

#[test]
fn a_standby_far_behind_drains_first() {
    survives(&event::HUNDRED_THOUSAND_BEHIND);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    assert!(
        event::bulk_is_whole(&lab).unwrap(),
        "opened before everything was applied"
    );
    let log = lab.exec(Node2, &ROLE_LOG).unwrap().text();
    assert!(
        log.contains("apply everything received: done"),
        "nothing was drained: {log}"
    );
}

/// The shared lab with node1 as the primary.
fn quiet_lab() -> (Turn, Lab) {
    let start = Messenger::start_out_of_order;
    lab::trial::quiet_lab_with(env!("CARGO_BIN_EXE_lab"), start)
}

#[test]
fn the_shipped_files_are_valid() {
    let (_one_at_a_time, lab) = quiet_lab();
    for node in NodeName::ALL {
        let tested = lab.exec(node, &["keepalived", "-t"]).unwrap();
        let said = String::from_utf8_lossy(&tested.stderr).into_owned();
        assert!(tested.status.success() && said.is_empty(), "{node}: {said}");
        let units = "cd /etc/systemd/system && systemd-analyze verify --man=no keepalived-companion-*.service keepalived-companion-*.timer keepalived.service mariadb.service";
        let tested = lab.exec(node, &["sh", "-c", units]).unwrap();
        let said = String::from_utf8_lossy(&tested.stderr).into_owned();
        assert!(
            tested.status.success() && !said.contains("keepalived-companion"),
            "{node}: {said}"
        );
        for tool in [
            "audit",
            "promote",
            "notify",
            "alert",
            "maintenance",
            "peer",
            "links",
            "crash-recovery",
            "check-apache",
            "check-mariadb",
            "check-master",
            "check-sync",
            "check-inotify",
        ] {
            let path = format!("/usr/libexec/keepalived-companion/{tool}");
            let checked = lab.exec(node, &[&path, "--check-config"]).unwrap();
            assert!(
                checked.status.success(),
                "{node} {tool}: {}",
                String::from_utf8_lossy(&checked.stderr)
            );
        }
    }
}

#[test]
fn the_key_between_the_nodes_opens_no_shell() {
    let (_one_at_a_time, lab) = quiet_lab();
    let ssh = |command: &str| {
        let line = [
            "ssh",
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "UserKnownHostsFile=/etc/keepalived/secrets/known_hosts",
            "-i",
            "/etc/keepalived/secrets/peer_ed25519",
            "root@192.168.137.11",
            command,
        ];
        lab.exec(Node2, &line).unwrap()
    };
    for command in [
        "id",
        "session; id",
        "session x",
        "sh",
        "peer --help",
        "binlog-tail",
        "binlog-tail 0-1-1; id",
        "binlog-tail --help",
        "binlog-tail /etc/shadow",
        "",
        "/usr/libexec/keepalived-companion/promote",
    ] {
        let refused = ssh(command);
        assert!(!refused.status.success(), "`{command}` was accepted");
        assert!(!refused.text().contains("uid="), "`{command}` ran");
    }
    // The conversation itself: known verbs only, and changes only under the role lock.
    let converse = |question: &str| {
        let script = format!(
            "printf '%s\\n' '{question}' | ssh -F none -o BatchMode=yes -o UserKnownHostsFile=/etc/keepalived/secrets/known_hosts \
             -i /etc/keepalived/secrets/peer_ed25519 root@192.168.137.11 session"
        );
        lab.exec(Node2, &["sh", "-c", &script]).unwrap().text()
    };
    assert!(converse(r#"{"verb":"observe"}"#).contains(r#""answer":"node""#));
    assert!(converse(r#"{"verb":"observe","later":1}"#).contains(r#""answer":"node""#));
    let unknown = converse(r#"{"verb":"run","command":"id"}"#);
    assert_eq!(unknown, r#"{"answer":"unsupported","verb":"run"}"#);
    assert_eq!(converse("id"), "");
    assert!(converse(r#"{"verb":"standby","on":true}"#).contains("role lock first"));
    assert!(converse(r#"{"verb":"seal-files","limit_ms":9}"#).contains("role lock first"));
    assert_eq!(lab.roles().unwrap().vip, [Node1]);
}

#[test]
fn a_burst_of_hooks_changes_nothing() {
    survives(&Event {
        name: "20 hooks in disorder within a second",
        survivor: Node1,
        strike: |lab| {
            let burst = "for i in 1 2 3 4 5 6 7 8 9 10; do for s in FAULT MASTER; do \
                         /usr/libexec/keepalived-companion/notify INSTANCE VI_1 $s 230 & done; done; wait";
            for node in NodeName::ALL {
                lab.exec(node, &["sh", "-c", burst])?.success()?;
            }
            Ok(f64::INFINITY)
        },
    });
}

#[test]
fn promote_on_the_standby_prints_its_plan_and_then_switches_over() {
    let (_one_at_a_time, lab) = quiet_lab();
    let promote = "/usr/libexec/keepalived-companion/promote";
    let planned = lab.exec(Node2, &[promote, "--dry-run"]).unwrap();
    assert!(
        planned.status.success(),
        "{}",
        String::from_utf8_lossy(&planned.stderr)
    );
    assert!(
        planned.text().contains("SET GLOBAL read_only = 0"),
        "{}",
        planned.text()
    );
    assert_eq!(
        lab.roles().unwrap().writable,
        [Node1],
        "a dry run changed something"
    );
    let already = lab.exec(Node1, &[promote]).unwrap();
    assert!(already.text().contains("already"), "{}", already.text());
    let done = lab.exec(Node2, &[promote]).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // The old one gave way when it granted; only the new epoch's number comes with its tick.
    assert_eq!(told(&lab, Node1).unwrap().0, "standby");
    lab.settled(Node2, LIMIT).unwrap();
    roles_are_told(&lab, Node2);
}

/// Kills the promoting tool once, at the named place of its plan, and cuts the active one's power.
macro_rules! killed_at {
    ($($step:literal),* $(,)?) => {
        [$(Event {
            name: concat!("tool killed ", $step, ", power loss of the active"),
            survivor: Node2,
            strike: |lab| {
                let fault = concat!("echo '", $step, "' > /var/lib/keepalived-companion/fault");
                lab.exec(Node2, &["sh", "-c", fault])?.success()?;
                lab.power_off(Node1)?;
                Ok(now())
            },
        }),*]
    };
}

/// At the steps that differ most, or with `LAB_ALL=1` at each.
#[test]
fn a_promotion_killed_at_any_step_ends_well() {
    let most = killed_at!["after stop-replication", "before open", "after open"];
    most.iter().for_each(survives);
    if std::env::var_os("LAB_ALL").is_some() {
        let others = killed_at![
            "before stop-replication",
            "after claim-epoch",
            "before forget-channel",
        ];
        others.iter().for_each(survives);
    }
}

/// By its name the last test that strikes an event, so it sees the alerts of all before it.
#[test]
fn the_alerts_of_the_whole_run_arrive_once_each() {
    survives(&event::APACHE_BROKEN);
    let (_one_at_a_time, lab) = quiet_lab();
    wait_until("both queues to be empty", LIMIT, || {
        for node in NodeName::ALL {
            let alert = "/usr/libexec/keepalived-companion/alert";
            let queue = lab.exec(node, &[alert, "--queue", "--json"])?.text();
            if queue.contains("\"pending\":[\"lab\"]") {
                return Ok(Err(format!("{node}: {queue}")));
            }
        }
        Ok(Ok(()))
    })
    .unwrap();
    let mut received = received();
    let total = received.len();
    println!("{total} alerts arrived");
    let promoted = received.iter().filter(|a| a.event == "promoted").count();
    assert!(promoted >= 1, "no promotion among {received:?}");
    received.sort();
    received.dedup();
    assert_eq!(received.len(), total, "an alert arrived twice");
    // What the nodes wrote down as promotions is what arrived.
    for node in NodeName::ALL {
        let log = ["cat", "/var/log/keepalived_failover.log"];
        let log = lab.exec(node, &log).unwrap().text();
        let untold: Vec<&str> = log
            .lines()
            .filter_map(|line| line.split_once(" - "))
            .map(|(_time, text)| text)
            .filter(|text| text.contains("and is the primary of epoch"))
            .filter(|text| {
                !received
                    .iter()
                    .any(|alert| alert.node == node.to_string() && alert.text.contains(text))
            })
            .collect();
        assert!(
            untold.is_empty(),
            "{node} did not tell of {untold:#?}\n{received:#?}\n{log}"
        );
    }
}

/// One writable node with the VIP, and a replica.
fn whole(lab: &Lab) -> Result<Result<(), String>, LabError> {
    let roles = lab.roles()?;
    let good =
        roles.writable.len() == 1 && roles.vip == roles.writable && roles.replicating.len() == 1;
    Ok(if good {
        Ok(())
    } else {
        Err(format!("{roles:?}"))
    })
}

#[test]
fn a_cold_start_finds_its_primary() {
    let (_one_at_a_time, lab) = quiet_lab();
    for first in NodeName::ALL {
        for node in NodeName::ALL {
            lab.power_off(node).unwrap();
        }
        lab.power_on(first).unwrap();
        lab.power_on(first.other()).unwrap();
        wait_until("a primary with a standby after a cold start", LIMIT, || {
            whole(&lab)
        })
        .unwrap();
    }
}

/// Its last second is in the binlog only: a recovery that rolled it back would lose it.
#[test]
fn what_one_node_acknowledged_alone_survives_a_power_loss_of_both() {
    let (_one_at_a_time, lab) = quiet_lab();
    lab.make_whole(Node1, LIMIT).unwrap();
    lab.power_off(Node2).unwrap();
    let writer = Writer::start(&lab, 1, event::first_row()).unwrap();
    // Those whose clients were told so; what waited for the window W has lost its client by then.
    writer.await_more(501, LIMIT).unwrap();
    lab.power_off(Node1).unwrap();
    let report = writer.stop().unwrap();
    lab.power_on(Node2).unwrap();
    lab.power_on(Node1).unwrap();
    wait_until("a primary with a standby", LIMIT, || whole(&lab)).unwrap();
    let primary = lab.roles().unwrap().writable[0];
    let lost = report.lost(&lab, primary).unwrap();
    println!(
        "{} rows acknowledged with one copy, {} lost",
        report.rows.len(),
        lost.len()
    );
    assert!(report.rows.len() > 500, "{}", report.rows.len());
    assert_eq!(lost.len(), 0, "acknowledged with one copy and lost");
}

#[test]
fn what_nobody_acknowledged_is_cut_off_and_saved() {
    let (_one_at_a_time, lab) = quiet_lab();
    lab.make_whole(Node1, LIMIT).unwrap();
    // A commit that waits, waits until the power is cut.
    let patient = "SET GLOBAL rpl_semi_sync_master_timeout = 60000";
    lab.sql(Node1, patient).unwrap();
    let writer = Writer::start(&lab, 1, event::first_row()).unwrap();
    lab.partition(Node2, Side::Private).unwrap();
    wait_until("a commit that waits for the standby", LIMIT, || {
        let waiting = lab.sql(
            Node1,
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for semi-sync ACK%'",
        )?;
        Ok(if waiting == "0" { Err(waiting) } else { Ok(()) })
    })
    .unwrap();
    lab.power_off(Node1).unwrap();
    lab.heal().unwrap();
    wait_until("the standby to open", LIMIT, || {
        let roles = lab.roles()?;
        Ok(if roles.writable == [Node2] {
            Ok(())
        } else {
            Err(format!("{roles:?}"))
        })
    })
    .unwrap();
    let report = writer.stop().unwrap();
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    assert_eq!(report.lost(&lab, Node2).unwrap().len(), 0);
    let newest = "/var/lib/keepalived-companion/recovered/$(ls /var/lib/keepalived-companion/recovered | tail -n 1)/cut-off.sql";
    wait_until("the report of what was cut off", LIMIT, || {
        let saved = lab.exec(Node1, &["sh", "-c", &format!("cat {newest}")])?;
        let text = saved.text();
        Ok(if text.contains("INSERT INTO ha_app.rows") {
            Ok(())
        } else {
            Err(text)
        })
    })
    .unwrap();
}

/// The standby as a death leaves it in the middle of that statement: its binlog has it, `gtid_slave_pos` has not.
/// Gives the GTID.
fn dies_in(lab: &Lab, statement: &str) -> String {
    let maintenance = "/usr/libexec/keepalived-companion/maintenance";
    let maintenance = |args: &[&str]| {
        let command = [&[maintenance], args].concat();
        lab.exec(Node2, &command).unwrap().success().unwrap();
    };
    // Or its audit attaches it at once.
    maintenance(&["on", "--for", "10m"]);
    lab.sql(Node2, "STOP SLAVE").unwrap();
    let gtid = lab
        .sql(Node1, &format!("{statement}; SELECT @@last_gtid"))
        .unwrap();
    // The primary's heartbeat comes after it.
    let until = format!("START SLAVE UNTIL master_gtid_pos = '{gtid}'");
    lab.sql(Node2, &until).unwrap();
    wait_until("the statement to be applied", LIMIT, || {
        let status = lab.sql(Node2, "SELECT @@gtid_slave_pos")?;
        Ok(if status.ends_with(&gtid) {
            Ok(())
        } else {
            Err(status)
        })
    })
    .unwrap();
    let (server, sequence) = gtid.rsplit_once('-').unwrap();
    let before = sequence.parse::<u64>().unwrap() - 1;
    let back = format!("STOP SLAVE; SET GLOBAL gtid_slave_pos = '{server}-{before}'");
    lab.sql(Node2, &back).unwrap();
    maintenance(&["off"]);
    gtid
}

#[test]
fn a_standby_that_died_in_the_middle_of_a_statement_follows_again() {
    let (_one_at_a_time, lab) = quiet_lab();
    dies_in(&lab, "CREATE OR REPLACE TABLE ha_app.died (n INT)");
    lab.settled(Node1, LIMIT).unwrap();
    // As by a promotion that died after it had applied the end of the old primary's binlog.
    dies_in(&lab, "INSERT INTO ha_app.died VALUES (1)");
    lab.settled(Node1, LIMIT).unwrap();
    lab.equal_tables("ha_app.died", LIMIT).unwrap();
    // What is not proved is left to a person.
    let gtid = dies_in(&lab, "CREATE OR REPLACE USER died@localhost");
    let command = format!("SET GLOBAL gtid_slave_pos = '{gtid}'");
    wait_until("a person to be called", LIMIT, || {
        let log = ["cat", "/var/log/keepalived_failover.log"];
        let log = lab.exec(Node2, &log)?.text();
        Ok(if log.contains(&command) {
            Ok(())
        } else {
            Err(log)
        })
    })
    .unwrap();
    assert_eq!(lab.roles().unwrap().replicating, []);
    lab.sql(Node2, &command).unwrap();
    lab.settled(Node1, LIMIT).unwrap();
}
