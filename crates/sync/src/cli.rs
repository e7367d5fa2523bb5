//! The command lines of both programs.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nodefiles::valid_settings;
use settings::Settings;

use crate::{service, status, trash};

/// A wait ends by itself before this.
const LONGEST_ANSWER: Duration = Duration::from_secs(40);

#[derive(Debug, Parser)]
#[command(
    name = "sync-realtime",
    version,
    about = "Mirrors the trees of the settings from the active node to every standby; a service",
    after_help = "Examples:\n  \
        sync-realtime                  run (systemctl start sync-realtime)\n  \
        sync-realtime --status         how it is, for a person; --json for a program\n  \
        sync-realtime --wait PATH      wait until a standby has the file on its disk\n  \
        sync-realtime --release        go on after a hold: what it named is right\n  \
        sync-realtime --trash          what was deleted here and is still kept; --json for a program\n  \
        sync-realtime --restore ID --to DIRECTORY\n                                 \
                                       copy it there\n\n\
        Exit: 0 good, 1 not (--status: held, degraded or no news; --wait: on this node only), 2 settings or arguments"
)]
struct Arguments {
    /// Say how it is
    #[arg(long, group = "told", conflicts_with_all = ["release", "wait"])]
    status: bool,
    /// Answer in JSON, with --status or --trash
    #[arg(long, requires = "told")]
    json: bool,
    /// List what was deleted on this node as a standby, and is still kept
    #[arg(long, group = "told", conflicts_with_all = ["release", "wait"])]
    trash: bool,
    /// Copy what --trash lists under this ID
    #[arg(long, value_name = "ID", requires = "to", conflicts_with_all = ["status", "release", "wait", "trash"])]
    restore: Option<u64>,
    /// Where to
    #[arg(long, value_name = "DIRECTORY", requires = "restore")]
    to: Option<PathBuf>,
    /// Go on after a hold: deletions above the limit pass for ten minutes, an exchanged root is taken as it is
    #[arg(long, conflicts_with = "wait")]
    release: bool,
    /// Wait until a standby has this file on its disk
    #[arg(long, value_name = "PATH")]
    wait: Option<OsString>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The settings file
    #[arg(long, value_name = "PATH", default_value = settings::DEFAULT_PATH)]
    config: PathBuf,
    /// The name of this node, when the host name is not in the settings
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Check the settings and exit
    #[arg(long)]
    check_config: bool,
    /// Say more on standard error
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Debug, Parser)]
#[command(
    name = "sync-receive",
    version,
    about = "The forced command for a sender's ssh key: takes files only while this node is a standby",
    after_help = "In /root/.ssh/authorized_keys of each node, for the key of each other one:\n  \
        restrict,from=\"ADDRESSES\",command=\"/usr/libexec/keepalived-companion/sync-receive\" ssh-ed25519 ...\n\n\
        Exit: rsync's own, 1 refused, 2 settings"
)]
struct ReceiveArguments {
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn settings(&self) -> Result<Settings, ExitCode> {
        let level = if self.verbose { "debug" } else { "info" };
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
            .format_target(false)
            .format_timestamp(None)
            .init();
        let load = if self.check_config {
            settings::load
        } else {
            valid_settings::load
        };
        let settings = load(&self.config, self.node.as_deref()).map_err(|error| {
            log::error!("{error}");
            ExitCode::from(2)
        })?;
        if let Some(mistake) = &settings.mistake {
            log::warn!("{mistake}; the last valid settings are in force");
        }
        if self.check_config {
            say("ok");
            return Err(ExitCode::SUCCESS);
        }
        Ok(settings)
    }
}

/// A reader that has gone changes nothing.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Entry point of `sync-realtime`.
pub fn realtime() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    if arguments.status {
        return show(&settings, arguments.json);
    }
    if arguments.trash {
        list(&settings, arguments.json);
        return ExitCode::SUCCESS;
    }
    if let (Some(id), Some(to)) = (arguments.restore, &arguments.to) {
        return match trash::restore(&settings, id, to) {
            Ok(()) => {
                say(&format!("copied to {}", to.display()));
                ExitCode::SUCCESS
            }
            Err(error) => {
                log::error!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.release {
        return ask(&settings, b"release", |answer| {
            answer.starts_with("released")
        });
    }
    if let Some(path) = &arguments.wait {
        let mut request = b"wait0 ".to_vec();
        // As a person types it: relative to where the person is.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        request.extend_from_slice(path.as_os_str().as_bytes());
        request.push(0);
        return ask(&settings, &request, |answer| answer == "stored");
    }
    service::run(&settings)
}

fn show(settings: &Settings, json: bool) -> ExitCode {
    let Some(status) = nodefiles::sync_status::read(settings) else {
        log::error!(
            "{}: no status of this boot; is the service running? systemctl status sync-realtime",
            nodefiles::sync_status::file(settings).path().display()
        );
        return ExitCode::FAILURE;
    };
    let age = observe::uptime_seconds() - status.at;
    if json {
        say(&serde_json::to_string(&status).unwrap_or_default());
    } else {
        say(&status::for_a_person(&status, age));
    }
    let bad = matches!(
        status.state,
        nodefiles::sync_status::SyncState::Held | nodefiles::sync_status::SyncState::Degraded
    );
    if bad || age > settings.checks.verdict_age.as_secs_f64() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn list(settings: &Settings, json: bool) {
    let kept = trash::list(settings);
    if json {
        say(&serde_json::to_string(&kept).unwrap_or_default());
        return;
    }
    if kept.is_empty() {
        say("nothing is kept");
    }
    for kept in kept {
        say(&format!(
            "{}  {}  {}: {} files, {} KiB, {}",
            kept.id,
            kept.at,
            kept.tree.display(),
            kept.files,
            kept.bytes.div_ceil(1024),
            if kept.first.is_empty() {
                "empty directories"
            } else {
                &kept.first
            }
        ));
    }
}

fn ask(settings: &Settings, request: &[u8], good: impl Fn(&str) -> bool) -> ExitCode {
    match observe::sync_request(settings, request, LONGEST_ANSWER) {
        Ok(answer) => {
            say(&answer);
            if good(&answer) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            log::error!(
                "{}: {error}; is the service running? systemctl status sync-realtime",
                nodefiles::sync_status::socket(settings).display()
            );
            ExitCode::FAILURE
        }
    }
}

/// Entry point of `sync-receive`.
pub fn receive() -> ExitCode {
    let arguments = ReceiveArguments::parse();
    let settings = match arguments.common.settings() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let line = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    crate::receive::main(&settings, &line)
}
