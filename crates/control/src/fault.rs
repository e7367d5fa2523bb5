//! Fault injection: kills or stops the tool at a named step, for the tests that prove that a rerun is safe and
//! that what breaks in the middle ends well.
//!
//! It acts only when the file `fault` exists in the state directory, which only root can write.

use role::Step;
use rustix::process::{Signal, getpid, kill_process};
use settings::Settings;

/// Dies by SIGKILL when the file names this step and moment: `WHEN STEP`, as `before open`; with `stop` ahead of
/// it, as in `stop before open`, the process stops until it gets a SIGCONT. The file goes first, so that the
/// next run passes.
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
    let wanted = wanted.trim();
    let (signal, moment) = match wanted.strip_prefix("stop ") {
        Some(moment) => (Signal::STOP, moment),
        None => (Signal::KILL, wanted),
    };
    if name.is_some_and(|name| moment == format!("{when} {name}"))
        && std::fs::remove_file(&path).is_ok()
    {
        log::warn!("fault injected: {wanted}");
        // A process may always send itself a signal.
        let _ = kill_process(getpid(), signal);
    }
}
