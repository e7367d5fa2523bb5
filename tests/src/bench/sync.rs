//! File synchronisation from node1 to node2, beside what else does it with rsync and ssh.

mod hand;
mod meter;
mod rows;
mod subject;
mod table;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use self::rows::{Figures, Run};
use self::subject::{LOOP, LSYNCD, Ours, Subject, TREE, TUNED, on_host};
use self::table::{Figure, Table};
use self::tree::{Deletions, PLANTED};
use super::{machine, median, save};
use crate::{Lab, LabError, NodeName, Options, at, tell};

/// What is done, in this order: what deletes many files comes last, see [`Deletions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Row {
    /// One small file, 20 times
    File,
    /// The same, renamed into place
    Renamed,
    /// A small file while 1 GiB is sent
    Large,
    /// Node2 out of reach for 60 s
    Outage,
    /// A start with equal trees
    Start,
    /// Memory, idle and with 10,000 new files
    Memory,
    /// A start with nothing on node2
    Empty,
    /// 10,000 new files, then the rename and the deletion of their directory
    Burst,
}

impl Row {
    /// Whether it is done on a tree of this size: single files on all, what shows only in a large one on
    /// the largest, and the rest on one that is as large as most are.
    fn fits(self, files: usize, sizes: &[usize]) -> bool {
        let (smallest, largest) = (sizes.first(), sizes.last());
        match self {
            Self::File => true,
            Self::Renamed => Some(&files) == smallest,
            Self::Start | Self::Memory => Some(&files) == largest,
            Self::Burst | Self::Large | Self::Outage | Self::Empty => {
                if sizes.contains(&USUAL) {
                    files == USUAL
                } else {
                    Some(&files) == largest
                }
            }
        }
    }
}

/// Files of a usual tree.
const USUAL: usize = 20_000;

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Who {
    /// sync-realtime
    Ours,
    /// while inotifywait; do rsync; done
    Loop,
    /// lsyncd with a delay of a second
    Lsyncd,
    /// lsyncd without delay, over a connection that stays open
    Tuned,
    /// One rsync over an open connection
    Hand,
}

impl Who {
    fn subject(self) -> Option<&'static dyn Subject> {
        match self {
            Self::Ours => Some(&Ours),
            Self::Loop => Some(&LOOP),
            Self::Lsyncd => Some(&LSYNCD),
            Self::Tuned => Some(&TUNED),
            Self::Hand => None,
        }
    }

    fn name(self) -> &'static str {
        self.subject().map_or("by hand", Subject::name)
    }
}

/// The columns.
const ALL: [Who; 5] = [Who::Ours, Who::Loop, Who::Lsyncd, Who::Tuned, Who::Hand];

/// How file synchronisation is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Sync {
    /// Only these rows
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    subjects: Vec<Who>,
    /// Files of the trees, ten in a directory
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 20_000, 200_000])]
    sizes: Vec<usize>,
    /// What takes longer is not waited for, in seconds; half of it for the loop
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// Renew the table in docs/benchmarks.md
    #[arg(long)]
    save: bool,
}

/// Measures everything that is wanted, and gives the table.
pub fn sync(lab: &Lab, wanted: &Sync) -> Result<String, LabError> {
    let mut sizes = wanted.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    lab.up(&Options::default())?;
    lab.make_whole(NodeName::Node1, Duration::from_secs(60))?;
    let watches = Watches::for_files(sizes.last().copied().unwrap_or(0))?;
    let measured = subject::furnish(lab)
        .and_then(|()| subject::hush_checks())
        .and_then(|()| Bench::new(lab, wanted, &sizes)?.measure());
    // In any case, and all of it.
    let cleared = subject::clear(lab)
        .and(subject::restore_checks())
        .and(watches.restore());
    let table = measured?;
    cleared?;
    Ok(table)
}

