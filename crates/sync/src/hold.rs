//! A hold outlasts the service and the machine: only a person's word ends it.

use std::path::PathBuf;

use nodefiles::{Durability, FileError, read_text, remove, replace};
use settings::Settings;

use crate::state::State;

fn file(settings: &Settings) -> PathBuf {
    settings.paths.state.join("sync/held")
}

/// Holds, and writes down why. The first reason counts.
pub fn begin(settings: &Settings, state: &mut State, why: String) {
    if state.held.is_some() {
        return;
    }
    if let Err(error) = replace(&file(settings), 0o600, why.as_bytes(), Durability::OnDisk) {
        // Held all the same, until a restart.
        log::error!("{error}");
    }
    state.held = Some(why);
}

/// Why an earlier run was held, if nobody has released it.
pub fn kept(settings: &Settings) -> Option<String> {
    read_text(&file(settings)).unwrap_or_else(|error| Some(error.to_string()))
}

/// A person has looked. Gives what was held.
pub fn end(settings: &Settings, state: &mut State) -> Result<Option<String>, FileError> {
    remove(&file(settings))?;
    Ok(state.held.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_outlasts_a_restart_and_ends_with_a_word() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::settings_in(directory.path());
        let mut state = State::default();
        assert_eq!(kept(&settings), None);
        begin(&settings, &mut state, "first".to_owned());
        begin(&settings, &mut state, "second".to_owned());
        assert_eq!(kept(&settings).as_deref(), Some("first"));
        assert_eq!(
            end(&settings, &mut state).unwrap().as_deref(),
            Some("first")
        );
        assert_eq!(kept(&settings), None);
        assert_eq!(end(&settings, &mut state).unwrap(), None);
    }
}
