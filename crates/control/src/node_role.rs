//! Tells every program on this node what it is: `role.json`, which the file synchronisation obeys.
//!
//! It is rewritten only when it changes, because each rewriting wakes who watches it.

use nodefiles::memory::Memory;
use nodefiles::role_state::{self, NodeRole, RoleState};
use observe::uptime_seconds;
use role::Database;
use settings::Settings;

use crate::tell;

/// A role, and the epoch that it is of.
type Told = (NodeRole, u64);

/// What follows from what the database says, when that is not told yet. One that does not answer
/// may have been anything, so it says nothing.
fn role_of(database: &Database, highest_epoch: u64, told: Option<Told>) -> Option<Told> {
    let known = match database {
        Database::Answering(server) if server.writable => (NodeRole::Active, server.epoch_number()),
        // The row may have come by replication since the memory was written.
        Database::Answering(server) => {
            (NodeRole::Standby, highest_epoch.max(server.epoch_number()))
        }
        Database::Starting | Database::Silent | Database::Down | Database::NotKnown => {
            return None;
        }
    };
    (told != Some(known)).then_some(known)
}

fn told(settings: &Settings) -> Option<Told> {
    role_state::read(settings).map(|state| (state.role, state.epoch))
}

/// Tells this role and epoch.
pub fn write(settings: &Settings, role: NodeRole, epoch: u64) {
    if told(settings) != Some((role, epoch)) {
        put(settings, role, epoch, false);
    }
}

/// Whether the database was closed when it was last seen, and nothing here has opened it since.
pub fn is_closed(settings: &Settings) -> bool {
    role_state::read(settings).is_some_and(|state| state.role == NodeRole::Standby && state.closed)
}

fn put(settings: &Settings, role: NodeRole, epoch: u64, closed: bool) {
    log::info!("role.json: {role:?}, epoch {epoch}");
    tell::write(
        &role_state::file(settings),
        &RoleState {
            role,
            epoch,
            at: uptime_seconds(),
            closed,
        },
    );
}

/// What [`follow`] would tell, when that is new: also that a standby is seen closed now.
fn news(settings: &Settings, database: &Database, highest_epoch: u64) -> Option<Told> {
    let told = told(settings).filter(|(role, _)| *role == NodeRole::Active || is_closed(settings));
    role_of(database, highest_epoch, told)
}

/// Whether [`follow`] would tell something new.
pub fn is_new(settings: &Settings, database: &Database, highest_epoch: u64) -> bool {
    news(settings, database, highest_epoch).is_some()
}

/// Tells what the database, just looked at, makes of this node. The role lock is held.
pub fn follow(settings: &Settings, database: &Database, highest_epoch: u64) {
    if let Some((role, epoch)) = news(settings, database, highest_epoch) {
        put(settings, role, epoch, role == NodeRole::Standby);
    }
}

/// Looks at the database and follows it. The role lock is held.
pub fn look_again(settings: &Settings) {
    let (database, _session) = observe::local_database(settings);
    follow(settings, &database, highest_epoch(settings));
}

/// Tells that this node gives way to another one.
pub fn stand_by(settings: &Settings) {
    write(settings, NodeRole::Standby, highest_epoch(settings));
}

/// The highest epoch that is known here. One that cannot be read must not keep a node from giving way.
fn highest_epoch(settings: &Settings) -> u64 {
    let told = told(settings).map_or(0, |(_, epoch)| epoch);
    Memory::load(settings).highest_epoch.max(told)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use role::{Epoch, SemiSync, Server};

    use super::*;
    use crate::testing::settings;

    use NodeRole::{Active, Changing, Standby};

    fn answering(writable: bool, epoch: u64) -> Database {
        Database::Answering(Box::new(Server {
            server_id: 1,
            writable,
            epoch: Some(Epoch {
                number: epoch,
                primary: "a".to_owned(),
            }),
            binlog_state: "".parse().unwrap(),
            slave_pos: "".parse().unwrap(),
            channels: Vec::new(),
            semi_sync: SemiSync::default(),
        }))
    }

    #[test]
    fn the_role_follows_a_database_that_answers() {
        let open = answering(true, 5);
        let closed = answering(false, 5);
        for (database, highest, told, expected) in [
            // After a boot nothing is told yet.
            (&open, 5, None, Some((Active, 5))),
            (&closed, 5, None, Some((Standby, 5))),
            (&Database::Starting, 5, None, None),
            // Nothing is new.
            (&open, 5, Some((Active, 5)), None),
            (&closed, 5, Some((Standby, 5)), None),
            // It was opened, or closed; perhaps by a promotion that was killed.
            (&open, 5, Some((Standby, 4)), Some((Active, 5))),
            (&open, 5, Some((Changing, 4)), Some((Active, 5))),
            (&closed, 5, Some((Active, 5)), Some((Standby, 5))),
            (&closed, 5, Some((Changing, 5)), Some((Standby, 5))),
            // A newer epoch was seen: the own one while open, the highest while closed.
            (&open, 6, Some((Active, 4)), Some((Active, 5))),
            (&closed, 6, Some((Standby, 5)), Some((Standby, 6))),
            (&closed, 4, Some((Standby, 4)), Some((Standby, 5))),
            // No answer is no knowledge.
            (&Database::Starting, 6, Some((Changing, 5)), None),
            (&Database::Silent, 6, Some((Active, 5)), None),
            (&Database::Down, 6, Some((Standby, 5)), None),
        ] {
            assert_eq!(
                role_of(database, highest, told),
                expected,
                "{database:?}, {highest}, {told:?}"
            );
        }
    }

    #[test]
    fn the_file_is_replaced_when_something_changed_and_anybody_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let file = || std::fs::metadata(role_state::file(&settings).path()).unwrap();
        write(&settings, Active, 5);
        let first = file();
        assert_eq!(first.permissions().mode() & 0o777, 0o644);
        write(&settings, Active, 5);
        follow(&settings, &answering(true, 5), 5);
        follow(&settings, &Database::Down, 9);
        assert_eq!(file().ino(), first.ino(), "rewritten for nothing");
        write(&settings, Standby, 6);
        assert_eq!(told(&settings), Some((Standby, 6)));
    }

    #[test]
    fn a_database_is_closed_only_once_it_was_seen_so() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        write(&settings, Active, 5);
        // It gives way, and whether its database has closed is another matter.
        stand_by(&settings);
        assert!(!is_closed(&settings));
        assert!(is_new(&settings, &answering(false, 5), 5));
        follow(&settings, &answering(false, 5), 5);
        assert!(is_closed(&settings));
        assert!(!is_new(&settings, &answering(false, 5), 5));
        follow(&settings, &Database::Silent, 5);
        stand_by(&settings);
        assert!(is_closed(&settings));
        for opened in [Changing, Active] {
            follow(&settings, &answering(false, 5), 5);
            write(&settings, opened, 6);
            assert!(!is_closed(&settings), "{opened:?}");
        }
    }

    #[test]
    fn a_node_gives_way_although_its_memory_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        nodefiles::epoch::write(&settings, 7).unwrap();
        stand_by(&settings);
        assert_eq!(told(&settings), Some((Standby, 7)));
        write(&settings, Active, 8);
        std::fs::write(directory.path().join("epoch.json"), "damaged").unwrap();
        stand_by(&settings);
        assert_eq!(told(&settings), Some((Standby, 8)));
    }
}
