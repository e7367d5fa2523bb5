//! Ctrl-C: noticed between two steps, so that what has begun is undone and nothing is left half done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::Exit;

/// Whether a person wants to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asked for by SIGINT, SIGTERM or SIGHUP from now on, which end the process no more.
    pub fn on_signals() -> Result<Self, Exit> {
        let cancel = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&cancel.0)).map_err(|error| {
                log::error!("signals: {error}");
                Exit::Undone
            })?;
        }
        Ok(cancel)
    }

    /// Whether it was asked for.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for it.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
