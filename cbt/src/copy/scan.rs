//! Going through a whole disk once.
//!
//! Either everything that is not zero is sent (the server has nothing), or the server is told hashes and asks for
//! what differs. Writes meanwhile are marked by the tracker and sent afterwards.

use super::courtesy::{Courtesy, WriteTimes};
use super::digests::{HASH_BLOCK, hash_blocks};
use super::reader::{Stretch, stretches};
use super::replica::{Phase, Replica};
use super::{Digests, READ_BYTES};
use crate::link::Link;
use crate::tracker::Scan;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentSet, Result, Seq};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{AgentMessage, BlockHash, HashPurpose, HashReport};

/// How much one report covers.
const REPORT_BYTES: u64 = 16 << 20;
/// How many reports may be unanswered.
const REPORTS_MAX: u32 = 4;
/// How much is sent in one step, between two looks at what the server says.
const STEP_BYTES: u64 = 16 << 20;
/// How long to wait for an instant without a write in flight.
pub(crate) const QUIET_WAIT: Duration = Duration::from_millis(500);

/// How the whole disk is gone through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// The server holds zeroes.
    Everything,
    /// The server holds something.
    Compare,
}

/// A pass over the whole disk.
#[derive(Debug)]
pub(crate) struct InitialCopy {
    manner: Manner,
    /// The tracker's; `None` on the scan rung.
    scan: Option<Scan>,
    next: ByteOffset,
    /// What alone is gone through; `None`: the whole disk.
    only: Option<ExtentSet>,
    unanswered: u32,
    /// Set once everything was sent: the number to wait for.
    last: Option<Seq>,
    courtesy: Courtesy,
}

impl Replica {
    /// Starts a pass. `Busy` where the tracker found no quiet instant: to be asked again with the file systems frozen.
    pub fn begin_initial(&mut self, manner: Manner) -> Result<()> {
        let scan = match self.tracker.begin_scan(QUIET_WAIT) {
            Ok(scan) => Some(scan),
            Err(error) if error.kind() == ErrorKind::Unsupported && self.is_scanned() => None,
            Err(error) => return Err(error),
        };
        if self.is_scanned() {
            self.digests = Digests::new(self.disk.len());
        }
        let courtesy = Courtesy::begin(self.write_times()?);
        let (next, only) = (ByteOffset::ZERO, self.only.clone());
        self.compared = (ByteLen::ZERO, ByteLen::ZERO);
        let copy = InitialCopy { manner, scan, next, only, unanswered: 0, last: None, courtesy };
        self.phase = Phase::Initial(copy);
        Ok(())
    }

    /// One step of the pass; whether there was anything to do but wait. `Busy` where the pass was voided: begin again,
    /// comparing.
    pub fn step_initial(&mut self, link: &Link) -> Result<bool> {
        let Phase::Initial(copy) = &self.phase else { return Ok(false) };
        let (manner, scan, unanswered, last) = (copy.manner, copy.scan, copy.unanswered, copy.last);
        if let Some(last) = last {
            return if link.acked(self.index) >= last { self.finish_initial(link, scan) } else { Ok(false) };
        }
        let step = if manner == Manner::Compare { REPORT_BYTES } else { STEP_BYTES };
        match copy.part(self.disk.len(), ByteLen::new(step)) {
            Some(_) if unanswered >= REPORTS_MAX || copy.courtesy.rests(Instant::now()) => Ok(false),
            Some(range) => {
                let begun = Instant::now();
                match manner {
                    Manner::Everything => self.send_range(link, range)?,
                    Manner::Compare => self.report_range(link, range)?,
                }
                if let Phase::Initial(copy) = &mut self.phase {
                    copy.next = range.end();
                    copy.unanswered += u32::from(manner == Manner::Compare);
                }
                self.make_way(begun.elapsed())?;
                Ok(true)
            }
            None if unanswered > 0 => Ok(false),
            None => {
                let tracker = Arc::clone(&self.tracker);
                let last = self.outbox()?.flush(link, &*tracker)?;
                // What was sent before this connection is either on the server's medium or differs and was sent again.
                let last = if self.outbox()?.sent_anything() { last } else { Seq(0) };
                if let Phase::Initial(copy) = &mut self.phase {
                    copy.last = Some(last);
                }
                Ok(true)
            }
        }
    }

    /// Looks how the machine's own writes fared during a step that took so long.
    fn make_way(&mut self, took: Duration) -> Result<()> {
        let now = self.write_times()?;
        if let Phase::Initial(copy) = &mut self.phase
            && let Some(each) = copy.courtesy.stepped(now, took, Instant::now())
        {
            let device = self.disk.path().display();
            tracing::info!("{device}: the machine's writes take {each:.1?} each: making way for them");
        }
        Ok(())
    }

