//! `maintenance on --for 30m` and `off`: stops repairs and automatic changes, expires by itself.

use clap::{Parser, Subcommand};
use nodefiles::FileError;
use nodefiles::maintenance::{self, Maintenance};
use settings::Settings;
use std::time::Duration;

use crate::cli::{Common, Exit, answer};
use crate::tell;
use alerts::Severity;

#[derive(Debug, Parser)]
#[command(
    name = "maintenance",
    version,
    about = "Stops repairs and automatic role changes on this node for a while; fencing stays on",
    after_help = "Examples:\n  maintenance on --for 30m\n  maintenance status\n  maintenance off"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Verb {
    /// Begin, or set a new end
    On {
        /// How long, such as 90s, 30m or 2h; at most 24h
        #[arg(long = "for", value_parser = duration)]
        time: Duration,
    },
    /// End
    Off,
    /// Say until when
    Status,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => {
            return Err(format!(
                "`{text}`: expected a number with s, m or h, such as 30m"
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(seconds))
        .filter(|s| (1..=maintenance::LONGEST.as_secs()).contains(s))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("`{text}`: expected between 1s and 24h"))
}

/// Entry point of `maintenance`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let done = match arguments.verb.unwrap_or(Verb::Status) {
        Verb::On { time } => begin(&settings, time),
        Verb::Off => end(&settings),
        Verb::Status => status(&settings),
    };
    match done {
        Ok(text) => {
            answer(&text);
            Exit::Done
        }
        Err(error) => {
            log::error!("{error}");
            Exit::Undone
        }
    }
}

fn begin(settings: &Settings, time: Duration) -> Result<String, FileError> {
    let until = jiff::Timestamp::now() + time;
    maintenance::file(settings).replace(&Maintenance {
        until: until.as_duration().as_secs_f64(),
    })?;
    let line = format!(
        "maintenance until {until}: no repairs and no automatic role change on this node; fencing stays on, and promote by hand works"
    );
    tell::alert(settings, "maintenance", Severity::Warning, &line);
    Ok(line)
}

fn end(settings: &Settings) -> Result<String, FileError> {
    if !maintenance::file(settings).remove()? {
        return Ok("maintenance was not on".to_owned());
    }
    let line = "maintenance is over";
    tell::alert(settings, "maintenance", Severity::Info, line);
    Ok(line.to_owned())
}

fn status(settings: &Settings) -> Result<String, FileError> {
    let until = match maintenance::file(settings).read() {
        Ok(None) => return Ok("off".to_owned()),
        Ok(Some(flag)) => moment(flag.until),
        Err(FileError::Damaged { .. }) => None,
        Err(error @ FileError::Io { .. }) => return Err(error),
    };
    Ok(match until {
        Some(until) if until > jiff::Timestamp::now() => format!("on until {until}"),
        Some(until) => format!("off (expired {until})"),
        None => "on: the flag is damaged and counts as on; end it with: maintenance off".to_owned(),
    })
}

/// Whole seconds since 1970 as a moment; none where there is no such one.
fn moment(seconds: f64) -> Option<jiff::Timestamp> {
    let since_1970 = Duration::try_from_secs_f64(seconds.floor()).ok()?;
    jiff::Timestamp::from_duration(since_1970.try_into().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_an_end() {
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        for bad in ["30", "m", "0s", "25h", "-5m", "1d", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flag_is_told_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let status = || status(&settings).unwrap();
        assert_eq!(status(), "off");
        begin(&settings, Duration::from_secs(60)).unwrap();
        assert!(maintenance::forbids(&settings).is_some());
        assert!(status().starts_with("on until 2"), "{}", status());
        let file = directory.path().join("maintenance.json");
        for (text, told) in [
            (
                r#"{"until":1700000000}"#,
                "off (expired 2023-11-14T22:13:20Z)",
            ),
            (r#"{"until":9e99}"#, "damaged"),
            ("{}", "damaged"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(status().contains(told), "{text}: {}", status());
        }
        end(&settings).unwrap();
        assert_eq!(status(), "off");
        assert_eq!(end(&settings).unwrap(), "maintenance was not on");
    }
}
