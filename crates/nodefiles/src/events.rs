//! `events.json` in the run directory: this node's server runs its scheduled events, as a primary does.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// The server that does; a new process of it does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// When its process was started, in seconds since boot.
    pub server_started: f64,
    /// The boot that this counts from.
    pub boot_id: String,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<Running> {
    JsonFile::volatile(settings.paths.run.join("events.json"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let running = Running {
            server_started: 12.5,
            boot_id: "b".to_owned(),
        };
        crate::testing::assert_form(
            &file,
            &running,
            r#"{"version":1,"server_started":12.5,"boot_id":"b"}"#,
            &[r#"{"server_started":12.5,"boot_id":"b"}"#],
        );
    }
}
