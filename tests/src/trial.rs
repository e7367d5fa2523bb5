//! A trial of the shared lab: a whole cluster whose client writes, something that happens to it, and what must be
//! true afterwards. The client's address is the witness.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    reason = "only tests use it: it fails by panicking and prints its figures"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::messenger::Received;
use crate::writer::now;
use crate::{
    Lab, LabError, Messenger, NodeName, Report, Roles, Turn, Writer, event, tell, wait_until,
};

use NodeName::{Node1, Node2};

/// Receives every alert of the whole run.
static MESSENGER: Mutex<Option<(u64, Messenger)>> = Mutex::new(None);
/// Generous: figures are printed.
pub const LIMIT: Duration = Duration::from_secs(90);
/// What a busy machine may add to a pause.
pub const BUSY: f64 = 2.0;
/// A standby that has not opened so long after the power loss, and has said why, has refused: seconds.
pub const WATCHED: f64 = 12.0;
/// In the failover log of a standby that does not open by itself.
/// The last one when its checks are so quick that Keepalived does not let it have the VIP.
const REFUSED: [&str; 4] = [
    "may lack writes",
    "cannot be read, so another node",
    "would miss in a change of roles",
    "has not met since its boot",
];
/// A proof is renewed several times a second: seconds.
pub const FRESH: f64 = 1.5;
/// The unit of the resident program.
pub const RESIDENT: &str = "keepalived-companion-links";
/// What happened to the roles of a node.
pub const FAILOVER_LOG: &str = "/var/log/keepalived_failover.log";
/// When a primary last showed its pledge to this node.
pub const PROOF: &str = "/run/keepalived-companion/proof.json";
/// The resident program lives.
pub const SIGN: &str = "/run/keepalived-companion/resident.json";
/// Since when this node may lack writes.
pub const STALE: &str = "/var/lib/keepalived-companion/stale.json";
/// Since when this node acknowledges without a replica.
pub const ALONE: &str = "/var/lib/keepalived-companion/alone.json";

/// A file of a node; none where it is not there.
pub fn json(lab: &Lab, node: NodeName, path: &str) -> Result<Option<Value>, LabError> {
    let read = lab.exec(node, &["cat", path])?;
    Ok(serde_json::from_str(&read.text()).ok())
}

/// Whether a node has this file.
pub fn is_there(lab: &Lab, node: NodeName, path: &str) -> Result<bool, LabError> {
    Ok(lab.exec(node, &["test", "-e", path])?.status.success())
}

/// W of this lab, in seconds.
pub fn window(lab: &Lab) -> f64 {
    let sign = json(lab, Node1, SIGN).unwrap().unwrap();
    sign["window_ms"].as_f64().unwrap() / 1000.0
}

/// Waits until the standby of `primary` has a fresh proof, so commits wait for it, and nothing else is noted.
pub fn complete(lab: &Lab, primary: NodeName) {
    lab.complete(primary, LIMIT).unwrap();
}

