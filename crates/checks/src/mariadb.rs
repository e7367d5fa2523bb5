//! check-mariadb: does the database answer, and does a commit complete on a writable one?
//!
//! The commit probe writes one row a node, replicated like any other. A stall of the disk or a
//! wait for the replica must not become a failover, so a commit that is not answered in time is
//! left to itself: the next runs look whether its session still exists and start no second one
//! meanwhile. Only when no commit has been answered for `checks.commit_patience`, the check fails.
//! Closing the client's end does not stop the server's commit. A wait for the replica's
//! acknowledgement is never a failure here: a failover would not bring it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use observe::{Session, SqlError, Target, quote};
use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::cli::{Common, EXIT_HELP};
use crate::clock::Moment;
use crate::run::{Check, Finding, Names, Scene};
use crate::store;
use crate::verdict::{Timing, Verdict};

/// A commit younger than this is proof enough; Keepalived asks every second.
const PROOF_AGE: Duration = Duration::from_millis(900);

const PROBE_FILE: &str = "check_mariadb.probe.json";

/// A failover would not help: the clients would come along.
const CROWDED: &str = "every connection for clients is used; see SHOW PROCESSLIST";

/// How MariaDB calls the wait for a replica in the process list.
const SEMI_SYNC_WAIT: &str = "Waiting for semi-sync ACK";

const EXAMPLES: &str = "\
Examples:
  check-mariadb                     as Keepalived calls it: exit 0 or 1
  check-mariadb --verbose           the same, and the reason in words
  check-mariadb --output json       the verdict with its times

On a writable server one row of the probe table is committed. A commit without an answer fails the
check after checks.commit_patience only. A dead server is restarted within the limits of [checks];
one that is starting, stopped by an administrator, or alive and silent is not.
";

/// Check that the database of this node answers and can commit.
#[derive(Debug, clap::Parser)]
#[command(name = "check-mariadb", version, after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub(crate) struct CheckMariadb {
    #[command(flatten)]
    common: Common,
}

impl Check for CheckMariadb {
    fn common(&self) -> &Common {
        &self.common
    }

    fn names(&self) -> Names {
        Names {
            program: "check-mariadb",
            log: "check_mariadb.log",
            state: "check_mariadb",
            service: "MariaDB",
        }
    }

    fn asks_database(&self) -> bool {
        true
    }

    fn unit<'a>(&self, settings: &'a Settings) -> Option<&'a str> {
        Some(&settings.database.unit)
    }

    fn look(&self, scene: &Scene<'_>) -> Finding {
        let start = Instant::now();
        let mut session = match scene.connect() {
            Ok(session) => session,
            Err(error) => return scene.database_unreachable(&error),
        };
        let read_only = match scene.read_only(&mut session) {
            Ok(read_only) => read_only,
            Err(error) => return scene.database_unreachable(&error),
        };
        let timing = Timing::new("query", start.elapsed(), scene.settings.checks.deadline);
        let book = ProbeBook::open(scene.settings);
        let verdict = if read_only {
            book.write(&ProbeState::default())
                .map(|()| Verdict::ok("answers, read-only"))
        } else {
            probe(scene, &mut session, &book)
        };
        let crowded = session.by_extra_port();
        let verdict = verdict.map(|verdict| {
            if crowded {
                verdict.but(CROWDED)
            } else {
                verdict
            }
        });
        let verdict = verdict.unwrap_or_else(|error| {
            // That says nothing of the server, and there may be no other one.
            Verdict::degraded(format!(
                "answers; no commit is tried: {}: cannot be kept: {error}",
                book.path.display()
            ))
        });
        Finding::healthy(verdict.with_time(timing))
    }
}

/// What is known of the probe from run to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct ProbeState {
    /// The last commit that was answered.
    committed: Option<Moment>,
    /// The commit that was not.
    outstanding: Option<Outstanding>,
}

/// A commit without an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outstanding {
    /// The first one of a row that was not answered.
    since: Moment,
    /// The server's session of the last one; none when it did not get that far.
    session: Option<u32>,
}

/// The file that holds the probe's state.
struct ProbeBook {
    path: PathBuf,
    state: ProbeState,
}

impl ProbeBook {
    fn open(settings: &Settings) -> Self {
        let path = settings.paths.run.join(PROBE_FILE);
        let state = store::read(&store::file(&path)).unwrap_or_default();
        Self { path, state }
    }

    fn write(&self, next: &ProbeState) -> std::io::Result<()> {
        if *next == ProbeState::default() {
            store::remove(&self.path)
        } else {
            store::write(&self.path, next)
        }
    }
}

