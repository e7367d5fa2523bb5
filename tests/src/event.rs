//! Events that strike the cluster under a writing client, and what the client saw of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::writer::now;
use crate::{Lab, LabError, NodeName, Report, Side, Writer, wait_until};

use NodeName::{Node1, Node2};

/// Rows of each run have numbers of their own.
const BLOCK: u64 = 1_000_000;
/// Generous: figures are printed, bars are for the benchmark.
const LIMIT: Duration = Duration::from_secs(90);

/// Something that happens to node1's cluster.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// For tables.
    pub name: &'static str,
    /// Who is the primary afterwards.
    pub survivor: NodeName,
    /// Makes it happen. The answer is the moment (as [`now`]) from which on the other node must
    /// acknowledge nothing more.
    pub strike: fn(&Lab) -> Result<f64, LabError>,
}

/// The active node's power is cut.
pub const POWER_LOSS: Event = Event {
    name: "power loss of the active",
    survivor: Node2,
    strike: |lab| lab.power_off(Node1).map(|()| now()),
};

/// The database is killed and cannot come back.
pub const DATABASE_KILLED: Event = Event {
    name: "mariadbd killed, cannot restart",
    survivor: Node2,
    strike: |lab| kill_for_good(lab, "mariadb"),
};

/// The database is stopped by SIGSTOP and goes on once the other one is open.
pub const DATABASE_FROZEN: Event = Event {
    name: "mariadbd frozen, resumed after the failover",
    survivor: Node2,
    strike: |lab| {
        lab.exec(Node1, &["systemctl", "kill", "-s", "STOP", "mariadb"])?
            .success()?;
        wait_until("the standby to open", LIMIT, || {
            let open = lab.sql(Node2, "SELECT @@read_only + 0")?;
            Ok(if open == "0" { Ok(()) } else { Err(open) })
        })?;
        let thawed = now();
        // A server that was killed meanwhile is gone, and that is as good.
        lab.exec(Node1, &["systemctl", "kill", "-s", "CONT", "mariadb"])?;
        Ok(thawed)
    },
};

/// The same on a host whose systemctl answers after three seconds: a fence that waits for it, or takes its
/// silence for an answer, comes too late.
pub const DATABASE_FROZEN_SLOW_SYSTEMD: Event = Event {
    name: "mariadbd frozen, systemctl slow",
    survivor: Node2,
    strike: |lab| {
        takes_a_write(lab, Node1)?.map_err(LabError::Unfit)?;
        // Found before the real one by whatever does not name its directory.
        let slow = "printf '#!/bin/sh\nsleep 3\nexec /usr/bin/systemctl \"$@\"\n' > /usr/local/sbin/systemctl && \
                    chmod 755 /usr/local/sbin/systemctl";
        lab.exec(Node1, &["sh", "-c", slow])?.success()?;
        let struck = freeze_and_thaw(lab);
        lab.exec(Node1, &["rm", "/usr/local/sbin/systemctl"])?
            .success()?;
        struck
    },
};

/// What a host is busy with while its database stands still. Its standby may look for too long to be sure that it has
/// everything; the database is killed all the same, and either node goes on.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// For a person.
    pub name: &'static str,
    script: &'static str,
}

/// Every processor is busy.
pub const CPU_SATURATED: Pressure = Pressure {
    name: "mariadbd frozen, CPU saturated",
    script: "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait",
};

/// 2 GiB of memory are taken over and over: one line without an end, and tail keeps all of it.
pub const MEMORY_TAKEN: Pressure = Pressure {
    name: "mariadbd frozen, 2 GiB of memory pressure",
    script: "while :; do head -c 2G /dev/zero | tail >/dev/null; done",
};

/// Freezes the active node's database while its host is busy. It goes on once the other one is open, and must not take
/// a write then; or it was killed before.
pub fn freeze_under(lab: &Lab, pressure: &Pressure) -> Result<(), LabError> {
    takes_a_write(lab, Node1)?.map_err(LabError::Unfit)?;
    let unit = [
        "systemd-run",
        "--quiet",
        "--unit=lab-load",
        "sh",
        "-c",
        pressure.script,
    ];
    let process = || -> Result<String, LabError> {
        Ok(lab.exec(Node1, &["pgrep", "-x", "mariadbd"])?.text())
    };
    let frozen = process()?;
    lab.exec(Node1, &unit)?.success()?;
    lab.exec(Node1, &["systemctl", "kill", "-s", "STOP", "mariadb"])?
        .success()?;
    let mut opened = false;
    wait_until(
        "the standby to open, or the frozen one's end",
        LIMIT,
        || {
            opened = lab.sql(Node2, "SELECT @@read_only + 0")? == "0";
            Ok(if opened || process()? != frozen {
                Ok(())
            } else {
                Err("neither".to_owned())
            })
        },
    )?;
    lab.exec(Node1, &["kill", "-s", "CONT", &frozen])?;
    let taken = opened && takes_a_write(lab, Node1)?.is_ok();
    lab.exec(Node1, &["systemctl", "stop", "lab-load"])?
        .success()?;
    if taken {
        return Err(LabError::Unsafe(
            "the old node took a write after the new one had opened".to_owned(),
        ));
    }
    Ok(())
}

