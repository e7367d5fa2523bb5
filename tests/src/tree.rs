//! What a tree holds, and in what two trees differ.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::{LabError, at};

/// Names in the root that are sync-realtime's own.
const OWN: [&[u8]; 2] = [b".keepalived-companion", b".keepalived-companion-canary"];

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket or a device.
    Other,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its permissions; those of a link mean nothing.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When it was written, in nanoseconds since 1970.
    pub mtime: i128,
    /// Where a link points to.
    pub target: Option<Vec<u8>>,
    /// A hash of a file's content.
    pub content: Option<u64>,
    /// The first name of a file with several names in the tree.
    pub group: Option<Vec<u8>>,
}

/// Every name by its path relative to the root; the empty one is the root itself.
pub type Digest = BTreeMap<Vec<u8>, Entry>;

/// Reads a tree. A name that goes away meanwhile is left out.
pub fn digest(root: &Path) -> Result<Digest, LabError> {
    let mut digest = Digest::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut stack = vec![Vec::new()];
    while let Some(path) = stack.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let Some(metadata) = unless_gone(fs::symlink_metadata(&full)).map_err(at(&full))? else {
            continue;
        };
        if metadata.is_dir() {
            let Some(names) = unless_gone(fs::read_dir(&full)).map_err(at(&full))? else {
                continue;
            };
            for name in names.flatten().map(|entry| entry.file_name().into_vec()) {
                if path.is_empty() && OWN.contains(&name.as_slice()) {
                    continue;
                }
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend(name);
                stack.push(below);
            }
        } else if metadata.nlink() > 1 {
            inodes.entry(metadata.ino()).or_default().push(path.clone());
        }
        if let Some(entry) = unless_gone(read(&full, &metadata)).map_err(at(&full))? {
            digest.insert(path, entry);
        }
    }
    for mut names in inodes.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            if let Some(entry) = digest.get_mut(name) {
                entry.group = Some(names[0].clone());
            }
        }
    }
    Ok(digest)
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // It may also have become something else.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path, metadata: &Metadata) -> io::Result<Entry> {
    let kind = metadata.file_type();
    let kind = if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        Kind::Other
    };
    Ok(Entry {
        kind,
        mode: if kind == Kind::Symlink {
            0
        } else {
            metadata.mode() & 0o7777
        },
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if kind == Kind::File {
            metadata.len()
        } else {
            0
        },
        mtime: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        target: if kind == Kind::Symlink {
            Some(fs::read_link(path)?.into_os_string().into_vec())
        } else {
            None
        },
        content: if kind == Kind::File {
            Some(content(path)?)
        } else {
            None
        },
        group: None,
    })
}

fn content(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.write(&buffer[..count]);
    }
}

/// In what `found` differs from `wanted`, a line for each name.
pub fn differences(wanted: &Digest, found: &Digest) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in wanted {
        let name = String::from_utf8_lossy(path);
        match found.get(path) {
            None => lines.push(format!("{name:?} is missing ({:?})", entry.kind)),
            Some(other) if other != entry => {
                lines.push(format!("{name:?}: {}", difference(entry, other)));
            }
            Some(_) => {}
        }
    }
    for (path, entry) in found {
        if !wanted.contains_key(path) {
            let name = String::from_utf8_lossy(path);
            lines.push(format!("{name:?} is only there ({:?})", entry.kind));
        }
    }
    lines
}

fn difference(wanted: &Entry, found: &Entry) -> String {
    let mut parts = Vec::new();
    let mut part = |what: &str, wanted: String, found: String| {
        if wanted != found {
            parts.push(format!("{what} {found}, not {wanted}"));
        }
    };
    let text = |bytes: &Option<Vec<u8>>| {
        bytes.as_ref().map_or_else(
            || "none".to_owned(),
            |bytes| format!("{:?}", String::from_utf8_lossy(bytes)),
        )
    };
    part(
        "kind",
        format!("{:?}", wanted.kind),
        format!("{:?}", found.kind),
    );
    part(
        "mode",
        format!("{:o}", wanted.mode),
        format!("{:o}", found.mode),
    );
    part(
        "owner",
        format!("{}:{}", wanted.uid, wanted.gid),
        format!("{}:{}", found.uid, found.gid),
    );
    part("size", wanted.size.to_string(), found.size.to_string());
    part("mtime", wanted.mtime.to_string(), found.mtime.to_string());
    part("target", text(&wanted.target), text(&found.target));
    part(
        "content",
        format!("{:x?}", wanted.content),
        format!("{:x?}", found.content),
    );
    part("first name", text(&wanted.group), text(&found.group));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn every_property_counts_and_own_names_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        for root in [&a, &b] {
            fs::create_dir_all(root.join("d")).unwrap();
            for name in ["d/file", "d/mode", "d/time", "d/one"] {
                fs::write(root.join(name), "text").unwrap();
                let file = File::options().write(true).open(root.join(name)).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            fs::hard_link(root.join("d/one"), root.join("d/two")).unwrap();
            std::os::unix::fs::symlink("file", root.join("d/link")).unwrap();
            for path in ["d/link", "d", ""] {
                let never = rustix::fs::Timespec {
                    tv_sec: 1,
                    tv_nsec: 2,
                };
                rustix::fs::utimensat(
                    rustix::fs::CWD,
                    root.join(path),
                    &rustix::fs::Timestamps {
                        last_access: never,
                        last_modification: never,
                    },
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )
                .unwrap();
            }
        }
        fs::create_dir(a.join(".keepalived-companion")).unwrap();
        fs::write(b.join("extra"), "").unwrap();
        fs::write(b.join("d/file"), "next").unwrap();
        fs::set_permissions(b.join("d/mode"), fs::Permissions::from_mode(0o600)).unwrap();
        let time = File::options().write(true).open(b.join("d/time")).unwrap();
        time.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1))
            .unwrap();
        fs::remove_file(b.join("d/two")).unwrap();
        fs::remove_file(b.join("d/link")).unwrap();
        std::os::unix::fs::symlink("elsewhere", b.join("d/link")).unwrap();
        let (first, second) = (digest(&a).unwrap(), digest(&b).unwrap());
        assert_eq!(differences(&first, &first.clone()), Vec::<String>::new());
        let text = differences(&first, &second).join("\n");
        for wanted in [
            "\"d/file\": mtime",
            "content",
            "\"d/mode\": mode 600, not 644",
            "\"d/time\": mtime 1, not 0",
            "\"d/two\" is missing",
            "\"d/one\": first name none, not \"d/one\"",
            "target \"elsewhere\", not \"file\"",
            "\"extra\" is only there",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("keepalived"), "{text}");
    }
}
