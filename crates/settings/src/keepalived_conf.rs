//! What Keepalived's own configuration says of its timing. Only read: Keepalived keeps VRRP.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Settings;

/// The timing of a VRRP instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VrrpTiming {
    /// `advert_int`; Keepalived's default is one second.
    pub advert_interval: Duration,
    /// The lowest `priority` of the instance, on whatever node; Keepalived's default is 100.
    pub lowest_priority: u8,
}

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum KeepalivedConfError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It has no such instance.
    #[error("{path}: no `vrrp_instance {instance}`; an included file is not looked into")]
    NoInstance {
        /// The file.
        path: PathBuf,
        /// `cluster.vrrp_instance`
        instance: String,
    },
    /// A value is not one.
    #[error("{path}:{line}: `{text}` is not a usable value")]
    Value {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The line's text.
        text: String,
    },
}

/// Reads the timing of the settings' VRRP instance from the settings' `paths.keepalived_conf`.
pub fn vrrp_timing(settings: &Settings) -> Result<VrrpTiming, KeepalivedConfError> {
    let path = &settings.paths.keepalived_conf;
    let bytes = fs::read(path).map_err(|source| KeepalivedConfError::Io {
        path: path.clone(),
        source,
    })?;
    // Only keywords and numbers are looked for: a comment may be in any encoding.
    parse(
        path,
        &String::from_utf8_lossy(&bytes),
        &settings.cluster.vrrp_instance,
    )
}

fn parse(path: &Path, text: &str, instance: &str) -> Result<VrrpTiming, KeepalivedConfError> {
    let mut depth = 0_usize;
    let mut inside = None;
    let mut found = false;
    let mut timing = VrrpTiming {
        advert_interval: Duration::from_secs(1),
        lowest_priority: 100,
    };
    let mut lowest: Option<u8> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.split(['#', '!']).next().unwrap_or_default();
        let mut words = line.split_whitespace().peekable();
        // `@node1 priority 230`: a line for one node.
        if words.peek().is_some_and(|word| word.starts_with('@')) {
            words.next();
        }
        let words: Vec<&str> = words.collect();
        let bad = || KeepalivedConfError::Value {
            path: path.to_owned(),
            line: index + 1,
            text: line.trim().to_owned(),
        };
        match words.as_slice() {
            ["vrrp_instance", name, ..] if name.trim_end_matches('{') == instance => {
                inside = Some(depth);
                found = true;
            }
            ["advert_int", value, ..] if inside.is_some() => {
                timing.advert_interval = value
                    .parse::<f64>()
                    .ok()
                    .filter(|seconds| *seconds > 0.0)
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                    .ok_or_else(bad)?;
            }
            ["priority", value, ..] if inside.is_some_and(|at| depth == at + 1) => {
                let value = value.parse::<u8>().map_err(|_| bad())?;
                lowest = Some(lowest.map_or(value, |lowest| lowest.min(value)));
            }
            _ => {}
        }
        for brace in line.chars() {
            match brace {
                '{' => depth += 1,
                '}' => {
                    depth = depth.saturating_sub(1);
                    if inside == Some(depth) {
                        inside = None;
                    }
                }
                _ => {}
            }
        }
    }
    if !found {
        return Err(KeepalivedConfError::NoInstance {
            path: path.to_owned(),
            instance: instance.to_owned(),
        });
    }
    timing.lowest_priority = lowest.unwrap_or(timing.lowest_priority);
    Ok(timing)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn of(text: &str) -> Result<(u128, u8), String> {
        parse(Path::new("keepalived.conf"), text, "VI_1")
            .map(|timing| (timing.advert_interval.as_millis(), timing.lowest_priority))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_shipped_file_and_an_original_one() {
        let shipped = include_str!("../../../keepalived/keepalived.conf");
        assert_eq!(of(shipped), Ok((1000, 220)));
        let fast = shipped.replace("advert_int 1\n", "advert_int 0.2\n");
        assert_eq!(of(&fast), Ok((200, 220)));
        let original = "vrrp_instance VI_0 { priority 1 }\nvrrp_instance VI_1 {\n  state MASTER\n  priority 100 # node1\n  \
                        unicast_peer {\n 10.0.0.1 priority 7\n}\n}\nvrrp_instance VI_2 {\n priority 3\n advert_int 9\n}\n";
        assert_eq!(of(original), Ok((1000, 100)));
        assert_eq!(of("vrrp_instance VI_1{\n}\n"), Ok((1000, 100)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(
            of("vrrp_instance VI_2 {\n}")
                .unwrap_err()
                .contains("no `vrrp_instance VI_1`")
        );
        for bad in ["advert_int soon", "advert_int 0", "priority 300"] {
            let error = of(&format!("vrrp_instance VI_1 {{\n  {bad}\n}}")).unwrap_err();
            assert_eq!(
                error,
                format!("keepalived.conf:2: `{bad}` is not a usable value")
            );
        }
    }
}
