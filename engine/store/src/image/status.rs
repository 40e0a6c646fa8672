//! Building the answer of [`blocks::Volume::status`].

use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Extent, ExtentStatus, Result, StorageFile, Volume,
};

/// A disk can have millions of runs; an answer has at most about this many, and the caller asks on.
const RUNS_MAX: usize = 4096;
/// Nor does an answer take more than this many lookups, however few runs they make: some tens of milliseconds.
const LOOKUPS_MAX: usize = 64 << 10;

/// Runs in order, neighbours of one kind joined.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<ExtentStatus>,
    lookups: usize,
}

impl Runs {
    /// Adds what follows the last run.
    pub(super) fn push(&mut self, extent: Extent, allocation: Allocation) {
        self.lookups += 1;
        if let Some(last) = self.runs.last_mut()
            && last.allocation == allocation
            && let Some(joined) = Extent::between(last.extent.start(), extent.end())
        {
            last.extent = joined;
            return;
        }
        self.runs.push(ExtentStatus { extent, allocation });
    }

    /// Whether it is time to stop.
    pub(super) fn is_full(&self) -> bool {
        self.runs.len() >= RUNS_MAX || self.lookups >= LOOKUPS_MAX
    }

    /// Adds `disk`, whose bytes lie in the file from `file_start` on: data and holes as the file system tells them.
    /// May stop early when full.
    pub(super) fn push_stored(
        &mut self,
        file: &dyn StorageFile,
        disk: Extent,
        file_start: ByteOffset,
    ) -> Result<()> {
        let end = file_start + disk.len();
        let on_disk = |at: ByteOffset| disk.start() + (at - file_start);
        let mut at = file_start;
        while at < end && !self.is_full() {
            let data = file.next_data(at)?.and_then(|data| {
                let start = data.start().align_down(BlockShift::SECTOR).max(at);
                Extent::between(start, data.end().align_up(BlockShift::SECTOR).min(end))
            });
            let data_start = data.map_or(end, Extent::start).min(end);
            if let Some(hole) = Extent::between(on_disk(at), on_disk(data_start)) {
                self.push(hole, Allocation::Hole);
            }
            at = data_start;
            if let Some(data) = data {
                self.push(Extent::new(on_disk(data.start()), data.len())?, Allocation::Data);
                at = data.end();
            }
        }
        Ok(())
    }

    /// Adds `disk` as another volume tells it that lies below; what is beyond that one's end is a hole. May stop early
    /// when full.
    pub(super) fn push_volume(&mut self, below: Option<&dyn Volume>, disk: Extent) -> Result<()> {
        let end = below.map_or(ByteOffset::ZERO, |below| below.len().end()).min(disk.end());
        let mut at = disk.start();
        while let (Some(below), Some(rest)) = (below, Extent::between(at, end)) {
            for run in below.status(rest)? {
                self.push(run.extent, run.allocation);
                at = run.extent.end();
            }
            if self.is_full() {
                return Ok(());
            }
        }
        if let Some(beyond) = Extent::between(at, disk.end()) {
            self.push(beyond, Allocation::Hole);
        }
        Ok(())
    }

    /// The runs.
    pub(super) fn into_vec(self) -> Vec<ExtentStatus> {
        self.runs
    }
}

/// Writes zeroes that take up space.
pub(super) fn write_out_zeroes(
    extent: Extent,
    mut write: impl FnMut(ByteOffset, &[u8]) -> Result<()>,
) -> Result<()> {
    const STEP: ByteLen = ByteLen::new(256 << 10);
    let zeroes = vec![0; STEP.as_usize().min(extent.len().as_usize())];
    for piece in extent.split(STEP) {
        write(piece.start(), &zeroes[..piece.len().as_usize()])?;
    }
    Ok(())
}
