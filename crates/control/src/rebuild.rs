//! A copy of the primary takes the place of this node's data, which stay beside it.
//!
//! The copy is fetched, made consistent and given its place in the replication's history in a directory
//! of its own, while the old server still runs. Then the two directories change places at once: a death
//! leaves either the old server or a whole new one, and a fetched part is thrown away by the next run.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodefiles::role_lock::{LockError, RoleLock};
use nodefiles::{FileError, Lock, Sharing, Wait};
use observe::{Session, SqlError, Target};
use process::{ProcessError, Program};
use role::GtidSet;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with, statvfs};
use settings::{Node, Settings};

use crate::cancel::Cancel;
use crate::link::{LinkError, ssh};
use crate::look::{Depth, look};
use crate::path_error::{PathError, at};
use crate::sql_client::{Credentials, CredentialsError};
use crate::{statements, tell};

/// What a peer's ssh key may ask for, without arguments: a copy of the database on standard output.
pub const COMMAND: &str = "backup";
/// Where mariadb-backup says what of the binlog is in the copy; the second is its name from 11 on.
const POSITION_FILES: [&str; 2] = ["xtrabackup_binlog_info", "mariadb_backup_binlog_info"];
/// No copy takes longer to come.
const FETCH: Duration = Duration::from_secs(7 * 24 * 3600);
/// Making the copy consistent replays what was written meanwhile.
const PREPARE: Duration = Duration::from_secs(3600);
/// Another change may run; a copy that took hours is worth waiting.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);
/// A server's start or end.
const SERVER: Duration = Duration::from_secs(300);
/// Between two lines of progress.
const TELL: Duration = Duration::from_secs(2);
/// A standby that does not answer so often in a row has gone while it was copied.
const SILENT: u32 = 3;
/// What must stay free besides the copy: the undo of what was written meanwhile, and some air.
const SPARE: u64 = 512 * 1024 * 1024;
/// More than a position in the binlog or a mark needs.
const LARGEST_TEXT: u64 = 64 * 1024;
/// The new server's temporary name in the data directory's parent.
const PART: &str = "rebuild-part";

/// The programs that touch what comes from the primary, each in a unit of its own.
const CONFINED: [&str; 3] = [UNPACK, PREPARE_COPY, SERVE];
const UNPACK: &str = "mbstream";
const PREPARE_COPY: &str = "mariadb-backup";
const SERVE: &str = "mariadbd";
/// What such a unit may not do: it writes to the copy only, and reaches nobody.
const CONFINEMENT: [&str; 15] = [
    "User=mysql",
    // The server that runs here knows `mysql` as an administrator.
    "InaccessiblePaths=-/run/mysqld -/run/dbus",
    // An end by a signal is none in order, as it would be for any other type.
    "Type=oneshot",
    // The copy is thrown away then.
    "KillSignal=SIGKILL",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "PrivateNetwork=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
];

/// A program that works on the copy, as the database's own user, who can write nothing else here: a primary that was
/// taken over must not become root on this node by what it sends (mbstream: CVE-2026-44171).
fn confined(part: &Path, program: &str, limit: Duration) -> Program {
    let properties = CONFINEMENT.map(|property| format!("--property={property}"));
    Program::new("systemd-run")
        .args(["--quiet", "--collect", "--wait", "--pipe"])
        .arg(format!("--unit={}", unit_of(program)))
        .args(properties)
        .arg(format!("--property=ReadWritePaths=\"{}\"", part.display()))
        // Also where this program is killed.
        .arg(format!("--property=TimeoutStartSec={}", limit.as_secs()))
        .arg("--")
        .arg(program)
        .deadline(limit + TELL)
}

fn unit_of(program: &str) -> String {
    format!("keepalived-companion-copy-{program}.service")
}

/// Ends what a run that was killed has left, which may still write.
fn end_confined() {
    for program in CONFINED {
        // One that is not there is as good.
        let _ = host::act::systemctl(&["stop", &unit_of(program)], SERVER);
    }
}

