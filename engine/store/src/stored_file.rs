//! A file that many hold, few have open, and that goes away with its last holder once it is no longer needed.

use blocks::{OpenMode, Result, Storage, StorageFile};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many files of a store are open at a time for reading indexes and logs.
const HANDLES_MAX: usize = 256;

/// The open files of a store, bounded.
#[derive(Debug)]
pub(crate) struct FileTable {
    storage: Arc<dyn Storage>,
    next_id: AtomicU64,
    handles: Mutex<Handles>,
}

#[derive(Debug, Default)]
struct Handles {
    open: HashMap<u64, (Arc<dyn StorageFile>, u64)>,
    clock: u64,
}

/// An immutable file, or a log whose sealed part is.
#[derive(Debug)]
pub(crate) struct StoredFile {
    table: Arc<FileTable>,
    id: u64,
    name: String,
    doomed: AtomicBool,
}

impl FileTable {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Arc<FileTable> {
        Arc::new(FileTable { storage, next_id: AtomicU64::new(1), handles: Mutex::default() })
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The file of that name, which exists or will.
    pub(crate) fn file(self: &Arc<Self>, name: String) -> Arc<StoredFile> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(StoredFile { table: Arc::clone(self), id, name, doomed: AtomicBool::new(false) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredFile {
    /// Differs for every file of this process's life.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An open handle for reading.
    pub(crate) fn open(&self) -> Result<Arc<dyn StorageFile>> {
        {
            let mut handles = self.table.lock();
            handles.clock += 1;
            let clock = handles.clock;
            if let Some((handle, used)) = handles.open.get_mut(&self.id) {
                *used = clock;
                return Ok(Arc::clone(handle));
            }
        }
        let handle = self.table.storage.open(&self.name, OpenMode::Read)?;
        let mut handles = self.table.lock();
        if handles.open.len() >= HANDLES_MAX {
            let oldest = handles.open.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.and_then(|id| handles.open.remove(&id));
        }
        let clock = handles.clock;
        handles.open.insert(self.id, (Arc::clone(&handle), clock));
        Ok(handle)
    }

    /// Removes the file once nobody holds it any more. What a crash keeps from being removed, the next opening of
    /// the store removes.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }
}

impl Drop for StoredFile {
    fn drop(&mut self) {
        self.table.lock().open.remove(&self.id);
        if self.doomed.load(Ordering::Acquire)
            && let Err(error) = self.table.storage.remove(&self.name)
            && error.kind() != blocks::ErrorKind::NotFound
        {
            tracing::warn!("a file that is no longer needed could not be removed: {error}");
        }
    }
}
