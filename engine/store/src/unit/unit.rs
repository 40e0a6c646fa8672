//! One machine's disks: branches, checkpoints, views, and the facts that are published with them.

use crate::branch_disk::BranchDisk;
use crate::identity::HashTable;
use crate::image::ImageFormat;
use crate::index::block_cache::BlockCache;
use crate::store::StoreOptions;
use crate::stored_file::FileTable;
use crate::unit::branch::{BranchId, BranchInfo, BranchKind};
use crate::unit::checkpoint::{Checkpoint, CheckpointSpec, Gap};
use crate::unit::consolidate::ConsolidateReport;
use crate::unit::files::{self, PublishError};
use crate::unit::inventory::Inventory;
use crate::unit::manifest::{DiskSpec, Manifest};
use crate::unit::merging::MergeQueue;
use crate::unit::pins::{Pin, PinHolder, ViewPins};
use crate::unit::run::Run;
use crate::unit::space::SpaceCount;
use crate::view::View;
use blocks::{
    CheckpointId, DiskIndex, Durable, Error, ErrorKind, Generation, MachineId, Result, Storage, Synced,
    WallClock, crash_point,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The most that one note may hold.
const NOTE_BYTES_MAX: usize = 64 << 10;
/// The longest name of a unit or key of a note.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// A machine's disks in the store. What changes here is on the medium when the call returns.
#[derive(Debug)]
pub struct Unit {
    pub(super) me: Weak<Unit>,
    pub(super) dir: String,
    pub(super) table: Arc<FileTable>,
    pub(super) options: StoreOptions,
    pub(super) merges: MergeQueue,
    pub(super) view_pins: Arc<ViewPins>,
    /// One for each disk; opened when they are first asked for.
    pub(super) hashes: Vec<Arc<Mutex<Option<HashTable>>>>,
    pub(super) consolidating: Mutex<()>,
    pub(super) space: Arc<SpaceCount>,
    /// Runs whose merging was found not to be worth it; with whether it was asked for everything.
    pub(super) not_worth_merging: Mutex<BTreeSet<(Run, bool)>>,
    pub(super) consolidated: Mutex<ConsolidateReport>,
    /// Appends may have been lost on one disk that came before what is left on another: since the store was opened there
    /// was no checkpoint of the main line.
    pub(super) torn_tails: AtomicBool,
    pub(super) state: Mutex<UnitState>,
}

/// What belongs together: the published version and what is open of it.
#[derive(Debug)]
pub(crate) struct UnitState {
    pub(super) manifest: Arc<Manifest>,
    pub(super) inventory: Inventory,
    pub(super) disks: BTreeMap<(BranchId, DiskIndex), Arc<BranchDisk>>,
    /// Why nothing can be published any more.
    pub(super) poison: Option<String>,
    /// The unit was removed.
    pub(super) closed: bool,
}

/// What a store lends its units.
#[derive(Clone, Debug)]
pub(crate) struct UnitContext {
    pub table: Arc<FileTable>,
    pub cache: Arc<BlockCache>,
    pub options: StoreOptions,
    pub merges: MergeQueue,
}

impl UnitState {
    /// Publishes `next` in the place of the current version.
    pub(super) fn publish(&mut self, storage: &dyn Storage, dir: &str, next: Manifest) -> Result<Synced> {
        if let Some(why) = &self.poison {
            return Err(Error::new(ErrorKind::Poisoned, why.clone()));
        }
        match files::publish(storage, dir, &next) {
            Ok(synced) => {
                self.manifest = Arc::new(next);
                Ok(synced)
            }
            Err(PublishError::Unchanged(error)) => Err(error),
            Err(PublishError::Unknown(error)) => {
                let why = format!("{dir}: nothing more is published until the store is reopened: {error}");
                self.poison = Some(why);
                Err(error)
            }
        }
    }

    /// Gives every branch disk of that disk its layers anew, after they came to be stored otherwise.
    pub(super) fn refresh_stacks(&mut self, only: Option<DiskIndex>) -> Result<()> {
        let manifest = Arc::clone(&self.manifest);
        for ((branch, disk), branch_disk) in &self.disks {
            if only.is_none_or(|only| only == *disk) {
                let end = manifest.end(*branch, *disk)?.sealed;
                branch_disk.replace_stack(self.inventory.stack(&manifest, *disk, end)?);
            }
        }
        Ok(())
    }
}

impl Unit {
    /// The machine's identity, which is the unit's.
    pub fn machine(&self) -> MachineId {
        self.manifest().machine
    }

    /// The machine's name.
    pub fn name(&self) -> String {
        self.manifest().name.clone()
    }

    /// What the machine is, as it was last set.
    pub fn definition(&self) -> Vec<u8> {
        self.manifest().definition.clone()
    }

    /// Says what the machine is.
    pub fn set_definition(&self, definition: Vec<u8>) -> Result<()> {
        self.change(|manifest| {
            manifest.definition = definition;
            Ok(())
        })
        .map(drop)
    }

    /// The machine's disks.
    pub fn disks(&self) -> Vec<DiskSpec> {
        self.manifest().disks.clone()
    }

    /// What the images are.
    pub fn image_format(&self) -> ImageFormat {
        self.manifest().image_format
    }

    /// The name, within the storage, of the file that is a disk's image; while the image is being changed, and after
    /// that was interrupted, it ends with [`crate::SETTLING_SUFFIX`].
    pub fn image_name(&self, disk: DiskIndex) -> Result<String> {
        let manifest = self.manifest();
        manifest.disk_spec(disk)?;
        files::present_image_name(self.storage(), &self.dir, disk, manifest.image_format)
    }

    /// Who may write: rises with each promotion.
    pub fn generation(&self) -> Generation {
        self.manifest().generation
    }

    /// Raises the generation by one.
    pub fn promote(&self) -> Result<Durable<Generation>> {
        self.change(|manifest| {
            manifest.generation = manifest.generation.next();
            Ok(manifest.generation)
        })
    }

    /// A small record that somebody keeps with the unit.
    pub fn note(&self, key: &str) -> Option<Vec<u8>> {
        self.manifest().notes.get(key).cloned()
    }

    /// The keys of all notes, sorted.
    pub fn notes(&self) -> Vec<String> {
        self.manifest().notes.keys().cloned().collect()
    }

    /// Keeps or removes a note of at most 64 KiB. It is written with everything else that the unit publishes: for what
    /// changes a few times a minute at most.
    pub fn set_note(&self, key: &str, value: Option<Vec<u8>>) -> Result<()> {
        let too_long = value.as_ref().is_some_and(|value| value.len() > NOTE_BYTES_MAX);
        if key.is_empty() || key.len() > NAME_BYTES_MAX || too_long {
            let context = format!("note {key:?} is longer than {NOTE_BYTES_MAX} bytes, or so is its name");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let change = |manifest: &mut Manifest| {
            match value {
                Some(value) => manifest.notes.insert(key.to_owned(), value),
                None => manifest.notes.remove(key),
            };
            Ok(())
        };
        self.change(change).map(drop)
    }

    /// The branch that replication appends to.
    pub fn main_branch(&self) -> BranchId {
        self.manifest().main
    }

    /// All branches, by number.
    pub fn branches(&self) -> Vec<BranchInfo> {
        let info = |(id, branch): (&BranchId, &crate::unit::manifest::Branch)| BranchInfo {
            id: *id,
            kind: branch.kind,
            name: branch.name.clone(),
            base: branch.base,
        };
        self.manifest().branches.iter().map(info).collect()
    }

    /// The head of a branch on one disk, the same object for everybody.
    pub fn disk(&self, branch: BranchId, disk: DiskIndex) -> Result<Arc<BranchDisk>> {
        let state = self.lock_open()?;
        state.manifest.end(branch, disk)?;
        state.disks.get(&(branch, disk)).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} has no disk {disk}", state.manifest.name))
        })
    }

    /// The checkpoints of all branches that can be recovered, by number.
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.manifest().checkpoints.values().map(|sealed| sealed.checkpoint.clone()).collect()
    }

    /// One of [`Unit::checkpoints`].
    pub fn checkpoint(&self, id: CheckpointId) -> Option<Checkpoint> {
        self.manifest().checkpoints.get(&id).map(|sealed| sealed.checkpoint.clone())
    }

    /// Intervals in which there is no checkpoint, in the order of their beginning.
    pub fn gaps(&self) -> Vec<Gap> {
        self.manifest().gaps.clone()
    }

    /// Records a gap. One with the same beginning and cause that goes on is replaced.
    pub fn record_gap(&self, gap: Gap) -> Result<()> {
        self.change(|manifest| {
            let same = |known: &Gap| known.from == gap.from && known.cause == gap.cause && known.until.0 == 0;
            manifest.gaps.retain(|known| !same(known));
            let at = manifest.gaps.partition_point(|known| known.from <= gap.from);
            manifest.gaps.insert(at, gap);
            Ok(())
        })
        .map(drop)
    }

    /// A disk as it was at a checkpoint, read-only. The checkpoint is pinned while the view lives.
    pub fn view(&self, at: CheckpointId, disk: DiskIndex) -> Result<View> {
        let mut state = self.lock_open()?;
        let manifest = Arc::clone(&state.manifest);
        manifest.disk_spec(disk)?;
        let sealed = manifest.sealed(at)?;
        let position = usize::from(disk.0);
        let stack = state.inventory.stack(&manifest, disk, sealed.ends[position].0)?;
        let pin = self.view_pins.pin(at, disk);
        Ok(View::new(sealed.checkpoint.lens[position], stack, pin))
    }

    /// Whether what was written behind the newest checkpoint of the main line is no state that the machine had: the store was
    /// opened since, and its disks may have lost appends independently of each other. Then times of further writes
    /// say nothing ([`BranchDisk::append_in_order`]) until the next checkpoint.
    pub fn has_torn_tails(&self) -> bool {
        self.torn_tails.load(Ordering::Acquire)
    }

    /// A new branch that starts at a checkpoint, and pins it while it exists. Not for a second main branch.
    pub fn fork(&self, at: CheckpointId, kind: BranchKind) -> Result<BranchId> {
        if kind == BranchKind::Main {
            return Err(Error::new(ErrorKind::InvalidInput, "a unit has one main branch"));
        }
        self.fork_named(at, kind, "")
    }

    /// A line that stays until it is dropped, whatever becomes of the branch that it starts from. It begins with a
    /// checkpoint of its own of that name, by which it is recovered. `AlreadyExists` where a clone has the name.
    pub fn clone_at(&self, at: CheckpointId, name: &str) -> Result<(BranchId, CheckpointId)> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let context = format!("a clone's name has 1 to {NAME_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let branch = self.fork_named(at, BranchKind::Clone, name)?;
        crash_point("clone.forked");
        let spec = CheckpointSpec { name: name.to_owned(), ..CheckpointSpec::crash_consistent_now() };
        let sealed = self.seal(branch, spec)?.into_inner();
        crash_point("clone.sealed");
        Ok((branch, sealed))
    }

    fn fork_named(&self, at: CheckpointId, kind: BranchKind, name: &str) -> Result<BranchId> {
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        let taken = |branch: &crate::unit::manifest::Branch| !name.is_empty() && branch.name == name;
        if next.branches.values().any(taken) {
            let context = format!("{} has a clone named {name} already", next.name);
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        let id = next.fork(at, kind, name)?;
        let mut disks = Vec::new();
        for disk in next.disk_indexes() {
            disks.push(self.new_branch_disk(&mut state, &next, id, disk)?);
        }
        state.publish(self.storage(), &self.dir, next)?;
        state.disks.extend(disks);
        Ok(id)
    }

    /// Removes a branch and its own deltas and checkpoints. `Busy` while a view or another branch needs one of them, or
    /// somebody holds one of its disks.
    pub fn drop_branch(&self, branch: BranchId) -> Result<()> {
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        let removed = next.drop_branch(branch)?;
        // What a clone has taken over stays, and so do views of it.
        let stays = |id: CheckpointId| next.checkpoints.contains_key(&id);
        self.check_unused(&state, |id| id == branch, stays)?;
        state.publish(self.storage(), &self.dir, next)?;
        crash_point("delete.published");
        let keys: Vec<_> = state.disks.keys().copied().filter(|(id, _)| *id == branch).collect();
        for key in keys {
            if let Some(disk) = state.disks.remove(&key) {
                disk.close(format!("branch {branch} was removed"));
                // Its open delta's log is no file of the manifest any more either.
                disk.doom_open_log();
            }
        }
        state.inventory.remove(&removed);
        self.recount(&state).map(drop)
    }

    /// What the images hold; `None` while they are empty, and while they are being changed ([`Unit::replaying`]).
    pub fn horizon(&self) -> Option<CheckpointId> {
        let manifest = self.manifest();
        manifest.horizon.filter(|_| manifest.replay.is_none())
    }

    /// What the images will hold once the consolidation that is going on, or was interrupted, is done.
    pub fn replaying(&self) -> Option<CheckpointId> {
        self.manifest().replay.as_ref().map(|replay| replay.up_to)
    }

    /// Who holds which checkpoint.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins_at(&self.manifest(), WallClock::now())
    }

    pub(super) fn pins_at(&self, manifest: &Manifest, now: WallClock) -> Vec<Pin> {
        let mut pins = self.view_pins.list();
        pins.extend(manifest.branches.iter().filter_map(|(id, branch)| {
            let holder = PinHolder::Branch { id: *id, kind: branch.kind };
            branch.base.map(|checkpoint| Pin { checkpoint, holder })
        }));
        pins.extend(manifest.checkpoints.iter().filter_map(|(id, sealed)| {
            let holder = PinHolder::Protection { until: sealed.checkpoint.protected_until };
            sealed.checkpoint.is_protected(now).then_some(Pin { checkpoint: *id, holder })
        }));
        pins.sort_by_key(|pin| pin.checkpoint);
        pins
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        &**self.table.storage()
    }

    pub(super) fn manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.lock().manifest)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, UnitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless the unit was removed.
    pub(super) fn lock_open(&self) -> Result<MutexGuard<'_, UnitState>> {
        let state = self.lock();
        if state.closed {
            return Err(Error::new(ErrorKind::NotFound, format!("{} was removed", state.manifest.name)));
        }
        Ok(state)
    }

    /// Publishes a version that `change` made of the current one.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Manifest) -> Result<T>) -> Result<Durable<T>> {
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        let value = change(&mut next)?;
        let synced = state.publish(self.storage(), &self.dir, next)?;
        Ok(Durable::new(value, synced))
    }

    /// `Busy` where a view of, or somebody with a disk of, one of those branches is left.
    pub(crate) fn check_unused(
        &self,
        state: &UnitState,
        concerned: impl Fn(BranchId) -> bool,
        stays: impl Fn(CheckpointId) -> bool,
    ) -> Result<()> {
        let busy =
            |what: String| Err(Error::new(ErrorKind::Busy, format!("{}: {what}", state.manifest.name)));
        for pin in self.view_pins.list().into_iter().filter(|pin| !stays(pin.checkpoint)) {
            let branch = state.manifest.sealed(pin.checkpoint).map(|sealed| sealed.checkpoint.branch);
            if branch.is_ok_and(&concerned) {
                return busy(format!("checkpoint {} is held by {}", pin.checkpoint, pin.holder));
            }
        }
        for ((branch, disk), branch_disk) in &state.disks {
            if concerned(*branch) && Arc::strong_count(branch_disk) > 1 {
                return busy(format!("disk {disk} of branch {branch} is in use"));
            }
        }
        Ok(())
    }

    /// Closes the unit for removal; `Busy` where anything of it is in use.
    pub(crate) fn close(&self) -> Result<()> {
        let mut state = self.lock_open()?;
        self.check_unused(&state, |_| true, |_| false)?;
        state.closed = true;
        for disk in state.disks.values() {
            disk.close("the unit was removed".to_owned());
        }
        Ok(())
    }

    pub(crate) fn dir(&self) -> &str {
        &self.dir
    }
}
