//! From the file's text to [`Settings`], with every problem at once.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::pattern::Patterns;
use crate::section::{Problems, Section};
use crate::{
    Account, Alerts, Channel, ChannelKind, Checks, Cluster, Database, EXPECTED_HTTP, Failback,
    Hours, Node, Paths, Peer, Role, Secret, Settings, Sync, Tree, Web, WebhookUrl, Witness,
    is_http,
};

/// The pledge of a primary and an acknowledgement name no standby.
const MOST_NODES: usize = 2;
const DEFAULT_TREE: &str = "/var/www/html";
/// What root owns on the active node is not made writable for the web server on the standby.
const DEFAULT_OWNER: &str = "keep";

/// One problem of the settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; none when it concerns the file as a whole.
    pub line: Option<usize>,
    /// Dotted key, such as `role.freeze_limit_ms`; empty when it concerns the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Why there are no settings, or no secret.
#[derive(Debug)]
pub enum SettingsError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason and the next step.
        reason: String,
    },
    /// The file has problems: all of them.
    Invalid {
        /// The file.
        path: PathBuf,
        /// In the order of the file.
        problems: Vec<Problem>,
    },
    /// A secret's file is missing, or others than root can read it.
    Secret {
        /// The file.
        path: PathBuf,
        /// The reason and the next step.
        reason: String,
    },
}

impl std::error::Error for SettingsError {}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, reason } | Self::Secret { path, reason } => {
                write!(f, "{}: {reason}", path.display())
            }
            Self::Invalid { path, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    if index > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "{}:", path.display())?;
                    if let Some(line) = problem.line {
                        write!(f, "{line}:")?;
                    }
                    if !problem.key.is_empty() {
                        write!(f, " {}:", problem.key)?;
                    }
                    write!(f, " {}", problem.message)?;
                }
                Ok(())
            }
        }
    }
}

/// Reads and checks the file. `node` names the local node; without it the host name does.
pub fn load(path: &Path, node: Option<&str>) -> Result<Settings, SettingsError> {
    parse(&read(path)?, path, node)
}

/// Reads the file's text, and checks what does not depend on it.
pub fn read(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |reason: String| SettingsError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let read =
        || -> io::Result<(Vec<u8>, fs::Metadata)> { Ok((fs::read(path)?, fs::metadata(path)?)) };
    let (bytes, metadata) =
        read().map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if metadata.mode() & 0o022 != 0 {
        return Err(unreadable(format!(
            "is writable by others than its owner (mode {:o}): chmod 644",
            metadata.mode() & 0o777
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        unreadable(format!("line {line} is not UTF-8"))
    })
}

/// Checks a text as if it stood in `path`.
pub fn parse(text: &str, path: &Path, node: Option<&str>) -> Result<Settings, SettingsError> {
    let problems = Problems::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        problems.note(error.span(), "", error.message().to_owned());
    }
    let settings = whole(&Section::root(table.get_ref(), &problems), node);
    let problems = problems.into_sorted();
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        Some(_) | None => Err(SettingsError::Invalid {
            path: path.to_owned(),
            problems,
        }),
    }
}

fn whole(root: &Section<'_, '_>, node: Option<&str>) -> Option<Settings> {
    let nodes = nodes(root);
    let cluster = cluster(&root.section("cluster"), &nodes);
    let database = database(&root.section("database"));
    let role = role(&root.section("role"));
    let failback = failback(&root.section("failback"));
    let web = web(&root.section("web"));
    let checks = checks(&root.section("checks"));
    let peer = peer(&root.section("peer"));
    let alerts = alerts(&root.section("alerts"));
    let sync = sync(&root.section("sync"));
    let paths = paths(&root.section("paths"));
    let local = local(root, &nodes, node);
    root.finish();
    // Everything was looked at: from here on a missing part has told its problem.
    Some(Settings {
        cluster: cluster?,
        local: local?,
        nodes,
        database,
        web,
        checks,
        role,
        failback,
        peer,
        alerts,
        sync,
        paths,
        mistake: None,
    })
}

