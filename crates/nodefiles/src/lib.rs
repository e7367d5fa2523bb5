//! The files by which the programs of a node know of each other: a module for each, with its path, its form, its
//! lock and its durability.
//!
//! A file is replaced at once by a rename, so that a reader sees the old or the new one whole, and it is on the
//! disk when that is asked for. What was left in a tree of somebody else's is opened without following a link.

mod json;
mod lock;
mod own;
mod read;
mod replace;
#[cfg(test)]
mod testing;

pub mod alone;
pub mod cause;
pub mod epoch;
pub mod events;
pub mod fitness;
pub mod grant;
pub mod hook_sequence;
pub mod journal;
pub mod maintenance;
pub mod memory;
pub mod met;
pub mod peers;
pub mod proof;
pub mod receive_lock;
pub mod recovered;
pub mod resident;
pub mod role_lock;
pub mod role_state;
pub mod sync_status;
pub mod track;
pub mod valid_settings;
pub mod writable;

pub use json::{JsonFile, read_json, replace_json};
pub use lock::{Lock, Sharing, Wait};
pub use own::{OWN, open_own};
pub use read::read_text;
pub use replace::{Durability, FileError, remove, replace};
