//! `scripts/bench`: each event many times at random moments, beside the floor and the original.

mod checks;
mod failback;
mod sync;

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::event::{self, Event, Outcome};
use crate::provision::repository;
use crate::{Lab, LabError, NodeName, Options, Suite, at, tell};

pub use checks::{Checks, checks};
pub use failback::{Failback, failback};
pub use sync::{Sync, sync};

/// The report that a benchmark renews its part of.
const REPORT: &str = "docs/benchmarks.md";

/// One event with what it must show.
struct Row {
    event: Event,
    /// Median and worst of ten that are good, in seconds.
    bar: Option<(f64, f64)>,
    /// What the original bash scripts gave.
    original: &'static str,
    /// Whether the thinnest hooks can do it at all.
    floor: bool,
}

const fn row(event: Event, bar: Option<(f64, f64)>, original: &'static str, floor: bool) -> Row {
    Row {
        event,
        bar,
        original,
        floor,
    }
}

const NORMAL: [Row; 8] = [
    row(event::POWER_LOSS, Some((3.0, 3.4)), "3.2", true),
    row(event::DATABASE_KILLED, Some((2.6, 3.2)), "14.9", true),
    row(event::DATABASE_FROZEN, Some((3.2, 4.5)), "–", false),
    row(event::APACHE_BROKEN, Some((2.6, 3.5)), "–", false),
    row(event::STANDBY_POWER_LOSS, Some((1.2, 1.5)), "–", false),
    row(event::KEEPALIVED_STOPPED, None, "–", false),
    row(event::THOUSAND_BEHIND, None, "–", false),
    row(event::HUNDRED_THOUSAND_BEHIND, None, "–", false),
];

const FAST: [Row; 1] = [row(event::POWER_LOSS, Some((0.7, 1.0)), "–", true)];

/// Which part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// `advert_int 1`
    Normal,
    /// `advert_int 0.2`
    Fast,
}

/// How the cluster is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Cluster {
    /// How often each event strikes
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// How often the floor is measured
    #[arg(long, default_value_t = 3)]
    floor_runs: usize,
    /// Keepalived's pace
    #[arg(long, value_enum, default_value = "normal")]
    profile: Profile,
    /// Debian release of the nodes
    #[arg(long, value_enum, default_value = "bookworm")]
    suite: Suite,
    /// Only events whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Renew the table in docs/benchmarks.md
    #[arg(long)]
    save: bool,
}

/// Runs the events and gives the table.
pub fn cluster(lab: &Lab, wanted: &Cluster) -> Result<String, LabError> {
    let (rows, advert_int): (&[Row], _) = match wanted.profile {
        Profile::Normal => (&NORMAL, "1"),
        Profile::Fast => (&FAST, "0.2"),
    };
    lab.up(&Options {
        advert_int: advert_int.to_owned(),
        suite: wanted.suite,
        ..Options::default()
    })?;
    let mut table = format!(
        "advert_int {advert_int}, {} runs each at random moments, {}:\n\n\
         | event | median s | worst s | bar | floor s | original s | lost | acknowledged too late |\n\
         |---|---|---|---|---|---|---|---|\n",
        wanted.runs,
        machine()?
    );
    for row in rows {
        if let Some(part) = &wanted.only
            && !row.event.name.contains(part.as_str())
        {
            continue;
        }
        let mut outcomes = Vec::new();
        for run in 1..=wanted.runs {
            let outcome = event::perform(lab, &row.event, |_| {
                random_moment();
                Ok(())
            })?;
            tell(&format!(
                "{} {run}/{}: {:.2} s, {} lost, {} too late",
                row.event.name, wanted.runs, outcome.gap, outcome.lost, outcome.late
            ));
            outcomes.push(outcome);
        }
        let floor = if row.floor && wanted.floor_runs > 0 {
            let gaps = (0..wanted.floor_runs)
                .map(|_| floor(lab, &row.event))
                .collect::<Result<Vec<f64>, _>>()?;
            format!("{:.2}", median(&gaps))
        } else {
            "–".to_owned()
        };
        table.push_str(&line(row, &outcomes, &floor));
        // After each event: a long benchmark that is broken off keeps what it has.
        if wanted.save {
            let name = match wanted.profile {
                Profile::Normal => "cluster",
                Profile::Fast => "cluster-fast",
            };
            save(name, &table)?;
        }
    }
    Ok(table)
}

