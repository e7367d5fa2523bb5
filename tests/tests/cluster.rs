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

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::writer::now;
use lab::{Lab, LabError, NodeName, Options, Report, Writer, wait_until};

use NodeName::{Node1, Node2};

/// One event at a time on the one lab.
static LAB: Mutex<()> = Mutex::new(());

/// Rows of each run have numbers of their own.
const BLOCK: u64 = 1_000_000;
/// Generous: figures are printed, bars are for the benchmark.
const LIMIT: Duration = Duration::from_secs(60);

struct Run {
    lab: Lab,
    writer: Writer,
}

/// Brings up a whole lab with node1 as the primary, and a client that has written for a while.
fn begin(block: u64) -> Result<Run, LabError> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    lab.up(&Options::default())?;
    lab.make_whole(Node1, LIMIT)?;
    let writer = Writer::start(&lab, 1, block * BLOCK)?;
    await_rows(&lab, Node1, block, 100)?;
    Ok(Run { lab, writer })
}

/// Waits until the client has written so many rows of its block.
fn await_rows(lab: &Lab, node: NodeName, block: u64, rows: u64) -> Result<(), LabError> {
    wait_until("the client's rows", LIMIT, || {
        let first = block * BLOCK;
        let count = lab.sql(
            node,
            &format!("SELECT COUNT(*) FROM ha_app.rows WHERE n >= {first}"),
        )?;
        Ok(if count.parse::<u64>().unwrap_or(0) >= rows {
            Ok(())
        } else {
            Err(count)
        })
    })
}

/// Runs one event and asserts what every event must keep: no loss, one writable node.
fn survives(
    what: &str,
    survivor: NodeName,
    event: impl FnOnce(&Lab) -> Result<(), LabError>,
) -> Report {
    let _one_at_a_time = LAB
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let block = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let Run { lab, writer } = begin(block).unwrap();
    let struck = now();
    event(&lab).unwrap();
    // A write that the survivor took after the event.
    let first = block * BLOCK;
    let before: u64 = lab
        .sql(
            survivor,
            &format!("SELECT COALESCE(MAX(n), 0) FROM ha_app.rows WHERE n >= {first}"),
        )
        .unwrap()
        .parse()
        .unwrap();
    let resumed = wait_until("a write on the survivor", LIMIT, || {
        let roles = lab.roles()?;
        assert!(roles.writable.len() < 2, "two writable nodes: {roles:?}");
        let newest = lab.sql(
            survivor,
            &format!("SELECT COALESCE(MAX(n), 0) FROM ha_app.rows WHERE n >= {first}"),
        )?;
        let newest = newest.parse::<u64>().unwrap_or(0);
        Ok(if roles.writable == [survivor] && newest > before + 200 {
            Ok(())
        } else {
            Err(format!("{roles:?}, row {newest} after {before}"))
        })
    });
    let report = writer.stop().unwrap();
    if let Err(error) = resumed {
        for node in NodeName::ALL {
            if let Ok(log) = lab.exec(
                node,
                &[
                    "journalctl",
                    "-u",
                    "keepalived-companion-role",
                    "-o",
                    "cat",
                    "-n",
                    "40",
                    "--no-pager",
                ],
            ) {
                println!("--- {node}\n{}", log.text());
            }
        }
        panic!("{what}: {error}");
    }
    let lost = report.lost(&lab, survivor).unwrap();
    println!(
        "{what}: {:.2} s without a write, {} acknowledged, {} lost",
        report.longest_gap(struck - 0.1),
        report.rows.len(),
        lost.len()
    );
    assert!(lost.is_empty(), "{what}: lost {lost:?}");
    report
}

#[test]
fn power_loss_of_the_active_node() {
    survives("power loss of the active", Node2, |lab| {
        lab.power_off(Node1)
    });
}

#[test]
fn mariadb_killed_and_unable_to_restart() {
    survives("mariadbd killed, cannot restart", Node2, |lab| {
        lab.exec(Node1, &["systemctl", "mask", "--runtime", "mariadb"])?
            .success()?;
        lab.exec(Node1, &["systemctl", "kill", "-s", "KILL", "mariadb"])?
            .success()?;
        Ok(())
    });
}

#[test]
fn mariadb_frozen_then_resumed() {
    let mut thawed = 0.0;
    let report = survives(
        "mariadbd frozen, resumed after the failover",
        Node2,
        |lab| {
            lab.exec(Node1, &["systemctl", "kill", "-s", "STOP", "mariadb"])?
                .success()?;
            wait_until("the standby to open", LIMIT, || {
                let open = lab.sql(Node2, "SELECT @@read_only + 0")?;
                Ok(if open == "0" { Ok(()) } else { Err(open) })
            })?;
            thawed = now();
            // A server that was killed meanwhile is gone, and that is as good.
            lab.exec(Node1, &["systemctl", "kill", "-s", "CONT", "mariadb"])?;
            Ok(())
        },
    );
    assert_eq!(
        report.by_server_after(1, thawed),
        0,
        "the old node acknowledged after the new one opened"
    );
}

