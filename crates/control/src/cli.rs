//! What every tool of this package shares: arguments, settings, logging, exit codes.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Termination};

use nodefiles::valid_settings;
use role::Step;
use settings::{Settings, SettingsError};

use crate::window::window;

/// Arguments common to every tool.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The settings file
    #[arg(long, value_name = "PATH", default_value = settings::DEFAULT_PATH)]
    pub config: PathBuf,
    /// The name of this node, when the host name is not in the settings
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Check the settings and exit
    #[arg(long)]
    pub check_config: bool,
    /// Say more on standard error
    #[arg(long, short)]
    pub verbose: bool,
}

impl Common {
    /// Loads the settings for a tool that a person types: a mistake in them is said on standard error, and nothing
    /// is done. With `--check-config` that is all there is to do.
    pub fn settings(&self) -> Result<Settings, Exit> {
        self.load(settings::load)
    }

    /// Loads the settings for a program that a service, a hook or a peer starts: with a mistake in the file the last
    /// valid ones are in force, if there are any.
    pub fn settings_in_force(&self) -> Result<Settings, Exit> {
        if self.check_config {
            return self.settings();
        }
        self.load(valid_settings::load)
    }

    fn load(
        &self,
        load: impl FnOnce(&Path, Option<&str>) -> Result<Settings, SettingsError>,
    ) -> Result<Settings, Exit> {
        let level = if self.verbose { "debug" } else { "info" };
        // A second initialisation in one process changes nothing.
        let _ = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
            .format_target(false)
            .try_init();
        let settings = load(&self.config, self.node.as_deref()).map_err(|error| {
            log::error!("{error}");
            Exit::Usage
        })?;
        if self.check_config {
            let window = window(&settings);
            if let Some(concern) = window.concern() {
                log::warn!("{concern}");
            }
            answer(&format!("ok; {window}"));
            return Err(Exit::Done);
        }
        Ok(settings)
    }
}

/// Exit codes of the control tools; docs/exit-codes.md explains them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Failed, and everything was undone.
    Undone,
    /// Settings or arguments are wrong.
    Usage,
    /// Refused before anything was touched.
    Refused,
    /// Stopped past the point of no return; run it again.
    Forward,
    /// A node that is needed cannot be reached.
    Unreachable,
    /// Another change holds the role lock.
    Locked,
}

impl Exit {
    /// By their numbers.
    const ALL: [Self; 7] = [
        Self::Done,
        Self::Undone,
        Self::Usage,
        Self::Refused,
        Self::Forward,
        Self::Unreachable,
        Self::Locked,
    ];

    /// The number the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit that a tool of ours ended with.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// Prints one line on standard output: the tool's answer, not a log.
#[expect(clippy::print_stdout, reason = "the answer of a command-line tool")]
pub fn answer(text: &str) {
    println!("{text}");
}

/// Prints one step of a plan, with its statements.
pub fn answer_step(step: &Step) {
    answer(&format!("- {step}"));
    for statement in step.statements() {
        answer(&format!("    {statement}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_is_known_by_its_number() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code().into()), Some(exit));
        }
        assert_eq!(Exit::Locked.code(), 6);
        assert_eq!((Exit::from_code(7), Exit::from_code(-1)), (None, None));
    }
}
