//! A storage in memory that is quick to make, cheap where it is empty, and never holds more than a bound a file.

use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile, Synced};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE: u64 = 4096;
/// What a file holds at most; a write beyond it is a full medium.
const STORED_MAX: u64 = 32 << 20;
/// The longest that a file becomes.
const LEN_MAX: u64 = 1 << 40;

/// Pages that hold data; what lies between them is a hole.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

/// The files of one image by name. A clone is a copy.
#[derive(Default)]
pub struct MemoryStorage(Mutex<BTreeMap<String, Arc<MemoryFile>>>);

/// One of them.
pub struct MemoryFile {
    name: String,
    content: Mutex<Content>,
}

impl MemoryStorage {
    /// The file of that name, which is made where there is none.
    pub fn file(&self, name: &str) -> Arc<dyn StorageFile> {
        let mut files = locked(&self.0);
        let made = || Arc::new(MemoryFile { name: name.to_owned(), content: Mutex::default() });
        Arc::clone(files.entry(name.to_owned()).or_insert_with(made)) as Arc<dyn StorageFile>
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> MemoryStorage {
        let copy = |file: &Arc<MemoryFile>| {
            let content = Mutex::new(locked(&file.content).clone());
            Arc::new(MemoryFile { name: file.name.clone(), content })
        };
        let files = locked(&self.0).iter().map(|(name, file)| (name.clone(), copy(file))).collect();
        MemoryStorage(Mutex::new(files))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pieces of a range, each in one page: page, first byte within it, how many.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = (at < end).then(|| {
            let inside = at % PAGE;
            (at / PAGE, inside as usize, (PAGE - inside).min(end - at) as usize)
        })?;
        at += piece.2 as u64;
        Some(piece)
    })
}

impl MemoryFile {
    fn no_space(&self) -> Error {
        Error::new(ErrorKind::NoSpace, format!("{}: the memory for it is full", self.name))
    }
}

impl StorageFile for MemoryFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::new(locked(&self.content).len))
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        let content = locked(&self.content);
        if offset.get().checked_add(buffer.len() as u64).is_none_or(|end| end > content.len) {
            return Err(Error::corrupt(format!("{}: it ends before {offset}", self.name)));
        }
        let mut rest = buffer;
        for (page, inside, len) in pieces(offset.get(), rest.len()) {
            let (bytes, after) = rest.split_at_mut(len);
            match content.pages.get(&page) {
                Some(page) => bytes.copy_from_slice(&page[inside..inside + len]),
                None => bytes.fill(0),
            }
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let mut content = locked(&self.content);
        let end = offset.get().checked_add(data.len() as u64).filter(|end| *end <= LEN_MAX);
        let end = end.ok_or_else(|| self.no_space())?;
        if content.pages.len() as u64 * PAGE + data.len() as u64 > STORED_MAX {
            return Err(self.no_space());
        }
        let mut rest = data;
        for (page, inside, len) in pieces(offset.get(), data.len()) {
            let page = content.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[inside..inside + len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
        }
        content.len = content.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        if len.get() > LEN_MAX {
            return Err(self.no_space());
        }
        let mut content = locked(&self.content);
        let inside = (len.get() % PAGE) as usize;
        content.pages.split_off(&len.get().div_ceil(PAGE));
        if inside != 0
            && let Some(last) = content.pages.get_mut(&(len.get() / PAGE))
        {
            last[inside..].fill(0);
        }
        content.len = len.get();
        Ok(())
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        let mut content = locked(&self.content);
        let end = extent.end().get().min(content.len);
        let (first, last) = (extent.start().get().div_ceil(PAGE), end / PAGE);
        if first < last {
            let mut behind = content.pages.split_off(&first);
            content.pages.append(&mut behind.split_off(&last));
        }
        let head = extent.start().get()..end.min(first * PAGE);
        let tail = (last * PAGE).max(extent.start().get())..end;
        for range in [head, tail].into_iter().filter(|range| range.start < range.end) {
            for (page, inside, len) in pieces(range.start, (range.end - range.start) as usize) {
                if let Some(page) = content.pages.get_mut(&page) {
                    page[inside..inside + len].fill(0);
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        let content = locked(&self.content);
        let mut pages = content.pages.range(from.get() / PAGE..).map(|(page, _)| *page);
        let Some(first) = pages.next() else { return Ok(None) };
        let joined = pages.enumerate().take_while(|(at, page)| *page == first + 1 + *at as u64).count();
        let start = ByteOffset::new((first * PAGE).max(from.get()));
        let end = ByteOffset::new(((first + 1 + joined as u64) * PAGE).min(content.len));
        Ok(Extent::between(start, end))
    }

    fn allocated(&self) -> Result<ByteLen> {
        Ok(ByteLen::new(locked(&self.content).pages.len() as u64 * PAGE))
    }

    fn sync(&self) -> Result<Synced> {
        Ok(Synced::after_completed_sync())
    }
}

impl Storage for MemoryStorage {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        let is_there = locked(&self.0).contains_key(name);
        let refused = match (mode, is_there) {
            (OpenMode::CreateNew, true) => ErrorKind::AlreadyExists,
            (OpenMode::Read | OpenMode::ReadWrite, false) => ErrorKind::NotFound,
            _ => return Ok(self.file(name)),
        };
        Err(Error::new(refused, name))
    }

    fn rename(&self, from: &str, _to: &str) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, format!("{from}: no image renames files")))
    }

    fn remove(&self, name: &str) -> Result<()> {
        locked(&self.0).remove(name).map(drop).ok_or_else(|| Error::new(ErrorKind::NotFound, name))
    }

    fn list(&self, _dir: &str) -> Result<Vec<String>> {
        Ok(locked(&self.0).keys().cloned().collect())
    }

    fn make_dir(&self, _dir: &str) -> Result<()> {
        Ok(())
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, format!("{dir}: no image removes folders")))
    }

    fn sync_dir(&self, _dir: &str) -> Result<Synced> {
        Ok(Synced::after_completed_sync())
    }

    fn free_space(&self) -> Result<Option<ByteLen>> {
        Ok(None)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(locked(&self.0).keys()).finish()
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
