//! The lab: two real Debian nodes and a client on one machine, each in namespaces of its own.
//!
//! Used by the cluster tests, by `scripts/lab` and by the demo. It ends only what it started.

pub mod bench;
pub mod browser;
mod cluster;
pub mod demo;
pub mod event;
mod image;
pub mod messenger;
pub mod mirror;
mod network;
mod node;
mod open_session;
mod provision;
mod release_before;
pub mod tree;
pub mod trial;
mod turn;
pub mod web;
pub mod web_load;
pub mod writer;

use std::path::PathBuf;
use std::time::Duration;

pub use cluster::{Lab, Options, Roles};
pub use image::{Suite, image};
pub use messenger::Messenger;
pub use network::Side;
pub use node::{NodeName, become_node, wait_until};
pub use open_session::OpenSession;
pub use process::Output;
pub use release_before::release_before;
pub use turn::Turn;
pub use writer::{Report, Writer};

/// Where images are kept between runs.
const CACHE: &str = "/var/cache/keepalived-companion-lab";
/// Where the live nodes are.
const LIVE: &str = "/var/lib/keepalived-companion-lab";
/// The virtual IP.
pub const VIP: &str = "192.168.100.200";

/// Why the lab did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program failed.
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    /// A file could not be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}: {state}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
        /// What was seen last.
        state: String,
    },
    /// The machine cannot run the lab.
    #[error("{0}")]
    Unfit(String),
    /// What must never happen did.
    #[error("{0}")]
    Unsafe(String),
    /// The node is not running.
    #[error("{0} is not running; scripts/lab power-on {0}")]
    Off(NodeName),
}

/// Attaches the path to an I/O error.
fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> LabError {
    let path = path.into();
    move |source| LabError::Io { path, source }
}

/// Tells progress on standard error.
#[expect(clippy::print_stderr, reason = "progress for a person")]
fn tell(text: &str) {
    eprintln!("lab: {text}");
}
