//! logind: who asks for it learns that the host is about to go down, and may hold that up for a moment.
//!
//! Through systemd's own `systemd-inhibit` and `busctl`: a D-Bus library for two calls would be the largest dependency
//! of all.

use std::time::Duration;

use process::{Conversation, Heard, ProcessError, Program};

/// logind answers within milliseconds, unless it has to be started.
const PATIENCE: Duration = Duration::from_secs(5);
/// `org.freedesktop.login1`: its address on the bus.
const MANAGER: [&str; 3] = [
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
];
/// The signal that logind sends before it begins, and when it has given up.
const SIGNAL: &str = "PrepareForShutdown";

/// A delay of this host's shutdown, until it is dropped or logind's own limit (`InhibitDelayMaxSec=`) is over. The
/// fallback, where it is gone without a word, is that there is no delay.
#[derive(Debug)]
pub struct Delay(Conversation);

impl Delay {
    /// Takes it; `why` is what `systemd-inhibit --list` shows.
    pub fn take(who: &str, why: &str) -> Result<Self, ProcessError> {
        // The program that it runs is started once the lock is held.
        let mut held = Program::new("systemd-inhibit")
            .args(["--what=shutdown", "--mode=delay"])
            .arg(format!("--who={who}"))
            .arg(format!("--why={why}"))
            .arg("cat")
            .converse()?;
        held.ask("held", PATIENCE)?;
        Ok(Self(held))
    }

    /// Whether it has gone.
    pub fn is_over(&mut self) -> bool {
        self.0.is_over()
    }
}

/// What logind tells of the host's way down.
#[derive(Debug)]
pub struct Notices(Conversation);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The host goes down as soon as nobody delays it any more.
    GoingDown,
    /// It stays up after all.
    StaysUp,
    /// None within the time.
    None,
    /// There will be none: to be opened anew.
    End,
}

impl Notices {
    /// Begins to listen. What was told before is not heard: see [`going_down`].
    pub fn listen() -> Result<Self, ProcessError> {
        let [sender, _, interface] = MANAGER;
        let wanted = format!(
            "--match=type='signal',sender='{sender}',interface='{interface}',member='{SIGNAL}'"
        );
        Program::new("busctl")
            .args(["--system", "--json=short"])
            .arg(wanted)
            .arg("monitor")
            .converse()
            .map(Self)
    }

    /// Waits so long for the next one.
    pub fn next(&mut self, patience: Duration) -> Notice {
        match self.0.hear(patience) {
            Heard::Line(line) => parse(&line),
            Heard::Silence => Notice::None,
            Heard::End => Notice::End,
        }
    }
}

/// A message as `busctl --json=short monitor` prints it. Others are among them, such as the one that gives the
/// monitor its name.
fn parse(line: &str) -> Notice {
    let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    if message["member"] != SIGNAL {
        return Notice::None;
    }
    match message["payload"]["data"][0].as_bool() {
        Some(true) => Notice::GoingDown,
        Some(false) => Notice::StaysUp,
        None => Notice::None,
    }
}

/// Whether logind is about to take the host down.
pub fn going_down() -> Result<bool, ProcessError> {
    Ok(property("PreparingForShutdown")? == "b true")
}

/// For how long one may delay it; none where that is not understood.
pub fn longest_delay() -> Result<Option<Duration>, ProcessError> {
    let text = property("InhibitDelayMaxUSec")?;
    let microseconds = text.strip_prefix("t ").and_then(|n| n.parse().ok());
    Ok(microseconds.map(Duration::from_micros))
}

fn property(name: &str) -> Result<String, ProcessError> {
    let asked = Program::new("busctl")
        .args(["--system", "get-property"])
        .args(MANAGER)
        .arg(name)
        .deadline(PATIENCE)
        .run()?;
    Ok(asked.success()?.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What busctl of systemd 252 prints.
    #[test]
    fn notices_are_read() {
        let line = |data: &str| {
            format!(
                r#"{{"type":"signal","endian":"l","flags":1,"version":1,"cookie":187,"timestamp-realtime":1,"sender":":1.1","path":"/org/freedesktop/login1","interface":"org.freedesktop.login1.Manager","member":"PrepareForShutdown","payload":{{"type":"b","data":[{data}]}}}}"#
            )
        };
        assert_eq!(parse(&line("true")), Notice::GoingDown);
        assert_eq!(parse(&line("false")), Notice::StaysUp);
        let acquired = line("true").replace("PrepareForShutdown", "NameAcquired");
        for other in [&acquired, &line(""), "", "Monitoring bus message stream."] {
            assert_eq!(parse(other), Notice::None, "{other}");
        }
    }
}
