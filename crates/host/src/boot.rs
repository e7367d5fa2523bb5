//! This boot of the machine.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Names this boot of the machine.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// Seconds since boot; unlike the wall clock it never jumps.
pub fn uptime_seconds() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
    .as_secs_f64()
}