impl Lab {
    /// Waits until the standby of `primary` has a fresh proof, so commits wait for it, and nothing else is noted:
    /// from then on it opens when the primary loses its power.
    pub fn complete(&self, primary: NodeName, limit: Duration) -> Result<(), LabError> {
        let standby = primary.other();
        let start = Instant::now();
        wait_until("a standby that has everything", limit, || {
            let shown = json(self, standby, PROOF)?
                .and_then(|proofs| proofs["shown"][primary.to_string()]["asked_at"].as_f64());
            let age = shown.map(|asked_at| observe::uptime_seconds() - asked_at);
            let noted = [(primary, ALONE), (standby, ALONE), (standby, STALE)]
                .into_iter()
                .filter_map(|(node, path)| match is_there(self, node, path) {
                    Ok(false) => None,
                    Ok(true) => Some(Ok(path)),
                    Err(error) => Some(Err(error)),
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(if age.is_some_and(|age| age < FRESH) && noted.is_empty() {
                Ok(())
            } else {
                Err(format!("a proof of age {age:?}, {noted:?}"))
            })
        })?;
        if start.elapsed() > Duration::from_secs(2) {
            tell(&format!(
                "{standby} has everything after {:.1?}",
                start.elapsed()
            ));
        }
        Ok(())
    }
}

/// Waits for a moment of the scenario, in seconds on the monotonic clock.
pub fn await_moment(at: f64) {
    let left = at - now();
    let limit = Duration::try_from_secs_f64(left).unwrap_or_default() + LIMIT;
    wait_until("a moment of the scenario", limit, || {
        Ok(if now() >= at {
            Ok(())
        } else {
            Err(at.to_string())
        })
    })
    .unwrap();
}

/// The shared lab with node1 as the primary.
pub fn quiet_lab(program: &str) -> (Turn, Lab) {
    quiet_lab_with(program, Messenger::start)
}

/// The same, with a messenger that is started so.
pub fn quiet_lab_with(
    program: &str,
    start: fn(&Lab) -> Result<Messenger, LabError>,
) -> (Turn, Lab) {
    let (one_at_a_time, lab) = Lab::whole(program, LIMIT).unwrap();
    let mut messenger = messenger();
    let made_anew = Lab::made_anew();
    if messenger
        .as_ref()
        .is_none_or(|(started, _)| *started != made_anew)
    {
        *messenger = Some((made_anew, start(&lab).unwrap()));
    }
    drop(messenger);
    (one_at_a_time, lab)
}

fn messenger() -> MutexGuard<'static, Option<(u64, Messenger)>> {
    MESSENGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every alert that has arrived.
pub fn received() -> Vec<Received> {
    messenger()
        .as_ref()
        .map(|(_, messenger)| messenger.received())
        .unwrap_or_default()
}

/// One run: a whole cluster whose client writes.
#[derive(Debug)]
pub struct Trial<'a> {
    lab: &'a Lab,
    /// For a person.
    pub what: String,
    writer: Option<Writer>,
    /// W, in seconds.
    pub window: f64,
    /// Lines of node2's failover log, and alerts, before it.
    lines: usize,
    alerts: usize,
}

impl<'a> Trial<'a> {
    /// A whole cluster with node1 as the primary and a complete standby, and a client that writes.
    pub fn start(lab: &'a Lab, what: impl Into<String>) -> Self {
        lab.make_whole(Node1, LIMIT).unwrap();
        complete(lab, Node1);
        let writer = Writer::start(lab, 1, event::first_row()).unwrap();
        writer.await_more(100, LIMIT).unwrap();
        Self {
            what: what.into(),
            window: window(lab),
            lines: log_lines(lab, Node2).len(),
            alerts: received().len(),
            writer: Some(writer),
            lab,
        }
    }

    /// The client.
    pub fn writer(&self) -> &Writer {
        self.writer.as_ref().unwrap()
    }

    /// Ends the client.
    pub fn stop(&mut self) -> Report {
        self.writer.take().unwrap().stop().unwrap()
    }

    /// Ends a run in which node1 has to go on, and gives the longest pause since `struck`.
    pub fn node1_goes_on(&mut self, struck: f64) -> f64 {
        self.writer().await_more(200, LIMIT).unwrap();
        let roles = self.lab.roles().unwrap();
        let report = self.stop();
        let pause = report.longest_gap(struck - 0.1);
        let lost = report.lost(self.lab, Node1).unwrap().len();
        println!(
            "{}: {pause:.2} s without a write, {} acknowledged, {lost} lost",
            self.what,
            report.rows.len()
        );
        assert_eq!(lost, 0, "{}: acknowledged and lost", self.what);
        assert_eq!(roles.writable, [Node1], "{}", self.what);
        pause
    }

    /// Ends a run in which the right to write has moved once at most since `struck`, and gives the primary and the
    /// longest pause.
    pub fn goes_on(&mut self, struck: f64) -> (NodeName, f64) {
        let lab = self.lab;
        self.writer()
            .await_more(200, LIMIT)
            .unwrap_or_else(|error| self.fails(&error.to_string()));
        lab.await_roles("a primary with a standby", LIMIT, Roles::whole)
            .unwrap_or_else(|error| self.fails(&error.to_string()));
        let primary = lab.roles().unwrap().writable[0];
        let report = self.stop();
        let pause = report.longest_gap(struck - 0.1);
        let lost = report.lost(lab, primary).unwrap().len();
        let mut servers: Vec<u32> = report.rows.iter().map(|row| row.server).collect();
        servers.dedup();
        println!(
            "{}: {pause:.2} s without a write, {} acknowledged, {lost} lost, {primary} is the primary",
            self.what,
            report.rows.len()
        );
        assert_eq!(lost, 0, "{}: acknowledged and lost", self.what);
        assert!(
            servers.len() <= 2,
            "{}: acknowledged by {servers:?} in turn",
            self.what
        );
        complete(lab, primary);
        (primary, pause)
    }

    /// A pause is no longer than W, and what a busy machine adds.
    pub fn assert_within_window(&self, pause: f64) {
        let most = self.window + BUSY;
        assert!(pause <= most, "{}: {pause:.2} s of {most:.1}", self.what);
    }