fn nodes(root: &Section<'_, '_>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for section in root.sections("node") {
        let name = section.required_text("name");
        let private = section.parsed::<IpAddr>("private", "an IP address");
        let front = section.parsed::<IpAddr>("front", "an IP address");
        section.finish();
        if !name.is_empty() && nodes.iter().any(|n| n.name == name) {
            section.note(
                "name",
                format!("`{name}` is the name of an earlier node, too"),
            );
        }
        for (key, address) in [("private", private), ("front", front)] {
            if let Some(address) = address
                && nodes
                    .iter()
                    .any(|n| n.private == address || n.front == address)
            {
                section.note(key, format!("`{address}` belongs to an earlier node, too"));
            }
        }
        if let (Some(private), Some(front)) = (private, front) {
            nodes.push(Node {
                name,
                private,
                front,
            });
        }
    }
    if nodes.len() > MOST_NODES {
        root.note(
            "node",
            format!(
                "{} nodes: expected two; with more, what one standby acknowledged would be believed of another. \
                 A witness is no node: cluster.witnesses names it",
                nodes.len()
            ),
        );
    }
    if nodes.is_empty() {
        root.note(
            "node",
            "expected at least one [[node]] with name, private and front",
        );
    }
    nodes
}

fn local(root: &Section<'_, '_>, nodes: &[Node], node: Option<&str>) -> Option<usize> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().into_owned();
    let wanted = node.unwrap_or(&host);
    let label = wanted.split('.').next().unwrap_or(wanted);
    let found = nodes
        .iter()
        .position(|n| n.name == wanted)
        .or_else(|| nodes.iter().position(|n| n.name == label));
    if found.is_none() && !nodes.is_empty() {
        let known: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        root.note(
            "node",
            format!(
                "this node is called `{wanted}`, which is none of {}; add it, or name one with --node",
                known.join(", ")
            ),
        );
    }
    found
}

fn cluster(section: &Section<'_, '_>, nodes: &[Node]) -> Option<Cluster> {
    let vip = section.parsed::<IpAddr>("vip", "the virtual IP address without prefix length");
    let preferred = section.text("preferred", nodes.first().map_or("", |n| n.name.as_str()));
    if !nodes.is_empty() && !nodes.iter().any(|n| n.name == preferred) {
        section.note(
            "preferred",
            format!("`{preferred}` is not the name of a node"),
        );
    }
    let witnesses = section
        .texts("witnesses")
        .into_iter()
        .filter_map(|text| {
            let witness = witness(&text);
            if witness.is_none() {
                section.note(
                    "witnesses",
                    format!("`{text}`: expected icmp:ADDRESS or tcp:ADDRESS:PORT"),
                );
            }
            witness
        })
        .collect();
    let cluster = Cluster {
        vip: vip.unwrap_or(IpAddr::from([0, 0, 0, 0])),
        vip_interface: section.text("vip_interface", "enp0s9"),
        vrrp_instance: section.text("vrrp_instance", "VI_1"),
        preferred,
        witnesses,
    };
    section.finish();
    vip.map(|_| cluster)
}

fn witness(text: &str) -> Option<Witness> {
    match text.split_once(':')? {
        ("icmp", address) => address.parse().ok().map(Witness::Icmp),
        ("tcp", address) => address.parse::<SocketAddr>().ok().map(Witness::Tcp),
        _ => None,
    }
}

fn account(
    section: &Section<'_, '_>,
    user: &'static str,
    file: &'static str,
    default: &str,
) -> Account {
    let user = section.text(user, default);
    Account {
        password_file: section.path(file, &format!("/etc/keepalived/secrets/{user}")),
        user,
    }
}

fn database(section: &Section<'_, '_>) -> Database {
    let schema = section.text("schema", "keepalived_companion");
    if !schema
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        section.note(
            "schema",
            format!("`{schema}`: expected letters, digits and _"),
        );
    }
    let database = Database {
        unit: section.text("unit", "mariadb.service"),
        socket: section.path("socket", "/run/mysqld/mysqld.sock"),
        port: section.small("port", 3306, 1..=u16::MAX),
        extra_port: section.small("extra_port", 3307, 0..=u16::MAX),
        binlog_index: section.path("binlog_index", "/var/lib/mysql/binlog.index"),
        schema,
        tls_ca: section.path("tls_ca", "/etc/keepalived/secrets/ca.pem"),
        server_tls_ca: section.path("server_tls_ca", "/etc/mysql/tls/ca.pem"),
        account: account(section, "user", "password_file", "keepalived_companion"),
        probe: account(
            section,
            "probe_user",
            "probe_password_file",
            "keepalived_probe",
        ),
        replication: account(
            section,
            "replication_user",
            "replication_password_file",
            "keepalived_repl",
        ),
        semi_sync_last_resort: section.seconds("semi_sync_last_resort_s", 300, 60..=86_400),
    };
    // Of earlier releases, where the server's time-out was what let commits go.
    let _ = section.milliseconds("semi_sync_timeout_ms", 1000, 100..=60_000);
    section.finish();
    database
}

