//! The disk under the tap.

use blocks::{AlignedBuffer, BlockShift, ByteLen, Error, ErrorKind, Extent, Result};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `_IO(0x12, 104)`: the size of the smallest block that the device takes.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// What a tap writes to. Called from several threads at once; ranges are whole sectors within the disk.
pub(super) trait Medium: Send + Sync {
    /// Fills the buffer, which O_DIRECT accepts.
    fn read(&self, extent: Extent, buffer: &mut AlignedBuffer) -> Result<()>;
    /// Writes the buffer; it survives the death of this process.
    fn write(&self, extent: Extent, buffer: &AlignedBuffer) -> Result<()>;
    /// Makes the range read as zeroes. `Unsupported` where `punch` was asked for and zeroes are not certain.
    fn zero(&self, extent: Extent, punch: bool) -> Result<()>;
    /// Puts every completed write on the medium.
    fn flush(&self) -> Result<()>;
}

/// A disk or partition that this process alone has claimed, open past the page cache.
#[derive(Debug)]
pub(super) struct BareDisk {
    path: PathBuf,
    file: File,
    sector: BlockShift,
}

impl BareDisk {
    /// Claims the device. `Busy`, with what to do, where it is mounted or somebody else has claimed it.
    pub fn claim(path: &Path) -> Result<BareDisk> {
        let shown = path.display();
        let flags = libc::O_DIRECT | libc::O_EXCL | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => {
                let context = format!(
                    "{shown} is in use: unmount what is on it, start the tap, and mount the device that it \
                     names instead"
                );
                Error::new(ErrorKind::Busy, context)
            }
            _ => Error::io(format!("{shown}"), error),
        })?;
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut bytes) } != 0 {
            return Err(Error::io(format!("the sector size of {shown}"), std::io::Error::last_os_error()));
        }
        let shift = u8::try_from(bytes.trailing_zeros()).ok().and_then(BlockShift::new);
        let sector = shift.filter(|shift| shift.bytes() == u64::from(bytes.unsigned_abs()));
        let sector = sector.ok_or_else(|| Error::corrupt(format!("{shown} has sectors of {bytes} bytes")))?;
        Ok(BareDisk { path: path.to_owned(), file, sector })
    }

    /// The smallest block that the device takes.
    pub fn sector(&self) -> BlockShift {
        self.sector
    }

    fn failed(&self, doing: &str, extent: Extent) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::io(format!("{doing} {} at {extent}", self.path.display()), error)
    }
}

impl Medium for BareDisk {
    fn read(&self, extent: Extent, buffer: &mut AlignedBuffer) -> Result<()> {
        let into = &mut buffer[..extent.len().as_usize()];
        self.file.read_exact_at(into, extent.start().get()).map_err(self.failed("reading", extent))
    }

    fn write(&self, extent: Extent, buffer: &AlignedBuffer) -> Result<()> {
        let bytes = &buffer[..extent.len().as_usize()];
        self.file.write_all_at(bytes, extent.start().get()).map_err(self.failed("writing", extent))
    }

    fn zero(&self, extent: Extent, punch: bool) -> Result<()> {
        let how = if punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let (start, len) = (extent.start().get(), extent.len().get());
        fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, start, len)
            .map_err(|error| self.failed("zeroing", extent)(error.into()))
    }

    fn flush(&self) -> Result<()> {
        let flushed = self.file.sync_data();
        flushed.map_err(|error| Error::io(format!("flushing {}", self.path.display()), error))
    }
}

/// The buffer with those bytes.
pub(super) fn aligned(bytes: &[u8]) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::new(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

/// How much memory a buffer for so many bytes takes.
pub(super) fn memory_of(len: ByteLen) -> u64 {
    len.get() + AlignedBuffer::ALIGNMENT as u64
}
