//! The settings file `/etc/keepalived/companion.toml`, the same on every node.
//!
//! [`Settings`] can only be made by [`load`], which checks everything and reports every
//! problem at once: a value of this type is valid.

pub mod keepalived_conf;
mod load;
pub mod pattern;
mod secret;
mod section;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use load::{Problem, SettingsError, load, parse, read};
pub use secret::{Secret, read_secret};

/// Where the settings live on a node.
pub const DEFAULT_PATH: &str = "/etc/keepalived/companion.toml";

/// Everything the tools need to know, checked, with the local node found.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address clients use, and how it is recognised.
    pub cluster: Cluster,
    /// Every node, in the order of the file. At least one.
    pub nodes: Vec<Node>,
    /// Index in `nodes` of the node this program runs on.
    local: usize,
    /// How to reach and judge MariaDB.
    pub database: Database,
    /// How check-apache judges the web server.
    pub web: Web,
    /// Limits of the checks and of their repairs.
    pub checks: Checks,
    /// Timers and limits of role changes.
    pub role: Role,
    /// When the preferred node becomes the primary again, and what may be replaced for it.
    pub failback: Failback,
    /// How the forced command on a peer is reached.
    pub peer: Peer,
    /// Where alerts go.
    pub alerts: Alerts,
    /// File synchronisation.
    pub sync: Sync,
    /// Directories; only tests change them.
    pub paths: Paths,
    /// What is wrong with the file as it stands, and where, when these are the settings of before; none when they
    /// are the file's. Programs go on with them and say so; nothing is begun that a person did not ask for.
    pub mistake: Option<String>,
}

impl Settings {
    /// The node this program runs on.
    pub fn local(&self) -> &Node {
        &self.nodes[self.local]
    }

    /// Every other node.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        let local = self.local;
        self.nodes
            .iter()
            .enumerate()
            .filter(move |(index, _)| *index != local)
            .map(|(_, node)| node)
    }
}

/// `[cluster]`
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The virtual IP, without prefix length.
    pub vip: IpAddr,
    /// The interface that carries it (default `enp0s9`).
    pub vip_interface: String,
    /// The name of the `vrrp_instance` (default `VI_1`), for log lines of hooks that get no name.
    pub vrrp_instance: String,
    /// The node that `failback` returns to; must be one of `[[node]]`. Default: the first.
    pub preferred: String,
    /// Third parties that tell a dead peer from a cut link; may be empty.
    pub witnesses: Vec<Witness>,
}

/// A third party on the network: `"icmp:192.168.100.1"` or `"tcp:192.168.100.1:53"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// Answers an echo request.
    Icmp(IpAddr),
    /// Accepts or refuses a TCP connection.
    Tcp(SocketAddr),
}

/// `[[node]]`
#[derive(Debug, Clone)]
pub struct Node {
    /// The host name, as `uname -n` prints it.
    pub name: String,
    /// Address on the private link (replication, ssh).
    pub private: IpAddr,
    /// Address on the network of the clients.
    pub front: IpAddr,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// systemd unit (default `mariadb.service`).
    pub unit: String,
    /// Unix socket (default `/run/mysqld/mysqld.sock`).
    pub socket: PathBuf,
    /// TCP port on every node (default 3306).
    pub port: u16,
    /// MariaDB's `extra_port` on every node, by which the tools get in when every connection is used up (default
    /// 3307; 0 where there is none).
    pub extra_port: u16,
    /// The list of the server's binlogs, `log_bin` with `.index` (default `/var/lib/mysql/binlog.index`).
    pub binlog_index: PathBuf,
    /// The toolkit's schema with the epoch, heartbeat and probe tables (default `keepalived_companion`).
    pub schema: String,
    /// CA that signed the servers' certificates (default `/etc/keepalived/secrets/ca.pem`).
    pub tls_ca: PathBuf,
    /// The same CA as the server's own user can read it, for replication (default `/etc/mysql/tls/ca.pem`).
    pub server_tls_ca: PathBuf,
    /// The toolkit's own account (default name `keepalived_companion`).
    pub account: Account,
    /// The account of the commit probe, without `READ_ONLY ADMIN` (default name `keepalived_probe`).
    pub probe: Account,
    /// The account replicas connect with (default name `keepalived_repl`).
    pub replication: Account,
    /// MariaDB's own time-out for a commit that waits for the replica, in s (default 300, 60..=86400). A last
    /// resort: the resident program lets commits go sooner, when it has looked. `semi_sync_timeout_ms` of
    /// earlier releases is read and has no effect.
    pub semi_sync_last_resort: Duration,
}

/// A MariaDB account; the password is read from its file at load.
#[derive(Debug, Clone)]
pub struct Account {
    /// User name.
    pub user: String,
    /// File with the password (default `/etc/keepalived/secrets/<user>`), mode 0600 or stricter.
    /// A systemd credential of the same name in `$CREDENTIALS_DIRECTORY` wins.
    pub password_file: PathBuf,
}