fn web(section: &Section<'_, '_>) -> Web {
    let web = Web {
        unit: section.text("unit", "apache2.service"),
        url: section.text("url", "http://127.0.0.1/"),
        expected_status: section.small("expected_status", 200, 100..=599),
        expected_text: section.optional_text("expected_text"),
    };
    if !web.url.starts_with("http://") {
        section.note(
            "url",
            format!("`{}`: expected a URL that begins with http://", web.url),
        );
    }
    section.finish();
    web
}

fn checks(section: &Section<'_, '_>) -> Checks {
    let checks = Checks {
        deadline: section.milliseconds("deadline_ms", 700, 100..=10_000),
        commit_patience: section.milliseconds("commit_patience_ms", 5000, 500..=60_000),
        repair: section.flag("repair", true),
        repair_attempts: u32::from(section.small("repair_attempts", 3, 0..=10)),
        repair_backoff: section.seconds("repair_backoff_s", 5, 1..=600),
        repair_forget: section.seconds("repair_forget_s", 300, 10..=86_400),
        verdict_age: section.seconds("verdict_age_s", 10, 3..=300),
    };
    section.finish();
    checks
}

fn role(section: &Section<'_, '_>) -> Role {
    let role = Role {
        connect_timeout: section.milliseconds("connect_timeout_ms", 150, 20..=5000),
        answer_timeout: section.milliseconds("answer_timeout_ms", 2000, 100..=30_000),
        freeze_limit: section.milliseconds("freeze_limit_ms", 5000, 500..=60_000),
        drain_timeout: section.seconds("drain_timeout_s", 600, 1..=86_400),
        promote_unmet_after_boot: section.flag("promote_unmet_after_boot", false),
        loss_limit: section.number("loss_limit", 0, 0..=1_000_000),
        self_fence: section.milliseconds("self_fence_ms", 900, 50..=60_000),
        alone_after: section.optional_milliseconds("alone_after_ms", 500..=120_000),
        realert: section.seconds("realert_s", 3600, 60..=604_800),
    };
    if let Some(window) = role.alone_after.filter(|window| role.self_fence >= *window) {
        section.note(
            "self_fence_ms",
            format!(
                "{} ms: must be below role.alone_after_ms ({} ms), or a cut-off node acknowledges writes before it is fenced",
                role.self_fence.as_millis(),
                window.as_millis()
            ),
        );
    }
    section.finish();
    role
}

fn failback(section: &Section<'_, '_>) -> Failback {
    let automatic = |key: &'static str| match section.text(key, "manual").as_str() {
        "manual" => false,
        "automatic" => true,
        other => {
            section.note(key, format!("`{other}`: expected manual or automatic"));
            false
        }
    };
    let hours = section.text("hours", "0-24");
    let failback = Failback {
        automatic: automatic("mode"),
        stable: section.seconds("stable_s", 600, 10..=604_800),
        hours: hours.parse().unwrap_or_else(|()| {
            section.note(
                "hours",
                format!("`{hours}`: expected two hours of the day such as 2-5"),
            );
            Hours::ALWAYS
        }),
        rebuild_automatic: automatic("rebuild"),
    };
    section.finish();
    failback
}

fn peer(section: &Section<'_, '_>) -> Peer {
    let peer = Peer {
        user: section.text("user", "root"),
        port: section.small("port", 22, 1..=u16::MAX),
        identity: section.path("identity", "/etc/keepalived/secrets/peer_ed25519"),
        known_hosts: section.path("known_hosts", "/etc/keepalived/secrets/known_hosts"),
    };
    section.finish();
    peer
}

