//! One test at a time on the one lab. A test that fails prints what both nodes say, and the next one gets a lab that
//! was made anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use process::Program;

use crate::{Lab, LabError, NodeName, Options, tell};

/// How often the lab was made anew for a test of this process.
static MADE_ANEW: AtomicU64 = AtomicU64::new(0);

/// What a node says of itself, where a test has failed: its roles, what its database does, and its logs.
const SAID: &str = "\
tail -n 30 /var/log/keepalived_failover.log; tail -n 5 /var/lib/keepalived-companion/role-journal.jsonl; \
cd /run/keepalived-companion && tail -n 20 role.json proof.json resident.json; \
cd /var/lib/keepalived-companion && tail -n 20 stale.json alone.json maintenance.json; \
tail -n 5 /var/log/keepalived/check_*.log; \
timeout 5 mariadb -e \"SHOW FULL PROCESSLIST; SHOW STATUS LIKE 'rpl_semi%'; SHOW VARIABLES LIKE 'rpl_semi%'; \
SHOW ALL SLAVES STATUS\\G\"; \
journalctl -q --no-pager -o short-precise -n 400 -u mariadb -u keepalived-companion-links \
-u keepalived-companion-role -u keepalived";

/// A test's turn at the lab.
#[derive(Debug)]
pub struct Turn {
    _one_at_a_time: MutexGuard<'static, ()>,
    lab: Lab,
    began: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if thread::panicking() {
            self.lab.tell_all();
        }
        tell(&format!("the test took {:.1?}", self.began.elapsed()));
    }
}

impl Lab {
    /// Brings both nodes up, with node1 as the primary and a standby that has everything, for one test of this
    /// process at a time.
    pub fn whole(program: &str, limit: Duration) -> Result<(Turn, Self), LabError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let before = ONE_AT_A_TIME.lock();
        let lab = Self::new(program);
        if before.is_err() {
            // What a test that failed has left is of no use to the others: their failures would tell nothing.
            tell("a test has failed; the lab is made anew");
            lab.wipe()?;
            MADE_ANEW.fetch_add(1, Ordering::Relaxed);
            ONE_AT_A_TIME.clear_poison();
        }
        let turn = Turn {
            _one_at_a_time: before.unwrap_or_else(PoisonError::into_inner),
            lab: lab.clone(),
            began: Instant::now(),
        };
        lab.up(&Options::default())?;
        let whole = lab
            .make_whole(NodeName::Node1, limit)
            .and_then(|()| lab.complete(NodeName::Node1, limit));
        if let Err(error) = whole {
            lab.tell_all();
            return Err(error);
        }
        Ok((turn, lab))
    }

    /// How often the lab was made anew for a test of this process: what ran at the client's place is gone then.
    pub fn made_anew() -> u64 {
        MADE_ANEW.load(Ordering::Relaxed)
    }

    /// Prints what both nodes say of themselves, or what is on the disk of one that is off.
    pub fn tell_all(&self) {
        for node in NodeName::ALL {
            let said = match self.exec(node, &["sh", "-c", SAID]) {
                Ok(said) => Ok(said),
                Err(error) => {
                    tell(&format!("{node}: {error}"));
                    Program::new("chroot")
                        .arg(node.root())
                        .args(["sh", "-c", SAID])
                        .run()
                        .map_err(LabError::from)
                }
            };
            match said {
                Ok(said) => tell(&format!("{node} says\n{}", said.text())),
                Err(error) => tell(&format!("{node}: {error}")),
            }
        }
    }
}
