//! Looking at every node, as far as the question needs.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nodefiles::memory::Memory;
use nodefiles::{proof, writable};
use observe::{Session, observe_local, observe_peer_database, reachable};
use role::alone::FROZEN_PEER;
use role::{Contact, LastPrimary, Observation, PeerView, Proof, Rules};
use settings::{Node, Settings};

use crate::link::{Link, LinkError};
use crate::resident;

/// What was seen, and the open connections that saw it.
#[derive(Debug)]
pub struct Look {
    /// The facts.
    pub seen: Observation,
    /// What was known before, with what was seen taken in.
    pub memory: Memory,
    /// The session with the local database.
    pub local: Option<Session>,
    /// Sessions with the peers' databases, by name.
    pub sessions: BTreeMap<String, Session>,
    /// Conversations with the peers' forced commands, by name.
    pub links: BTreeMap<String, Link>,
}

/// How often a look asks whether it is interrupted.
const INTERRUPTION: Duration = Duration::from_millis(20);
/// Looks at a network that changes meanwhile.
const LOOKS: usize = 3;

/// From the end of a look to the opening.
const TO_OPEN: Duration = Duration::from_millis(400);

/// How much to ask of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Their databases over SQL: enough for the steady state.
    Databases,
    /// Also their forced commands: who holds the VIP, what a silent database does.
    Nodes,
}

/// Looks at this node and at every peer, the peers all at once.
pub fn look(settings: &Settings, depth: Depth) -> Look {
    let whole = look_unless(settings, depth, || false);
    whole.unwrap_or_else(|| unreachable!("nothing interrupts this look"))
}

/// A peer's contact with the open connections to it.
type Answer = (Contact, Option<Session>, Option<Link>);

/// The same, given up with nothing as soon as `interrupted`: a peer that does not answer must not
/// hold up a hook.
///
/// A cut that ends or begins in the middle of a look shows silent peers and a witness that answers, as a
/// dead peer does. So the witness is asked before the peers, too, and when its two answers differ the look
/// is worth nothing.
pub fn look_unless(
    settings: &Settings,
    depth: Depth,
    interrupted: impl Fn() -> bool,
) -> Option<Look> {
    for _ in 0..LOOKS {
        let before = match depth {
            Depth::Databases => None,
            Depth::Nodes => witness(settings),
        };
        let look = look_once(settings, depth, &interrupted)?;
        let unsteady = before.is_some() && before != look.seen.witness;
        if !(unsteady && look.seen.all_silent()) {
            return Some(look);
        }
        log::warn!("the network changed while it was looked at: looking again");
    }
    let mut look = look_once(settings, depth, &interrupted)?;
    // Nothing may be concluded from silence in such a network.
    look.seen.witness = look.seen.witness.and(Some(false));
    Some(look)
}

