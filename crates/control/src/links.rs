//! Keeps an ssh connection open to every peer, so that a role change does not wait for a handshake.

use std::convert::Infallible;
use std::thread;
use std::time::Duration;

use clap::Parser;
use settings::{Node, Settings};

use crate::cli::{Common, Exit};
use crate::link::ssh;

/// Between two tries. A peer that is down costs one SYN each.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
#[command(
    name = "links",
    version,
    about = "Keeps an ssh connection open to every peer; a service",
    after_help = "Started by keepalived-companion-links.service. Without it everything works, and a role\n\
                  change takes about 0.2 s longer for each ssh handshake.\n\n\
                  Exit: 2 settings; otherwise it runs until it is stopped"
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// Entry point of `links`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    thread::scope(|scope| {
        for peer in settings.peers() {
            scope.spawn(|| keep(&settings, peer));
        }
    });
    // Only without any peer.
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
