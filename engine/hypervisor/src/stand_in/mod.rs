//! Running a stand-in: [`Hypervisor`] is what can be done with one, [`Qemu`] does it, [`FakeHypervisor`] plays it.
//!
//! A stand-in that runs is known by its folder ([`Places`]) and its identity, and by nothing that a server holds in
//! memory: whoever comes back after a restart finds it there again.

mod fake;
mod firmware;
mod host;
mod hypervisor;
mod places;
mod probe;
mod process;
mod qemu;
mod trial;

pub use fake::FakeHypervisor;
pub use host::{HostRoom, fit};
pub use hypervisor::{GuestState, Hypervisor, Kernel, StandIn};
pub use places::Places;
pub use probe::{Probe, ProbePlace};
pub use qemu::Qemu;
