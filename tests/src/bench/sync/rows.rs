//! The rows: what is done to a subject, and what of it is timed. A clock starts with the first
//! call of a change and stops when the standby has all of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::meter::{Memory, Meter};
use super::subject::{Subject, on_host, place};
use super::table::{Figure, Line};
use super::tree::{self, Deletions, Expected, NEW, PLANTED, seconds_until};
use super::{Row, median};
use crate::{Lab, LabError, NodeName, Side, at, tell};

/// Single files, and between the beginnings of two.
const SINGLES: usize = 20;
const APART: Duration = Duration::from_secs(2);
/// A single file that takes longer is late; what was lost comes with the next one.
const SINGLE_LIMIT: Duration = Duration::from_secs(15);
const BURST: usize = 10_000;
const LARGE_MIB: usize = 1024;
/// Small files beside a large one, while it lasts.
const BESIDE: usize = 5;
const OUTAGE: Duration = Duration::from_secs(60);
const CHANGED: usize = 2000;
/// What follows a burst (processes that end, queues that are emptied) belongs to its CPU time.
const AFTERMATH: Duration = Duration::from_secs(3);
/// Longer than the delay of any subject.
const SETTLING: Duration = Duration::from_secs(3);
/// Between two signs of life.
const PROBE: Duration = Duration::from_millis(500);

/// What a row showed.
pub type Figures = Vec<(Line, Figure)>;

/// One subject on one tree.
pub struct Run<'a> {
    lab: &'a Lab,
    subject: &'a dyn Subject,
    deletions: &'a Deletions,
    /// The planted files on node1 and on node2.
    here: PathBuf,
    there: PathBuf,
    files: usize,
    limit: Duration,
    probes: usize,
}

impl<'a> Run<'a> {
    /// `files` are planted.
    pub fn new(
        lab: &'a Lab,
        subject: &'a dyn Subject,
        deletions: &'a Deletions,
        files: usize,
        limit: Duration,
    ) -> Self {
        let base = |node| on_host(node, subject.tree()).join(PLANTED);
        Self {
            lab,
            subject,
            deletions,
            here: base(NodeName::Node1),
            there: base(NodeName::Node2),
            files,
            limit: limit.mul_f64(subject.patience()),
            probes: 0,
        }
    }

    fn new_here(&self, name: &str) -> PathBuf {
        self.here.join(NEW).join(name)
    }

    fn new_there(&self, name: &str) -> PathBuf {
        self.there.join(NEW).join(name)
    }

    fn figure(&self, seconds: Option<f64>) -> Figure {
        seconds.map_or(Figure::Late(self.limit.as_secs_f64()), Figure::Value)
    }

    /// Starts with equal trees, and waits until a change arrives; whether it did.
    pub fn begin(&mut self) -> Result<bool, LabError> {
        self.end()?;
        self.restart()
    }

    fn restart(&mut self) -> Result<bool, LabError> {
        self.subject.prepare(self.lab)?;
        tree::quiet();
        let since = Instant::now();
        self.subject.start(self.lab)?;
        // The first may have come with the comparison at the start, the second is news.
        let well = self.alive(since)?.is_some() && self.alive(Instant::now())?.is_some();
        // What else was written to see that is still on its way.
        std::thread::sleep(SETTLING);
        Ok(well)
    }

    /// Ends it, and takes back what the rows have left.
    pub fn end(&self) -> Result<(), LabError> {
        self.subject.stop(self.lab)?;
        tree::equalise(&self.here, &self.there)
    }

