//! Writing past the page cache.
//!
//! A file that is written once and made durable before anybody reads it gains nothing from being in memory first: the
//! copy into fresh pages takes more of a processor than everything else that writing does.

use super::landing::TMPFS;
use blocks::{AlignedBuffer, ByteOffset};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shorter writes go through the cache, where the kernel joins them.
const LEN_MIN: usize = 64 << 10;

/// A second descriptor of a file for its long writes, once somebody asks for it.
#[derive(Debug, Default)]
pub(super) struct PastCache {
    file: OnceLock<Option<File>>,
    /// Opening succeeded and writing did not: the file system promised too much.
    refused: AtomicBool,
}

impl PastCache {
    /// Has long writes of `file` go past the cache from now on, where its file system has a medium and allows that.
    pub(super) fn begin(&self, file: &File) -> bool {
        let opened = self.file.get_or_init(|| {
            if rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type.cast_unsigned() == TMPFS) {
                return None;
            }
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
            options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
        });
        opened.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// Whether that was asked for.
    pub(super) fn has_begun(&self) -> bool {
        self.file.get().is_some()
    }

    /// Writes the data if it can go this way: wholly, or `false` and nothing is known of the range. Whoever asked writes
    /// it again the usual way, and meets there what is wrong, if it is more than that this way is barred.
    pub(super) fn write(&self, offset: ByteOffset, data: &[u8]) -> bool {
        let Some(Some(file)) = self.file.get() else { return false };
        let alignment = AlignedBuffer::ALIGNMENT;
        let aligned = offset.get().is_multiple_of(alignment as u64)
            && data.len().is_multiple_of(alignment)
            && data.as_ptr().addr().is_multiple_of(alignment);
        if !aligned || data.len() < LEN_MIN || self.refused.load(Ordering::Relaxed) {
            return false;
        }
        let written = file.write_all_at(data, offset.get());
        if written.is_err() {
            self.refused.store(true, Ordering::Relaxed);
        }
        written.is_ok()
    }
}
