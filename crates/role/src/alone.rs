//! When may a primary acknowledge commits that no replica has?
//!
//! On a primary with semi-synchronous replication ON every commit waits for the standby, for as long as
//! MariaDB's own time-out says: minutes, as a last resort. Only the resident program switches it off. These
//! sentences hold, and the model checks them:
//!
//! 1. While the *pledge* stands, every commit waits for a replica. A pledge is given only after a row was
//!    written that a replica acknowledged: everything before it has arrived, too.
//! 2. A standby that asked and was shown the pledge has a [`crate::Proof`]. It opens by itself only while that
//!    is younger than the window W, counted from the question.
//! 3. Nothing is acknowledged alone before W has passed since the pledge was taken back, unless the standby
//!    said itself that it gives its proof up, and wrote that down first.
//!
//! So a standby never opens by itself after the primary has acknowledged anything alone, whatever was cut, in
//! whatever direction, and however late an answer was. The pledge is a lock of the program's own session, so
//! it falls with the program; semi-synchronous replication does not, so a dead program acknowledges nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A commit that waits for longer is trouble: the pledge is taken back.
pub const TROUBLE: Duration = Duration::from_millis(150);

/// What the resident program sees of its own database, and of the standby where it had to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Semi-synchronous replication is ON.
    pub bound: bool,
    /// This program's pledge stands.
    pub pledged: bool,
    /// Since when this program has seen the database open without a pledge of its own.
    pub unpledged_for: Duration,
    /// Semi-synchronous replicas that are connected.
    pub replicas: u32,
    /// The longest time that a commit has waited for a replica; none when none waits.
    pub waiting: Option<Duration>,
    /// What the standby said; asked only when there is trouble.
    pub standby: Standby,
    /// The VIP is here by right; none when that could not be told.
    pub entitled: Option<bool>,
    /// A higher epoch was seen anywhere: this primary is old.
    pub outdated: bool,
    /// Whether a witness answers; none where none is named.
    pub witness: Option<bool>,
}

/// What the standby said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standby {
    /// Not asked.
    NotAsked,
    /// It does not answer: nothing is known.
    Silent,
    /// It answers, and may rely on this primary still.
    Relies,
    /// It has written down that it may lack writes of this primary: it does not open by itself.
    Renounced,
    /// It has the VIP, is open, or changes its role.
    TakesOver,
}

/// What the resident program does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// Semi-synchronous replication ON, then a row that the standby acknowledges, then the pledge.
    Pledge,
    /// The pledge is taken back; what waits goes on waiting.
    TakeBack,
    /// The standby is asked how it is, and to give its proof up.
    Ask,
    /// From now on commits are acknowledged with one copy.
    GoAlone,
}

impl Primary {
    fn trouble(&self) -> bool {
        self.replicas == 0 || self.waiting.is_some_and(|waiting| waiting > TROUBLE)
    }

    /// The next step of a primary whose window is W.
    pub fn next(&self, window: Duration) -> Next {
        if !self.trouble() {
            return if self.bound && self.pledged {
                Next::Wait
            } else {
                Next::Pledge
            };
        }
        if !self.bound {
            // It acknowledges alone already, and no replica is there to wait for.
            return if self.pledged {
                Next::TakeBack
            } else {
                Next::Wait
            };
        }
        if self.pledged {
            return Next::TakeBack;
        }
        if self.outdated || self.entitled != Some(true) {
            return Next::Wait;
        }
        // A replica that is connected and slow is waited for as long as one that is silent.
        let gone = self.replicas == 0;
        let waited = self.unpledged_for >= window
            && (gone || self.waiting.is_some_and(|waiting| waiting >= window));
        match self.standby {
            Standby::NotAsked if gone || waited => Next::Ask,
            Standby::Renounced if gone || waited => Next::GoAlone,
            Standby::Silent if self.witness == Some(false) => Next::Wait,
            Standby::Silent | Standby::Relies if waited => Next::GoAlone,
            Standby::NotAsked
            | Standby::Renounced
            | Standby::Silent
            | Standby::Relies
            | Standby::TakesOver => Next::Wait,
        }
    }
}

/// The window W that fits VRRP: the standby must be able to notice a dead primary, look, and open, while its
/// proof holds.
pub fn window(
    advert_interval: Duration,
    lowest_priority: u8,
    connect_timeout: Duration,
) -> Duration {
    // Of the priority only a coarse step: each node may have its own in a file of its own, and the windows of two
    // nodes must be the same.
    let skew = if lowest_priority >= NEAR_THE_TOP {
        advert_interval * (256 - u32::from(NEAR_THE_TOP)) / 256
    } else {
        advert_interval
    };
    // The hook, the look on both networks with a second question to who is silent, a peer whose kernel answers
    // and nothing else, the time between two questions for the proof, and the margins.
    let look = connect_timeout * 2 + FROZEN_PEER + QUESTIONS;
    let exact = advert_interval * 3 + skew + look + SLACK + advert_interval / 4;
    // In tenths of a second, so that a person can remember it.
    Duration::from_millis(u64::try_from(exact.as_millis().div_ceil(100) * 100).unwrap_or(u64::MAX))
}

