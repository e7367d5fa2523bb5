//! Waits until Keepalived has moved the VIP, as its track files ask.

use std::thread;
use std::time::{Duration, Instant};

use role::Known;
use settings::Settings;

/// Waits until the VIP is here, or is not; whether it is so within the time.
pub fn await_presence(settings: &Settings, here: bool, limit: Duration) -> bool {
    let start = Instant::now();
    while observe::vip_present(settings) != Known::from(here) {
        if start.elapsed() > limit {
            return false;
        }
        // The interval between two looks at the interface.
        thread::sleep(Duration::from_millis(10));
    }
    true
}
