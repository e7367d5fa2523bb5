//! A real event for the watcher: a fresh token, written into each tree.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use nodefiles::{OWN, open_own};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::clock::Moment;

/// The file in our directory of each tree.
const PROBE: &str = "probe";

/// Why a probe was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Perhaps only here: another node may do better.
    Here(String),
    /// Also where the VIP would go, or nothing is wrong with the watcher.
    Anywhere(String),
}

/// What was never written before. It begins with its moment, so that one that comes back late tells how
/// late.
pub(crate) fn token(now: &Moment, number: usize) -> String {
    format!("{:.6}-{}-{number}", now.at, std::process::id())
}

/// When a token was written, in seconds since boot; none when it is not one of ours.
pub(crate) fn written_at(token: &str) -> Option<f64> {
    token.split_once('-')?.0.parse().ok()
}

/// Writes a token into a tree. It may hang when the disk does.
pub(crate) fn write(tree: &Path, token: &str) -> Result<(), Obstacle> {
    open_own(tree, PROBE, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
        .and_then(|mut file| file.write_all(token.as_bytes()))
        .map_err(|error| obstacle(tree, &error))
}

fn obstacle(tree: &Path, error: &io::Error) -> Obstacle {
    let own = tree.join(OWN);
    let own = own.display();
    match error.kind() {
        ErrorKind::NotFound => Obstacle::Here(format!(
            "{own} is missing: is the tree not adopted by sync-realtime, or not mounted?"
        )),
        // The same files are on the standby, and no restart makes room.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Obstacle::Anywhere(format!(
            "{own}: {error}: the watcher cannot be probed; make room"
        )),
        // Not root, or somebody has been at our directory.
        ErrorKind::PermissionDenied => Obstacle::Anywhere(format!("{own}: {error}")),
        _ if is_link(error) => Obstacle::Anywhere(format!("{own} is a link; remove it")),
        _ => Obstacle::Here(format!("{own}: {error}")),
    }
}

fn is_link(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::LOOP, Errno::NOTDIR]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_token_is_fresh_and_tells_its_moment() {
        let now = Moment::now();
        let first = token(&now, 0);
        assert_ne!(first, token(&now, 1));
        assert_ne!(first, token(&now.plus(0.001), 0));
        let at = written_at(&first).unwrap();
        assert!((at - now.at).abs() < 0.001, "{at} {now:?}");
        for foreign in ["", "old", "a-1-0", "17"] {
            assert_eq!(written_at(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn it_is_written_where_a_tree_is_adopted() {
        let tree = tempfile::tempdir().unwrap();
        let own = tree.path().join(OWN);
        let missing = write(tree.path(), "1-1-0").unwrap_err();
        assert!(
            matches!(&missing, Obstacle::Here(why) if why.contains("not adopted")),
            "{missing:?}"
        );
        fs::create_dir(&own).unwrap();
        for token in ["1000-1-0", "2-1-0"] {
            write(tree.path(), token).unwrap();
            assert_eq!(fs::read_to_string(own.join(PROBE)).unwrap(), token);
        }
        let missing = write(&tree.path().join("none"), "1-1-0").unwrap_err();
        assert!(matches!(missing, Obstacle::Here(_)), "{missing:?}");
    }

    #[test]
    fn nothing_is_written_through_what_others_could_have_made() {
        let tree = tempfile::tempdir().unwrap();
        let own = tree.path().join(OWN);
        let victim = tree.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let elsewhere = tree.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();

        symlink(&elsewhere, &own).unwrap();
        let refused = write(tree.path(), "1-1-0").unwrap_err();
        assert!(
            matches!(&refused, Obstacle::Anywhere(why) if why.contains("is a link")),
            "{refused:?}"
        );
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);

        fs::remove_file(&own).unwrap();
        fs::create_dir(&own).unwrap();
        symlink(&victim, own.join(PROBE)).unwrap();
        assert!(matches!(
            write(tree.path(), "1-1-0"),
            Err(Obstacle::Anywhere(_))
        ));
        fs::set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            write(tree.path(), "1-1-0"),
            Err(Obstacle::Anywhere(_))
        ));
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }

    #[test]
    fn a_full_disk_is_full_everywhere_and_a_broken_one_only_here() {
        for (errno, here) in [
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::ACCESS, false),
            (Errno::ROFS, true),
            (Errno::IO, true),
            (Errno::NOENT, true),
        ] {
            let found = obstacle(Path::new("/srv"), &errno.into());
            assert_eq!(matches!(found, Obstacle::Here(_)), here, "{found:?}");
        }
    }
}
