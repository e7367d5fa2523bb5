//! What a node remembers of its peers: for this boot in the run directory, for ever in the
//! state directory.

use role::{Contact, LastPrimary, Observation};
use settings::Settings;

use crate::met::{self, BootMemory};
use crate::{FileError, epoch, grant};

/// What this node knows from before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Peers that answered in this boot, and the primary's last state.
    pub boot: BootMemory,
    /// The highest epoch ever seen, as far as it is known.
    pub highest_epoch: u64,
    /// The node that was granted the right to write, as far as it is known.
    pub granted_to: Option<String>,
    /// Why the highest epoch cannot be read.
    epoch_unread: Option<String>,
    /// Why it cannot be read whether the right to write was granted.
    grant_unread: Option<String>,
    /// What could not be written down.
    pub unkept: Vec<String>,
}

impl Memory {
    /// Reads what is remembered. A missing file is an empty memory; a durable one that cannot be read is not known,
    /// and with it nothing is opened, because guessing an epoch could open old data.
    pub fn load(settings: &Settings) -> Self {
        let told = |error: FileError| {
            format!("{error}. Read it; only when the peer's data are known to be older: remove it")
        };
        let epoch = epoch::read(settings);
        let grant = grant::read(settings);
        Self {
            boot: met::read(settings),
            highest_epoch: *epoch.as_ref().unwrap_or(&0),
            granted_to: grant.as_ref().ok().cloned().flatten(),
            epoch_unread: epoch.err().map(told),
            grant_unread: grant.err().map(told),
            unkept: Vec::new(),
        }
    }

