//! Looking at every node, as far as the question needs.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use observe::{Memory, MemoryError, Session, observe_local, observe_peer_database, reachable};
use role::{Contact, Observation, PeerView};
use settings::{Node, Settings};

use crate::link::Link;

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

/// How much to ask of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Their databases over SQL: enough for the steady state.
    Databases,
    /// Also their forced commands: who holds the VIP, what a silent database does.
    Nodes,
}

/// Looks at this node and at every peer, the peers all at once.
pub fn look(settings: &Settings, depth: Depth) -> Result<Look, MemoryError> {
    let whole = look_unless(settings, depth, || false)?;
    Ok(whole.unwrap_or_else(|| unreachable!("nothing interrupts this look")))
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
) -> Result<Option<Look>, MemoryError> {
    for _ in 0..LOOKS {
        let before = match depth {
            Depth::Databases => None,
            Depth::Nodes => witness(settings),
        };
        let Some(look) = look_once(settings, depth, &interrupted)? else {
            return Ok(None);
        };
        let unsteady = before.is_some() && before != look.seen.witness;
        if !(unsteady && look.seen.all_silent()) {
            return Ok(Some(look));
        }
        log::warn!("the network changed while it was looked at: looking again");
    }
    let mut look = look_once(settings, depth, &interrupted)?;
    if let Some(look) = &mut look {
        // Nothing may be concluded from silence in such a network.
        look.seen.witness = look.seen.witness.and(Some(false));
    }
    Ok(look)
}

fn look_once(
    settings: &Settings,
    depth: Depth,
    interrupted: impl Fn() -> bool,
) -> Result<Option<Look>, MemoryError> {
    let mut memory = Memory::load(settings)?;
    let (sender, answers) = mpsc::channel();
    let peers: Vec<&Node> = settings.peers().collect();
    for (index, peer) in peers.iter().enumerate() {
        let (sender, settings, peer) = (sender.clone(), settings.clone(), (*peer).clone());
        thread::spawn(move || {
            // Nobody listens any more when the look was given up.
            let _ = sender.send((index, ask_peer(&settings, &peer, depth)));
        });
    }
    drop(sender);
    let (local_view, local) = observe_local(settings);
    let mut answered: Vec<Answer> = peers
        .iter()
        .map(|_| (Contact::Silent, None, None))
        .collect();
    loop {
        match answers.recv_timeout(INTERRUPTION) {
            Ok((index, answer)) => answered[index] = answer,
            Err(mpsc::RecvTimeoutError::Timeout) if interrupted() => return Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut sessions = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut views = Vec::new();
    for (peer, (contact, session, link)) in peers.into_iter().zip(answered) {
        let remembered = memory.boot.peers.get(&peer.name);
        views.push(PeerView {
            name: peer.name.clone(),
            met: remembered.is_some()
                || memory.boot.was_primary
                || matches!(contact, Contact::Database(_) | Contact::Node(_)),
            last_primary: remembered.cloned().flatten(),
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
    };
    memory.learn(settings, &seen)?;
    seen.highest_epoch = memory.highest_epoch;
    Ok(Some(Look {
        seen,
        memory,
        local,
        sessions,
        links,
    }))
}

fn ask_peer(settings: &Settings, peer: &Node, depth: Depth) -> Answer {
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
    let told = reachable(settings, peer, settings.peer.port).map(|address| {
        Link::open(settings, peer, address).and_then(|mut link| Ok((link.observe()?, link)))
    });
    let patience = match &told {
        // Its own node says that it does not answer: no need to wait for that over SQL.
        Some(Ok((node, _))) if node.database.server().is_none() => Duration::from_millis(20),
        Some(Ok(_) | Err(_)) | None => settings.role.answer_timeout * 2,
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

/// Whether any witness answers; none when the settings name none.
fn witness(settings: &Settings) -> Option<bool> {
    let witnesses = &settings.cluster.witnesses;
    if witnesses.is_empty() {
        return None;
    }
    Some(
        witnesses
            .iter()
            .any(|w| observe::witness_answers(settings, w)),
    )
}
