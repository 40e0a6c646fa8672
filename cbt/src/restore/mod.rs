//! The agent's half of a failback: a target is held open exclusively, described, written, and given back.
//!
//! ```text
//!  RestoreBegin ─► open, check ─► RestoreReady(Known | Unknown) ─► RestoreHash, RestoreRead, RestoreWrite, RestoreSync ...
//!                      │                                               │                         │
//!                 RestoreFailed                     RestoreFinish: reset tracker, release   RestoreAbort: release
//! ```

mod knowledge;
mod target;

use crate::copy::{HASH_BLOCK, READ_BYTES, Reader, Replica, Stretch, covering, hash_blocks, stretches};
use crate::link::Link;
use blocks::{BlockShift, ByteLen, DiskIndex, Error, ErrorKind, Extent, Result, is_zero};
pub(crate) use target::Target;
use wire::{AgentMessage, BlockHash, HashPurpose, HashReport, Payload, RestoreBegin, RestoreReady};

/// How much one report covers at most.
const REPORT_BYTES: u64 = 64 << 20;

/// A restore in progress: the targets are held.
#[derive(Debug)]
pub(crate) struct Restore {
    /// The server's number for it.
    pub id: u64,
    pub targets: Vec<Target>,
    reader: Reader,
}

impl Restore {
    /// Opens every target, or none. What is known of each, for the server.
    pub fn begin(order: &RestoreBegin, replicas: &[Replica]) -> Result<(Restore, RestoreReady)> {
        let mut targets = Vec::new();
        let mut disks = Vec::new();
        for wanted in &order.disks {
            let replica = replicas.iter().find(|replica| replica.index == wanted.disk);
            let target = Target::open(wanted, replica)?;
            disks.push(knowledge::of(&target, replica)?);
            targets.push(target);
        }
        Ok((
            Restore { id: order.restore, targets, reader: Reader::new() },
            RestoreReady { restore: order.restore, disks },
        ))
    }

    /// Hashes a range and reports it, in pieces of at most 64 MiB, in order.
    pub fn hash(&mut self, link: &Link, disk: DiskIndex, range: Extent) -> Result<()> {
        let target = find(&self.targets, disk)?;
        if !range.start().is_aligned(HASH_BLOCK) {
            let context = format!("{range} does not start at a block of {} bytes", HASH_BLOCK.bytes());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let range = covering(range, target.len)?.intersect(range).unwrap_or(range);
        for report in range.split(ByteLen::new(REPORT_BYTES)) {
            let hashes = hashes(target, &mut self.reader, report)?.into_iter().map(Some).collect();
            let purpose = HashPurpose::Restore { restore: self.id };
            link.send(AgentMessage::Hashes(HashReport {
                purpose,
                disk,
                range: report,
                block: HASH_BLOCK,
                hashes,
            }))?;
        }
        Ok(())
    }

    /// Reads a range and sends it back.
    pub fn read(&mut self, link: &Link, disk: DiskIndex, extent: Extent) -> Result<()> {
        if extent.len().get() > READ_BYTES {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{extent} is too much for one answer")));
        }
        let bytes = find(&self.targets, disk)?.read(extent)?;
        let payload = if is_zero(&bytes) { Payload::Zero } else { Payload::Data(bytes) };
        link.send(AgentMessage::RestoreData { restore: self.id, disk, extent, payload })
    }

    /// Writes what the server sent.
    pub fn write(&mut self, disk: DiskIndex, extent: Extent, payload: &Payload) -> Result<()> {
        let target = find(&self.targets, disk)?;
        if !extent.is_aligned(BlockShift::SECTOR) || extent.end() > target.len.end() {
            let context =
                format!("{}: {extent} is not within its {} bytes", target.device.display(), target.len);
            return Err(Error::new(ErrorKind::OutOfRange, context));
        }
        match payload {
            Payload::Data(bytes) if ByteLen::of(bytes) == extent.len() => target.write(extent, bytes),
            Payload::Data(_) => {
                Err(Error::new(ErrorKind::InvalidInput, format!("a payload that is not as long as {extent}")))
            }
            Payload::Zero => target.write_zeroes(extent),
        }
    }

    /// Puts everything on the medium.
    pub fn sync(&self) -> Result<()> {
        self.targets.iter().try_for_each(Target::sync)
    }
}

/// The hashes of a target's blocks; of a disk by several threads.
fn hashes(target: &Target, reader: &mut Reader, range: Extent) -> Result<Vec<BlockHash>> {
    let mut hashes = Vec::new();
    match target.block_device() {
        Some(disk) => {
            let make = |_: &Stretch, bytes: &[u8]| hash_blocks(bytes);
            reader.read(disk, &stretches(&[range]), make, |made| {
                hashes.extend(made);
                Ok(())
            })?;
        }
        None => {
            for part in range.split(ByteLen::new(READ_BYTES)) {
                hashes.extend(hash_blocks(&target.read(part)?));
            }
        }
    }
    Ok(hashes)
}

fn find(targets: &[Target], disk: DiskIndex) -> Result<&Target> {
    let unknown = || Error::new(ErrorKind::InvalidInput, format!("disk {disk} is not part of this restore"));
    targets.iter().find(|target| target.disk == disk).ok_or_else(unknown)
}
