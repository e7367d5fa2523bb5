//! The table: one line for each figure, one column for each subject.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A line of the table, in its order. The numbers are files of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Median of single files, in ms.
    File(usize),
    /// The worst of them.
    FileWorst(usize),
    /// The median in the largest tree, by that in the smallest.
    Growth,
    /// Median of files that are renamed into place, in ms.
    Renamed,
    /// The worst of them.
    RenamedWorst,
    /// Seconds of many new files.
    Burst,
    /// CPU seconds of them.
    BurstCpu,
    /// Seconds of a directory's rename.
    Rename,
    /// Seconds of its deletion.
    Delete,
    /// Seconds of a small file beside a large one.
    Large,
    /// Seconds until it says that it is ready.
    Ready,
    /// Seconds until a change arrives after a start.
    Start(usize),
    /// MB while nothing changes.
    MemoryIdle(usize),
    /// MB at most while many files change.
    MemoryBurst(usize),
    /// Tries while node2 is out of reach.
    Tries,
    /// CPU seconds meanwhile.
    OutageCpu,
    /// Seconds from its return until it has everything.
    Recovery,
    /// Seconds of a start with an empty standby.
    Empty,
}

impl Line {
    /// What it says, what is good, and how many decimals are shown.
    fn describe(self) -> (String, &'static str, usize) {
        let (label, bar, decimals) = match self {
            Self::File(files) => {
                let label = format!("one file, tree of {}: p50 ms", count(files));
                return (label, "10, half of tuned lsyncd", 1);
            }
            Self::FileWorst(files) => {
                return (
                    format!("one file, tree of {}: worst ms", count(files)),
                    "50",
                    1,
                );
            }
            Self::Start(files) => {
                let label = format!("start, in sync, tree of {}: s", count(files));
                return (label, "5", 2);
            }
            Self::MemoryIdle(files) => {
                let label = format!("memory idle, tree of {}: MB + children", count(files));
                return (label, "12 + –", 1);
            }
            Self::MemoryBurst(files) => {
                let label = format!(
                    "– peak with 10,000 new files, tree of {}: MB + children",
                    count(files)
                );
                return (label, "24 + –", 1);
            }
            Self::Growth => (
                "one file: p50 in the largest tree / in the smallest",
                "1.5",
                2,
            ),
            Self::Renamed => ("one file, renamed into place: p50 ms", "–", 1),
            Self::RenamedWorst => ("one file, renamed into place: worst ms", "–", 1),
            Self::Burst => ("10,000 new small files: s", "5", 2),
            Self::BurstCpu => ("– CPU s, node1 + node2", "3", 2),
            Self::Rename => ("rename of their directory: s", "0.3", 2),
            Self::Delete => ("its deletion: s", "1", 2),
            Self::Large => ("a small file while 1 GiB is sent: s", "0.3", 2),
            Self::Ready => ("start, in sync: READY, watches stand: s", "2", 2),
            Self::Tries => ("outage of 60 s, 2,000 changes: tries", "10", 0),
            Self::OutageCpu => ("– CPU s on node1", "1", 2),
            Self::Recovery => ("– complete after its end: s", "2", 2),
            Self::Empty => ("start, standby empty: s", "–", 2),
        };
        (label.to_owned(), bar, decimals)
    }
}

/// 1000 as 1k.
fn count(files: usize) -> String {
    if files % 1000 == 0 {
        format!("{}k", files / 1000)
    } else {
        files.to_string()
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// A number.
    Value(f64),
    /// Two that are shown apart and compared together.
    Sum(f64, f64),
    /// Nothing within this limit.
    Late(f64),
    /// It could not be measured.
    Missing,
}

impl Figure {
    fn value(self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Sum(first, second) => Some(first + second),
            Self::Late(_) | Self::Missing => None,
        }
    }

    fn text(self, decimals: usize) -> String {
        match self {
            Self::Value(value) => format!("{value:.decimals$}"),
            Self::Sum(first, second) => format!("{first:.decimals$} + {second:.decimals$}"),
            Self::Late(limit) => format!("> {limit:.0}"),
            Self::Missing => "–".to_owned(),
        }
    }
}

/// All figures, by line and column.
#[derive(Debug)]
pub struct Table {
    columns: Vec<&'static str>,
    lines: BTreeMap<Line, Vec<Figure>>,
}

/// Ours is the first column, and what is done by hand the last; competitors are between them.
const OURS: usize = 0;

