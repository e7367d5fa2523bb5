//! One table of the file: takes typed values out, and notes every problem instead of stopping.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Problem;

/// The problems found so far, with the text that gives their lines.
pub struct Problems<'a> {
    text: &'a str,
    found: RefCell<Vec<Problem>>,
}

impl<'a> Problems<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            found: RefCell::default(),
        }
    }

    /// Notes a problem at a place of the text, or of the file as a whole.
    pub fn note(&self, span: Option<Range<usize>>, key: &str, message: impl Into<String>) {
        let line = span.map(|s| {
            self.text[..s.start.min(self.text.len())]
                .matches('\n')
                .count()
                + 1
        });
        self.found.borrow_mut().push(Problem {
            line,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    pub fn into_sorted(self) -> Vec<Problem> {
        let mut all = self.found.into_inner();
        all.sort_by_key(|problem| problem.line);
        all
    }
}

/// A table with its dotted name.
pub struct Section<'a, 'i> {
    table: Option<&'a DeTable<'i>>,
    span: Option<Range<usize>>,
    name: String,
    problems: &'a Problems<'a>,
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'a, 'i> Section<'a, 'i> {
    pub fn root(table: &'a DeTable<'i>, problems: &'a Problems<'a>) -> Self {
        Self {
            table: Some(table),
            span: None,
            name: String::new(),
            problems,
            known: RefCell::default(),
        }
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.known.borrow_mut().insert(key);
        self.table.and_then(|table| table.get(key))
    }

    /// Notes a problem of one key of this section.
    pub fn note(&self, key: &'static str, message: impl Into<String>) {
        let span = self
            .get(key)
            .map(Spanned::span)
            .or_else(|| self.span.clone());
        self.problems.note(span, &self.key(key), message);
    }

    fn wrong_type(&self, key: &'static str, value: &DeValue<'_>, wanted: &str) {
        self.note(
            key,
            format!("expected {wanted}, found {}", value.type_str()),
        );
    }

    pub fn section(&self, key: &'static str) -> Section<'a, 'i> {
        let value = self.get(key);
        let table = value.and_then(|v| {
            let table = v.get_ref().as_table();
            if table.is_none() {
                self.wrong_type(key, v.get_ref(), &format!("a table [{key}]"));
            }
            table
        });
        Section {
            table,
            span: value.map(Spanned::span),
            name: self.key(key),
            problems: self.problems,
            known: RefCell::default(),
        }
    }

    pub fn sections(&self, key: &'static str) -> Vec<Section<'a, 'i>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(
                key,
                value.get_ref(),
                &format!("tables [[{}]]", self.key(key)),
            );
            return Vec::new();
        };
        array
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                let name = format!("{}[{}]", self.key(key), index + 1);
                match item.get_ref().as_table() {
                    Some(table) => Some(Section {
                        table: Some(table),
                        span: Some(item.span()),
                        name,
                        problems: self.problems,
                        known: RefCell::default(),
                    }),
                    None => {
                        self.problems
                            .note(Some(item.span()), &name, "expected a table");
                        None
                    }
                }
            })
            .collect()
    }

    pub fn optional_text(&self, key: &'static str) -> Option<String> {
        let value = self.get(key)?;
        match value.get_ref().as_str() {
            Some("") => {
                self.note(key, "must not be empty");
                None
            }
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong_type(key, value.get_ref(), "a string");
                None
            }
        }
    }

    pub fn text(&self, key: &'static str, default: &str) -> String {
        self.optional_text(key)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A key without a default.
    pub fn required_text(&self, key: &'static str) -> String {
        if self.get(key).is_none() {
            self.note(key, "is missing");
        }
        self.optional_text(key).unwrap_or_default()
    }

    /// A key whose text is parsed; `wanted` says what would be right. Without a default it is required.
    pub fn parsed<T: std::str::FromStr>(&self, key: &'static str, wanted: &str) -> Option<T> {
        if self.get(key).is_none() {
            self.note(key, format!("is missing: expected {wanted}"));
            return None;
        }
        let text = self.optional_text(key)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.note(key, format!("`{text}`: expected {wanted}"));
        }
        parsed
    }

    pub fn path(&self, key: &'static str, default: &str) -> std::path::PathBuf {
        let text = self.text(key, default);
        if !text.starts_with('/') {
            self.note(key, format!("`{text}`: expected an absolute path"));
        }
        text.into()
    }

    pub fn texts(&self, key: &'static str) -> Vec<String> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value.get_ref(), "a list of strings");
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| {
                let text = item.get_ref().as_str().map(str::to_owned);
                if text.is_none() {
                    self.wrong_type(key, item.get_ref(), "a list of strings");
                }
                text
            })
            .collect()
    }

    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value.get_ref(), "true or false");
            default
        })
    }

    pub fn number(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.get(key) else {
            return default;
        };
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value.get_ref(), "a whole number");
            return default;
        };
        match i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|n| u64::try_from(n).ok())
        {
            Some(number) if range.contains(&number) => number,
            _ => {
                self.note(
                    key,
                    format!(
                        "{integer}: expected a number from {} to {}",
                        range.start(),
                        range.end()
                    ),
                );
                default
            }
        }
    }

    pub fn small(&self, key: &'static str, default: u16, range: RangeInclusive<u16>) -> u16 {
        let number = self.number(
            key,
            default.into(),
            (*range.start()).into()..=(*range.end()).into(),
        );
        u16::try_from(number).unwrap_or(default)
    }

    pub fn milliseconds(
        &self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Duration {
        Duration::from_millis(self.number(key, default, range))
    }

    /// None when the key is not there.
    pub fn optional_milliseconds(
        &self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Duration> {
        let default = *range.start();
        self.get(key)
            .map(|_| self.milliseconds(key, default, range))
    }

    pub fn seconds(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.number(key, default, range))
    }

    /// Notes every key that nobody asked for.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if known.contains(name) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|k| (distance(k, name), *k))
                .min()
                .filter(|(d, _)| *d <= 3);
            let hint = match nearest {
                Some((_, k)) => format!("unknown key; did you mean `{k}`?"),
                None => format!(
                    "unknown key; known are: {}",
                    known.iter().copied().collect::<Vec<_>>().join(", ")
                ),
            };
            self.problems.note(Some(key.span()), &self.key(name), hint);
        }
    }
}

/// Levenshtein distance, for the hint at a mistyped key.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
