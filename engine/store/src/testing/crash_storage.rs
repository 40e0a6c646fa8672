//! A storage in memory that keeps what was written apart from what was synced, and can fail like hardware.

use super::crash_file::{CrashFile, Loss, PAGE_BYTES};
use super::random::Random;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile, Synced};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A folder tree in memory. Clones are the same storage.
///
/// Everything that is chosen at random follows from the seed given to [`CrashStorage::crash`].
#[derive(Clone)]
pub struct CrashStorage {
    world: Arc<Mutex<World>>,
}

type NodeId = u64;
const ROOT: NodeId = 0;

enum Node {
    File(CrashFile),
    Dir(CrashDir),
}

#[derive(Default)]
struct CrashDir {
    current: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
}

/// One change of the tree: a rename changes two entries, and happens wholly or not at all.
#[derive(Clone)]
struct TreeChange(Vec<(NodeId, String, Option<NodeId>)>);

#[derive(Default)]
struct World {
    nodes: BTreeMap<NodeId, Node>,
    next_node: NodeId,
    tree_changes: Vec<TreeChange>,
    counts: Counts,
    /// Fails the operation whose count reaches the number.
    fail_write: Option<u64>,
    fail_sync: Option<u64>,
    fail_read: Option<u64>,
    /// Everything that would change something fails once `changes` has reached this.
    power_off: Option<u64>,
    capacity_pages: Option<u64>,
    used_pages: u64,
}

#[derive(Default)]
struct Counts {
    reads: u64,
    writes: u64,
    syncs: u64,
    changes: u64,
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

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn io_error(context: String) -> Error {
    Error::new(ErrorKind::Io, context)
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{name} does not exist"))
}

impl World {
    fn dir(&self, node: NodeId, name: &str) -> Result<&CrashDir> {
        match self.nodes.get(&node) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(Error::new(ErrorKind::NotFound, format!("{name} is not a folder"))),
        }
    }

