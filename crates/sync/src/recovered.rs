//! The report on what a first synchronisation has moved out of the way.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use alerts::Severity;
use nodefiles::{Durability, replace, replace_json};
use serde::Serialize;
use settings::Settings;

use crate::root;

/// Lines in the alert's own text; the report has all.
const SHOWN: usize = 5;

#[derive(Debug, Serialize)]
struct Kept {
    path: String,
    bytes: u64,
    modified: String,
}

/// Lists what is in the folder of an epoch, and tells a person. An empty folder is removed.
pub fn report(settings: &Settings, folder: &Path, from: &str, epoch: u64) -> Result<(), String> {
    let files = folder.join("files");
    let mut kept = Vec::new();
    walk(&files, &files, &mut kept).map_err(|error| format!("{}: {error}", files.display()))?;
    if kept.is_empty() {
        return Ok(());
    }
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    let me = &settings.local().name;
    let mut text = format!(
        "What {me} had and {from} (the active node since epoch {epoch}) had not, or had in another state.\n\
         The copies are in {}. Nothing here is used any more: take back what is missing, then remove it.\n\n",
        files.display()
    );
    for file in &kept {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}  {:>12}  /{}",
            file.modified, file.bytes, file.path
        );
    }
    let failed = |error: nodefiles::FileError| error.to_string();
    replace(
        &folder.join("files.txt"),
        0o600,
        text.as_bytes(),
        Durability::OnDisk,
    )
    .map_err(failed)?;
    replace_json(&folder.join("files.json"), 0o600, &kept, Durability::OnDisk).map_err(failed)?;
    let names: Vec<&str> = kept
        .iter()
        .take(SHOWN)
        .map(|file| file.path.as_str())
        .collect();
    let more = if kept.len() > SHOWN { ", ..." } else { "" };
    alerts::raise(
        settings,
        "files-recovered",
        Severity::Warning,
        &format!(
            "{} files that {me} had were not on {from} or differ there; they are kept, and {from}'s count. \
             Read {}: /{}{more}",
            kept.len(),
            folder.join("files.txt").display(),
            names.join(", /")
        ),
    );
    Ok(())
}

fn walk(base: &Path, directory: &Path, kept: &mut Vec<Kept>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path: PathBuf = entry?.path();
        if path.file_name() == Some(OsStr::new(root::CANARY)) {
            // The sender's own: it is made and deleted to see that both arrive.
            fs::remove_file(&path)?;
            continue;
        }
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            walk(base, &path, kept)?;
            continue;
        }
        let relative = path.strip_prefix(base).unwrap_or(&path);
        kept.push(Kept {
            path: relative.as_os_str().to_string_lossy().into_owned(),
            bytes: metadata.len(),
            modified: jiff::Timestamp::from_second(metadata.mtime()).map_or_else(
                |_| "-".to_owned(),
                |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_senders_own_file_is_nothing_that_was_recovered() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::settings_in(directory.path());
        let folder = directory.path().join("recovered/3");
        let tree = folder.join("files/var/www/html");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join(root::CANARY), "x").unwrap();
        report(&settings, &folder, "b", 3).unwrap();
        assert!(!folder.join("files.txt").exists());
        fs::write(tree.join(root::CANARY), "x").unwrap();
        fs::write(tree.join("page"), "x").unwrap();
        let mut kept = Vec::new();
        walk(&folder.join("files"), &folder.join("files"), &mut kept).unwrap();
        let paths: Vec<&str> = kept.iter().map(|kept| kept.path.as_str()).collect();
        assert_eq!(paths, ["var/www/html/page"]);
    }
}
