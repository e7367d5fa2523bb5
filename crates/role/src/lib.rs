//! Who may write: pure decisions about roles.
//!
//! Nothing here does I/O, reads a clock or logs. An [`Observation`] of every node goes in,
//! a [`Decision`] or a [`Plan`] comes out. docs/failover.md tells the same story in words.

mod decide;
mod fitness;
mod gtid;
mod observation;
mod plan;
mod recovery;

pub use decide::{Decision, Policy, decide};
pub use fitness::{Fitness, fitness, is_writable_primary, peer_fitness};
pub use gtid::{Gtid, GtidError, GtidSet};
pub use observation::{
    Channel, Contact, Database, Epoch, IoThread, LastPrimary, NodeView, Observation, PeerView,
    SemiSync, Server,
};
pub use plan::{Limits, Plan, PromotionKind, Refusal, Step, plan_promotion};
pub use recovery::{CrashRecovery, crash_recovery};