    fn file(&mut self, node: NodeId, name: &str) -> Result<&mut CrashFile> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Error::new(ErrorKind::InvalidInput, format!("{name} is not a file"))),
        }
    }

    fn find(&self, name: &str) -> Result<NodeId> {
        if name.is_empty() {
            return Ok(ROOT);
        }
        name.split('/').try_fold(ROOT, |node, part| {
            self.dir(node, name)?.current.get(part).copied().ok_or_else(|| not_found(name))
        })
    }

    /// The folder that holds `name`, and the name in it.
    fn parent<'a>(&self, name: &'a str) -> Result<(NodeId, &'a str)> {
        let (dir, last) = name.rsplit_once('/').unwrap_or(("", name));
        if last.is_empty() || last == "." || last == ".." {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a name")));
        }
        let node = self.find(dir)?;
        self.dir(node, dir)?;
        Ok((node, last))
    }

    /// Counts an operation that changes something; an error once the power is off.
    fn change(&mut self, what: &str, name: &str) -> Result<()> {
        if self.power_off.is_some_and(|limit| self.counts.changes >= limit) {
            return Err(io_error(format!("{what} {name}: the power is off")));
        }
        self.counts.changes += 1;
        Ok(())
    }

    fn apply(&mut self, change: TreeChange) {
        for (dir, name, target) in &change.0 {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(dir) {
                set_entry(&mut dir.current, name, *target);
            }
        }
        self.tree_changes.push(change);
    }

    fn add(&mut self, dir: NodeId, name: &str, node: Node) -> NodeId {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, node);
        self.apply(TreeChange(vec![(dir, name.to_owned(), Some(id))]));
        id
    }

    fn write(&mut self, node: NodeId, name: &str, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.change("writing", name)?;
        self.counts.writes += 1;
        let fails = self.fail_write == Some(self.counts.writes);
        let free = self.capacity_pages.map(|capacity| capacity.saturating_sub(self.used_pages));
        let file = self.file(node, name)?;
        let before = file.current.pages();
        let mut fits = data.len();
        if fails {
            fits = fits / 2 / 512 * 512;
        }
        while free.is_some_and(|free| file.current.pages_missing(offset.get(), fits) > free) {
            fits = fits.saturating_sub(1) / PAGE_BYTES as usize * PAGE_BYTES as usize;
        }
        if fits > 0 {
            file.write(offset.get(), &data[..fits]);
        }
        let added = file.current.pages() - before;
        self.used_pages += added;
        match (fails, fits == data.len()) {
            (true, _) => Err(io_error(format!("{name}: writing at {offset}: a fault was asked for"))),
            (false, true) => Ok(()),
            (false, false) => Err(Error::new(
                ErrorKind::NoSpace,
                format!("{name}: writing at {offset}: the storage is full"),
            )),
        }
    }

    /// Changes a file in a way that may only free pages.
    fn shrink(&mut self, node: NodeId, name: &str, change: impl FnOnce(&mut CrashFile)) -> Result<()> {
        self.change("changing", name)?;
        let file = self.file(node, name)?;
        let before = file.current.pages();
        change(file);
        let freed = before - file.current.pages();
        self.used_pages -= freed;
        Ok(())
    }

    /// Everything below an entry that has just gone no longer takes room.
    fn release(&mut self, node: NodeId) {
        match self.nodes.get(&node) {
            Some(Node::File(file)) => self.used_pages = self.used_pages.saturating_sub(file.current.pages()),
            Some(Node::Dir(dir)) => {
                let children: Vec<NodeId> = dir.current.values().copied().collect();
                children.into_iter().for_each(|child| self.release(child));
            }
            None => {}
        }
    }

    /// The changes that a sync of `dir` makes durable: those of its entries, and the earlier ones that they build on.
    fn take_changes_of(&mut self, dir: NodeId) -> Vec<TreeChange> {
        let mut touched: Vec<(NodeId, String)> = Vec::new();
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for change in std::mem::take(&mut self.tree_changes).into_iter().rev() {
            let entries = change.0.iter().map(|(dir, name, _)| (*dir, name.clone()));
            if entries.clone().any(|entry| entry.0 == dir || touched.contains(&entry)) {
                touched.extend(entries);
                taken.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        taken.reverse();
        self.tree_changes = left;
        taken
    }

    fn settle(&mut self, change: &TreeChange) {
        for (dir, name, target) in &change.0 {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(dir) {
                set_entry(&mut dir.durable, name, *target);
            }
        }
    }

    fn after_crash(&self, loss: Loss, random: &mut Random) -> World {
        let mut after = World { next_node: self.next_node, ..World::default() };
        for (id, node) in &self.nodes {
            let node = match node {
                Node::File(file) => Node::File(file.after_crash(loss, random)),
                Node::Dir(dir) => Node::Dir(CrashDir { durable: dir.durable.clone(), ..CrashDir::default() }),
            };
            after.nodes.insert(*id, node);
        }
        for change in &self.tree_changes {
            let kept = match loss {
                Loss::All => false,
                Loss::None => true,
                Loss::Changes | Loss::Sectors => random.chance(50),
            };
            if kept {
                after.settle(change);
            }
        }
        for node in after.nodes.values_mut() {
            if let Node::Dir(dir) = node {
                dir.current = dir.durable.clone();
            }
        }
        after.forget_unreachable();
        after
    }

    /// Drops what no entry leads to, and counts the room that the rest takes.
    fn forget_unreachable(&mut self) {
        let mut reached = BTreeMap::from([(ROOT, ())]);
        let mut next = vec![ROOT];
        while let Some(node) = next.pop() {
            if let Some(Node::Dir(dir)) = self.nodes.get(&node) {
                next.extend(dir.current.values().filter(|child| reached.insert(**child, ()).is_none()));
            }
        }
        self.nodes.retain(|id, _| reached.contains_key(id));
        let pages = |node: &Node| if let Node::File(file) = node { file.current.pages() } else { 0 };
        self.used_pages = self.nodes.values().map(pages).sum();
    }
}

fn set_entry(entries: &mut BTreeMap<String, NodeId>, name: &str, target: Option<NodeId>) {
    match target {
        Some(node) => entries.insert(name.to_owned(), node),
        None => entries.remove(name),
    };
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
        world.apply(TreeChange(vec![(parent, last.to_owned(), None)]));
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> Result<Synced> {
        let mut world = self.world();
        let node = world.find(dir)?;
        world.dir(node, dir)?;
        world.change("syncing", dir)?;
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
        if world.fail_read == Some(world.counts.reads) {
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
