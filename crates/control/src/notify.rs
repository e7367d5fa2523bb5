//! Keepalived's notify hook: starts the audit first, then logs and alerts. It decides nothing.

use alerts::Severity;
use clap::{Parser, ValueEnum};
use nodefiles::hook_sequence;
use settings::Settings;

use crate::cli::{Common, Exit};
use crate::{act, tell};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Master,
    Backup,
    Fault,
    Stop,
}

#[derive(Debug, Parser)]
#[command(
    name = "notify",
    version,
    about = "Keepalived's notify hook: makes the audit look at the roles at once",
    after_help = "Examples, in keepalived.conf:\n  notify \"/usr/libexec/keepalived-companion/notify\"\n  \
                  notify_master \"/usr/libexec/keepalived-companion/notify --state master\"\n  \
                  notify_master_rx_lower_pri \"/usr/libexec/keepalived-companion/notify --rx-lower\""
)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The new state, for hooks that get no arguments
    #[arg(long, value_enum, conflicts_with = "hook")]
    state: Option<State>,
    /// A master of a lower priority was heard
    #[arg(long, conflicts_with_all = ["hook", "state"])]
    rx_lower: bool,
    /// TYPE NAME STATE [PRIORITY], as Keepalived appends them
    #[arg(value_name = "TYPE NAME STATE [PRIORITY]", num_args = 0..)]
    hook: Vec<String>,
}

/// Entry point of `notify`.
pub fn main() -> Exit {
    let arguments = Arguments::parse();
    let settings = match arguments.common.settings_in_force() {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    look_again(&settings);
    if arguments.rx_lower {
        return Exit::Done;
    }
    let (kind, name, state) = match (&arguments.state, arguments.hook.as_slice()) {
        (Some(state), _) => (
            "INSTANCE".to_owned(),
            settings.cluster.vrrp_instance.clone(),
            format!("{state:?}").to_uppercase(),
        ),
        (None, [kind, name, state, ..]) => (kind.clone(), name.clone(), state.clone()),
        (None, other) => {
            log::error!(
                "expected TYPE NAME STATE [PRIORITY], got {other:?}; the audit was started all the same"
            );
            return Exit::Usage;
        }
    };
    let line =
        format!("Keepalived notification on {name}: State changed to {state} (Type: {kind})");
    let severity = match state.as_str() {
        "FAULT" => Severity::Critical,
        "MASTER" => Severity::Warning,
        _ => Severity::Info,
    };
    tell::alert(
        &settings,
        &format!("vrrp-{}", state.to_lowercase()),
        severity,
        &line,
    );
    Exit::Done
}

/// Raises the hooks' number, then starts the unit: one that runs already looks once more.
pub fn look_again(settings: &Settings) {
    if let Err(error) = hook_sequence::raise(settings, observe::uptime_seconds()) {
        log::error!("{error}");
    }
    act::start_audit();
}