/// What to do about the probe in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A commit was answered a moment ago.
    Skip,
    /// A session still waits for its answer.
    Wait,
    /// Start one.
    Start,
}

/// `waits` is whether the outstanding session still exists.
fn next_step(state: &ProbeState, waits: bool, now: &Moment) -> Step {
    match (&state.outstanding, &state.committed) {
        (Some(_), _) if waits => Step::Wait,
        (None, Some(committed)) if committed.is_young(now, PROOF_AGE) => Step::Skip,
        (Some(_), _) | (None, Some(_) | None) => Step::Start,
    }
}

/// How one probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It was committed.
    Committed(Duration),
    /// It was committed by the extra port.
    CommittedInACrowd(Duration),
    /// The server has become read-only meanwhile.
    ReadOnly,
    /// No answer yet, or one that says "later".
    Unanswered(String),
    /// There was no connection for it.
    Crowded,
    /// It can never work like this.
    Refused(String),
}

/// The verdict on a writable server, and since when no commit was answered.
fn judge_probe(
    outcome: &Outcome,
    unanswered_since: &Moment,
    replica_is_waited_for: bool,
    settings: &Settings,
    now: &Moment,
) -> Verdict {
    let patience = settings.checks.commit_patience;
    match outcome {
        Outcome::Committed(took) => Verdict::ok("answers, a commit completes")
            .with_time(Timing::new("commit", *took, patience)),
        Outcome::CommittedInACrowd(took) => Verdict::ok("answers, a commit completes")
            .but(CROWDED)
            .with_time(Timing::new("commit", *took, patience)),
        Outcome::Crowded => {
            Verdict::degraded(format!("answers, and no commit is tried: {CROWDED}"))
        }
        Outcome::ReadOnly => Verdict::ok("answers, has just become read-only"),
        Outcome::Refused(why) => Verdict::failed(format!("no commit can be tried: {why}")),
        Outcome::Unanswered(why) => {
            // A moment that cannot be compared is too old to be patient with.
            let waited = unanswered_since.age(now).unwrap_or(Duration::MAX);
            let waited_text = format!("{:.1} s", waited.as_secs_f64().min(1e6));
            let limit = Timing::new(
                "commit",
                waited.min(Duration::from_secs(1_000_000)),
                patience,
            );
            if replica_is_waited_for {
                Verdict::degraded(format!(
                    "answers; commits wait for the replica's acknowledgement since {waited_text}"
                ))
            } else if waited <= patience {
                Verdict::degraded(format!(
                    "answers; no commit completed since {waited_text}: {why}"
                ))
            } else {
                Verdict::failed(format!(
                    "no commit completed since {waited_text}, longer than {patience:?}: {why}"
                ))
            }
            .with_time(limit)
        }
    }
}

fn probe(scene: &Scene<'_>, session: &mut Session, book: &ProbeBook) -> std::io::Result<Verdict> {
    let settings = scene.settings;
    let state = &book.state;
    let waiting = match &state.outstanding {
        None => Waiting::default(),
        Some(outstanding) => match ask_waiting(session, settings, outstanding) {
            Ok(waiting) => waiting,
            Err(error) => return Ok(Verdict::failed(error.to_string())),
        },
    };
    let since = state
        .outstanding
        .as_ref()
        .map_or_else(|| scene.now.clone(), |o| o.since.clone());
    let outcome = match next_step(state, waiting.own, &scene.now) {
        Step::Skip => return Ok(Verdict::ok("answers, a commit completed just now")),
        Step::Wait => Outcome::Unanswered("its session still waits".to_owned()),
        Step::Start => start_probe(scene, book, &since)?,
    };
    match outcome {
        Outcome::Committed(_) | Outcome::CommittedInACrowd(_) => book.write(&ProbeState {
            committed: Some(scene.now.clone()),
            outstanding: None,
        })?,
        Outcome::ReadOnly | Outcome::Crowded => book.write(&ProbeState::default())?,
        // `start_probe` wrote it down before it began; what is refused is tried again.
        Outcome::Unanswered(_) | Outcome::Refused(_) => {}
    }
    // The commit that was just started may wait for the replica, too.
    let replica_is_waited_for = match (&outcome, waiting.replica) {
        (Outcome::Unanswered(_), false) if !waiting.own => session
            .rows::<(u64, String, Option<String>)>(&process_list(0))
            .is_ok_and(|rows| Waiting::of(&rows, 0, "").replica),
        (_, seen) => seen,
    };
    Ok(judge_probe(
        &outcome,
        &since,
        replica_is_waited_for,
        settings,
        &scene.now,
    ))
}

