//! What every check takes on its command line.

use std::path::PathBuf;

use clap::ValueEnum;

/// Options of every check.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Settings file
    #[arg(long, value_name = "PATH", default_value = settings::DEFAULT_PATH)]
    pub config: PathBuf,
    /// This node's name in the settings; the host name when not given
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Check the settings file, print `ok` or every problem, and end (exit 0 or 2)
    #[arg(long)]
    pub check_config: bool,
    /// Who reads the answer
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Output::Keepalived)]
    pub output: Output,
    /// Say what is done, on standard error, and the verdict also when it is good
    #[arg(long, short)]
    pub verbose: bool,
    /// Write down what earlier runs left for the log and the alerts; started by the check itself
    #[arg(long, hide = true)]
    pub record: bool,
}

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Exit 0 or 1; silent on success, the reason on standard error otherwise
    Keepalived,
    /// Exit 0 to 3 and one line with performance data; repairs nothing
    Nagios,
    /// Exit 0 or 1 and one JSON object; repairs nothing
    Json,
}

/// What the exit statuses mean, for `--help`.
pub(crate) const EXIT_HELP: &str = "\
Exit status:
  keepalived, json  0 keep the VIP, 1 do not (also for bad settings and when it cannot be judged)
  nagios            0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
  --check-config    0 ok, 2 problems
";