    fn write_times(&self) -> Result<WriteTimes> {
        let counted = self.disk.io_counts()?;
        Ok(WriteTimes { writes: counted.writes, took: counted.write_time })
    }

    fn finish_initial(&mut self, link: &Link, scan: Option<Scan>) -> Result<bool> {
        self.take_acks(link)?;
        if let Some(scan) = scan {
            let base = self.outbox()?.base();
            self.tracker.finish_scan(scan, base)?;
        }
        self.phase = Phase::Tracking;
        Ok(true)
    }

    /// Everything of the range that is not zero.
    fn send_range(&mut self, link: &Link, range: Extent) -> Result<()> {
        let tracker = Arc::clone(&self.tracker);
        let hashed = self.digests.is_some();
        let mut noted = Vec::new();
        let (reader, outbox, disk) = self.reading()?;
        let make = |stretch: &Stretch, bytes: &[u8]| {
            (stretch.whole(), hashed.then(|| hash_blocks(bytes)), stretch.shipments(bytes))
        };
        let sent = reader.read(disk, &stretches(&[range]), make, |(part, hashes, shipments)| {
            noted.push((part, hashes.unwrap_or_default()));
            let data = shipments.into_iter().filter(|shipment| shipment.bytes.is_some());
            data.into_iter().try_for_each(|shipment| outbox.ship(link, &*tracker, shipment))
        });
        noted.iter().for_each(|(part, hashes)| self.note_digests(*part, hashes));
        sent
    }

    fn report_range(&mut self, link: &Link, range: Extent) -> Result<()> {
        let mut known = Vec::new();
        let make = |_: &Stretch, bytes: &[u8]| hash_blocks(bytes);
        self.reader.read(&self.disk, &stretches(&[range]), make, |hashes| {
            known.extend(hashes);
            Ok(())
        })?;
        self.note_digests(range, &known);
        self.compared.0 += range.len();
        let hashes = known.into_iter().map(Some).collect();
        let purpose = HashPurpose::Scan;
        let report = HashReport { purpose, disk: self.index, range, block: HASH_BLOCK, hashes };
        link.send(AgentMessage::Hashes(report))
    }

    fn note_digests(&mut self, part: Extent, hashes: &[BlockHash]) {
        if let Some(digests) = &mut self.digests {
            for (block, hash) in part.split(HASH_BLOCK.len()).zip(hashes) {
                digests.note(HASH_BLOCK.block_of(block.start()), hash);
            }
        }
    }

    /// The server's answer to a report: what differs is read again and sent.
    pub fn send_differing(&mut self, link: &Link, range: Extent, extents: &[Extent]) -> Result<()> {
        for extent in extents {
            if !range.contains(*extent) {
                let context = format!("the server found {extent} to differ, but was asked about {range}");
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
            self.compared.1 += extent.len();
            for part in extent.split(ByteLen::new(READ_BYTES)) {
                let bytes = self.disk.read(part, &mut self.buffer)?.to_vec();
                if self.digests.is_some() {
                    self.note_digests(part, &hash_blocks(&bytes));
                }
                self.ship(link, part, &bytes, true)?;
            }
        }
        if let Phase::Initial(copy) = &mut self.phase {
            copy.unanswered = copy.unanswered.saturating_sub(1);
        }
        match &self.tap {
            Some((tap, _)) => tap.note_differing(extents),
            None => Ok(()),
        }
    }

    /// What a pass has not reached yet, or is still to begin with.
    pub fn unscanned(&self) -> ByteLen {
        let rest = |only: &Option<ExtentSet>, from: ByteOffset| match only {
            None => self.disk.len().saturating_sub(from - ByteOffset::ZERO),
            Some(only) => {
                let left = Extent::between(from, self.disk.len().end());
                only.iter().filter_map(|(extent, ())| extent.intersect(left?)).map(Extent::len).sum()
            }
        };
        match (&self.phase, self.wanted) {
            (_, Some(_)) => rest(&self.only, ByteOffset::ZERO),
            (Phase::Initial(copy), None) => rest(&copy.only, copy.next),
            (Phase::Idle | Phase::Tracking, None) => ByteLen::ZERO,
        }
    }
}

impl InitialCopy {
    /// The next part to go through, at most `step` long.
    fn part(&self, len: ByteLen, step: ByteLen) -> Option<Extent> {
        let rest = match &self.only {
            None => Extent::between(self.next, len.end()),
            Some(only) => only
                .next_at_or_after(self.next)
                .and_then(|(extent, ())| Extent::between(extent.start().max(self.next), extent.end())),
        };
        rest?.split(step).next()
    }
}
