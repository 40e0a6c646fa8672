//! A storage in memory that keeps what was written apart from what was synced, and can fail like hardware.

use super::crash_file::{CrashFile, Loss, PAGE_BYTES};
use super::crash_world::{CrashDir, FaultCounts, Node, NodeId, ROOT, TreeChange, World, io_error, not_found};
use super::random::Random;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile, Synced};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A folder tree in memory. Clones are the same storage.
///
/// Everything that is chosen at random follows from the seed given to [`CrashStorage::crash`].
#[derive(Clone)]
pub struct CrashStorage {
    world: Arc<Mutex<World>>,
}

impl Default for CrashStorage {
    fn default() -> CrashStorage {
        CrashStorage::new()
    }
}

impl fmt::Debug for CrashStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CrashStorage")
    }
}

impl CrashStorage {
    /// An empty storage without faults.
    pub fn new() -> CrashStorage {
        let nodes = BTreeMap::from([(ROOT, Node::Dir(CrashDir::default()))]);
        let world = World { nodes, next_node: ROOT + 1, ..World::default() };
        CrashStorage { world: Arc::new(Mutex::new(world)) }
    }

    /// What a power cut now may leave: synced writes and entries are there; of the others each is there, lost or torn
    /// at 512 bytes, in any order. No faults are carried over. This storage is not changed.
    pub fn crash(&self, seed: u64) -> CrashStorage {
        let mut random = Random::new(seed);
        let loss = Loss::choose(&mut random);
        let world = self.world();
        CrashStorage { world: Arc::new(Mutex::new(world.after_crash(loss, &mut random))) }
    }

    /// How many operations have changed or synced something: the argument that makes
    /// [`CrashStorage::power_off_after`] stop at each of them in turn.
    pub fn changes(&self) -> u64 {
        self.world().counts.changes
    }

    /// After `changes` more operations that change or sync something every further one fails with `Io`, as if the
    /// power were off. Reads go on, so that what runs can find its way out.
    pub fn power_off_after(&self, changes: u64) {
        let mut world = self.world();
        world.power_off = Some(world.counts.changes + changes);
    }

    /// The `nth` write from now on (1 is the next) fails with `Io`, leaving a part of it written.
    pub fn fail_write(&self, nth: u64) {
        let mut world = self.world();
        world.fail_write = Some(world.counts.writes + nth);
    }

    /// The `nth` sync of a file from now on fails with `Io`; what it should have put on the medium never gets there.
    pub fn fail_sync(&self, nth: u64) {
        let mut world = self.world();
        world.fail_sync = Some(world.counts.syncs + nth);
    }

    /// The `nth` sync of a folder from now on fails with `Io`; which of its entries are on the medium is open.
    pub fn fail_sync_dir(&self, nth: u64) {
        let mut world = self.world();
        world.fail_sync_dir = Some(world.counts.dir_syncs + nth);
    }

    /// The `nth` read from now on fails with `Io`.
    pub fn fail_read(&self, nth: u64) {
        let mut world = self.world();
        world.fail_read = Some(world.counts.reads + nth);
    }

    /// Room for that many bytes of file content in all, counted in pages of 4 KiB; `None` is no bound. A write that
    /// does not fit fails with `NoSpace`, its first part written.
    pub fn set_capacity(&self, capacity: Option<ByteLen>) {
        self.world().capacity_pages = capacity.map(|bytes| bytes.get() / PAGE_BYTES);
    }

    /// Flips one bit of a file, on the medium and in the cache. Errors: `NotFound`.
    pub fn flip_bit(&self, name: &str, offset: ByteOffset, bit: u8) -> Result<()> {
        let mut world = self.world();
        let node = world.find(name)?;
        world.file(node, name)?.flip_bit(offset.get(), bit);
        Ok(())
    }

    /// Whether something was refused because the power is off.
    pub fn has_lost_power(&self) -> bool {
        self.world().refused
    }

    /// The death of the programs that use this storage, not of its host: what they wrote is there, synced or not. No
    /// faults are carried over, the room is.
    pub fn survive(&self) -> CrashStorage {
        let world = self.world();
        let after = World {
            nodes: world.nodes.clone(),
            next_node: world.next_node,
            tree_changes: world.tree_changes.clone(),
            capacity_pages: world.capacity_pages,
            used_pages: world.used_pages,
            ..World::default()
        };
        CrashStorage { world: Arc::new(Mutex::new(after)) }
    }

    /// From now on each operation takes that long. Nothing waits: [`CrashStorage::take_busy`] says how much time has
    /// passed, for a clock that is moved by hand.
    pub fn set_latency(&self, each: Duration) {
        self.world().latency = each;
    }

    /// The time that operations have taken since this was last asked.
    pub fn take_busy(&self) -> Duration {
        std::mem::take(&mut self.world().busy)
    }

    /// How often something failed on purpose.
    pub fn faults(&self) -> FaultCounts {
        self.world().faults
    }

