//! An open disk.

use super::sysfs::PartitionFacts;
use super::sysfs::{DeviceNumber, IoCounts, partitions, read_text, read_u64, sysfs_dir};
use blocks::{AlignedBuffer, ByteLen, Error, ErrorKind, Extent, Result, SECTOR_BYTES};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A whole block device, open for reading with O_DIRECT: what is read is what the device holds, and a mounted disk's
/// page cache is left alone.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    sysfs: PathBuf,
    file: File,
    number: DeviceNumber,
    diskseq: u64,
    len: ByteLen,
}

impl Disk {
    /// Opens the disk at `path`. `InvalidInput` for what is no block device or only a partition of one.
    pub fn open(path: &Path) -> Result<Disk> {
        let disk = Disk::open_part(path)?;
        if disk.sysfs.join("partition").exists() {
            let whole = disk.sysfs.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let context = format!("{} is a partition; name the whole disk, /dev/{whole}", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        Ok(disk)
    }

    /// The same, and a partition is taken for a disk of its own.
    pub(crate) fn open_part(path: &Path) -> Result<Disk> {
        let name = path.display();
        let metadata = fs::metadata(path).map_err(|error| Error::io(format!("{name}"), error))?;
        if !metadata.file_type().is_block_device() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name} is no block device")));
        }
        let number = DeviceNumber::from_raw(metadata.rdev());
        let sysfs = sysfs_dir(number)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(path)
            .map_err(|error| Error::io(format!("{name}"), error))?;
        let diskseq = read_u64(sysfs.join("diskseq")).unwrap_or(0);
        let mut disk = Disk { path: path.to_owned(), sysfs, file, number, diskseq, len: ByteLen::ZERO };
        disk.len = disk.len_now()?;
        if disk.len.is_zero() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name} has no bytes")));
        }
        Ok(disk)
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's name of it, such as `sda`.
    pub(crate) fn kernel_name(&self) -> String {
        self.sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Major and minor number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The kernel's number of this very attachment; 0 where the kernel has none.
    pub fn diskseq(&self) -> u64 {
        self.diskseq
    }

    /// The size when it was opened.
    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// A disk is never empty: opening refuses that.
    pub fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// The size now: a disk may grow.
    pub fn len_now(&self) -> Result<ByteLen> {
        let sectors = read_u64(self.sysfs.join("size")).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{}: the disk has vanished", self.path.display()))
        })?;
        Ok(ByteLen::new(sectors * SECTOR_BYTES))
    }

    /// Its partitions.
    pub(crate) fn partitions(&self) -> Vec<PartitionFacts> {
        partitions(&self.sysfs)
    }

    /// A serial number or WWN that stays with the disk; empty where it has none.
    pub fn serial(&self) -> String {
        ["serial", "device/serial", "wwid", "device/wwid"]
            .iter()
            .find_map(|name| read_text(self.sysfs.join(name)))
            .unwrap_or_default()
    }

    /// What the kernel has counted of its traffic.
    pub fn io_counts(&self) -> Result<IoCounts> {
        IoCounts::read(&self.sysfs)
    }

    /// How many writes the device has not completed yet.
    pub fn writes_in_flight(&self) -> u64 {
        let text = read_text(self.sysfs.join("inflight")).unwrap_or_default();
        text.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Reads an extent from the device itself into the start of `buffer`, which must be long enough. The extent must
    /// be a multiple of the device's logical block.
    pub fn read<'a>(&self, extent: Extent, buffer: &'a mut AlignedBuffer) -> Result<&'a [u8]> {
        let len = extent.len().as_usize();
        let into = &mut buffer[..len];
        self.file
            .read_exact_at(into, extent.start().get())
            .map_err(|error| Error::io(format!("{}: reading {extent}", self.path.display()), error))?;
        Ok(into)
    }
}
