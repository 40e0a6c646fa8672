//! Comparing a live machine with its stand-in.

use super::api::{Progress, Reply, VerifyDisk, VerifyInfo};
use super::checkpoints::{connected, wait_until_sealed};
use super::job::Job;
use super::machines;
use crate::agent::{Comparison, RequestEvent};
use crate::services::Services;
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result};
use std::sync::Arc;
use std::time::Duration;
use store::Unit;

/// How long hashes may take to come.
const HASH_TIMEOUT: Duration = Duration::from_secs(120);
/// More ranges than this are not listed one by one.
const RANGES_MAX: usize = 1000;

/// What is known of a disk so far.
#[derive(Default)]
struct Tally {
    equal: ByteLen,
    skipped: ByteLen,
    differing: ExtentSet,
    done: bool,
}

pub(super) async fn verify(services: Arc<Services>, machine: String, job: Job) -> Result<Reply> {
    let unit = machines::find(&services.store, &machine)?;
    let agent = connected(&services, &unit)?;
    let mut events = agent.take_checkpoint("", true).await?;
    let checkpoint = wait_until_sealed(&mut events, &agent, &job).await?;
    let mut disks: Vec<Tally> = unit.disks().iter().map(|_| Tally::default()).collect();
    let total: ByteLen = unit.disks().iter().map(|disk| disk.len).sum();
    while disks.iter().any(|disk| !disk.done) {
        let event = tokio::select! {
            event = tokio::time::timeout(HASH_TIMEOUT, events.recv()) => event,
            called_off = job.called_off() => return Err(called_off),
        };
        let lost = |what: &str| Error::new(ErrorKind::Cancelled, format!("'{}' {what}", unit.name()));
        match event {
            Err(_) => return Err(lost("sent no hashes in time")),
            Ok(None) => return Err(lost("was lost while it was compared")),
            Ok(Some(event)) => count(&mut disks, event, &unit)?,
        }
        let done =
            disks.iter().map(|disk| disk.equal + disk.skipped + disk.differing.covered()).sum::<ByteLen>();
        job.report(Progress { step: "comparing".into(), done: done.get(), total: total.get() });
    }
    let disks = (0..).zip(disks).map(|(index, tally)| tally.into_disk(index)).collect();
    Ok(Reply::Verified(VerifyInfo { machine: unit.name(), checkpoint: checkpoint.0, disks }))
}

fn count(disks: &mut [Tally], event: RequestEvent, unit: &Unit) -> Result<()> {
    let disk = match &event {
        RequestEvent::Compared(Comparison { disk, .. }) | RequestEvent::DiskDone(disk) => *disk,
        RequestEvent::Failed(reason) => {
            let context = format!("'{}' could not be compared: {reason}", unit.name());
            return Err(Error::new(ErrorKind::Cancelled, context));
        }
        RequestEvent::Sealed(_) => return Ok(()),
    };
    let tally = tally_of(disks, disk)?;
    match event {
        RequestEvent::Compared(comparison) => {
            tally.equal += comparison.equal;
            tally.skipped += comparison.skipped;
            comparison.differing.into_iter().for_each(|extent| tally.differing.insert(extent, ()));
        }
        _ => tally.done = true,
    }
    Ok(())
}

fn tally_of(disks: &mut [Tally], disk: DiskIndex) -> Result<&mut Tally> {
    disks.get_mut(usize::from(disk.0)).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("hashes of disk {disk}, which is not registered"))
    })
}

impl Tally {
    fn into_disk(self, index: u16) -> VerifyDisk {
        let pair = |extent: Extent| (extent.start().get(), extent.len().get());
        VerifyDisk {
            index,
            equal_bytes: self.equal.get(),
            skipped_bytes: self.skipped.get(),
            differing: self.differing.iter().map(|(extent, ())| pair(extent)).take(RANGES_MAX).collect(),
        }
    }
}
