//! A session with a MariaDB server: locally over the unix socket, to a peer over TLS.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mysql::prelude::{FromRow, Queryable};
use mysql::{Conn, OptsBuilder, SslOpts};
use settings::{Account, Settings};

/// Which server, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This node's server, as the toolkit's own account.
    Local,
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
    /// Whether nothing listens at all: no client can be connected through there either.
    pub fn refused(&self) -> bool {
        match self {
            Self::Connect { source, .. } => match source {
                mysql::Error::IoError(error) => matches!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
                ),
                mysql::Error::DriverError(mysql::DriverError::CouldNotConnect(Some((
                    _,
                    _,
                    kind,
                )))) => matches!(
                    kind,
                    std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
                ),
                _ => false,
            },
            Self::Password(_) | Self::Statement { .. } | Self::Answer { .. } => false,
        }
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
}

impl Session {
    /// Connects; `deadline` bounds the connect and each later answer.
    pub fn connect(
        settings: &Settings,
        target: Target,
        deadline: Duration,
    ) -> Result<Self, SqlError> {
        let mut session = Self::connect_bare(settings, target, deadline)?;
        // What the tools do on a server must leave no GTID of its own, and must not wait for clients' locks.
        session.execute(match target {
            Target::Local | Target::Peer(_) => {
                "SET SESSION sql_log_bin = 0, lock_wait_timeout = 3, time_zone = '+00:00'"
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
        let account: &Account = match target {
            Target::Local | Target::Peer(_) => &database.account,
            Target::LocalProbe => &database.probe,
        };
        let password = account.password()?;
        let options = OptsBuilder::new()
            .user(Some(&account.user))
            .pass(Some(password.reveal()))
            .read_timeout(Some(deadline))
            .write_timeout(Some(deadline))
            .tcp_connect_timeout(Some(deadline))
            // Known beforehand, it saves a question at each connect.
            .max_allowed_packet(Some(16 * 1024 * 1024))
            .prefer_socket(false);
        let options = match target {
            Target::Local | Target::LocalProbe => {
                options.socket(Some(database.socket.to_string_lossy().into_owned()))
            }
            Target::Peer(address) => options
                .ip_or_hostname(Some(address.to_string()))
                .tcp_port(database.port)
                .tcp_nodelay(true)
                .ssl_opts(Some(
                    SslOpts::default().with_root_cert_path(Some(database.tls_ca.clone())),
                )),
        };
        Conn::new(options)
            .map(|connection| Self { connection })
            .map_err(|source| SqlError::Connect {
                target: match target {
                    Target::Local | Target::LocalProbe => database.socket.display().to_string(),
                    Target::Peer(address) => SocketAddr::new(address, database.port).to_string(),
                },
                source,
            })
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
        self.connection
            .query(statement)
            .map_err(|source| failed(statement, source))
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

/// Statements that carry a password are never printed whole.
fn failed(statement: &str, source: mysql::Error) -> SqlError {
    let statement = match statement.find("MASTER_PASSWORD") {
        Some(at) => format!("{}…", &statement[..at]),
        None => statement.to_owned(),
    };
    SqlError::Statement { statement, source }
}
