//! A disk after its pivot: the target takes the writes, the map remembers where.

use crate::session::dirty_map::DirtyMap;
use blocks::{Arrived, ByteLen, ByteOffset, Extent, ExtentStatus, FileRange, RequestClass, Result, Volume};
use std::sync::Arc;

/// A target whose writes are marked in a [`DirtyMap`] first. As long as the target; the session's volume above cuts it
/// to the disk.
pub(crate) struct PivotedVolume {
    target: Arc<dyn Volume>,
    map: Arc<DirtyMap>,
}

impl PivotedVolume {
    /// `target`, with its writes marked in `map`.
    pub fn new(target: Arc<dyn Volume>, map: Arc<DirtyMap>) -> PivotedVolume {
        PivotedVolume { target, map }
    }
}

impl Volume for PivotedVolume {
    fn len(&self) -> ByteLen {
        self.target.len()
    }

    fn is_read_only(&self) -> bool {
        self.target.is_read_only()
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        self.target.read_at(offset, buffer, class)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        if let Some(extent) = Extent::between(offset, offset + ByteLen::of(data)) {
            self.map.mark(extent)?;
        }
        self.target.write_at(offset, data, fua, class)
    }

    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        self.map.mark(extent)?;
        self.target.write_zeroes(extent, keep_allocated, fua, class)
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.map.mark(extent)?;
        // A target of others may ignore a discard; the session's disks promise zeroes after one.
        self.target.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        self.target.flush()
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.target.status(extent)
    }

    /// Read first, so that what cannot be read is an error to the guest and not the end of his connection.
    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        self.target.read_at(offset, buffer, class)?;
        let extent = Extent::new(offset, ByteLen::of(buffer)).ok();
        Ok(extent.and_then(|extent| self.target.file_range(extent)))
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        self.target.arrived_len_min()
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        self.map.mark(extent)?;
        self.target.write_arrived(extent, from, class)
    }

    fn zeroes_fast(&self, keep_allocated: bool) -> bool {
        self.target.zeroes_fast(keep_allocated)
    }
}