/// How long a standby that says nothing may rely on a pledge that is gone. `before` is the time since a program with
/// another window has ended, and that window: what it showed lasts for as long.
pub fn reliance(window: Duration, before: Option<(Duration, Duration)>) -> Duration {
    match before {
        Some((ended_for, before)) if ended_for < before => window.max(before),
        _ => window,
    }
}

/// From this priority on the skew is short.
const NEAR_THE_TOP: u8 = 200;
/// How long a take-over waits for a host whose kernel answers and whose programs do not, while it has a proof.
pub const FROZEN_PEER: Duration = Duration::from_millis(300);
/// The longest time between two questions for the proof.
pub const QUESTIONS: Duration = Duration::from_millis(200);
/// A loaded machine: so much, and a quarter of an advert interval.
const SLACK: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    const W: Duration = Duration::from_secs(4);
    const SHORT: Duration = Duration::from_millis(3999);

    fn calm() -> Primary {
        Primary {
            bound: true,
            pledged: true,
            unpledged_for: Duration::ZERO,
            replicas: 1,
            waiting: None,
            standby: Standby::NotAsked,
            entitled: Some(true),
            outdated: false,
            witness: None,
        }
    }

    #[test]
    fn a_pledge_follows_the_replica() {
        assert_eq!(calm().next(W), Next::Wait);
        for (bound, pledged) in [(false, false), (true, false), (false, true)] {
            let seen = Primary {
                bound,
                pledged,
                ..calm()
            };
            assert_eq!(seen.next(W), Next::Pledge, "{bound} {pledged}");
        }
        let gone = Primary {
            replicas: 0,
            ..calm()
        };
        assert_eq!(gone.next(W), Next::TakeBack);
        let slow = |ms| Primary {
            waiting: Some(Duration::from_millis(ms)),
            ..calm()
        };
        assert_eq!(slow(150).next(W), Next::Wait);
        assert_eq!(slow(151).next(W), Next::TakeBack);
    }

    #[test]
    fn a_shorter_window_does_not_count_while_proofs_of_the_longer_one_hold() {
        let longer = Duration::from_secs(9);
        assert_eq!(reliance(W, None), W);
        assert_eq!(reliance(W, Some((Duration::ZERO, longer))), longer);
        assert_eq!(reliance(W, Some((Duration::from_secs(8), longer))), longer);
        assert_eq!(reliance(W, Some((longer, longer))), W);
        assert_eq!(reliance(longer, Some((Duration::ZERO, W))), longer);
    }

    #[test]
    fn nothing_is_acknowledged_alone_without_the_window_or_the_standbys_word() {
        let trouble = Primary {
            pledged: false,
            replicas: 0,
            ..calm()
        };
        assert_eq!(trouble.next(W), Next::Ask);
        let (short, long) = (SHORT, W);
        for (standby, unpledged_for, expected) in [
            (Standby::Renounced, Duration::ZERO, Next::GoAlone),
            (Standby::Silent, short, Next::Wait),
            (Standby::Silent, long, Next::GoAlone),
            (Standby::Relies, short, Next::Wait),
            (Standby::Relies, long, Next::GoAlone),
            (Standby::TakesOver, long, Next::Wait),
        ] {
            let seen = Primary {
                unpledged_for,
                standby,
                ..trouble.clone()
            };
            assert_eq!(seen.next(W), expected, "{standby:?} {unpledged_for:?}");
            for never in [
                Primary {
                    outdated: true,
                    ..seen.clone()
                },
                Primary {
                    entitled: Some(false),
                    ..seen.clone()
                },
                Primary {
                    entitled: None,
                    ..seen.clone()
                },
                Primary {
                    pledged: true,
                    ..seen.clone()
                },
            ] {
                assert_ne!(never.next(W), Next::GoAlone, "{never:?}");
            }
        }
        // Connected and slow: as long as one that is silent.
        for (waiting, unpledged_for, expected) in [
            (short, long, Next::Wait),
            (long, short, Next::Wait),
            (long, long, Next::Ask),
        ] {
            let slow = Primary {
                unpledged_for,
                replicas: 1,
                waiting: Some(waiting),
                ..trouble.clone()
            };
            assert_eq!(slow.next(W), expected, "{waiting:?} {unpledged_for:?}");
        }
        // Silent on every network, and no witness either: this one is cut off.
        let cut_off = Primary {
            standby: Standby::Silent,
            unpledged_for: long,
            witness: Some(false),
            ..trouble
        };
        assert_eq!(cut_off.next(W), Next::Wait);
    }

    #[test]
    fn the_window_covers_what_a_failover_takes() {
        let connect = Duration::from_millis(150);
        let at = |ms, priority| window(Duration::from_millis(ms), priority, connect).as_millis();
        assert_eq!(at(1000, 220), 4500);
        assert_eq!(at(200, 220), 1700);
        // Two nodes with files of their own.
        assert_eq!(at(1000, 230), at(1000, 220));
        assert_eq!(at(1000, 150), at(1000, 100));
    }
}
