//! Both nodes, their links, VRRP and the audits as a small model, explored exhaustively: whatever
//! happens in whatever order, no two nodes take clients' writes, and once faults stop the cluster
//! comes to one primary with a standby by itself, or to a refusal that names a command.
//!
//! The decisions are the real ones: each step builds an `Observation` and asks `decide`,
//! `plan_promotion` and `fitness`. Only their effects are modelled here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints what it covered"
)]

use std::fmt::Write;

use role::{
    Channel, Contact, Database, Decision, Epoch, GtidSet, IoThread, LastPrimary, Limits, NodeView,
    Observation, PeerView, Plan, Policy, PromotionKind, Refusal, SemiSync, Server, Step, decide,
    fitness, plan_promotion,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

const NAMES: [&str; 2] = ["node1", "node2"];
/// The shipped settings.
const POLICY: Policy = Policy {
    promote_unmet_after_boot: false,
    maintenance: false,
};
const LIMITS: Limits = Limits {
    loss: 0,
    accept_loss: false,
    force: false,
};
/// How many ticks of both audits the cluster may need once faults stop.
const PATIENCE: usize = 8;

/// One transaction; its sequence number is its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Transaction {
    /// A client's row, written on a node.
    Row { on: usize, number: u8 },
    /// An opening.
    Epoch { number: u64, by: usize },
}

