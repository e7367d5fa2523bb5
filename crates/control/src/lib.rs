//! What changes roles: notify, audit, promote, maintenance, the forced command for peers,
//! and the connections kept open to it.
//!
//! Every entry point looks, asks `role::decide` or `role::plan_promotion`, and executes.

mod act;
pub mod audit;
mod automatic;
mod binlog;
mod broken_off;
mod cancel;
mod cli;
pub mod crash_recovery;
mod diverged;
mod events;
pub mod failback;
mod fault;
mod files;
mod harvest;
pub mod leave;
mod link;
pub mod links;
mod look;
mod lost_rows;
pub mod maintenance;
mod node_role;
pub mod notify;
mod path_error;
pub mod peer;
mod preflight;
pub mod promote;
#[cfg(test)]
mod protocol_0;
mod rebuild;
mod relay_log;
mod replicas;
mod resident;
mod slave_position;
mod sql_client;
mod statements;
mod step_log;
mod takeover;
mod tell;
#[cfg(test)]
mod testing;
mod vip;
mod window;
mod wire;

pub use cli::Exit;
