//! A conversation with the forced command on a peer: `ssh peer session`, then one JSON line each way.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nodefiles::sync_status::SyncStatus;
use process::{Conversation, ProcessError, Program, Until};
use role::alone::Standby;
use role::{Epoch, NodeView};
use settings::{Node, Settings};

use crate::files::Sealed;
use crate::resident::Told;
use crate::wire::{self, Request, Response, Standing, VersionsApart};

/// A line that is no question and gets no answer: whoever holds the role lock lives.
pub const STAY: &str = "stay";

/// A peer whose role lock is held and that hears nothing for so long takes the change to be broken off. Two
/// fifths of the freeze: what was frozen is to be open again within all of it.
pub fn silence(settings: &Settings) -> Duration {
    settings.role.freeze_limit * 2 / 5
}

/// Why a peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// ssh or the other side failed.
    #[error("{peer}: {source}")]
    Process {
        /// The peer.
        peer: String,
        /// The reason.
        source: ProcessError,
    },
    /// The answer was not understood.
    #[error(
        "{peer} answered `{answer}`, which is not an answer to this question; are both nodes on the same version?"
    )]
    Answer {
        /// The peer.
        peer: String,
        /// What came.
        answer: String,
    },
    /// Its role lock is taken.
    #[error("{peer}: another role change is running there")]
    Busy {
        /// The peer.
        peer: String,
    },
    /// It tried and failed.
    #[error("{peer}: {why}")]
    Failed {
        /// The peer.
        peer: String,
        /// Its words.
        why: String,
    },
    /// It does not know the question.
    #[error(
        "{peer} does not know `{verb}` as it is asked here; bring both nodes to the same version of keepalived-companion"
    )]
    Unsupported {
        /// The peer.
        peer: String,
        /// The verb.
        verb: String,
    },
    /// The two releases are too different for a planned change.
    #[error(transparent)]
    Versions(#[from] VersionsApart),
}

/// Where the connection that `links` keeps open to this address listens.
pub fn control_path(settings: &Settings, address: IpAddr) -> PathBuf {
    settings.paths.run.join(format!("ssh-{address}"))
}

/// ssh towards a peer's forced command. `links` keeps a connection open at the control path; without
/// one, each call makes its own.
pub fn ssh(settings: &Settings, address: IpAddr) -> Program {
    let ssh = &settings.peer;
    let mut program = Program::new("ssh").args(["-T", "-F", "none"]);
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=2",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "ServerAliveInterval=1",
        "ServerAliveCountMax=3",
    ] {
        program = program.args(["-o", option]);
    }
    program
        .arg("-o")
        .arg(format!(
            "ControlPath={}",
            control_path(settings, address).display()
        ))
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", ssh.known_hosts.display()))
        .arg("-i")
        .arg(&ssh.identity)
        .arg("-p")
        .arg(ssh.port.to_string())
        .args(["-l", &ssh.user])
        .arg(address.to_string())
}

/// An open conversation.
#[derive(Debug)]
pub struct Link {
    me: String,
    peer: String,
    /// The version of the conversation that the peer has told; none before it was observed.
    protocol: Option<u32>,
    window_ms: Option<u64>,
    conversation: Conversation,
    answer_timeout: Duration,
    silence: Duration,
    held: Until,
}

/// The shortest time for which a lock is kept.
const HELD_LEAST: Duration = Duration::from_secs(1);
/// A lock is kept so long without a word of what is being done under it.
const HELD: Duration = Duration::from_secs(60);

impl Link {
    /// Starts ssh towards an address that answers; the first question tells whether it works.
    pub fn open(settings: &Settings, peer: &Node, address: IpAddr) -> Result<Self, LinkError> {
        let conversation = ssh(settings, address)
            .arg("session")
            .converse()
            .map_err(|source| LinkError::Process {
                peer: peer.name.clone(),
                source,
            })?;
        Ok(Self {
            me: settings.local().name.clone(),
            peer: peer.name.clone(),
            protocol: None,
            window_ms: None,
            conversation,
            answer_timeout: settings.role.answer_timeout,
            silence: silence(settings),
            held: Until::after(Duration::ZERO),
        })
    }

    /// Waits no longer than so for each answer from now on.
    pub fn answer_within(&mut self, patience: Duration) {
        self.answer_timeout = patience / 2;
    }

    /// The peer's own view of itself, and the version of the conversation that it speaks.
    pub fn observe_with_version(&mut self) -> Result<(NodeView, u32), LinkError> {
        let node = self.observe()?;
        Ok((node, self.protocol.unwrap_or_default()))
    }

    /// The version that the peer has told; none before it was observed.
    pub fn protocol(&self) -> Option<u32> {
        self.protocol
    }

    /// The window that the peer's resident program goes by, in ms; none before it was observed, or where it does
    /// not tell it.
    pub fn window_ms(&self) -> Option<u64> {
        self.window_ms
    }

