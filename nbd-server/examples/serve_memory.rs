//! Serves 1 GiB of plain memory: what a server can reach that keeps the bytes, which scripts/bench shows beside the one that forgets
//! them. `serve_memory HOST:PORT|unix:PATH`
//!
//! No file system, no page cache, no page that has to be made first, and one copy: a payload goes from the socket to where
//! it stays.

#[path = "support/serving.rs"]
mod serving;

use blocks::{
    Allocation, Arrived, ByteLen, ByteOffset, Error, Extent, ExtentStatus, Place, RequestClass, Result,
    Volume,
};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

const DISK: usize = 1 << 30;

struct Memory(RwLock<Vec<u8>>);

impl Memory {
    fn new() -> Memory {
        // Ones, so that every page is there.
        Memory(RwLock::new(vec![1; DISK]))
    }

    fn change<T>(&self, extent: Extent, change: impl FnOnce(&mut [u8]) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner)[range(extent)])
    }
}

fn range(extent: Extent) -> Range<usize> {
    let start = usize::try_from(extent.start().get()).expect("the disk is in memory");
    start..start + extent.len().as_usize()
}

impl Volume for Memory {
    fn len(&self) -> ByteLen {
        ByteLen::new(DISK as u64)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        let extent = Extent::new(offset, ByteLen::of(buffer))?;
        buffer.copy_from_slice(&self.0.read().unwrap_or_else(PoisonError::into_inner)[range(extent)]);
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], _: bool, _: RequestClass) -> Result<()> {
        self.change(Extent::new(offset, ByteLen::of(data))?, |bytes| bytes.copy_from_slice(data));
        Ok(())
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        Some(ByteLen::new(4096))
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, _: RequestClass) -> Result<bool> {
        let put = self.change(extent, |bytes| from.put(Place::over(bytes)));
        match put {
            Ok(count) if count as u64 == extent.len().get() => Ok(true),
            Ok(count) => Err(Error::corrupt(format!("{count} bytes of {extent} have arrived"))),
            Err(error) => Err(Error::io("receiving a payload", error)),
        }
    }

    fn write_zeroes(&self, extent: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        self.change(extent, |bytes| bytes.fill(0));
        Ok(())
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }])
    }
}

fn main() -> Result<()> {
    serving::serve("serve_memory", Arc::new(Memory::new()))
}
