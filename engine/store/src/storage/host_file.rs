//! A file or block device of the host as a [`StorageFile`].

use super::landing::Landing;
use super::past_cache::PastCache;
use super::sharing;
use blocks::{
    Arrived, ByteLen, ByteOffset, Error, ErrorKind, Extent, FileRange, OpenMode, Place, Result, StorageFile,
    Synced, WallClock,
};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is written at a time where a hole has to be written out as zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// The most buffers that one `pwritev` takes (the kernel's UIO_MAXIOV).
const VECTORS_MAX: usize = 1024;

/// An open file or block device, through the page cache unless its long writes are to go past it.
#[derive(Debug)]
pub struct HostFile {
    file: Arc<File>,
    /// Its path, for messages.
    name: String,
    is_device: bool,
    known: Mutex<KnownData>,
    past_cache: PastCache,
    landing: Landing,
    syncs: Syncs,
}

/// What a sync of a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syncs {
    /// It ends when all that was written is on the medium.
    Kept,
    /// Nothing, because whoever opened the file asked for that.
    Skipped,
}

/// The data that was found last: some file systems look at every page up to the next hole to find it.
#[derive(Debug, Default)]
struct KnownData {
    run: Option<Extent>,
    /// Rises with each hole that is made, so that what was found before it is not taken for newer.
    holes_made: u64,
}

