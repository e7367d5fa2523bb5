//! Namespaces, bridges and links. Everything hangs in a namespace of its own: the host's network
//! is not touched.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use process::{Output, Program};

use crate::{LabError, NodeName};

const SWITCH: &str = "kc-switch";
const CLIENT: &str = "kc-client";
const CLIENT_ADDRESS: &str = "192.168.100.50/24";

/// A network of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Side {
    /// Where the clients are.
    Front,
    /// Between the nodes.
    Private,
    /// Both.
    Both,
}

fn run(program: &str, words: &str) -> Result<Output, LabError> {
    Ok(Program::new(program)
        .args(words.split_whitespace())
        .deadline(Duration::from_secs(20))
        .run()?
        .success()?)
}

fn namespaces() -> Result<Vec<String>, LabError> {
    Ok(run("ip", "netns list")?
        .text()
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect())
}

/// The namespace of a node.
pub fn namespace(node: NodeName) -> String {
    format!("kc-{node}")
}

/// The command prefix that runs something at the client's place.
pub fn client_command() -> [&'static str; 4] {
    ["ip", "netns", "exec", CLIENT]
}

/// The same, to be started and left running.
pub fn client_process(program: impl AsRef<OsStr>) -> Command {
    let prefix = client_command();
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(program);
    command
}

/// Makes namespaces, bridges and links that are not there yet.
pub fn up() -> Result<(), LabError> {
    let existing = namespaces()?;
    let missing = |name: &str| !existing.iter().any(|n| n == name);
    if missing(SWITCH) {
        run("ip", &format!("netns add {SWITCH}"))?;
        for bridge in ["front", "private"] {
            run(
                "ip",
                &format!("-n {SWITCH} link add {bridge} type bridge forward_delay 0"),
            )?;
            run("ip", &format!("-n {SWITCH} link set {bridge} up"))?;
        }
    }
    if missing(CLIENT) {
        run("ip", &format!("netns add {CLIENT}"))?;
        run(
            "ip",
            &format!("link add eth0 netns {CLIENT} type veth peer name client netns {SWITCH}"),
        )?;
        run(
            "ip",
            &format!("-n {SWITCH} link set client master front up"),
        )?;
        run(
            "ip",
            &format!("-n {CLIENT} address add {CLIENT_ADDRESS} dev eth0"),
        )?;
        run("ip", &format!("-n {CLIENT} link set eth0 up"))?;
        run("ip", &format!("-n {CLIENT} link set lo up"))?;
    }
    for node in NodeName::ALL {
        let name = namespace(node);
        if missing(&name) {
            run("ip", &format!("netns add {name}"))?;
            for (interface, bridge, letter) in
                [("enp0s8", "private", 'p'), ("enp0s9", "front", 'f')]
            {
                let port = format!("{node}{letter}");
                run(
                    "ip",
                    &format!(
                        "link add {interface} netns {name} type veth peer name {port} netns {SWITCH}"
                    ),
                )?;
                run(
                    "ip",
                    &format!("-n {SWITCH} link set {port} master {bridge} up"),
                )?;
            }
        }
    }
    Ok(())
}

/// Gives a node its addresses and carrier.
pub fn connect(node: NodeName) -> Result<(), LabError> {
    let name = namespace(node);
    run("ip", &format!("-n {name} link set lo up"))?;
    for (interface, address) in [("enp0s8", node.private()), ("enp0s9", node.front())] {
        run("ip", &format!("-n {name} address flush dev {interface}"))?;
        run(
            "ip",
            &format!("-n {name} address add {address}/24 dev {interface}"),
        )?;
        run("ip", &format!("-n {name} link set {interface} up"))?;
    }
    Ok(())
}

/// Takes a node's carrier and addresses, as a power loss does.
pub fn disconnect(node: NodeName) -> Result<(), LabError> {
    let name = namespace(node);
    for interface in ["enp0s8", "enp0s9"] {
        run("ip", &format!("-n {name} link set {interface} down"))?;
        run("ip", &format!("-n {name} address flush dev {interface}"))?;
    }
    Ok(())
}

/// Drops every frame of a node on one side or both; its carrier stays.
pub fn partition(node: NodeName, side: Side) -> Result<(), LabError> {
    let ports = match side {
        Side::Front => vec![format!("{node}f")],
        Side::Private => vec![format!("{node}p")],
        Side::Both => vec![format!("{node}f"), format!("{node}p")],
    };
    let nft = |words: &str| run("ip", &format!("netns exec {SWITCH} nft {words}"));
    nft("add table bridge lab")?;
    nft("add chain bridge lab cut { type filter hook forward priority 0 ; }")?;
    for port in ports {
        nft(&format!("add rule bridge lab cut iifname {port} drop"))?;
        nft(&format!("add rule bridge lab cut oifname {port} drop"))?;
    }
    Ok(())
}

/// Drops what the nodes send each other from and to a TCP port, on both networks; everything else passes.
pub fn cut_port(port: u16) -> Result<(), LabError> {
    let nft = |words: &str| run("ip", &format!("netns exec {SWITCH} nft {words}"));
    nft("add table bridge lab")?;
    nft("add chain bridge lab cut { type filter hook forward priority 0 ; }")?;
    for node in NodeName::ALL {
        let other = node.other();
        for (from, to) in [
            (node.private(), other.private()),
            (node.front(), other.front()),
        ] {
            for end in ["sport", "dport"] {
                nft(&format!(
                    "add rule bridge lab cut ip saddr {from} ip daddr {to} tcp {end} {port} drop"
                ))?;
            }
        }
    }
    Ok(())
}

/// Ends every partition.
pub fn heal() -> Result<(), LabError> {
    // `add` first: deleting a table that is not there is an error.
    run(
        "ip",
        &format!("netns exec {SWITCH} nft add table bridge lab"),
    )?;
    run(
        "ip",
        &format!("netns exec {SWITCH} nft delete table bridge lab"),
    )?;
    Ok(())
}

/// Removes everything that [`up`] made.
pub fn down() -> Result<(), LabError> {
    let existing = namespaces()?;
    for node in NodeName::ALL {
        if existing.contains(&namespace(node)) {
            // By name: a deleted namespace releases its links late.
            for letter in ['p', 'f'] {
                drop(run("ip", &format!("-n {SWITCH} link del {node}{letter}")));
            }
            run("ip", &format!("netns delete {}", namespace(node)))?;
        }
    }
    for name in [CLIENT, SWITCH] {
        if existing.iter().any(|n| n == name) {
            run("ip", &format!("netns delete {name}"))?;
        }
    }
    Ok(())
}
