//! This host, as its kernel, systemd and Keepalived tell it: units, processes, addresses, the boot.
//!
//! A question has three answers: yes, no, and not known ([`NotKnown`]). What could not be asked is no "no".
//!
//! Everything but `act` only reads, apart from [`ask`], by which the repair of a check restarts its service and
//! an alert starts its delivery: neither changes a role.

#[cfg(feature = "act")]
pub mod act;
mod address;
mod boot;
mod database;
pub mod logind;
mod not_known;
mod stat;
mod unit;
mod vrrp;

pub use address::vip_present;
pub use boot::{boot_id, uptime_seconds};
pub use database::{Process, can_acknowledge, mariadb_process};
pub use not_known::NotKnown;
pub use stat::{find, started};
pub use unit::{UnitState, Verb, ask, shutting_down, unit};
pub use vrrp::{Vrrp, VrrpState, keepalived_running, vrrp};
