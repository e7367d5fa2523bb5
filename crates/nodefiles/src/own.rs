//! The directory of ours in a tree that somebody else may write to.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

/// Its name; never sent to another node, and closed to everybody but root.
pub const OWN: &str = ".keepalived-companion";

/// Opens a file in it. The tree belongs to the web server, which could put its own directory, with a link
/// to any file of root in it, in the place of ours: no link is followed, and nobody else may be able to
/// write there.
pub fn open_own(tree: &Path, name: &str, flags: OFlags) -> io::Result<File> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = openat(CWD, tree, directory, Mode::empty())?;
    let own = openat(&tree, OWN, directory | OFlags::NOFOLLOW, Mode::empty())?;
    let found = fstat(&own)?;
    if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others than root can write there; remove it, and restart sync-realtime",
        ));
    }
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&own, name, flags, Mode::from_raw_mode(0o600))?;
    Ok(File::from(file))
}
