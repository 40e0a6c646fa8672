//! Any offset and length over a volume of whole sectors.
//!
//! Front ends let a client address single bytes. Reads widen to whole sectors. A change of part of a sector reads
//! it, changes it and writes it back, alone: every other change through this waits meanwhile, so that neither the
//! neighbour's bytes in the same sector nor a whole-sector write in between is lost. Whole-sector changes only share
//! the lock and never wait for each other. Must be the only way to a volume that is written: two of them over the same
//! volume have two locks.

use crate::{Arrived, ByteLen, ByteOffset, Extent, ExtentStatus, FileRange, RequestClass, Result, Volume};
use std::sync::{Arc, PoisonError, RwLock};

const CLASS: RequestClass = RequestClass::Guest;

/// A volume and the lock that orders changes of parts of its sectors. Ranges must lie within the volume.
pub struct ByteAccess {
    volume: Arc<dyn Volume>,
    changes: RwLock<()>,
}

impl ByteAccess {
    /// Access to every byte of `volume`.
    pub fn new(volume: Arc<dyn Volume>) -> ByteAccess {
        ByteAccess { volume, changes: RwLock::new(()) }
    }

    fn is_aligned(&self, offset: ByteOffset, len: ByteLen) -> bool {
        offset.is_aligned(self.volume.alignment()) && len.is_aligned(self.volume.alignment())
    }

    /// Fills the buffer from `offset` on.
    pub fn read(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        if self.is_aligned(offset, ByteLen::of(buffer)) {
            return self.volume.read_at(offset, buffer, CLASS);
        }
        let Ok(extent) = Extent::new(offset, ByteLen::of(buffer)) else { return Ok(()) };
        let wide = extent.align_out(self.volume.alignment());
        let mut sectors = vec![0; wide.len().as_usize()];
        self.volume.read_at(wide.start(), &mut sectors, CLASS)?;
        let skip = (offset - wide.start()).as_usize();
        buffer.copy_from_slice(&sectors[skip..skip + buffer.len()]);
        Ok(())
    }

    /// Fills the buffer, as [`Volume::read_located`]; nothing is said of what is not of whole sectors.
    pub fn read_located(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<Option<FileRange>> {
        if self.is_aligned(offset, ByteLen::of(buffer)) {
            return self.volume.read_located(offset, buffer, CLASS);
        }
        self.read(offset, buffer).map(|()| None)
    }

    /// The file range that holds the extent as it is, where there is one and the extent is of whole sectors.
    pub fn file_range(&self, extent: Extent) -> Option<FileRange> {
        extent.is_aligned(self.volume.alignment()).then(|| self.volume.file_range(extent)).flatten()
    }

    /// The shortest write that may arrive, as [`Volume::arrived_len_min`].
    pub fn arrived_len_min(&self) -> Option<ByteLen> {
        self.volume.arrived_len_min()
    }

    /// Writes bytes that have arrived, as [`Volume::write_arrived`]; `false` also where the extent is not of whole sectors.
    pub fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived) -> Result<bool> {
        if !extent.is_aligned(self.volume.alignment()) {
            return Ok(false);
        }
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        self.volume.write_arrived(extent, from, CLASS)
    }

    /// Writes the buffer at `offset`.
    pub fn write(&self, offset: ByteOffset, data: &[u8], fua: bool) -> Result<()> {
        if self.is_aligned(offset, ByteLen::of(data)) {
            let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
            return self.volume.write_at(offset, data, fua, CLASS);
        }
        let Ok(extent) = Extent::new(offset, ByteLen::of(data)) else { return Ok(()) };
        let _alone = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let wide = extent.align_out(self.volume.alignment());
        let mut sectors = self.edges(wide, extent)?;
        let skip = (offset - wide.start()).as_usize();
        sectors[skip..skip + data.len()].copy_from_slice(data);
        self.volume.write_at(wide.start(), &sectors, fua, CLASS)
    }

    /// A buffer for `wide` with the first and the last sector read where `extent` covers only part of them.
    fn edges(&self, wide: Extent, extent: Extent) -> Result<Vec<u8>> {
        let sector = self.volume.alignment().len();
        let mut sectors = vec![0; wide.len().as_usize()];
        if extent.start() != wide.start() {
            self.volume.read_at(wide.start(), &mut sectors[..sector.as_usize()], CLASS)?;
        }
        if extent.end() != wide.end() && (extent.start() == wide.start() || wide.len() > sector) {
            let last = (wide.len() - sector).as_usize();
            self.volume.read_at(wide.start() + (wide.len() - sector), &mut sectors[last..], CLASS)?;
        }
        Ok(sectors)
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(&self, extent: Extent, keep_allocated: bool, fua: bool) -> Result<()> {
        if extent.is_aligned(self.volume.alignment()) {
            let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
            return self.volume.write_zeroes(extent, keep_allocated, fua, CLASS);
        }
        let inner = self.whole_sectors(extent);
        let zeroes = vec![0; 2 * self.volume.alignment().len().as_usize()];
        let (head, tail) = match inner {
            Some(inner) => {
                (Extent::between(extent.start(), inner.start()), Extent::between(inner.end(), extent.end()))
            }
            None => (Some(extent), None),
        };
        for part in [head, tail].into_iter().flatten() {
            self.write(part.start(), &zeroes[..part.len().as_usize()], fua)?;
        }
        match inner {
            Some(inner) => {
                let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
                self.volume.write_zeroes(inner, keep_allocated, fua, CLASS)
            }
            None => Ok(()),
        }
    }

    /// Whether that is quicker than writing as many bytes; parts of sectors never are.
    pub fn zeroes_fast(&self, extent: Extent, keep_allocated: bool) -> bool {
        extent.is_aligned(self.volume.alignment()) && self.volume.zeroes_fast(keep_allocated)
    }

    /// Gives up the whole sectors of the range; parts of sectors are kept.
    pub fn discard(&self, extent: Extent, fua: bool) -> Result<()> {
        let Some(inner) = self.whole_sectors(extent) else { return Ok(()) };
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        self.volume.discard(inner, fua, CLASS)
    }

    fn whole_sectors(&self, extent: Extent) -> Option<Extent> {
        let shift = self.volume.alignment();
        Extent::between(extent.start().align_up(shift), extent.end().align_down(shift))
    }

    /// What the range holds: runs from its start on, at least one, never past its end; may stop early.
    pub fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        let mut runs = self.volume.status(extent.align_out(self.volume.alignment()))?;
        runs.retain_mut(|run| match run.extent.intersect(extent) {
            Some(inside) => {
                run.extent = inside;
                true
            }
            None => false,
        });
        Ok(runs)
    }