/// `[web]`
#[derive(Debug, Clone)]
pub struct Web {
    /// systemd unit (default `apache2.service`; `nginx.service`, `php8.2-fpm.service`).
    pub unit: String,
    /// What is requested (default `http://127.0.0.1/`); plain http only.
    pub url: String,
    /// The status that means healthy (default 200).
    pub expected_status: u16,
    /// Text that the body must contain; optional.
    pub expected_text: Option<String>,
}

/// `[checks]`
#[derive(Debug, Clone)]
pub struct Checks {
    /// A check answers within this time, in ms (default 700, 100..=10000); below Keepalived's `timeout`.
    pub deadline: Duration,
    /// How long one commit may be outstanding before the primary is failed, in ms (default 5000).
    pub commit_patience: Duration,
    /// Whether a check may restart its unit (default true).
    pub repair: bool,
    /// Restarts before giving up (default 3, 0..=10).
    pub repair_attempts: u32,
    /// Least time between two restarts, doubled after each, in s (default 5).
    pub repair_backoff: Duration,
    /// A stable run of this length forgets the attempts, in s (default 300).
    pub repair_forget: Duration,
    /// How old a verdict of a node may be and still be believed, in s (default 10).
    pub verdict_age: Duration,
}

/// `[role]`
#[derive(Debug, Clone)]
pub struct Role {
    /// A peer that answers no SYN on either network within this time is silent, in ms (default 150, 20..=5000).
    pub connect_timeout: Duration,
    /// A peer whose host is up may take this long to answer, in ms (default 2000).
    pub answer_timeout: Duration,
    /// Longest write freeze of a switch-over, in ms (default 5000).
    pub freeze_limit: Duration,
    /// Longest time to apply what was received before opening, in s (default 600).
    pub drain_timeout: Duration,
    /// May a node that never met a peer since its boot open its database when the peer is silent? (default false)
    pub promote_unmet_after_boot: bool,
    /// Acknowledged but possibly unreceived transactions a failover may lose without `--accept-loss` (default 0).
    pub loss_limit: u64,
    /// How long a node that is perhaps cut off may stay writable, in ms (default 900); must be below
    /// `alone_after`.
    pub self_fence: Duration,
    /// The window W, in ms (500..=120000): for how long a primary acknowledges nothing alone once its standby
    /// is silent, and for how long a standby's proof is good. None (not set) derives it from keepalived.conf.
    pub alone_after: Option<Duration>,
    /// `promote` and `audit` repeat an alert for the same cause only after this time, in s (default 3600).
    pub realert: Duration,
}

/// `[failback]`
#[derive(Debug, Clone)]
pub struct Failback {
    /// `mode = "automatic"`: the preferred node does it by itself (default `"manual"`).
    pub automatic: bool,
    /// So long the preferred node must have been a standby in order before that, in s (default 600).
    pub stable: Duration,
    /// The hours of the day, local time, in which it may do so: `hours = "2-5"` from two o'clock until five;
    /// `"22-4"` over midnight (default `"0-24"`).
    pub hours: Hours,
    /// `rebuild = "automatic"`: a node whose own transactions cannot be taken back is replaced by a copy of the
    /// primary without being asked; its old data stay beside it (default `"manual"`).
    pub rebuild_automatic: bool,
}

/// Hours of the day, from the first until the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: u8,
    until: u8,
}

impl Hours {
    pub(crate) const ALWAYS: Self = Self { from: 0, until: 24 };

    /// Whether an hour (0 to 23) is among them.
    pub fn contain(self, hour: u8) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&hour)
        } else {
            hour >= self.from || hour < self.until
        }
    }
}

impl std::str::FromStr for Hours {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (from, until) = text.split_once('-').ok_or(())?;
        let hour = |text: &str| {
            text.trim()
                .parse::<u8>()
                .ok()
                .filter(|h| *h <= 24)
                .ok_or(())
        };
        let (from, until) = (hour(from)?, hour(until)?);
        if from == until || from == 24 {
            return Err(());
        }
        Ok(Self { from, until })
    }
}

/// `[peer]`
#[derive(Debug, Clone)]
pub struct Peer {
    /// ssh user on the peer (default `root`; the key is bound to the forced command).
    pub user: String,
    /// ssh port (default 22).
    pub port: u16,
    /// Private key (default `/etc/keepalived/secrets/peer_ed25519`).
    pub identity: PathBuf,
    /// Host keys of the nodes (default `/etc/keepalived/secrets/known_hosts`).
    pub known_hosts: PathBuf,
}

