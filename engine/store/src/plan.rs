//! Resolve, then do: where the bytes of a range live is looked up first; only executing the plan touches data.

use crate::journal::location::{Location, LogLocation};
use crate::journal::pack::unpack;
use crate::stored_file::StoredFile;
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, Extent, ExtentStatus, FileRange, RequestClass, Result,
    StorageFile, Volume,
};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// Where the bytes of an extent live.
#[derive(Clone, Debug)]
pub(crate) enum PlanSource {
    /// Nowhere: they are zero, for that reason.
    Empty(Allocation),
    /// In a log.
    Log(Arc<StoredFile>, LogLocation),
    /// In the image.
    Image,
}

/// One piece of a plan.
#[derive(Clone, Debug)]
pub(crate) struct PlanPiece {
    pub extent: Extent,
    pub source: PlanSource,
}

/// A guest's read mostly has one piece, for which nothing is allocated.
pub(crate) type PlanPieces = SmallVec<[PlanPiece; 2]>;

/// Pieces that tile a range, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pieces: PlanPieces,
}

/// The payload that was read and checked last, where only a part of it was wanted.
#[derive(Default)]
struct LastPayload {
    of: Option<(u64, ByteOffset)>,
    bytes: Vec<u8>,
}

impl PlanPiece {
    /// What a location in that log comes to.
    pub(crate) fn at(extent: Extent, location: Location, log: &Arc<StoredFile>) -> PlanPiece {
        let source = match location {
            Location::Empty(_) => PlanSource::Empty(location.allocation()),
            Location::Log(location) => PlanSource::Log(Arc::clone(log), location),
        };
        PlanPiece { extent, source }
    }
}

impl Plan {
    /// A plan of pieces that are disjoint and together have no gap, in any order.
    pub(crate) fn new(mut pieces: PlanPieces) -> Plan {
        pieces.sort_unstable_by_key(|piece| piece.extent.start());
        Plan { pieces }
    }

    /// A plan of one piece.
    pub(crate) fn of(piece: PlanPiece) -> Plan {
        Plan { pieces: smallvec![piece] }
    }

    /// Reads what was planned into `buffer`, whose first byte is `start`. Checks every payload it uses; `Corrupt` names
    /// the file, the offset and the extent.
    pub(crate) fn read(
        &self,
        start: ByteOffset,
        buffer: &mut [u8],
        image: &dyn Volume,
        class: RequestClass,
    ) -> Result<()> {
        let mut last = LastPayload::default();
        for piece in &self.pieces {
            let from = (piece.extent.start() - start).as_usize();
            let target = &mut buffer[from..from + piece.extent.len().as_usize()];
            match &piece.source {
                PlanSource::Empty(_) => target.fill(0),
                PlanSource::Image => read_image(image, piece.extent.start(), target, class)?,
                PlanSource::Log(log, location) => {
                    read_payload(log, location, piece.extent, target, &mut last)?
                }
            }
        }
        Ok(())
    }

    /// The same, and where the bytes lie in a file if all are the image's and it knows ([`Volume::read_located`]).
    pub(crate) fn read_located(
        &self,
        start: ByteOffset,
        buffer: &mut [u8],
        image: &dyn Volume,
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        match self.pieces.as_slice() {
            [PlanPiece { extent, source: PlanSource::Image }] if extent.end() <= image.len().end() => {
                image.read_located(start, buffer, class)
            }
            _ => self.read(start, buffer, image, class).map(|()| None),
        }
    }

    /// The pieces, in order.
    pub(crate) fn pieces(&self) -> &[PlanPiece] {
        &self.pieces
    }

    /// What the range holds, without reading it.
    pub(crate) fn status(&self, image: &dyn Volume) -> Result<Vec<ExtentStatus>> {
        let mut runs: Vec<ExtentStatus> = Vec::new();
        for piece in &self.pieces {
            match &piece.source {
                PlanSource::Empty(allocation) => push_run(&mut runs, piece.extent, *allocation)?,
                PlanSource::Log(..) => push_run(&mut runs, piece.extent, Allocation::Data)?,
                PlanSource::Image => {
                    let end = image.len().end().clamp(piece.extent.start(), piece.extent.end());
                    let mut rest = Extent::between(piece.extent.start(), end);
                    while let Some(asked) = rest {
                        let found = image.status(asked)?;
                        let Some(end) = found.last().map(|run| run.extent.end()) else {
                            return Err(Error::corrupt(format!("the image says nothing about {asked}")));
                        };
                        for run in found {
                            push_run(&mut runs, run.extent, run.allocation)?;
                        }
                        rest = Extent::between(end, asked.end());
                    }
                    if let Some(beyond) = Extent::between(end, piece.extent.end()) {
                        push_run(&mut runs, beyond, Allocation::Hole)?;
                    }
                }
            }
        }
        Ok(runs)
    }
}

