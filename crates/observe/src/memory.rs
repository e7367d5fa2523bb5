//! What a node remembers of its peers: for this boot in the run directory, for ever in the
//! state directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use role::{LastPrimary, Observation};
use serde::{Deserialize, Serialize};
use settings::Settings;
use statefile::{Durability, StateFileError, replace};

const BOOT_FILE: &str = "met.json";
const EPOCH_FILE: &str = "highest-epoch";
const GRANT_FILE: &str = "granted-to";

/// A memory that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// A file is damaged.
    #[error(
        "{path}: damaged ({detail}); it holds the highest epoch or a grant. Read it, and remove it only when the peer's data are known to be older"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

/// What this node knows from before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Peers that answered in this boot, and the primary's last state.
    pub boot: BootMemory,
    /// The highest epoch ever seen.
    pub highest_epoch: u64,
    /// The node that was granted the right to write.
    pub granted_to: Option<String>,
}

/// What is true only until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMemory {
    /// By peer name.
    pub peers: BTreeMap<String, Option<LastPrimary>>,
    /// This node was the primary in this boot.
    pub was_primary: bool,
}

impl Memory {
    /// Reads what is remembered. A missing file is an empty memory; a damaged durable one is an
    /// error, because guessing an epoch could open old data.
    pub fn load(settings: &Settings) -> Result<Self, MemoryError> {
        let boot_path = settings.paths.run.join(BOOT_FILE);
        let boot = match read(&boot_path)? {
            // It is rebuilt within a tick, and an empty one only makes the node more careful.
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => BootMemory::default(),
        };
        let epoch_path = settings.paths.state.join(EPOCH_FILE);
        let highest_epoch = match read(&epoch_path)? {
            Some(text) => text.trim().parse().map_err(|_| MemoryError::Damaged {
                path: epoch_path,
                detail: format!("`{}` is not a number", text.trim()),
            })?,
            None => 0,
        };
        let granted_to = read(&settings.paths.state.join(GRANT_FILE))?
            .map(|text| text.trim().to_owned())
            .filter(|name| !name.is_empty());
        Ok(Self {
            boot,
            highest_epoch,
            granted_to,
        })
    }

    /// Takes in what was seen and writes down what changed.
    pub fn learn(&mut self, settings: &Settings, seen: &Observation) -> Result<(), MemoryError> {
        let mut boot = self.boot.clone();
        let mut highest = self.highest_epoch;
        if let Some(server) = seen.local.database.server() {
            highest = highest.max(server.epoch_number());
            boot.was_primary |= server.writable;
        }
        for peer in &seen.peers {
            if let Some(server) = peer.server() {
                highest = highest.max(server.epoch_number());
                let last = boot.peers.entry(peer.name.clone()).or_default();
                *last = server.writable.then(|| LastPrimary {
                    history: server.history(),
                    semi_sync: server.semi_sync.active,
                });
            }
        }
        self.saw_epoch(settings, highest)?;
        if boot != self.boot {
            self.boot = boot;
            let text = serde_json::to_string(&self.boot).unwrap_or_default();
            write(
                &settings.paths.run.join(BOOT_FILE),
                &text,
                Durability::Visible,
            )?;
        }
        Ok(())
    }

    /// Takes in an epoch that this node has just written.
    pub fn saw_epoch(&mut self, settings: &Settings, epoch: u64) -> Result<(), MemoryError> {
        if epoch > self.highest_epoch {
            let path = settings.paths.state.join(EPOCH_FILE);
            write(&path, &epoch.to_string(), Durability::OnDisk)?;
            self.highest_epoch = epoch;
        }
        Ok(())
    }

    /// Writes down that the right to write went to another node, or came back.
    pub fn grant(&mut self, settings: &Settings, to: Option<&str>) -> Result<(), MemoryError> {
        let path = settings.paths.state.join(GRANT_FILE);
        write(&path, to.unwrap_or_default(), Durability::OnDisk)?;
        self.granted_to = to.map(str::to_owned);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>, MemoryError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MemoryError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn write(path: &Path, text: &str, durability: Durability) -> Result<(), MemoryError> {
    Ok(replace(path, 0o600, text.as_bytes(), durability)?)
}
