//! What is logged: a line for each batch, in the original's file and in the journal.

use std::fs::OpenOptions;
use std::io::Write;

use settings::Settings;

/// A line in the log.
pub fn log(settings: &Settings, text: &str) {
    let line = format!(
        "{} - {text}\n",
        jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S")
    );
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&settings.sync.log)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        log::error!("{}: {error}", settings.sync.log.display());
    }
    log::info!("{text}");
}
