//! The machines' side: who may connect, what they send, and whether they live.
//!
//! A connection's way: `greeting` (who is it, may it, from where on) → `conversation` (the task that owns it) →
//! `ingest` (threads: append, commit, compare).

mod agents;
mod commit;
mod compare;
mod comparers;
mod context;
mod conversation;
mod gaps;
mod greeting;
mod handle;
mod homecoming;
mod ingest;
mod liveness;
mod machine;
mod registration;
mod requests;
mod restore_link;
mod source;
#[cfg(feature = "simulation")]
mod stepped;

pub use agents::{Agents, Charge};
pub(crate) use context::{AgentContext, Registry};
pub(crate) use conversation::blocking;
pub(crate) use gaps::{SILENT, begin as begin_gap};
pub(crate) use greeting::serve;
pub use handle::AgentHandle;
pub(crate) use homecoming::Homecoming;
pub(crate) use liveness::Deadlines;
pub(crate) use machine::Machine;
pub(crate) use registration::refusal;
pub(crate) use requests::{Comparison, RequestEvent};
pub use restore_link::{RESTORE_QUEUE, RestoreLink};
#[cfg(feature = "simulation")]
pub(crate) use {
    ingest::Work,
    stepped::{SteppedAgent, SteppedIngest},
};
