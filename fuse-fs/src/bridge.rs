//! Between the kernel and a [`Tree`]: paths and numbers, what is open, and what may be done with it. `requests` takes what
//! the kernel asks; nothing but these two, `errno` and `mount` knows of `fuser`.

use crate::errno::errno_of;
use crate::inodes::{Inodes, number_of};
use crate::open_file::{OpenFile, Seek};
use crate::tree::{Entry, EntryKind, Node, NodeKind, Tree};
use blocks::Error;
use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, INodeNo, OpenFlags, ReplyDirectory, Request};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

pub(crate) const BLOCK_BYTES: u32 = 4096;

/// A tree as the kernel asks of it.
pub(crate) struct Bridge<T> {
    pub(crate) tree: T,
    owner: (u32, u32),
    pub(crate) inodes: Inodes,
    handles: RwLock<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    /// The files that are open, by path: whoever opens one of them again shares it, and the lock over its sectors.
    files: Mutex<HashMap<Arc<str>, Weak<OpenFile>>>,
    /// What is meant by a handle that an earlier server gave out.
    adopted: RwLock<Option<Handle>>,
}

/// What somebody has open.
#[derive(Clone)]
pub(crate) enum Handle {
    File { path: Arc<str>, file: Arc<OpenFile>, writable: bool },
    Folder(Arc<Vec<Entry>>),
}

pub(crate) type Answer<T> = Result<T, Errno>;

impl<T: Tree> Bridge<T> {
    /// The tree, whose files belong to this user and group.
    pub fn new(tree: T, owner: (u32, u32)) -> Bridge<T> {
        Bridge {
            tree,
            owner,
            inodes: Inodes::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            files: Mutex::default(),
            adopted: RwLock::default(),
        }
    }