fn alerts(section: &Section<'_, '_>) -> Alerts {
    let mut channels: Vec<Channel> = Vec::new();
    for channel in section.sections("channel") {
        let name = channel.required_text("name");
        if channels.iter().any(|c| c.name == name) {
            channel.note(
                "name",
                format!("`{name}` is the name of an earlier channel, too"),
            );
        }
        let kind = match channel.required_text("kind").as_str() {
            "telegram" => {
                let (base_url, token_file, chat_id) = bot(&channel, "https://api.telegram.org");
                Some(ChannelKind::Telegram {
                    base_url,
                    token_file,
                    chat_id,
                })
            }
            "bale" => {
                let (base_url, token_file, chat_id) = bot(&channel, "https://tapi.bale.ai");
                Some(ChannelKind::Bale {
                    base_url,
                    token_file,
                    chat_id,
                })
            }
            "webhook" => webhook(&channel),
            other => {
                channel.note(
                    "kind",
                    format!("`{other}`: expected telegram, bale or webhook"),
                );
                None
            }
        };
        let proxy = channel.optional_text("proxy");
        let known = ["http://", "socks5://", "socks5h://"];
        if proxy
            .as_deref()
            .is_some_and(|proxy| !known.iter().any(|scheme| proxy.starts_with(scheme)))
        {
            channel.note(
                "proxy",
                "expected http://, socks5:// or socks5h:// and HOST:PORT",
            );
        }
        channel.finish();
        channels.extend(kind.map(|kind| Channel { name, kind, proxy }));
    }
    let alerts = Alerts {
        channels,
        connect_timeout: section.milliseconds("connect_timeout_ms", 3000, 100..=60_000),
        total_timeout: section.milliseconds("total_timeout_ms", 10_000, 500..=300_000),
        fold_window: section.seconds("fold_window_s", 300, 0..=86_400),
        backoff: section.seconds("backoff_s", 5, 1..=900),
        queue_limit: usize::from(section.small("queue_limit", 1000, 10..=50_000)),
    };
    section.finish();
    alerts
}

fn bot(channel: &Section<'_, '_>, default_url: &str) -> (String, PathBuf, String) {
    (
        http_url(channel, "base_url", channel.text("base_url", default_url)),
        channel.required_text("token_file").into(),
        channel.required_text("chat_id"),
    )
}

fn webhook(channel: &Section<'_, '_>) -> Option<ChannelKind> {
    let url = match (
        channel.optional_text("url"),
        channel.optional_text("url_file"),
    ) {
        (Some(url), None) => WebhookUrl::Given(Secret::new(http_url(channel, "url", url))),
        (None, Some(file)) => WebhookUrl::In(file.into()),
        (Some(_), Some(_)) | (None, None) => {
            channel.note("url", "expected either url or url_file");
            return None;
        }
    };
    Some(ChannelKind::Webhook { url })
}

fn http_url(channel: &Section<'_, '_>, key: &'static str, url: String) -> String {
    if !is_http(&url) {
        channel.note(key, EXPECTED_HTTP);
    }
    url
}

