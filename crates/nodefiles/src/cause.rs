//! `cause.json` and its like in the run directory: what the audit alerted last, so that one cause is told once.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// What a cause keeps from being as it should; each has its own file, since they come and go apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The roles: `cause.json`.
    Role,
    /// The settings file: `cause-settings.json`.
    Settings,
    /// The files of this node: `cause-files.json`.
    Files,
    /// The windows of this node and its primary: `cause-window.json`.
    Window,
    /// The database's scheduled events: `cause-events.json`.
    Events,
}

/// A cause; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Its text.
    pub cause: String,
    /// Since when, or when it was alerted again, in seconds since boot.
    pub since: f64,
    /// Whether it was alerted.
    pub alerted: bool,
}

/// The file.
pub fn file(settings: &Settings, topic: Topic) -> JsonFile<Cause> {
    let name = match topic {
        Topic::Role => "cause.json",
        Topic::Settings => "cause-settings.json",
        Topic::Files => "cause-files.json",
        Topic::Window => "cause-window.json",
        Topic::Events => "cause-events.json",
    };
    JsonFile::volatile(settings.paths.run.join(name), 1).or_in(&settings.paths.state)
}

/// What was alerted last. A damaged file begins anew, as after a boot.
pub fn read(settings: &Settings, topic: Topic) -> Cause {
    file(settings, topic)
        .read()
        .ok()
        .flatten()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let cause = Cause {
            cause: "no primary".to_owned(),
            since: 12.5,
            alerted: true,
        };
        crate::testing::assert_form(
            &|settings| file(settings, Topic::Role),
            &cause,
            r#"{"version":1,"cause":"no primary","since":12.5,"alerted":true}"#,
            &[r#"{"cause":"no primary","since":12.5,"alerted":true}"#],
        );
    }
}
