//! `scripts/lab`: the cluster by hand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::{Lab, LabError, NodeName, Options, Side, Suite};

#[derive(Debug, Parser)]
#[command(
    name = "lab",
    about = "Two real Debian nodes and a client on this machine",
    after_help = "Examples:\n  scripts/lab up\n  scripts/lab status\n  scripts/lab exec node1 -- systemctl status mariadb\n  \
                  scripts/lab client -- mariadb -h 192.168.100.200 -u ha_user -psecurepass ha_app\n  \
                  scripts/lab power-off node1\n  scripts/lab wipe"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring the cluster up
    Up {
        /// Debian release
        #[arg(long, value_enum, default_value = "bookworm")]
        suite: Suite,
        /// Keepalived's advertisement interval, in seconds
        #[arg(long, default_value = "1")]
        advert_int: String,
    },
    /// Make the nodes' image if it is not there, and no more
    Image {
        /// Debian release
        #[arg(long, value_enum, default_value = "bookworm")]
        suite: Suite,
    },
    /// Build the release before this one if it is not there, and no more
    ReleaseBefore,
    /// Run a command in a node
    Exec {
        /// The node
        node: NodeName,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command at the client's place
    Client {
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a node's power
    PowerOff {
        /// The node
        node: NodeName,
    },
    /// Reboot a node in order; its network is silent between the halt and the boot
    Reboot {
        /// The node
        node: NodeName,
    },
    /// Boot a node again
    PowerOn {
        /// The node
        node: NodeName,
    },
    /// Cut a node off
    Partition {
        /// Which network
        side: Side,
        /// The node
        node: NodeName,
    },
    /// End every partition
    Heal,
    /// Make a node a fresh replica of the other
    Rebuild {
        /// The node
        node: NodeName,
    },
    /// The node's file system on the host
    Path {
        /// The node
        node: NodeName,
    },
    /// Who is what
    Status,
    /// Show the main job: power loss and the way back, two more faults, a client that writes, and a table
    Demo,
    /// Measure each event many times, and print the table
    BenchCluster(lab::bench::Cluster),
    /// Measure what the checks cost, and print the table
    BenchChecks(lab::bench::Checks),
    /// Measure file synchronisation beside what else does it, and print the table
    BenchSync(lab::bench::Sync),
    /// Measure the way back, and print the table
    BenchFailback(lab::bench::Failback),
    /// Stop the nodes
    Down,
    /// Remove everything but the image
    Wipe,
    #[command(hide = true)]
    BecomeNode { node: NodeName },
    #[command(hide = true)]
    Messenger {
        #[arg(long)]
        out_of_order: bool,
    },
    #[command(hide = true)]
    Writer {
        #[arg(long)]
        writers: u32,
        #[arg(long)]
        first: u64,
    },
    #[command(hide = true)]
    WebLoad {
        #[arg(long)]
        uploaders: u32,
        #[arg(long)]
        users_a_second: u32,
        #[arg(long)]
        cookie: String,
        #[arg(long)]
        csrf: String,
    },
    /// Put the web application on the nodes, and print its login
    WebApp,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool"
)]
fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok((text, code)) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(verb: Verb) -> Result<(String, u8), LabError> {
    let program = std::env::current_exe().map_err(|e| LabError::Unfit(e.to_string()))?;
    let lab = Lab::new(program);
    let words = |command: &[String]| command.iter().map(String::clone).collect::<Vec<_>>();
    let nothing = |()| (String::new(), 0);
    match verb {
        Verb::Up { suite, advert_int } => {
            let options = Options {
                suite,
                advert_int,
                ..Options::default()
            };
            lab.up(&options).map(nothing)
        }
        Verb::Image { suite } => lab::image(suite).map(|image| (image.display().to_string(), 0)),
        Verb::ReleaseBefore => lab::release_before().map(|tree| (tree.display().to_string(), 0)),
        Verb::Exec { node, command } => {
            let words = words(&command);
            lab.exec(node, &words.iter().map(String::as_str).collect::<Vec<_>>())
                .map(|output| shown(&output))
        }
        Verb::Client { command } => {
            let words = words(&command);
            lab.client(&words.iter().map(String::as_str).collect::<Vec<_>>())
                .map(|output| shown(&output))
        }
        Verb::PowerOff { node } => lab.power_off(node).map(nothing),
        Verb::Reboot { node } => lab.reboot(node).map(nothing),
        Verb::PowerOn { node } => lab.power_on(node).map(nothing),
        Verb::Partition { side, node } => lab.partition(node, side).map(nothing),
        Verb::Heal => lab.heal().map(nothing),
        Verb::Rebuild { node } => lab.rebuild(node).map(nothing),
        Verb::Path { node } => Ok((node.root().display().to_string(), 0)),
        Verb::Status => Ok((format!("{:#?}", lab.roles()?), 0)),
        Verb::Demo => lab::demo::run(&lab).map(|good| (String::new(), u8::from(!good))),
        Verb::BenchCluster(wanted) => lab::bench::cluster(&lab, &wanted).map(|table| (table, 0)),
        Verb::BenchChecks(wanted) => lab::bench::checks(&lab, &wanted).map(|table| (table, 0)),
        Verb::BenchSync(wanted) => lab::bench::sync(&lab, &wanted).map(|table| (table, 0)),
        Verb::BenchFailback(wanted) => lab::bench::failback(&lab, &wanted).map(|table| (table, 0)),
        Verb::Down => lab.down().map(nothing),
        Verb::Wipe => lab.wipe().map(nothing),
        Verb::BecomeNode { node } => Err(lab::become_node(node)),
        Verb::Messenger { out_of_order } => lab::messenger::run(out_of_order).map(nothing),
        Verb::WebLoad {
            uploaders,
            users_a_second,
            cookie,
            csrf,
        } => {
            lab::web_load::run(uploaders, users_a_second, cookie, csrf);
            Ok((String::new(), 0))
        }
        Verb::WebApp => {
            let writable = lab.roles()?.writable;
            let primary = writable
                .first()
                .ok_or_else(|| LabError::Unfit("no node is writable".to_owned()))?;
            let account = lab::web::deploy(*primary)?;
            Ok((
                format!("http://{}/ {} {}", lab::VIP, account.name, account.password),
                0,
            ))
        }
        Verb::Writer { writers, first } => {
            lab::writer::run(writers, first);
            Ok((String::new(), 0))
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the standard error of what ran in the node"
)]
fn shown(output: &process::Output) -> (String, u8) {
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let code = output
        .status
        .code()
        .and_then(|c| u8::try_from(c).ok())
        .unwrap_or(1);
    (output.text(), code)
}
