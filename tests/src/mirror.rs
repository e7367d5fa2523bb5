//! The mirrored tree as the tests see it: both copies on the host, and what sync-realtime says.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodefiles::sync_status::{SyncState, SyncStatus};
use observe::uptime_seconds;

use crate::node::{leader, wait_until};
use crate::tree::{Digest, differences, digest};
use crate::{LabError, NodeName, at};

/// The tree of the settings.
pub const TREE: &str = "/var/www/html";
/// What `--chown` makes of every owner: Debian's number of www-data.
const WWW_DATA: u32 = 33;
/// In sync by its own word, and different for so long: it will not notice any more.
const DEAF: Duration = Duration::from_secs(15);
/// Lines of a report.
const SHOWN: usize = 30;

/// What the standby's owners are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// www-data.
    WwwData,
    /// Those of the active node, as the shipped settings say.
    Kept,
}

/// A path of a running node, on the host, with what is mounted in the node.
pub fn inside(node: NodeName, path: &str) -> Result<PathBuf, LabError> {
    let leader = leader(node).ok_or(LabError::Off(node))?;
    Ok(Path::new(&format!("/proc/{leader}/root")).join(path.trim_start_matches('/')))
}

/// A node's copy of the tree, on the host.
pub fn copy(node: NodeName) -> PathBuf {
    node.root().join(TREE.trim_start_matches('/'))
}

/// The last status of a node; none when there is no readable one.
pub fn status(node: NodeName) -> Result<Option<SyncStatus>, LabError> {
    let path = inside(node, "/run/keepalived-companion/sync.json")?;
    Ok(fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok()))
}

/// Waits until a status that was written after this call is as wanted, and gives it.
pub fn await_status(
    node: NodeName,
    what: &str,
    limit: Duration,
    good: impl Fn(&SyncStatus) -> bool,
) -> Result<SyncStatus, LabError> {
    let since = uptime_seconds();
    let mut found = None;
    wait_until(what, limit, || {
        let status = status(node)?;
        Ok(match status {
            Some(status) if status.at > since && good(&status) => {
                found = Some(status);
                Ok(())
            }
            other => Err(brief(other.as_ref())),
        })
    })?;
    found.ok_or(LabError::Off(node))
}

/// A status in one line.
pub fn brief(status: Option<&SyncStatus>) -> String {
    status.map_or_else(
        || "no status".to_owned(),
        |status| {
            format!(
                "{:?} at {:.1}, {} behind, {:?}, {:?}",
                status.state, status.at, status.paths_behind, status.reason, status.standbys
            )
        },
    )
}

/// Waits for a file of the tree as an application does: `stored`, `alone …` or `error …`.
pub fn wait_stored(node: NodeName, name: &[u8]) -> Result<String, LabError> {
    let path = inside(node, "/run/keepalived-companion/sync.sock")?;
    let mut request = format!("wait0 {TREE}/").into_bytes();
    request.extend_from_slice(name);
    request.push(0);
    let answer = || -> std::io::Result<String> {
        let mut socket = UnixStream::connect(&path)?;
        socket.write_all(&request)?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    answer().map_err(at(&path))
}

/// What the standby of `active` must hold.
pub fn wanted(active: NodeName, owners: Owners) -> Result<Digest, LabError> {
    let mut digest = digest(&inside(active, TREE)?)?;
    if owners == Owners::WwwData {
        for entry in digest.values_mut() {
            (entry.uid, entry.gid) = (WWW_DATA, WWW_DATA);
        }
    }
    Ok(digest)
}

/// In what the standby of `active` differs.
pub fn lacking(active: NodeName, owners: Owners) -> Result<Vec<String>, LabError> {
    let found = digest(&inside(active.other(), TREE)?)?;
    Ok(differences(&wanted(active, owners)?, &found))
}

/// Waits until `active` says that it is in sync and both copies are equal; gives how long that took.
pub fn in_sync(active: NodeName, owners: Owners, limit: Duration) -> Result<Duration, LabError> {
    let start = Instant::now();
    let since = uptime_seconds();
    let mut deaf: Option<Instant> = None;
    wait_until("both copies of the tree to be equal", limit, || {
        let status = status(active)?;
        if !status
            .as_ref()
            .is_some_and(|s| s.at > since && s.state == SyncState::InSync)
        {
            deaf = None;
            return Ok(Err(brief(status.as_ref())));
        }
        let mut lines = lacking(active, owners)?;
        if lines.is_empty() {
            return Ok(Ok(()));
        }
        let more = lines.len().saturating_sub(SHOWN);
        lines.truncate(SHOWN);
        let text = format!(
            "in sync by its own word, but:\n{}\n… and {more} more",
            lines.join("\n")
        );
        if deaf.get_or_insert_with(Instant::now).elapsed() > DEAF {
            return Err(LabError::Unsafe(text));
        }
        Ok(Err(text))
    })?;
    Ok(start.elapsed())
}