/// A new file in a directory that may hold a link of that name. The database's user may read it, whatever the umask.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// A small text in a directory that the database's user may write: no link is followed, and no pipe is waited for.
fn text_of(path: &Path) -> io::Result<String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    file.take(LARGEST_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// Why the data were not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A person, or the end of the conversation.
    #[error("stopped by a signal; the old data are in place")]
    Cancelled,
    /// Another run.
    #[error("another rebuild runs on this node (it holds {0})")]
    Busy(PathBuf),
    /// A program.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file.
    #[error(transparent)]
    File(#[from] PathError),
    /// Its lock cannot be taken.
    #[error(transparent)]
    LockFile(#[from] FileError),
    /// The primary or the local server.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The toolkit's account.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The role lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The peer.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It does not answer.
    #[error("{0} does not answer")]
    Gone(String),
    /// Too little space.
    #[error(
        "the copy takes about {needed} and {path} has {free} free; make room there (the old data are kept beside the new)"
    )]
    Space {
        /// The parent of the data directory.
        path: PathBuf,
        /// For a person.
        needed: String,
        /// For a person.
        free: String,
    },
    /// The data directory cannot change its place.
    #[error(
        "{0} is a mount point of its own, so it cannot change places with a copy: by hand, mariadb-backup into it"
    )]
    MountPoint(PathBuf),
    /// The settings name another place.
    #[error(
        "the server's data are in {found}, but database.binlog_index in the settings is in {expected}; a rebuild needs both in one directory"
    )]
    Elsewhere {
        /// `@@datadir`
        found: PathBuf,
        /// By the settings.
        expected: PathBuf,
    },
    /// Roles have changed since the copy was begun.
    #[error(
        "{0} is not the same primary any more as when the copy was begun, or this node is writable; the copy was thrown away and the data are as they were"
    )]
    Changed(String),
    /// Parts of the server's data are elsewhere.
    #[error(
        "{what} of the server is {found}; a rebuild replaces {data} only, so it is done by hand"
    )]
    Scattered {
        /// The variable.
        what: &'static str,
        /// Its value.
        found: String,
        /// The data directory.
        data: PathBuf,
    },
    /// The new server does not start.
    #[error(
        "the new server did not start, and the old data are in place again; the copy is in {copy}: {why}"
    )]
    NoStart {
        /// The copy.
        copy: PathBuf,
        /// What systemctl said.
        why: Box<RebuildError>,
    },
    /// mariadb-backup did not say what the copy contains.
    #[error("the copy has no position in the binlog ({0})")]
    NoPosition(PathBuf),
    /// The new server is not where it should be.
    #[error(
        "the new server has position {found} where {expected} was set; it does not replicate. The old data are in {kept}"
    )]
    WrongPosition {
        /// Read back.
        found: String,
        /// Set.
        expected: String,
        /// The old data.
        kept: PathBuf,
    },
}

/// The place of the data, and of what takes it.
struct Place {
    data: PathBuf,
    part: PathBuf,
}

impl Place {
    fn of(settings: &Settings) -> Self {
        let index = &settings.database.binlog_index;
        let data = index.parent().unwrap_or(Path::new("/")).to_owned();
        let part = sibling(&data, PART);
        Self { data, part }
    }
}

fn sibling(data: &Path, word: &str) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{word}"));
    data.with_file_name(name)
}

