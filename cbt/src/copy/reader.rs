//! Reading many places of a disk quickly.
//!
//! ```text
//!  marked extents ──join what lies close──► stretches ──in turn──► lanes: read (O_DIRECT), work on it ──in order──► taker
//! ```
//!
//! A read of 64 KiB costs a disk hardly more than one of 4 KiB, and most disks answer several at once in the time of
//! one. docs/design/0004-barrier.md has the measurements. Memory is bounded: each lane is at most two groups ahead.

use super::READ_BYTES;
use super::pieces::{Piece, pieces};
use crate::disk::Disk;
use blocks::{AlignedBuffer, ByteLen, Error, ErrorKind, Extent, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Marked extents that are no further apart are read in one go; what lies between is not sent.
const GAP_BYTES_MAX: u64 = 32 << 10;
/// How many reads are under way at once.
const LANES: usize = 4;
/// How many stretches a lane reads before it hands them over.
const GROUP_MAX: usize = 32;
/// A lane calls little, and a barrier locks all of its stack into memory.
const LANE_STACK_BYTES: usize = 256 << 10;

/// A stretch of a disk that is read in one go, at most [`READ_BYTES`] long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    whole: Extent,
    /// What of it is wanted, in order.
    wanted: Vec<Extent>,
}

/// A piece of a disk that was read.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub extent: Extent,
    /// `None`: zeroes.
    pub bytes: Option<Vec<u8>>,
}

/// The extents, which are sorted and disjoint, in stretches.
pub(crate) fn stretches(extents: &[Extent]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for part in extents.iter().flat_map(|extent| extent.split(ByteLen::new(READ_BYTES))) {
        if let Some(before) = stretches.last_mut()
            && (part.start() - before.whole.end()).get() <= GAP_BYTES_MAX
            && (part.end() - before.whole.start()).get() <= READ_BYTES
            && let Some(whole) = Extent::between(before.whole.start(), part.end())
        {
            before.whole = whole;
            before.wanted.push(part);
        } else {
            stretches.push(Stretch { whole: part, wanted: vec![part] });
        }
    }
    stretches
}

impl Stretch {
    /// What was read of it, cut into data and zeroes.
    pub fn shipments(&self, bytes: &[u8]) -> Vec<Shipment> {
        let mut shipments = Vec::with_capacity(self.wanted.len());
        for part in &self.wanted {
            let from = (part.start() - self.whole.start()).as_usize();
            for piece in pieces(*part, &bytes[from..from + part.len().as_usize()]) {
                shipments.push(piece.into());
            }
        }
        shipments
    }

    /// All of it, what lies between included.
    pub fn whole(&self) -> Extent {
        self.whole
    }
}

impl Shipment {
    /// How much memory its data takes.
    pub fn bytes(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| ByteLen::of(bytes).get())
    }
}

impl From<Piece<'_>> for Shipment {
    fn from(piece: Piece<'_>) -> Shipment {
        match piece {
            Piece::Data(extent, bytes) => Shipment { extent, bytes: Some(bytes.to_vec()) },
            Piece::Zero(extent) => Shipment { extent, bytes: None },
        }
    }
}

/// The buffers of one disk's lanes.
#[derive(Debug)]
pub(crate) struct Reader {
    buffers: Vec<AlignedBuffer>,
    /// How long reading has taken since somebody last set it to zero: what a frozen disk would have to wait.
    pub read_time: Duration,
}

type Made<T> = Result<(Vec<T>, Duration)>;

impl Reader {
    pub fn new() -> Reader {
        let buffers = (0..LANES).map(|_| AlignedBuffer::new(ByteLen::new(READ_BYTES).as_usize())).collect();
        Reader { buffers, read_time: Duration::ZERO }
    }

    /// Reads every stretch, has `make` work on each as soon as it is read, on any thread, and hands what it made to
    /// `take`, in order, on this one. Ends at the first error, also of `take`. Touches no file but the disk.
    pub fn read<T: Send>(
        &mut self,
        disk: &Disk,
        stretches: &[Stretch],
        make: impl Fn(&Stretch, &[u8]) -> T + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let groups = groups(stretches);
        let lanes = LANES.min(groups.len());
        if let ([group], Some(buffer)) = (groups.as_slice(), self.buffers.first_mut()) {
            let (made, spent) = read_group(disk, group, buffer, &make)?;
            self.read_time += spent;
            return made.into_iter().try_for_each(take);
        }
        std::thread::scope(|scope| {
            let mut receivers: Vec<Receiver<Made<T>>> = Vec::new();
            for (lane, buffer) in self.buffers.iter_mut().take(lanes).enumerate() {
                let (sender, receiver) = sync_channel(1);
                let (groups, make) = (&groups, &make);
                let work = move || {
                    for group in groups.iter().skip(lane).step_by(lanes) {
                        let made = read_group(disk, group, buffer, make);
                        let failed = made.is_err();
                        // Nobody listens any more where another lane failed or the taker had enough.
                        if sender.send(made).is_err() || failed {
                            return;
                        }
                    }
                };
                let thread = Builder::new().name("reader".into()).stack_size(LANE_STACK_BYTES);
                let spawned = thread.spawn_scoped(scope, work);
                spawned.map_err(|error| Error::io("starting a thread to read with", error))?;
                receivers.push(receiver);
            }
            for receiver in receivers.iter().cycle().take(groups.len()) {
                let ended = |_| Error::new(ErrorKind::Io, "a thread that reads has ended early");
                let (made, spent) = receiver.recv().map_err(ended)??;
                self.read_time += spent / u32::try_from(lanes).unwrap_or(1);
                made.into_iter().try_for_each(&mut take)?;
            }
            Ok(())
        })
    }
}

fn read_group<T>(
    disk: &Disk,
    group: &[Stretch],
    buffer: &mut AlignedBuffer,
    make: &impl Fn(&Stretch, &[u8]) -> T,
) -> Made<T> {
    let mut spent = Duration::ZERO;
    let mut made = Vec::with_capacity(group.len());
    for stretch in group {
        let began = Instant::now();
        let bytes = disk.read(stretch.whole, buffer)?;
        spent += began.elapsed();
        made.push(make(stretch, bytes));
    }
    Ok((made, spent))
}

/// Neighbours that a lane reads before it hands them over, so that small reads are not handed over one by one.
fn groups(stretches: &[Stretch]) -> Vec<&[Stretch]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, stretch) in stretches.iter().enumerate() {
        let len = stretch.whole.len().get();
        if index > start && (bytes + len > READ_BYTES || index - start >= GROUP_MAX) {
            groups.push(&stretches[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += len;
    }
    if start < stretches.len() {
        groups.push(&stretches[start..]);
    }
    groups
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
