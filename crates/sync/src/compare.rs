//! What a standby has otherwise: rsync's own comparison, without a change, and how its lines are read.
//! Each difference becomes a name in the queue, so a first filling, a return and a scan after an
//! overflow are all sent in the same way as a change is.

use std::path::Path;

use crate::octal;

/// A comparison of a tree with a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The tree.
    pub tree: u16,
    /// What of it.
    pub scope: Scope,
    /// What is known of names that only the standby has.
    pub losses: Losses,
}

/// What is known of names that only the standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// They were seen to go.
    Seen,
    /// The standby keeps a copy of all that it deletes, as at the first meeting in an epoch.
    Copied,
    /// Nobody watched when they went.
    Unseen,
    /// The same, and this is the second look: of names that were going in that moment is known by now.
    UnseenTwice,
}

/// What to compare in one tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Whole,
    /// These directories with all below them.
    Below(Vec<Vec<u8>>),
    /// The names in the root itself.
    NamesInRoot,
    /// These files, by their digests.
    Names(Vec<Vec<u8>>),
}

impl Scope {
    /// rsync's options, beyond those of a transfer. A directory that is renamed or removed meanwhile is an error
    /// to rsync, and it would then keep quiet about everything that the standby has too much, elsewhere also.
    pub fn options(&self) -> &'static [&'static str] {
        match self {
            Self::Whole => &[
                "-n",
                "--delete",
                "--ignore-errors",
                "--out-format=%i %l %n",
                "-r",
            ],
            Self::Below(_) => &[
                "-n",
                "--delete",
                "--ignore-errors",
                "--out-format=%i %l %n",
                "-r",
                "--from0",
                "--files-from=-",
            ],
            Self::NamesInRoot => &[
                "-n",
                "--delete",
                "--ignore-errors",
                "--out-format=%i %l %n",
                "-d",
                "--no-r",
                "--from0",
                "--files-from=-",
            ],
            Self::Names(_) => &[
                "-n",
                "--checksum",
                "--out-format=%i %l %n",
                "--from0",
                "--files-from=-",
            ],
        }
    }

    /// rsync's input.
    pub fn list(&self) -> Vec<u8> {
        match self {
            Self::Whole => Vec::new(),
            Self::NamesInRoot => b"./\0".to_vec(),
            // With the slash its content is compared, not only the directory.
            Self::Below(paths) => listed(paths, b"/\0"),
            Self::Names(paths) => listed(paths, b"\0"),
        }
    }
}

fn listed(paths: &[Vec<u8>], end: &[u8]) -> Vec<u8> {
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(b"./");
        list.extend_from_slice(path);
        list.extend_from_slice(end);
    }
    list
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the root, without a slash at the end; empty for the root itself.
    pub path: Vec<u8>,
    /// The standby has it and this node has not.
    pub extraneous: bool,
    /// It is a directory.
    pub directory: bool,
    /// Bytes of a file whose content is to be sent.
    pub bytes: u64,
}

/// Reads one line of `--out-format=%i %l %n`. None for lines that are not differences.
pub fn read_line(line: &[u8]) -> Option<Difference> {
    // Eleven letters of --itemize-changes, or `*deleting` and blanks.
    let (what, path) = line.split_at_checked(11)?;
    let rest = path.strip_prefix(b" ")?;
    let blank = rest.iter().position(|byte| *byte == b' ')?;
    let (length, path) = (&rest[..blank], &rest[blank + 1..]);
    let length: u64 = std::str::from_utf8(length).ok()?.parse().ok()?;
    let extraneous = what.starts_with(b"*deleting");
    if !extraneous && !matches!(what[0], b'<' | b'>' | b'c' | b'h' | b'.') {
        return None;
    }
    // rsync prints bytes that are not printable ASCII as `\#ooo` (in the locale C).
    let mut path = octal::unescape(path, b"\\#");
    let directory = path.last() == Some(&b'/');
    while path.last() == Some(&b'/') {
        path.pop();
    }
    if path.starts_with(b"./") {
        path.drain(..2);
    }
    if path == b"." {
        path.clear();
    }
    Some(Difference {
        path,
        extraneous,
        directory,
        bytes: if what.starts_with(b"<f") { length } else { 0 },
    })
}

/// Whether a path is still a directory, and may be in such a list.
pub fn is_directory(root: &Path, path: &[u8]) -> bool {
    std::fs::symlink_metadata(crate::batch::below(root, path)).is_ok_and(|m| m.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_rsync_3_5_are_read() {
        for (line, path, extraneous, bytes) in [
            (&b"<f.st...... 20 c/f3"[..], &b"c/f3"[..], false, 20),
            (b"<f+++++++++ 0 a/new", b"a/new", false, 0),
            (b"cd+++++++++ 4096 a/", b"a", false, 0),
            (b".d..t...... 4096 ./", b"", false, 0),
            (b".f...p..... 7 mode", b"mode", false, 0),
            (b"cL+++++++++ 3 link", b"link", false, 0),
            (b"hf+++++++++ 5 hard", b"hard", false, 0),
            (b"*deleting   0 extra/x/", b"extra/x", true, 0),
            (
                b"*deleting   0  begins with a blank",
                b" begins with a blank",
                true,
                0,
            ),
            (b"<f+++++++++ 1 a\\#012b\\#377", b"a\nb\xff", false, 1),
            (b"<f+++++++++ 1 a\\#134#012", b"a\\#012", false, 1),
            (b"<f+++++++++ 1 plain\\#9", b"plain\\#9", false, 1),
        ] {
            let difference = read_line(line).unwrap();
            assert_eq!(difference.path, path, "{}", String::from_utf8_lossy(line));
            assert_eq!(
                (difference.extraneous, difference.bytes),
                (extraneous, bytes)
            );
        }
        for line in [
            &b""[..],
            b"short",
            b"skipping directory .",
            b"rsync: error of some kind",
        ] {
            assert_eq!(read_line(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_list_names_directories_with_their_content() {
        assert!(Scope::Whole.list().is_empty());
        let scope = Scope::Below(vec![b"a".to_vec(), b"b/c".to_vec()]);
        assert_eq!(scope.list(), b"./a/\0./b/c/\0");
    }
}
