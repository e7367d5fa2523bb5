//! Who may write: pure decisions about roles.
//!
//! Nothing here does I/O, reads a clock or logs. An [`Observation`] of every node goes in,
//! a [`Decision`] or a [`Plan`] comes out. docs/failover.md tells the same story in words.

pub mod alone;
mod decide;
mod fitness;
mod gtid;
mod intent;
mod observation;
mod plan;
mod recovery;

pub use decide::{Decision, Policy, decide};
pub use fitness::{Fitness, fitness, is_writable_primary, peer_fitness};
pub use gtid::{Gtid, GtidError, GtidSet};
pub use intent::{
    Intent, Promotion, Rejoin, Rules, forbidden_by_own_data, may_reopen, promotion, refusal, rejoin,
};
pub use observation::{
    Channel, Contact, Database, Epoch, IoThread, Known, LastPrimary, NodeView, Observation,
    PROOF_MARGIN, PeerView, Proof, SemiSync, Server,
};
pub use plan::{Limits, Plan, PromotionKind, Refusal, Step, plan_promotion};
pub use recovery::{CrashRecovery, crash_recovery};