impl Table {
    /// An empty table.
    pub fn new(columns: Vec<&'static str>) -> Self {
        Self {
            columns,
            lines: BTreeMap::new(),
        }
    }

    /// Enters a figure.
    pub fn set(&mut self, line: Line, column: usize, figure: Figure) {
        let columns = self.columns.len();
        let figures = self
            .lines
            .entry(line)
            .or_insert_with(|| vec![Figure::Missing; columns]);
        if let Some(place) = figures.get_mut(column) {
            *place = figure;
        }
    }

    /// How the single file grows with the tree.
    fn growth(&self) -> Vec<Figure> {
        let singles: Vec<_> = self
            .lines
            .iter()
            .filter(|(line, _)| matches!(line, Line::File(_)))
            .map(|(_, figures)| figures)
            .collect();
        (0..self.columns.len())
            .map(|column| match (singles.first(), singles.last()) {
                (Some(small), Some(large)) if singles.len() > 1 => {
                    match (small[column].value(), large[column].value()) {
                        (Some(small), Some(large)) => Figure::Value(large / small),
                        _ => Figure::Missing,
                    }
                }
                _ => Figure::Missing,
            })
            .collect()
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| |");
        for name in &self.columns {
            let _ = write!(text, " {name} |");
        }
        text.push_str(" ours / best | bar |\n|---|");
        text.push_str(&"---|".repeat(self.columns.len() + 2));
        text.push('\n');
        let mut lines = self.lines.clone();
        let growth = self.growth();
        if growth.iter().any(|figure| figure.value().is_some()) {
            lines.insert(Line::Growth, growth);
        }
        for (line, figures) in &lines {
            let (label, bar, decimals) = line.describe();
            let _ = write!(text, "| {label} |");
            for figure in figures {
                let _ = write!(text, " {} |", figure.text(decimals));
            }
            let _ = writeln!(text, " {} | {bar} |", ratio(figures));
        }
        text
    }
}

/// Ours by the best of the competitors.
fn ratio(figures: &[Figure]) -> String {
    let best = figures[OURS + 1..figures.len() - 1]
        .iter()
        .filter_map(|figure| figure.value())
        .fold(f64::INFINITY, f64::min);
    match figures[OURS].value() {
        Some(ours) if best.is_finite() && best > 0.0 => format!("{:.2}", ours / best),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new(vec!["ours", "loop", "lsyncd", "by hand"])
    }

    #[test]
    fn ours_is_compared_with_the_best_competitor_that_finished() {
        let mut table = table();
        table.set(Line::Burst, 0, Figure::Value(2.0));
        table.set(Line::Burst, 1, Figure::Late(60.0));
        table.set(Line::Burst, 2, Figure::Value(8.0));
        table.set(Line::Burst, 3, Figure::Value(1.0));
        assert_eq!(
            table.markdown().lines().nth(2),
            Some("| 10,000 new small files: s | 2.00 | > 60 | 8.00 | 1.00 | 0.25 | 5 |")
        );
    }

    #[test]
    fn two_parts_are_shown_apart_and_compared_together() {
        let mut table = table();
        table.set(Line::BurstCpu, 0, Figure::Sum(1.0, 0.5));
        table.set(Line::BurstCpu, 2, Figure::Sum(2.0, 1.0));
        assert_eq!(
            table.markdown().lines().nth(2),
            Some("| – CPU s, node1 + node2 | 1.00 + 0.50 | – | 2.00 + 1.00 | – | 0.50 | 3 |")
        );
    }

    #[test]
    fn the_growth_is_that_of_the_largest_tree() {
        let mut table = table();
        for (files, ms) in [(1000, 4.0), (20_000, 5.0), (200_000, 6.0)] {
            table.set(Line::File(files), 0, Figure::Value(ms));
        }
        let text = table.markdown();
        let growth = text
            .lines()
            .find(|line| line.contains("largest"))
            .expect("a line of it");
        assert!(growth.contains("| 1.50 | – |"), "{growth}");
    }

    #[test]
    fn without_ours_there_is_no_ratio() {
        let mut table = table();
        table.set(Line::Tries, 1, Figure::Value(12.0));
        assert_eq!(
            table.markdown().lines().nth(2),
            Some("| outage of 60 s, 2,000 changes: tries | – | 12 | – | – | – | 10 |")
        );
    }
}