    /// Seconds until it has said that the standby has everything, or else until a change arrives.
    /// The change is made anew: the first one may have come before anything watched.
    fn alive(&mut self, since: Instant) -> Result<Option<f64>, LabError> {
        let (here, there) = (tree::probe(&self.here), tree::probe(&self.there));
        let left_over = tree::size(&here).max(tree::size(&there)).unwrap_or(0);
        let first = self.probes.max(usize::try_from(left_over).unwrap_or(0)) + 1;
        self.probes = first - 1;
        loop {
            self.probes += 1;
            // It grows: rsync takes a file of the same size and second for the same file.
            tree::write(&here, &vec![b'x'; self.probes])?;
            let left = self.limit.saturating_sub(since.elapsed());
            let arrived = seconds_until(Instant::now(), left.min(PROBE), || {
                tree::size(&there).is_some_and(|size| size >= first as u64)
            });
            if arrived.is_some() {
                break;
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
        loop {
            let now = since.elapsed();
            if self.subject.in_sync()? != Some(false) {
                return Ok(Some(now.as_secs_f64()));
            }
            if now > self.limit {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Does a row; it leaves the subject running and in sync, or it is restarted.
    pub fn row(&mut self, row: Row) -> Result<Figures, LabError> {
        match row {
            Row::File => self.single(false),
            Row::Renamed => self.single(true),
            Row::Burst => self.burst(),
            Row::Large => self.large(),
            Row::Start => self.start(),
            Row::Memory => self.memory(),
            Row::Outage => self.outage(),
            Row::Empty => self.empty(),
        }
    }

    /// Single small files.
    fn single(&self, renamed: bool) -> Result<Figures, LabError> {
        let mut times = Vec::new();
        for file in 0..SINGLES {
            let name = format!("{}-{file}", if renamed { "renamed" } else { "single" });
            let (here, there) = (self.new_here(&name), self.new_there(&name));
            let since = Instant::now();
            if renamed {
                let temporary = self.new_here(&format!(".{name}"));
                tree::write(&temporary, b"content\n")?;
                fs::rename(&temporary, &here).map_err(at(&here))?;
            } else {
                tree::write(&here, b"content\n")?;
            }
            let took = seconds_until(since, SINGLE_LIMIT, || tree::size(&there) == Some(8));
            times.push(took.unwrap_or(f64::INFINITY) * 1000.0);
            if times.iter().filter(|time| time.is_infinite()).count() > 2 {
                break;
            }
            std::thread::sleep(APART.saturating_sub(since.elapsed()));
        }
        let figure = |time: f64| {
            if time.is_finite() {
                Figure::Value(time)
            } else {
                Figure::Late(SINGLE_LIMIT.as_secs_f64() * 1000.0)
            }
        };
        let worst = times.iter().copied().fold(0.0, f64::max);
        let lines = if renamed {
            (Line::Renamed, Line::RenamedWorst)
        } else {
            (Line::File(self.files), Line::FileWorst(self.files))
        };
        Ok(vec![
            (lines.0, figure(median(&times))),
            (lines.1, figure(worst)),
        ])
    }

    /// Writes the files of a burst; when it began, and what is to appear.
    fn burst_here(&self, name: &str) -> Result<(Instant, Expected), LabError> {
        let expected = Expected::burst(&self.new_there(name));
        self.deletions.forget();
        let since = Instant::now();
        write_burst(&self.new_here(name))?;
        tell(&format!(
            "{BURST} files written in {:.2} s",
            since.elapsed().as_secs_f64()
        ));
        Ok((since, expected))
    }

    /// Waits for all files, and tells how many came.
    fn all(&self, since: Instant, expected: &mut Expected) -> Option<f64> {
        let took = seconds_until(since, self.limit, || expected.complete());
        if took.is_none() {
            tell(&format!(
                "{}: {} arrived",
                self.subject.name(),
                expected.progress()
            ));
        }
        took
    }

    /// Many new files, then the rename and the deletion of their directory.
    fn burst(&mut self) -> Result<Figures, LabError> {
        let meter = Meter::new(self.subject.unit())?.idle(Duration::from_secs(10))?;
        let before = meter.read()?;
        let (since, mut expected) = self.burst_here("burst")?;
        let took = self.all(since, &mut expected);
        std::thread::sleep(AFTERMATH);
        let (sender, receiver) = meter.since(&before)?;
        let mut figures = vec![
            (Line::Burst, self.figure(took)),
            (Line::BurstCpu, Figure::Sum(sender, receiver)),
        ];
        let (from, to) = (self.new_here("burst"), self.new_here("moved"));
        let (old, new) = (self.new_there("burst"), self.new_there("moved"));
        if took.is_none() && !self.begin_with("burst")? {
            return Ok(figures);
        }
        let mut expected = Expected::burst(&new);
        self.deletions.forget();
        let since = Instant::now();
        fs::rename(&from, &to).map_err(at(&from))?;
        let took = seconds_until(since, self.limit, || {
            expected.complete() && tree::gone(&old)
        });
        // Some send a new directory and delete the old one.
        self.deletions.happened();
        figures.push((Line::Rename, self.figure(took)));
        if took.is_none() && !self.begin_with("moved")? {
            return Ok(figures);
        }
        tree::quiet();
        let since = Instant::now();
        tree::remove(&to)?;
        let took = seconds_until(since, self.limit, || tree::gone(&new));
        self.deletions.happened();
        figures.push((Line::Delete, self.figure(took)));
        Ok(figures)
    }

    /// Starts anew with the directory of a burst on both nodes.
    fn begin_with(&mut self, name: &str) -> Result<bool, LabError> {
        self.end()?;
        for base in [self.new_here(name), self.new_there(name)] {
            write_burst(&base)?;
        }
        self.restart()
    }

    /// Small files while a large one is sent; the worst of some.
    fn large(&self) -> Result<Figures, LabError> {
        let source = place(NodeName::Node1).join("large");
        write_large(&source)?;
        tree::quiet();
        let (here, there) = (self.new_here("large"), self.new_there("large"));
        // In one step: nothing can be sent before all of it is there.
        fs::rename(&source, &here).map_err(at(&here))?;
        let begun = Instant::now();
        let whole = (LARGE_MIB as u64) << 20;
        let sent = || tree::size(&there) == Some(whole);
        let ours = on_host(NodeName::Node2, self.subject.tree()).join(OURS);
        let underway = seconds_until(begun, self.limit, || {
            sent() || arriving(&self.there.join(NEW)) || arriving(&ours)
        });
        let mut worst: Option<f64> = None;
        let mut beside = 0;
        while underway.is_some() && !sent() && beside < BESIDE {
            let name = format!("beside-{beside}");
            let (here, there) = (self.new_here(&name), self.new_there(&name));
            let since = Instant::now();
            tree::write(&here, b"content\n")?;
            let took = seconds_until(since, self.limit, || tree::size(&there) == Some(8))
                .unwrap_or(f64::INFINITY);
            worst = Some(worst.map_or(took, |worst| worst.max(took)));
            beside += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        let done = seconds_until(begun, self.limit, sent);
        tell(&format!(
            "{}: {beside} small files beside the large one, which took {}",
            self.subject.name(),
            done.map_or("too long".to_owned(), |seconds| format!("{seconds:.1} s"))
        ));
        fs::remove_file(&here).map_err(at(&here))?;
        seconds_until(Instant::now(), self.limit, || tree::gone(&there));
        let figure = match worst {
            // The large one was there before a small one could be written.
            None if underway.is_some() => Figure::Missing,
            worst => self.figure(worst.filter(|time| time.is_finite())),
        };
        Ok(vec![(Line::Large, figure)])
    }

    /// A start with equal trees.
    fn start(&mut self) -> Result<Figures, LabError> {
        self.end()?;
        self.subject.prepare(self.lab)?;
        tree::quiet();
        let since = Instant::now();
        self.subject.start(self.lab)?;
        let ready = since.elapsed().as_secs_f64();
        let mut figures = Vec::new();
        if self.subject.tells_ready() {
            figures.push((Line::Ready, Figure::Value(ready)));
        }
        let took = self.alive(since)?;
        figures.push((Line::Start(self.files), self.figure(took)));
        Ok(figures)
    }

    /// Memory while nothing changes, and its peak while many files do.
    fn memory(&self) -> Result<Figures, LabError> {
        let (lab, unit) = (self.lab, self.subject.unit());
        let meter = Meter::new(unit)?;
        std::thread::sleep(Duration::from_secs(5));
        let idle = meter.memory(lab, unit)?;
        let (burst, peak) = meter.peak(lab, unit, || {
            let (since, mut expected) = self.burst_here("memory")?;
            let took = self.all(since, &mut expected);
            std::thread::sleep(AFTERMATH);
            Ok::<_, LabError>(took)
        })?;
        let burst = burst?;
        let sum = |memory: Memory| Figure::Sum(memory.main, memory.children);
        let figures = vec![
            (Line::MemoryIdle(self.files), sum(idle)),
            (Line::MemoryBurst(self.files), sum(peak)),
        ];
        tell(&format!(
            "{}: {BURST} files in the tree of {}: {burst:?} s",
            self.subject.name(),
            self.files
        ));
        Ok(figures)
    }

    /// node2 out of reach while files change.
    fn outage(&self) -> Result<Figures, LabError> {
        let meter = Meter::new(self.subject.unit())?;
        self.subject.count_tries(true)?;
        let tries = self.subject.tries()?;
        let before = meter.read()?;
        self.lab.partition(NodeName::Node2, Side::Both)?;
        let changed = self.change_during(OUTAGE);
        let cpu = meter.since(&before);
        let after = self.subject.tries();
        // On every path: a cut that stays spoils everything that follows.
        self.lab.heal()?;
        let healed = Instant::now();
        let mut expected = changed?;
        let took = self.all(healed, &mut expected);
        self.subject.count_tries(false)?;
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let tries = after?.saturating_sub(tries) as f64;
        Ok(vec![
            (Line::Tries, Figure::Value(tries)),
            (Line::OutageCpu, Figure::Value(cpu?.0)),
            (Line::Recovery, self.figure(took)),
        ])
    }

    /// Changes planted files, spread over the time.
    fn change_during(&self, time: Duration) -> Result<Expected, LabError> {
        let since = Instant::now();
        let mut expected = Expected::default();
        let step = time / u32::try_from(CHANGED).unwrap_or(u32::MAX);
        let mut paths = tree::planted(&self.here, self.files);
        for index in 0..CHANGED {
            let Some(path) = paths.next() else {
                break;
            };
            let mut file = fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(at(&path))?;
            file.write_all(b"changed\n").map_err(at(&path))?;
            let size = file.metadata().map_err(at(&path))?.len();
            let below = path.strip_prefix(&self.here).unwrap_or(&path);
            expected.push(self.there.join(below), size);
            let next = step * u32::try_from(index + 1).unwrap_or(u32::MAX);
            std::thread::sleep(next.saturating_sub(since.elapsed()));
        }
        std::thread::sleep(time.saturating_sub(since.elapsed()));
        Ok(expected)
    }

    /// A start with nothing on the standby.
    fn empty(&mut self) -> Result<Figures, LabError> {
        self.end()?;
        // All of it, with whatever a subject keeps there: as on a new node.
        let node = NodeName::Node2;
        tree::empty(node, &on_host(node, self.subject.tree()))?;
        self.subject.forget()?;
        let mut expected = Expected::like(&self.here, &self.there)?;
        self.subject.prepare(self.lab)?;
        self.deletions.forget();
        let since = Instant::now();
        self.subject.start(self.lab)?;
        let took = self.all(since, &mut expected);
        Ok(vec![(Line::Empty, self.figure(took))])
    }
}

/// Writes the files of a burst into a new directory.
pub fn write_burst(directory: &Path) -> Result<(), LabError> {
    fs::create_dir(directory).map_err(at(directory))?;
    for file in 0..BURST {
        let name = burst_name(file);
        tree::write(&directory.join(&name), name.as_bytes())?;
    }
    Ok(())
}

/// A file of a burst; it is its content as well.
fn burst_name(file: usize) -> String {
    format!("f{file}")
}

impl Expected {
    /// The files of a burst.
    fn burst(directory: &Path) -> Self {
        let mut expected = Self::default();
        for file in 0..BURST {
            let name = burst_name(file);
            expected.push(directory.join(&name), name.len() as u64);
        }
        expected
    }
}

fn write_large(path: &Path) -> Result<(), LabError> {
    let block = vec![b'x'; 1 << 20];
    let mut file = fs::File::create(path).map_err(at(path))?;
    for _ in 0..LARGE_MIB {
        file.write_all(&block).map_err(at(path))?;
    }
    Ok(())
}

/// Where our own receiver keeps a file until it is whole.
const OURS: &str = ".keepalived-companion/tmp";

/// Whether a part of the large file is there, under whatever name it is received.
fn arriving(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_string_lossy().contains("large")
                && entry.metadata().is_ok_and(|found| found.len() > 0)
        })
    })
}
