//! What the audit starts by itself when the settings say so: a failback, and a rebuild. Both take long, so each
//! is a unit of its own.

use host::{Verb, uptime_seconds};
use nodefiles::read_json;
use process::ProcessError;
use settings::Settings;

use crate::act;
use crate::look::Look;
use crate::tell;

/// Runs `failback`.
const FAILBACK: &str = "keepalived-companion-failback.service";
/// Runs `failback --rejoin-only --rebuild`.
const REBUILD: &str = "keepalived-companion-rebuild.service";

/// Starts a rebuild, and not again soon: each copies the whole primary.
pub fn start_rebuild(settings: &Settings) -> Result<(), ProcessError> {
    let file = settings.paths.run.join("rebuild-tried.json");
    let now = uptime_seconds();
    let tried = read_json::<f64>(&file).ok().flatten();
    if tried.is_some_and(|tried| now - tried < settings.failback.stable.as_secs_f64()) {
        return Ok(());
    }
    tell::write_json(&file, &now);
    act::ask_systemd(Verb::Start, REBUILD)
}

/// Starts a failback once this node, the preferred one, has been a standby in order for long enough, within
/// the hours for it.
pub fn consider(settings: &Settings, seen: &Look) -> Result<(), ProcessError> {
    if !settings.failback.automatic || settings.cluster.preferred != settings.local().name {
        return Ok(());
    }
    if settings.mistake.is_some() {
        log::debug!("no failback by itself while the settings have a mistake");
        return Ok(());
    }
    let file = settings.paths.run.join("stable-since.json");
    let now = uptime_seconds();
    let in_order = seen.seen.primary().is_some()
        && !seen.seen.local.database.writable()
        && role::fitness(&seen.seen).is_fit()
        && nodefiles::maintenance::forbids(settings).is_none();
    // A damaged file begins anew, as after a boot.
    let since = read_json::<f64>(&file).ok().flatten();
    match (in_order, since) {
        (false, None) => {}
        (false, Some(_)) => {
            let _ = std::fs::remove_file(&file);
        }
        (true, None) => tell::write_json(&file, &now),
        (true, Some(since)) => {
            let hour = u8::try_from(jiff::Zoned::now().hour()).unwrap_or_default();
            if now - since >= settings.failback.stable.as_secs_f64()
                && settings.failback.hours.contain(hour)
            {
                // The next try, should this one fail, is as far away.
                tell::write_json(&file, &now);
                tell::failover_log(settings, "failback begins by itself");
                act::ask_systemd(Verb::Start, FAILBACK)?;
            }
        }
    }
    Ok(())
}