/// On the primary: prints a copy of its database.
pub fn print_backup(settings: &Settings) -> Result<(), RebuildError> {
    let credentials = Credentials::write(settings, "backup")?;
    let asker = std::env::var("SSH_CONNECTION")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, settings.peer.port));
    let mut silent = 0;
    let (_kept, never) = std::os::unix::net::UnixStream::pair().map_err(at(&settings.paths.run))?;
    let ended = credentials
        .beside_server("mariadb-backup")
        .args(["--backup", "--stream=mbstream"])
        .arg("--target-dir")
        .arg(settings.paths.run.join("backup"))
        // It ends by itself when the connection is closed. One that is dead it would write to until TCP gives
        // up, and in its last moments commits wait for it. Asked once a second.
        .run_attached(never, || {
            let heard = asker.is_none_or(|address| {
                observe::kernel_answers(address, settings.role.connect_timeout)
            });
            silent = if heard { 0 } else { silent + 1 };
            silent < SILENT
        })?;
    if ended.success() {
        return Ok(());
    }
    Err(ProcessError::Failed {
        command: "mariadb-backup".to_owned(),
        end: ended
            .code()
            .map_or_else(|| "a signal".to_owned(), |code| format!("exit {code}")),
        stderr: "see above".to_owned(),
    }
    .into())
}

/// The steps, for a person who wants to know before.
pub fn steps(settings: &Settings, primary: &Node) -> Vec<String> {
    let Place { data, part } = Place::of(settings);
    let (data, part) = (data.display(), part.display());
    vec![
        format!("fetch a copy of {}: mariadb-backup there, mbstream into {part} here, as mysql", primary.name),
        format!("make it consistent: mariadb-backup --prepare --target-dir={part}"),
        "give it its place in the history: a mariadbd without network on it, RESET MASTER, gtid_binlog_state, gtid_slave_pos".to_owned(),
        format!("systemctl stop {}; {data} and {part} change places; the old data stay beside it; start", settings.database.unit),
        format!("replicate from {}", primary.name),
    ]
}

/// Replaces this node's data by a copy of the primary's and lets it replicate; gives the place of the old
/// data. The role lock is taken for the change of places only.
pub fn rebuild(
    settings: &Settings,
    primary: &Node,
    cancel: &Cancel,
    say: &dyn Fn(&str),
) -> Result<PathBuf, RebuildError> {
    let lock = settings.paths.run.join("rebuild.lock");
    let _lock = Lock::take(&lock, Sharing::Exclusive, Wait::AtMost(Duration::ZERO))?
        .ok_or(RebuildError::Busy(lock))?;
    let place = Place::of(settings);
    check_place(settings, &place)?;
    let address = observe::reachable(settings, primary, settings.database.port)
        .ok_or_else(|| RebuildError::Gone(primary.name.clone()))?;
    let mut source = Session::connect(
        settings,
        Target::Peer(address),
        settings.role.answer_timeout,
    )?;
    let epoch = observe::read_epoch(&mut source, settings)?.map_or(0, |epoch| epoch.number);
    let needed = size(&mut source)?;
    check_space(&place, needed)?;
    // Of an earlier run that died.
    end_confined();
    clear(&place.part)?;
    let fetched = fetch(settings, primary, &mut source, &place, needed, cancel, say);
    let history = match fetched {
        Ok(history) => history,
        Err(error) => {
            end_confined();
            clear(&place.part)?;
            return Err(error);
        }
    };
    // Before the lock: on the disk with it.
    File::open(&place.part)
        .and_then(|part| Ok(rustix::fs::syncfs(part)?))
        .map_err(at(&place.part))?;
    let lock = RoleLock::take(settings, LOCK_PATIENCE)?;
    if cancel.asked() || !is_still_right(settings, primary, epoch, &history) {
        clear(&place.part)?;
        return Err(if cancel.asked() {
            RebuildError::Cancelled
        } else {
            RebuildError::Changed(primary.name.clone())
        });
    }
    let kept = change_places(settings, primary, &place, &history, say)?;
    drop(lock);
    Ok(kept)
}

/// The copy may have taken hours: the primary must be the same, and have all that is in the copy.
fn is_still_right(settings: &Settings, primary: &Node, epoch: u64, history: &History) -> bool {
    let seen = look(settings, Depth::Nodes).seen;
    let same = seen.primary().is_some_and(|(peer, server)| {
        peer.name == primary.name
            && server.epoch_number() == epoch
            && server.history().contains(&history.whole())
    });
    same && epoch >= seen.highest_epoch && !seen.local.database.writable()
}

