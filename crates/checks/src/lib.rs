//! check-apache, check-mariadb, check-master, check-sync and check-inotify: what Keepalived asks every
//! second or two.
//!
//! A check looks, judges, writes its verdict down and ends; it never changes a role. Each binary
//! is one call into this library. The judgements are pure functions (`apache::judge`,
//! `mariadb::judge_probe`, `daemon::Bearings::judge`, `repair::decide`); `run` gathers what they need,
//! holds the deadline and turns the verdict into an exit status.
//!
//! Keepalived reads only the exit status: 0 keeps the VIP, anything else puts the instance in
//! FAULT. SIGTERM keeps its default action, so a check that Keepalived ends counts as failed.
//!
//! A check itself writes to the run directory only, which is in memory; check-inotify also writes its
//! probes, since the disk of the trees is a part of its question. Logs and alerts are on a disk that
//! can hang, so a second process (`record`) writes them, and the verdict does not wait for it.

mod apache;
mod audited;
mod cli;
mod clock;
mod daemon;
mod inotify;
mod mariadb;
mod master;
mod probe;
mod record;
mod repair;
mod run;
mod store;
mod sync;
mod verdict;
mod watchdog;

use std::process::ExitCode;

/// The program `check-apache`.
pub fn check_apache() -> ExitCode {
    run::main::<apache::CheckApache>()
}

/// The program `check-mariadb`.
pub fn check_mariadb() -> ExitCode {
    run::main::<mariadb::CheckMariadb>()
}

/// The program `check-master`.
pub fn check_master() -> ExitCode {
    run::main::<master::CheckMaster>()
}

/// The program `check-sync`.
pub fn check_sync() -> ExitCode {
    run::main::<sync::CheckSync>()
}

/// The program `check-inotify`.
pub fn check_inotify() -> ExitCode {
    run::main::<inotify::CheckInotify>()
}
