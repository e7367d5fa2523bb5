//! The `alert` command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nodefiles::valid_settings;
use nodefiles::writable::{self, Place};

use crate::{
    Alert, AlertsError, Severity, enqueue, flush, queue, test_channels, wake, wrong_secrets,
};

#[derive(Debug, Parser)]
#[command(
    name = "alert",
    version,
    about = "Queues an alert durably and delivers it in the background",
    after_help = "Examples:\n  alert \"MariaDB is back\"\n  alert --severity critical \"disk full\"\n  \
                  alert --test     send a test to every channel now\n  alert --queue    what is not delivered yet\n\n\
                  Exit: 0 queued (or delivered, with --test), 1 not, 2 settings or arguments"
)]
struct Arguments {
    /// The text
    message: Option<OsString>,
    /// How much it matters
    #[arg(long, value_enum, default_value = "warning")]
    severity: Severity,
    /// What kind of thing happened; equal kinds and texts fold into one
    #[arg(long, default_value = "message")]
    event: String,
    /// Deliver what is queued (the systemd unit does this)
    #[arg(long)]
    flush: bool,
    /// Try whether a directory takes a block, and note it (a systemd unit does this)
    #[arg(long = "try", value_name = "DIRECTORY", hide = true)]
    tried: Option<Directory>,
    /// Send a test to every channel now
    #[arg(long)]
    test: bool,
    /// List what is not delivered yet
    #[arg(long)]
    queue: bool,
    /// List in JSON
    #[arg(long, requires = "queue")]
    json: bool,
    /// The settings file
    #[arg(long, value_name = "PATH", default_value = settings::DEFAULT_PATH)]
    config: PathBuf,
    /// The name of this node, when the host name is not in the settings
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Check the settings and exit
    #[arg(long)]
    check_config: bool,
}

/// A directory on a disk that may hang.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Directory {
    State,
    Logs,
}

#[expect(clippy::print_stdout, reason = "the answer of a command-line tool")]
fn answer(text: &str) {
    println!("{text}");
}

/// Entry point of `alert`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    // Whatever is wrong with the settings, what a person should know gets out; a test is of the file as it is.
    let load = if arguments.check_config || arguments.test {
        settings::load
    } else {
        valid_settings::load
    };
    let settings = match load(&arguments.config, arguments.node.as_deref()) {
        Ok(settings) => settings,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(2);
        }
    };
    let done = if arguments.check_config {
        let wrong = wrong_secrets(&settings);
        for why in &wrong {
            log::error!("{why}");
        }
        if !wrong.is_empty() {
            return ExitCode::from(2);
        }
        answer("ok");
        Ok(true)
    } else if let Some(directory) = arguments.tried {
        let place = match directory {
            Directory::State => Place::State,
            Directory::Logs => Place::Logs,
        };
        let now = crate::now();
        writable::try_and_note(&settings, place, now)
            .map_err(AlertsError::from)
            .map(|()| true)
    } else if arguments.flush {
        ask_to_try();
        flush(&settings).map(|report| {
            log::info!("{} delivered, {} waiting", report.delivered, report.waiting);
            true
        })
    } else if arguments.queue {
        list(&settings, arguments.json)
    } else if arguments.test {
        let mut all = true;
        for (name, result) in test_channels(&settings) {
            all &= result.is_ok();
            answer(&match result {
                Ok(()) => format!("{name}: delivered"),
                Err(why) => format!("{name}: {why}"),
            });
        }
        Ok(all)
    } else if let Some(message) = &arguments.message {
        let alert = Alert {
            event: arguments.event.clone(),
            severity: arguments.severity,
            message: message.to_string_lossy().into_owned(),
        };
        enqueue(&settings, &alert).map(|()| {
            wake();
            true
        })
    } else {
        log::error!("expected a text, or one of --flush, --test, --queue; see --help");
        return ExitCode::from(2);
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(1)
        }
    }
}

/// Each in a unit of its own. One that still hangs is not started again.
fn ask_to_try() {
    for place in [Place::State, Place::Logs] {
        if let Err(error) = host::ask(host::Verb::Start, place.unit(), crate::PATIENCE) {
            log::warn!("{error}");
        }
    }
}

fn list(settings: &settings::Settings, json: bool) -> Result<bool, AlertsError> {
    let entries = queue(settings)?;
    if json {
        answer(&serde_json::to_string(&entries).unwrap_or_default());
    } else {
        for entry in entries {
            answer(&format!(
                "{} -> {}",
                crate::spool::text(&entry),
                entry.pending.join(", ")
            ));
        }
    }
    Ok(true)
}
