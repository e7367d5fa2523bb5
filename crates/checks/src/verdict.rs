//! What a check says, and how it is said to Keepalived, to Nagios and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// Healthy.
    Ok,
    /// Not healthy, and the VIP stays all the same: the reason says why.
    Degraded,
    /// Not healthy.
    Failed,
    /// It could not be judged, which is not healthy either.
    Unjudged,
}

impl Level {
    /// Keepalived's exit status.
    pub fn keepalived(self) -> u8 {
        match self {
            Self::Ok | Self::Degraded => 0,
            Self::Failed | Self::Unjudged => 1,
        }
    }

    /// The exit status and word of a Nagios plugin.
    pub fn nagios(self) -> (u8, &'static str) {
        match self {
            Self::Ok => (0, "OK"),
            Self::Degraded => (1, "WARNING"),
            Self::Failed => (2, "CRITICAL"),
            Self::Unjudged => (3, "UNKNOWN"),
        }
    }

    /// The word in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "healthy",
            Self::Degraded => "degraded",
            Self::Failed | Self::Unjudged => "failed",
        }
    }

    /// Whether going from one to the other is worth a line in the log. `Failed` and `Unjudged`
    /// may alternate run by run (a server that hangs now and then) and mean the same to Keepalived.
    pub fn differs(self, other: Self) -> bool {
        self.word() != other.word()
    }
}

/// A level with its reason and its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// How it ended.
    pub level: Level,
    /// Why, for a person.
    pub reason: String,
    /// Measured times.
    #[serde(default)]
    pub times: Vec<Timing>,
    /// Figures of the service itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
}

/// One measured time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// What was measured; no quotes and no `=`, because it becomes a Nagios label.
    pub label: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// From here on it is a failure, in seconds.
    pub limit_seconds: f64,
}

impl Timing {
    /// A measured time and its limit.
    pub fn new(label: &str, took: Duration, limit: Duration) -> Self {
        Self {
            label: label.to_owned(),
            seconds: took.as_secs_f64(),
            limit_seconds: limit.as_secs_f64(),
        }
    }
}

/// A figure of the service itself; none of them is judged by its height alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    /// What it is a figure of; no quotes and no `=`, because it becomes a Nagios label.
    pub label: String,
    /// How much.
    #[serde(flatten)]
    pub quantity: Quantity,
}

/// A number with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Quantity {
    /// So many.
    Count(u64),
    /// So many bytes.
    Bytes(u64),
    /// So long.
    Seconds(f64),
}

impl Measure {
    /// A figure.
    pub fn new(label: &str, quantity: Quantity) -> Self {
        Self {
            label: label.to_owned(),
            quantity,
        }
    }
}

impl Verdict {
    /// Healthy.
    pub fn ok(reason: impl Into<String>) -> Self {
        Self::new(Level::Ok, reason)
    }

    /// Not healthy, but the VIP stays.
    pub fn degraded(reason: impl Into<String>) -> Self {
        Self::new(Level::Degraded, reason)
    }

    /// With a concern that is no reason to let go of the VIP.
    pub fn but(self, concern: &str) -> Self {
        Self {
            level: if self.level == Level::Ok {
                Level::Degraded
            } else {
                self.level
            },
            reason: format!("{}; {concern}", self.reason),
            ..self
        }
    }

