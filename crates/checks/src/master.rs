//! check-master: is this node's database the writable primary, or could it be?

use observe::{Session, SqlError};
use role::Fitness;
use settings::Settings;

use crate::audited;
use crate::cli::{Common, EXIT_HELP};
use crate::run::{Check, Finding, Names, Scene};
use crate::verdict::Verdict;

const EXAMPLES: &str = "\
Examples:
  check-master                      0 only when the database here is the writable primary
  check-master --or-promotable      0 when this node may hold the VIP: the primary, a fit standby,
                                    a freshly booted node that has not met its peer
  check-master --output nagios      one line and exit 0 to 3 for a monitoring agent

Unapplied events never make a standby unfit: they are applied before it opens.
";

/// Check the role of this node's database.
#[derive(Debug, clap::Parser)]
#[command(name = "check-master", version, after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub(crate) struct CheckMaster {
    #[command(flatten)]
    common: Common,
    /// Ask whether this node may hold the VIP, instead of whether it is the primary
    #[arg(long)]
    or_promotable: bool,
}

impl Check for CheckMaster {
    fn common(&self) -> &Common {
        &self.common
    }

    fn names(&self) -> Names {
        Names {
            program: "check-master",
            log: "check_mariadb_master.log",
            // Two questions, two answers to remember.
            state: if self.or_promotable {
                "check_mariadb_master.promotable"
            } else {
                "check_mariadb_master"
            },
            service: if self.or_promotable {
                "fitness for the VIP"
            } else {
                "primary"
            },
        }
    }

    fn asks_database(&self) -> bool {
        true
    }

    fn unit<'a>(&self, _settings: &'a Settings) -> Option<&'a str> {
        // The unit belongs to check-mariadb.
        None
    }

    fn look(&self, scene: &Scene<'_>) -> Finding {
        let asked = scene.connect().and_then(|mut session| {
            let read_only = scene.read_only(&mut session)?;
            Ok((session, read_only))
        });
        let (mut session, read_only) = match asked {
            Ok(answer) => answer,
            Err(error) => return scene.database_unreachable(&error),
        };
        let fitness = if self.or_promotable {
            match (audited::fitness(scene.settings, &scene.now), read_only) {
                (Some(fitness), _) => Ok(from_audit(read_only, fitness)),
                (None, false) => Ok(Fitness::Fit(
                    "writable; the audit has no recent verdict".to_owned(),
                )),
                (None, true) => channels(scene, &mut session).map(|c| without_audit(&c)),
            }
        } else if read_only {
            Ok(is_primary(false, 0))
        } else {
            channels(scene, &mut session).map(|c| is_primary(true, c.len()))
        };
        Finding::healthy(match fitness {
            Ok(Fitness::Fit(why)) => Verdict::ok(why),
            Ok(Fitness::Unfit(why)) => Verdict::failed(why),
            Err(error) => Verdict::unjudged(error.to_string()),
        })
    }
}

/// `Last_SQL_Errno` of every replication channel.
fn channels(scene: &Scene<'_>, session: &mut Session) -> Result<Vec<u32>, SqlError> {
    scene
        .watchdog
        .doing("asking MariaDB for its replication channels");
    observe::channel_sql_errors(session)
}

/// `role::is_writable_primary` on the two facts that it looks at; a test compares them.
fn is_primary(writable: bool, channels: usize) -> Fitness {
    if !writable {
        Fitness::Unfit("the database is read-only".to_owned())
    } else if channels == 0 {
        Fitness::Fit("writable primary".to_owned())
    } else {
        Fitness::Unfit(
            "the database is writable and has a replication channel: not a clean primary"
                .to_owned(),
        )
    }
}

/// The audit has compared this node with its peers. A writable database may be newer than that.
fn from_audit(read_only: bool, fitness: Fitness) -> Fitness {
    match fitness {
        Fitness::Fit(why) if read_only => Fitness::Fit(why),
        Fitness::Fit(_) => Fitness::Fit("writable primary".to_owned()),
        Fitness::Unfit(why) => Fitness::Unfit(why),
    }
}

/// Without the audit nothing is known of the peers: a freshly booted node serves reads.
fn without_audit(sql_errors: &[u32]) -> Fitness {
    match sql_errors.iter().find(|errno| **errno != 0) {
        Some(errno) => Fitness::Unfit(format!(
            "replication stopped at error {errno}; the audit has no recent verdict"
        )),
        None => Fitness::Fit(
            "promotable: answers, read-only; the audit has no recent verdict on the peers"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use role::{Channel, Database, GtidSet, IoThread, Server};

    fn server(writable: bool, channels: usize) -> Database {
        let channel = Channel {
            name: String::new(),
            source: "192.168.137.12".to_owned(),
            io: IoThread::Running,
            sql_running: true,
            follows_slave_pos: true,
            io_errno: 0,
            sql_errno: 0,
            received: GtidSet::default(),
            filtered: false,
        };
        Database::Answering(Box::new(Server {
            server_id: 1,
            writable,
            epoch: None,
            binlog_state: GtidSet::default(),
            slave_pos: GtidSet::default(),
            channels: vec![channel; channels],
            semi_sync: role::SemiSync::default(),
        }))
    }

    #[test]
    fn the_lean_question_has_the_answer_of_the_role_logic() {
        for writable in [false, true] {
            for channels in 0..3 {
                assert_eq!(
                    is_primary(writable, channels),
                    role::is_writable_primary(&server(writable, channels)),
                    "writable {writable}, {channels} channels"
                );
            }
        }
    }

    #[test]
    fn the_audit_decides_when_it_has_a_verdict() {
        let fit = || Fitness::Fit("promotable standby".to_owned());
        let unfit = || Fitness::Unfit("stale".to_owned());
        assert_eq!(from_audit(true, fit()), fit());
        assert!(from_audit(false, fit()).is_fit());
        for read_only in [false, true] {
            assert_eq!(from_audit(read_only, unfit()), unfit());
        }
    }

    #[test]
    fn without_the_audit_only_an_sql_error_is_unfit() {
        assert!(without_audit(&[]).is_fit());
        assert!(without_audit(&[0]).is_fit());
        let Fitness::Unfit(why) = without_audit(&[0, 1062]) else {
            panic!("a broken channel is fit");
        };
        assert!(why.contains("1062"));
    }
}
