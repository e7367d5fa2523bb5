//! A session with a MariaDB server: locally over the unix socket, to a peer over TLS.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mysql::prelude::{FromRow, Queryable};
use mysql::{Conn, OptsBuilder, SslOpts};
use settings::{Account, Settings};

/// Where the tools find the extra port of their own server.
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// MariaDB's account for the local administrator, as Debian makes it: known by `unix_socket`, without a password.
const ROOT: &str = "root";

/// Which server, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This node's server, as the toolkit's own account.
    Local,
    /// This node's server, as its own administrator, whom the server knows by the user of the process. For what the
    /// toolkit's account has no right to.
    LocalRoot,
    /// This node's server, as the commit probe's account, which cannot write past `read_only`.
    LocalProbe,
    /// A peer's server at this address, as the toolkit's own account, over TLS.
    Peer(IpAddr),
}

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The password is not readable.
    #[error(transparent)]
    Password(#[from] settings::SettingsError),
    /// No session.
    #[error("cannot connect to MariaDB at {target}: {source}")]
    Connect {
        /// Socket or address.
        target: String,
        /// The driver's reason.
        source: mysql::Error,
    },
    /// A statement failed.
    #[error("`{statement}` failed: {source}")]
    Statement {
        /// The statement, without secrets.
        statement: String,
        /// The driver's reason.
        source: mysql::Error,
    },
    /// A statement gave something that cannot be understood.
    #[error("`{statement}` answered {answer}: expected {expected}")]
    Answer {
        /// The statement.
        statement: String,
        /// What came.
        answer: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl SqlError {
    /// Whether the server lives and has no connection left, of all or for this user.
    pub fn no_connection_left(&self) -> bool {
        // ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS
        matches!(self.server_code(), Some(1040 | 1203))
    }

    /// MariaDB's error number, when the server sent one.
    pub fn server_code(&self) -> Option<u16> {
        match self {
            Self::Connect { source, .. } | Self::Statement { source, .. } => match source {
                mysql::Error::MySqlError(error) => Some(error.code),
                _ => None,
            },
            Self::Password(_) | Self::Answer { .. } => None,
        }
    }
}

/// An open session; every wait in it is bounded.
#[derive(Debug)]
pub struct Session {
    connection: Conn,
    /// By MariaDB's `extra_port`.
    extra: bool,
}

impl Session {
    /// Connects; `deadline` bounds the connect and each later answer.
    pub fn connect(
        settings: &Settings,
        target: Target,
        deadline: Duration,
    ) -> Result<Self, SqlError> {
        let mut session = Self::connect_bare(settings, target, deadline)?;
        // What the tools do on a server must leave no GTID of its own, and must not wait for clients' locks. The mode is
        // not the site's: with NO_BACKSLASH_ESCAPES or ORACLE a statement would mean something else.
        session.execute(match target {
            Target::Local | Target::LocalRoot | Target::Peer(_) => {
                "SET SESSION sql_log_bin = 0, lock_wait_timeout = 3, time_zone = '+00:00', \
                 sql_mode = 'STRICT_ALL_TABLES'"
            }
            Target::LocalProbe => "SET SESSION lock_wait_timeout = 1, time_zone = '+00:00'",
        })?;
        Ok(session)
    }

    /// Connects without preparing the session, which saves one statement. For the checks, which
    /// only read as the toolkit's account: what it wrote would get a GTID of its own.
    pub fn connect_bare(
        settings: &Settings,
        target: Target,
        deadline: Duration,
    ) -> Result<Self, SqlError> {
        let database = &settings.database;
        let account: Option<&Account> = match target {
            Target::Local | Target::Peer(_) => Some(&database.account),
            Target::LocalProbe => Some(&database.probe),
            Target::LocalRoot => None,
        };
        let password = account.map(Account::password).transpose()?;
        let options = OptsBuilder::new()
            .user(Some(account.map_or(ROOT, |account| &account.user)))
            .pass(password.as_ref().map(settings::Secret::reveal))
            .read_timeout(Some(deadline))
            .write_timeout(Some(deadline))
            .tcp_connect_timeout(Some(deadline))
            // Known beforehand, it saves a question at each connect.
            .max_allowed_packet(Some(16 * 1024 * 1024))
            .prefer_socket(false);
        let (usual, at, extra) = match target {
            Target::Local | Target::LocalRoot | Target::LocalProbe => {
                let socket = database.socket.to_string_lossy().into_owned();
                let at = if target == Target::LocalRoot {
                    format!("{socket} as {ROOT}")
                } else {
                    socket.clone()
                };
                // Its own administrator is known by the socket only.
                let extra = (target != Target::LocalRoot).then(|| {
                    options
                        .clone()
                        .ip_or_hostname(Some(LOOPBACK.to_string()))
                        .tcp_nodelay(true)
                });
                (options.socket(Some(socket)), at, extra)
            }
            Target::Peer(address) => {
                let options = options
                    .ip_or_hostname(Some(address.to_string()))
                    .tcp_port(database.port)
                    .tcp_nodelay(true)
                    .ssl_opts(Some(
                        SslOpts::default().with_root_cert_path(Some(database.tls_ca.clone())),
                    ));
                let at = SocketAddr::new(address, database.port).to_string();
                (options.clone(), at, Some(options))
            }
        };
        let connected = match target {
            Target::Local | Target::LocalRoot | Target::LocalProbe => {
                connect_within(deadline * 2, usual)
            }
            // The driver bounds this one itself.
            Target::Peer(_) => Conn::new(usual),
        };
        let source = match connected {
            Ok(connection) => {
                return Ok(Self {
                    connection,
                    extra: false,
                });
            }
            Err(source) => source,
        };
        let error = SqlError::Connect { target: at, source };
        if let Some(options) = extra
            && error.no_connection_left()
            && database.extra_port != 0
        {
            match Conn::new(options.tcp_port(database.extra_port)) {
                Ok(connection) => {
                    return Ok(Self {
                        connection,
                        extra: true,
                    });
                }
                // The first error says what is wrong; this one why it could not be got round.
                Err(source) => log::debug!("extra_port {}: {source}", database.extra_port),
            }
        }
        Err(error)
    }

    /// Whether it came in by the extra port, as the clients use every other connection.
    pub fn by_extra_port(&self) -> bool {
        self.extra
    }

    /// Another bound for each answer from now on is not possible in the driver, so a statement
    /// that may run longer (a drain) needs a session made with a longer deadline.
    pub fn execute(&mut self, statement: &str) -> Result<(), SqlError> {
        self.connection
            .query_drop(statement)
            .map_err(|source| failed(statement, source))
    }

    /// The rows of one query.
    pub fn rows<T: FromRow>(&mut self, statement: &str) -> Result<Vec<T>, SqlError> {
        let rows: Vec<Result<T, _>> = self
            .connection
            .query_opt(statement)
            .map_err(|source| failed(statement, source))?;
        // A NULL or a word in the place of a number is an answer as well.
        rows.into_iter()
            .collect::<Result<_, _>>()
            .map_err(|mysql::FromRowError(row)| SqlError::Answer {
                statement: statement.to_owned(),
                answer: format!("{row:?}"),
                expected: "other types",
            })
    }

    /// The single row of one query.
    pub fn row<T: FromRow>(&mut self, statement: &str) -> Result<T, SqlError> {
        self.rows(statement)?
            .into_iter()
            .next()
            .ok_or_else(|| SqlError::Answer {
                statement: statement.to_owned(),
                answer: "no row".to_owned(),
                expected: "one row",
            })
    }

    /// A statement with bound values.
    pub fn execute_with(
        &mut self,
        statement: &str,
        values: Vec<mysql::Value>,
    ) -> Result<(), SqlError> {
        self.connection
            .exec_drop(statement, mysql::Params::Positional(values))
            .map_err(|source| failed(statement, source))
    }

    /// The server's id for this session, as in the process list.
    pub fn id(&self) -> u32 {
        self.connection.connection_id()
    }
}

/// The driver's connection to a Unix socket waits for ever where a server stands still and the queue of its
/// socket is full, which it is after a minute of checks. The connection is given up then, and its thread goes
/// with the process or the server.
fn connect_within(limit: Duration, options: OptsBuilder) -> Result<Conn, mysql::Error> {
    let (sender, connected) = mpsc::channel();
    thread::spawn(move || {
        // Nobody waits any more when it took too long.
        let _ = sender.send(Conn::new(options));
    });
    connected.recv_timeout(limit).unwrap_or_else(|_| {
        let why = "nothing accepts the connection";
        Err(io::Error::new(ErrorKind::TimedOut, why).into())
    })
}

/// An SQL string literal, whatever the mode says of backslashes where the text has none. A bound value would cost one
/// more question and answer.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Statements that carry a password are never printed whole.
fn failed(statement: &str, source: mysql::Error) -> SqlError {
    let statement = match statement.find("MASTER_PASSWORD") {
        Some(at) => format!("{}…", &statement[..at]),
        None => statement.to_owned(),
    };
    SqlError::Statement { statement, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_literal_cannot_end_early() {
        assert_eq!(quote(r"a'b\"), r"'a''b\\'");
    }

    #[test]
    fn a_server_without_a_connection_left_is_known_by_its_words() {
        let refused = |code| SqlError::Connect {
            target: "socket".to_owned(),
            source: mysql::Error::MySqlError(mysql::error::MySqlError {
                state: "08004".to_owned(),
                message: String::new(),
                code,
            }),
        };
        for (code, none_left) in [(1040, true), (1203, true), (1045, false)] {
            assert_eq!(refused(code).no_connection_left(), none_left, "{code}");
        }
    }

    #[test]
    fn a_server_that_stands_still_is_not_waited_for_even_when_its_queue_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name| directory.path().join(name);
        std::fs::write(at("password"), "secret").unwrap();
        std::fs::set_permissions(at("password"), PermissionsExt::from_mode(0o600)).unwrap();
        let text = format!(
            "[cluster]\nvip = \"192.0.2.9\"\n\
             [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"198.51.100.1\"\n\
             [[node]]\nname = \"b\"\nprivate = \"192.0.2.2\"\nfront = \"198.51.100.2\"\n\
             [database]\nsocket = \"{0}/sock\"\npassword_file = \"{0}/password\"\n",
            directory.path().display()
        );
        let settings = settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap();
        let listener = UnixListener::bind(at("sock")).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        // Each leaves one more in the queue.
        for _ in 0..4 {
            let start = Instant::now();
            let error = Session::connect(&settings, Target::Local, Duration::from_millis(50));
            assert!(matches!(error, Err(SqlError::Connect { .. })), "{error:?}");
            assert!(start.elapsed() < Duration::from_secs(20));
        }
    }
}
