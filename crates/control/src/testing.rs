//! What the tests of this crate share.

use std::path::Path;

use settings::Settings;

/// Settings of node `a` of two, whose files are in `directory`.
pub fn settings(directory: &Path) -> Settings {
    let text = format!(
        "[cluster]\nvip = \"192.0.2.9\"\n\
         [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"198.51.100.1\"\n\
         [[node]]\nname = \"b\"\nprivate = \"192.0.2.2\"\nfront = \"198.51.100.2\"\n\
         [database]\nsocket = \"{0}/none.sock\"\nunit = \"none.service\"\n\
         [paths]\nstate = \"{0}\"\nrun = \"{0}\"\nlog = \"{0}\"\nfailover_log = \"{0}/failover.log\"\n",
        directory.display()
    );
    settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap()
}
