//! What a failback writes to.

use crate::copy::Replica;
use crate::disk::{DeviceNumber, Disk, read_text};
use crate::mounts::{members, superblocks, swap_devices};
use blocks::{AlignedBuffer, ByteLen, DiskIndex, Error, ErrorKind, Extent, Result};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::RestoreDisk;

/// `_IO(0x12, 97)`: write out and drop the device's cached pages.
const BLKFLSBUF: libc::Ioctl = 0x1261;
/// `_IO(0x12, 127)`: zero a range.
const BLKZEROOUT: libc::Ioctl = 0x127f;
/// Zeroes are written in pieces of this size where the target cannot make them itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A block device or a regular file that nobody else has, open for writing.
#[derive(Debug)]
pub(crate) struct Target {
    pub disk: DiskIndex,
    pub device: PathBuf,
    /// How much of it is written; it may be longer.
    pub len: ByteLen,
    /// Writes go through the page cache and are synced: a guest's writes may be smaller than the device's block.
    file: File,
    /// Reads do not, so that they show what is on the device.
    direct: Option<Disk>,
}

impl Target {
    /// Opens a target exclusively. Errors name the device: it does not exist, is too small, is mounted, swapped to,
    /// held or open elsewhere.
    pub fn open(wanted: &RestoreDisk, replica: Option<&Replica>) -> Result<Target> {
        let device = match (wanted.device.as_str(), replica) {
            ("", Some(replica)) => replica.disk.path().to_owned(),
            ("", None) => {
                let context = format!("disk {} is not protected here: name a device", wanted.disk);
                return Err(Error::new(ErrorKind::NotFound, context));
            }
            (device, _) => PathBuf::from(device),
        };
        let kind = fs::metadata(&device)
            .map_err(|error| Error::io(device.display().to_string(), error))?
            .file_type();
        let (file, direct, len) = if kind.is_block_device() {
            let disk = Disk::open(&device)?;
            refuse_in_use(&disk)?;
            let file = open_exclusively(&device, libc::O_EXCL)?;
            let len = disk.len();
            (file, Some(disk), len)
        } else if kind.is_file() {
            let (file, len) = open_file(&device)?;
            (file, None, len)
        } else {
            let context = format!("{} is neither a block device nor a regular file", device.display());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        };
        if len < wanted.len {
            let context = format!("{} holds {len} bytes, but the disk has {}", device.display(), wanted.len);
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let target = Target { disk: wanted.disk, device, len: wanted.len, file, direct };
        target.flush_cache()?;
        Ok(target)
    }

    /// Whether this is that very disk, not another one in its place.
    pub fn is_disk(&self, disk: &Disk) -> bool {
        let same = |direct: &Disk| direct.number() == disk.number() && direct.diskseq() == disk.diskseq();
        self.direct.as_ref().is_some_and(same)
    }

    /// The block device; `None` for a regular file.
    pub fn block_device(&self) -> Option<&Disk> {
        self.direct.as_ref()
    }

    /// What it holds.
    pub fn read(&self, extent: Extent) -> Result<Vec<u8>> {
        match &self.direct {
            Some(disk) => {
                let mut buffer = AlignedBuffer::new(extent.len().as_usize());
                Ok(disk.read(extent, &mut buffer)?.to_vec())
            }
            None => {
                let mut bytes = vec![0; extent.len().as_usize()];
                let read = self.file.read_exact_at(&mut bytes, extent.start().get());
                read.map_err(|error| self.failed("reading", extent, error))?;
                Ok(bytes)
            }
        }
    }

    /// Writes; on the medium after the next sync.
    pub fn write(&self, extent: Extent, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, extent.start().get());
        written.map_err(|error| self.failed("writing", extent, error))
    }

    /// Makes the extent read as zeroes.
    pub fn write_zeroes(&self, extent: Extent) -> Result<()> {
        let range = [extent.start().get(), extent.len().get()];
        let made = if self.direct.is_some() {
            // SAFETY: the request reads two u64.
            unsafe { libc::ioctl(self.file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) == 0 }
        } else {
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, range[0], range[1]).is_ok()
        };
        if made {
            return Ok(());
        }
        let pieces = extent.split(ByteLen::of(&ZEROES));
        pieces.into_iter().try_for_each(|piece| self.write(piece, &ZEROES[..piece.len().as_usize()]))
    }

    /// Puts every write on the medium and drops the pages.
    pub fn sync(&self) -> Result<()> {
        let device = || self.device.display().to_string();
        self.file.sync_all().map_err(|error| Error::io(format!("syncing {}", device()), error))?;
        // Only to keep the machine's page cache for others.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    }

    /// Writes out and forgets the device's cached pages: nothing stale is read, nothing late is written.
    pub fn flush_cache(&self) -> Result<()> {
        if self.direct.is_none() {
            return self.sync();
        }
        // SAFETY: the request takes no memory of ours.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), BLKFLSBUF, 0) } {
            0 => self.sync(),
            _ => {
                let context = format!("flushing {}", self.device.display());
                Err(Error::io(context, std::io::Error::last_os_error()))
            }
        }
    }

    fn failed(&self, doing: &str, extent: Extent, error: std::io::Error) -> Error {
        Error::io(format!("{doing} {} at {extent}", self.device.display()), error)
    }
}

fn open_exclusively(device: &Path, flags: i32) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open(device);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            let context = format!("{} is in use: something else holds it exclusively", device.display());
            Error::new(ErrorKind::Busy, context)
        }
        _ => Error::io(device.display().to_string(), error),
    })
}

/// Names the user of a disk, where the kernel would only say "busy".
fn refuse_in_use(disk: &Disk) -> Result<()> {
    let busy = |what: String| {
        let context = format!("{} cannot be written: {what}", disk.path().display());
        Err(Error::new(ErrorKind::Busy, context))
    };
    if let Some(mounted) = superblocks(&[disk.number()]).first() {
        let device = crate::inventory::device_path(mounted.number);
        return busy(format!("{device} is mounted at {}", mounted.mount_point.display()));
    }
    let members = members(disk.number());
    if let Some(swap) = swap_devices().iter().find(|swap| members.contains_key(swap)) {
        return busy(format!("{} is swapped to", crate::inventory::device_path(*swap)));
    }
    let partitions: Vec<DeviceNumber> = disk.partitions().iter().map(|partition| partition.device).collect();
    let held = |member: &&DeviceNumber| **member != disk.number() && !partitions.contains(member);
    match members.keys().find(held) {
        Some(holder) => busy(format!("{} is built on it", crate::inventory::device_path(*holder))),
        None => Ok(()),
    }
}

fn open_file(path: &Path) -> Result<(File, ByteLen)> {
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), error);
    let busy = |what: String| {
        Err(Error::new(ErrorKind::Busy, format!("{} cannot be written: {what}", path.display())))
    };
    let real = fs::canonicalize(path).map_err(failed)?;
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = read_text(entry.path().join("loop/backing_file"));
        if backing.is_some_and(|backing| Path::new(&backing) == real) {
            return busy(format!("/dev/{} is attached to it", entry.file_name().to_string_lossy()));
        }
    }
    let file = open_exclusively(path, 0)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return busy("another process has locked it".into());
    }
    let len = ByteLen::new(file.metadata().map_err(failed)?.len());
    Ok((file, len))
}
