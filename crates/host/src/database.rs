//! The process of the local MariaDB server, found and judged without systemd's help: on a host in trouble
//! systemd answers late or not at all, and that must not make a server look as if it were gone.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use settings::Settings;

use crate::stat::{Stat, absent};
use crate::unit::unit_state;
use crate::{NotKnown, UnitState};

/// The kernel's names for a MariaDB server; the second is that of a server started through the old link.
const SERVERS: [&str; 2] = ["mariadbd", "mysqld"];
/// Where Debian's configuration lets the server write its pid, whoever started it.
const PID_FILE: &str = "/run/mysqld/mysqld.pid";
/// Where systemd has units and their other names, as links.
const UNIT_DIRECTORIES: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];
/// The kernel itself answers at the addresses of its own host.
const LOOPBACK: Duration = Duration::from_millis(100);

/// The local MariaDB server's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// This pid.
    Is(u32),
    /// There is none.
    Gone,
    /// It could not be told.
    NotKnown(NotKnown),
}

/// The local MariaDB server's process, whether it answers or not.
pub fn mariadb_process(settings: &Settings) -> Process {
    match Server::of(settings).process() {
        Ok(Some(pid)) => Process::Is(pid),
        Ok(None) => Process::Gone,
        Err(why) => Process::NotKnown(why),
    }
}

/// Whether the server, of which `pid` is the process, may acknowledge a write: it has a client's session, or
/// can get one. One that cannot is still at its start, perhaps in crash recovery, or at the end of its life.
///
/// A server opens its sockets after its recovery and boots with a read-only database; no session survives
/// its sockets. So the proof that it cannot is that it has none, which the kernel tells. Its age would be
/// none: a recovery takes as long as it takes. Only where a socket is seen, and nobody listens at the path
/// of the settings, systemd is asked: a unit that starts may have one for another purpose, one in
/// any other state is past its start.
pub fn can_acknowledge(settings: &Settings, pid: u32) -> Result<bool, NotKnown> {
    let server = Server::of(settings);
    if !server.has_sockets(pid)? {
        return Ok(false);
    }
    if server.listens_at_its_socket(pid)? {
        return Ok(true);
    }
    let unit = &settings.database.unit;
    match unit_state(unit) {
        UnitState::Running | UnitState::Stopping | UnitState::Stopped | UnitState::Failed => {
            Ok(true)
        }
        UnitState::Starting => listens_on_tcp(settings),
        UnitState::Unknown => Err(NotKnown::new(
            format_args!("whether MariaDB (pid {pid}) is starting"),
            format_args!("systemd does not tell the state of {unit}"),
        )),
    }
}

/// What tells a server from every other process.
#[derive(Debug)]
pub(crate) struct Server {
    /// The kernel's `/proc`.
    proc: PathBuf,
    /// The unit's names.
    units: Vec<String>,
    pid_file: PathBuf,
    socket: PathBuf,
}

