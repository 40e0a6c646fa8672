//! A storage that counts what is written to another, for benchmarks and for tests of write amplification.

use blocks::{ByteLen, ByteOffset, Extent, OpenMode, Result, Storage, StorageFile, Synced};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What has been counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageCounts {
    /// Bytes written to files.
    pub written_bytes: u64,
    /// Calls that wrote them.
    pub writes: u64,
    /// Completed syncs of files.
    pub file_syncs: u64,
    /// Completed syncs of folders.
    pub dir_syncs: u64,
}

/// Passes everything on and counts the files whose name the filter takes.
#[derive(Debug)]
pub struct CountingStorage {
    inner: Arc<dyn Storage>,
    counters: Arc<Counters>,
    filter: fn(&str) -> bool,
}

#[derive(Debug, Default)]
struct Counters {
    written_bytes: AtomicU64,
    writes: AtomicU64,
    file_syncs: AtomicU64,
    dir_syncs: AtomicU64,
}

#[derive(Debug)]
struct CountingFile {
    inner: Arc<dyn StorageFile>,
    /// `None` where the file does not count.
    counters: Option<Arc<Counters>>,
}

impl CountingStorage {
    /// Counts what goes to files whose name, within the storage, `filter` takes; syncs of folders always count.
    pub fn new(inner: Arc<dyn Storage>, filter: fn(&str) -> bool) -> CountingStorage {
        CountingStorage { inner, counters: Arc::default(), filter }
    }

    /// What was counted since it was made.
    pub fn counts(&self) -> StorageCounts {
        let Counters { written_bytes, writes, file_syncs, dir_syncs } = &*self.counters;
        StorageCounts {
            written_bytes: written_bytes.load(Ordering::Relaxed),
            writes: writes.load(Ordering::Relaxed),
            file_syncs: file_syncs.load(Ordering::Relaxed),
            dir_syncs: dir_syncs.load(Ordering::Relaxed),
        }
    }
}

impl Storage for CountingStorage {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        let inner = self.inner.open(name, mode)?;
        let counters = (self.filter)(name).then(|| Arc::clone(&self.counters));
        Ok(Arc::new(CountingFile { inner, counters }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn make_dir(&self, dir: &str) -> Result<()> {
        self.inner.make_dir(dir)
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        self.inner.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> Result<Synced> {
        let synced = self.inner.sync_dir(dir)?;
        self.counters.dir_syncs.fetch_add(1, Ordering::Relaxed);
        Ok(synced)
    }

    fn free_space(&self) -> Result<Option<ByteLen>> {
        self.inner.free_space()
    }

    fn lock(&self) -> Result<()> {
        self.inner.lock()
    }
}

impl CountingFile {
    fn count(&self, bytes: usize) {
        if let Some(counters) = &self.counters {
            counters.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            counters.writes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl StorageFile for CountingFile {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<ByteLen> {
        self.inner.len()
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buffer)
    }

    fn write_past_cache(&self) -> bool {
        self.inner.write_past_cache()
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.inner.write_at(offset, data)?;
        self.count(data.len());
        Ok(())
    }

    fn write_vectored_at(&self, offset: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        self.inner.write_vectored_at(offset, parts)?;
        self.count(parts.iter().map(|part| part.len()).sum());
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.inner.set_len(len)
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        self.inner.punch_hole(extent)
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        self.inner.next_data(from)
    }

    fn sync(&self) -> Result<Synced> {
        let synced = self.inner.sync()?;
        if let Some(counters) = &self.counters {
            counters.file_syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(synced)
    }
}
