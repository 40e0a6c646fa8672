//! Bringing a machine's disks to a session's state by sending only what differs.
//!
//! ```text
//!   begin -> plan (known: extents; unknown: hashes) -> keep what was never sent -> rounds while the guest runs
//!         -> [without cutover: in step, parked; the next call goes on with rounds] -> withdraw exports -> last round -> verify -> adopt -> finish
//! ```
//!
//! Until the branch is adopted every failure leads back to a session that serves; after that only forwards.
//! docs/design/0007-sessions.md has the table of steps and what a crash at each of them comes to.

mod adopt;
mod disk_work;
mod line;
mod parked;
mod plan;
mod run;
mod unsent;
mod verify;

pub(crate) use adopt::adoption;
pub(crate) use parked::Parked;
pub(crate) use run::run;

use blocks::{DiskIndex, MachineId};

/// What is wanted of a failback; see [`crate::control::api::Request::Failback`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailbackOptions {
    /// The machine whose agent is at the other end of the link.
    pub machine: MachineId,
    /// Onto other devices than the protected ones.
    pub devices: Vec<(DiskIndex, String)>,
    /// The serial number of each disk that is written; empty where it is not known.
    pub serials: Vec<String>,
    /// Stop the exports, send the rest, verify, give the machine charge again.
    pub cutover: bool,
    /// Do not keep what the machine wrote but never sent.
    pub discard_unsent: bool,
}

impl FailbackOptions {
    /// A failback onto the protected disks of `machine`, without cutover.
    pub fn onto(machine: MachineId) -> FailbackOptions {
        FailbackOptions {
            machine,
            devices: Vec::new(),
            serials: Vec::new(),
            cutover: false,
            discard_unsent: false,
        }
    }
}

#[cfg(test)]
#[path = "../failback_tests.rs"]
mod tests;
