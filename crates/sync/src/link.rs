//! The connection to one standby: one ssh, shared by the conversation and by every rsync.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodefiles::{Durability, FileError, replace};
use process::{Conversation, Output, ProcessError, Program, Running};
use settings::{Node, Settings};

use crate::compare::Scope;
use crate::root;
use crate::session::{PROTOCOL, Request, Response};
use crate::state::TreeState;
use crate::trash::Aside;

/// The version of the conversation from which on a standby takes extended attributes, ACLs and holes.
const ATTRIBUTES: u32 = 1;
/// Names in one request: a line of some hundred KiB.
const MOST_ASIDE: usize = 200;
/// A healthy standby answers a request within this time; a flush waits for its disk.
const ANSWER: Duration = Duration::from_secs(10);
const FLUSH: Duration = Duration::from_secs(60);
/// rsync gives up a standby that takes nothing for so long, in seconds.
const RSYNC_TIMEOUT: u32 = 120;
/// An rsync that has waited for so long is replaced: well before its own timeout.
const WAITING_AGE: Duration = Duration::from_secs(60);
/// rsyncs that wait for their list, for each tree.
const WAITING: usize = 2;

/// How rsync finds out whether a file's content is what the standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// By a checksum of the whole file on both sides, before anything is sent.
    Compared,
    /// Not at all: it is sent, as differences. For large files, which would be read twice.
    Sent,
}

/// Why a standby did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// ssh or rsync.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file of ours.
    #[error(transparent)]
    State(#[from] FileError),
    /// The canary's file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It takes nothing from this node now.
    #[error("{0}")]
    Refused(String),
    /// The answer was not understood.
    #[error(
        "answered `{0}`, which is not an answer to this question; are both nodes on the same version?"
    )]
    Answer(String),
    /// The standby does not know the request.
    #[error(
        "does not know `{0}` as it is asked here; bring both nodes to the same version of keepalived-companion"
    )]
    Unsupported(String),
    /// The canary did not arrive or did not go.
    #[error("{0}")]
    Canary(String),
}

/// What a standby answers to a hello.
#[derive(Debug)]
pub struct Greeting {
    /// The token of its complete state.
    pub complete: Option<String>,
    /// It keeps a copy of what it overwrites or deletes.
    pub keeps: bool,
}

/// An open connection. Dropping it ends everything that uses it.
#[derive(Debug)]
pub struct Link {
    conversation: Conversation,
    /// ssh's configuration for every further use.
    configuration: PathBuf,
    peer: String,
    me: String,
    epoch: u64,
    /// The standby keeps what it deletes for a while.
    trash: bool,
    /// It takes extended attributes, ACLs and holes.
    attributes: bool,
    waiting: Vec<VecDeque<(Running, Instant)>>,
}

impl Link {
    /// Connects and says hello.
    pub fn open(
        settings: &Settings,
        peer: &Node,
        address: IpAddr,
        epoch: u64,
        trees: &[TreeState],
    ) -> Result<(Self, Greeting), LinkError> {
        let greet = |protocol| Self::greet(settings, peer, address, epoch, trees, protocol);
        match greet(Some(PROTOCOL)) {
            // Version 0 hangs up on a hello with a version. Another end of the connection comes again.
            Err(LinkError::Process(ProcessError::Ended { .. })) => greet(None),
            greeted => greeted,
        }
    }

