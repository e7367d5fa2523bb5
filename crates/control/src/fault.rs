//! Fault injection: kills the tool at a named step, for the tests that prove that a rerun is safe.
//!
//! It acts only when the file `fault` exists in the state directory, which only root can write.

use role::Step;
use settings::Settings;

/// Dies by SIGKILL when the file names this step and moment: `WHEN STEP`, as `before open`.
/// The file goes first, so that the next run passes.
pub fn point(settings: &Settings, step: &Step, when: &str) {
    let path = settings.paths.state.join("fault");
    let Ok(wanted) = std::fs::read_to_string(&path) else {
        return;
    };
    let name = serde_json::to_value(step).ok().and_then(|value| {
        value
            .get("step")
            .and_then(|s| s.as_str().map(str::to_owned))
    });
    if name.is_some_and(|name| wanted.trim() == format!("{when} {name}"))
        && std::fs::remove_file(&path).is_ok()
    {
        log::warn!("fault injected: {}", wanted.trim());
        // The signal ends this process, so what follows is never reached.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
