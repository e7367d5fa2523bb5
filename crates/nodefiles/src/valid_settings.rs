//! `settings-valid.json` in the state directory: the settings as they stood when they were last valid. With them
//! the node goes on when somebody has made a mistake in the file, or when the host was given another name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use settings::{Settings, SettingsError};

use crate::{FileError, JsonFile};

/// The state directory of a real node. A file that may be wrong cannot name another one.
const DIRECTORY: &str = "/var/lib/keepalived-companion";
/// Beside it only the modes matter.
const WORLD_READABLE: u32 = 0o004;

/// A file that was valid, and the node that it was valid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidSettings {
    /// The name of this node in it.
    pub node: String,
    /// Its text.
    pub text: String,
}

/// Where the copy of a settings file is. Only the file of the node itself has one: another that is named on a
/// command line is tried out, or belongs to a test.
fn file(config: &Path) -> Option<JsonFile<ValidSettings>> {
    (config == Path::new(settings::DEFAULT_PATH)).then(|| in_directory(Path::new(DIRECTORY)))
}

fn in_directory(directory: &Path) -> JsonFile<ValidSettings> {
    JsonFile::durable(directory.join("settings-valid.json"), 1)
}

/// The settings for a program that nobody types: those of the file, or the last valid ones with
/// [`Settings::mistake`]. Fails when there are neither.
pub fn load(config: &Path, node: Option<&str>) -> Result<Settings, SettingsError> {
    load_with(config, node, file(config))
}

fn load_with(
    config: &Path,
    node: Option<&str>,
    copy: Option<JsonFile<ValidSettings>>,
) -> Result<Settings, SettingsError> {
    let mistake = match settings::load(config, node) {
        Ok(settings) => return Ok(settings),
        Err(mistake) => mistake,
    };
    let Some(valid) = copy.and_then(|copy| copy.read().ok().flatten()) else {
        return Err(mistake);
    };
    let parse = |node: &str| settings::parse(&valid.text, config, Some(node));
    let before = match node {
        // The name itself may be the mistake.
        Some(node) => parse(node).or_else(|_| parse(&valid.node)),
        None => parse(&valid.node),
    };
    match before {
        Ok(mut settings) => {
            settings.mistake = Some(mistake.to_string().replace('\n', "; "));
            Ok(settings)
        }
        Err(_) => Err(mistake),
    }
}

/// Keeps the text of the file that these settings were read from, if it is valid still. Gives whether it was
/// another one than before.
pub fn keep(settings: &Settings, config: &Path) -> Result<bool, FileError> {
    file(config).map_or(Ok(false), |copy| keep_in(settings, config, copy))
}

fn keep_in(
    settings: &Settings,
    config: &Path,
    copy: JsonFile<ValidSettings>,
) -> Result<bool, FileError> {
    let node = &settings.local().name;
    // It may have been changed since these settings were read.
    let Some(text) = settings::read(config)
        .ok()
        .filter(|text| settings.mistake.is_none() && is_valid(text, config, node))
    else {
        return Ok(false);
    };
    let valid = ValidSettings {
        node: node.clone(),
        text,
    };
    // A damaged copy is replaced.
    if copy.read().ok().flatten().as_ref() == Some(&valid) {
        return Ok(false);
    }
    // Whoever may read the one may read the other: a monitoring agent that runs a check, for one.
    let public = fs::metadata(config).is_ok_and(|about| about.mode() & WORLD_READABLE != 0);
    let copy = if public { copy.public() } else { copy };
    copy.replace(&valid)?;
    Ok(true)
}

fn is_valid(text: &str, config: &Path, node: &str) -> bool {
    settings::parse(text, config, Some(node)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const VALID: &str = "[cluster]\nvip = \"192.0.2.1\"\n\
        [[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
        [[node]]\nname = \"b\"\nprivate = \"192.0.2.4\"\nfront = \"192.0.2.5\"\n";

    #[test]
    fn a_mistake_leaves_the_last_valid_settings_in_force_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("companion.toml");
        let copy = || Some(in_directory(directory.path()));
        let load = |node: &str| load_with(&config, Some(node), copy());
        let write = |text: &str| fs::write(&config, text).unwrap();
        write(&VALID.replace("192.0.2.1", "192.0.2.9"));
        let first = load("a").unwrap();
        assert_eq!(first.mistake, None);
        assert!(keep_in(&first, &config, copy().unwrap()).unwrap());
        assert!(!keep_in(&first, &config, copy().unwrap()).unwrap());
        for (wrong, named) in [
            (
                format!("{VALID}[role]\nloss_limit = \"none\"\n"),
                "companion.toml:12: role.loss_limit",
            ),
            (format!("{VALID}[rol]\n"), "unknown key"),
            ("garbage".to_owned(), "companion.toml:1:"),
            (String::new(), "cluster.vip"),
            (VALID.replace("\"a\"", "\"c\""), "this node is called `a`"),
        ] {
            write(&wrong);
            let held = load("a").unwrap();
            assert_eq!(held.cluster.vip.to_string(), "192.0.2.9", "{wrong}");
            assert_eq!(held.local().name, "a");
            let mistake = held.mistake.clone().unwrap();
            assert!(
                mistake.contains(named) && !mistake.contains('\n'),
                "{mistake}"
            );
            // The copy is of the last valid ones still.
            assert!(!keep_in(&held, &config, copy().unwrap()).unwrap());
            assert!(!keep_in(&first, &config, copy().unwrap()).unwrap());
            assert!(load("a").unwrap().mistake.is_some());
        }
        fs::remove_file(&config).unwrap();
        assert!(
            load("a")
                .unwrap()
                .mistake
                .unwrap()
                .contains("cannot be read")
        );
        write(VALID);
        let mended = load("a").unwrap();
        assert_eq!(mended.mistake, None);
        assert!(keep_in(&mended, &config, copy().unwrap()).unwrap());
    }

    #[test]
    fn a_host_with_another_name_is_the_node_that_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("companion.toml");
        let copy = || Some(in_directory(directory.path()));
        fs::write(&config, VALID).unwrap();
        let settings = load_with(&config, Some("b"), copy()).unwrap();
        keep_in(&settings, &config, copy().unwrap()).unwrap();
        let renamed = load_with(&config, Some("www"), copy()).unwrap();
        assert_eq!(renamed.local().name, "b");
        assert!(
            renamed
                .mistake
                .unwrap()
                .contains("this node is called `www`")
        );
    }

    #[test]
    fn without_a_copy_or_with_a_damaged_one_a_mistake_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("companion.toml");
        let copy = || Some(in_directory(directory.path()));
        fs::write(&config, "garbage").unwrap();
        assert!(load_with(&config, Some("a"), copy()).is_err());
        assert!(load_with(&config, Some("a"), None).is_err());
        let path = copy().unwrap().path().to_owned();
        for damage in ["", "{", r#"{"version":1,"node":"a","text":"garbage"}"#] {
            fs::write(&path, damage).unwrap();
            assert!(load_with(&config, Some("a"), copy()).is_err(), "{damage}");
        }
        // The next valid file replaces it.
        fs::write(&config, VALID).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = load_with(&config, Some("a"), copy()).unwrap();
        assert!(keep_in(&settings, &config, copy().unwrap()).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
