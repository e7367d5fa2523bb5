//! The service that is always there: keeps an ssh connection open to every peer, so that a role change does not
//! wait for a handshake, and runs the resident program. When somebody changes what it goes by, it ends, and systemd
//! starts it anew.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use settings::{Node, Settings};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{Common, Exit};
use crate::link::{control_path, ssh};
use crate::resident;
use crate::window::window;

/// Between two looks at the files that the settings and the window come from.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries. A peer that is down costs one SYN each.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
#[command(
    name = "links",
    version,
    about = "Keeps an ssh connection open to every peer, and decides when a primary may acknowledge alone; a service",
    after_help = "Started by keepalived-companion-links.service. On the primary it lets commits go when the standby\n\
                  is gone; on the standby it keeps the proof fresh that nothing is missing there.\n\n\
                  Exit: 0 stopped, or to be started anew with other settings, 2 settings"
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
    let begun = Basis::of(&settings, &arguments.common.config);
    let files = Files {
        config: arguments.common.config,
        node: arguments.common.node,
    };
    let changed = Arc::clone(&ended);
    // A thread of its own: the resident program must not wait for a disk that hangs.
    thread::spawn(move || {
        files.await_change(&begun);
        changed.store(true, Ordering::Relaxed);
    });
    resident::run(&settings, &ended);
    Exit::Done
}

/// What the program goes by. The nodes of a pair show each other nothing while their windows differ, so one that
/// went on with the window of an earlier keepalived.conf would leave the site without a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    /// The text of companion.toml; none where the last valid one is in force instead.
    text: Option<String>,
    window_ms: u64,
}

impl Basis {
    fn of(settings: &Settings, config: &Path) -> Self {
        let text = settings::read(config).ok();
        Self {
            text: text.filter(|_| settings.mistake.is_none()),
            window_ms: window(settings).milliseconds(),
        }
    }
}

struct Files {
    config: PathBuf,
    node: Option<String>,
}

impl Files {
    /// What the files say; none where they are not valid or cannot be read, which changes nothing.
    fn read(&self) -> Option<Basis> {
        let text = settings::read(&self.config).ok()?;
        let settings = settings::parse(&text, &self.config, self.node.as_deref()).ok()?;
        let window = window(&settings);
        (window.is_set() || window.needed.is_some()).then(|| Basis {
            text: Some(text),
            window_ms: window.milliseconds(),
        })
    }

    /// Returns when the files say something else than `begun`, twice in a row: once may be in the middle of a write.
    fn await_change(&self, begun: &Basis) {
        let mut last = None;
        loop {
            thread::sleep(LOOK);
            let now = self.read();
            if now.is_some() && now == last && now.as_ref() != Some(begun) {
                log::info!("the settings, or the window W, are others now: starting anew");
                return;
            }
            last = now;
        }
    }
}

fn keep(settings: &Settings, peer: &Node) -> Infallible {
    let mut told = None;
    loop {
        // Left by one that was killed, it would keep the next one from listening there.
        let _ = std::fs::remove_file(control_path(settings, peer.private));
        let opened = ssh(settings, peer.private).arg("-MN").converse();
        match opened {
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