fn line(row: &Row, outcomes: &[Outcome], floor: &str) -> String {
    let gaps: Vec<f64> = outcomes.iter().map(|o| o.gap).collect();
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    let bar = row.bar.map_or_else(
        || "–".to_owned(),
        |(median, worst)| format!("{median} / {worst}"),
    );
    format!(
        "| {} | {:.2} | {worst:.2} | {bar} | {floor} | {} | {} | {} |\n",
        row.event.name,
        median(&gaps),
        row.original,
        outcomes.iter().map(|o| o.lost).sum::<usize>(),
        outcomes.iter().map(|o| o.late).sum::<usize>(),
    )
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Waits between 0 and 2 s, so that an event is in step with no timer of the cluster.
fn random_moment() {
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    std::thread::sleep(Duration::from_millis(u64::from(nanoseconds / 1000 % 2000)));
}

/// The same event with the thinnest hooks that can do it: a ping, and one statement.
fn floor(lab: &Lab, event: &Event) -> Result<f64, LabError> {
    let outcome = event::perform(lab, event, thin_hooks);
    for node in NodeName::ALL {
        lab.power_on(node)?;
        lab.exec(
            node,
            &[
                "sh",
                "-c",
                "cp /etc/keepalived/keepalived.conf.whole /etc/keepalived/keepalived.conf && \
                 systemctl start keepalived-companion-role.timer && systemctl reload-or-restart keepalived",
            ],
        )?
        .success()?;
    }
    let gap = outcome?.gap;
    tell(&format!("{}, floor: {gap:.2} s", event.name));
    Ok(gap)
}

/// Checks and hooks in two lines of shell, without any safety, and no audit.
fn thin_hooks(lab: &Lab) -> Result<(), LabError> {
    for node in NodeName::ALL {
        let script = r#"
            systemctl stop keepalived-companion-role.timer
            cd /etc/keepalived
            cp keepalived.conf keepalived.conf.whole
            printf '#!/bin/sh\nexec mariadb-admin ping\n' > thin-check
            printf '#!/bin/sh\nexec mariadb -e "SET GLOBAL read_only = 0"\n' > thin-master
            chmod 755 thin-check thin-master
            sed -e 's|"/usr/libexec/keepalived-companion/check-[^"]*"|"/etc/keepalived/thin-check"|' \
                -e 's|^    notify .*|    notify_master /etc/keepalived/thin-master|' \
                -e '/notify_master_rx_lower_pri/d' keepalived.conf.whole > keepalived.conf
            systemctl reload keepalived"#;
        lab.exec(node, &["sh", "-ec", script])?.success()?;
    }
    // A reload starts the checks anew; both nodes need their first good results (rise x interval).
    std::thread::sleep(Duration::from_secs(4));
    random_moment();
    Ok(())
}

/// What the figures were measured on, without names.
fn machine() -> Result<String, LabError> {
    let cpu = fs::read_to_string("/proc/cpuinfo").map_err(at("/proc/cpuinfo"))?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let memory = fs::read_to_string("/proc/meminfo").map_err(at("/proc/meminfo"))?;
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0);
    Ok(format!(
        "both nodes and the client on one virtual machine, {} cores of {model}, {} GiB",
        std::thread::available_parallelism().map_or(0, usize::from),
        kib.div_ceil(1 << 20)
    ))
}

/// Puts a table between its marks in the report.
fn save(name: &str, table: &str) -> Result<(), LabError> {
    let path = repository().join(REPORT);
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let renewed = text
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)))
        .map(|(head, tail)| format!("{head}{begin}{table}{end}{tail}"))
        .ok_or_else(|| LabError::Unfit(format!("{}: no `{begin}`", path.display())))?;
    fs::write(&path, renewed).map_err(at(&path))
}