/// Reads the image, which may be shorter than the disk is by now: what lies behind its end was never written.
fn read_image(image: &dyn Volume, start: ByteOffset, target: &mut [u8], class: RequestClass) -> Result<()> {
    let end = image.len().end();
    let within = if start < end { (end - start).get().min(target.len() as u64) } else { 0 };
    let (stored, beyond) = target.split_at_mut(ByteLen::new(within).as_usize());
    beyond.fill(0);
    if stored.is_empty() { Ok(()) } else { image.read_at(start, stored, class) }
}

/// How many runs a status is content with.
const STATUS_RUNS: usize = 4096;
/// How far a status looks at first.
const STATUS_WINDOW_BYTES: u64 = 1 << 30;

/// The runs of `extent`, asked piece by piece, so that a disk of many extents does not become one long list. Stops
/// early where there are many runs.
pub(crate) fn status_in_windows(
    extent: Extent,
    status: impl Fn(Extent) -> Result<Vec<ExtentStatus>>,
) -> Result<Vec<ExtentStatus>> {
    let mut runs = Vec::new();
    let mut window = ByteLen::new(STATUS_WINDOW_BYTES);
    let mut at = extent.start();
    while at < extent.end() && runs.len() < STATUS_RUNS {
        let end = at.checked_add(window).map_or(extent.end(), |end| end.min(extent.end()));
        for run in Extent::between(at, end).map_or(Ok(Vec::new()), &status)? {
            push_run(&mut runs, run.extent, run.allocation)?;
        }
        at = end;
        window = ByteLen::new(window.get().saturating_mul(2));
    }
    Ok(runs)
}

fn push_run(runs: &mut Vec<ExtentStatus>, extent: Extent, allocation: Allocation) -> Result<()> {
    match runs.last_mut() {
        Some(run) if run.allocation == allocation => {
            run.extent = Extent::new(run.extent.start(), run.extent.len() + extent.len())?;
        }
        _ => runs.push(ExtentStatus { extent, allocation }),
    }
    Ok(())
}

fn read_payload(
    log: &StoredFile,
    location: &LogLocation,
    extent: Extent,
    target: &mut [u8],
    last: &mut LastPayload,
) -> Result<()> {
    if location.skip == 0 && location.payload_len() == extent.len() {
        return load(log, location, extent, target);
    }
    if last.of != Some((log.id(), location.payload)) {
        last.of = None;
        last.bytes.resize(location.payload_len().as_usize(), 0);
        load(log, location, extent, &mut last.bytes)?;
        last.of = Some((log.id(), location.payload));
    }
    let skip = location.skip_len().as_usize();
    target.copy_from_slice(&last.bytes[skip..skip + ByteLen::of(target).as_usize()]);
    Ok(())
}

/// Reads a whole payload, checks it, and undoes its compression.
fn load(log: &StoredFile, location: &LogLocation, extent: Extent, payload: &mut [u8]) -> Result<()> {
    let handle: Arc<dyn StorageFile> = log.open()?;
    if location.packed == 0 {
        handle.read_at(location.payload, payload)?;
        return check(log, location, extent, payload);
    }
    let mut stored = vec![0; location.stored_len().as_usize()];
    handle.read_at(location.payload, &mut stored)?;
    check(log, location, extent, &stored)?;
    unpack(&stored, payload).ok_or_else(|| {
        let (name, at) = (log.name(), location.payload);
        Error::corrupt(format!(
            "{name}: payload at offset {at}, needed for {extent} of the disk: not compressed by us"
        ))
    })
}

fn check(log: &StoredFile, location: &LogLocation, extent: Extent, payload: &[u8]) -> Result<()> {
    if blocks::crc32c(payload) == location.crc {
        return Ok(());
    }
    let (name, at) = (log.name(), location.payload);
    let context =
        format!("{name}: payload at offset {at}, needed for {extent} of the disk: checksum mismatch");
    Err(Error::corrupt(context))
}
