//! The service that is always there: keeps an ssh connection open to every peer, so that a role change does not
//! wait for a handshake, and runs the resident program.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::Parser;
use settings::{Node, Settings};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{Common, Exit};
use crate::link::ssh;
use crate::resident;

/// Between two tries. A peer that is down costs one SYN each.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
#[command(
    name = "links",
    version,
    about = "Keeps an ssh connection open to every peer, and decides when a primary may acknowledge alone; a service",
    after_help = "Started by keepalived-companion-links.service. On the primary it lets commits go when the standby\n\
                  is gone; on the standby it keeps the proof fresh that nothing is missing there.\n\n\
                  Exit: 0 stopped, 2 settings"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// Entry point of `links`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings_in_force() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        if let Err(error) = flag::register(signal, Arc::clone(&ended)) {
            log::error!("signal {signal}: {error}");
            return Exit::Undone;
        }
    }
    for peer in settings.peers() {
        let (settings, peer) = (settings.clone(), peer.clone());
        // They end with the program.
        thread::spawn(move || keep(&settings, &peer));
    }
    resident::run(&settings, &ended);
    Exit::Done
}

fn keep(settings: &Settings, peer: &Node) -> Infallible {
    let mut told = None;
    loop {
        let opened = ssh(settings, peer.private).arg("-MN").converse();
        match opened {
            // -N opens no session, so the first line is the end.
            Ok(connection) => connection.wait_for_end(),
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    log::error!("{}: {text}", peer.name);
                    told = Some(text);
                }
            }
        }
        thread::sleep(PAUSE);
    }
}
