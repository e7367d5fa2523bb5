//! `scripts/demo`: the main job, shown and measured.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::event::{self, Event};
use crate::writer::now;
use crate::{Lab, LabError, NodeName, Options, Roles, Writer};

const LIMIT: Duration = Duration::from_secs(90);

/// One event of the show.
struct Act {
    event: Event,
    story: &'static str,
    /// Seconds without a write that are still good, by docs/benchmarks.md.
    bar: f64,
    /// What the original bash scripts gave.
    original: &'static str,
}

const ACTS: [Act; 2] = [
    Act {
        event: event::DATABASE_KILLED,
        story: "the database of node1 is killed and its unit masked",
        bar: 3.2,
        original: "14.9 s",
    },
    Act {
        event: event::APACHE_BROKEN,
        story: "the web server of node1 is killed and cannot restart; its database is well",
        bar: 3.5,
        original: "not measured",
    },
];

/// How long node1 may take from its power to being a replica again, by the runs in docs/benchmarks.md.
const REJOIN_BAR: f64 = 15.0;
const FAILBACK: &str = "/usr/libexec/keepalived-companion/failback";

/// A finished row of the table.
struct Row {
    name: String,
    seconds: f64,
    lost: usize,
    original: &'static str,
    good: bool,
}

#[expect(clippy::print_stdout, reason = "the show itself")]
fn say(text: &str) {
    println!("{text}");
}

/// Shows everything; true when every row is good.
pub fn run(lab: &Lab) -> Result<bool, LabError> {
    lab.up(&Options::default())?;
    let mut rows = there_and_back(lab)?;
    for act in &ACTS {
        say(&format!("\n== {}: {}", act.event.name, act.story));
        rows.push(perform(lab, act)?);
    }
    say(&format!(
        "\n{:<40} {:>9} {:>6}   {:<32} verdict",
        "event", "no write", "lost", "original scripts"
    ));
    for row in &rows {
        say(&format!(
            "{:<40} {:>7.2} s {:>6}   {:<32} {}",
            row.name,
            row.seconds,
            row.lost,
            row.original,
            if row.good { "good" } else { "NOT GOOD" }
        ));
    }
    Ok(rows.iter().all(|row| row.good))
}

/// One client writes through all of it: power loss, the return by itself, and the way back.
fn there_and_back(lab: &Lab) -> Result<Vec<Row>, LabError> {
    const GOING_ON: usize = 500;
    say("\n== power loss of node1: node2 must notice, take the VIP and open its database");
    say("   node1 is made the primary with an attached standby ...");
    lab.make_whole(NodeName::Node1, LIMIT)?;
    let writer = Writer::start(lab, 1, event::first_row())?;
    let going_on = |lab: &Lab| {
        let before = writer.acknowledged();
        watch(lab, &writer, LIMIT, |rows, _| rows > before + GOING_ON)
    };
    watch(lab, &writer, Duration::from_secs(3), |_, _| false)?;
    let struck = now();
    say("\n   now");
    lab.power_off(NodeName::Node1)?;
    going_on(lab)?;
    say("\n== the power is back: node1 boots read-only and must become a replica by itself");
    let returned = now();
    lab.power_on(NodeName::Node1)?;
    watch(lab, &writer, LIMIT, |_, roles| {
        roles.replicating == [NodeName::Node1] && roles.writable == [NodeName::Node2]
    })?;
    lab.settled(NodeName::Node2, LIMIT)?;
    let rejoined = now();
    say("\n== failback, typed on node1: it must be the primary again, without losing a write");
    let told = lab.exec(NodeName::Node1, &[FAILBACK])?.success()?;
    // Its progress.
    for line in String::from_utf8_lossy(&told.stderr).lines() {
        say(&format!("   {line}"));
    }
    let done = now();
    going_on(lab)?;
    let report = writer.stop()?;
    lab.settled(NodeName::Node1, LIMIT)?;
    let lost = report.lost(lab, NodeName::Node1)?.len();
    let row = |name: String, seconds: f64, original, good| Row {
        name,
        seconds,
        lost,
        original,
        good: good && lost == 0,
    };
    let outage = report.longest_gap_within(struck - 0.1, returned);
    let back = report.longest_gap_within(rejoined, done + 1.0);
    Ok(vec![
        row(
            event::POWER_LOSS.name.to_owned(),
            outage,
            "3.2 s",
            outage <= 3.4,
        ),
        row(
            format!("its return: a replica after {:.1} s", rejoined - returned),
            report.longest_gap_within(returned, rejoined),
            "never; it returns writable",
            rejoined - returned <= REJOIN_BAR,
        ),
        row(
            "failback to it".to_owned(),
            back,
            "48 of 4,247 acknowledged lost",
            back <= 0.6,
        ),
    ])
}

fn perform(lab: &Lab, act: &Act) -> Result<Row, LabError> {
    say("   node1 is made the primary with an attached standby ...");
    lab.make_whole(NodeName::Node1, LIMIT)?;
    let writer = Writer::start(lab, 1, event::first_row())?;
    watch(lab, &writer, Duration::from_secs(3), |_, _| false)?;
    let struck = now();
    say("\n   now");
    (act.event.strike)(lab)?;
    let before = writer.acknowledged();
    watch(lab, &writer, LIMIT, |rows, _| rows > before + 500)?;
    let report = writer.stop()?;
    say("");
    let seconds = report.longest_gap(struck - 0.1);
    let lost = report.lost(lab, NodeName::Node2)?.len();
    Ok(Row {
        name: act.event.name.to_owned(),
        seconds,
        lost,
        original: act.original,
        good: lost == 0 && seconds <= act.bar,
    })
}

/// The live line, until the condition holds or the time is over.
fn watch(
    lab: &Lab,
    writer: &Writer,
    limit: Duration,
    done: impl Fn(usize, &Roles) -> bool,
) -> Result<(), LabError> {
    let start = Instant::now();
    let mut last = (writer.acknowledged(), Instant::now());
    while start.elapsed() < limit {
        let roles = lab.roles()?;
        let rows = writer.acknowledged();
        let rate = f64::from(u32::try_from(rows - last.0).unwrap_or(u32::MAX))
            / last.1.elapsed().as_secs_f64();
        last = (rows, Instant::now());
        let names = |nodes: &[NodeName]| {
            let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            if names.is_empty() {
                "-".to_owned()
            } else {
                names.join(",")
            }
        };
        let line = format!(
            "   {:5.1} s  VIP {:<6} primary {:<6} replica {:<6} {:6.0} writes/s",
            start.elapsed().as_secs_f64(),
            names(&roles.vip),
            names(&roles.writable),
            names(&roles.replicating),
            rate
        );
        say(&line);
        std::io::stdout()
            .flush()
            .map_err(crate::at("standard output"))?;
        if done(rows, &roles) {
            return Ok(());
        }
        // The live line's own rhythm.
        std::thread::sleep(Duration::from_millis(400));
    }
    Ok(())
}
