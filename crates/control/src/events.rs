//! Scheduled events of the database run on the primary only, each as it was: enabled or disabled, with its definer and
//! its schedule.
//!
//! MariaDB leaves that to its administrator (tried on 10.11.19): an event that arrives by replication is
//! `SLAVESIDE_DISABLED` whatever it was, and stays so on a new primary; on the old one it stays ENABLED and writes as
//! its definer, past `read_only` if that one may. So
//!
//! - a closed server has no scheduler: it is stopped before the right to write is given away, at a fence, and in each
//!   look; and a server that its configuration would start with one is started without ([`start_option`]);
//! - the primary notes in a table what it has disabled, and whether its scheduler runs, at each look. The table is
//!   replicated, so whoever opens next knows it as of a tick before. Where no primary has ever noted anything, as after
//!   an upgrade, nothing is enabled and a person is asked;
//! - what is changed on a server for that is not written into its binlog.
//!
//! The toolkit's account has no right to any of this: it is done as the server's own administrator, over the socket.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use host::Process;
use nodefiles::cause::Topic;
use nodefiles::events::{Running, file};
use nodefiles::role_lock::RoleLock;
use observe::{Session, SqlError, Target, boot_id};
use process::Program;
use settings::Settings;

use crate::statements::{self, quote};
use crate::tell;

/// A local server answers within milliseconds. Who asks for the role lock meanwhile waits for longer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks where nothing says that there are events, and a tick of the audit, in seconds: a look is a login as
/// the administrator, which a site may refuse and log.
const SELDOM: f64 = 30.0;
const TICK: f64 = 2.0;
/// What is not as it should be for so long is told, in seconds.
const LASTS: f64 = 8.0;
/// Prints the options that the server's configuration files give it.
const PRINT_DEFAULTS: &str = "my_print_defaults";

/// `information_schema.EVENTS.STATUS`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Enabled,
    Disabled,
    SlavesideDisabled,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    schema: String,
    name: String,
    /// `USER@HOST`
    definer: String,
    status: Status,
}

impl Event {
    fn key(&self) -> (String, String) {
        (self.schema.clone(), self.name.clone())
    }

    /// Without its definer the event would get the one who alters it.
    fn alter(&self, to: &str) -> String {
        let (user, host) = self
            .definer
            .rsplit_once('@')
            .unwrap_or((&self.definer, "%"));
        format!(
            "ALTER DEFINER = {}@{} EVENT {}.{} {to}",
            identifier(user),
            identifier(host),
            identifier(&self.schema),
            identifier(&self.name)
        )
    }
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// What a primary notes for the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Noted {
    /// Whether the scheduler runs; none where no primary has noted anything, and then the configuration says.
    scheduler: Option<bool>,
    /// Schema and name of what is disabled.
    disabled: BTreeSet<(String, String)>,
}

/// On a closed server.
fn to_closed(events: &[Event]) -> Vec<String> {
    let enabled = events.iter().filter(|e| e.status == Status::Enabled);
    enabled.map(|e| e.alter("DISABLE ON SLAVE")).collect()
}

/// On the primary: what replication has disabled is as it was. Nothing is known of it where nothing was noted.
fn to_primary(events: &[Event], noted: &Noted) -> Vec<String> {
    if noted.scheduler.is_none() {
        return Vec::new();
    }
    let foreign = events
        .iter()
        .filter(|e| e.status == Status::SlavesideDisabled);
    foreign
        .map(|event| {
            event.alter(if noted.disabled.contains(&event.key()) {
                "DISABLE"
            } else {
                "ENABLE"
            })
        })
        .collect()
}

/// What was disabled by replication, and nobody has noted what it was before.
fn not_known(events: &[Event], noted: &Noted) -> Vec<String> {
    let foreign = events
        .iter()
        .filter(|e| noted.scheduler.is_none() && e.status == Status::SlavesideDisabled);
    foreign
        .map(|e| format!("{}.{}", e.schema, e.name))
        .collect()
}

