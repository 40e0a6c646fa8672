//! Serves a disk that does nothing, of 1 GiB: the ceiling that scripts/bench measures ours against.
//! `serve_null HOST:PORT|unix:PATH`

#[path = "support/serving.rs"]
mod serving;

use blocks::{Allocation, ByteLen, ByteOffset, Extent, ExtentStatus, RequestClass, Result, Volume};
use std::sync::Arc;

/// Reads leave the buffer as it is, writes are forgotten.
struct NullVolume;

impl Volume for NullVolume {
    fn len(&self) -> ByteLen {
        ByteLen::new(1 << 30)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, _: ByteOffset, _: &mut [u8], _: RequestClass) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }])
    }
}

fn main() -> Result<()> {
    serving::serve("serve_null", Arc::new(NullVolume))
}
