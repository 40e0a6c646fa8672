//! A disk in memory that does something of a test's own before it reads or writes.

use blocks::{
    BlockShift, ByteLen, ByteOffset, Extent, ExtentStatus, MemoryVolume, RequestClass, Result, Volume,
};
use std::time::Duration;

/// What is done, given where; an error is the answer.
type Hook = Box<dyn Fn(ByteOffset) -> Result<()> + Send + Sync>;

/// The disk. Its discards have a bug: they panic.
pub struct Hooked {
    pub disk: MemoryVolume,
    before_read: Hook,
    before_write: Hook,
}

impl Hooked {
    pub fn new(len: u64) -> Hooked {
        let nothing = || -> Hook { Box::new(|_| Ok(())) };
        let disk = MemoryVolume::new(ByteLen::new(len));
        Hooked { disk, before_read: nothing(), before_write: nothing() }
    }

    pub fn before_read(self, hook: impl Fn(ByteOffset) -> Result<()> + Send + Sync + 'static) -> Hooked {
        Hooked { before_read: Box::new(hook), ..self }
    }

    pub fn before_write(self, hook: impl Fn(ByteOffset) -> Result<()> + Send + Sync + 'static) -> Hooked {
        Hooked { before_write: Box::new(hook), ..self }
    }

    /// Each write takes so long.
    pub fn with_slow_writes(self, delay: Duration) -> Hooked {
        self.before_write(move |_| {
            std::thread::sleep(delay);
            Ok(())
        })
    }
}

impl Volume for Hooked {
    fn len(&self) -> ByteLen {
        self.disk.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn alignment(&self) -> BlockShift {
        self.disk.alignment()
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        (self.before_read)(offset)?;
        self.disk.read_at(offset, buffer, class)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        (self.before_write)(offset)?;
        self.disk.write_at(offset, data, fua, class)
    }
    fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, class: RequestClass) -> Result<()> {
        self.disk.write_zeroes(extent, keep, fua, class)
    }
    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        panic!("this disk has a bug in its discard")
    }
    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.disk.status(extent)
    }
}