    /// Every file, by name, with its length.
    pub fn files(&self) -> Vec<(String, ByteLen)> {
        let world = self.world();
        let mut files = Vec::new();
        let mut folders = vec![(ROOT, String::new())];
        while let Some((id, prefix)) = folders.pop() {
            let Some(Node::Dir(dir)) = world.nodes.get(&id) else { continue };
            for (name, child) in &dir.current {
                let name = format!("{prefix}{name}");
                match world.nodes.get(child) {
                    Some(Node::File(file)) => files.push((name, ByteLen::new(file.current.len))),
                    Some(Node::Dir(_)) => folders.push((*child, format!("{name}/"))),
                    None => {}
                }
            }
        }
        files.sort();
        files
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for CrashStorage {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        let mut world = self.world();
        let (dir, last) = world.parent(name)?;
        let found = world.dir(dir, name)?.current.get(last).copied();
        let node = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("{name} exists already")));
            }
            (Some(node), _) => node,
            (None, OpenMode::CreateNew) => {
                world.change("creating", name)?;
                world.add(dir, last, Node::File(CrashFile::default()))
            }
            (None, _) => return Err(not_found(name)),
        };
        world.file(node, name)?;
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(CrashHandle { storage: self.clone(), node, name: name.to_owned(), writable }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut world = self.world();
        let node = world.find(from)?;
        let (from_dir, from_name) = world.parent(from)?;
        let (to_dir, to_name) = world.parent(to)?;
        world.change("renaming", from)?;
        if from == to {
            return Ok(());
        }
        if let Some(replaced) = world.dir(to_dir, to)?.current.get(to_name).copied() {
            world.release(replaced);
        }
        let removed = (from_dir, from_name.to_owned(), None);
        let added = (to_dir, to_name.to_owned(), Some(node));
        world.apply(TreeChange(vec![removed, added]));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut world = self.world();
        let node = world.find(name)?;
        world.file(node, name)?;
        let (dir, last) = world.parent(name)?;
        world.change("removing", name)?;
        world.release(node);
        world.apply(TreeChange(vec![(dir, last.to_owned(), None)]));
        Ok(())
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let world = self.world();
        let node = world.find(dir)?;
        Ok(world.dir(node, dir)?.current.keys().cloned().collect())
    }

    fn make_dir(&self, dir: &str) -> Result<()> {
        let mut world = self.world();
        let mut parent = ROOT;
        for part in dir.split('/') {
            parent = match world.dir(parent, dir)?.current.get(part) {
                Some(node) => *node,
                None => {
                    world.change("making", dir)?;
                    world.add(parent, part, Node::Dir(CrashDir::default()))
                }
            };
        }
        world.dir(parent, dir).map(drop)
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        let mut world = self.world();
        let Ok(node) = world.find(dir) else { return Ok(()) };
        world.dir(node, dir)?;
        let (parent, last) = world.parent(dir)?;
        world.change("removing", dir)?;
        world.release(node);
        // File by file, as a host does it: a power cut may leave any of them.
        for (folder, name) in world.entries_below(node) {
            world.apply(TreeChange(vec![(folder, name, None)]));
        }
        world.apply(TreeChange(vec![(parent, last.to_owned(), None)]));
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> Result<Synced> {
        let mut world = self.world();
        let node = world.find(dir)?;
        world.dir(node, dir)?;
        world.change("syncing", dir)?;
        world.counts.dir_syncs += 1;
        if world.fail_sync_dir == Some(world.counts.dir_syncs) {
            world.faults.dir_syncs += 1;
            return Err(io_error(format!("{dir}: syncing: a fault was asked for")));
        }
        for change in world.take_changes_of(node) {
            world.settle(&change);
        }
        Ok(Synced::after_completed_sync())
    }

    fn free_space(&self) -> Result<Option<ByteLen>> {
        let world = self.world();
        let free = |pages: u64| ByteLen::new(pages.saturating_sub(world.used_pages) * PAGE_BYTES);
        Ok(world.capacity_pages.map(free))
    }
}

/// An open file of a [`CrashStorage`].
#[derive(Debug)]
struct CrashHandle {
    storage: CrashStorage,
    node: NodeId,
    name: String,
    writable: bool,
}

impl CrashHandle {
    fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, format!("{} is open for reading only", self.name)))
    }
}

impl StorageFile for CrashHandle {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::new(self.storage.world().file(self.node, &self.name)?.current.len))
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        let mut world = self.storage.world();
        world.counts.reads += 1;
        world.spend();
        if world.fail_read == Some(world.counts.reads) {
            world.faults.reads += 1;
            return Err(io_error(format!("{}: reading at {offset}: a fault was asked for", self.name)));
        }
        let file = world.file(self.node, &self.name)?;
        match offset.checked_add(ByteLen::of(buffer)) {
            Some(end) if end.get() <= file.current.len => file.current.read(offset.get(), buffer),
            _ => {
                let (name, wanted) = (&self.name, buffer.len());
                return Err(Error::corrupt(format!(
                    "{name} ends before the {wanted} bytes wanted at {offset}"
                )));
            }
        }
        Ok(())
    }

    /// As any other write: on the medium after a sync.
    fn write_past_cache(&self) -> bool {
        true
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.storage.world().write(self.node, &self.name, offset, data)
    }

    fn write_vectored_at(&self, offset: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        self.write_at(offset, &parts.concat())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.check_writable()?;
        self.storage.world().shrink(self.node, &self.name, |file| file.set_len(len.get()))
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        self.check_writable()?;
        let range = extent.start().get()..extent.end().get();
        self.storage.world().shrink(self.node, &self.name, |file| file.punch(range))
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        let mut world = self.storage.world();
        let data = world.file(self.node, &self.name)?.current.next_data(from.get());
        Ok(data.and_then(|range| Extent::between(ByteOffset::new(range.start), ByteOffset::new(range.end))))
    }

    fn sync(&self) -> Result<Synced> {
        let mut world = self.storage.world();
        world.change("syncing", &self.name)?;
        world.counts.syncs += 1;
        let fails = world.fail_sync == Some(world.counts.syncs);
        world.faults.syncs += u64::from(fails);
        let file = world.file(self.node, &self.name)?;
        if fails {
            file.fail_sync();
            return Err(io_error(format!("{}: syncing: a fault was asked for", self.name)));
        }
        file.sync();
        Ok(Synced::after_completed_sync())
    }
}

#[cfg(test)]
#[path = "crash_storage_tests.rs"]
mod tests;
