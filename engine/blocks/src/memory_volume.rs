//! The simplest volume that is right: one buffer. Other volumes are compared with it.

use crate::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, RequestClass,
    Result, Volume, check_request, is_zero,
};
use std::sync::{PoisonError, RwLock};

/// A disk in memory. Sectors that are zero are reported as holes.
#[derive(Debug)]
pub struct MemoryVolume {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemoryVolume {
    /// A disk of zeroes; `len` must be a multiple of 512.
    pub fn new(len: ByteLen) -> MemoryVolume {
        MemoryVolume { bytes: RwLock::new(vec![0; len.as_usize()]), read_only: false }
    }

    /// A disk of these bytes that refuses writes.
    pub fn read_only(bytes: Vec<u8>) -> MemoryVolume {
        MemoryVolume { bytes: RwLock::new(bytes), read_only: true }
    }

    /// A copy of the whole disk.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, offset: ByteOffset, len: ByteLen, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let extent = check_request(self.len(), BlockShift::SECTOR, offset, len)?;
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "this volume is read-only"));
        }
        if let Some(extent) = extent {
            let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut bytes[range(extent)]);
        }
        Ok(())
    }
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    let start = ByteLen::new(extent.start().get()).as_usize();
    start..start + extent.len().as_usize()
}

impl Volume for MemoryVolume {
    fn len(&self) -> ByteLen {
        ByteLen::of(&self.bytes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        if let Some(extent) = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(buffer))? {
            let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
            buffer.copy_from_slice(&bytes[range(extent)]);
        }
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], _: bool, _: RequestClass) -> Result<()> {
        self.change(offset, ByteLen::of(data), |bytes| bytes.copy_from_slice(data))
    }

    fn write_zeroes(&self, extent: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        self.change(extent.start(), extent.len(), |bytes| bytes.fill(0))
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn zeroes_fast(&self, _: bool) -> bool {
        true
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len(), BlockShift::SECTOR, extent.start(), extent.len())?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let mut runs: Vec<ExtentStatus> = Vec::new();
        for sector in extent.split(BlockShift::SECTOR.len()) {
            let zero = is_zero(&bytes[range(sector)]);
            let allocation = if zero { Allocation::Hole } else { Allocation::Data };
            match runs.last_mut() {
                Some(run) if run.allocation == allocation => {
                    run.extent = Extent::new(run.extent.start(), run.extent.len() + sector.len())?;
                }
                _ => runs.push(ExtentStatus { extent: sector, allocation }),
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_zero_from_data_by_the_sector() {
        let disk = MemoryVolume::new(ByteLen::new(4096));
        disk.write_at(ByteOffset::new(1024), &[7; 512], false, RequestClass::Guest).unwrap();
        let runs = disk.status(Extent::whole(disk.len()).unwrap()).unwrap();
        let lengths: Vec<_> = runs.iter().map(|run| (run.extent.len().get(), run.allocation)).collect();
        assert_eq!(lengths, [(1024, Allocation::Hole), (512, Allocation::Data), (2560, Allocation::Hole)]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let disk = MemoryVolume::new(ByteLen::new(1024));
        let mut buffer = [0; 512];
        let kind = |result: Result<()>| result.unwrap_err().kind();
        assert_eq!(
            kind(disk.read_at(ByteOffset::new(1024), &mut buffer, RequestClass::Guest)),
            ErrorKind::OutOfRange
        );
        assert_eq!(
            kind(disk.read_at(ByteOffset::new(1), &mut buffer, RequestClass::Guest)),
            ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(disk.write_at(ByteOffset::new(u64::MAX - 511), &buffer, false, RequestClass::Guest)),
            ErrorKind::OutOfRange
        );
        let fixed = MemoryVolume::read_only(vec![0; 512]);
        assert_eq!(
            kind(fixed.write_at(ByteOffset::ZERO, &buffer, false, RequestClass::Guest)),
            ErrorKind::ReadOnly
        );
    }
}
