//! Moments that a step of the wall clock does not move.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment of one boot: `CLOCK_BOOTTIME`, which also counts while the machine is suspended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// Seconds since boot.
    pub at: f64,
    /// `/proc/sys/kernel/random/boot_id`; moments of two boots cannot be compared.
    pub boot_id: String,
}

impl Moment {
    /// The present moment.
    pub fn now() -> Self {
        Self {
            at: host::uptime_seconds(),
            // Without it every moment looks like one of the same boot, which the run directory,
            // empty after a boot, makes true.
            boot_id: host::boot_id(),
        }
    }

    /// A moment of the same boot as this one, in seconds since then. The files of the run directory
    /// hold no others.
    pub fn same_boot(&self, at: f64) -> Self {
        Self {
            at,
            boot_id: self.boot_id.clone(),
        }
    }

    /// How long ago this was; none for another boot or a moment still to come.
    pub fn age(&self, now: &Self) -> Option<Duration> {
        if self.boot_id != now.boot_id {
            return None;
        }
        Duration::try_from_secs_f64(now.at - self.at).ok()
    }

    /// Whether this was at most `limit` ago, in this boot.
    pub fn is_young(&self, now: &Self, limit: Duration) -> bool {
        self.age(now).is_some_and(|age| age <= limit)
    }

    /// This moment moved by a number of seconds, for tests.
    #[cfg(test)]
    pub fn plus(&self, seconds: f64) -> Self {
        self.same_boot(self.at + seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_needs_the_same_boot_and_a_moment_that_has_passed() {
        let now = Moment::now();
        assert_eq!(now.plus(-2.0).age(&now).map(|a| a.as_millis()), Some(2000));
        assert_eq!(now.plus(2.0).age(&now), None);
        let other_boot = Moment {
            boot_id: "another".to_owned(),
            ..now.plus(-2.0)
        };
        assert_eq!(other_boot.age(&now), None);
    }

    #[test]
    fn young_includes_its_limit() {
        let now = Moment {
            at: 100.0,
            boot_id: "b".to_owned(),
        };
        assert!(now.plus(-10.0).is_young(&now, Duration::from_secs(10)));
        assert!(!now.plus(-10.5).is_young(&now, Duration::from_secs(10)));
    }

    #[test]
    fn the_clock_goes_forward() {
        let first = Moment::now();
        let second = Moment::now();
        assert!(first.age(&second).is_some());
        assert!(!first.boot_id.is_empty());
    }
}