    /// Puts every completed change on the medium.
    pub fn flush(&self) -> Result<()> {
        self.volume.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryVolume;
    use proptest::prelude::*;

    const DISK: usize = 8192;

    #[derive(Debug, Clone)]
    enum Change {
        Write(Vec<u8>),
        Zero(usize),
        Discard(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            prop::collection::vec(1u8.., 1..2000).prop_map(Change::Write),
            (1usize..4000).prop_map(Change::Zero),
            (1usize..4000).prop_map(Change::Discard),
        ]
    }

    proptest! {
        #[test]
        fn any_offset_does_what_bytes_in_memory_do(changes in prop::collection::vec((0..DISK, change()), 1..40)) {
            let disk = Arc::new(MemoryVolume::new(ByteLen::new(DISK as u64)));
            let access = ByteAccess::new(disk.clone());
            let mut model = vec![0u8; DISK];
            for (at, change) in changes {
                let offset = ByteOffset::new(at as u64);
                let range = |len: usize| at..(at + len).min(DISK);
                let extent = |range: &std::ops::Range<usize>| {
                    Extent::new(offset, ByteLen::new(range.len() as u64)).unwrap()
                };
                match change {
                    Change::Write(data) => {
                        let range = range(data.len());
                        access.write(offset, &data[..range.len()], false).unwrap();
                        model[range.clone()].copy_from_slice(&data[..range.len()]);
                    }
                    Change::Zero(len) => {
                        access.write_zeroes(extent(&range(len)), false, true).unwrap();
                        model[range(len)].fill(0);
                    }
                    Change::Discard(len) => {
                        access.discard(extent(&range(len)), false).unwrap();
                        let (first, last) = (at.div_ceil(512) * 512, range(len).end / 512 * 512);
                        if first < last {
                            model[first..last].fill(0);
                        }
                    }
                }
                let mut read = vec![0; DISK - at];
                access.read(offset, &mut read).unwrap();
                prop_assert_eq!(&read[..], &model[at..]);
            }
            prop_assert_eq!(disk.snapshot(), model);
        }

        #[test]
        fn status_starts_where_it_is_asked(start in 0..DISK as u64 - 1, len in 1..DISK as u64) {
            let disk = MemoryVolume::new(ByteLen::new(DISK as u64));
            disk.write_at(ByteOffset::new(1024), &[1; 512], false, RequestClass::Guest).unwrap();
            let access = ByteAccess::new(Arc::new(disk));
            let end = (start + len).min(DISK as u64);
            let extent = Extent::between(ByteOffset::new(start), ByteOffset::new(end)).unwrap();
            let runs = access.status(extent).unwrap();
            let mut at = extent.start();
            for run in runs {
                prop_assert_eq!(run.extent.start(), at);
                at = run.extent.end();
            }
            prop_assert_eq!(at, extent.end());
        }
    }

    #[test]
    fn neighbours_in_a_sector_do_not_lose_each_others_bytes() {
        let disk = Arc::new(MemoryVolume::new(ByteLen::new(1024)));
        let access = ByteAccess::new(disk.clone());
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let access = &access;
                scope.spawn(move || {
                    for round in 0..200u8 {
                        let at = ByteOffset::new(480 + u64::from(thread) * 8);
                        access.write(at, &[round.wrapping_add(thread); 8], false).unwrap();
                        let mut back = [0; 8];
                        access.read(at, &mut back).unwrap();
                        assert_eq!(back, [round.wrapping_add(thread); 8]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_whole_sector_write_is_not_undone_by_a_change_of_part_of_it() {
        let disk = Arc::new(MemoryVolume::new(ByteLen::new(512)));
        let access = ByteAccess::new(disk.clone());
        for round in 1..=500u16 {
            let value = (round % 255) as u8 + 1;
            std::thread::scope(|scope| {
                scope.spawn(|| access.write(ByteOffset::ZERO, &[value; 512], false).unwrap());
                scope.spawn(|| access.write(ByteOffset::ZERO, &[0xff; 4], false).unwrap());
            });
            assert!(disk.snapshot()[4..].iter().all(|byte| *byte == value), "round {round}");
        }
    }
}
