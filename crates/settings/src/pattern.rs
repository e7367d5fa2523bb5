//! rsync's exclude patterns, as far as they decide which paths stay on their node.
//!
//! rsync itself does not apply them to a list of files (seen with 3.5.0: a listed file below an
//! excluded directory is sent, and a missing one that matches is deleted), so they are applied when a
//! change is noted.

use std::fmt::Write;

use regex::bytes::Regex;

/// The patterns of one tree.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    regex: Regex,
    directories_only: bool,
}

/// A pattern that rsync would not understand either.
#[derive(Debug, thiserror::Error)]
#[error("exclude pattern `{pattern}`: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: String,
}

impl Patterns {
    /// Reads the patterns.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        let rules = patterns
            .iter()
            .map(|pattern| {
                let (body, directories_only) = match pattern.strip_suffix("/***") {
                    Some(body) => (body, true),
                    None => match pattern.strip_suffix('/') {
                        Some(body) => (body, true),
                        None => (pattern.as_str(), false),
                    },
                };
                let (start, body) = match body.strip_prefix('/') {
                    Some(body) => ("^", body),
                    None => ("(?:^|/)", body),
                };
                let regex =
                    Regex::new(&format!("(?s-u){start}{}$", translate(body))).map_err(|error| {
                        PatternError {
                            pattern: pattern.clone(),
                            reason: error.to_string(),
                        }
                    })?;
                Ok(Rule {
                    regex,
                    directories_only,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Whether a path, relative to the root, stays on its node. What lies below an excluded directory
    /// is not asked: nobody looks there.
    pub fn exclude(&self, path: &[u8], is_directory: bool) -> bool {
        self.rules
            .iter()
            .any(|rule| (is_directory || !rule.directories_only) && rule.regex.is_match(path))
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// `*` and `?` stop at a slash, `**` does not; a class is taken as it stands.
fn translate(pattern: &str) -> String {
    let mut regex = String::new();
    let mut characters = pattern.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '*' if characters.peek() == Some(&'*') => {
                characters.next();
                regex.push_str(".*");
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => {
                regex.push('[');
                if let Some('!' | '^') = characters.peek() {
                    characters.next();
                    regex.push('^');
                }
                for inner in characters.by_ref() {
                    match inner {
                        ']' => break,
                        '\\' | '[' | '&' | '~' => {
                            regex.push('\\');
                            regex.push(inner);
                        }
                        other => regex.push(other),
                    }
                }
                regex.push(']');
            }
            '\\' => literal(&mut regex, characters.next().unwrap_or('\\')),
            other => literal(&mut regex, other),
        }
    }
    regex
}

fn literal(regex: &mut String, c: char) {
    let mut bytes = [0; 4];
    for byte in c.encode_utf8(&mut bytes).bytes() {
        // Writing to a String cannot fail.
        let _ = write!(regex, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_rsyncs() {
        for (pattern, path, directory, excluded) in [
            ("*.tmp", "a/b.tmp", false, true),
            ("*.tmp", "a/b.tmpx", false, false),
            ("/cache/", "cache", true, true),
            ("/cache/", "cache", false, false),
            ("/cache/", "a/cache", true, false),
            ("cache", "a/cache", false, true),
            ("/cache/***", "cache", true, true),
            ("a/b", "x/a/b", false, true),
            ("a/b", "x/ya/b", false, false),
            ("/a/*/c", "a/b/c", false, true),
            ("/a/*/c", "a/b/b/c", false, false),
            ("/a/**/c", "a/b/b/c", false, true),
            ("?.log", "x.log", false, true),
            ("[a-c].log", "b.log", false, true),
            ("[!a-c].log", "b.log", false, false),
            ("a.b", "aXb", false, false),
            ("ü*", "über", false, true),
            ("\\*", "*", false, true),
            ("\\*", "x", false, false),
        ] {
            let patterns = Patterns::new(&[pattern.to_owned()]).unwrap();
            assert_eq!(
                patterns.exclude(path.as_bytes(), directory),
                excluded,
                "{pattern} {path}"
            );
        }
        assert!(!Patterns::default().exclude(b"x", false));
    }

    #[test]
    fn names_that_are_not_text_are_matched() {
        let patterns = Patterns::new(&["*.tmp".to_owned()]).unwrap();
        assert!(patterns.exclude(b"\xff\n.tmp", false));
    }
}
