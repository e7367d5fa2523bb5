//! How far a peer can be reached, in bounded time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use process::Program;
use role::Contact;
use settings::{Node, Settings, Witness};

use crate::{Session, Target, observe_server};

/// The first of the peer's addresses whose kernel answers a SYN, accepting or refusing it, within
/// the time. The private address is preferred when both answer.
pub fn reachable(settings: &Settings, peer: &Node, port: u16) -> Option<IpAddr> {
    reachable_within(settings.role.connect_timeout, peer, port)
}

/// The same, within another time than that of the settings.
pub fn reachable_within(timeout: Duration, peer: &Node, port: u16) -> Option<IpAddr> {
    let (sender, answers) = mpsc::channel();
    for address in [peer.private, peer.front] {
        let sender = sender.clone();
        thread::spawn(move || {
            // The receiver has gone when the other address answered first.
            let _ = sender.send((
                address,
                kernel_answers(SocketAddr::new(address, port), timeout),
            ));
        });
    }
    drop(sender);
    let mut front = None;
    for (address, answered) in answers {
        match answered {
            true if address == peer.private => return Some(address),
            true => front = Some(address),
            false => {}
        }
    }
    front
}

/// Whether anything answers a SYN there, be it with a refusal.
pub fn kernel_answers(address: SocketAddr, timeout: Duration) -> bool {
    match TcpStream::connect_timeout(&address, timeout) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    }
}

/// Asks the peer's database over SQL. It cannot say who holds the VIP.
pub fn observe_peer_database(settings: &Settings, peer: &Node) -> (Contact, Option<Session>) {
    let Some(address) = reachable(settings, peer, settings.database.port) else {
        return (Contact::Silent, None);
    };
    let asked = Session::connect(
        settings,
        Target::Peer(address),
        settings.role.answer_timeout,
    )
    .and_then(|mut session| Ok((observe_server(&mut session, settings)?, session)));
    match asked {
        Ok((server, session)) => (Contact::Database(Box::new(server)), Some(session)),
        Err(error) => {
            log::debug!("{}: {error}", peer.name);
            (Contact::HostUp, None)
        }
    }
}

/// Whether a witness answers within the connect timeout, or a second for an echo.
pub fn witness_answers(settings: &Settings, witness: &Witness) -> bool {
    match witness {
        Witness::Tcp(address) => kernel_answers(*address, settings.role.connect_timeout),
        Witness::Icmp(address) => Program::new("ping")
            .args(["-n", "-q", "-c", "1", "-W", "1"])
            .arg(address.to_string())
            .deadline(Duration::from_secs(2))
            .run()
            .is_ok_and(|output| output.status.success()),
    }
}
