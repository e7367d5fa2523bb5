//! sync-realtime and sync-receive: the standby has every file, milliseconds later.
//!
//! On the active node a watcher turns the kernel's events into a set of names for each standby, and a
//! worker for each standby sends them in batches through stock rsync over one ssh connection. On the
//! standby the forced command `sync-receive` lets an rsync write only while that node is a standby and
//! the sender's epoch is current.

mod batch;
mod beside;
mod checkpoint;
mod cli;
mod command;
mod compare;
mod dirs;
mod engine;
mod hold;
#[cfg(test)]
mod interleaved;
mod link;
mod linked;
mod octal;
mod outcome;

#[cfg(test)]
mod protocol_0;
mod queue;
mod receive;
mod recovered;
mod root;
mod sample;
mod service;
mod session;
mod slots;
mod socket;
mod standby;
mod state;
mod status;
mod tell;
mod trace;
mod trash;
mod watch;

pub use cli::{realtime, receive};

/// The least settings of a node, for tests.
#[cfg(test)]
fn settings_in(state: &std::path::Path) -> settings::Settings {
    let text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{}\"\n",
        state.display()
    );
    settings::parse(&text, std::path::Path::new("c"), Some("a")).unwrap()
}