impl Server {
    /// That of the settings.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            units: names(&settings.database.unit),
            pid_file: PathBuf::from(PID_FILE),
            socket: settings.database.socket.clone(),
        }
    }

    /// A server in the unit's cgroup; or else, since a person may have started it by hand, the one that the pid
    /// file names or that listens at the socket. An error is kept until all three have been looked at.
    fn process(&self) -> Result<Option<u32>, NotKnown> {
        let mut unsure = None;
        for way in [
            Self::in_the_unit,
            Self::in_the_pid_file,
            Self::at_the_socket,
        ] {
            match way(self) {
                Ok(None) => {}
                Ok(Some(pid)) => return Ok(Some(pid)),
                Err(why) => unsure = unsure.or(Some(why)),
            }
        }
        unsure.map_or(Ok(None), Err)
    }

    fn in_the_unit(&self) -> Result<Option<u32>, NotKnown> {
        let mut unsure = None;
        let failed = |error| NotKnown::new(self.proc.display(), error);
        for entry in fs::read_dir(&self.proc).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            match self.is_of_the_unit(pid) {
                Ok(false) => {}
                Ok(true) => return Ok(Some(pid)),
                Err(why) => unsure = unsure.or(Some(why)),
            }
        }
        unsure.map_or(Ok(None), Err)
    }

    /// The unit has other processes, too: the shell before the start, a script after it.
    fn is_of_the_unit(&self, pid: u32) -> Result<bool, NotKnown> {
        let Some(groups) = self.read(pid, "cgroup")? else {
            return Ok(false);
        };
        let groups = String::from_utf8_lossy(&groups);
        // `ID:CONTROLLERS:PATH`, one line with cgroup 2.
        let of_the_unit = groups
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2)?.rsplit('/').next())
            .any(|last| self.units.iter().any(|unit| unit == last));
        Ok(of_the_unit && self.is_server(pid)?)
    }

    fn in_the_pid_file(&self) -> Result<Option<u32>, NotKnown> {
        let failed = |why: &dyn std::fmt::Display| NotKnown::new(self.pid_file.display(), why);
        let text = match fs::read_to_string(&self.pid_file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let pid = text
            .trim()
            .parse()
            .map_err(|_| failed(&"it holds no pid"))?;
        Ok(self.is_server(pid)?.then_some(pid))
    }

    fn at_the_socket(&self) -> Result<Option<u32>, NotKnown> {
        match self.listener()? {
            // systemd may listen for it, and then it is not started yet.
            Listener::Process(pid) => Ok(self.is_server(pid)?.then_some(pid)),
            Listener::Nobody => Ok(None),
            Listener::Crowded => Err(NotKnown::new(
                self.socket.display(),
                "who listens there cannot be asked, its queue is full",
            )),
        }
    }

    /// Whether it is a living MariaDB server, and not one in a container on this host, which has a system of
    /// its own with equal names.
    pub(crate) fn is_server(&self, pid: u32) -> Result<bool, NotKnown> {
        let Some(text) = self.read(pid, "stat")? else {
            return Ok(false);
        };
        let Some(stat) = Stat::parse(&text) else {
            let path = self.path(pid, "stat");
            return Err(NotKnown::new(path.display(), "it is not understood"));
        };
        if !stat.alive() {
            return Ok(false);
        }
        // A server may have renamed its first thread.
        let named = SERVERS.iter().any(|name| stat.name == name.as_bytes());
        if !named && !self.runs_a_server(pid)? {
            return Ok(false);
        }
        let Some(status) = self.read(pid, "status")? else {
            return Ok(false);
        };
        // One number for each nested pid namespace, from that of this /proc on.
        let numbers = String::from_utf8_lossy(&status)
            .lines()
            .find_map(|line| Some(line.strip_prefix("NSpid:")?.split_whitespace().count()));
        Ok(numbers.is_none_or(|numbers| numbers == 1))
    }

    fn runs_a_server(&self, pid: u32) -> Result<bool, NotKnown> {
        let path = self.path(pid, "exe");
        match fs::read_link(&path) {
            Ok(program) => {
                let name = program.file_name().unwrap_or_default().as_bytes();
                // A package's upgrade replaces the file.
                let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
                Ok(SERVERS.iter().any(|server| server.as_bytes() == name))
            }
            // A process of the kernel has no program.
            Err(error) if absent(&error) => Ok(false),
            Err(error) => Err(NotKnown::new(path.display(), error)),
        }
    }

    /// Whether the process has a socket beside its standard streams, which are the journal's.
    fn has_sockets(&self, pid: u32) -> Result<bool, NotKnown> {
        let path = self.path(pid, "fd");
        let failed = |error| NotKnown::new(path.display(), error);
        let files = match fs::read_dir(&path) {
            Err(error) if absent(&error) => return Ok(false),
            files => files.map_err(failed)?,
        };
        for file in files {
            let file = match file {
                Err(error) if absent(&error) => return Ok(false),
                file => file.map_err(failed)?,
            };
            let standard = ["0", "1", "2"].iter().any(|n| file.file_name() == *n);
            match fs::read_link(file.path()) {
                Ok(target) => {
                    let socket = target.as_os_str().as_bytes().starts_with(b"socket:");
                    if socket && !standard {
                        return Ok(true);
                    }
                }
                // Closed meanwhile.
                Err(error) if absent(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(false)
    }

    fn listens_at_its_socket(&self, pid: u32) -> Result<bool, NotKnown> {
        Ok(match self.listener()? {
            Listener::Process(listener) => listener == pid,
            Listener::Nobody => false,
            Listener::Crowded => true,
        })
    }

    /// Asked by a connection that does not wait: one that stands still has a queue that is full at last.
    fn listener(&self) -> Result<Listener, NotKnown> {
        let failed = |error: Errno| NotKnown::new(self.socket.display(), io::Error::from(error));
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(failed)?;
        let address = SocketAddrUnix::new(&self.socket).map_err(failed)?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Ok(Listener::Crowded),
            Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(Listener::Nobody),
            Err(error) => return Err(failed(error)),
        }
        let owner = socket_peercred(&socket).map_err(failed)?;
        let pid = u32::try_from(owner.pid.as_raw_pid()).unwrap_or_default();
        Ok(Listener::Process(pid))
    }

    /// None when the process has ended.
    fn read(&self, pid: u32, file: &str) -> Result<Option<Vec<u8>>, NotKnown> {
        let path = self.path(pid, file);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(NotKnown::new(path.display(), error)),
        }
    }

    fn path(&self, pid: u32, file: &str) -> PathBuf {
        self.proc.join(pid.to_string()).join(file)
    }
}

/// Who made a socket that listens at a path.
#[derive(Debug, PartialEq, Eq)]
enum Listener {
    /// This process.
    Process(u32),
    /// There is none.
    Nobody,
    /// There is one, whose queue of connections is full.
    Crowded,
}

/// The names by which a unit's cgroup may go: a cgroup has the unit's own name, the settings may have another.
fn names(unit: &str) -> Vec<String> {
    let unit = if Path::new(unit).extension() == Some(OsStr::new("service")) {
        unit.to_owned()
    } else {
        format!("{unit}.service")
    };
    let target = UNIT_DIRECTORIES
        .iter()
        .find_map(|directory| fs::read_link(Path::new(directory).join(&unit)).ok())
        .and_then(|file| Some(file.file_name()?.to_str()?.to_owned()));
    std::iter::once(unit).chain(target).collect()
}

/// Whether anything listens at the database's port, where the other nodes reach it or at the loopback.
fn listens_on_tcp(settings: &Settings) -> Result<bool, NotKnown> {
    let mut unsure = None;
    for address in [settings.local().private, IpAddr::V4(Ipv4Addr::LOCALHOST)] {
        let address = SocketAddr::new(address, settings.database.port);
        match TcpStream::connect_timeout(&address, LOOPBACK) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => unsure = Some(NotKnown::new(address, error)),
        }
    }
    unsure.map_or(Ok(false), Err)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const UNIT: &str = "0::/system.slice/mariadb.service\n";

    /// A host of a test.
    struct Host {
        directory: tempfile::TempDir,
        server: Server,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name| directory.path().join(name);
            fs::create_dir(at("proc")).unwrap();
            // What is there beside processes.
            fs::create_dir(at("proc/self")).unwrap();
            let server = Server {
                proc: at("proc"),
                units: vec!["mariadb.service".to_owned()],
                pid_file: at("mysqld.pid"),
                socket: at("mysqld.sock"),
            };
            Self { directory, server }
        }

        /// As Linux 6.1 writes it.
        fn run(&self, pid: u32, name: &str, state: &str, cgroup: &str, namespaces: &str) {
            let at = |file| self.server.path(pid, file);
            fs::create_dir_all(at("fd")).unwrap();
            let stat = format!("{pid} ({name}) {state} 1 {pid} {pid} 0 -1 4194560");
            fs::write(at("stat"), stat).unwrap();
            fs::write(at("cgroup"), cgroup).unwrap();
            let status = format!("Name:\t{name}\nNSpid:\t{namespaces}\nNSpgid:\t1\n");
            fs::write(at("status"), status).unwrap();
            symlink("/usr/bin/something", at("exe")).unwrap();
        }

        fn open(&self, pid: u32, number: &str, target: &str) {
            symlink(target, self.server.path(pid, "fd").join(number)).unwrap();
        }

        fn found(&self) -> Result<Option<u32>, NotKnown> {
            self.server.process()
        }
    }

    #[test]
    fn the_server_of_the_unit_is_found_and_no_other() {
        let host = Host::new();
        assert_eq!(host.found(), Ok(None));
        // The unit's shell, another instance, one in a container that is a whole system, a dead one.
        host.run(10, "sh", "S", UNIT, "10");
        let instance = "0::/system.slice/system-mariadb.slice/mariadb@b.service\n";
        host.run(11, "mariadbd", "S", instance, "11");
        let container = "0::/machine.slice/a.scope/system.slice/mariadb.service\n";
        host.run(12, "mariadbd", "S", container, "12\t7");
        host.run(13, "mariadbd", "Z", UNIT, "13");
        // It has ended since it was listed.
        fs::create_dir(host.server.path(14, "")).unwrap();
        assert_eq!(host.found(), Ok(None));
        host.run(20, "mariadbd", "T", UNIT, "20");
        assert_eq!(host.found(), Ok(Some(20)), "a stopped one is one");
    }

    #[test]
    fn a_server_is_known_by_its_program_too_and_in_a_cgroup_of_the_first_version() {
        let host = Host::new();
        let groups = "12:pids:/system.slice/mariadb.service\n\
                      1:name=systemd:/system.slice/mariadb.service\n";
        host.run(20, "renamed", "S", groups, "20");
        assert_eq!(host.found(), Ok(None));
        let exe = host.server.path(20, "exe");
        fs::remove_file(&exe).unwrap();
        symlink("/usr/sbin/mariadbd (deleted)", &exe).unwrap();
        assert_eq!(host.found(), Ok(Some(20)));
    }

    #[test]
    fn one_that_a_person_started_is_found_by_its_pid_file_or_at_its_socket() {
        let host = Host::new();
        let session = "0::/user.slice/user-0.slice/session-3.scope\n";
        host.run(20, "mysqld", "S", session, "20");
        assert_eq!(host.found(), Ok(None));
        fs::write(&host.server.pid_file, "20\n").unwrap();
        assert_eq!(host.found(), Ok(Some(20)));
        fs::write(&host.server.pid_file, "21\n").unwrap();
        assert_eq!(host.found(), Ok(None), "one that was killed left it");
        let own = std::process::id();
        let _listener = UnixListener::bind(&host.server.socket).unwrap();
        assert_eq!(host.found(), Ok(None), "systemd listens for it");
        host.run(own, "mariadbd", "S", session, &own.to_string());
        assert_eq!(host.found(), Ok(Some(own)));
    }

    #[test]
    fn what_cannot_be_read_is_not_gone() {
        let host = Host::new();
        host.run(20, "mariadbd", "S", UNIT, "20");
        for file in ["cgroup", "stat", "status"] {
            let path = host.server.path(20, file);
            let text = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(host.found().is_err(), "{file}");
            fs::remove_dir(&path).unwrap();
            fs::write(&path, text).unwrap();
        }
        assert_eq!(host.found(), Ok(Some(20)));
        fs::write(host.server.path(20, "stat"), "20").unwrap();
        assert!(host.found().is_err());
        fs::remove_dir_all(host.server.path(20, "")).unwrap();
        assert_eq!(host.found(), Ok(None));
        fs::write(&host.server.pid_file, "").unwrap();
        assert!(host.found().is_err(), "the pid file is just being written");
        fs::remove_dir_all(host.directory.path().join("proc")).unwrap();
        assert!(host.found().is_err());
    }

    #[test]
    fn a_server_without_sockets_has_no_clients() {
        let host = Host::new();
        host.run(20, "mariadbd", "S", UNIT, "20");
        host.open(20, "0", "/dev/null");
        // The journal's.
        host.open(20, "1", "socket:[811]");
        host.open(20, "2", "socket:[811]");
        host.open(20, "3", "/var/lib/mysql/ibdata1");
        host.open(20, "4", "anon_inode:[io_uring]");
        assert_eq!(host.server.has_sockets(20), Ok(false));
        host.open(20, "25", "socket:[812]");
        assert_eq!(host.server.has_sockets(20), Ok(true));
        assert_eq!(host.server.has_sockets(21), Ok(false), "it has ended");
        fs::remove_dir_all(host.server.path(20, "fd")).unwrap();
        fs::write(host.server.path(20, "fd"), "").unwrap();
        assert!(host.server.has_sockets(20).is_err());
    }

    #[test]
    fn who_listens_at_the_socket_is_told_while_it_stands_still() {
        let host = Host::new();
        let own = std::process::id();
        assert_eq!(host.server.listener(), Ok(Listener::Nobody));
        let listener = UnixListener::bind(&host.server.socket).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        // Nobody accepts, as with a server that is stopped.
        let mut waiting = Vec::new();
        loop {
            match host.server.listener().unwrap() {
                Listener::Process(pid) => assert_eq!(pid, own),
                Listener::Crowded => break,
                Listener::Nobody => unreachable!("it listens"),
            }
            let stream = socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let address = SocketAddrUnix::new(&host.server.socket).unwrap();
            if connect(&stream, &address).is_ok() {
                waiting.push(stream);
            }
        }
        assert!(host.server.listens_at_its_socket(own).unwrap());
        // And the kernel's own word on its sockets.
        let kernel = Server {
            proc: PathBuf::from("/proc"),
            ..host.server
        };
        assert_eq!(kernel.has_sockets(own), Ok(true));
        drop(listener);
        assert_eq!(kernel.listener(), Ok(Listener::Nobody));
    }

    #[test]
    fn a_unit_has_the_name_that_its_cgroup_has() {
        assert_eq!(names("none-such.service"), ["none-such.service"]);
        assert_eq!(names("none-such"), ["none-such.service"]);
    }
}