    /// What cannot be read, and the next step; none when everything can.
    pub fn unread(&self) -> Option<String> {
        let reasons: Vec<&str> = [&self.epoch_unread, &self.grant_unread]
            .into_iter()
            .filter_map(|why| why.as_deref())
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Takes in what was seen and writes down what changed.
    pub fn learn(&mut self, settings: &Settings, seen: &Observation) {
        let before = met::read(settings);
        let mut boot = self.boot.clone();
        let mut highest = self.highest_epoch;
        if let Some(server) = seen.local.database.server() {
            highest = highest.max(server.epoch_number());
            boot.was_primary |= server.writable;
        }
        for peer in &seen.peers {
            if let Contact::Node(node) = &peer.contact {
                highest = highest.max(node.highest_epoch);
            }
            if let Some(server) = peer.server() {
                highest = highest.max(server.epoch_number());
                let last = boot.peers.entry(peer.name.clone()).or_default();
                *last = server.writable.then(|| LastPrimary {
                    history: server.history(),
                    semi_sync: server.semi_sync.active,
                    pledges: boot
                        .protocols
                        .get(&peer.name)
                        .is_none_or(|version| *version > 0),
                });
            }
        }
        self.learn_anew(settings, seen, highest);
        if let Err(error) = self.saw_epoch(settings, highest) {
            self.unkept.push(error.to_string());
        }
        if boot != before {
            self.boot = boot;
            if let Err(error) = met::file(settings).replace(&self.boot) {
                self.unkept.push(error.to_string());
            }
        }
    }

    /// What cannot be read is known again once nobody can be left who knows better. A database is open only where a
    /// promotion has opened it, and it is closed as soon as a higher epoch is seen or the right to write is given
    /// away; and a node that replicates from an open one has not given it away to another.
    fn learn_anew(&mut self, settings: &Settings, seen: &Observation, highest: u64) {
        let local = seen.local.database.server();
        let open = local.is_some_and(|me| me.writable);
        let everybody_told =
            local.is_some() && seen.peers.iter().all(|peer| peer.server().is_some());
        if self.epoch_unread.is_some() && (open || everybody_told) {
            match epoch::write(settings, highest) {
                Ok(()) => {
                    self.epoch_unread = None;
                    self.highest_epoch = highest;
                }
                Err(error) => self.unkept.push(error.to_string()),
            }
        }
        let follows =
            local.is_some_and(|me| !me.writable && me.receives()) && seen.primary().is_some();
        if self.grant_unread.is_some() && (open || follows) {
            match grant::write(settings, None) {
                Ok(()) => self.grant_unread = None,
                Err(error) => self.unkept.push(error.to_string()),
            }
        }
    }

    /// Takes in the version of the conversation that a peer has told.
    pub fn told_protocol(&mut self, peer: &str, version: u32) {
        self.boot.protocols.insert(peer.to_owned(), version);
    }

    /// Takes in an epoch that was seen, or that this node has just written. It is known for as long as this program
    /// runs also where it cannot be kept.
    pub fn saw_epoch(&mut self, settings: &Settings, epoch: u64) -> Result<(), FileError> {
        if epoch > self.highest_epoch {
            self.highest_epoch = epoch;
            // One that cannot be read may be a higher one.
            if self.epoch_unread.is_none() {
                epoch::write(settings, epoch)?;
            }
        }
        Ok(())
    }

    /// Writes down that the right to write went to another node, or came back.
    pub fn grant(&mut self, settings: &Settings, to: Option<&str>) -> Result<(), FileError> {
        grant::write(settings, to)?;
        self.granted_to = to.map(str::to_owned);
        self.grant_unread = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use role::{
        Channel, Database, Epoch, GtidSet, IoThread, Known, NodeView, PeerView, SemiSync, Server,
    };

    use super::*;

    #[test]
    fn what_was_learned_outlasts_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let mut memory = Memory::load(&settings);
        assert_eq!(memory, Memory::default());
        memory.saw_epoch(&settings, 7).unwrap();
        memory.saw_epoch(&settings, 6).unwrap();
        memory.grant(&settings, Some("b")).unwrap();
        assert_eq!(memory.highest_epoch, 7);
        assert_eq!(Memory::load(&settings), memory);
        memory.grant(&settings, None).unwrap();
        assert_eq!(Memory::load(&settings).granted_to, None);
    }

    fn server(writable: bool, epoch: u64, io: IoThread) -> Server {
        Server {
            server_id: 1,
            writable,
            epoch: Some(Epoch {
                number: epoch,
                primary: "b".to_owned(),
            }),
            binlog_state: GtidSet::default(),
            slave_pos: GtidSet::default(),
            channels: vec![Channel {
                name: String::new(),
                source: "192.0.2.2".to_owned(),
                io,
                sql_running: true,
                follows_slave_pos: true,
                io_errno: 0,
                sql_errno: 0,
                received: GtidSet::default(),
                filtered: false,
            }],
            semi_sync: SemiSync::default(),
        }
    }

    fn seen(local: Server, peer: Contact) -> Observation {
        Observation {
            local: NodeView {
                name: "a".to_owned(),
                vip: Known::No,
                keepalived: Known::Yes,
                database: Database::Answering(Box::new(local)),
                highest_epoch: 0,
            },
            peers: vec![PeerView {
                name: "b".to_owned(),
                contact: peer,
                met: true,
                last_primary: None,
                proof: None,
            }],
            highest_epoch: 0,
            witness: None,
            granted_to: None,
            alone_at: None,
            stale_since: None,
            unread: None,
            unwritable: None,
        }
    }

    /// Garbage in both durable files, and in that of this boot.
    fn damaged(directory: &Path) -> Settings {
        let settings = crate::testing::settings(directory);
        for (path, content) in [
            (
                settings.paths.state.join("epoch.json"),
                &b"{\"version\":1,\"epoch\":"[..],
            ),
            (settings.paths.state.join("grant.json"), b"\xff"),
            (settings.paths.run.join("met.json"), b"{"),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        settings
    }

    #[test]
    fn damaged_durable_files_are_not_known_and_what_to_do_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let settings = damaged(directory.path());
        let mut memory = Memory::load(&settings);
        let unread = memory.unread().unwrap();
        for name in ["epoch.json: damaged", "grant.json: damaged", "remove it"] {
            assert!(unread.contains(name), "{unread}");
        }
        // Alone with a silent peer nobody knows better.
        memory.learn(
            &settings,
            &seen(server(false, 3, IoThread::Connecting), Contact::Silent),
        );
        assert!(memory.unread().is_some() && Memory::load(&settings).unread().is_some());
        assert_eq!(memory.unkept, Vec::<String>::new());
    }

    #[test]
    fn a_standby_learns_them_anew_from_its_primary_and_an_open_node_from_itself() {
        let primary = Contact::Database(Box::new(server(true, 4, IoThread::Stopped)));
        for (local, peer, epoch) in [
            (server(false, 3, IoThread::Running), primary, 4),
            (server(true, 5, IoThread::Stopped), Contact::Silent, 5),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let settings = damaged(directory.path());
            Memory::load(&settings).learn(&settings, &seen(local, peer));
            let learnt = Memory::load(&settings);
            assert_eq!((learnt.unread(), learnt.highest_epoch), (None, epoch));
            assert_eq!(learnt.granted_to, None);
            assert!(learnt.boot != BootMemory::default());
        }
    }

    #[test]
    fn what_cannot_be_kept_is_said_and_known_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        // Root may write anywhere; a file where the directory should be stops it, too.
        fs::write(&settings.paths.state, "").unwrap();
        fs::write(&settings.paths.run, "").unwrap();
        let mut memory = Memory::default();
        memory.learn(
            &settings,
            &seen(server(true, 5, IoThread::Stopped), Contact::Silent),
        );
        assert_eq!(memory.highest_epoch, 5);
        assert_eq!(memory.unkept.len(), 2, "{:?}", memory.unkept);
    }
}
