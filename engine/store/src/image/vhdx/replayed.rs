//! A file as it will be once its log is replayed, for those who may only read it.

use super::super::beyond::read_cut;
use super::log::{Replay, SECTOR};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile, Synced};
use std::sync::Arc;

/// A file under what its log says.
#[derive(Debug)]
pub(super) struct ReplayedFile {
    file: Arc<dyn StorageFile>,
    replay: Replay,
}

impl ReplayedFile {
    pub(super) fn new(file: Arc<dyn StorageFile>, replay: Replay) -> ReplayedFile {
        ReplayedFile { file, replay }
    }

    fn refuse<T>(&self) -> Result<T> {
        Err(Error::new(ErrorKind::ReadOnly, format!("{} is open for reading only", self.file.name())))
    }
}

impl StorageFile for ReplayedFile {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(self.replay.file_len)
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        let Ok(wanted) = Extent::new(offset, ByteLen::of(buffer)) else { return Ok(()) };
        if wanted.end() > self.replay.file_len.end() {
            let context = format!("{} ends before the {wanted}", self.name());
            return Err(Error::corrupt(context));
        }
        read_cut(&*self.file, self.file.len()?.end(), offset, buffer)?;
        for zeroes in self.replay.zeroes.iter().filter_map(|zeroes| zeroes.intersect(wanted)) {
            let start = (zeroes.start() - offset).as_usize();
            buffer[start..start + zeroes.len().as_usize()].fill(0);
        }
        let first = offset.get() / SECTOR as u64 * SECTOR as u64;
        for (at, page) in self.replay.pages.range(first..wanted.end().get()) {
            let page_extent = Extent::new(ByteOffset::new(*at), ByteLen::new(SECTOR as u64))?;
            if let Some(part) = page_extent.intersect(wanted) {
                let from = (part.start() - page_extent.start()).as_usize();
                let to = (part.start() - offset).as_usize();
                let len = part.len().as_usize();
                buffer[to..to + len].copy_from_slice(&page[from..from + len]);
            }
        }
        Ok(())
    }

    fn write_at(&self, _: ByteOffset, _: &[u8]) -> Result<()> {
        self.refuse()
    }

    fn set_len(&self, _: ByteLen) -> Result<()> {
        self.refuse()
    }

    fn punch_hole(&self, _: Extent) -> Result<()> {
        self.refuse()
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        // What the log puts into a hole must not be taken for one.
        let changed = self.replay.pages.range(from.get() / SECTOR as u64 * SECTOR as u64..).next();
        let changed = changed.map(|(at, _)| ByteOffset::new(*at).max(from));
        match (self.file.next_data(from)?, changed) {
            (Some(data), Some(page)) if page < data.start() => Ok(Extent::between(page, data.start())),
            (None, Some(page)) => Ok(Some(Extent::new(page, ByteLen::new(SECTOR as u64))?)),
            (data, _) => Ok(data),
        }
    }

    fn sync(&self) -> Result<Synced> {
        self.refuse()
    }
}