impl HostFile {
    /// Opens a file or block device, or makes a new file.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        HostFile::open_with(path.as_ref(), mode, false)
    }

    /// The same, but a block device is refused with `Busy` while anything else (a mounted file system, RAID, another
    /// exclusive opener) holds it.
    pub fn open_exclusive(path: impl AsRef<Path>, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        HostFile::open_with(path.as_ref(), mode, true)
    }

    fn open_with(path: &Path, mode: OpenMode, exclusive: bool) -> Result<Arc<dyn StorageFile>> {
        let name = path.display().to_string();
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew);
        // O_EXCL without O_CREAT is defined for block devices only.
        let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if exclusive && is_device {
            options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
        }
        let file = options.open(path).map_err(|error| Error::io(name.clone(), error))?;
        Ok(Arc::new(HostFile::from_file(file, name, Syncs::Kept)?))
    }

    /// Wraps an open file; `name` is for messages. Only regular files and block devices.
    pub(super) fn from_file(file: File, name: String, syncs: Syncs) -> Result<HostFile> {
        let kind = file.metadata().map_err(|error| Error::io(name.clone(), error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let context = format!("{name} is neither a regular file nor a block device");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let is_device = kind.is_block_device();
        Ok(HostFile {
            file: Arc::new(file),
            name,
            is_device,
            known: Mutex::default(),
            past_cache: PastCache::default(),
            landing: Landing::default(),
            syncs,
        })
    }

    fn failed(&self, what: &str, at: impl std::fmt::Display, error: std::io::Error) -> Error {
        Error::io(format!("{}: {what} at {at}", self.name), error)
    }

    fn known(&self) -> MutexGuard<'_, KnownData> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are holes now where data was.
    fn forget_data(&self) {
        let mut known = self.known();
        known.run = None;
        known.holes_made += 1;
    }

    fn find_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        let end = self.len()?.end();
        let Some(rest) = Extent::between(from, end) else { return Ok(None) };
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from.get())) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(rest)),
            Err(errno) => return Err(self.failed("looking for data", from, errno.into())),
        };
        let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(hole) => ByteOffset::new(hole),
            Err(Errno::NXIO) => end,
            Err(errno) => return Err(self.failed("looking for holes", start, errno.into())),
        };
        // A file that another process changes between the two calls may give an empty range: call it data.
        let start = ByteOffset::new(start);
        Ok(Some(Extent::between(start, hole).unwrap_or(rest)))
    }

    /// The rest of an extent whose pages could not be written from `put` bytes on: a write either can, or says why not.
    pub(super) fn write_what_did_not_land(
        &self,
        extent: Extent,
        put: usize,
        from: &mut dyn Arrived,
    ) -> Result<()> {
        let mut rest = vec![0; extent.len().as_usize() - put];
        let mut filled = 0;
        while filled < rest.len() {
            match from.put(Place::over(&mut rest[filled..])) {
                Ok(0) => {
                    return Err(self.failed("receiving", extent, std::io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(count) => filled += count,
                Err(error) => return Err(self.failed("receiving", extent, error)),
            }
        }
        self.write_at(extent.start() + ByteLen::new(put as u64), &rest)
    }

    fn write_out_zeroes(&self, extent: Extent) -> Result<()> {
        for piece in extent.split(ByteLen::of(&ZEROES)) {
            self.write_at(piece.start(), &ZEROES[..piece.len().as_usize()])?;
        }
        Ok(())
    }
}

impl StorageFile for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn allocated(&self) -> Result<ByteLen> {
        use std::os::unix::fs::MetadataExt;
        if self.is_device {
            return self.len();
        }
        let found = self.file.metadata().map_err(|error| Error::io(self.name.clone(), error))?;
        // Always of 512 bytes, whatever the file system's own are.
        Ok(ByteLen::new(found.blocks() * 512))
    }

    fn modified(&self) -> Result<Option<WallClock>> {
        let found = self.file.metadata().and_then(|metadata| metadata.modified());
        let found = found.map_err(|error| Error::io(self.name.clone(), error))?;
        let since = found.duration_since(std::time::UNIX_EPOCH).ok();
        Ok(since.and_then(|since| u64::try_from(since.as_millis()).ok()).map(WallClock))
    }

    fn len(&self) -> Result<ByteLen> {
        let len = if self.is_device {
            rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(std::io::Error::from)
        } else {
            self.file.metadata().map(|metadata| metadata.len())
        };
        len.map(ByteLen::new).map_err(|error| Error::io(self.name.clone(), error))
    }

    fn drop_cached(&self) {
        // A hint: where it fails, what follows is read from memory.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    fn write_past_cache(&self) -> bool {
        self.syncs == Syncs::Kept && self.past_cache.begin(&self.file)
    }

    fn share(&self, offset: ByteOffset, from: &FileRange, len: ByteLen) -> Result<bool> {
        Ok(!self.is_device && sharing::share(&self.file, offset, from, len))
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset.get()).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                let (name, wanted) = (&self.name, buffer.len());
                return Error::corrupt(format!("{name} ends before the {wanted} bytes wanted at {offset}"));
            }
            self.failed("reading", offset, error)
        })
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        if self.past_cache.write(offset, data) {
            return Ok(());
        }
        self.file.write_all_at(data, offset.get()).map_err(|error| self.failed("writing", offset, error))
    }

    fn write_vectored_at(&self, offset: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        let mut at = offset.get();
        let mut slices: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(VECTORS_MAX)];
            match rustix::io::pwritev(&self.file, batch, at) {
                Ok(0) => {
                    return Err(self.failed("writing", at, std::io::ErrorKind::WriteZero.into()));
                }
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("writing", at, errno.into())),
            }
        }
        Ok(())
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        if self.is_device { None } else { self.landing.len_min(&self.file) }
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived) -> Result<bool> {
        if self.is_device || self.past_cache.has_begun() {
            return Ok(false);
        }
        let Some(put) = self.landing.write(&self.file, extent, from) else { return Ok(false) };
        let put = put.map_err(|error| self.failed("receiving", extent, error))?;
        if put < extent.len().as_usize() {
            self.write_what_did_not_land(extent, put, from)?;
        }
        Ok(true)
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        if !self.is_device {
            let set = self.file.set_len(len.get());
            self.forget_data();
            return set.map_err(|error| self.failed("setting length", len, error));
        }
        let size = self.len()?;
        if len == size {
            return Ok(());
        }
        let kind = if len > size { ErrorKind::NoSpace } else { ErrorKind::Unsupported };
        Err(Error::new(kind, format!("{} is a device of {size} bytes, not {len}", self.name)))
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        let Some(extent) = Extent::whole(self.len()?).and_then(|whole| whole.intersect(extent)) else {
            return Ok(());
        };
        // On devices the first discards where that is known to leave zeroes, the second lets the kernel write them.
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        for way in ways {
            let flags = way | FallocateFlags::KEEP_SIZE;
            let punched = rustix::fs::fallocate(&self.file, flags, extent.start().get(), extent.len().get());
            self.forget_data();
            match punched {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => return Err(self.failed("punching a hole", extent, errno.into())),
            }
        }
        self.write_out_zeroes(extent)
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        let holes_made = {
            let known = self.known();
            // Data that has become a hole behind our back may still be called data.
            if let Some(run) = known.run.filter(|run| run.start() <= from && from < run.end()) {
                return Ok(Extent::between(from, run.end()));
            }
            known.holes_made
        };
        let found = self.find_data(from)?;
        let mut known = self.known();
        if known.holes_made == holes_made {
            known.run = found.or(known.run);
        }
        Ok(found)
    }

    fn sync(&self) -> Result<Synced> {
        if self.syncs == Syncs::Skipped {
            return Ok(Synced::after_completed_sync());
        }
        self.file.sync_data().map_err(|error| Error::io(format!("{}: syncing", self.name), error))?;
        if !self.is_device {
            self.landing.has_been_synced(&self.file);
        }
        Ok(Synced::after_completed_sync())
    }

    fn host_file(&self) -> Option<&Arc<File>> {
        Some(&self.file)
    }
}
