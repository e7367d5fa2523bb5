//! What a check costs, beside the commands of the original scripts and the thinnest question.

use super::{machine, median, save};
use crate::{Lab, LabError, NodeName, Options, tell};

const CHECKS: &str = "/usr/libexec/keepalived-companion";

/// What is timed, as a shell line.
struct Timed {
    name: &'static str,
    command: String,
}

/// How the checks are measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Checks {
    /// Rounds; in each, every command runs in turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Runs of one command in a round
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Renew the table in docs/benchmarks.md
    #[arg(long)]
    save: bool,
}

/// Wall and CPU time of one run, in ms.
type Cost = (f64, f64);

/// Times everything on the active node and gives the table.
pub fn checks(lab: &Lab, wanted: &Checks) -> Result<String, LabError> {
    lab.up(&Options::default())?;
    let active = NodeName::Node1;
    let original = |unit: &str, question: &str| {
        format!("systemctl is-active --quiet {unit} && {question} >/dev/null")
    };
    let ours = |words: &str| format!("{CHECKS}/{words}");
    let timed = [
        Timed {
            name: "mariadb-admin ping",
            command: "mariadb-admin ping >/dev/null".to_owned(),
        },
        Timed {
            name: "original: is-active + mysql -e",
            command: original("mariadb", "mariadb -e 'SELECT 1'"),
        },
        Timed {
            name: "original: is-active + SHOW SLAVE STATUS",
            command: original("mariadb", "mariadb -e 'SHOW SLAVE STATUS'"),
        },
        Timed {
            name: "original: is-active apache2",
            command: "systemctl is-active --quiet apache2".to_owned(),
        },
        Timed {
            name: "check-mariadb",
            command: ours("check-mariadb"),
        },
        Timed {
            name: "check-master",
            command: ours("check-master"),
        },
        Timed {
            name: "check-master --or-promotable",
            command: ours("check-master --or-promotable"),
        },
        Timed {
            name: "check-apache",
            command: ours("check-apache"),
        },
        Timed {
            name: "notify (a repeated hook)",
            command: ours("notify INSTANCE VI_1 MASTER 250"),
        },
        Timed {
            name: "audit (steady state)",
            command: ours("audit"),
        },
    ];
    let mut costs: Vec<Vec<Cost>> = timed.iter().map(|_| Vec::new()).collect();
    for round in 1..=wanted.rounds {
        for (command, costs) in timed.iter().zip(&mut costs) {
            costs.push(cost(lab, active, &command.command, wanted.runs)?);
        }
        tell(&format!("round {round} of {}", wanted.rounds));
    }
    let costs: Vec<Cost> = costs
        .iter()
        .map(|rounds| {
            let part = |f: fn(&Cost) -> f64| median(&rounds.iter().map(f).collect::<Vec<_>>());
            (part(|c| c.0), part(|c| c.1))
        })
        .collect();
    let (ping, original) = (costs[0], costs[1]);
    let mut table = format!(
        "Medians of {} rounds of {} runs each, in turn, on {}. CPU counts the command and its children. \
         Bar: CPU at most 0.3 of the original's, wall at most 1.5 of the ping's.\n\n\
         | command | wall ms | CPU ms | wall / ping | CPU / original |\n|---|---|---|---|---|\n",
        wanted.rounds,
        wanted.runs,
        machine()?
    );
    for (command, cost) in timed.iter().zip(&costs) {
        let line = format!(
            "| {} | {:.1} | {:.1} | {:.2} | {:.2} |\n",
            command.name,
            cost.0,
            cost.1,
            cost.0 / ping.0,
            cost.1 / original.1
        );
        table.push_str(&line);
    }
    if wanted.save {
        save("checks", &table)?;
    }
    Ok(table)
}

/// One command many times in a row, inside the node.
fn cost(lab: &Lab, node: NodeName, command: &str, runs: usize) -> Result<Cost, LabError> {
    let script =
        // A check that fails measures something else.
        format!(
            "TIMEFORMAT='%R %U %S'; time for ((i = 0; i < {runs}; i++)); do {command} || bad=1; done; exit ${{bad:-0}}"
        );
    let output = lab.exec(node, &["bash", "-c", &script])?.success()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let seconds: Vec<f64> = text
        .lines()
        .last()
        .unwrap_or_default()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [wall, user, system] = seconds[..] else {
        return Err(LabError::Unfit(format!("`{command}`: {text}")));
    };
    #[expect(clippy::cast_precision_loss, reason = "a small number of runs")]
    let each = 1000.0 / runs as f64;
    Ok((wall * each, (user + system) * each))
}