#[test]
fn apache_broken_beyond_repair() {
    survives("Apache broken", Node2, |lab| {
        lab.exec(Node1, &["systemctl", "mask", "--runtime", "apache2"])?
            .success()?;
        lab.exec(Node1, &["systemctl", "kill", "-s", "KILL", "apache2"])?
            .success()?;
        Ok(())
    });
}

#[test]
fn keepalived_stopped_for_maintenance_is_a_switch_over() {
    survives("systemctl stop keepalived", Node2, |lab| {
        lab.exec(Node1, &["systemctl", "stop", "keepalived"])?
            .success()?;
        Ok(())
    });
}

#[test]
fn power_loss_of_the_standby_leaves_the_active_alone() {
    survives("power loss of the standby", Node1, |lab| {
        lab.power_off(Node2)
    });
}

#[test]
fn a_standby_with_a_stopped_sql_thread_drains_first() {
    survives(
        "SQL thread stopped, rows written, power loss",
        Node2,
        |lab| {
            lab.sql(Node2, "STOP SLAVE SQL_THREAD")?;
            let newest = lab
                .sql(Node1, "SELECT MAX(n) FROM ha_app.rows")?
                .parse::<u64>()
                .unwrap_or(0);
            wait_until("1000 rows more", LIMIT, || {
                let now = lab
                    .sql(Node1, "SELECT MAX(n) FROM ha_app.rows")?
                    .parse::<u64>()
                    .unwrap_or(0);
                Ok(if now > newest + 1000 {
                    Ok(())
                } else {
                    Err(now.to_string())
                })
            })?;
            lab.power_off(Node1)
        },
    );
}

/// The shared lab with node1 as the primary, for tests without an event.
fn quiet_lab() -> (std::sync::MutexGuard<'static, ()>, Lab) {
    let one_at_a_time = LAB
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new(env!("CARGO_BIN_EXE_lab"));
    lab.up(&Options::default()).unwrap();
    lab.make_whole(Node1, LIMIT).unwrap();
    (one_at_a_time, lab)
}

#[test]
fn the_shipped_files_are_valid() {
    let (_one_at_a_time, lab) = quiet_lab();
    for node in NodeName::ALL {
        let tested = lab.exec(node, &["keepalived", "-t"]).unwrap();
        let said = String::from_utf8_lossy(&tested.stderr).into_owned();
        assert!(tested.status.success() && said.is_empty(), "{node}: {said}");
        let units = "cd /etc/systemd/system && systemd-analyze verify --man=no keepalived-companion-*.service keepalived-companion-*.timer keepalived.service";
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
            "check-apache",
            "check-mariadb",
            "check-master",
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
    assert_eq!(converse(r#"{"verb":"run","command":"id"}"#), "");
    assert_eq!(converse(r#"{"verb":"observe","extra":1}"#), "");
    assert!(converse(r#"{"verb":"standby","on":true}"#).contains("role lock first"));
    assert_eq!(lab.roles().unwrap().vip, [Node1]);
}

#[test]
fn a_burst_of_hooks_changes_nothing() {
    survives("20 hooks in disorder within a second", Node1, |lab| {
        let burst = "for i in 1 2 3 4 5 6 7 8 9 10; do for s in FAULT MASTER; do \
                     /usr/libexec/keepalived-companion/notify INSTANCE VI_1 $s 230 & done; done; wait";
        for node in NodeName::ALL {
            lab.exec(node, &["sh", "-c", burst])?.success()?;
        }
        Ok(())
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
    lab.settled(Node2, LIMIT).unwrap();
}

#[test]
fn a_promotion_killed_at_any_step_ends_well() {
    for step in [
        "before stop-replication",
        "after stop-replication",
        "before open",
        "after open",
        "after claim-epoch",
        "before forget-channel",
    ] {
        survives(&format!("tool killed {step}"), Node2, |lab| {
            let fault = format!("echo '{step}' > /var/lib/keepalived-companion/fault");
            lab.exec(Node2, &["sh", "-c", &fault])?.success()?;
            lab.power_off(Node1)
        });
    }
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
            let roles = lab.roles()?;
            let good = roles.writable.len() == 1
                && roles.vip == roles.writable
                && roles.replicating.len() == 1;
            Ok(if good {
                Ok(())
            } else {
                Err(format!("{roles:?}"))
            })
        })
        .unwrap();
    }
}
