//! Between the kernel, by way of `fuser`, and a [`Tree`]. All that is known of `fuser` is here and in `mount`.

use crate::errno::errno_of;
use crate::inodes::{Inodes, number_of};
use crate::open_file::{OpenFile, Seek};
use crate::tree::{Entry, EntryKind, Node, NodeKind, Tree};
use blocks::Error;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

/// The largest read or write that the kernel sends.
pub(crate) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel sends without anybody waiting for each: read-ahead, asynchronous direct I/O.
const BACKGROUND_MAX: u16 = 64;
/// How long the kernel may take names and attributes for what they were.
const REMEMBERED: Duration = Duration::from_secs(1);
const BLOCK_BYTES: u32 = 4096;

thread_local! {
    /// What a thread of the mount reads into.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A tree as the kernel asks of it.
pub(crate) struct Bridge<T> {
    tree: T,
    owner: (u32, u32),
    inodes: Inodes,
    handles: RwLock<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    /// The files that are open, by path: whoever opens one of them again shares it, and the lock over its sectors.
    files: Mutex<HashMap<Arc<str>, Weak<OpenFile>>>,
}

/// What somebody has open.
#[derive(Clone)]
enum Handle {
    File { path: Arc<str>, file: Arc<OpenFile>, writable: bool },
    Folder(Arc<Vec<Entry>>),
}

type Answer<T> = Result<T, Errno>;

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
        }
    }

    fn path(&self, number: INodeNo) -> Answer<Arc<str>> {
        self.inodes.path(number.0).ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<String> {
        let (parent, name) = (self.path(parent)?, name.to_str().ok_or(Errno::ENOENT)?);
        Ok(if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") })
    }

    fn node(&self, path: &str) -> Answer<Node> {
        self.tree.node(path).map_err(|error| errno_of(path, &error))?.ok_or(Errno::ENOENT)
    }

    fn attributes(&self, number: u64, node: &Node) -> FileAttr {
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

    fn add_handle(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        FileHandle(number)
    }

    fn remove_handle(&self, handle: FileHandle) {
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
    fn with_file<R>(
        &self,
        handle: FileHandle,
        work: impl FnOnce(&OpenFile) -> blocks::Result<R>,
    ) -> Answer<R> {
        let found = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        match found {
            Some(Handle::File { file, path, .. }) => work(&file).map_err(|error| errno_of(&path, &error)),
            Some(Handle::Folder(_)) => Err(Errno::EISDIR),
            None => Err(Errno::EBADF),
        }
    }

    /// The same where it was opened for writing.
    fn with_written<R>(
        &self,
        handle: FileHandle,
        work: impl FnOnce(&OpenFile) -> blocks::Result<R>,
    ) -> Answer<R> {
        let found = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned();
        match found {
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

    fn open_node(
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
    fn set_attributes(&self, number: INodeNo, size: Option<u64>, others: bool) -> Answer<FileAttr> {
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

    fn allocate(&self, handle: FileHandle, offset: u64, len: u64, mode: i32) -> Answer<()> {
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

    fn seek(&self, handle: FileHandle, offset: i64, whence: i32) -> Answer<i64> {
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
    fn fill(
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

impl<T: Tree> Filesystem for Bridge<T> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each is left out where the kernel does not know it; what it stands for then only is slower.
        for wanted in [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS]
        {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!("the kernel has no {wanted:?}");
            }
        }
        let set = config
            .set_max_write(REQUEST_BYTES_MAX)
            .and_then(|_| config.set_max_background(BACKGROUND_MAX).map(u32::from).map_err(u32::from));
        set.map_err(|near| std::io::Error::other(format!("a limit of the mount is to be {near}")))?;
        if let Err(near) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            tracing::debug!("the kernel reads {near} bytes ahead at most");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.child(parent, name).and_then(|path| self.node(&path).map(|node| (path, node)));
        match found {
            Ok((path, node)) => {
                let number = self.inodes.look_up(&path);
                reply.entry(&REMEMBERED, &self.attributes(number, &node), Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.inodes.forget(number.0, lookups);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.path(number).and_then(|path| self.node(&path)) {
            Ok(node) => reply.attr(&REMEMBERED, &self.attributes(number.0, &node)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _: Option<FileHandle>,
        _created: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let others =
            mode.is_some() || uid.is_some() || gid.is_some() || (modified.is_some() && size.is_none());
        match self.set_attributes(number, size, others) {
            Ok(attributes) => reply.attr(&REMEMBERED, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = self
            .path(number)
            .and_then(|path| self.tree.target(&path).map_err(|error| errno_of(&path, &error)));
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_node(request, number, flags) {
            Ok((handle, flags)) => reply.opened(handle, flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(REQUEST_BYTES_MAX) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.with_file(handle, |file| file.read(offset, &mut buffer[..size])) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with_written(handle, |file| file.write(offset, data)) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close is no flush: what was written is with the volume already.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.remove_handle(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.with_file(handle, OpenFile::sync) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listed =
            self.path(number).and_then(|path| self.tree.list(&path).map_err(|error| errno_of(&path, &error)));
        match listed {
            Ok(entries) => {
                reply.opened(self.add_handle(Handle::Folder(Arc::new(entries))), FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.fill(number, handle, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.remove_handle(handle);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.tree.space() {
            Ok(space) => {
                let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
                let (total, free) = (blocks(space.total), blocks(space.free));
                reply.statfs(total, free, free, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
            }
            Err(error) => reply.error(errno_of("the mount", &error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.allocate(handle, offset, len, mode) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(handle, offset, whence) {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn access(&self, _: &Request, number: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let writes = mask.contains(AccessFlags::W_OK);
        match self.path(number).and_then(|path| self.node(&path)).map(|node| node.kind) {
            Ok(NodeKind::File { writable: true, .. }) => reply.ok(),
            Ok(_) if writes => reply.error(Errno::EROFS),
            Ok(_) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    // The kernel does not ask again for what is not known here, and does some of it by itself.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    // Nothing can be made, renamed or removed here.

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}