fn check_place(settings: &Settings, place: &Place) -> Result<(), RebuildError> {
    if let Ok(mut session) = Session::connect(settings, Target::Local, settings.checks.deadline) {
        let found: String = session.row("SELECT @@datadir")?;
        let found = PathBuf::from(found.trim_end_matches('/'));
        if found != place.data {
            let expected = place.data.clone();
            return Err(RebuildError::Elsewhere { found, expected });
        }
        for (what, statement) in [
            (
                "innodb_log_group_home_dir",
                "SELECT @@innodb_log_group_home_dir",
            ),
            ("innodb_undo_directory", "SELECT @@innodb_undo_directory"),
            ("innodb_data_home_dir", "SELECT @@innodb_data_home_dir"),
        ] {
            let found: Option<String> = session.row(statement)?;
            let found = found.unwrap_or_default();
            let trimmed = found.trim_end_matches('/');
            if !matches!(trimmed, "" | ".") && Path::new(trimmed) != place.data {
                let data = place.data.clone();
                return Err(RebuildError::Scattered { what, found, data });
            }
        }
    }
    // Also of a server that does not run: it must be a data directory.
    let expected = place.data.join("ibdata1");
    fs::metadata(&expected).map_err(at(&expected))?;
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(at(path));
    let parent = place.data.parent().unwrap_or(Path::new("/"));
    if device(&place.data)? == device(parent)? {
        return Ok(());
    }
    Err(RebuildError::MountPoint(place.data.clone()))
}

/// About what the copy takes, in bytes.
fn size(source: &mut Session) -> Result<u64, SqlError> {
    source.row(
        "SELECT CAST(COALESCE(SUM(ALLOCATED_SIZE), 0) + @@innodb_log_file_size AS UNSIGNED) \
         FROM information_schema.INNODB_SYS_TABLESPACES",
    )
}

