//! A fixed VHD: the disk, and a footer behind it.

use blocks::{
    Allocation, Arrived, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus,
    RequestClass, Result, Volume, check_request,
};
use std::sync::Arc;

/// The disk's bytes go to the disk; of the footer only what it holds already may be written.
pub(super) struct FixedVhd {
    disk: Arc<dyn Volume>,
    footer: [u8; 512],
}

impl FixedVhd {
    pub(super) fn new(disk: Arc<dyn Volume>, footer: [u8; 512]) -> FixedVhd {
        FixedVhd { disk, footer }
    }

    /// The parts of the extent that lie on the disk and in the footer.
    fn split(&self, extent: Extent) -> (Option<Extent>, Option<Extent>) {
        let disk_end = self.disk.len().end();
        let on_disk = Extent::between(extent.start(), extent.end().min(disk_end));
        let in_footer = Extent::between(extent.start().max(disk_end), extent.end());
        (on_disk, in_footer)
    }

    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        check_request(self.len(), BlockShift::SECTOR, offset, len)
    }

    /// The part of a change that lies on the disk. `Unsupported` where some of it lies in the footer.
    fn on_disk(&self, extent: Extent) -> Result<Option<Extent>> {
        match self.split(extent) {
            (on_disk, None) => Ok(on_disk),
            (_, Some(_)) => Err(Error::new(
                ErrorKind::Unsupported,
                "the footer of a disk that is shown cannot be changed",
            )),
        }
    }
}

impl Volume for FixedVhd {
    fn len(&self) -> ByteLen {
        self.disk.len() + ByteLen::of(&self.footer)
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        let Some(extent) = self.check(offset, ByteLen::of(buffer))? else { return Ok(()) };
        let (on_disk, in_footer) = self.split(extent);
        let (disk, footer) = buffer.split_at_mut(on_disk.map_or(0, |extent| extent.len().as_usize()));
        if in_footer.is_some() {
            footer.copy_from_slice(&self.footer);
        }
        match on_disk {
            Some(_) => self.disk.read_at(offset, disk, class),
            None => Ok(()),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        let Some(extent) = self.check(offset, ByteLen::of(data))? else { return Ok(()) };
        let (on_disk, _) = self.split(extent);
        let (disk, footer) = data.split_at(on_disk.map_or(0, |extent| extent.len().as_usize()));
        if !footer.is_empty() && footer != self.footer {
            self.on_disk(extent)?;
        }
        match on_disk {
            Some(_) => self.disk.write_at(offset, disk, fua, class),
            None => Ok(()),
        }
    }

    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        self.check(extent.start(), extent.len())?;
        match self.on_disk(extent)? {
            Some(extent) => self.disk.write_zeroes(extent, keep_allocated, fua, class),
            None => Ok(()),
        }
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.check(extent.start(), extent.len())?;
        match self.on_disk(extent)? {
            Some(extent) => self.disk.discard(extent, fua, class),
            None => Ok(()),
        }
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        self.disk.arrived_len_min()
    }

    /// What touches the footer goes the usual way.
    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        match self.check(extent.start(), extent.len())?.map(|extent| self.split(extent)) {
            Some((Some(on_disk), None)) => self.disk.write_arrived(on_disk, from, class),
            _ => Ok(false),
        }
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        match self.split(extent) {
            (Some(on_disk), _) => self.disk.status(on_disk),
            (None, Some(extent)) => Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }]),
            (None, None) => Ok(Vec::new()),
        }
    }
}