    /// Node1's power was cut at `lost_at`, after trouble since `begun`: node2 opens with everything that was
    /// acknowledged, or says that it may lack writes, and stays closed until node1 is back.
    pub fn opens_with_everything_or_refuses(&mut self, begun: f64, lost_at: f64) {
        self.opens_or_refuses(begun, lost_at);
    }

    /// Gives whether it has opened.
    fn opens_or_refuses(&mut self, begun: f64, lost_at: f64) -> bool {
        let lab = self.lab;
        let what = self.what.clone();
        let mut opened = false;
        wait_until("the standby to open, or to refuse", LIMIT, || {
            let closed = lab.sql(Node2, "SELECT @@read_only + 0")?;
            if closed == "0" {
                opened = true;
                return Ok(Ok(()));
            }
            let refused = log_lines(lab, Node2)
                .iter()
                .skip(self.lines)
                .any(|line| REFUSED.iter().any(|words| line.contains(words)));
            let since = now() - lost_at;
            Ok(if refused && since > WATCHED {
                Ok(())
            } else {
                Err(format!("closed, refused: {refused}, {since:.1} s"))
            })
        })
        .unwrap_or_else(|error| self.fails(&error.to_string()));
        if opened {
            self.writer()
                .await_more(200, LIMIT)
                .unwrap_or_else(|error| self.fails(&error.to_string()));
        } else {
            let alerted = || {
                let received = received();
                received.iter().skip(self.alerts).any(|alert| {
                    alert.node == Node2.to_string()
                        && ["role-attention", "standby-stale"].contains(&alert.event.as_str())
                })
            };
            wait_until("the alert of the refusal", LIMIT, || {
                Ok(if alerted() {
                    Ok(())
                } else {
                    Err(String::new())
                })
            })
            .unwrap_or_else(|error| self.fails(&error.to_string()));
            assert_eq!(lab.sql(Node2, "SELECT @@read_only + 0").unwrap(), "1");
        }
        lab.heal().unwrap();
        lab.power_on(Node1).unwrap();
        lab.await_roles("a primary with a standby", LIMIT, Roles::whole)
            .unwrap_or_else(|error| self.fails(&error.to_string()));
        self.writer()
            .await_more(50, LIMIT)
            .unwrap_or_else(|error| self.fails(&error.to_string()));
        let primary = lab.roles().unwrap().writable[0];
        let report = self.stop();
        let before = report.longest_gap_within(begun - 0.1, lost_at);
        let takes_over = report.longest_gap(lost_at);
        let lost = report.lost(lab, primary).unwrap().len();
        println!(
            "{what}: {before:.2} s without a write before the power loss and {takes_over:.2} s after it, \
             {} acknowledged, {lost} lost, {}",
            report.rows.len(),
            if opened { "opened" } else { "refused" }
        );
        assert_eq!(lost, 0, "{what}: acknowledged and lost");
        self.assert_within_window(before);
        complete(lab, primary);
        if !opened {
            self.arrives(Node2, &["role-attention", "standby-stale"]);
        }
        opened
    }

    /// The same, where there is nothing to refuse for.
    pub fn opens_with_everything(&mut self, begun: f64, lost_at: f64) {
        if !self.opens_or_refuses(begun, lost_at) {
            self.fails("the standby has not opened");
        }
    }

    /// Waits until an alert of one of these kinds has arrived from a node.
    pub fn arrives(&self, node: NodeName, events: &[&str]) {
        let _text = self.arrival(node, events);
    }

    /// The same, and gives its text.
    pub fn arrival(&self, node: NodeName, events: &[&str]) -> String {
        let mut text = String::new();
        wait_until("an alert", LIMIT, || {
            let received = received();
            let arrived = received.iter().skip(self.alerts).find(|alert| {
                alert.node == node.to_string() && events.contains(&alert.event.as_str())
            });
            Ok(if let Some(arrived) = arrived {
                text.clone_from(&arrived.text);
                Ok(())
            } else {
                Err(format!("none of {events:?} from {node}"))
            })
        })
        .unwrap_or_else(|error| self.fails(&error.to_string()));
        text
    }

    /// Fails; what both nodes say is printed.
    pub fn fails(&self, error: &str) -> ! {
        panic!("{}: {error}", self.what);
    }
}

/// The failover log of a node.
pub fn log_lines(lab: &Lab, node: NodeName) -> Vec<String> {
    let read = lab.exec(node, &["cat", FAILOVER_LOG]).unwrap();
    read.text().lines().map(str::to_owned).collect()
}
