//! The way back, under a writing client: with a small database, after a power loss, and with a large one.

use std::time::Duration;

use super::{machine, median, random_moment, save};
use crate::writer::now;
use crate::{Lab, LabError, NodeName, Options, Writer, event, tell, wait_until};

use NodeName::{Node1, Node2};

const LIMIT: Duration = Duration::from_secs(300);
const FAILBACK: &str = "/usr/libexec/keepalived-companion/failback";
/// Rows of 4 KiB in one transaction of the large database, and transactions in a GiB.
const BATCH: usize = 2048;
const BATCHES_IN_GIB: usize = 128;

/// How the way back is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Failback {
    /// How often each is done
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Size of the large database; 0 leaves it out
    #[arg(long, value_name = "GIB", default_value_t = 2)]
    size: usize,
    /// Renew the table in docs/benchmarks.md
    #[arg(long)]
    save: bool,
}

/// One way back.
struct Outcome {
    /// The longest time between two acknowledged writes, in seconds.
    gap: f64,
    /// By the tool's own word: from the freeze to the first write on the new primary.
    frozen: f64,
    /// From the power to the replica; nothing where none was lost.
    rejoined: Option<f64>,
    /// Acknowledged rows that are not on the primary.
    lost: usize,
}

/// Measures and gives the table.
pub fn failback(lab: &Lab, wanted: &Failback) -> Result<String, LabError> {
    lab.up(&Options::default())?;
    let mut table = format!(
        "{} runs each at random moments, advert_int 1, {}:\n\n\
         | | median s | worst s | bar | frozen: median / worst s | bar | replica again: median / worst s | lost |\n\
         |---|---|---|---|---|---|---|---|\n",
        wanted.runs,
        machine()?
    );
    let mut measure = |name: &str, once: &dyn Fn(&Lab) -> Result<Outcome, LabError>| {
        let mut outcomes = Vec::new();
        for run in 1..=wanted.runs {
            let outcome = once(lab)?;
            tell(&format!(
                "{name} {run}/{}: {:.2} s, frozen {:.2} s, replica after {:?} s, {} lost",
                wanted.runs, outcome.gap, outcome.frozen, outcome.rejoined, outcome.lost
            ));
            outcomes.push(outcome);
        }
        table.push_str(&line(name, &outcomes));
        if wanted.save {
            save("failback", &table)?;
        }
        Ok::<_, LabError>(())
    };
    measure("failback, small database", &plain)?;
    measure("power loss, return, rejoin, failback", &after_power_loss)?;
    if wanted.size > 0 {
        fill(lab, wanted.size)?;
        let done = measure(&format!("failback, {} GiB", wanted.size), &plain);
        lab.sql(Node1, "DROP TABLE IF EXISTS ha_app.big")?;
        done?;
    }
    Ok(table)
}

fn line(name: &str, outcomes: &[Outcome]) -> String {
    let both = |values: Vec<f64>| {
        let worst = values.iter().copied().fold(0.0, f64::max);
        (median(&values), worst)
    };
    let gap = both(outcomes.iter().map(|o| o.gap).collect());
    let frozen = both(outcomes.iter().map(|o| o.frozen).collect());
    let rejoined: Vec<f64> = outcomes.iter().filter_map(|o| o.rejoined).collect();
    let rejoined = if rejoined.is_empty() {
        "–".to_owned()
    } else {
        let (median, worst) = both(rejoined);
        format!("{median:.1} / {worst:.1}")
    };
    format!(
        "| {name} | {:.2} | {:.2} | 0.6 | {:.2} / {:.2} | 0.2 | {rejoined} | {} |\n",
        gap.0,
        gap.1,
        frozen.0,
        frozen.1,
        outcomes.iter().map(|o| o.lost).sum::<usize>()
    )
}

fn plain(lab: &Lab) -> Result<Outcome, LabError> {
    lab.make_whole(Node1, LIMIT)?;
    lab.exec(Node2, &[FAILBACK, "--to", "node2"])?.success()?;
    lab.settled(Node2, LIMIT)?;
    let writer = Writer::start(lab, 1, event::first_row())?;
    writer.await_more(200, LIMIT)?;
    come_back(lab, writer, None)
}

fn after_power_loss(lab: &Lab) -> Result<Outcome, LabError> {
    lab.make_whole(Node1, LIMIT)?;
    let writer = Writer::start(lab, 1, event::first_row())?;
    writer.await_more(200, LIMIT)?;
    random_moment();
    lab.power_off(Node1)?;
    writer.await_more(200, LIMIT)?;
    let returned = now();
    lab.power_on(Node1)?;
    lab.settled(Node2, LIMIT)?;
    let rejoined = now() - returned;
    come_back(lab, writer, Some(rejoined))
}

/// Node1 becomes the primary again, while the client writes.
fn come_back(lab: &Lab, writer: Writer, rejoined: Option<f64>) -> Result<Outcome, LabError> {
    random_moment();
    let began = now();
    let said = lab.exec(Node1, &[FAILBACK, "--json"])?.success()?.text();
    writer.await_more(200, LIMIT)?;
    let report = writer.stop()?;
    let answer: serde_json::Value = said
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_default();
    let frozen = answer["frozen_seconds"]
        .as_f64()
        .ok_or_else(|| LabError::Unfit(format!("failback did not switch over: {said}")))?;
    lab.settled(Node1, LIMIT)?;
    lab.equal_tables("ha_app.rows", LIMIT)?;
    Ok(Outcome {
        gap: report.longest_gap(began),
        frozen,
        rejoined,
        lost: report.lost(lab, Node1)?.len(),
    })
}

/// A table of that size on both nodes.
fn fill(lab: &Lab, gib: usize) -> Result<(), LabError> {
    lab.make_whole(Node1, LIMIT)?;
    lab.sql(
        Node1,
        "CREATE OR REPLACE TABLE ha_app.big (id BIGINT AUTO_INCREMENT PRIMARY KEY, filler TEXT)",
    )?;
    let batch = format!(
        "INSERT INTO ha_app.big (filler) SELECT REPEAT(HEX(RANDOM_BYTES(32)), 64) FROM ha_app.seq_1_to_{BATCH}"
    );
    let batches = gib * BATCHES_IN_GIB;
    for done in 1..=batches {
        lab.sql(Node1, &batch)?;
        if done % BATCHES_IN_GIB == 0 {
            tell(&format!("{} GiB of {gib}", done / BATCHES_IN_GIB));
        }
    }
    lab.settled(Node1, LIMIT)?;
    let rows = (batches * BATCH).to_string();
    wait_until("all of it on the standby", LIMIT, || {
        let there = lab.sql(Node2, "SELECT COUNT(*) FROM ha_app.big")?;
        Ok(if there == rows { Ok(()) } else { Err(there) })
    })
}
