//! The window W of this site: see [`role::alone`].

use std::fmt;
use std::time::Duration;

use role::alone;
use settings::Settings;
use settings::keepalived_conf::{VrrpTiming, vrrp_timing};

/// W, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// W.
    pub length: Duration,
    /// What a failover needs, by keepalived.conf; none when that cannot be read.
    pub needed: Option<Duration>,
    /// `role.alone_after_ms` is set.
    set: bool,
    /// Why keepalived.conf tells nothing.
    unknown: Option<String>,
}

/// Keepalived's own default, and the shipped priority.
const USUAL: VrrpTiming = VrrpTiming {
    advert_interval: Duration::from_secs(1),
    lowest_priority: 220,
};

/// What holds here.
pub fn window(settings: &Settings) -> Window {
    let connect = settings.role.connect_timeout;
    let of =
        |timing: VrrpTiming| alone::window(timing.advert_interval, timing.lowest_priority, connect);
    let (needed, unknown) = match vrrp_timing(settings) {
        Ok(timing) => (Some(of(timing)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Window {
        length: settings
            .role
            .alone_after
            .or(needed)
            .unwrap_or_else(|| of(USUAL)),
        needed,
        set: settings.role.alone_after.is_some(),
        unknown,
    }
}

impl Window {
    /// In whole milliseconds, as the nodes tell it to each other.
    pub fn milliseconds(&self) -> u64 {
        u64::try_from(self.length.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the settings give it, whatever keepalived.conf says.
    pub fn is_set(&self) -> bool {
        self.set
    }

    /// What a person should know of it, when there is something.
    pub fn concern(&self) -> Option<String> {
        let window = self.length.as_secs_f64();
        if let Some(why) = &self.unknown {
            let from = if self.set {
                "role.alone_after_ms"
            } else {
                "advert_int 1"
            };
            return Some(format!(
                "{why}; the window W is {window:.1} s, from {from}: check that it is longer than a failover takes"
            ));
        }
        let needed = self.needed.filter(|needed| *needed > self.length)?;
        Some(format!(
            "role.alone_after_ms: the window W is {window:.1} s, and a failover takes up to {:.1} s by \
             keepalived.conf. The standby opens by itself only within W, so a power loss is likely to end with a \
             refusal and an alert; nothing acknowledged is lost",
            needed.as_secs_f64()
        ))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "window W: {:.1} s, {}",
            self.length.as_secs_f64(),
            match (self.set, &self.needed) {
                (true, _) => "from role.alone_after_ms",
                (false, Some(_)) => "from keepalived.conf",
                (false, None) => "the default",
            }
        )
    }
}