    /// Whether the peer, a primary, shows its pledge, and the epoch that it is of.
    pub fn pledge(&mut self, window_ms: u64) -> Result<(Told, Option<Epoch>), LinkError> {
        match self.ask(&Request::Pledge { window_ms }, Duration::ZERO)? {
            Response::Pledge {
                shows,
                position,
                epoch,
            } => Ok((
                Told {
                    shows: shows.into(),
                    position,
                },
                epoch.map(|(number, primary)| Epoch { number, primary }),
            )),
            Response::Failed { why } => Err(self.failed(why)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks the peer, a standby, to give its proof up.
    pub fn renounce(&mut self, from: &str) -> Result<Standby, LinkError> {
        let from = from.to_owned();
        match self.ask(&Request::Renounce { from }, Duration::ZERO)? {
            Response::Standing { standby } => Ok(match standby {
                Standing::Renounced => Standby::Renounced,
                Standing::TakesOver => Standby::TakesOver,
                Standing::Relies => Standby::Relies,
            }),
            Response::Failed { why } => Err(self.failed(why)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The peer's own view of itself.
    pub fn observe(&mut self) -> Result<NodeView, LinkError> {
        match self.ask(&Request::Observe {}, Duration::ZERO)? {
            Response::Node {
                node,
                protocol,
                window_ms,
            } => {
                self.protocol = Some(protocol);
                self.window_ms = window_ms;
                Ok((*node).into())
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Whether a planned change may be carried out together with the peer, by their versions. A failover
    /// does not ask: what it needs is frozen.
    pub fn fit_for_planned_change(&mut self) -> Result<(), LinkError> {
        let there = match self.protocol {
            Some(protocol) => protocol,
            None => {
                self.observe()?;
                self.protocol.unwrap_or_default()
            }
        };
        Ok(wire::check_versions(
            &self.me,
            wire::PROTOCOL,
            &self.peer,
            there,
        )?)
    }

    /// What the peer's sender of files says; none when it does not run.
    pub fn files(&mut self) -> Result<Option<SyncStatus>, LinkError> {
        match self.ask(&Request::Files {}, Duration::ZERO)? {
            Response::Files { status } => Ok(status.map(|status| *status)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Takes the peer's role lock until this link is dropped, or until the peer has not heard of this process
    /// for [`silence`].
    pub fn lock(&mut self, patience: Duration) -> Result<(), LinkError> {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.done(&Request::Lock { patience_ms }, patience)?;
        self.hold(HELD);
        self.conversation
            .repeat(STAY, self.silence / 4, &self.held)
            .map_err(|source| LinkError::Failed {
                peer: self.peer.clone(),
                why: format!("its lock cannot be kept: {source}"),
            })
    }

    /// Keeps the peer's role lock for so long from now: a change that hangs for longer has lost it.
    pub fn hold(&self, limit: Duration) {
        self.held.extend(limit.max(HELD_LEAST));
    }

    /// Whether the peer's role lock is held still: one question, and a failure where the peer gave it up.
    pub fn still_locked(&mut self) -> Result<(), LinkError> {
        self.done(&Request::Lock { patience_ms: 0 }, Duration::ZERO)
    }

    /// The peer writes down who may write.
    pub fn grant(&mut self, to: Option<&str>) -> Result<(), LinkError> {
        let to = to.unwrap_or_default().to_owned();
        self.done(&Request::Grant { to }, Duration::ZERO)
    }

    /// The peer's sender of files sends what it has and stops, whatever the answer.
    pub fn seal_files(&mut self, limit: Duration) -> Result<Sealed, LinkError> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::SealFiles { limit_ms }, limit)? {
            Response::Sealed { files } => Ok(files),
            Response::Failed { why } => Err(self.failed(why)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The peer's sender of files goes on.
    pub fn unseal_files(&mut self) -> Result<(), LinkError> {
        self.done(&Request::UnsealFiles {}, Duration::ZERO)
    }

    /// The peer's database cannot write any more when this returns.
    pub fn fence(&mut self) -> Result<(), LinkError> {
        // Closing, ending the clients, and a SIGKILL after a silence each take their time.
        self.done(&Request::Fence {}, self.answer_timeout * 3)
    }

    /// The peer leaves the VIP to the others, or takes part again.
    pub fn standby(&mut self, on: bool) -> Result<(), LinkError> {
        self.done(&Request::Standby { on }, Duration::ZERO)
    }

    /// The peer's Keepalived begins anew, and leaves the VIP for that.
    pub fn restart_keepalived(&mut self) -> Result<(), LinkError> {
        self.done(&Request::RestartKeepalived {}, Duration::ZERO)
    }

    fn done(&mut self, request: &Request, extra: Duration) -> Result<(), LinkError> {
        match self.ask(request, extra)? {
            Response::Done {} => Ok(()),
            Response::Busy {} => Err(LinkError::Busy {
                peer: self.peer.clone(),
            }),
            Response::Failed { why } => Err(self.failed(why)),
            other @ (Response::Node { .. }
            | Response::Files { .. }
            | Response::Sealed { .. }
            | Response::Pledge { .. }
            | Response::Standing { .. }
            | Response::Unsupported { .. }) => Err(self.unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, extra: Duration) -> Result<Response, LinkError> {
        let text = serde_json::to_string(request).unwrap_or_default();
        // A peer that observes a silent database needs one more answer timeout for it.
        let deadline = self.answer_timeout * 2 + extra;
        let answer =
            self.conversation
                .ask(&text, deadline)
                .map_err(|source| LinkError::Process {
                    peer: self.peer.clone(),
                    source,
                })?;
        match serde_json::from_str(&answer) {
            Ok(Response::Unsupported { verb }) => Err(LinkError::Unsupported {
                peer: self.peer.clone(),
                verb,
            }),
            Ok(response) => Ok(response),
            Err(_) => Err(LinkError::Answer {
                peer: self.peer.clone(),
                answer,
            }),
        }
    }

    fn failed(&self, why: String) -> LinkError {
        LinkError::Failed {
            peer: self.peer.clone(),
            why,
        }
    }

    fn unexpected(&self, response: &Response) -> LinkError {
        LinkError::Answer {
            peer: self.peer.clone(),
            answer: serde_json::to_string(response).unwrap_or_default(),
        }
    }
}
