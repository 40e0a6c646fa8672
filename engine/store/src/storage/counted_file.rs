//! A file that counts what is read from it and written to it.

use blocks::{ByteLen, ByteOffset, Extent, Result, StorageFile, Synced};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that have moved, since the file was opened.
#[derive(Debug, Default)]
pub(crate) struct FileCounts {
    written: AtomicU64,
}

/// Passes everything on and counts it.
#[derive(Debug)]
pub(crate) struct CountedFile {
    file: Arc<dyn StorageFile>,
    counts: Arc<FileCounts>,
}

impl FileCounts {
    /// Bytes written. Holes are none.
    pub(crate) fn written(&self) -> ByteLen {
        ByteLen::new(self.written.load(Ordering::Relaxed))
    }
}

impl CountedFile {
    pub(crate) fn around(file: Arc<dyn StorageFile>) -> (Arc<dyn StorageFile>, Arc<FileCounts>) {
        let counts = Arc::new(FileCounts::default());
        (Arc::new(CountedFile { file, counts: Arc::clone(&counts) }), counts)
    }
}

impl StorageFile for CountedFile {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> Result<ByteLen> {
        self.file.len()
    }

    fn drop_cached(&self) {
        self.file.drop_cached();
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.counts.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_at(offset, data)
    }

    fn write_vectored_at(&self, offset: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.counts.written.fetch_add(len as u64, Ordering::Relaxed);
        self.file.write_vectored_at(offset, parts)
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.file.set_len(len)
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        self.file.punch_hole(extent)
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        self.file.next_data(from)
    }

    fn sync(&self) -> Result<Synced> {
        self.file.sync()
    }

    fn host_file(&self) -> Option<&Arc<File>> {
        self.file.host_file()
    }
}