/// What has to be written for `now` to be noted: rows alone, once there is a table. Names are at most 64 characters
/// long, of any kind.
fn to_note(schema: &str, noted: &Noted, now: &Noted) -> Vec<String> {
    let table = format!("`{schema}`.event");
    let key = |(event_schema, name): &(String, String)| {
        format!("{}, {}", quote(event_schema), quote(name))
    };
    let mut statements = Vec::new();
    for gone in noted.disabled.difference(&now.disabled) {
        statements.push(format!(
            "DELETE FROM {table} WHERE (event_schema, event_name) = ({})",
            key(gone)
        ));
    }
    for new in now.disabled.difference(&noted.disabled) {
        statements.push(format!(
            "REPLACE INTO {table} VALUES ({}, 'DISABLED')",
            key(new)
        ));
    }
    if now.scheduler.is_some() && now.scheduler != noted.scheduler {
        let state = if now.scheduler == Some(true) {
            "ON"
        } else {
            "OFF"
        };
        statements.push(format!("REPLACE INTO {table} VALUES ('', '', '{state}')"));
    }
    // The scheduler last: where it is noted, so is all else, and there is a table.
    if !statements.is_empty() && noted.scheduler.is_none() {
        let make = format!(
            "CREATE TABLE IF NOT EXISTS {table} (event_schema VARCHAR(64) NOT NULL, event_name VARCHAR(64) NOT NULL, \
             status VARCHAR(10) NOT NULL, PRIMARY KEY (event_schema, event_name)) \
             ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"
        );
        statements.insert(0, make);
    }
    statements
}

/// Why the events are not as they should be.
#[derive(Debug, thiserror::Error)]
enum EventsError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    File(#[from] nodefiles::FileError),
    #[error("the server's process is not known")]
    NoProcess,
    /// Something is to be changed, and a change of roles is under way: the next look does it.
    #[error("a change of roles is under way")]
    Later,
    #[error("{} of the events cannot be changed: {}", .0.len(), .0.join("; "))]
    Some(Vec<String>),
    #[error(
        "it is not known whether {} were enabled before this node became the primary; for each that is to run: \
         ALTER DEFINER = … EVENT … ENABLE",
        .0.join(", ")
    )]
    NotKnown(Vec<String>),
}

/// In each look of the audit in which the roles stand: makes the events of this node's server what its role wants, and
/// tells when that does not succeed.
pub fn follow(settings: &Settings, open: bool) {
    let Ok(mut session) = Session::connect(settings, Target::Local, PATIENCE) else {
        return;
    };
    let concerned = concerned(settings, &mut session, open).unwrap_or(true);
    if !concerned && observe::uptime_seconds() % SELDOM > TICK {
        return;
    }
    let outcome = Session::connect(settings, Target::LocalRoot, PATIENCE)
        .map_err(EventsError::from)
        .and_then(|mut root| {
            if open {
                as_primary(settings, &mut session, &mut root)
            } else {
                as_closed(settings, &mut root)
            }
        });
    let text = match outcome {
        // What was told before still holds.
        Err(EventsError::Later) => return,
        Err(EventsError::Sql(error @ SqlError::Connect { .. })) if !concerned => {
            // A site without events has nothing to be told.
            log::debug!("{error}");
            None
        }
        Ok(()) => None,
        Err(error) => Some(format!(
            "the scheduled events of this node's database are not as its role wants: {error}. \
             Next: SHOW VARIABLES LIKE 'event_scheduler', and SELECT * FROM information_schema.EVENTS, on both nodes"
        )),
    };
    let cause = text.as_deref().map(|text| (text, LASTS));
    tell::cause(settings, Topic::Events, cause);
}

/// Whether anything says that this site has events.
fn concerned(settings: &Settings, session: &mut Session, open: bool) -> Result<bool, SqlError> {
    Ok(scheduler_runs(session)?
        || noted(settings, session)?.scheduler.is_some()
        || open && configured())
}

/// No event begins here any more. Whoever holds the freeze, or fences, ends those that have begun. It is waited for no
/// longer than so: nobody writes meanwhile.
pub fn stop(settings: &Settings, patience: Duration) {
    let (sender, stopped) = mpsc::channel();
    let its_settings = settings.clone();
    thread::spawn(move || {
        let outcome = Session::connect(&its_settings, Target::LocalRoot, PATIENCE)
            .map_err(EventsError::from)
            .and_then(|mut root| stop_scheduler(&its_settings, &mut root));
        if let Err(error) = outcome {
            log::warn!("the event scheduler was not stopped: {error}");
        }
        // Nobody waits any more when it took too long.
        let _ = sender.send(());
    });
    if stopped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        log::warn!("the event scheduler was not stopped within {patience:?}");
    }
}

fn stop_scheduler(settings: &Settings, root: &mut Session) -> Result<(), EventsError> {
    // First: a scheduler that was stopped here is not noted as one that the site has stopped.
    file(settings).remove()?;
    if scheduler_runs(root)? {
        root.execute("SET GLOBAL event_scheduler = OFF")?;
        log::info!("the event scheduler is stopped: this node is not the primary");
    }
    Ok(())
}