    /// Not healthy.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::new(Level::Failed, reason)
    }

    /// Not to be judged.
    pub fn unjudged(reason: impl Into<String>) -> Self {
        Self::new(Level::Unjudged, reason)
    }

    fn new(level: Level, reason: impl Into<String>) -> Self {
        // One verdict is one line, whatever an error message of a server holds.
        let reason: String = reason.into();
        Self {
            level,
            reason: reason.split_whitespace().collect::<Vec<_>>().join(" "),
            times: Vec::new(),
            measures: Vec::new(),
        }
    }

    /// With a mistake in the settings nothing is in order: what is well by the last valid ones is a warning.
    pub fn with_mistake(self, mistake: Option<&str>) -> Self {
        let Some(mistake) = mistake else {
            return self;
        };
        let level = match self.level {
            Level::Ok => Level::Degraded,
            Level::Degraded | Level::Failed | Level::Unjudged => self.level,
        };
        Self {
            level,
            reason: format!(
                "{}; judged by the last valid settings: {mistake}",
                self.reason
            ),
            ..self
        }
    }

    /// Adds a measured time.
    pub fn with_time(mut self, timing: Timing) -> Self {
        self.times.push(timing);
        self
    }

    /// Adds figures.
    pub fn with_measures(mut self, measures: impl IntoIterator<Item = Measure>) -> Self {
        self.measures.extend(measures);
        self
    }

    /// One line as Nagios wants it: `WORD - reason | 'label'=v[UOM];warn;crit;min;max`.
    pub fn nagios_line(&self) -> String {
        let (_, word) = self.level.nagios();
        // `|` starts the performance data.
        let mut line = format!("{word} - {}", self.reason.replace('|', "/"));
        if !(self.times.is_empty() && self.measures.is_empty()) {
            line.push_str(" |");
        }
        for time in &self.times {
            // Writing to a String cannot fail.
            let _ = write!(
                line,
                " '{}'={:.6}s;;{:.3};0;",
                time.label, time.seconds, time.limit_seconds
            );
        }
        for Measure { label, quantity } in &self.measures {
            let _ = match quantity {
                Quantity::Count(count) => write!(line, " '{label}'={count};;;0;"),
                Quantity::Bytes(bytes) => write!(line, " '{label}'={bytes}B;;;0;"),
                Quantity::Seconds(seconds) => write!(line, " '{label}'={seconds:.6}s;;;0;"),
            };
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [Level; 4] = [Level::Ok, Level::Degraded, Level::Failed, Level::Unjudged];

    #[test]
    fn exit_statuses() {
        assert_eq!(LEVELS.map(Level::keepalived), [0, 0, 1, 1]);
        assert_eq!(LEVELS.map(|l| l.nagios().0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_mistake_in_the_settings_is_a_warning_and_never_more() {
        let judged = LEVELS.map(|level| {
            let verdict = Verdict::new(level, "so").with_mistake(Some("companion.toml:3: no"));
            assert!(verdict.reason.starts_with("so; ") && verdict.reason.ends_with(":3: no"));
            verdict.level
        });
        assert_eq!(
            judged,
            [
                Level::Degraded,
                Level::Degraded,
                Level::Failed,
                Level::Unjudged
            ]
        );
        assert_eq!(Verdict::ok("so").with_mistake(None), Verdict::ok("so"));
    }

    #[test]
    fn only_a_change_for_the_operator_differs() {
        assert!(Level::Ok.differs(Level::Degraded));
        assert!(Level::Degraded.differs(Level::Failed));
        assert!(Level::Ok.differs(Level::Unjudged));
        assert!(!Level::Failed.differs(Level::Unjudged));
        assert!(LEVELS.iter().all(|l| !l.differs(*l)));
    }

    #[test]
    fn the_nagios_line_has_performance_data() {
        let verdict = Verdict::failed("a|b\nc").with_time(Timing::new(
            "time",
            Duration::from_millis(12),
            Duration::from_millis(700),
        ));
        assert_eq!(
            verdict.nagios_line(),
            "CRITICAL - a/b c | 'time'=0.012000s;;0.700;0;"
        );
        assert_eq!(Verdict::ok("fine").nagios_line(), "OK - fine");
    }

    #[test]
    fn figures_have_their_units() {
        let verdict = Verdict::ok("fine").with_measures([
            Measure::new("paths", Quantity::Count(3)),
            Measure::new("bytes", Quantity::Bytes(4096)),
            Measure::new("oldest", Quantity::Seconds(0.25)),
        ]);
        assert_eq!(
            verdict.nagios_line(),
            "OK - fine | 'paths'=3;;;0; 'bytes'=4096B;;;0; 'oldest'=0.250000s;;;0;"
        );
        let text = serde_json::to_string(&verdict).unwrap();
        assert!(text.contains(r#"{"label":"bytes","bytes":4096}"#), "{text}");
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
    }

    #[test]
    fn a_verdict_without_figures_looks_as_before() {
        assert_eq!(
            serde_json::to_string(&Verdict::ok("fine")).unwrap(),
            r#"{"level":"ok","reason":"fine","times":[]}"#
        );
    }
}