    fn greet(
        settings: &Settings,
        peer: &Node,
        address: IpAddr,
        epoch: u64,
        trees: &[TreeState],
        protocol: Option<u32>,
    ) -> Result<(Self, Greeting), LinkError> {
        let directory = settings.paths.run.join("sync");
        let configuration = directory.join(format!("{}.ssh", peer.name));
        // A name of its own each time: the socket of a connection that died may be left.
        let control = directory.join(format!("{}-{}.sock", peer.name, &root::random()[..8]));
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_socket_of(&name, &peer.name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let text = ssh_configuration(settings, peer, address, &control);
        replace(&configuration, 0o600, text.as_bytes(), Durability::Visible)?;
        let conversation = Program::new("ssh")
            .arg("-F")
            .arg(&configuration)
            .args(["-T", "-M", &peer.name, "session"])
            .converse()?;
        let mut link = Self {
            conversation,
            configuration,
            peer: peer.name.clone(),
            me: settings.local().name.clone(),
            epoch,
            trash: false,
            attributes: false,
            waiting: trees.iter().map(|_| VecDeque::new()).collect(),
        };
        let hello = Request::Hello {
            from: link.me.clone(),
            epoch,
            trees: trees
                .iter()
                .map(|tree| tree.path.to_string_lossy().into_owned())
                .collect(),
            protocol,
        };
        match link.ask(&hello, ANSWER)? {
            Response::Welcome {
                complete,
                protocol,
                keeps,
                trash,
            } => {
                let theirs = protocol.unwrap_or_default();
                if theirs != PROTOCOL {
                    log::info!(
                        "{} receives with version {theirs} of the protocol, this node sends with {PROTOCOL}",
                        link.peer
                    );
                }
                // Version 0 keeps copies as well, as long as it has nothing complete.
                let keeps = keeps.unwrap_or(complete.is_none());
                link.trash = trash;
                link.attributes = theirs >= ATTRIBUTES;
                Ok((link, Greeting { complete, keeps }))
            }
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Response, LinkError> {
        let line = serde_json::to_string(request).unwrap_or_default();
        let answer = self.conversation.ask(&line, deadline)?;
        match serde_json::from_str(&answer) {
            Ok(Response::Refused { why }) => Err(LinkError::Refused(why)),
            Ok(Response::Unsupported { verb }) => Err(LinkError::Unsupported(verb)),
            Ok(response) => Ok(response),
            Err(_) => Err(LinkError::Answer(answer)),
        }
    }

    fn done(&mut self, request: &Request, deadline: Duration) -> Result<(), LinkError> {
        match self.ask(request, deadline)? {
            Response::Done {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the connection has ended.
    pub fn is_over(&mut self) -> bool {
        self.conversation.is_over()
    }

    /// What was sent is on the standby's disk when this returns.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        self.done(&Request::Flush {}, FLUSH)
    }

    /// The standby has everything: the token names this state. On its disk, too.
    pub fn complete(&mut self, token: &str) -> Result<(), LinkError> {
        let token = token.to_owned();
        self.done(&Request::Complete { token }, FLUSH)?;
        // Those that wait were started when the standby still kept copies of what they replace.
        self.forget_waiting();
        Ok(())
    }

    /// Moves a directory; the reason when it could not be moved as it is.
    pub fn rename(
        &mut self,
        tree: u16,
        from: &[u8],
        to: &[u8],
    ) -> Result<Option<String>, LinkError> {
        let request = Request::Rename {
            tree,
            from: from.to_vec(),
            to: to.to_vec(),
        };
        match self.ask(&request, ANSWER)? {
            Response::Done {} => Ok(None),
            Response::NotDone { why } => Ok(Some(why)),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the standby keeps what it deletes for a while.
    pub fn has_trash(&self) -> bool {
        self.trash
    }

    /// Has what gives way to these names kept; whether all of it was.
    pub fn set_aside(&mut self, tree: u16, names: &[Aside]) -> Result<bool, LinkError> {
        if !self.trash {
            return Ok(false);
        }
        let mut kept = true;
        for names in names.chunks(MOST_ASIDE) {
            let request = Request::SetAside {
                tree,
                names: names.to_vec(),
            };
            match self.ask(&request, ANSWER)? {
                Response::Done {} => {}
                Response::NotDone { why } => {
                    log::warn!("{}: not all that goes is kept: {why}", self.peer);
                    kept = false;
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(kept)
    }

    /// Sends and deletes a file with the real arguments, and looks whether both arrived: an rsync that
    /// refuses an option, or does nothing, is found before a file depends on it.
    pub fn canary(&mut self, index: u16, tree: &TreeState) -> Result<(), LinkError> {
        let path = tree.path.join(root::CANARY);
        let failed = |source| LinkError::Io {
            path: path.clone(),
            source,
        };
        let token = root::random();
        root::make_canary(&tree.path, &token).map_err(failed)?;
        let sent = self.send_canary(index, tree, Some(&token));
        std::fs::remove_file(&path).map_err(failed)?;
        sent?;
        self.send_canary(index, tree, None)
    }

    fn send_canary(
        &mut self,
        index: u16,
        tree: &TreeState,
        wanted: Option<&str>,
    ) -> Result<(), LinkError> {
        let list = format!("./{}\0", root::CANARY);
        let output = self.transfer(tree, Content::Compared).start()?.finish(
            list.as_bytes(),
            |_| (),
            || true,
        )?;
        let what = if wanted.is_some() { "sent" } else { "deleted" };
        if !output.status.success() {
            return Err(LinkError::Canary(format!(
                "a file could not be {what} in {}: {}",
                tree.path.display(),
                complaint(&output)
            )));
        }
        match self.ask(&Request::Canary { tree: index }, ANSWER)? {
            Response::Canary { content } if content.as_deref() == wanted => Ok(()),
            Response::Canary { .. } => Err(LinkError::Canary(format!(
                "rsync says that a file was {what} in {}, and it was not",
                tree.path.display()
            ))),
            other => Err(unexpected(&other)),
        }
    }

    fn rsync(&self, tree: &TreeState) -> Program {
        let mut program = Program::new("rsync")
            // Names in its output are then escaped in one way.
            .env("LC_ALL", "C")
            .args(["-lptgoDH", "--numeric-ids", "--modify-window=-1"])
            .arg(format!("--timeout={RSYNC_TIMEOUT}"))
            .arg(format!("--rsync-path=stream {} {}", self.epoch, self.me))
            .arg("-e")
            .arg(format!("ssh -F {}", self.configuration.display()));
        if self.attributes {
            // Of the attributes only the users': those of the kernel and of root give rights.
            program = program.args(["-AXS", "--filter=-x! user.*"]);
        }
        if let Some(owner) = &tree.owner {
            program = program.arg(format!("--chown={owner}"));
        }
        program
    }

    fn ends(&self, program: Program, tree: &TreeState) -> Program {
        program
            .arg(format!("{}/", tree.path.display()))
            .arg(format!("{}:{}/", self.peer, tree.path.display()))
    }

    /// A transfer of a list of names. Each of them has changed, so an equal size and time say nothing (a
    /// file that was restored keeps its time): `content` is how rsync tells whether the content is equal.
    pub fn transfer(&self, tree: &TreeState, content: Content) -> Program {
        let program = self
            .rsync(tree)
            .args([
                "--from0",
                "--files-from=-",
                "--delete-missing-args",
                "--force",
            ])
            // Only for the line that says that the other side has finished, and at once.
            .args(["--debug=exit2", "--outbuf=L"])
            .arg(match content {
                Content::Compared => "--checksum",
                Content::Sent => "--ignore-times",
            });
        self.ends(program, tree)
    }

    /// A comparison, which changes nothing.
    pub fn comparison(&self, tree: &TreeState, scope: &Scope) -> Program {
        let program = self
            .rsync(tree)
            .args(scope.options())
            .arg(format!("--exclude=/{}", root::OWN))
            .arg(format!("--exclude=/{}", root::CANARY))
            .args(
                tree.exclude
                    .iter()
                    .map(|pattern| format!("--exclude={pattern}")),
            );
        self.ends(program, tree)
    }

    /// An rsync that is connected already and waits for its list, or a new one.
    pub fn ready(&mut self, index: u16, tree: &TreeState) -> Result<Running, LinkError> {
        let waiting = &mut self.waiting[usize::from(index)];
        while let Some((mut running, since)) = waiting.pop_front() {
            if since.elapsed() < WAITING_AGE && !running.ended() {
                return Ok(running);
            }
        }
        Ok(self.transfer(tree, Content::Compared).start()?)
    }

    /// Starts an rsync ahead of its work, if few wait: connecting takes longer than sending.
    pub fn prepare(&mut self, index: u16, tree: &TreeState) -> Result<(), LinkError> {
        let waiting = &mut self.waiting[usize::from(index)];
        waiting.retain_mut(|(running, since)| since.elapsed() < WAITING_AGE && !running.ended());
        if waiting.len() >= WAITING {
            return Ok(());
        }
        let started = self.transfer(tree, Content::Compared).start()?;
        self.waiting[usize::from(index)].push_back((started, Instant::now()));
        Ok(())
    }

    /// Ends the rsyncs that wait.
    fn forget_waiting(&mut self) {
        for waiting in &mut self.waiting {
            waiting.clear();
        }
    }
}

fn unexpected(response: &Response) -> LinkError {
    LinkError::Answer(serde_json::to_string(response).unwrap_or_default())
}

/// Whether rsync's output says that the other side has finished: it has said goodbye, and what is left is
/// to wait for its process, which rsync (3.1 to 3.5) does in steps of 20 ms on either side. Not when anything
/// was complained of: then the exit status counts.
pub fn has_finished(output: &[u8], errors: &[u8]) -> bool {
    errors.is_empty() && output.starts_with(b"client_run waiting on ")
}

/// What rsync or ssh said last, in one line.
pub fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    // The first line names the cause, the last one the place in rsync's source.
    let first = lines.first().copied().unwrap_or("no reason given");
    match output.status.code() {
        Some(code) => format!("rsync exit {code}: {first}"),
        None => format!("rsync was killed: {first}"),
    }
}

/// Whether a file is a control socket of that peer, and not of one whose name goes on after a hyphen.
fn is_socket_of(name: &str, peer: &str) -> bool {
    let random = name
        .strip_prefix(peer)
        .and_then(|rest| rest.strip_prefix('-'))
        // ssh makes it under a longer name first.
        .and_then(|rest| rest.split_once(".sock"))
        .map(|(random, _)| random);
    random.is_some_and(|random| !random.contains('-'))
}

fn ssh_configuration(settings: &Settings, peer: &Node, address: IpAddr, control: &Path) -> String {
    format!(
        "Host {}\n\
         HostName {address}\n\
         User {}\n\
         Port {}\n\
         IdentityFile {}\n\
         IdentitiesOnly yes\n\
         UserKnownHostsFile {}\n\
         StrictHostKeyChecking yes\n\
         BatchMode yes\n\
         ConnectTimeout 2\n\
         ServerAliveInterval 1\n\
         ServerAliveCountMax 3\n\
         ControlPath {}\n\
         Compression no\n\
         LogLevel ERROR\n",
        peer.name,
        settings.peer.user,
        settings.peer.port,
        settings.sync.identity.display(),
        settings.peer.known_hosts.display(),
        control.display(),
    )
}