struct Bench<'a> {
    lab: &'a Lab,
    wanted: &'a Sync,
    sizes: &'a [usize],
    who: Vec<Who>,
    deletions: Deletions,
    table: Table,
}

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab, wanted: &'a Sync, sizes: &'a [usize]) -> Result<Self, LabError> {
        let mut who = Vec::new();
        for one in ALL {
            if !wanted.subjects.is_empty() && !wanted.subjects.contains(&one) {
                continue;
            }
            match one.subject().map(|s| s.missing(lab)).transpose()?.flatten() {
                Some(why) => tell(&format!("{} is left out: {why}", one.name())),
                None => who.push(one),
            }
        }
        Ok(Self {
            lab,
            wanted,
            sizes,
            who,
            deletions: Deletions::default(),
            table: Table::new(ALL.map(Who::name).to_vec()),
        })
    }

    fn measure(mut self) -> Result<String, LabError> {
        // Each alone: also what is not measured now does not run beside what is.
        for who in ALL {
            if let Some(subject) = who.subject()
                && subject.missing(self.lab)?.is_none()
            {
                subject.stop(self.lab)?;
            }
        }
        let outcome = self.every_size();
        let removed = self.remove_trees();
        if Ours.missing(self.lab)?.is_none() {
            Ours.prepare(self.lab)?;
            Ours.start(self.lab)?;
        }
        outcome.and(removed)?;
        self.text()
    }

    fn every_size(&mut self) -> Result<(), LabError> {
        for files in self.sizes {
            self.plant(*files)?;
            for who in self.who.clone() {
                let start = Instant::now();
                match who.subject() {
                    Some(subject) => self.subject(who, subject, *files)?,
                    None => self.by_hand(*files)?,
                }
                let (name, took) = (who.name(), start.elapsed());
                tell(&format!("{name}, tree of {files}: done in {took:.0?}"));
                // A long benchmark that is broken off keeps what it has.
                if self.wanted.save {
                    save("sync", &self.text()?)?;
                }
            }
        }
        Ok(())
    }

    /// The trees that are needed, each with the user that its files belong to.
    fn trees(&self) -> BTreeMap<&'static str, &'static str> {
        self.who
            .iter()
            .map(|who| {
                who.subject()
                    .map_or((TREE, "root"), |s| (s.tree(), s.owner()))
            })
            .collect()
    }

    fn plant(&self, files: usize) -> Result<(), LabError> {
        let start = Instant::now();
        for (tree, owner) in self.trees() {
            let owner = crate::provision::user_ids(&NodeName::Node1.root(), owner)?;
            std::thread::scope(|scope| {
                let planters = NodeName::ALL.map(|node| {
                    let base = on_host(node, tree).join(PLANTED);
                    scope.spawn(move || tree::plant(&base, files, owner))
                });
                planters.into_iter().try_for_each(|planter| {
                    planter
                        .join()
                        .map_err(|_| LabError::Unfit("planting a tree failed".to_owned()))?
                })
            })?;
        }
        tell(&format!("{files} files planted in {:.0?}", start.elapsed()));
        Ok(())
    }

    fn remove_trees(&self) -> Result<(), LabError> {
        for (tree, _) in self.trees() {
            for node in NodeName::ALL {
                tree::remove(&on_host(node, tree).join(PLANTED))?;
            }
        }
        Ok(())
    }

    /// The rows of one tree.
    fn rows(&self, files: usize) -> Vec<Row> {
        <Row as clap::ValueEnum>::value_variants()
            .iter()
            .copied()
            .filter(|row| self.wanted.rows.is_empty() || self.wanted.rows.contains(row))
            .filter(|row| row.fits(files, self.sizes))
            .collect()
    }

    fn subject(
        &mut self,
        who: Who,
        subject: &'static dyn Subject,
        files: usize,
    ) -> Result<(), LabError> {
        let rows = self.rows(files);
        let limit = Duration::from_secs(self.wanted.limit);
        // Apart from the table, which is written to meanwhile.
        let deletions = std::mem::take(&mut self.deletions);
        let mut run = Run::new(self.lab, subject, &deletions, files, limit);
        let mut well = false;
        for row in rows {
            if !well && !matches!(run.begin(), Ok(true)) {
                tell(&format!("{}: does not start", subject.name()));
                break;
            }
            // One that fails does not spoil what the others show.
            match run.row(row) {
                Ok(figures) => {
                    well = !figures.iter().any(|(_, f)| matches!(f, Figure::Late(_)));
                    self.enter(who, figures);
                }
                Err(error) => {
                    tell(&format!("{}, {row:?}: {error}", subject.name()));
                    well = false;
                }
            }
        }
        run.end()?;
        self.deletions = deletions;
        self.check_roles()
    }

    /// Nothing was measured if another node has become the active one.
    fn check_roles(&self) -> Result<(), LabError> {
        self.lab.settled(NodeName::Node1, Duration::from_secs(60))
    }

    fn by_hand(&mut self, files: usize) -> Result<(), LabError> {
        for row in self.rows(files) {
            let figures = match row {
                Row::File => hand::file(self.lab, files)?,
                Row::Burst => hand::burst(self.lab, &self.deletions)?,
                Row::Empty => hand::empty(self.lab, &self.deletions)?,
                Row::Renamed | Row::Large | Row::Outage | Row::Start | Row::Memory => continue,
            };
            self.enter(Who::Hand, figures);
        }
        let base = |node| on_host(node, TREE).join(PLANTED);
        tree::equalise(&base(NodeName::Node1), &base(NodeName::Node2))
    }

    fn enter(&mut self, who: Who, figures: Figures) {
        let column = ALL.iter().position(|one| *one == who).unwrap_or(0);
        for (line, figure) in figures {
            tell(&format!("{}: {line:?} {figure:?}", who.name()));
            self.table.set(line, column, figure);
        }
    }

    fn text(&self) -> Result<String, LabError> {
        Ok(format!(
            "From node1 to node2, on {}. A clock starts with the first call of a change and stops when node2 has \
             all of it; it looks every 0.2 ms. Worst is of 20. CPU on node1 is that of the subject's unit with its \
             children, on node2 that of incoming ssh, less what that takes when idle. By hand: one rsync over a \
             connection that is open. \
             What was not done after the limit is shown as > limit. The ratio counts both parts of a sum.\n\n{}",
            machine()?,
            self.table.markdown()
        ))
    }
}

/// The kernel's limit of watches: all nodes share the host's.
struct Watches {
    before: Option<String>,
}

const WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

impl Watches {
    /// Raises the limit when it is too low for trees of so many files.
    fn for_files(files: usize) -> Result<Self, LabError> {
        let path = Path::new(WATCHES);
        let before = fs::read_to_string(path).map_err(at(path))?;
        // Four trees, ten files in a directory, and room for what else is watched.
        let needed = 4 * files / 10 + 50_000;
        if before.trim().parse::<usize>().is_ok_and(|n| n >= needed) {
            return Ok(Self { before: None });
        }
        fs::write(path, needed.to_string()).map_err(at(path))?;
        Ok(Self {
            before: Some(before),
        })
    }

    fn restore(self) -> Result<(), LabError> {
        match self.before {
            Some(before) => fs::write(WATCHES, before.trim()).map_err(at(WATCHES)),
            None => Ok(()),
        }
    }
}