/// `[alerts]`
#[derive(Debug, Clone)]
pub struct Alerts {
    /// `[[alerts.channel]]`; may be empty: alerts are then only logged.
    pub channels: Vec<Channel>,
    /// Connect timeout, in ms (default 3000).
    pub connect_timeout: Duration,
    /// Time for one whole delivery, in ms (default 10000).
    pub total_timeout: Duration,
    /// Equal alerts within this time are folded into one with a count, in s (default 300).
    pub fold_window: Duration,
    /// First retry after this time, doubled up to 15 minutes, in s (default 5).
    pub backoff: Duration,
    /// Most alerts kept in the queue (default 1000); the oldest undelivered of the lowest severity goes first.
    pub queue_limit: usize,
}

/// One destination.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Unique name, shown by `alert --queue`.
    pub name: String,
    /// What it speaks.
    pub kind: ChannelKind,
    /// `proxy`: the way to it, as http://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT; none by default, whatever the
    /// environment says.
    pub proxy: Option<String>,
}

/// `alerts.channel.kind`
#[derive(Debug, Clone)]
pub enum ChannelKind {
    /// Telegram's Bot API (`base_url` default `https://api.telegram.org`).
    Telegram {
        /// Scheme, host and port of the API.
        base_url: String,
        /// File with the bot's token.
        token_file: PathBuf,
        /// The chat.
        chat_id: String,
    },
    /// Bale's Bot API (`base_url` default `https://tapi.bale.ai`); renders text as Markdown.
    Bale {
        /// Scheme, host and port of the API.
        base_url: String,
        /// File with the bot's token.
        token_file: PathBuf,
        /// The chat.
        chat_id: String,
    },
    /// POST of `{"text": …, "node": …, "time": …, "event": …, "severity": …}`.
    Webhook {
        /// Where to.
        url: WebhookUrl,
    },
}

/// Where a webhook is.
#[derive(Debug, Clone)]
pub enum WebhookUrl {
    /// `url`
    Given(Secret),
    /// `url_file`: it holds a secret. It is read when an alert is delivered.
    In(PathBuf),
}

impl WebhookUrl {
    /// The URL, read now.
    pub fn read(&self) -> Result<Secret, SettingsError> {
        match self {
            Self::Given(url) => Ok(url.clone()),
            Self::In(file) => read_secret(file, None).and_then(|url| {
                if is_http(url.reveal()) {
                    Ok(url)
                } else {
                    Err(SettingsError::Secret {
                        path: file.clone(),
                        reason: EXPECTED_HTTP.to_owned(),
                    })
                }
            }),
        }
    }
}

const EXPECTED_HTTP: &str = "expected a URL that begins with http:// or https://";

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

/// `[sync]`
#[derive(Debug, Clone)]
pub struct Sync {
    /// `[[sync.tree]]`, none inside another; without any: /var/www/html.
    pub trees: Vec<Tree>,
    /// The ssh key whose forced command on the peers is sync-receive (default
    /// `/etc/keepalived/secrets/sync_ed25519`).
    pub identity: PathBuf,
    /// The group that may ask the socket to wait for a file (default `www-data`).
    pub socket_group: String,
    /// More deletions than this at once, and than `delete_limit_percent`, are held for a person (default 1000).
    pub delete_limit_count: u64,
    /// Per cent of a tree's files (default 50).
    pub delete_limit_percent: u64,
    /// So many files that went while nobody watched, or a whole directory, are held, too (default 20); as high as
    /// `delete_limit_count`, this limit is off.
    pub delete_limit_unseen: u64,
    /// How long a standby keeps what was deleted; `trash_days` (default 7), 0 for not at all.
    pub trash_age: Duration,
    /// At most so much of it, in bytes, but for what is younger than a day; `trash_mib` (default 1024).
    pub trash_bytes: u64,
    /// `wait` answers `alone` after this time when no standby can be reached, in ms (default 1000).
    pub wait_alone: Duration,
    /// Files of at least this size are sent beside the others, in bytes; `large_mib` (default 16 MiB).
    pub large: u64,
    /// The log (default `/var/log/rsync_realtime.log`, as the original's).
    pub log: PathBuf,
}

/// `[[sync.tree]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The directory, on every node.
    pub path: PathBuf,
    /// `USER:GROUP` of everything on the standby; none keeps the owners (default `keep`).
    pub owner: Option<String>,
    /// rsync patterns of what stays on its node.
    pub exclude: Vec<String>,
}

/// `[paths]`
#[derive(Debug, Clone)]
pub struct Paths {
    /// Durable state (default `/var/lib/keepalived-companion`).
    pub state: PathBuf,
    /// Volatile state (default `/run/keepalived-companion`).
    pub run: PathBuf,
    /// Logs of the checks and tools (default `/var/log/keepalived`).
    pub log: PathBuf,
    /// The failover log (default `/var/log/keepalived_failover.log`).
    pub failover_log: PathBuf,
    /// Keepalived's configuration, which is only read (default `/etc/keepalived/keepalived.conf`).
    pub keepalived_conf: PathBuf,
}
