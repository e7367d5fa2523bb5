//! What follows from rsync's exit status, from a failed try, and from deletions. Pure.

use std::time::Duration;

/// What to do after a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The standby has it.
    Sent,
    /// Files went away while they were read: look at them again.
    LookAgain,
    /// Some of it could not be transferred: find out which.
    Partial,
    /// More was to be deleted than allowed: a person decides.
    Hold,
    /// The standby's rsync does not know what it was asked.
    Unsupported,
    /// The connection or the other side failed: try again later.
    Retry,
}

/// Reads an exit status of rsync (rsync(1), EXIT VALUES); none is a death by a signal.
pub fn outcome(status: Option<i32>) -> Outcome {
    match status {
        Some(0) => Outcome::Sent,
        Some(24) => Outcome::LookAgain,
        Some(23) => Outcome::Partial,
        Some(25) => Outcome::Hold,
        // Syntax, or an action that this rsync was built without.
        Some(1 | 2 | 4) => Outcome::Unsupported,
        // Start of the protocol, sockets, files, diagnostics, program, signals, timeouts, ssh's 255.
        Some(_) | None => Outcome::Retry,
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Pauses between tries: doubled from 0.5 to 30 s, each between half of that and all of it, so that
/// two nodes do not try in step.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure; `random` is any number.
    pub fn next(&mut self, random: u64) -> Duration {
        let whole = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(16))
            .min(LONGEST_PAUSE);
        self.failures += 1;
        let thousandths = u32::try_from(random % 500).unwrap_or(0);
        whole / 2 + whole * thousandths / 1000
    }

    /// A try has succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// When deletions are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletionLimit {
    /// Files.
    pub count: u64,
    /// Per cent of the tree's files.
    pub percent: u64,
    /// Files that nobody saw go. As high as `count`, this limit is off.
    pub unseen: u64,
}

impl DeletionLimit {
    /// Whether so many deletions within a short time need a person's word; `left` files remain.
    pub fn exceeded(self, deletions: u64, left: u64) -> bool {
        deletions > self.count && deletions * 100 > (left + deletions) * self.percent
    }

    /// The same for files that went while nobody watched; `whole`: a directory with what it held is among them.
    pub fn exceeded_unseen(self, files: u64, whole: bool) -> bool {
        self.unseen < self.count && (whole || files >= self.unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_the_manual() {
        for (status, expected) in [
            (Some(0), Outcome::Sent),
            (Some(24), Outcome::LookAgain),
            (Some(23), Outcome::Partial),
            (Some(25), Outcome::Hold),
            (Some(2), Outcome::Unsupported),
            (Some(5), Outcome::Retry),
            (Some(11), Outcome::Retry),
            (Some(12), Outcome::Retry),
            (Some(30), Outcome::Retry),
            (Some(255), Outcome::Retry),
            (None, Outcome::Retry),
        ] {
            assert_eq!(outcome(status), expected, "{status:?}");
        }
    }

    #[test]
    fn pauses_grow_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..20).map(|_| backoff.next(499)).collect();
        assert!(pauses[0] < FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(pauses[19] <= LONGEST_PAUSE && pauses[19] >= LONGEST_PAUSE / 2);
        // A minute of outage costs few tries.
        let mut spent = Duration::ZERO;
        let mut cautious = Backoff::default();
        let tries = (0..1000)
            .take_while(|_| {
                spent += cautious.next(0);
                spent < Duration::from_secs(60)
            })
            .count();
        assert!(tries <= 10, "{tries}");
        backoff.reset();
        assert!(backoff.next(0) < FIRST_PAUSE);
    }

    #[test]
    fn only_many_and_most_are_held() {
        let limit = DeletionLimit {
            count: 1000,
            percent: 50,
            unseen: 20,
        };
        assert!(!limit.exceeded_unseen(19, false));
        assert!(limit.exceeded_unseen(20, false));
        assert!(limit.exceeded_unseen(1, true));
        let off = DeletionLimit {
            unseen: 1000,
            ..limit
        };
        assert!(!off.exceeded_unseen(5000, true));
        assert!(!limit.exceeded(1000, 0));
        assert!(limit.exceeded(1001, 0));
        assert!(limit.exceeded(10_001, 9_999));
        assert!(!limit.exceeded(10_000, 10_000));
        assert!(!limit.exceeded(10_000, 190_000));
    }
}
