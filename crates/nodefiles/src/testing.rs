//! What the tests of this crate share.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use settings::Settings;

use crate::JsonFile;

/// Settings of node `a` of two, whose files are in `directory`.
pub fn settings(directory: &Path) -> Settings {
    let text = format!(
        "[cluster]\nvip = \"192.0.2.9\"\n\
         [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"198.51.100.1\"\n\
         [[node]]\nname = \"b\"\nprivate = \"192.0.2.2\"\nfront = \"198.51.100.2\"\n\
         [paths]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n",
        directory.display()
    );
    settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap()
}

/// A value is written in this form, and read from it and from these earlier ones.
pub fn assert_form<T>(
    file: &dyn Fn(&Settings) -> JsonFile<T>,
    value: &T,
    written: &str,
    earlier: &[&str],
) where
    T: Debug + PartialEq + Serialize + DeserializeOwned,
{
    let directory = tempfile::tempdir().unwrap();
    let file = file(&settings(directory.path()));
    file.replace(value).unwrap();
    assert_eq!(fs::read_to_string(file.path()).unwrap(), written);
    assert_eq!(file.read().unwrap().as_ref(), Some(value), "{written}");
    for text in earlier {
        fs::write(file.path(), text).unwrap();
        assert_eq!(file.read().unwrap().as_ref(), Some(value), "{text}");
    }
}
