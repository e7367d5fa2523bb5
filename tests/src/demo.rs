//! `scripts/demo`: the main job, shown and measured.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::event::{self, Event};
use crate::writer::now;
use crate::{Lab, LabError, NodeName, Options, Writer};

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

const ACTS: [Act; 3] = [
    Act {
        event: event::POWER_LOSS,
        story: "node1 loses its power; node2 must notice, take the VIP and open its database",
        bar: 3.4,
        original: "3.2 s; never rejoined",
    },
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

/// A finished row of the table.
struct Row {
    name: &'static str,
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
    let mut rows = Vec::new();
    for act in &ACTS {
        say(&format!("\n== {}: {}", act.event.name, act.story));
        rows.push(perform(lab, act)?);
    }
    say(&format!(
        "\n{:<34} {:>9} {:>6}   {:<24} verdict",
        "event", "no write", "lost", "original scripts"
    ));
    for row in &rows {
        say(&format!(
            "{:<34} {:>7.2} s {:>6}   {:<24} {}",
            row.name,
            row.seconds,
            row.lost,
            row.original,
            if row.good { "good" } else { "NOT GOOD" }
        ));
    }
    Ok(rows.iter().all(|row| row.good))
}

fn perform(lab: &Lab, act: &Act) -> Result<Row, LabError> {
    say("   node1 is made the primary with an attached standby ...");
    lab.make_whole(NodeName::Node1, LIMIT)?;
    let writer = Writer::start(lab, 1, event::first_row())?;
    watch(lab, &writer, Duration::from_secs(3), |_| false)?;
    let struck = now();
    say("\n   now");
    (act.event.strike)(lab)?;
    let before = writer.acknowledged();
    watch(lab, &writer, LIMIT, |rows| rows > before + 500)?;
    let report = writer.stop()?;
    say("");
    let seconds = report.longest_gap(struck - 0.1);
    let lost = report.lost(lab, NodeName::Node2)?.len();
    Ok(Row {
        name: act.event.name,
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
    done: impl Fn(usize) -> bool,
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
        if done(rows) {
            return Ok(());
        }
        // The live line's own rhythm.
        std::thread::sleep(Duration::from_millis(400));
    }
    Ok(())
}
