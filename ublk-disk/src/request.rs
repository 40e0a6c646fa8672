//! What the kernel asks of the volume.

use crate::abi::{Descriptor, IO_F_FUA, IO_F_NOUNMAP, op};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, SECTOR_BYTES, Volume};

/// One request, taken out of the memory that is shared with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    operation: u8,
    fua: bool,
    keep: bool,
    start: ByteOffset,
    len: ByteLen,
}

impl Request {
    pub(crate) fn of(descriptor: &Descriptor) -> Request {
        Request {
            operation: descriptor.op_flags.to_le_bytes()[0],
            fua: descriptor.op_flags & IO_F_FUA != 0,
            keep: descriptor.op_flags & IO_F_NOUNMAP != 0,
            start: ByteOffset::new(descriptor.start_sector.saturating_mul(SECTOR_BYTES)),
            len: ByteLen::new(u64::from(descriptor.nr_sectors) * SECTOR_BYTES),
        }
    }

    /// Whether it may take no longer than a few bytes take to move: others can wait for that.
    pub(crate) fn is_short(&self) -> bool {
        const SHORT: ByteLen = ByteLen::new(64 << 10);
        matches!(self.operation, op::READ | op::WRITE) && self.len <= SHORT && !self.fua
    }

    /// Does it, with the bytes of a write in `buffer`, where those of a read go; the answer, in the driver's numbers: bytes done,
    /// or an errno below zero.
    pub(crate) fn perform(&self, volume: &dyn Volume, buffer: &mut [u8]) -> i32 {
        match self.ask(volume, buffer) {
            Ok(done) => i32::try_from(done).unwrap_or(i32::MAX),
            Err(error) => {
                match error.kind() {
                    ErrorKind::Unsupported => tracing::debug!("{self:?}: {error}"),
                    _ => tracing::error!("{self:?}: {error}"),
                }
                -errno_of(error.kind())
            }
        }
    }

    fn ask(&self, volume: &dyn Volume, buffer: &mut [u8]) -> Result<usize> {
        let class = RequestClass::Guest;
        match self.operation {
            op::READ => {
                let bytes = self.part_of(buffer)?;
                volume.read_at(self.start, bytes, class)?;
                Ok(bytes.len())
            }
            op::WRITE => {
                let bytes = self.part_of(buffer)?;
                volume.write_at(self.start, bytes, self.fua, class)?;
                Ok(bytes.len())
            }
            op::FLUSH => volume.flush().map(|()| 0),
            op::DISCARD => volume.discard(self.extent()?, self.fua, class).map(|()| 0),
            op::WRITE_ZEROES => volume.write_zeroes(self.extent()?, self.keep, self.fua, class).map(|()| 0),
            other => Err(Error::new(ErrorKind::Unsupported, format!("operation {other} is not known"))),
        }
    }

    fn part_of<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let (len, held) = (self.len.as_usize(), buffer.len());
        buffer.get_mut(..len).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("{len} bytes where at most {held} were agreed on"))
        })
    }

    fn extent(&self) -> Result<Extent> {
        Ok(Extent::new(self.start, self.len)?)
    }
}

/// What the block layer is told; it tells apart what it can act on.
fn errno_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::NoSpace => libc::ENOSPC,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{MemoryVolume, is_zero};

    fn asked(op_flags: u32, start_sector: u64, nr_sectors: u32) -> Request {
        Request::of(&Descriptor { op_flags, nr_sectors, start_sector, addr: 0 })
    }

    #[test]
    fn each_operation_does_what_it_says() {
        let volume = MemoryVolume::new(ByteLen::new(1 << 20));
        let mut buffer = vec![7; 8192];
        assert_eq!(asked(u32::from(op::WRITE) | IO_F_FUA, 8, 16).perform(&volume, &mut buffer), 8192);
        buffer.fill(0);
        assert_eq!(asked(u32::from(op::READ), 16, 8).perform(&volume, &mut buffer), 4096);
        assert!(buffer[..4096].iter().all(|byte| *byte == 7) && is_zero(&buffer[4096..]));
        assert_eq!(asked(u32::from(op::FLUSH), 0, 0).perform(&volume, &mut buffer), 0);
        for (operation, sector) in [(op::WRITE_ZEROES, 8), (op::DISCARD, 16)] {
            assert_eq!(asked(operation.into(), sector, 8).perform(&volume, &mut buffer), 0);
        }
        assert_eq!(asked(u32::from(op::READ), 8, 16).perform(&volume, &mut buffer), 8192);
        assert!(is_zero(&buffer));
    }

    #[test]
    fn what_cannot_be_done_is_an_error_and_touches_nothing() {
        let volume = MemoryVolume::new(ByteLen::new(1 << 20));
        let mut buffer = vec![7; 4096];
        // Longer than the buffer; past the end, and so far past it that it does not fit a number; not known.
        assert_eq!(asked(op::WRITE.into(), 0, 9).perform(&volume, &mut buffer), -libc::EIO);
        assert_eq!(asked(op::WRITE.into(), 2048, 8).perform(&volume, &mut buffer), -libc::EIO);
        assert_eq!(asked(op::WRITE_ZEROES.into(), u64::MAX, 8).perform(&volume, &mut buffer), -libc::EIO);
        assert_eq!(asked(4, 0, 8).perform(&volume, &mut buffer), -libc::EOPNOTSUPP);
        assert_eq!(asked(op::READ.into(), 0, 8).perform(&volume, &mut buffer), 4096);
        assert!(is_zero(&buffer));
    }
}
