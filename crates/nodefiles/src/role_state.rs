//! `role.json` in the run directory: what this node is, for every program on it.

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::JsonFile;

/// Its name, for who watches the run directory.
pub const NAME: &str = "role.json";

/// What a node is to its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// Its database is open for writes: here the data change.
    Active,
    /// Its database is closed: the data come from the active node.
    Standby,
    /// It is becoming the active node: nothing may change its data from outside any more.
    Changing,
}

/// What a node is, and since which epoch. It is made anew after a boot; a missing file means that
/// nothing is known yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleState {
    /// The role.
    pub role: NodeRole,
    /// The highest epoch that this node knows; on the active node its own.
    pub epoch: u64,
    /// When it was written, in seconds since boot.
    pub at: f64,
    /// The database was seen closed since it last could be open.
    #[serde(default)]
    pub closed: bool,
}

/// The file. It is replaced only when it changes, because each replacement wakes who watches it.
pub fn file(settings: &Settings) -> JsonFile<RoleState> {
    JsonFile::volatile(settings.paths.run.join(NAME), 1)
}

/// This node's role; none when it is not known (yet). The run directory is empty after a boot, so the
/// file is of this one; a boot id in it would not help, since a unit with a /proc of its own may see
/// another one in a container than everybody else does.
pub fn read(settings: &Settings) -> Option<RoleState> {
    file(settings).read().ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_every_version() {
        let state = RoleState {
            role: NodeRole::Standby,
            epoch: 7,
            at: 12.5,
            closed: true,
        };
        crate::testing::assert_form(
            &file,
            &state,
            r#"{"version":1,"role":"standby","epoch":7,"at":12.5,"closed":true}"#,
            &[r#"{"role":"standby","epoch":7,"at":12.5,"closed":true}"#],
        );
    }
}
