//! Where the store keeps its files: a folder of the host, or in tests something that fails like hardware.
//!
//! Names are relative to the storage's root, parts separated by `/`, without `.`, `..` or empty parts.
//! What was written is durable only after [`StorageFile::sync`]; that a file exists, is gone or has a new name only
//! after [`Storage::sync_dir`] of its folder. Nothing here caches, retries or repairs.

use crate::{Arrived, ByteLen, ByteOffset, Extent, FileRange, Result, Synced, WallClock};
use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Only reading; the file must exist.
    Read,
    /// Reading and writing; the file must exist.
    ReadWrite,
    /// A new empty file for reading and writing; must not exist.
    CreateNew,
}

/// A tree of files.
pub trait Storage: Send + Sync + Debug {
    /// Opens or creates a file. Errors: `NotFound`, `AlreadyExists`, `Io`.
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<dyn StorageFile>>;

    /// Gives `from` the name `to`, replacing what has it. Atomic; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Removes a file. Open handles go on working. `NotFound` where there is none.
    fn remove(&self, name: &str) -> Result<()>;

    /// The names of files and folders directly in the folder `dir` ("" is the root), sorted.
    fn list(&self, dir: &str) -> Result<Vec<String>>;

    /// Makes a folder and those above it; succeeds where they exist.
    fn make_dir(&self, dir: &str) -> Result<()>;

    /// Removes a folder and everything in it; succeeds where it does not exist.
    fn remove_dir(&self, dir: &str) -> Result<()>;

    /// Puts the folder's entries on the medium.
    fn sync_dir(&self, dir: &str) -> Result<Synced>;

    /// Room left for new data; `None` where it cannot be told.
    fn free_space(&self) -> Result<Option<ByteLen>>;

    /// Claims the storage until it is dropped. `Busy` where another process, or another storage on the same files, has
    /// it. A storage that nobody else can reach has nothing to claim.
    fn lock(&self) -> Result<()> {
        Ok(())
    }
}

/// An open file. Reads and writes from many threads at once are allowed; those that overlap are the caller's affair.
pub trait StorageFile: Send + Sync + Debug {
    /// The name it was opened by, for messages; it may have another one by now.
    fn name(&self) -> &str;

    /// The file's length in bytes.
    fn len(&self) -> Result<ByteLen>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()?.is_zero())
    }

    /// Lets the system forget what it holds of the file in memory, as far as that is on the medium already, so that what
    /// is read next comes from there. A hint: it may do nothing.
    fn drop_cached(&self) {}

    /// Lets long writes go past the system's memory from now on, straight to the medium, where that is possible. For a
    /// file that is written once and read later. Whether they do: those that are whole blocks of 4 KiB in an
    /// [`AlignedBuffer`](crate::AlignedBuffer), at multiples of 4 KiB.
    fn write_past_cache(&self) -> bool {
        false
    }

    /// Makes `len` bytes from `offset` on the bytes of `from` without copying them: both files lead to the same place on
    /// the medium, and a later write to either leaves the other as it is. `false` where that is not possible, for the
    /// file systems or for these places: then nothing is known of the bytes here until they are written.
    fn share(&self, _offset: ByteOffset, _from: &FileRange, _len: ByteLen) -> Result<bool> {
        Ok(false)
    }

    /// Fills the whole buffer; `Corrupt` where the file ends before it does.
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()>;

    /// Writes the whole buffer, growing the file where needed. With the operating system when this returns.
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()>;

    /// Writes several buffers one after the other from `offset` on, as one write where the system can.
    fn write_vectored_at(&self, offset: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_at(at, part)?;
            at += ByteLen::of(part);
        }
        Ok(())
    }

    /// The shortest write for which [`StorageFile::write_arrived`] is worth a try; `None` where it never is.
    fn arrived_len_min(&self) -> Option<ByteLen> {
        None
    }

    /// Writes as many arrived bytes as the extent is long as [`StorageFile::write_at`] does, but has the kernel put them
    /// where they belong. `false` where that is not possible, or takes longer: then nothing was consumed. Unlike writes,
    /// two that overlap, or one that overlaps with a write or a hole, may mix byte by byte.
    fn write_arrived(&self, _extent: Extent, _from: &mut dyn Arrived) -> Result<bool> {
        Ok(false)
    }

    /// Cuts the file, or grows it with zeroes that take no space.
    fn set_len(&self, len: ByteLen) -> Result<()>;

    /// Gives the range's space back; it reads as zeroes. Never changes the length. Where holes are not supported,
    /// zeroes are written.
    fn punch_hole(&self, extent: Extent) -> Result<()>;

    /// The first range at or after `from` that may hold data, up to where the next hole starts; `None` where only a
    /// hole is left. A file that cannot tell says it is all data.
    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>>;

    /// How much of the storage the file takes up, which is less than its length where it has holes.
    fn allocated(&self) -> Result<ByteLen> {
        self.len()
    }

    /// When the file was written last; `None` where that is not known.
    fn modified(&self) -> Result<Option<WallClock>> {
        Ok(None)
    }

    /// Puts everything written before this call, and the file's length, on the medium. After an error nothing is
    /// known of those writes, and trying again proves nothing.
    fn sync(&self) -> Result<Synced>;

    /// The open file of the host behind this, where there is one whose byte n is this file's byte n.
    fn host_file(&self) -> Option<&Arc<File>> {
        None
    }
}
