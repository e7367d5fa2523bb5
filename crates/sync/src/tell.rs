//! What is logged: a line for each batch, in the original's file and in the journal.

use settings::Settings;

/// A line in the log.
pub fn log(settings: &Settings, text: &str) {
    alerts::log_line(&settings.sync.log, text);
}
