//! The deadline of the whole process, held by a thread of its own.
//!
//! Every wait of a check has its own limit, shorter than this. The watchdog is for the waits that
//! have none: a connect to a unix socket whose queue is full, a name lookup, a terminal that does
//! not read. It ends the process while the other thread still waits.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Until the settings are read, and their deadline with them.
const DEFAULT_DEADLINE: Duration = Duration::from_millis(700);

/// What to do at the deadline: makes the verdict known, and gives the exit status.
type OnExpiry = Box<dyn FnOnce(&str, Duration) -> u8 + Send>;

struct Terms {
    deadline: Duration,
    on_expiry: OnExpiry,
}

/// Ends the process at its deadline.
pub(crate) struct Watchdog {
    start: Instant,
    deadline: Duration,
    terms: Sender<Terms>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// One of the two threads has begun to say the verdict.
    ending: AtomicBool,
    /// The exit status, once known.
    status: AtomicU8,
    /// What the check is doing, for the reason.
    doing: Mutex<String>,
}

impl Watchdog {
    /// Starts the clock with a default deadline, which ends the process with status 1.
    pub fn start(start: Instant) -> Self {
        let (terms, changed) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        thread::spawn(move || watch(start, &changed, &watched));
        Self {
            start,
            deadline: DEFAULT_DEADLINE,
            terms,
            shared,
        }
    }

    /// Sets the deadline of the settings and what to do when it is reached.
    pub fn set<F>(&mut self, deadline: Duration, on_expiry: F)
    where
        F: FnOnce(&str, Duration) -> u8 + Send + 'static,
    {
        self.deadline = deadline;
        // The other end lives as long as the process.
        let _ = self.terms.send(Terms {
            deadline,
            on_expiry: Box::new(on_expiry),
        });
    }

    /// Names what is done next, so that a verdict at the deadline can say what was waited for.
    pub fn doing(&self, what: impl Into<String>) {
        let mut doing = self
            .shared
            .doing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *doing = what.into();
        log::debug!("{doing}");
    }

    /// Time left for one wait. A fifth of the deadline is kept for saying the verdict. Never zero:
    /// a socket takes that for no limit.
    pub fn left(&self) -> Duration {
        (self.deadline * 4 / 5)
            .saturating_sub(self.start.elapsed())
            .max(Duration::from_millis(1))
    }

    /// Time since the process began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The check has its verdict and says it now; at the deadline the process ends with this
    /// status. Does not return when the deadline was reached before.
    pub fn claim(&self, status: u8) {
        self.shared.status.store(status, Ordering::Release);
        if self.shared.ending.swap(true, Ordering::AcqRel) {
            loop {
                thread::park();
            }
        }
    }
}

fn watch(start: Instant, changed: &mpsc::Receiver<Terms>, shared: &Shared) {
    let mut deadline = DEFAULT_DEADLINE;
    let mut on_expiry: OnExpiry = Box::new(|_, _| 1);
    loop {
        // A tenth is kept for making the verdict known.
        let limit = (deadline * 9 / 10).saturating_sub(start.elapsed());
        match changed.recv_timeout(limit) {
            Ok(terms) => {
                deadline = terms.deadline;
                on_expiry = terms.on_expiry;
            }
            Err(RecvTimeoutError::Timeout) => break,
            // The check has ended.
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
    if shared.ending.swap(true, Ordering::AcqRel) {
        // The verdict is being said; it gets the rest of the time.
        thread::sleep(deadline.saturating_sub(start.elapsed()));
        process::exit(i32::from(shared.status.load(Ordering::Acquire)));
    }
    let doing = shared
        .doing
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    process::exit(i32::from(on_expiry(&doing, deadline)));
}