impl Transaction {
    fn server(self) -> usize {
        match self {
            Self::Row { on, .. } => on,
            Self::Epoch { by, .. } => by,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Process {
    Alive,
    Frozen,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    on: bool,
    vip: bool,
    standby_file: bool,
    process: Process,
    writable: bool,
    log: Vec<Transaction>,
    /// A channel to the other node, and whether its threads run.
    channel: Option<bool>,
    semi_sync: bool,
    // What the node remembers.
    met: bool,
    was_primary: bool,
    last_primary: Option<(Vec<Transaction>, bool)>,
    highest_epoch: u64,
    granted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cluster {
    nodes: [Node; 2],
    front: bool,
    private: bool,
    faults: u8,
    rows: u8,
    /// Rows acknowledged with a copy on both nodes.
    safe: Vec<Transaction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Write(usize),
    Vrrp,
    /// One run of the audit; killed after so many effects, when a number is there.
    Tick(usize, Option<usize>),
    // Faults.
    PowerOff(usize),
    KillDatabase(usize),
    FreezeDatabase(usize),
    StopChannel(usize),
    CutFront,
    CutPrivate,
    // Their ends.
    PowerOn(usize),
    StartDatabase(usize),
    Thaw(usize),
    HealFront,
    HealPrivate,
}

fn gtids(log: &[Transaction]) -> GtidSet {
    let mut text = String::new();
    for server in 0..2 {
        if let Some(last) = log.iter().rposition(|t| t.server() == server) {
            let comma = if text.is_empty() { "" } else { "," };
            write!(text, "{comma}0-{}-{}", server + 1, last + 1).unwrap();
        }
    }
    text.parse().unwrap()
}

impl Node {
    fn new(primary: bool, log: Vec<Transaction>) -> Self {
        Self {
            on: true,
            vip: primary,
            standby_file: false,
            process: Process::Alive,
            writable: primary,
            last_primary: (!primary).then(|| (log.clone(), true)),
            log,
            channel: (!primary).then_some(true),
            semi_sync: primary,
            met: true,
            was_primary: primary,
            highest_epoch: 1,
            granted: false,
        }
    }

    fn answers(&self) -> bool {
        self.on && self.process == Process::Alive
    }

    fn open(&self) -> bool {
        self.answers() && self.writable
    }

    fn epoch(&self) -> Option<Epoch> {
        self.log.iter().rev().find_map(|t| match t {
            Transaction::Epoch { number, by } => Some(Epoch {
                number: *number,
                primary: NAMES[*by].to_owned(),
            }),
            Transaction::Row { .. } => None,
        })
    }

    fn learn_epoch(&mut self) {
        self.highest_epoch = self
            .highest_epoch
            .max(self.epoch().map_or(0, |epoch| epoch.number));
    }
}

impl Cluster {
    fn connected(&self) -> bool {
        self.nodes.iter().all(|n| n.on) && (self.private || self.front)
    }

    /// Whether `node` receives what the other one commits.
    fn replicates(&self, node: usize) -> bool {
        self.private
            && self.nodes.iter().all(Node::answers)
            && self.nodes[node].channel == Some(true)
            && self.nodes[1 - node].log.starts_with(&self.nodes[node].log)
    }

    fn server(&self, node: usize) -> Server {
        let n = &self.nodes[node];
        let replica = self.replicates(1 - node);
        let received = gtids(&n.log);
        Server {
            server_id: u32::try_from(node).unwrap() + 1,
            writable: n.writable,
            epoch: n.epoch(),
            binlog_state: received.clone(),
            slave_pos: received.clone(),
            channels: n
                .channel
                .iter()
                .map(|running| Channel {
                    name: String::new(),
                    source: NAMES[1 - node].to_owned(),
                    io: match (running, self.replicates(node)) {
                        (false, _) => IoThread::Stopped,
                        (true, true) => IoThread::Running,
                        // A source that lacks what the replica has ends the thread with error 1236.
                        (true, false) if self.private && self.nodes[1 - node].answers() => {
                            IoThread::Stopped
                        }
                        (true, false) => IoThread::Connecting,
                    },
                    sql_running: *running,
                    follows_slave_pos: true,
                    io_errno: 0,
                    sql_errno: 0,
                    received: received.clone(),
                    filtered: false,
                })
                .collect(),
            semi_sync: SemiSync {
                enabled: n.semi_sync,
                active: n.semi_sync && replica,
                clients: u32::from(n.semi_sync && replica),
                replicas: u32::from(replica),
            },
        }
    }

    fn view(&self, node: usize) -> NodeView {
        let n = &self.nodes[node];
        NodeView {
            name: NAMES[node].to_owned(),
            vip: n.vip,
            keepalived: true,
            database: match n.process {
                Process::Alive => Database::Answering(Box::new(self.server(node))),
                Process::Frozen => Database::Silent,
                Process::Dead => Database::Down,
            },
        }
    }

    /// What a node sees, over SQL alone or with the forced command.
    fn observe(&self, node: usize, whole: bool) -> Observation {
        let peer = 1 - node;
        let contact = match (self.connected(), whole) {
            (false, _) => Contact::Silent,
            (true, true) => Contact::Node(Box::new(self.view(peer))),
            (true, false) if self.nodes[peer].answers() => {
                Contact::Database(Box::new(self.server(peer)))
            }
            (true, false) => Contact::HostUp,
        };
        let n = &self.nodes[node];
        Observation {
            local: self.view(node),
            peers: vec![PeerView {
                name: NAMES[peer].to_owned(),
                met: n.met
                    || n.was_primary
                    || matches!(contact, Contact::Database(_) | Contact::Node(_)),
                last_primary: n.last_primary.as_ref().map(|(log, semi_sync)| LastPrimary {
                    history: gtids(log),
                    semi_sync: *semi_sync,
                }),
                contact,
            }],
            highest_epoch: n.highest_epoch,
            witness: None,
            granted_to: n.granted.then(|| NAMES[peer].to_owned()),
        }
    }

    /// Looks, and remembers what was seen.
    fn look(&mut self, node: usize, whole: bool) -> Observation {
        let mut seen = self.observe(node, whole);
        let peer = seen.peers[0].server().cloned();
        let peer_log = self.nodes[1 - node].log.clone();
        let n = &mut self.nodes[node];
        if n.answers() {
            n.was_primary |= n.writable;
            n.learn_epoch();
        }
        if let Some(server) = peer {
            n.met = true;
            n.highest_epoch = n.highest_epoch.max(server.epoch_number());
            n.last_primary = server
                .writable
                .then_some((peer_log, server.semi_sync.active));
        }
        seen.highest_epoch = n.highest_epoch;
        seen
    }

    fn tick(&mut self, node: usize, budget: &mut usize) -> Option<Decision> {
        if !self.nodes[node].on {
            return None;
        }
        let urgent = self.nodes[node].vip && !self.nodes[node].open();
        if !urgent {
            let seen = self.look(node, false);
            let decision = decide(&seen, POLICY);
            if matches!(decision, Decision::Stay(_) | Decision::Wait(_)) {
                self.settle(node, &seen);
                return Some(decision);
            }
        }
        let seen = self.look(node, true);
        let decision = decide(&seen, POLICY);
        self.act(node, &seen, &decision, budget);
        if *budget > 0 && matches!(decision, Decision::Stay(_) | Decision::Wait(_)) {
            self.settle(node, &seen);
        }
        Some(decision)
    }

    /// A VIP given up for a cause that is gone: takes part again.
    fn settle(&mut self, node: usize, seen: &Observation) {
        if !seen.local.entitled() {
            self.nodes[node].standby_file = false;
        }
    }

    fn close(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        match n.process {
            Process::Alive => {
                n.writable = false;
                n.semi_sync = false;
            }
            Process::Frozen => n.process = Process::Dead,
            Process::Dead => {}
        }
    }

    fn open_epoch(&mut self, node: usize, number: u64) {
        let n = &mut self.nodes[node];
        n.log.push(Transaction::Epoch { number, by: node });
        n.learn_epoch();
        self.replicate(node);
    }

    /// What a primary commits reaches its replica at once, or when it is connected again.
    fn replicate(&mut self, primary: usize) {
        if self.replicates(1 - primary) {
            let log = self.nodes[primary].log.clone();
            self.nodes[1 - primary].log = log;
        }
    }

    fn act(&mut self, node: usize, seen: &Observation, decision: &Decision, budget: &mut usize) {
        let peer = 1 - node;
        match decision {
            Decision::Stay(_) | Decision::Wait(_) | Decision::Refuse { .. } => {}
            Decision::ClaimEpoch => self.open_epoch(node, seen.highest_epoch + 1),
            Decision::ForgetChannel => self.nodes[node].channel = None,
            Decision::SemiSync(on) => self.nodes[node].semi_sync = *on,
            Decision::Promote(_) => match plan_promotion(seen, PromotionKind::TakeOver, LIMITS) {
                Ok(plan) => self.execute(node, &plan, budget),
                Err(
                    Refusal::Unmet { .. }
                    | Refusal::CannotFence { .. }
                    | Refusal::LocalDatabaseDown
                    | Refusal::BothThreadsStopped
                    | Refusal::NotPrimary { .. },
                ) => {}
                Err(_own_data) => self.nodes[node].standby_file = true,
            },
            Decision::SwitchOver { from } => {
                let kind = PromotionKind::SwitchOver { from: from.clone() };
                if let Ok(plan) = plan_promotion(seen, kind, LIMITS) {
                    self.execute(node, &plan, budget);
                }
            }
            Decision::CatchUp { .. } | Decision::Attach { .. } => {
                self.nodes[node].channel = Some(true);
                self.replicate(peer);
            }
            Decision::Diverged { .. } => {
                // Taken back, or rebuilt: what the primary has, and nothing else.
                let log = self.nodes[peer].log.clone();
                self.nodes[node].log = log;
                self.nodes[node].channel = Some(true);
            }
            Decision::Fence { give_up_vip, .. } => {
                self.nodes[node].standby_file |= give_up_vip;
                self.close(node);
            }
            Decision::FenceAll { .. } => {
                self.close(node);
                self.close(peer);
            }
            Decision::FencePeers { .. } => self.close(peer),
            Decision::KillLocal => self.nodes[node].process = Process::Dead,
            Decision::GiveUpVip(_) => self.nodes[node].standby_file = true,
            Decision::RemoveAddress => self.nodes[node].vip = false,
        }
    }

    /// Carries out a plan; the tool dies when the budget is used up.
    fn execute(&mut self, node: usize, plan: &Plan, budget: &mut usize) {
        let peer = 1 - node;
        for step in &plan.steps {
            // Files are no part of this model: to be killed beside such a step is nothing new in it.
            if matches!(step, Step::SealFiles { .. } | Step::StopReceiving) {
                continue;
            }
            if *budget == 0 {
                return;
            }
            *budget -= 1;
            match step {
                Step::FencePeer { .. } => self.close(peer),
                Step::FreezePeer { .. } => self.nodes[peer].writable = false,
                Step::CatchUp { .. } => {
                    self.replicate(peer);
                    if self.nodes[node].log != self.nodes[peer].log {
                        // Undone.
                        self.nodes[peer].writable = true;
                        return;
                    }
                }
                Step::Grant { .. } => self.nodes[peer].granted = true,
                Step::Harvest { .. } => {
                    if self.nodes[peer].log.starts_with(&self.nodes[node].log) {
                        let log = self.nodes[peer].log.clone();
                        self.nodes[node].log = log;
                        self.nodes[node].learn_epoch();
                    }
                }
                Step::Drain
                | Step::StopReplication
                | Step::SealFiles { .. }
                | Step::StopReceiving => {}
                Step::TakeBackGrant => self.nodes[node].granted = false,
                Step::Open => self.nodes[node].writable = true,
                Step::ClaimEpoch { epoch } => self.open_epoch(node, *epoch),
                Step::ForgetChannel => self.nodes[node].channel = None,
                Step::FetchVip { .. } => self.nodes[peer].standby_file = true,
                Step::Demote { .. } => {
                    self.nodes[peer].semi_sync = false;
                    self.nodes[peer].channel = Some(true);
                    self.nodes[peer].granted = false;
                }
            }
        }
    }

    /// What VRRP makes of the checks. `nopreempt`: a healthy holder stays.
    fn vrrp(&mut self) {
        let eligible: Vec<bool> = (0..2)
            .map(|node| {
                let n = &self.nodes[node];
                n.answers() && !n.standby_file && fitness(&self.observe(node, false)).is_fit()
            })
            .collect();
        for (n, eligible) in self.nodes.iter_mut().zip(&eligible) {
            n.vip &= eligible;
        }
        if !self.front || self.nodes.iter().any(|n| !n.on) {
            for (n, eligible) in self.nodes.iter_mut().zip(&eligible) {
                n.vip = *eligible;
            }
            return;
        }
        match (self.nodes[0].vip, self.nodes[1].vip) {
            // Two masters met: the entitled file outranks the priority.
            (true, true) => {
                let stays = usize::from(!self.nodes[0].open() && self.nodes[1].open());
                self.nodes[1 - stays].vip = false;
            }
            (false, false) => {
                if let Some(first) = eligible.iter().position(|e| *e) {
                    self.nodes[first].vip = true;
                }
            }
            (true, false) | (false, true) => {}
        }
    }

    fn write(&mut self, node: usize) {
        self.rows += 1;
        let row = Transaction::Row {
            on: node,
            number: self.rows,
        };
        let copied = self.nodes[node].semi_sync && self.replicates(1 - node);
        self.nodes[node].log.push(row);
        self.replicate(node);
        if copied {
            self.safe.push(row);
        }
    }

    /// Ends every fault, as a person and systemd would.
    fn repair(&mut self) {
        self.front = true;
        self.private = true;
        for node in &mut self.nodes {
            power_on(node);
            start_database(node);
            node.process = Process::Alive;
        }
    }

    /// One primary with the VIP and an attached standby.
    fn whole(&self) -> bool {
        (0..2).any(|primary| {
            self.nodes[primary].open()
                && self.nodes[primary].vip
                && !self.nodes[1 - primary].open()
                && !self.nodes[1 - primary].vip
                && self.replicates(1 - primary)
        })
    }

    /// Lets everything run without faults; the last decisions when it does not end well.
    fn settles(&self) -> Result<(), String> {
        let mut cluster = self.clone();
        cluster.repair();
        let mut last = Vec::new();
        for _ in 0..PATIENCE {
            last.clear();
            for node in 0..2 {
                cluster.vrrp();
                last.push(cluster.tick(node, &mut usize::MAX.clone()));
            }
            cluster.vrrp();
            if cluster.whole() {
                return cluster.kept_what_was_safe();
            }
        }
        let refused = last
            .iter()
            .any(|d| matches!(d, Some(Decision::Refuse { .. })));
        if refused {
            return Ok(());
        }
        Err(format!("{last:?} in {cluster:?}"))
    }

    fn kept_what_was_safe(&self) -> Result<(), String> {
        let primary = self.nodes.iter().find(|n| n.open()).unwrap();
        match self.safe.iter().find(|row| !primary.log.contains(row)) {
            None => Ok(()),
            Some(row) => Err(format!("lost {row:?} in {self:?}")),
        }
    }

    /// Clients reach a node when it has the VIP and its database is open.
    fn two_take_writes(&self) -> bool {
        self.nodes.iter().all(|n| n.open() && n.vip)
    }
}

fn power_on(node: &mut Node) {
    if node.on {
        return;
    }
    node.on = true;
    node.process = Process::Dead;
    node.standby_file = false;
    node.met = false;
    node.was_primary = false;
    node.last_primary = None;
    start_database(node);
}

/// It boots read-only, its replication stopped.
fn start_database(node: &mut Node) {
    if node.process == Process::Dead {
        node.process = Process::Alive;
        node.writable = false;
        node.semi_sync = false;
        node.channel = node.channel.map(|_| false);
    }
}

/// The rules of one exploration.
struct Rules {
    faults: u8,
    rows: u8,
    /// Both links may be cut at once: without a witness this opens both, as documented.
    full_partition: bool,
}

impl Model for Rules {
    type State = Cluster;
    type Action = Event;

    fn init_states(&self) -> Vec<Cluster> {
        let log = vec![Transaction::Epoch { number: 1, by: 0 }];
        vec![Cluster {
            nodes: [Node::new(true, log.clone()), Node::new(false, log)],
            front: true,
            private: true,
            faults: self.faults,
            rows: 0,
            safe: Vec::new(),
        }]
    }

    fn actions(&self, state: &Cluster, events: &mut Vec<Event>) {
        events.push(Event::Vrrp);
        for (index, node) in state.nodes.iter().enumerate() {
            if node.on {
                events.push(Event::Tick(index, None));
            } else {
                events.push(Event::PowerOn(index));
            }
            if node.open() && node.vip && state.rows < self.rows {
                events.push(Event::Write(index));
            }
            if node.on && node.process == Process::Dead {
                events.push(Event::StartDatabase(index));
            }
            if node.on && node.process == Process::Frozen {
                events.push(Event::Thaw(index));
            }
            if state.faults == 0 || !node.on {
                continue;
            }
            events.push(Event::PowerOff(index));
            if node.process == Process::Alive {
                events.push(Event::KillDatabase(index));
                events.push(Event::FreezeDatabase(index));
            }
            if node.channel == Some(true) {
                events.push(Event::StopChannel(index));
            }
            for effects in 1..8 {
                events.push(Event::Tick(index, Some(effects)));
            }
        }
        if !state.front {
            events.push(Event::HealFront);
        } else if state.faults > 0 && (state.private || self.full_partition) {
            events.push(Event::CutFront);
        }
        if !state.private {
            events.push(Event::HealPrivate);
        } else if state.faults > 0 && (state.front || self.full_partition) {
            events.push(Event::CutPrivate);
        }
    }

    fn next_state(&self, before: &Cluster, event: Event) -> Option<Cluster> {
        let mut state = before.clone();
        match event {
            Event::Write(node) => state.write(node),
            Event::Vrrp => state.vrrp(),
            Event::Tick(node, None) => {
                state.tick(node, &mut usize::MAX.clone());
            }
            Event::Tick(node, Some(effects)) => {
                let mut budget = effects;
                state.tick(node, &mut budget);
                if budget > 0 {
                    // The tool ended before it was killed: the same as an unharmed tick.
                    return None;
                }
                state.faults -= 1;
            }
            Event::PowerOff(node) => {
                let node = &mut state.nodes[node];
                node.on = false;
                node.vip = false;
                node.writable = false;
            }
            Event::KillDatabase(node) => {
                state.nodes[node].process = Process::Dead;
                state.nodes[node].writable = false;
            }
            Event::FreezeDatabase(node) => state.nodes[node].process = Process::Frozen,
            Event::StopChannel(node) => state.nodes[node].channel = Some(false),
            Event::CutFront => state.front = false,
            Event::CutPrivate => state.private = false,
            Event::PowerOn(node) => power_on(&mut state.nodes[node]),
            Event::StartDatabase(node) => start_database(&mut state.nodes[node]),
            Event::Thaw(node) => state.nodes[node].process = Process::Alive,
            Event::HealFront => state.front = true,
            Event::HealPrivate => {
                state.private = true;
                for node in 0..2 {
                    state.replicate(node);
                }
            }
        }
        let fault = matches!(
            event,
            Event::PowerOff(_)
                | Event::KillDatabase(_)
                | Event::FreezeDatabase(_)
                | Event::StopChannel(_)
                | Event::CutFront
                | Event::CutPrivate
        );
        state.faults -= u8::from(fault);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always("settles", |_, state: &Cluster| {
            state.settles().is_ok()
        })];
        // Roles that went to and fro without a new fault would open again and again.
        properties.push(Property::always(
            "calm",
            |rules: &Rules, state: &Cluster| {
                let most = 2 + usize::from(rules.faults) * 3 + usize::from(rules.rows);
                state.nodes.iter().all(|n| n.log.len() <= most)
            },
        ));
        if !self.full_partition {
            properties.push(Property::always(
                "one node takes writes",
                |_, state: &Cluster| !state.two_take_writes(),
            ));
        }
        properties
    }
}

/// Explores everything and explains the shortest way to what must not be.
fn explore(rules: Rules) {
    let checker = rules
        .checker()
        .finish_when(HasDiscoveries::Any)
        .threads(2)
        .spawn_bfs()
        .join();
    println!("{} states", checker.unique_state_count());
    assert!(checker.is_done());
    if let Some((name, path)) = checker.discoveries().into_iter().next() {
        let mut story = String::new();
        for (state, event) in path.into_vec() {
            let decision = match event {
                Some(Event::Tick(node, _)) => state.clone().tick(node, &mut usize::MAX.clone()),
                Some(_) | None => None,
            };
            writeln!(story, "{state:?}\n-> {event:?} {decision:?}").unwrap();
        }
        panic!("«{name}» fails:\n{story}");
    }
}

#[test]
fn one_fault_and_two_rows() {
    explore(Rules {
        faults: 1,
        rows: 2,
        full_partition: false,
    });
}

#[test]
fn three_faults_and_two_rows() {
    explore(Rules {
        faults: 3,
        rows: 2,
        full_partition: false,
    });
}

#[test]
fn a_full_partition_ends_with_one_primary_or_a_refusal() {
    explore(Rules {
        faults: 3,
        rows: 2,
        full_partition: true,
    });
}
