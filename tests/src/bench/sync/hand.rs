//! The floor: the same done by hand, each by one rsync over a connection that is open already.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::median;
use super::meter::Meter;
use super::rows::{Figures, write_burst};
use super::subject::{HAND_UNIT, SSH, TREE, on_host, place, run_unit, stop_unit};
use super::table::{Figure, Line};
use super::tree::{self, Deletions, NEW, PLANTED, seconds_until};
use crate::{Lab, LabError, NodeName, at};

const FILES: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

/// Files, one after the other: from the beginning of the command until the file is on node2, which
/// is before rsync has ended.
pub fn file(lab: &Lab, files: usize) -> Result<Figures, LabError> {
    let new = format!("{TREE}/{PLANTED}/{NEW}");
    let mut arrivals = Vec::new();
    let done = run(
        lab,
        &format!(
            "for i in {{1..{FILES}}}; do echo content >{new}/hand-$i; sleep 0.2; \
             clock rsync -a -e '{SSH}' {new}/hand-$i kept:{new}/; done"
        ),
        || {
            let since = Instant::now();
            for file in 1..=FILES {
                let there = on_host(NodeName::Node2, &new).join(format!("hand-{file}"));
                if seconds_until(since, LIMIT, || tree::size(&there) == Some(8)).is_none() {
                    break;
                }
                arrivals.push(wall_clock());
            }
        },
    )?;
    let ms: Vec<f64> = done
        .times
        .iter()
        .zip(&arrivals)
        .map(|((begin, _), arrival)| (arrival - begin) * 1000.0)
        .collect();
    let worst = ms.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        (Line::File(files), Figure::Value(median(&ms))),
        (Line::FileWorst(files), Figure::Value(worst)),
    ])
}

/// A directory of many files.
pub fn burst(lab: &Lab, deletions: &Deletions) -> Result<Figures, LabError> {
    let new = format!("{TREE}/{PLANTED}/{NEW}");
    deletions.forget();
    write_burst(&on_host(NodeName::Node1, &new).join("hand"))?;
    let done = run(
        lab,
        &format!("clock rsync -a -e '{SSH}' {new}/hand kept:{new}/"),
        || (),
    )?;
    Ok(vec![
        (Line::Burst, done.whole()),
        (Line::BurstCpu, Figure::Sum(done.cpu.0, done.cpu.1)),
    ])
}

/// The whole tree.
pub fn empty(lab: &Lab, deletions: &Deletions) -> Result<Figures, LabError> {
    deletions.forget();
    tree::empty(NodeName::Node2, &on_host(NodeName::Node2, TREE))?;
    let done = run(
        lab,
        &format!("clock rsync -a -e '{SSH}' {TREE}/ kept:{TREE}/"),
        || (),
    )?;
    Ok(vec![(Line::Empty, done.whole())])
}

/// What a script took.
struct Done {
    /// Beginning and end of each timed command, in seconds since 1970.
    times: Vec<(f64, f64)>,
    /// CPU seconds of all of it on node1 and on node2.
    cpu: (f64, f64),
}

impl Done {
    fn whole(&self) -> Figure {
        self.times
            .first()
            .map_or(Figure::Missing, |(begin, end)| Figure::Value(end - begin))
    }
}

/// Runs bash on node1, with `clock` in front of what is timed.
fn run(lab: &Lab, script: &str, meanwhile: impl FnOnce()) -> Result<Done, LabError> {
    let (program, result) = (
        place(NodeName::Node1).join("by-hand"),
        place(NodeName::Node1).join("times"),
    );
    let _ = fs::remove_file(&result);
    let text = format!(
        "set -e; cd /srv/bench\n\
         clock() {{ local b=$EPOCHREALTIME; \"$@\"; echo \"$b $EPOCHREALTIME\" >>part; }}\n\
         rm -f part; {SSH} kept true\n{script}\nmv part times; sleep 300\n"
    );
    tree::write(&program, text.as_bytes())?;
    tree::quiet();
    let meter = Meter::new(HAND_UNIT)?;
    let before = meter.not_started()?;
    run_unit(lab, HAND_UNIT, &["bash", "/srv/bench/by-hand"])?;
    meanwhile();
    let done = seconds_until(Instant::now(), LIMIT, || tree::size(&result).is_some());
    let cpu = meter.since(&before);
    stop_unit(lab, HAND_UNIT)?;
    if done.is_none() {
        return Err(LabError::Unfit(format!("`{script}` by hand failed")));
    }
    let times = fs::read_to_string(&result).map_err(at(&result))?;
    let times = times
        .lines()
        .filter_map(|line| {
            let (begin, end) = line.split_once(' ')?;
            Some((begin.parse().ok()?, end.parse().ok()?))
        })
        .collect();
    Ok(Done { times, cpu: cpu? })
}

/// Seconds since 1970: the nodes have the host's clock.
fn wall_clock() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
