//! The threads of one role: a reader of events, and on the active node a worker for each standby.

use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime};

use settings::Settings;

use crate::batch::Links;
use crate::checkpoint::Checkpoint;
use crate::compare::Losses;
use crate::dirs::NodeId;
use crate::hold;
use crate::queue::Change;
use crate::root::{self, RootError};
use crate::standby::{Found, Worker};
use crate::state::{Pulse, Shared, StandbyState, State, TreeState};
use crate::tell;
use crate::watch::{Noting, Watcher, request_comparison};
use settings::pattern::{PatternError, Patterns};

/// Why the threads were not started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A root is not usable.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A pattern of the settings.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The kernel gives no inotify instance.
    #[error("no watch: {0}; see fs.inotify.max_user_instances")]
    Watch(std::io::Error),
}

/// Running threads. They end by themselves soon after [`Engine::stop`].
#[derive(Debug)]
pub struct Engine {
    /// What they share.
    pub shared: Arc<Shared>,
    /// The epoch that is served; none on a standby.
    pub epoch: Option<u64>,
    /// The reader's sign of life.
    pub pulse: Arc<Pulse>,
}

impl Engine {
    /// Starts to watch, and on the active node (with an epoch) to serve every standby. The first look at the
    /// trees goes on when it returns: see [`State::scanned`]. `released`: a person has said that the trees are right
    /// as they are.
    pub fn start(
        settings: &Settings,
        epoch: Option<u64>,
        released: bool,
    ) -> Result<Self, EngineError> {
        let mut state = State::default();
        if released {
            state.allow(Instant::now());
        }
        for (tree, index) in settings.sync.trees.iter().zip(0..) {
            let (identity, mounts) = root::ensure(settings, &tree.path)?;
            if epoch.is_some() {
                root::adopt_mounts(settings, &tree.path, &mounts)?;
            }
            let root = state.dirs.add_root(index);
            state.trees.push(TreeState {
                path: tree.path.clone(),
                owner: tree.owner.clone(),
                exclude: tree.exclude.clone(),
                patterns: Patterns::new(&tree.exclude)?,
                root,
                identity,
                mounts,
                probe: String::new(),
            });
        }
        let pulse = Arc::new(Pulse::default());
        let roots = settings.sync.trees.iter().map(|tree| tree.path.as_path());
        let watcher = Watcher::new(roots, Arc::clone(&pulse)).map_err(EngineError::Watch)?;
        let shared = Arc::new(Shared::default());
        let (settings, of_the_thread) = (settings.clone(), Arc::clone(&shared));
        thread::spawn(move || begin(&settings, watcher, state, epoch, &of_the_thread));
        Ok(Self {
            shared,
            epoch,
            pulse,
        })
    }

    /// Ends the threads, without waiting for them: one may wait for a standby that does not answer, and
    /// from here on nothing that they send is accepted there or matters here.
    pub fn stop(self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        for index in 0..state.standbys.len() {
            let waiting: Vec<u64> = state.waiting.keys().copied().collect();
            state.answer(
                index,
                &waiting,
                Err("this node is not the active one any more"),
            );
        }
        drop(state);
        self.shared.notify();
    }
}

/// The reader's thread: looks at every tree, starts the workers, and reads events.
fn begin(
    settings: &Settings,
    watcher: Watcher,
    mut state: State,
    epoch: Option<u64>,
    shared: &Arc<Shared>,
) {
    let start = Instant::now();
    state.read_until = Some(SystemTime::now());
    let trees = state.trees.clone();
    let mut links: Vec<Links> = trees.iter().map(|_| Links::default()).collect();
    let mut tokens = Vec::new();
    if let Some(epoch) = epoch {
        let checkpoints: Vec<Option<Checkpoint>> = settings
            .peers()
            .map(|peer| Checkpoint::load(settings, &peer.name, epoch))
            .collect();
        state.standbys = settings
            .peers()
            .map(|peer| StandbyState {
                name: peer.name.clone(),
                ..StandbyState::default()
            })
            .collect();
        state.held = hold::kept(settings);
        scan(&watcher, &mut state, &checkpoints, start);
        for (tree, inode, path) in std::mem::take(&mut state.linked) {
            links[usize::from(tree)].know(inode, path);
        }
        tokens = checkpoints
            .into_iter()
            .map(|c| c.map(|c| c.token))
            .collect();
        let directories: u64 = (0..)
            .zip(&trees)
            .map(|(tree, _)| state.dirs.totals(tree).0)
            .sum();
        let text = format!(
            "active node of epoch {epoch}: {directories} directories watched after {:.2?}",
            start.elapsed()
        );
        tell::log(settings, &text);
    }
    state.scanned = true;
    {
        let mut shared = shared.lock();
        if shared.stopped {
            return;
        }
        *shared = state;
    }
    shared.notify();
    if let Some(epoch) = epoch {
        for ((index, peer), token) in settings.peers().enumerate().zip(tokens) {
            let worker = Worker::new(
                settings,
                peer,
                index,
                epoch,
                &trees,
                Found {
                    token,
                    links: links.clone(),
                },
                Arc::clone(shared),
            );
            thread::spawn(move || worker.run());
        }
    }
    watcher.run(shared);
}

/// The first look at every tree: names that have changed since the checkpoint of a standby are noted.
fn scan(watcher: &Watcher, state: &mut State, checkpoints: &[Option<Checkpoint>], now: Instant) {
    let since: Option<SystemTime> = checkpoints.iter().flatten().map(Checkpoint::since).min();
    let noting = since.map_or(Noting::Nothing, Noting::ChangedSince);
    let roots: Vec<NodeId> = state.trees.iter().map(|tree| tree.root).collect();
    let mut changed = Vec::new();
    for root in &roots {
        changed.extend(watcher.scan(state, *root, noting, now));
    }
    if since.is_some() {
        request_comparison(state, &changed, Losses::Unseen);
    }
    for (index, checkpoint) in checkpoints.iter().enumerate() {
        for (tree, path) in checkpoint.iter().flat_map(|c| &c.pending) {
            let root = roots.get(usize::from(*tree));
            if let Some(key) = root.and_then(|root| state.dirs.find(*root, path)) {
                state.standbys[index].queue.mark(key, Change::Whole, now);
            }
        }
    }
}