/// The role lock, where the server still is what it was when it was looked at: a change of roles in between has done what
/// belongs to it.
fn unchanged(settings: &Settings, root: &mut Session, open: bool) -> Result<RoleLock, EventsError> {
    let lock = RoleLock::take(settings, Duration::ZERO).map_err(|_| EventsError::Later)?;
    let closed: bool = root.row("SELECT @@read_only")?;
    if closed == open {
        return Err(EventsError::Later);
    }
    Ok(lock)
}

fn as_closed(settings: &Settings, root: &mut Session) -> Result<(), EventsError> {
    let statements = to_closed(&events(root)?);
    let running = scheduler_runs(root)? || file(settings).read().ok().flatten().is_some();
    if statements.is_empty() && !running {
        return Ok(());
    }
    let _lock = unchanged(settings, root, false)?;
    stop_scheduler(settings, root)?;
    change(root, &statements)
}

fn as_primary(
    settings: &Settings,
    session: &mut Session,
    root: &mut Session,
) -> Result<(), EventsError> {
    let noted = noted(settings, session)?;
    let found = events(root)?;
    let statements = to_primary(&found, &noted);
    let server = this_server(settings).ok_or(EventsError::NoProcess)?;
    let entered = file(settings).read().ok().flatten().as_ref() == Some(&server);
    let runs = scheduler_runs(root)?;
    let not_known = not_known(&found, &noted);
    let disabled = found.iter().filter(|e| e.status == Status::Disabled);
    let now = Noted {
        // A site without events has nothing to note, and what is not known would be noted as it is.
        scheduler: (noted.scheduler.is_some() || !found.is_empty() && not_known.is_empty())
            .then_some(runs),
        disabled: disabled.map(Event::key).collect(),
    };
    let due = if entered && statements.is_empty() && now.scheduler.is_some() {
        to_note(&settings.database.schema, &noted, &now)
    } else {
        Vec::new()
    };
    if !(entered && statements.is_empty() && due.is_empty()) {
        let _lock = unchanged(settings, root, true)?;
        let changed = change(root, &statements);
        if !entered {
            if noted.scheduler.unwrap_or_else(configured) && !runs {
                root.execute("SET GLOBAL event_scheduler = ON")?;
                log::info!("the event scheduler is started: this node is the primary");
            }
            file(settings).replace(&server)?;
        }
        changed?;
        // A row that waits for a standby is not for now: the lock is held.
        if statements::commits_waiting(session)? == 0 {
            for note in &due {
                statements::replicated(session, note)?;
            }
        }
    }
    if not_known.is_empty() {
        Ok(())
    } else {
        Err(EventsError::NotKnown(not_known))
    }
}

fn this_server(settings: &Settings) -> Option<Running> {
    let Process::Is(pid) = host::mariadb_process(settings) else {
        return None;
    };
    Some(Running {
        server_started: host::started(pid)?,
        boot_id: boot_id(),
    })
}

