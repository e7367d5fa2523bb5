//! The release before this one, as `tests/release-before` names it: built once, and kept beside the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use process::Program;
use rustix::fs::{FlockOperation, flock};

use crate::provision::repository;
use crate::{CACHE, LabError, at, tell};

const NAMED_IN: &str = "tests/release-before";
/// What has programs that are installed on nodes.
const PACKAGES: [&str; 4] = ["alerts", "checks", "control", "sync"];
/// On two busy cores, with every dependency.
const BUILD: Duration = Duration::from_secs(3600);

/// A release, by its name and its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Release {
    name: String,
    commit: String,
}

/// The one line that is not a comment.
fn parse(text: &str) -> Option<Release> {
    let line = text.lines().find(|line| !line.starts_with('#'))?;
    let (name, commit) = line.split_once(' ')?;
    let whole = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| Release {
        name: name.to_owned(),
        commit: commit.to_owned(),
    })
}

fn git() -> Program {
    // In a container the clone may belong to somebody else.
    Program::new("git")
        .args(["-c", "safe.directory=*", "-C"])
        .arg(repository())
}

/// The tree of the release before, with its programs in target/release; built when it is not there yet.
pub fn release_before() -> Result<PathBuf, LabError> {
    let path = repository().join(NAMED_IN);
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let release = parse(&text)
        .ok_or_else(|| LabError::Unfit(format!("{NAMED_IN}: expected a name and a commit")))?;
    let cache = Path::new(CACHE);
    fs::create_dir_all(cache).map_err(at(cache))?;
    // A lock of its own: the image is built at the same time.
    let lock = cache.join("release-before.lock");
    let lock = fs::File::create(&lock).map_err(at(&lock))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| at(cache)(e.into()))?;
    let tree = cache.join(format!("release-{}", release.commit));
    if tree.exists() {
        return Ok(tree);
    }
    build(&release, &tree)?;
    Ok(tree)
}

fn build(release: &Release, tree: &Path) -> Result<(), LabError> {
    let Release { name, commit } = release;
    let present = git()
        .args(["cat-file", "-e", &format!("{commit}^{{commit}}")])
        .run()?;
    if !present.status.success() {
        return Err(LabError::Unfit(format!(
            "the release before, {name}, is commit {commit}, which is not in this clone; get its history: git fetch --unshallow"
        )));
    }
    let start = Instant::now();
    tell(&format!(
        "building the release before, {name} (some minutes)"
    ));
    let building = tree.with_extension("building");
    if building.exists() {
        fs::remove_dir_all(&building).map_err(at(&building))?;
    }
    fs::create_dir(&building).map_err(at(&building))?;
    let archive = building.join("archive.tar");
    git()
        .args(["archive", "--format=tar", commit])
        .stdout_to(&archive)
        .run()?
        .success()?;
    Program::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&building)
        .run()?
        .success()?;
    let target = building.join("target");
    Program::new("cargo")
        .args(["build", "--release", "--quiet", "--locked"])
        .arg("--manifest-path")
        .arg(building.join("Cargo.toml"))
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]))
        .env("CARGO_TARGET_DIR", &target)
        .deadline(BUILD)
        .run()?
        .success()?;
    // What was made on the way is large; the programs are what counts.
    for part in ["deps", "build", "incremental", ".fingerprint"] {
        let part = target.join("release").join(part);
        fs::remove_dir_all(&part).map_err(at(&part))?;
    }
    fs::remove_file(&archive).map_err(at(&archive))?;
    fs::rename(&building, tree).map_err(at(tree))?;
    tell(&format!("{name} built in {:.0?}", start.elapsed()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_before_is_a_name_and_a_whole_commit() {
        let named = fs::read_to_string(repository().join(NAMED_IN)).unwrap();
        assert!(parse(&named).is_some(), "{named}");
        let commit = "24608df4a04917012286d525f57ba126d6023efe";
        let release = parse(&format!("# why\n0.1.0 {commit}\n")).unwrap();
        assert_eq!(
            (release.name.as_str(), release.commit.as_str()),
            ("0.1.0", commit)
        );
        for text in ["", "# only\n", "0.1.0\n", "0.1.0 24608df\n", "0.1.0 HEAD\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