fn check_space(place: &Place, needed: u64) -> Result<(), RebuildError> {
    let path = place.data.parent().unwrap_or(Path::new("/"));
    let space = statvfs(path).map_err(|errno| at(path)(errno.into()))?;
    let free = space.f_bavail * space.f_frsize;
    if free >= needed + SPARE {
        return Ok(());
    }
    Err(RebuildError::Space {
        path: path.to_owned(),
        needed: mebibytes(needed + SPARE),
        free: mebibytes(free),
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

fn clear(part: &Path) -> Result<(), PathError> {
    match fs::remove_dir_all(part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(part)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Brings a whole, consistent copy that knows its place in the history; gives that place.
fn fetch(
    settings: &Settings,
    primary: &Node,
    source: &mut Session,
    place: &Place,
    needed: u64,
    cancel: &Cancel,
    say: &dyn Fn(&str),
) -> Result<History, RebuildError> {
    let address = observe::reachable(settings, primary, settings.peer.port)
        .ok_or_else(|| RebuildError::Gone(primary.name.clone()))?;
    // Of the other servers nothing is added while the primary is the only one that writes; its own number
    // is the copy's.
    let state = statements::gtids(source, "SELECT @@gtid_binlog_state")?;
    make_part(place).map_err(at(&place.part))?;
    let start = Instant::now();
    let mut told = None::<Instant>;
    let mut received = 0;
    let unpack = confined(&place.part, UNPACK, FETCH)
        .args(["-x", "-C"])
        .arg(&place.part);
    let copied = ssh(settings, address)
        .arg(COMMAND)
        .pipe_into(&unpack, |bytes| {
            received = bytes;
            if told.is_none_or(|at| at.elapsed() >= TELL) {
                told = Some(Instant::now());
                say(&progress(bytes, needed, start.elapsed()));
            }
            !cancel.asked()
        });
    match copied {
        Err(ProcessError::Stopped { .. }) => return Err(RebuildError::Cancelled),
        copied => copied?,
    }
    say(&format!(
        "the copy is here: {} in {:.1?}; it is made consistent",
        mebibytes(received),
        start.elapsed()
    ));
    confined(&place.part, PREPARE_COPY, PREPARE)
        .arg("--prepare")
        .arg(format!("--target-dir={}", place.part.display()))
        .run()?
        .success()?;
    if cancel.asked() {
        return Err(RebuildError::Cancelled);
    }
    let history = History {
        position: position(&place.part)?,
        state,
    };
    keep_marks(place)?;
    give_place(settings, place, &history)?;
    Ok(history)
}

/// The database's user owns it, as it does the data.
fn make_part(place: &Place) -> io::Result<()> {
    let owner = fs::metadata(&place.data)?;
    DirBuilder::new().mode(0o700).create(&place.part)?;
    chown(&place.part, Some(owner.uid()), Some(owner.gid()))
}

fn progress(bytes: u64, needed: u64, since: Duration) -> String {
    let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = (bytes / milliseconds).max(1) * 1000;
    let left = if bytes > 0 && needed > bytes {
        format!(", about {} s left", (needed - bytes).div_ceil(rate))
    } else {
        String::new()
    };
    format!(
        "fetching the copy: {} of about {}, {}/s{left}",
        mebibytes(bytes),
        mebibytes(needed),
        mebibytes(rate)
    )
}

/// The copy's place in the replication's history.
struct History {
    /// What is in it.
    position: GtidSet,
    /// What the primary had at the beginning, of every server.
    state: GtidSet,
}

impl History {
    fn whole(&self) -> GtidSet {
        self.state.union(&self.position)
    }
}

/// The third word of the file; `gtid_slave_pos` in the copied tables can be older.
fn position(part: &Path) -> Result<GtidSet, RebuildError> {
    let none = || RebuildError::NoPosition(part.to_owned());
    let text = POSITION_FILES
        .iter()
        .find_map(|name| text_of(&part.join(name)).ok())
        .ok_or_else(none)?;
    let position: GtidSet = text
        .split_whitespace()
        .nth(2)
        .and_then(|gtids| gtids.parse().ok())
        .ok_or_else(none)?;
    if position.is_empty() {
        return Err(none());
    }
    Ok(position)
}

/// Small files by which a distribution knows that a data directory is its own and up to date.
fn keep_marks(place: &Place) -> Result<(), RebuildError> {
    for entry in fs::read_dir(&place.data).map_err(at(&place.data))? {
        let entry = entry.map_err(at(&place.data))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.ends_with(".flag") || text.ends_with("_upgrade_info") {
            let new = place.part.join(&name);
            let old = text_of(&entry.path()).map_err(at(&entry.path()))?;
            create(&new)
                .and_then(|mut file| file.write_all(old.as_bytes()))
                .map_err(at(&new))?;
        }
    }
    for (program, words) in [("chown", &["-R"][..]), ("chmod", &[])] {
        Program::new(program)
            .args(words)
            .arg(format!("--reference={}", place.data.display()))
            .arg(&place.part)
            .deadline(SERVER)
            .run()?
            .success()?;
    }
    Ok(())
}

/// A server that nobody can reach starts on the copy, sets its history, and ends.
fn give_place(settings: &Settings, place: &Place, history: &History) -> Result<(), RebuildError> {
    let part = &place.part;
    let statements = part.join("history.sql");
    let whole = history.whole();
    let text = format!(
        "RESET MASTER;\nSET GLOBAL gtid_binlog_state = {};\nSET GLOBAL gtid_slave_pos = {};\nSHUTDOWN;\n",
        statements::quote(&whole.in_order()),
        statements::quote(&history.position.to_string()),
    );
    create(&statements)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(at(&statements))?;
    let binlog = settings.database.binlog_index.with_extension("");
    let binlog = binlog.file_name().unwrap_or_default().to_string_lossy();
    confined(part, SERVE, SERVER)
        .arg(format!("--datadir={}", part.display()))
        .arg(format!("--socket={}", part.join("rebuild.sock").display()))
        .arg(format!("--pid-file={}", part.join("rebuild.pid").display()))
        .args([
            "--skip-networking",
            "--skip-log-error",
            "--skip-slave-start",
            "--read-only=1",
            // The copy's events are enabled, as on the primary.
            "--event-scheduler=OFF",
            // Another place may be out of reach here.
            "--tmpdir=/tmp",
        ])
        .args([
            "--rpl-semi-sync-master-enabled=OFF",
            "--rpl-semi-sync-slave-enabled=OFF",
        ])
        // Relative: the index must be right in the directory's later place, too.
        .arg(format!("--log-bin={binlog}"))
        .args(["--relay-log=relaylog", "--relay-log-index=relaylog.index"])
        .arg(format!("--init-file={}", statements.display()))
        .run()?
        .success()?;
    fs::remove_file(&statements).map_err(at(&statements))?;
    Ok(())
}

fn change_places(
    settings: &Settings,
    primary: &Node,
    place: &Place,
    history: &History,
    say: &dyn Fn(&str),
) -> Result<PathBuf, RebuildError> {
    let unit = &settings.database.unit;
    let stamp = tell::stamp(jiff::Timestamp::now());
    let kept = sibling(&place.data, &format!("before-{stamp}"));
    if let Err(error) = systemctl("stop", unit) {
        // It may have stopped after all.
        systemctl("start", unit)?;
        return Err(error);
    }
    // Under its last name before the exchange: whatever dies now, no run takes the old data for a part.
    let swapped = fs::rename(&place.part, &kept)
        .map_err(at(&place.part))
        .and_then(|()| exchange(place, &kept));
    if swapped.is_err() {
        // What is there is no old data.
        let _ = fs::rename(&kept, &place.part);
    }
    let started = systemctl("start", unit);
    swapped?;
    if let Err(why) = started {
        exchange(place, &kept)?;
        systemctl("start", unit)?;
        let why = Box::new(why);
        return Err(RebuildError::NoStart { copy: kept, why });
    }
    say(&format!(
        "the copy is in place and the database started; the old data are in {}",
        kept.display()
    ));
    let mut session = Session::connect(settings, Target::Local, settings.role.answer_timeout)?;
    let found = statements::gtids(&mut session, "SELECT @@gtid_slave_pos")?;
    if found != history.position {
        return Err(RebuildError::WrongPosition {
            found: found.to_string(),
            expected: history.position.to_string(),
            kept,
        });
    }
    statements::demote(&mut session, settings, primary)?;
    Ok(kept)
}

fn exchange(place: &Place, other: &Path) -> Result<(), PathError> {
    let parent = place.data.parent().unwrap_or(Path::new("/"));
    renameat_with(CWD, &place.data, CWD, other, RenameFlags::EXCHANGE)
        .map_err(Into::into)
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(at(&place.data))
}

fn systemctl(verb: &str, unit: &str) -> Result<(), RebuildError> {
    Ok(host::act::systemctl(&[verb, unit], SERVER)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_position_is_the_third_word_and_never_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(POSITION_FILES[0]);
        assert!(position(directory.path()).is_err());
        for bad in ["", "binlog.000001\t1198863", "binlog.000001\t1198863\tx"] {
            fs::write(&file, bad).unwrap();
            assert!(position(directory.path()).is_err(), "{bad}");
        }
        fs::write(&file, "binlog.000001\t1198863\t0-1-2976\n").unwrap();
        let position = position(directory.path()).unwrap();
        let state = "0-1-2970,0-2-60".parse().unwrap();
        let whole = History { position, state }.whole();
        assert_eq!(whole.to_string(), "0-1-2976,0-2-60");
    }

    #[test]
    fn the_old_data_keep_a_name_beside_the_new() {
        assert_eq!(
            sibling(Path::new("/var/lib/mysql"), "before-x"),
            Path::new("/var/lib/mysql.before-x")
        );
    }
}