/// Each by itself: one that the server refuses is no reason for the others.
fn change(root: &mut Session, statements: &[String]) -> Result<(), EventsError> {
    let mut failed = Vec::new();
    for statement in statements {
        match root.execute(statement) {
            Ok(()) => log::info!("{statement}"),
            Err(error) if error.server_code().is_some() => failed.push(error.to_string()),
            // It does not answer, and would not answer the next one.
            Err(error) => return Err(error.into()),
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(EventsError::Some(failed))
    }
}

/// Whether events begin on this server by themselves.
pub fn scheduler_runs(session: &mut Session) -> Result<bool, SqlError> {
    let state: String = session.row("SELECT @@event_scheduler")?;
    Ok(state == "ON")
}

fn events(root: &mut Session) -> Result<Vec<Event>, SqlError> {
    let rows = root.rows::<(String, String, String, String)>(
        "SELECT EVENT_SCHEMA, EVENT_NAME, DEFINER, STATUS FROM information_schema.EVENTS",
    )?;
    Ok(rows
        .into_iter()
        .map(|(schema, name, definer, status)| Event {
            schema,
            name,
            definer,
            status: match status.as_str() {
                "ENABLED" => Status::Enabled,
                "DISABLED" => Status::Disabled,
                _ => Status::SlavesideDisabled,
            },
        })
        .collect())
}

fn noted(settings: &Settings, session: &mut Session) -> Result<Noted, SqlError> {
    let statement = format!(
        "SELECT event_schema, event_name, status FROM `{}`.event",
        settings.database.schema
    );
    let rows = match session.rows::<(String, String, String)>(&statement) {
        // ER_NO_SUCH_TABLE: there was nothing to note.
        Err(error) if error.server_code() == Some(1146) => Vec::new(),
        rows => rows?,
    };
    let mut noted = Noted::default();
    for (schema, name, status) in rows {
        if name.is_empty() {
            noted.scheduler = Some(status == "ON");
        } else {
            noted.disabled.insert((schema, name));
        }
    }
    Ok(noted)
}

/// Whether the server's configuration starts the scheduler. What cannot be told is no.
fn configured() -> bool {
    Program::new(PRINT_DEFAULTS)
        .arg("--mysqld")
        .deadline(PATIENCE)
        .run()
        .is_ok_and(|output| starts_scheduler(&output.text()))
}

/// The last one counts; a name without a value is on.
fn starts_scheduler(options: &str) -> bool {
    let mut values = options.lines().filter_map(|line| {
        let (name, value) = line.split_once('=').unwrap_or((line, "ON"));
        let name = name.trim_start_matches("--").replace('_', "-");
        (name.trim_start_matches("loose-") == "event-scheduler").then_some(value)
    });
    values
        .next_back()
        .is_some_and(|value| ["ON", "1", "TRUE"].contains(&value.to_uppercase().as_str()))
}

/// The option by which a server whose configuration starts the scheduler is started without: it boots closed.
pub fn start_option() -> Option<&'static str> {
    configured().then_some("--event-scheduler=OFF")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn event(name: &str, status: Status) -> Event {
        Event {
            schema: "app".to_owned(),
            name: name.to_owned(),
            definer: "o`hara@%".to_owned(),
            status,
        }
    }

    fn noted(scheduler: Option<bool>, disabled: &[&str]) -> Noted {
        let key = |name: &&str| ("app".to_owned(), (*name).to_owned());
        Noted {
            scheduler,
            disabled: disabled.iter().map(key).collect(),
        }
    }

    #[test]
    fn each_event_runs_on_the_primary_only_and_as_it_was() {
        let events = [
            event("on", Status::Enabled),
            event("off", Status::Disabled),
            event("was_on", Status::SlavesideDisabled),
            event("was_off", Status::SlavesideDisabled),
        ];
        assert_eq!(
            to_closed(&events),
            ["ALTER DEFINER = `o``hara`@`%` EVENT `app`.`on` DISABLE ON SLAVE"]
        );
        // Nothing was noted: nothing is enabled.
        let nothing = noted(None, &[]);
        assert_eq!(to_primary(&events, &nothing), [""; 0]);
        assert_eq!(not_known(&events, &nothing), ["app.was_on", "app.was_off"]);
        let noted = noted(Some(false), &["was_off"]);
        assert_eq!(not_known(&events, &noted), [""; 0]);
        assert_eq!(
            to_primary(&events, &noted),
            [
                "ALTER DEFINER = `o``hara`@`%` EVENT `app`.`was_on` ENABLE",
                "ALTER DEFINER = `o``hara`@`%` EVENT `app`.`was_off` DISABLE"
            ]
        );
    }

    #[test]
    fn only_what_has_changed_is_noted() {
        let write = |before: &Noted, now: &Noted| to_note("s", before, now);
        let before = noted(Some(true), &["a", "b"]);
        assert_eq!(write(&before, &before), [""; 0]);
        assert_eq!(write(&noted(None, &[]), &noted(None, &[])), [""; 0]);
        let statements = write(&before, &noted(Some(false), &["b", "c"]));
        assert_eq!(
            statements,
            [
                "DELETE FROM `s`.event WHERE (event_schema, event_name) = ('app', 'a')",
                "REPLACE INTO `s`.event VALUES ('app', 'c', 'DISABLED')",
                "REPLACE INTO `s`.event VALUES ('', '', 'OFF')"
            ]
        );
        let first = write(&noted(None, &[]), &noted(Some(true), &[]));
        assert!(first[0].starts_with("CREATE TABLE IF NOT EXISTS `s`.event ("));
        assert_eq!(first[1..], ["REPLACE INTO `s`.event VALUES ('', '', 'ON')"]);
    }

    #[test]
    fn the_last_word_of_the_configuration_counts() {
        for (options, starts) in [
            ("", false),
            ("--event_scheduler", true),
            ("--port=3306\n--event-scheduler=on", true),
            ("--event_scheduler=ON\n--event-scheduler=0", false),
            ("--loose_event_scheduler=1", true),
            ("--event_scheduler=DISABLED", false),
        ] {
            assert_eq!(starts_scheduler(options), starts, "{options}");
        }
    }
}