    /// The file may have been opened while another process served this mount: the kernel knows its number, and its
    /// handles are still used.
    pub fn adopt(&self, path: &str) -> blocks::Result<()> {
        self.inodes.look_up(path);
        let path: Arc<str> = path.into();
        let file = self.open_file(&path, true)?;
        *self.adopted.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Handle::File { path, file, writable: true });
        // Handles of this server must not be taken for those of the one before: they begin with the time.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanoseconds = u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(1 << 62);
        self.next_handle.store(nanoseconds, Ordering::Relaxed);
        Ok(())
    }

    fn handle(&self, handle: FileHandle) -> Option<Handle> {
        let found = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        found.or_else(|| self.adopted.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(crate) fn path(&self, number: INodeNo) -> Answer<Arc<str>> {
        self.inodes.path(number.0).ok_or(Errno::ENOENT)
    }

    pub(crate) fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<String> {
        let (parent, name) = (self.path(parent)?, name.to_str().ok_or(Errno::ENOENT)?);
        Ok(if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") })
    }

    pub(crate) fn node(&self, path: &str) -> Answer<Node> {
        self.tree.node(path).map_err(|error| errno_of(path, &error))?.ok_or(Errno::ENOENT)
    }

    pub(crate) fn attributes(&self, number: u64, node: &Node) -> FileAttr {
        let (kind, size, perm, nlink) = match node.kind {
            NodeKind::Folder { folders } => (FileType::Directory, 0, 0o555, folders.saturating_add(2)),
            NodeKind::Link { len } => (FileType::Symlink, len, 0o777, 1),
            NodeKind::File { len, writable: true, .. } => (FileType::RegularFile, len, 0o644, 1),
            NodeKind::File { len, writable: false, .. } => (FileType::RegularFile, len, 0o444, 1),
        };
        FileAttr {
            ino: INodeNo(number),
            size,
            // Nothing here takes up room of its own.
            blocks: 0,
            atime: node.modified,
            mtime: node.modified,
            ctime: node.modified,
            crtime: node.modified,
            kind,
            perm,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    pub(crate) fn add_handle(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        FileHandle(number)
    }

    pub(crate) fn remove_handle(&self, handle: FileHandle) {
        let removed = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        let path = match &removed {
            Some(Handle::File { path, .. }) => path.clone(),
            Some(Handle::Folder(_)) | None => return,
        };
        drop(removed);
        let mut files = self.files();
        if files.get(&path).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&path);
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<OpenFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on an open file.
    pub(crate) fn with_file<R>(
        &self,
        handle: FileHandle,
        work: impl FnOnce(&OpenFile) -> blocks::Result<R>,
    ) -> Answer<R> {
        match self.handle(handle) {
            Some(Handle::File { file, path, .. }) => work(&file).map_err(|error| errno_of(&path, &error)),
            Some(Handle::Folder(_)) => Err(Errno::EISDIR),
            None => Err(Errno::EBADF),
        }
    }

    /// The same where it was opened for writing.
    pub(crate) fn with_written<R>(
        &self,
        handle: FileHandle,
        work: impl FnOnce(&OpenFile) -> blocks::Result<R>,
    ) -> Answer<R> {
        match self.handle(handle) {
            Some(Handle::File { writable: false, .. }) => Err(Errno::EBADF),
            _ => self.with_file(handle, work),
        }
    }

    fn open_file(&self, path: &Arc<str>, writable: bool) -> blocks::Result<Arc<OpenFile>> {
        let shared = self.files().get(path).and_then(Weak::upgrade);
        if let Some(file) = shared
            && (!writable || !file.is_read_only())
        {
            return Ok(file);
        }
        // Not under the lock: what an image needs to know of its disk may take a while.
        let file = Arc::new(OpenFile::new(self.tree.open(path, writable)?));
        let mut files = self.files();
        if let Some(other) = files.get(path).and_then(Weak::upgrade)
            && !other.is_read_only()
        {
            return Ok(other);
        }
        files.insert(path.clone(), Arc::downgrade(&file));
        Ok(file)
    }

    pub(crate) fn open_node(
        &self,
        request: &Request,
        number: INodeNo,
        flags: OpenFlags,
    ) -> Answer<(FileHandle, FopenFlags)> {
        let path = self.path(number)?;
        let NodeKind::File { writable, made_anew, .. } = self.node(&path)?.kind else {
            return Err(Errno::EISDIR);
        };
        let wants = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        if wants && !writable {
            return Err(Errno::EROFS);
        }
        if wants && request.uid() != 0 && request.uid() != self.owner.0 {
            return Err(Errno::EACCES);
        }
        let opened = match made_anew {
            true => self.tree.open(&path, wants).map(|source| Arc::new(OpenFile::new(source))),
            false => self.open_file(&path, wants),
        };
        let file = opened.map_err(|error| errno_of(&path, &error))?;
        let flags = match (made_anew, writable) {
            (true, _) => FopenFlags::FOPEN_DIRECT_IO,
            (false, true) => FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            // What cannot change may stay in the page cache after the last close.
            (false, false) => FopenFlags::FOPEN_KEEP_CACHE,
        };
        Ok((self.add_handle(Handle::File { path, file, writable: wants }), flags))
    }

    /// Refuses every change of attributes but that of a length to what it is.
    pub(crate) fn set_attributes(
        &self,
        number: INodeNo,
        size: Option<u64>,
        others: bool,
    ) -> Answer<FileAttr> {
        let path = self.path(number)?;
        let node = self.node(&path)?;
        match node.kind {
            NodeKind::File { writable: true, len, .. } if size.is_none_or(|size| size == len) && !others => {
                Ok(self.attributes(number.0, &node))
            }
            NodeKind::File { writable: true, .. } => Err(Errno::EPERM),
            _ => Err(Errno::EROFS),
        }
    }

    pub(crate) fn allocate(&self, handle: FileHandle, offset: u64, len: u64, mode: i32) -> Answer<()> {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        self.with_written(handle, |file| match mode {
            PUNCH => file.zero(offset, len, false),
            ZERO_KEEP => file.zero(offset, len, true),
            ZERO if offset.saturating_add(len) <= file.len() => file.zero(offset, len, true),
            mode => {
                let what = format!("fallocate of {len} bytes at {offset} with mode {mode:#x}");
                Err(Error::new(blocks::ErrorKind::Unsupported, what))
            }
        })
    }

    pub(crate) fn seek(&self, handle: FileHandle, offset: i64, whence: i32) -> Answer<i64> {
        let wanted = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::EINVAL),
        };
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let found = self.with_file(handle, |file| file.seek(from, wanted))?;
        found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
    }

    /// `.` and `..`, then what is in the folder.
    pub(crate) fn fill(
        &self,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Answer<()> {
        let found = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        let Some(Handle::Folder(entries)) = found else { return Err(Errno::EBADF) };
        let path = self.path(number)?;
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let dots = [(".", number.0), ("..", number_of(parent))].into_iter();
        let dots = dots.map(|(name, number)| (name, number, FileType::Directory));
        let named = entries.iter().map(|entry| {
            let child = if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
            let kind = match entry.kind {
                EntryKind::Folder => FileType::Directory,
                EntryKind::Link => FileType::Symlink,
                EntryKind::File => FileType::RegularFile,
            };
            (entry.name.as_str(), number_of(&child), kind)
        });
        let skip = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        for (at, (name, number, kind)) in dots.chain(named).enumerate().skip(skip) {
            if reply.add(INodeNo(number), at as u64 + 1, kind, name) {
                break;
            }
        }
        Ok(())
    }
}