fn look_once(settings: &Settings, depth: Depth, interrupted: impl Fn() -> bool) -> Option<Look> {
    let mut memory = Memory::load(settings);
    let known = proof::known(settings, &resident::now());
    let (sender, answers) = mpsc::channel();
    let peers: Vec<&Node> = settings.peers().collect();
    for (index, peer) in peers.iter().enumerate() {
        let (sender, settings, peer) = (sender.clone(), settings.clone(), (*peer).clone());
        let patience = patience(&settings, known.proofs.get(&peer.name));
        thread::spawn(move || {
            // Nobody listens any more when the look was given up.
            let _ = sender.send((index, ask_peer(&settings, &peer, depth, patience)));
        });
    }
    drop(sender);
    let (mut local_view, local) = observe_local(settings);
    local_view.highest_epoch = memory.highest_epoch;
    let mut answered: Vec<Answer> = peers
        .iter()
        .map(|_| (Contact::Silent, None, None))
        .collect();
    loop {
        match answers.recv_timeout(INTERRUPTION) {
            Ok((index, answer)) => answered[index] = answer,
            Err(mpsc::RecvTimeoutError::Timeout) if interrupted() => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut sessions = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut views = Vec::new();
    for (peer, (contact, session, link)) in peers.into_iter().zip(answered) {
        if let Some(version) = link.as_ref().and_then(Link::protocol) {
            memory.told_protocol(&peer.name, version);
        }
        let remembered = memory.boot.peers.get(&peer.name);
        views.push(PeerView {
            name: peer.name.clone(),
            met: remembered.is_some()
                || memory.boot.was_primary
                || matches!(contact, Contact::Database(_) | Contact::Node(_)),
            last_primary: remembered.cloned().flatten().map(|last| LastPrimary {
                // One that has shown a pledge since gives pledges, whatever it was before.
                pledges: last.pledges || known.pledging.contains(&peer.name),
                ..last
            }),
            proof: known.proofs.get(&peer.name).copied(),
            contact,
        });
        sessions.extend(session.map(|s| (peer.name.clone(), s)));
        links.extend(link.map(|l| (peer.name.clone(), l)));
    }
    let mut seen = Observation {
        local: local_view,
        peers: views,
        highest_epoch: memory.highest_epoch,
        witness: witness(settings),
        granted_to: memory.granted_to.clone(),
        alone_at: nodefiles::alone::epoch(settings),
        stale_since: known.stale_since,
        unread: None,
        unwritable: writable::refused(settings, &resident::now()),
    };
    memory.learn(settings, &seen);
    seen.highest_epoch = memory.highest_epoch;
    seen.unread = memory.unread();
    if seen.unwritable.is_none() && !memory.unkept.is_empty() {
        seen.unwritable = Some(memory.unkept.join("; "));
    }
    Some(Look {
        seen,
        memory,
        local,
        sessions,
        links,
    })
}

/// How long a peer whose kernel answers may take. With a proof that it can be taken over from no longer than is
/// left of that; without one there is nothing to hurry for.
fn patience(settings: &Settings, proof: Option<&Proof>) -> Duration {
    let usual = settings.role.answer_timeout * 2;
    match proof.filter(|proof| proof.holds()) {
        Some(proof) => usual.min(
            proof
                .window
                .saturating_sub(proof.age + TO_OPEN)
                .max(FROZEN_PEER),
        ),
        None => usual,
    }
}

fn ask_peer(settings: &Settings, peer: &Node, depth: Depth, patience: Duration) -> Answer {
    if depth == Depth::Databases {
        let (contact, session) = observe_peer_database(settings, peer);
        return (contact, session, None);
    }
    // Both at once: towards a dead host each waits for its whole timeout.
    let (sender, answer) = mpsc::channel();
    let (its_settings, its_peer) = (settings.clone(), peer.clone());
    thread::spawn(move || {
        // Nobody listens any more when the forced command has told that the database is silent.
        let _ = sender.send(observe_peer_database(&its_settings, &its_peer));
    });
    let start = Instant::now();
    let told = reachable(settings, peer, settings.peer.port).map(|address| {
        let mut link = Link::open(settings, peer, address)?;
        link.answer_within(patience);
        let node = link.observe()?;
        link.answer_within(settings.role.answer_timeout * 2);
        Ok::<_, LinkError>((node, link))
    });
    let patience = match &told {
        // Its own node says that it does not answer: no need to wait for that over SQL.
        Some(Ok((node, _))) if node.database.server().is_none() => Duration::from_millis(20),
        Some(Ok(_) | Err(_)) | None => patience.saturating_sub(start.elapsed()),
    };
    let (contact, session) = answer
        .recv_timeout(patience)
        .unwrap_or((Contact::HostUp, None));
    match told {
        None => (contact, session, None),
        Some(Ok((node, link))) => (Contact::Node(Box::new(node)), session, Some(link)),
        Some(Err(error)) => {
            log::warn!("{error}");
            match contact {
                // Its ssh port answered, so the host is up whatever its database does.
                Contact::Silent => (Contact::HostUp, session, None),
                known @ (Contact::HostUp | Contact::Database(_) | Contact::Node(_)) => {
                    (known, session, None)
                }
            }
        }
    }
}

/// What the settings and the operator's flag say of roles, whoever asks.
pub fn rules(settings: &Settings) -> Rules {
    Rules {
        promote_unmet_after_boot: settings.role.promote_unmet_after_boot,
        loss_limit: settings.role.loss_limit,
        maintenance: nodefiles::maintenance::forbids(settings).is_some(),
    }
}

/// Whether any witness answers; none when the settings name none.
pub fn witness(settings: &Settings) -> Option<bool> {
    let witnesses = &settings.cluster.witnesses;
    if witnesses.is_empty() {
        return None;
    }
    // All at once: one that is dead must not hold up the answer of another.
    let (sender, answers) = mpsc::channel();
    for witness in witnesses {
        let (sender, settings, witness) = (sender.clone(), settings.clone(), witness.clone());
        thread::spawn(move || {
            // Nobody listens any more once one has answered.
            let _ = sender.send(observe::witness_answers(&settings, &witness));
        });
    }
    drop(sender);
    Some(answers.into_iter().any(|answered| answered))
}
