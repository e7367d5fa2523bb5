//! `resident.json` in the run directory: the resident program lives. The audit looks at it.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// Its last sign of life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resident {
    /// When, in seconds since boot.
    pub at: f64,
    /// The boot that this counts from.
    pub boot_id: String,
    /// The window W that it goes by, in ms.
    pub window_ms: u64,
}

/// The file.
pub fn file(settings: &Settings) -> JsonFile<Resident> {
    JsonFile::volatile(settings.paths.run.join("resident.json"), 1)
}

/// The window that the resident program of this boot goes by, or went by last, in ms.
pub fn window_ms(settings: &Settings, boot_id: &str) -> Option<u64> {
    let sign = file(settings).read().ok().flatten()?;
    (sign.boot_id == boot_id).then_some(sign.window_ms)
}
