//! A disk as it was at a checkpoint.

use crate::index::stack::Stack;
use crate::plan::status_in_windows;
use crate::unit::pins::ViewPin;
use blocks::{
    BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, FileRange, RequestClass, Result,
    Volume, check_request,
};
use std::sync::Arc;

/// A read-only disk: the image and the deltas up to a checkpoint. Pins the checkpoint while it lives.
#[derive(Debug)]
pub struct View {
    len: ByteLen,
    stack: Arc<Stack>,
    _pin: ViewPin,
}

impl View {
    pub(crate) fn new(len: ByteLen, stack: Arc<Stack>, pin: ViewPin) -> View {
        View { len, stack, _pin: pin }
    }

    /// How many indexes a lookup asks at most.
    pub fn depth(&self) -> usize {
        self.stack.depth()
    }
}

fn read_only<T>() -> Result<T> {
    Err(Error::new(ErrorKind::ReadOnly, "a view of a checkpoint cannot be written; fork a branch from it"))
}

impl Volume for View {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        match check_request(self.len, BlockShift::SECTOR, offset, ByteLen::of(buffer))? {
            Some(range) => self.stack.plan(range)?.read(offset, buffer, self.stack.image(), class),
            None => Ok(()),
        }
    }

    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        let range = check_request(self.len, BlockShift::SECTOR, offset, ByteLen::of(buffer))?;
        let Some(range) = range else { return Ok(None) };
        self.stack.plan(range)?.read_located(offset, buffer, self.stack.image(), class)
    }

    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len, BlockShift::SECTOR, extent.start(), extent.len())?;
        status_in_windows(extent, |window| self.stack.plan(window)?.status(self.stack.image()))
    }
}
