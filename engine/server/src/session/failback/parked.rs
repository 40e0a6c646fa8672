//! A failback that is in step and rests until the next call goes on with it.
//!
//! The agent still holds the targets, and every disk's watch still notes what the guest writes: only that is left to
//! send. Nothing of it is durable. Where the connection ends, the targets differ, the session is stopped or the server is
//! restarted, it is dropped, and the next call begins anew with what the agent knows then.

use crate::session::failback::disk_work::DiskWork;
use crate::session::failback::line::{Line, RestingLine};
use blocks::{ByteLen, DiskIndex};

/// What is kept between two calls. Dropping it has the agent let go of the targets.
pub(crate) struct Parked {
    line: RestingLine,
    works: Vec<DiskWork>,
    devices: Vec<(DiskIndex, String)>,
}

impl Parked {
    /// Rests. Everything that was sent must have been synced.
    pub fn new(line: Line, works: Vec<DiskWork>, devices: &[(DiskIndex, String)]) -> Parked {
        Parked { line: line.rest(), works, devices: sorted(devices) }
    }

    /// Whether this is a failback onto these devices. Does not say whether the agent is still there.
    pub fn is_onto(&self, devices: &[(DiskIndex, String)]) -> bool {
        self.devices == sorted(devices)
    }

    /// Whether the agent still holds the targets, as far as is known.
    pub fn is_alive(&mut self) -> bool {
        self.line.is_alive()
    }

    /// What was written to the session since, in whole blocks.
    pub fn written_since(&self) -> ByteLen {
        self.works.iter().fold(ByteLen::ZERO, |sum, work| sum + work.watch.bytes())
    }

    /// The conversation and the disks, to go on with.
    pub fn into_parts(self) -> (RestingLine, Vec<DiskWork>) {
        (self.line, self.works)
    }
}

fn sorted(devices: &[(DiskIndex, String)]) -> Vec<(DiskIndex, String)> {
    let mut sorted = devices.to_vec();
    sorted.sort();
    sorted
}