fn sync(section: &Section<'_, '_>) -> Sync {
    let mut trees: Vec<Tree> = Vec::new();
    for tree in section.sections("tree") {
        let path = tree.path("path", DEFAULT_TREE);
        let owner = tree.text("owner", DEFAULT_OWNER);
        let owner = match owner.split_once(':') {
            Some((user, group)) if owner_name(user) && owner_name(group) => Some(owner),
            None if owner == "keep" => None,
            Some(_) | None => {
                tree.note("owner", format!("`{owner}`: expected USER:GROUP or keep"));
                None
            }
        };
        let exclude = tree.texts("exclude");
        if exclude
            .iter()
            .any(|pattern| pattern.trim().is_empty() || pattern.contains('\n'))
        {
            tree.note("exclude", "expected rsync patterns, one in each string");
        }
        if let Err(error) = Patterns::new(&exclude) {
            tree.note("exclude", error.to_string());
        }
        // A path that names another place in another spelling would slip through the receiver's check.
        let plain = path.components().all(|c| {
            matches!(
                c,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        }) && path.components().count() > 2
            && !path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if !plain {
            tree.note("path", format!("`{}`: expected a directory at least two levels deep, without . or .. or a final /", path.display()));
        }
        if let Some(other) = trees
            .iter()
            .find(|other| other.path.starts_with(&path) || path.starts_with(&other.path))
        {
            tree.note(
                "path",
                format!(
                    "`{}` and `{}` overlap",
                    path.display(),
                    other.path.display()
                ),
            );
        }
        tree.finish();
        trees.push(Tree {
            path,
            owner,
            exclude,
        });
    }
    if trees.is_empty() {
        trees.push(Tree {
            path: DEFAULT_TREE.into(),
            owner: None,
            exclude: Vec::new(),
        });
    }
    let sync = Sync {
        trees,
        identity: section.path("identity", "/etc/keepalived/secrets/sync_ed25519"),
        socket_group: section.text("socket_group", "www-data"),
        delete_limit_count: section.number("delete_limit_count", 1000, 1..=1_000_000_000),
        delete_limit_percent: section.number("delete_limit_percent", 50, 1..=100),
        delete_limit_unseen: section.number("delete_limit_unseen", 20, 1..=1_000_000_000),
        trash_age: std::time::Duration::from_secs(
            section.number("trash_days", 7, 0..=3650) * 24 * 3600,
        ),
        trash_bytes: section.number("trash_mib", 1024, 0..=1_000_000_000) * 1024 * 1024,
        wait_alone: section.milliseconds("wait_alone_ms", 1000, 50..=60_000),
        large: section.number("large_mib", 16, 1..=1_000_000) * 1024 * 1024,
        log: section.path("log", "/var/log/rsync_realtime.log"),
    };
    section.finish();
    sync
}

/// What rsync takes as a user or group without a surprise.
fn owner_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn paths(section: &Section<'_, '_>) -> Paths {
    let paths = Paths {
        state: section.path("state", "/var/lib/keepalived-companion"),
        run: section.path("run", "/run/keepalived-companion"),
        log: section.path("log", "/var/log/keepalived"),
        failover_log: section.path("failover_log", "/var/log/keepalived_failover.log"),
        keepalived_conf: section.path("keepalived_conf", "/etc/keepalived/keepalived.conf"),
    };
    section.finish();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_secret;

    const EXAMPLE: &str = include_str!("../companion.example.toml");
    const SHORTEST: &str = "[cluster]\nvip = \"192.168.100.200\"\n\
        [[node]]\nname = \"node1\"\nprivate = \"192.168.137.11\"\nfront = \"192.168.100.11\"\n\
        [[node]]\nname = \"node2\"\nprivate = \"192.168.137.12\"\nfront = \"192.168.100.12\"\n";

    fn problems(text: &str) -> String {
        parse(text, Path::new("companion.toml"), Some("node1"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_shipped_example_states_the_defaults() {
        let path = Path::new("companion.toml");
        let example = parse(EXAMPLE, path, Some("node2")).unwrap();
        let shortest = parse(SHORTEST, path, Some("node2")).unwrap();
        assert_eq!(format!("{example:?}"), format!("{shortest:?}"));
        assert_eq!(example.local().name, "node2");
        assert_eq!(example.peers().count(), 1);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line() {
        let text = format!(
            "{SHORTEST}[role]\nfreeze_limit_ms = 1\nself_fence_ms = 1000\nalone_after_ms = 900\n[web]\nurl = 7\n[checks]\nrepair = \"no\"\ndeadline = 5\n"
        );
        let told = problems(&text);
        for expected in [
            "companion.toml:12: role.freeze_limit_ms: 1: expected a number from 500 to 60000",
            "companion.toml:13: role.self_fence_ms: 1000 ms: must be below",
            "companion.toml:16: web.url: expected a string, found integer",
            "companion.toml:18: checks.repair: expected true or false, found string",
            "companion.toml:19: checks.deadline: unknown key; did you mean `deadline_ms`?",
        ] {
            assert!(told.contains(expected), "`{expected}` is not in:\n{told}");
        }
        assert_eq!(told.lines().count(), 5, "{told}");
    }

    #[test]
    fn hours_may_go_over_midnight() {
        let hours = |text: &str| text.parse::<Hours>();
        let night = hours("22-4").unwrap();
        assert!(night.contain(22) && night.contain(0) && !night.contain(4));
        let morning = hours("2-5").unwrap();
        assert!(morning.contain(2) && !morning.contain(5) && !morning.contain(1));
        assert!(hours("22-24").unwrap().contain(23));
        assert!((0..24).all(|hour| Hours::ALWAYS.contain(hour)));
        for bad in ["", "3", "3-3", "24-3", "3-25", "a-b"] {
            assert!(hours(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_kind_of_mistake_is_named() {
        for (text, expected) in [
            ("", "expected at least one [[node]]"),
            ("[cluster]\n", "cluster.vip: is missing"),
            (
                "[failback]\nhours = \"3\"\n",
                "failback.hours: `3`: expected two hours",
            ),
            (
                "[failback]\nmode = \"auto\"\n",
                "`auto`: expected manual or automatic",
            ),
            ("[cluster]\nvip = \"x\"\n", "`x`: expected the virtual IP"),
            (
                "[cluster]\nwitnesses = [\"udp:1\"]\n",
                "expected icmp:ADDRESS or tcp:ADDRESS:PORT",
            ),
            ("[[node]]\nname = \"a\"\n", "node[1].private: is missing"),
            (
                "[database]\nsocket = \"run\"\n",
                "expected an absolute path",
            ),
            (
                "[database]\ndurability = \"all\"\n",
                "unknown key; known are: binlog_index",
            ),
            (
                "[database]\nschema = \"a`b\"\n",
                "expected letters, digits and _",
            ),
            (
                "[[alerts.channel]]\nname = \"a\"\nkind = \"fax\"\n",
                "expected telegram, bale or webhook",
            ),
            (
                "[[alerts.channel]]\nname = \"a\"\nproxy = \"host:3128\"\n",
                "alerts.channel[1].proxy: expected http://, socks5:// or socks5h://",
            ),
            (
                "[[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"192.0.2.2\"\n\
                 [[node]]\nname = \"b\"\nprivate = \"192.0.2.3\"\nfront = \"192.0.2.4\"\n\
                 [[node]]\nname = \"c\"\nprivate = \"192.0.2.5\"\nfront = \"192.0.2.6\"\n",
                "3 nodes: expected two",
            ),
            ("cluster = 1\n", "expected a table [cluster]"),
            ("[role\n", "companion.toml:1:"),
        ] {
            let told = problems(text);
            assert!(
                told.contains(expected),
                "{text}: `{expected}` is not in:\n{told}"
            );
        }
        let twice = format!(
            "{SHORTEST}[[node]]\nname = \"node1\"\nprivate = \"192.168.137.11\"\nfront = \"10.0.0.1\"\n"
        );
        let told = problems(&twice);
        assert!(
            told.contains("is the name of an earlier node")
                && told.contains("belongs to an earlier node"),
            "{told}"
        );
    }

    #[test]
    fn trees_are_checked() {
        let with = |tree: &str| problems(&format!("{SHORTEST}[[sync.tree]]\n{tree}\n"));
        for (tree, word) in [
            ("path = \"/\"", "two levels"),
            ("path = \"/srv\"", "two levels"),
            ("path = \"/srv/../etc\"", "two levels"),
            ("path = \"/srv/a/\"", "two levels"),
            ("path = \"a/b\"", "absolute"),
            ("path = \"/srv/a\"\nowner = \"www-data\"", "USER:GROUP"),
            ("path = \"/srv/a\"\nowner = \"a:b c\"", "USER:GROUP"),
            (
                "path = \"/srv/a\"\n[[sync.tree]]\npath = \"/srv/a/b\"",
                "overlap",
            ),
        ] {
            let said = with(tree);
            assert!(said.contains(word), "{tree}: {said}");
        }
    }

    #[test]
    fn an_unknown_host_is_told_the_known_names() {
        let told = parse(SHORTEST, Path::new("companion.toml"), Some("web7"))
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("`web7`") && told.contains("node1, node2") && told.contains("--node"),
            "{told}"
        );
        assert!(parse(SHORTEST, Path::new("x"), Some("node2.example.net")).is_ok());
    }

    #[test]
    fn a_file_that_others_can_write_or_that_is_not_text_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("companion.toml");
        let told = || load(&path, Some("node1")).unwrap_err().to_string();
        assert!(told().contains("cannot be read"));
        fs::write(&path, b"[cluster]\nvip = \"\xff\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(told().contains("line 2 is not UTF-8"), "{}", told());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(told().contains("chmod 644"));
    }

    #[test]
    fn secrets_are_private_and_never_printed() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "hunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            read_secret(&path, None)
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let secret = read_secret(&path, None).unwrap();
        assert_eq!(secret.reveal(), "hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        fs::write(&path, "two\nlines\n").unwrap();
        assert!(read_secret(&path, None).is_err());
    }

    /// The reference names every key that is read, so none can be added in silence.
    #[test]
    fn the_reference_names_every_key() {
        let reference = include_str!("../../../docs/configuration.md");
        let source = include_str!("load.rs");
        let source = source.split("#[cfg(test)]").next().unwrap();
        let keys: std::collections::BTreeSet<&str> = source
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|word| {
                source.match_indices(&format!("\"{word}\"")).any(|(at, _)| {
                    let before = source[..at].trim_end().trim_end_matches('(');
                    [
                        "text",
                        "path",
                        "milliseconds",
                        "seconds",
                        "small",
                        "number",
                        "flag",
                        "texts",
                    ]
                    .iter()
                    .any(|reader| before.ends_with(reader))
                })
            })
            .collect();
        assert!(keys.len() > 40, "{keys:?}");
        for key in keys {
            assert!(reference.contains(&format!("`{key}`")), "{key} is missing");
        }
    }
}
