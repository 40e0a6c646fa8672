//! What a [`super::CrashStorage`] holds: files and folders, each as it is and as it is on the medium.

use super::crash_file::{CrashFile, Loss, PAGE_BYTES};
use super::random::Random;
use blocks::{ByteOffset, Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) type NodeId = u64;
pub(super) const ROOT: NodeId = 0;

#[derive(Clone)]
pub(super) enum Node {
    File(CrashFile),
    Dir(CrashDir),
}

#[derive(Clone, Default)]
pub(super) struct CrashDir {
    pub(super) current: BTreeMap<String, NodeId>,
    pub(super) durable: BTreeMap<String, NodeId>,
}

/// One change of the tree: a rename changes two entries, and happens wholly or not at all.
#[derive(Clone)]
pub(super) struct TreeChange(pub(super) Vec<(NodeId, String, Option<NodeId>)>);

#[derive(Default)]
pub(super) struct World {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) next_node: NodeId,
    pub(super) tree_changes: Vec<TreeChange>,
    pub(super) counts: Counts,
    /// Fails the operation whose count reaches the number.
    pub(super) fail_write: Option<u64>,
    pub(super) fail_sync: Option<u64>,
    pub(super) fail_sync_dir: Option<u64>,
    pub(super) fail_read: Option<u64>,
    /// Everything that would change something fails once `changes` has reached this.
    pub(super) power_off: Option<u64>,
    /// Something was refused for that.
    pub(super) refused: bool,
    pub(super) faults: FaultCounts,
    /// How long an operation takes, and how long they have taken in all.
    pub(super) latency: Duration,
    pub(super) busy: Duration,
    pub(super) capacity_pages: Option<u64>,
    pub(super) used_pages: u64,
}

/// How often a [`super::CrashStorage`] has made something fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    /// Reads that were asked to fail.
    pub reads: u64,
    /// Writes that were asked to fail.
    pub writes: u64,
    /// Syncs of files that were asked to fail.
    pub syncs: u64,
    /// Syncs of folders that were asked to fail.
    pub dir_syncs: u64,
    /// Writes that found no room.
    pub no_space: u64,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
    pub(super) dir_syncs: u64,
    pub(super) changes: u64,
}

pub(super) fn io_error(context: String) -> Error {
    Error::new(ErrorKind::Io, context)
}

pub(super) fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{name} does not exist"))
}

impl World {
    pub(super) fn dir(&self, node: NodeId, name: &str) -> Result<&CrashDir> {
        match self.nodes.get(&node) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(Error::new(ErrorKind::NotFound, format!("{name} is not a folder"))),
        }
    }

    pub(super) fn file(&mut self, node: NodeId, name: &str) -> Result<&mut CrashFile> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Error::new(ErrorKind::InvalidInput, format!("{name} is not a file"))),
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<NodeId> {
        if name.is_empty() {
            return Ok(ROOT);
        }
        name.split('/').try_fold(ROOT, |node, part| {
            self.dir(node, name)?.current.get(part).copied().ok_or_else(|| not_found(name))
        })
    }

    /// The folder that holds `name`, and the name in it.
    pub(super) fn parent<'a>(&self, name: &'a str) -> Result<(NodeId, &'a str)> {
        let (dir, last) = name.rsplit_once('/').unwrap_or(("", name));
        if last.is_empty() || last == "." || last == ".." {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a name")));
        }
        let node = self.find(dir)?;
        self.dir(node, dir)?;
        Ok((node, last))
    }

    /// Counts an operation that changes something; an error once the power is off.
    pub(super) fn change(&mut self, what: &str, name: &str) -> Result<()> {
        if self.power_off.is_some_and(|limit| self.counts.changes >= limit) {
            self.refused = true;
            return Err(io_error(format!("{what} {name}: the power is off")));
        }
        self.counts.changes += 1;
        self.spend();
        Ok(())
    }

    /// An operation takes its time.
    pub(super) fn spend(&mut self) {
        self.busy += self.latency;
    }

    pub(super) fn apply(&mut self, change: TreeChange) {
        for (dir, name, target) in &change.0 {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(dir) {
                set_entry(&mut dir.current, name, *target);
            }
        }
        self.tree_changes.push(change);
    }

    pub(super) fn add(&mut self, dir: NodeId, name: &str, node: Node) -> NodeId {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, node);
        self.apply(TreeChange(vec![(dir, name.to_owned(), Some(id))]));
        id
    }

    pub(super) fn write(&mut self, node: NodeId, name: &str, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.change("writing", name)?;
        self.counts.writes += 1;
        let fails = self.fail_write == Some(self.counts.writes);
        self.faults.writes += u64::from(fails);
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
        self.faults.no_space += u64::from(!fails && fits < data.len());
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
    pub(super) fn shrink(
        &mut self,
        node: NodeId,
        name: &str,
        change: impl FnOnce(&mut CrashFile),
    ) -> Result<()> {
        self.change("changing", name)?;
        let file = self.file(node, name)?;
        let before = file.current.pages();
        change(file);
        let freed = before - file.current.pages();
        self.used_pages -= freed;
        Ok(())
    }

    /// Everything below an entry that has just gone no longer takes room.
    pub(super) fn release(&mut self, node: NodeId) {
        match self.nodes.get(&node) {
            Some(Node::File(file)) => self.used_pages = self.used_pages.saturating_sub(file.current.pages()),
            Some(Node::Dir(dir)) => {
                let children: Vec<NodeId> = dir.current.values().copied().collect();
                children.into_iter().for_each(|child| self.release(child));
            }
            None => {}
        }
    }

    /// Every entry below a folder, those of a folder before its own.
    pub(super) fn entries_below(&self, dir: NodeId) -> Vec<(NodeId, String)> {
        let Some(Node::Dir(folder)) = self.nodes.get(&dir) else { return Vec::new() };
        let own = folder.current.iter();
        own.flat_map(|(name, child)| {
            let mut below = self.entries_below(*child);
            below.push((dir, name.clone()));
            below
        })
        .collect()
    }

    /// The changes that a sync of `dir` makes durable: those of its entries, and the earlier ones that they build on.
    pub(super) fn take_changes_of(&mut self, dir: NodeId) -> Vec<TreeChange> {
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

    pub(super) fn settle(&mut self, change: &TreeChange) {
        for (dir, name, target) in &change.0 {
            if let Some(Node::Dir(dir)) = self.nodes.get_mut(dir) {
                set_entry(&mut dir.durable, name, *target);
            }
        }
    }

    pub(super) fn after_crash(&self, loss: Loss, random: &mut Random) -> World {
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
    pub(super) fn forget_unreachable(&mut self) {
        let mut reached = BTreeSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(node) = next.pop() {
            if let Some(Node::Dir(dir)) = self.nodes.get(&node) {
                next.extend(dir.current.values().filter(|child| reached.insert(**child)));
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
        let pages = |node: &Node| if let Node::File(file) = node { file.current.pages() } else { 0 };
        self.used_pages = self.nodes.values().map(pages).sum();
    }
}

pub(super) fn set_entry(entries: &mut BTreeMap<String, NodeId>, name: &str, target: Option<NodeId>) {
    match target {
        Some(node) => entries.insert(name.to_owned(), node),
        None => entries.remove(name),
    };
}
