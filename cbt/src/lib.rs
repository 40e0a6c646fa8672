//! The agent's side of a protected machine: knowing what changed on its disks and copying it.

mod agent;
mod barrier;
mod copy;
mod disk;
mod doctor;
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod inventory;
mod link;
mod mounts;
mod reboot;
mod restore;
mod session;
mod tap;
mod tracker;
mod watchdog;

pub use agent::{
    Agent, AgentConfig, DEFAULT_STATE_DIR, DiskConfig, SendMode, Stop, StopHandle, share_one_heap, stop_pair,
};
pub use barrier::BarrierSettings;
pub use disk::{DeviceNumber, Disk, IoCounts};
pub use doctor::{Finding, Verdict, examine};
pub use inventory::collect as collect_inventory;
pub use reboot::{Carried, at_boot, at_shutdown};
pub use tap::{Shown, TapFront, TapSettings, never_wait_for_own_writes};
pub use tracker::{
    Agreement, Base, Census, Scan, Taking, Tracker, TrackerKind, TrackerWish, Trust, best as best_tracker,
    detach as detach_tracker,
};
#[cfg(debug_assertions)]
#[doc(hidden)]
pub use tracker::{Mutant, open_mutant};
pub use watchdog::watchdog_main;
