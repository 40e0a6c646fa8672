//! How much of the storage a unit takes up, and the quota that stops its replication.
//!
//! What is appended is counted as it comes; everything else is counted anew from the manifest and the files whenever
//! somebody asks, and after what gives space back.

use crate::index::entry::{BLOCK_BYTES, ENTRIES_PER_BLOCK, FENCES_PER_BLOCK};
use crate::unit::Unit;
use crate::unit::files;
use crate::unit::manifest::Manifest;
use crate::unit::unit::UnitState;
use blocks::{ByteLen, Error, ErrorKind, OpenMode, Result, Storage};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a unit takes up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Its images, as far as they are allocated.
    pub images: ByteLen,
    /// Its logs and indexes, those of sessions and other branches included.
    pub journal: ByteLen,
    /// What both together may take up; `None` is as much as there is.
    pub quota: Option<ByteLen>,
}

impl Usage {
    /// Images and journal.
    pub fn total(&self) -> ByteLen {
        self.images + self.journal
    }
}

/// The count that appends look at.
#[derive(Debug, Default)]
pub(crate) struct SpaceCount {
    /// 0 is none.
    quota: AtomicU64,
    images: AtomicU64,
    journal: AtomicU64,
}

impl SpaceCount {
    /// Counts what is about to be appended; `NoSpace` where it does not fit the quota. Only replication is stopped by it
    /// (`bound`): a guest that runs on the stand-in must not find its disk full for the sake of history.
    pub(crate) fn take(&self, len: ByteLen, bound: bool, name: &str) -> Result<()> {
        let quota = self.quota.load(Ordering::Relaxed);
        let used = self.images.load(Ordering::Relaxed) + self.journal.load(Ordering::Relaxed);
        if bound && quota != 0 && used.saturating_add(len.get()) > quota {
            let context =
                format!("{name}: {used} of a quota of {quota} bytes are used, {len} more are needed");
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        self.add(len);
        Ok(())
    }

    /// Counts a file that was made.
    pub(crate) fn add(&self, len: ByteLen) {
        self.journal.fetch_add(len.get(), Ordering::Relaxed);
    }

    fn set(&self, usage: Usage) {
        self.quota.store(usage.quota.map_or(0, ByteLen::get), Ordering::Relaxed);
        self.images.store(usage.images.get(), Ordering::Relaxed);
        self.journal.store(usage.journal.get(), Ordering::Relaxed);
    }
}

impl Unit {
    /// What the unit takes up now.
    pub fn usage(&self) -> Result<Usage> {
        let state = self.lock_open()?;
        self.recount(&state)
    }

    /// Whether a write of that length is kept from being replicated by the quota.
    pub fn is_quota_reached(&self, len: ByteLen) -> Result<bool> {
        let usage = self.usage()?;
        Ok(usage.quota.is_some_and(|quota| usage.total() + len > quota))
    }

    /// Bounds what the unit may take up, or no longer. What is there already stays.
    pub fn set_quota(&self, quota: Option<ByteLen>) -> Result<()> {
        if quota.is_some_and(|quota| quota.is_zero()) {
            return Err(Error::new(ErrorKind::InvalidInput, "a quota of 0 bytes keeps nothing"));
        }
        self.change(|manifest| {
            manifest.quota = quota;
            Ok(())
        })?;
        self.usage().map(drop)
    }

    /// Counts anew, under the lock of the state.
    pub(super) fn recount(&self, state: &UnitState) -> Result<Usage> {
        let manifest = &state.manifest;
        let mut usage = Usage { images: ByteLen::ZERO, journal: sealed_len(manifest), quota: manifest.quota };
        usage.journal += state.disks.values().map(|disk| disk.open_log_len()).sum();
        for disk in manifest.disk_indexes() {
            let name = files::present_image_name(self.storage(), &self.dir, disk, manifest.image_format)?;
            let storage: &dyn Storage = self.storage();
            usage.images += storage.open(&name, OpenMode::Read)?.allocated()?;
        }
        self.space.set(usage);
        Ok(usage)
    }
}

/// How long an index of so many entries is.
pub(crate) fn index_len(entries: u64) -> ByteLen {
    let blocks = entries.div_ceil(ENTRIES_PER_BLOCK as u64);
    ByteLen::new((1 + blocks + blocks.div_ceil(FENCES_PER_BLOCK as u64)) * BLOCK_BYTES as u64)
}

/// Sealed logs with their indexes; a merged index has at most the entries of those that it is over.
fn sealed_len(manifest: &Manifest) -> ByteLen {
    let own: ByteLen = manifest.deltas.values().map(|delta| delta.log_len + index_len(delta.entries)).sum();
    let merged = manifest.merged.iter().map(|merged| {
        let within = manifest.deltas.range(merged.first..=merged.last);
        index_len(within.filter(|(_, d)| d.disk == merged.disk).map(|(_, delta)| delta.entries).sum())
    });
    own + merged.sum::<ByteLen>()
}
