//! A unit: everything of one machine in one place.

pub(crate) mod branch;
mod changes;
pub(crate) mod checkpoint;
mod consolidate;
mod extract;
pub(crate) mod files;
mod grow;
mod identity;
pub(crate) mod inventory;
pub(crate) mod lineage;
pub(crate) mod manifest;
pub(crate) mod manifest_codec;
pub(crate) mod merging;
mod moment;
pub(crate) mod opening;
pub(crate) mod pins;
mod run;
mod scrub;
mod seal;
pub(crate) mod space;
mod thin;
#[allow(clippy::module_inception, reason = "a unit is what this room is about")]
pub(crate) mod unit;

pub use consolidate::ConsolidateReport;
pub use moment::Moment;
pub use space::Usage;
pub use thin::{ThinGoal, ThinReport};
pub use unit::Unit;