/// What the process list says of commits that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waiting {
    /// The probe's own session exists.
    own: bool,
    /// Some commit, and with it all that queue behind it, waits for a replica.
    replica: bool,
}

impl Waiting {
    fn of(rows: &[(u64, String, Option<String>)], session: u32, user: &str) -> Self {
        Self {
            own: rows
                .iter()
                .any(|(id, owner, _)| *id == u64::from(session) && owner == user),
            replica: rows.iter().any(|(_, _, state)| {
                state
                    .as_deref()
                    .is_some_and(|s| s.starts_with(SEMI_SYNC_WAIT))
            }),
        }
    }
}

fn process_list(session: u32) -> String {
    format!(
        "SELECT ID, USER, STATE FROM information_schema.PROCESSLIST \
         WHERE ID = {session} OR STATE LIKE '{SEMI_SYNC_WAIT}%'"
    )
}

fn ask_waiting(
    session: &mut Session,
    settings: &Settings,
    outstanding: &Outstanding,
) -> Result<Waiting, SqlError> {
    let id = outstanding.session.unwrap_or(0);
    let rows = session.rows(&process_list(id))?;
    Ok(Waiting::of(&rows, id, &settings.database.probe.user))
}

/// Starts a commit and waits for it a part of the time that is left. It is written down first: a
/// run that is killed leaves its session known.
fn start_probe(scene: &Scene<'_>, book: &ProbeBook, since: &Moment) -> std::io::Result<Outcome> {
    let settings = scene.settings;
    scene.watchdog.doing("committing a row of the probe table");
    let start = Instant::now();
    // The driver bounds each answer: the greeting, the login, the commit.
    let limit = scene.watchdog.left() / 3;
    let outstanding = |session| ProbeState {
        committed: book.state.committed.clone(),
        outstanding: Some(Outstanding {
            since: since.clone(),
            session,
        }),
    };
    let mut session = match Session::connect_bare(settings, Target::LocalProbe, limit) {
        Ok(session) => session,
        Err(error) if error.no_connection_left() => return Ok(Outcome::Crowded),
        Err(error) => {
            book.write(&outstanding(None))?;
            return Ok(outcome_of(&error, settings));
        }
    };
    book.write(&outstanding(Some(session.id())))?;
    let statement = format!(
        "INSERT INTO `{}`.probe (node, beat, at) VALUES ({}, 1, UTC_TIMESTAMP(6)) \
         ON DUPLICATE KEY UPDATE beat = beat + 1, at = UTC_TIMESTAMP(6)",
        settings.database.schema,
        quote(&settings.local().name)
    );
    Ok(match session.execute(&statement) {
        Ok(()) if session.by_extra_port() => Outcome::CommittedInACrowd(start.elapsed()),
        Ok(()) => Outcome::Committed(start.elapsed()),
        Err(error) => outcome_of(&error, settings),
    })
}

fn outcome_of(error: &SqlError, settings: &Settings) -> Outcome {
    let text = error.to_string();
    match error {
        SqlError::Password(_) | SqlError::Answer { .. } => Outcome::Refused(text),
        SqlError::Connect { .. } | SqlError::Statement { .. } => {
            classify(error.server_code(), text, settings)
        }
    }
}

/// Sorts MariaDB's error numbers; none means that the connection broke or timed out.
fn classify(code: Option<u16>, text: String, settings: &Settings) -> Outcome {
    let schema = &settings.database.schema;
    let user = &settings.database.probe.user;
    match code {
        // Too many connections (of all, of one user); shutdown; lock wait; deadlock; query killed;
        // connection killed; statement timeout.
        None | Some(1040 | 1203 | 1053 | 1205 | 1213 | 1317 | 1927 | 1969) => {
            Outcome::Unanswered(text)
        }
        // ER_OPTION_PREVENTS_STATEMENT: --read-only.
        Some(1290) => Outcome::ReadOnly,
        // Access denied: login, schema, by plugin, table.
        Some(1045 | 1044 | 1698 | 1142) => Outcome::Refused(format!(
            "{text}; grant `{user}`@localhost SELECT, INSERT, UPDATE on {schema}.probe with the \
             password of {}",
            settings.database.probe.password_file.display()
        )),
        // No such schema, no such table.
        Some(1049 | 1146) => {
            Outcome::Refused(format!("{text}; load the toolkit's schema on the primary"))
        }
        Some(_) => Outcome::Refused(text),
    }
}
