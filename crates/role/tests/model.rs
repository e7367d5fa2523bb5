//! Both nodes, their links, VRRP and the audits as a small model, explored exhaustively: whatever
//! happens in whatever order, no two nodes take clients' writes, and once faults stop the cluster
//! comes to one primary with a standby by itself, or to a refusal that names a command.
//!
//! The decisions are the real ones: each step builds an `Observation` and asks `decide`,
//! `plan_promotion`, `fitness` and the resident program's `alone::Primary::next`. Only their effects are
//! modelled here.
//!
//! The lease is the only clock: `Expire` is the moment at which a standby's proof is too old, and a primary's
//! window W is over exactly when no proof is left.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints what it covered"
)]

use std::fmt::Write;
use std::time::Duration;

use role::{
    Channel, Contact, Database, Decision, Epoch, GtidSet, IoThread, Known, Limits, NodeView,
    Observation, PeerView, Plan, Policy, PromotionKind, Proof, Refusal, SemiSync, Server, Step,
    alone, decide, fitness, plan_promotion,
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
    open_unmet: false,
    unfenced: false,
};
/// The proof of a standby that has one.
const HOLDS: Proof = Proof {
    age: Duration::ZERO,
    window: Duration::from_secs(4),
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
    /// Rows that wait for a replica: their clients know nothing yet.
    waiting: Vec<Transaction>,
    /// The resident program runs; its pledge stands.
    resident: bool,
    pledged: bool,
    // What the node remembers.
    met: bool,
    was_primary: bool,
    /// A proof that holds.
    proof: bool,
    stale: bool,
    alone_at: Option<u64>,
    highest_epoch: u64,
    granted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cluster {
    nodes: [Node; 2],
    front: bool,
    private: bool,
    /// The databases reach each other; ssh and VRRP have links of their own.
    sql: bool,
    /// This node reaches neither the other one nor the witness.
    isolated: Option<usize>,
    /// What this node asks is lost; what it is asked is not.
    mute: Option<usize>,
    /// There is a witness.
    witness: bool,
    /// Both links may be cut although there is no witness.
    split: bool,
    /// As it was: MariaDB's time-out lets commits go, and the standby believes what it last saw.
    time_out: bool,
    faults: u8,
    rows: u8,
    /// Rows whose clients were told that they are safe.
    acknowledged: Vec<Transaction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Write(usize),
    Vrrp,
    /// One run of the audit; killed after so many effects, when a number is there.
    Tick(usize, Option<usize>),
    /// One look of the resident program on the primary.
    Guard(usize),
    /// The resident program on the standby asks the primary.
    Ask(usize),
    /// The standby's proof is too old from now on.
    Expire(usize),
    // Faults.
    KillResident(usize),
    CutSql,
    Isolate(usize),
    Mute(usize),
    PowerOff(usize),
    KillDatabase(usize),
    FreezeDatabase(usize),
    StopChannel(usize),
    CutFront,
    CutPrivate,
    // Their ends.
    StartResident(usize),
    HealSql,
    Unisolate,
    Unmute,
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
            log,
            channel: (!primary).then_some(true),
            semi_sync: primary,
            waiting: Vec::new(),
            resident: true,
            pledged: primary,
            met: true,
            was_primary: primary,
            proof: !primary,
            stale: false,
            alone_at: None,
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
    /// What `node` asks reaches the other one.
    fn reaches(&self, node: usize) -> bool {
        self.nodes.iter().all(|n| n.on)
            && (self.private || self.front)
            && self.isolated.is_none()
            && self.mute != Some(node)
    }

    /// Whether `node` receives what the other one commits.
    fn replicates(&self, node: usize) -> bool {
        self.private
            && self.sql
            && self.reaches(node)
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
                        (true, false)
                            if self.private
                                && self.sql
                                && self.reaches(node)
                                && self.nodes[1 - node].answers() =>
                        {
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
            vip: n.vip.into(),
            keepalived: Known::Yes,
            database: match n.process {
                Process::Alive => Database::Answering(Box::new(self.server(node))),
                Process::Frozen => Database::Silent,
                Process::Dead => Database::Down,
            },
            highest_epoch: n.highest_epoch,
        }
    }

    /// What a node sees, over SQL alone or with the forced command.
    fn observe(&self, node: usize, whole: bool) -> Observation {
        let peer = 1 - node;
        let contact = match (self.reaches(node), whole) {
            (false, _) => Contact::Silent,
            // Packets to the database's port are dropped.
            (true, false) if !self.sql => Contact::Silent,
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
                last_primary: None,
                proof: n.proof.then_some(HOLDS),
                contact,
            }],
            highest_epoch: n.highest_epoch,
            witness: self.witness.then_some(self.isolated != Some(node)),
            granted_to: n.granted.then(|| NAMES[peer].to_owned()),
            alone_at: n.alone_at,
            stale_since: n.stale.then(String::new),
            unread: None,
            unwritable: None,
        }
    }

    /// Looks, and remembers what was seen.
    fn look(&mut self, node: usize, whole: bool) -> Observation {
        let mut seen = self.observe(node, whole);
        let peer = seen.peers[0].server().cloned();
        let remembered = match &seen.peers[0].contact {
            Contact::Node(node) => node.highest_epoch,
            Contact::Silent | Contact::HostUp | Contact::Database(_) => 0,
        };
        let has_all = self.nodes[node].log.starts_with(&self.nodes[1 - node].log);
        let time_out = self.time_out;
        let n = &mut self.nodes[node];
        if n.answers() {
            n.was_primary |= n.writable;
            n.learn_epoch();
        }
        n.highest_epoch = n.highest_epoch.max(remembered);
        if let Some(server) = peer {
            n.met = true;
            n.highest_epoch = n.highest_epoch.max(server.epoch_number());
            let of_the_peer = |epoch: &Epoch| epoch.primary == NAMES[1 - node];
            if time_out {
                n.proof = !server.writable || server.semi_sync.active;
            } else if !server.writable
                && has_all
                && server.epoch.as_ref().is_some_and(of_the_peer)
                && n.answers()
                && !n.writable
            {
                // Its last primary is closed, and has nothing that is not here.
                n.proof = true;
                n.stale = false;
            }
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
        if seen.local.entitled() != Known::Yes {
            self.nodes[node].standby_file = false;
        }
    }

    fn close(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        match n.process {
            // What waits for a replica would be committed, and its clients told so, if it were ended.
            Process::Alive if !n.waiting.is_empty() => kill(n),
            Process::Alive => {
                n.writable = false;
                n.semi_sync = false;
                n.pledged = false;
            }
            Process::Frozen => kill(n),
            Process::Dead => {}
        }
        // Whoever is fenced relies on nobody any more.
        if !self.time_out {
            n.proof = false;
            n.alone_at = None;
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
            let told = std::mem::take(&mut self.nodes[primary].waiting);
            self.acknowledged.extend(told);
        }
    }

    /// The resident program of an open primary looks and does one thing.
    fn guard(&mut self, node: usize) {
        let peer = 1 - node;
        let other = &self.nodes[peer];
        let standby = match self.reaches(node) {
            false => alone::Standby::Silent,
            true if other.open() || other.vip => alone::Standby::TakesOver,
            true if other.stale && !other.proof => alone::Standby::Renounced,
            true => alone::Standby::Relies,
        };
        let n = &self.nodes[node];
        let seen = alone::Primary {
            bound: n.semi_sync,
            pledged: n.pledged,
            unpledged_for: if other.proof {
                Duration::ZERO
            } else {
                HOLDS.window
            },
            replicas: u32::from(self.replicates(peer)),
            waiting: (!n.waiting.is_empty()).then_some(HOLDS.window),
            standby,
            entitled: Some(n.vip),
            outdated: n.highest_epoch > n.epoch().map_or(0, |epoch| epoch.number)
                || (self.reaches(node) && other.highest_epoch > n.highest_epoch),
            witness: self.witness.then_some(self.isolated != Some(node)),
        };
        match seen.next(HOLDS.window) {
            alone::Next::Pledge => {
                self.nodes[node].semi_sync = true;
                self.replicate(node);
                self.nodes[node].pledged = self.replicates(peer);
                self.nodes[node].alone_at = None;
            }
            alone::Next::TakeBack => self.nodes[node].pledged = false,
            alone::Next::GoAlone => {
                let n = &mut self.nodes[node];
                n.alone_at = n.epoch().map(|epoch| epoch.number);
                n.semi_sync = false;
                let told = std::mem::take(&mut n.waiting);
                self.acknowledged.extend(told);
            }
            // It is asked again while it relies on this primary: now it gives that up.
            alone::Next::Wait if standby == alone::Standby::Relies && seen.replicas == 0 => {
                if seen.bound && !seen.pledged {
                    self.renounce(peer);
                }
            }
            alone::Next::Ask | alone::Next::Wait => {}
        }
    }

    fn renounce(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.proof = false;
        n.stale = true;
    }

    /// The standby's resident program asks, over SQL or ssh.
    fn ask(&mut self, node: usize) {
        let primary = &self.nodes[1 - node];
        if self.reaches(node)
            && primary.open()
            && primary.pledged
            && self.nodes[node].log.starts_with(&primary.log)
        {
            let n = &mut self.nodes[node];
            n.proof = true;
            n.stale = false;
        }
    }

    fn replicate_both(&mut self) {
        for node in 0..2 {
            self.replicate(node);
        }
    }

    fn act(&mut self, node: usize, seen: &Observation, decision: &Decision, budget: &mut usize) {
        let peer = 1 - node;
        match decision {
            Decision::Stay(_) | Decision::Wait(_) | Decision::Refuse { .. } => {}
            Decision::ClaimEpoch => self.open_epoch(node, seen.highest_epoch + 1),
            Decision::ForgetChannel => self.nodes[node].channel = None,
            Decision::SemiSyncOff => self.nodes[node].semi_sync = false,
            Decision::Promote(_) => match plan_promotion(seen, PromotionKind::TakeOver, LIMITS) {
                Ok(plan) => self.execute(node, &plan, budget),
                Err(
                    Refusal::Unmet { .. }
                    | Refusal::CannotFence { .. }
                    | Refusal::MayLack { .. }
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
            Decision::KillLocal => kill(&mut self.nodes[node]),
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
                Step::StopReceivingFrom { .. } => self.nodes[node].channel = Some(false),
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
                Step::Grant { .. } => {
                    self.nodes[peer].granted = true;
                    self.nodes[peer].alone_at = None;
                }
                Step::Harvest { .. } => {
                    if self.nodes[peer].log.starts_with(&self.nodes[node].log) {
                        let log = self.nodes[peer].log.clone();
                        self.nodes[node].log = log;
                        self.nodes[node].learn_epoch();
                    }
                }
                // It runs beside the next steps; killed right here, it may not have come to it.
                Step::StopReplication => {
                    if *budget > 0 {
                        self.nodes[node].channel = Some(false);
                    }
                }
                Step::Drain | Step::SealFiles { .. } | Step::StopReceiving => {}
                Step::TakeBackGrant => self.nodes[node].granted = false,
                Step::Open => {
                    let n = &mut self.nodes[node];
                    if n.epoch().map_or(0, |epoch| epoch.number) < n.highest_epoch {
                        // Undone: the data are older than an epoch that was seen.
                        return;
                    }
                    n.writable = true;
                    n.semi_sync = plan.bound;
                    n.stale = false;
                }
                Step::ClaimEpoch { epoch } => self.open_epoch(node, *epoch),
                Step::ForgetChannel => self.nodes[node].channel = None,
                Step::FetchVip { .. } => self.nodes[peer].standby_file = true,
                Step::Demote { .. } => {
                    self.nodes[peer].semi_sync = false;
                    self.nodes[peer].channel = Some(true);
                    self.nodes[peer].granted = false;
                    self.nodes[peer].pledged = false;
                    self.nodes[node].semi_sync = true;
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
        if !self.front || self.isolated.is_some() || self.nodes.iter().any(|n| !n.on) {
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
        let n = &mut self.nodes[node];
        n.log.push(row);
        if n.semi_sync {
            n.waiting.push(row);
        } else {
            self.acknowledged.push(row);
        }
        self.replicate(node);
    }

    /// Ends every fault, as a person and systemd would.
    fn repair(&mut self) {
        self.front = true;
        self.private = true;
        self.sql = true;
        self.isolated = None;
        self.mute = None;
        for node in &mut self.nodes {
            node.resident = true;
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
                // One that was fenced by SIGKILL; systemd starts it again.
                start_database(&mut cluster.nodes[node]);
                cluster.vrrp();
                last.push(cluster.tick(node, &mut usize::MAX.clone()));
                if cluster.nodes[node].open() {
                    cluster.guard(node);
                }
            }
            cluster.vrrp();
            if cluster.whole() {
                return cluster.kept_what_was_acknowledged();
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

    fn kept_what_was_acknowledged(&self) -> Result<(), String> {
        if self.split {
            // Both nodes acknowledged alone: the documented exception.
            return Ok(());
        }
        let primary = self.nodes.iter().find(|n| n.open()).unwrap();
        match self
            .acknowledged
            .iter()
            .find(|row| !primary.log.contains(row))
        {
            None => Ok(()),
            Some(row) => Err(format!("lost {row:?} in {self:?}")),
        }
    }

    /// Clients reach a node when it has the VIP and its database is open, and are told that their writes are
    /// safe when no replica is waited for, or one answers.
    fn two_take_writes(&self) -> bool {
        self.isolated.is_none()
            && (0..2).all(|node| {
                let n = &self.nodes[node];
                n.open() && n.vip && (!n.semi_sync || self.replicates(1 - node))
            })
    }
}

/// SIGKILL: nobody is told what becomes of what waits.
fn kill(node: &mut Node) {
    node.process = Process::Dead;
    node.writable = false;
    node.pledged = false;
    node.waiting.clear();
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
    node.proof = false;
    node.resident = true;
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
    /// There is a witness, a node may be cut off from everything, only the databases' port or one direction
    /// may be cut, and the resident program may die.
    silence: bool,
    /// As it was: see [`Cluster::time_out`].
    time_out: bool,
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
            sql: true,
            isolated: None,
            mute: None,
            witness: self.silence,
            split: self.full_partition,
            time_out: self.time_out,
            faults: self.faults,
            rows: 0,
            acknowledged: Vec::new(),
        }]
    }

    fn actions(&self, state: &Cluster, events: &mut Vec<Event>) {
        // A node that is cut off fences itself sooner than VRRP gives the VIP to the other one.
        if !state.isolated.is_some_and(|node| state.nodes[node].open()) {
            events.push(Event::Vrrp);
        }
        for (index, node) in state.nodes.iter().enumerate() {
            if node.on && node.resident {
                if node.open() && !self.time_out {
                    events.push(Event::Guard(index));
                } else if !node.writable && node.answers() && !self.time_out {
                    events.push(Event::Ask(index));
                }
            }
            if self.time_out && node.open() {
                events.push(Event::Guard(index));
            }
            if node.proof && !self.time_out {
                events.push(Event::Expire(index));
            }
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
            if node.on && !node.resident {
                events.push(Event::StartResident(index));
            }
            if state.faults == 0 || !node.on {
                continue;
            }
            if self.silence {
                if node.resident && !self.time_out {
                    events.push(Event::KillResident(index));
                }
                if state.isolated.is_none() {
                    events.push(Event::Isolate(index));
                }
                if state.mute.is_none() {
                    events.push(Event::Mute(index));
                }
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
        if !state.sql {
            events.push(Event::HealSql);
        } else if state.faults > 0 && self.silence {
            events.push(Event::CutSql);
        }
        if state.isolated.is_some() {
            events.push(Event::Unisolate);
        }
        if state.mute.is_some() {
            events.push(Event::Unmute);
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
                kill(node);
                node.process = Process::Alive;
            }
            Event::KillDatabase(node) => kill(&mut state.nodes[node]),
            Event::Guard(node) if state.time_out => {
                // MariaDB lets go what waits, and waits again once the replica is back.
                let replicates = state.replicates(1 - node);
                state.nodes[node].semi_sync = replicates;
                let told = std::mem::take(&mut state.nodes[node].waiting);
                state.acknowledged.extend(told);
            }
            Event::Guard(node) => state.guard(node),
            Event::Ask(node) => state.ask(node),
            Event::Expire(node) => {
                let n = &mut state.nodes[node];
                n.proof = false;
                // Of its own epoch it lacks nothing.
                n.stale = !n.writable && n.epoch().is_some_and(|e| e.primary != NAMES[node]);
            }
            Event::KillResident(node) => {
                state.nodes[node].resident = false;
                state.nodes[node].pledged = false;
            }
            Event::StartResident(node) => state.nodes[node].resident = true,
            Event::CutSql => state.sql = false,
            Event::Isolate(node) => state.isolated = Some(node),
            Event::Mute(node) => state.mute = Some(node),
            Event::HealSql => {
                state.sql = true;
                state.replicate_both();
            }
            Event::Unisolate => {
                state.isolated = None;
                state.replicate_both();
            }
            Event::Unmute => {
                state.mute = None;
                state.replicate_both();
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
                state.replicate_both();
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
                | Event::KillResident(_)
                | Event::CutSql
                | Event::Isolate(_)
                | Event::Mute(_)
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
        if !self.full_partition && !self.time_out {
            properties.push(Property::always(
                "one node takes writes",
                |_, state: &Cluster| !state.two_take_writes(),
            ));
        }
        properties
    }
}

/// Explores everything; the shortest way to what must not be, as a story.
fn found(rules: Rules) -> Option<String> {
    let checker = rules
        .checker()
        .finish_when(HasDiscoveries::Any)
        .threads(2)
        .spawn_bfs()
        .join();
    println!("{} states", checker.unique_state_count());
    assert!(checker.is_done() || !checker.discoveries().is_empty());
    let (name, path) = checker.discoveries().into_iter().next()?;
    let mut story = format!("«{name}» fails:\n");
    for (state, event) in path.into_vec() {
        let decision = match event {
            Some(Event::Tick(node, _)) => state.clone().tick(node, &mut usize::MAX.clone()),
            Some(_) | None => None,
        };
        writeln!(story, "{state:?}\n-> {event:?} {decision:?}").unwrap();
        if event.is_none() {
            writeln!(story, "{:?}", state.settles()).unwrap();
        }
    }
    Some(story)
}

fn explore(rules: Rules) {
    if let Some(story) = found(rules) {
        panic!("{story}");
    }
}

const PLAIN: Rules = Rules {
    faults: 3,
    rows: 2,
    full_partition: false,
    silence: false,
    time_out: false,
};

#[test]
fn one_fault_and_two_rows() {
    explore(Rules { faults: 1, ..PLAIN });
}

#[test]
fn three_faults_and_two_rows() {
    explore(PLAIN);
}

#[test]
fn a_full_partition_ends_with_one_primary_or_a_refusal() {
    explore(Rules {
        full_partition: true,
        ..PLAIN
    });
}

/// What is not known is not believed: a node cut off from everything, the databases' port alone, one
/// direction, and a dead resident program.
#[test]
fn nothing_acknowledged_is_lost_whatever_is_silent() {
    explore(Rules {
        faults: 2,
        rows: 2,
        silence: true,
        ..PLAIN
    });
}

/// The model sees what was seen on real nodes: with a time-out of the server in the lease's place, and a
/// standby that believes what it last saw, a cut followed by a power loss loses what was acknowledged between.
#[test]
fn a_time_out_in_the_place_of_the_lease_loses_what_was_acknowledged_alone() {
    let lost = |rules: Rules| {
        let story = found(rules).expect("the model does not see the loss");
        assert!(story.contains("lost Row"), "{story}");
        for line in story.lines().filter(|line| line.starts_with("-> Some")) {
            println!("{line}");
        }
    };
    lost(Rules {
        faults: 2,
        rows: 1,
        silence: true,
        time_out: true,
        ..PLAIN
    });
}