fn freeze_and_thaw(lab: &Lab) -> Result<f64, LabError> {
    let signal = |name| {
        let kill = ["/usr/bin/systemctl", "kill", "-s", name, "mariadb"];
        lab.exec(Node1, &kill)
    };
    signal("STOP")?.success()?;
    wait_until("the standby to open", LIMIT, || {
        let open = lab.sql(Node2, "SELECT @@read_only + 0")?;
        Ok(if open == "0" { Ok(()) } else { Err(open) })
    })?;
    let thawed = now();
    // A server that was killed meanwhile is gone, and that is as good.
    signal("CONT")?;
    match takes_a_write(lab, Node1)? {
        Err(_refused) => Ok(thawed),
        Ok(()) => Err(LabError::Unsafe(
            "the old node took a write after the new one had opened".to_owned(),
        )),
    }
}

/// Whether a client of a node's database may write; why not otherwise.
fn takes_a_write(lab: &Lab, node: NodeName) -> Result<Result<(), String>, LabError> {
    // Below the numbers of every run, so that no writer's row is counted wrong.
    let n = first_row() / BLOCK;
    let insert = format!("REPLACE INTO ha_app.rows (writer, n, at) VALUES (98, {n}, NOW(6))");
    let client = [
        "timeout",
        "5",
        "mariadb",
        "--user=ha_user",
        "--password=securepass",
        "-e",
        &insert,
    ];
    let output = lab.exec(node, &client)?;
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

/// The web server is gone for good; the database is well.
pub const APACHE_BROKEN: Event = Event {
    name: "Apache broken beyond repair",
    survivor: Node2,
    strike: |lab| kill_for_good(lab, "apache2").map(|_| f64::INFINITY),
};

/// Every process of the web server stands still.
pub const APACHE_HUNG: Event = Event {
    name: "Apache stopped by a signal",
    survivor: Node2,
    strike: |lab| {
        lab.exec(Node1, &["pkill", "-STOP", "-x", "apache2"])?
            .success()?;
        Ok(f64::INFINITY)
    },
};

/// The standby's power is cut.
pub const STANDBY_POWER_LOSS: Event = Event {
    name: "power loss of the standby",
    survivor: Node1,
    strike: |lab| lab.power_off(Node2).map(|()| now()),
};

/// Maintenance by hand on the active node.
pub const KEEPALIVED_STOPPED: Event = Event {
    name: "systemctl stop keepalived",
    survivor: Node2,
    strike: |lab| {
        lab.exec(Node1, &["systemctl", "stop", "keepalived"])?
            .success()?;
        Ok(f64::INFINITY)
    },
};

/// The standby received 1,000 rows and applied none of them when the active one is lost.
pub const THOUSAND_BEHIND: Event = Event {
    name: "SQL thread stopped, 1,000 rows, power loss",
    survivor: Node2,
    strike: |lab| {
        lab.sql(Node2, "STOP SLAVE SQL_THREAD")?;
        let newest = || -> Result<u64, LabError> {
            let text = lab.sql(Node1, "SELECT MAX(n) FROM ha_app.rows")?;
            Ok(text.parse().unwrap_or(0))
        };
        let before = newest()?;
        wait_until("1,000 rows more", LIMIT, || {
            let rows = newest()? - before;
            Ok(if rows > 1000 {
                Ok(())
            } else {
                Err(format!("{rows} rows"))
            })
        })?;
        lab.power_off(Node1)?;
        Ok(now())
    },
};

/// The same with 100,000 rows in 5,000 transactions.
pub const HUNDRED_THOUSAND_BEHIND: Event = Event {
    name: "standby 100,000 rows behind, power loss",
    survivor: Node2,
    strike: |lab| {
        lab.sql(Node2, "STOP SLAVE SQL_THREAD")?;
        // From inside the server: a client would take minutes.
        lab.sql(
            Node1,
            "USE ha_app;
             CREATE TABLE IF NOT EXISTS ha_app.bulk (n INT PRIMARY KEY);
             TRUNCATE ha_app.bulk;
             DELIMITER //
             FOR i IN 0..4999 DO INSERT INTO ha_app.bulk SELECT i * 20 + seq FROM seq_1_to_20; END FOR//",
        )?;
        received(lab)?;
        lab.power_off(Node1)?;
        Ok(now())
    },
};

/// Replication was cut off long enough for commits with one copy only, then the database dies on a
/// host that still answers over the other network.
pub const UNSENT_TAIL: Event = Event {
    name: "replication cut, then mariadbd killed",
    survivor: Node2,
    strike: |lab| {
        lab.partition(Node2, Side::Private)?;
        wait_until("commits with one copy", LIMIT, || {
            let (rows, copied) = (rows(lab, Node1)?, rows(lab, Node2)?);
            Ok(if rows > copied + 300 {
                Ok(())
            } else {
                Err(format!("{rows} rows, {copied} copied"))
            })
        })?;
        kill_for_good(lab, "mariadb")
    },
};

/// The active node loses both networks. It has to close by itself; nobody can reach it.
pub const ACTIVE_CUT_OFF: Event = Event {
    name: "the active node cut off on both networks",
    survivor: Node2,
    strike: |lab| {
        lab.partition(Node1, Side::Both)?;
        wait_until("the node that is cut off to close", LIMIT, || {
            let asked = lab.exec(Node1, &["mariadb", "-N", "-e", "SELECT @@read_only + 0"])?;
            // Commits that wait for the standby are ended by killing the server.
            Ok(if !asked.status.success() || asked.text() == "1" {
                Ok(())
            } else {
                Err(asked.text())
            })
        })?;
        Ok(now())
    },
};

/// The standby loses both networks. VRRP makes it MASTER; it must stay closed.
pub const STANDBY_CUT_OFF: Event = Event {
    name: "the standby cut off on both networks",
    survivor: Node1,
    strike: |lab| cut_until_master(lab, Side::Both),
};

/// The standby is cut off and comes back, again and again, so that it asks for its binlog while the
/// primary still has its old connection.
pub const STANDBY_CUT_AGAIN: Event = Event {
    name: "the standby cut off and back three times",
    survivor: Node1,
    strike: |lab| {
        for (side, seconds) in [(Side::Both, 6), (Side::Private, 9), (Side::Both, 13)] {
            lab.partition(Node2, side)?;
            // How long the cut lasts is what varies.
            std::thread::sleep(Duration::from_secs(seconds));
            lab.heal()?;
            wait_until("the standby to have nearly everything again", LIMIT, || {
                let roles = lab.roles()?;
                let behind = rows(lab, Node1)?.saturating_sub(rows(lab, Node2)?);
                let well = roles.replicating == [Node2] && roles.vip == [Node1] && behind < 100;
                Ok(if well {
                    Ok(())
                } else {
                    Err(format!("{roles:?}, {behind} behind"))
                })
            })?;
        }
        Ok(f64::INFINITY)
    },
};

/// The nodes do not hear each other on the clients' network: both are MASTER.
pub const FRONT_SPLIT: Event = Event {
    name: "the clients' network split",
    survivor: Node1,
    strike: |lab| cut_until_master(lab, Side::Front),
};

fn cut_until_master(lab: &Lab, side: Side) -> Result<f64, LabError> {
    lab.partition(Node2, side)?;
    let cut = now();
    wait_until("the VIP on the standby, too", LIMIT, || {
        let roles = lab.roles()?;
        Ok(if roles.vip.contains(&Node2) {
            Ok(())
        } else {
            Err(format!("{roles:?}"))
        })
    })?;
    // Two of its audits' ticks, in which it could do wrong.
    let ticks = || -> Result<u64, LabError> {
        let text = lab
            .exec(
                Node2,
                &[
                    "systemctl",
                    "show",
                    "-P",
                    "InactiveEnterTimestampMonotonic",
                    "keepalived-companion-role.service",
                ],
            )?
            .text();
        Ok(text.parse().unwrap_or(0))
    };
    let first = ticks()?;
    wait_until("two more audits on the standby", LIMIT, || {
        let since = ticks()? - first;
        Ok(if since > 3_000_000 {
            Ok(())
        } else {
            Err(format!("{since} us"))
        })
    })?;
    Ok(cut)
}

/// Every event of the table in the order of docs/benchmarks.md.
pub const TABLE: [Event; 7] = [
    POWER_LOSS,
    DATABASE_KILLED,
    DATABASE_FROZEN,
    APACHE_BROKEN,
    STANDBY_POWER_LOSS,
    KEEPALIVED_STOPPED,
    THOUSAND_BEHIND,
];

fn kill_for_good(lab: &Lab, unit: &str) -> Result<f64, LabError> {
    lab.exec(Node1, &["systemctl", "mask", "--runtime", unit])?
        .success()?;
    lab.exec(Node1, &["systemctl", "kill", "-s", "KILL", unit])?
        .success()?;
    Ok(now())
}

/// How many rows the clients' table has on a node.
pub fn rows(lab: &Lab, node: NodeName) -> Result<u64, LabError> {
    let text = lab.sql(node, "SELECT COUNT(*) FROM ha_app.rows")?;
    Ok(text.parse().unwrap_or(0))
}

/// Waits until the standby has received what the primary had.
fn received(lab: &Lab) -> Result<(), LabError> {
    let position = lab.sql(Node1, "SELECT @@gtid_binlog_pos")?;
    let wanted = sequence(&position);
    wait_until("the standby to receive everything", LIMIT, || {
        let status = lab.sql(Node2, "SHOW SLAVE STATUS\\G")?;
        // Bare values: the only line that looks like a GTID is Gtid_IO_Pos.
        let got = status
            .lines()
            .filter(|line| line.matches('-').count() == 2)
            .map(sequence)
            .max()
            .unwrap_or(0);
        Ok(if got >= wanted {
            Ok(())
        } else {
            Err(format!("{got} of {wanted}"))
        })
    })
}

/// The highest sequence number in a list of GTIDs; 0 when there is none.
fn sequence(gtids: &str) -> u64 {
    gtids
        .split(',')
        .filter_map(|gtid| gtid.trim().rsplit('-').next()?.parse().ok())
        .max()
        .unwrap_or(0)
}

/// Whether the survivor applied every row of [`HUNDRED_THOUSAND_BEHIND`].
pub fn bulk_is_whole(lab: &Lab) -> Result<bool, LabError> {
    Ok(lab.sql(Node2, "SELECT COUNT(*) FROM ha_app.bulk")? == "100000")
}

/// What one event did.
#[derive(Debug)]
pub struct Outcome {
    /// The longest time between two acknowledged writes, in seconds.
    pub gap: f64,
    /// How many acknowledged rows the survivor lacks.
    pub lost: usize,
    /// Rows acknowledged by the other node after it must not any more.
    pub late: usize,
    /// What the client saw.
    pub report: Report,
}

/// A number that no other run has, for the first row of a run.
pub fn first_row() -> u64 {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    seconds * BLOCK
}

/// Strikes a whole cluster whose client has written for a while, and waits until the survivor is
/// the one writable node and takes writes. `before` runs just ahead of the event.
pub fn perform(
    lab: &Lab,
    event: &Event,
    before: impl FnOnce(&Lab) -> Result<(), LabError>,
) -> Result<Outcome, LabError> {
    lab.make_whole(Node1, LIMIT)?;
    let first = first_row();
    let newest = |node: NodeName| -> Result<u64, LabError> {
        let text = lab.sql(
            node,
            &format!("SELECT COALESCE(MAX(n), 0) FROM ha_app.rows WHERE n >= {first}"),
        )?;
        Ok(text.parse().unwrap_or(0))
    };
    let writer = Writer::start(lab, 1, first)?;
    wait_until("the client's rows", LIMIT, || {
        let rows = newest(Node1)?;
        Ok(if rows >= first + 100 {
            Ok(())
        } else {
            Err(rows.to_string())
        })
    })?;
    before(lab)?;
    let struck = now();
    let closed = (event.strike)(lab)?;
    let reached = newest(event.survivor)?;
    wait_until("a write on the survivor", LIMIT, || {
        let roles = lab.roles()?;
        if roles.writable.len() > 1 {
            return Err(LabError::Unsafe(format!("two writable nodes: {roles:?}")));
        }
        let row = newest(event.survivor)?;
        Ok(
            if roles.writable == [event.survivor] && row > reached + 200 {
                Ok(())
            } else {
                Err(format!("{roles:?}, row {row} after {reached}"))
            },
        )
    })?;
    let report = writer.stop()?;
    Ok(Outcome {
        gap: report.longest_gap(struck - 0.1),
        lost: report.lost(lab, event.survivor)?.len(),
        late: report.by_server_after(event.survivor.other().server_id(), closed),
        report,
    })
}
