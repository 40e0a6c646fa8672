//! Coming close enough that the rest can be read within the budget.

use super::BarrierSettings;
use super::freeze::sync_all;
use crate::copy::Replica;
use crate::link::Link;
use crate::mounts::superblocks;
use blocks::{ByteLen, Result};
use std::time::Duration;

/// How many passes there are before it is said that the machine writes faster than it can be copied.
const ROUNDS_MAX: u32 = 12;

/// Copies and writes out until the last pass fits half the budget. The reason where it never does.
pub(super) fn warm(
    replicas: &mut [Replica],
    link: &Link,
    settings: &BarrierSettings,
) -> Result<Option<String>> {
    let numbers: Vec<_> = replicas.iter().map(|replica| replica.disk.number()).collect();
    let half = settings.budget / 2;
    let mut last = (ByteLen::ZERO, Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS_MAX {
        link.check()?;
        let synced = sync_all(&superblocks(&numbers));
        let (mut copied, mut read) = (ByteLen::ZERO, Duration::ZERO);
        for replica in replicas.iter_mut() {
            replica.read_time = Duration::ZERO;
            copied += pass(replica, link)?;
            read += replica.read_time;
            if replica.is_scanned() && replica.read_time > settings.budget.mul_f64(0.7) {
                return Ok(Some(format!(
                    "{}: without a tracker the whole disk is read while frozen, which takes {:?} of {:?}",
                    replica.disk.path().display(),
                    replica.read_time,
                    settings.budget
                )));
            }
        }
        let all_scanned = replicas.iter().all(Replica::is_scanned);
        if copied.get() <= settings.held_bytes_max / 2 && (read <= half || all_scanned) && synced <= half {
            return Ok(None);
        }
        last = (copied, read, synced);
    }
    let (copied, read, synced) = last;
    Ok(Some(format!(
        "the machine writes faster than it can be copied: the last of {ROUNDS_MAX} passes found {copied} bytes, took \
         {read:?} to read and {synced:?} to write out, against half a budget of {half:?}"
    )))
}

/// What is marked now is copied; what is marked meanwhile is for the next pass.
fn pass(replica: &mut Replica, link: &Link) -> Result<ByteLen> {
    if replica.is_scanned() {
        return replica.sweep(link);
    }
    replica.take_acks(link)?;
    let marked = replica.tracker.backlog()?;
    let mut copied = ByteLen::ZERO;
    while copied < marked {
        link.check()?;
        match replica.copy_marked(link)? {
            ByteLen::ZERO => break,
            bytes => copied += bytes,
        }
    }
    Ok(copied)
}
