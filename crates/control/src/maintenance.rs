//! `maintenance on --for 30m` and `off`: stops repairs and automatic changes, expires by itself.

use clap::{Parser, Subcommand};
use observe::maintenance_file;
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
        .filter(|s| (1..=86_400).contains(s))
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
            log::error!("{}: {error}", maintenance_file(&settings).display());
            Exit::Undone
        }
    }
}

fn begin(settings: &Settings, time: Duration) -> std::io::Result<String> {
    let until = jiff::Timestamp::now() + time;
    let text = serde_json::json!({"until": until.as_second()}).to_string();
    let temporary = maintenance_file(settings).with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, maintenance_file(settings))?;
    let line = format!(
        "maintenance until {until}: no repairs and no automatic role change on this node; fencing stays on, and promote by hand works"
    );
    tell::alert(settings, "maintenance", Severity::Warning, &line);
    Ok(line)
}

fn end(settings: &Settings) -> std::io::Result<String> {
    match std::fs::remove_file(maintenance_file(settings)) {
        Ok(()) => {
            let line = "maintenance is over";
            tell::alert(settings, "maintenance", Severity::Info, line);
            Ok(line.to_owned())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok("maintenance was not on".to_owned())
        }
        Err(error) => Err(error),
    }
}

fn status(settings: &Settings) -> std::io::Result<String> {
    match std::fs::read_to_string(maintenance_file(settings)) {
        Ok(text) => {
            let until = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|v| v.get("until")?.as_i64())
                .and_then(|s| jiff::Timestamp::from_second(s).ok());
            Ok(match until {
                Some(until) if until > jiff::Timestamp::now() => format!("on until {until}"),
                Some(until) => format!("off (expired {until})"),
                None => "on: the flag is damaged and counts as on; end it with: maintenance off"
                    .to_owned(),
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("off".to_owned()),
        Err(error) => Err(error),
    }
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
}
