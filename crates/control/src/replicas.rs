//! Replication connections whose replica is out of reach are ended from this side.
//!
//! A replica that was cut off and comes back asks for its binlog on a new connection, and the primary
//! then removes the old one. While that old one is silent and semi-synchronous replication is on, MariaDB
//! (10.11.19, `kill_zombie_dump_threads` in `Ack_receiver::remove_slave`) waits there for a thread that
//! nothing wakes, under a lock that every new connection needs: the whole primary hangs until TCP gives the
//! old connection up. A connection that is ended before the replica returns does no harm; a replica asks
//! again after `slave_net_timeout` (5 s) at the earliest, and the audit looks every two.

use std::net::{IpAddr, SocketAddr};

use observe::{Session, SqlError};
use settings::Settings;

use crate::look::Look;
use crate::tell;

/// An address that does not answer this often is out of reach; each try takes the connect timeout.
const TRIES: usize = 2;

/// Looks at every replication connection of the local primary, and ends those of silent addresses.
pub fn end_silent(settings: &Settings, look: &mut Look) {
    let database = &look.seen.local.database;
    let serves = database
        .server()
        .is_some_and(|server| server.writable && server.semi_sync.replicas > 0);
    let Some(session) = look.local.as_mut().filter(|_| serves) else {
        return;
    };
    match silent(settings, session) {
        Ok(connections) => {
            for (id, address) in connections {
                end(settings, session, id, address);
            }
        }
        Err(error) => log::warn!("{error}"),
    }
}

fn silent(settings: &Settings, session: &mut Session) -> Result<Vec<(u64, IpAddr)>, SqlError> {
    let connections = session.rows::<(u64, String)>(
        "SELECT ID, HOST FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'",
    )?;
    Ok(connections
        .into_iter()
        .filter_map(|(id, host)| Some((id, host.rsplit_once(':')?.0.parse().ok()?)))
        // A tool that reads binlogs is nobody's concern here.
        .filter(|(_, address)| {
            let of_a_peer = |node: &settings::Node| [node.private, node.front].contains(address);
            settings.peers().any(of_a_peer)
        })
        .filter(|(_, address)| {
            let socket = SocketAddr::new(*address, settings.peer.port);
            !(0..TRIES).any(|_| observe::kernel_answers(socket, settings.role.connect_timeout))
        })
        .collect())
}

fn end(settings: &Settings, session: &mut Session, id: u64, address: IpAddr) {
    match session.execute(&format!("KILL CONNECTION {id}")) {
        Ok(()) => tell::failover_log(
            settings,
            &format!("ended the replication connection of {address}, which does not answer"),
        ),
        // It has ended by itself meanwhile.
        Err(error) => log::debug!("{error}"),
    }
}
