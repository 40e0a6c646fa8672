//! Making a unit, and opening it: what was open is recovered, what is not part of it is removed.

use crate::branch_disk::{BranchDisk, BranchDiskIdentity, OpenDelta};
use crate::journal::record::LogIdentity;
use crate::journal::recovery::recover;
use crate::journal::straight::is_padding;
use crate::unit::Unit;
use crate::unit::branch::{BranchId, BranchKind, DeltaId, Edition};
use crate::unit::files::{self, PublishError};
use crate::unit::inventory::Inventory;
use crate::unit::manifest::{Branch, BranchEnd, Manifest, UnitSpec};
use crate::unit::pins::ViewPins;
use crate::unit::unit::{NAME_BYTES_MAX, UnitContext, UnitState};
use blocks::{
    BlockShift, ByteLen, ByteOffset, DiskIndex, Error, ErrorKind, Extent, ExtentMap, ExtentSet, Generation,
    OpenMode, Result, Seq, StorageFile, StoreId,
};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// How much of a log is written again at a time.
const REWRITE_STEP: ByteLen = ByteLen::new(1 << 20);

type KeyedDisk = ((BranchId, DiskIndex), Arc<BranchDisk>);

impl UnitSpec {
    /// Whether a unit can be made of it, before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return wrong(format!("a unit's name has 1 to {NAME_BYTES_MAX} bytes"));
        }
        if self.disks.is_empty() || u16::try_from(self.disks.len()).is_err() {
            return wrong(format!("{}: {} disks", self.name, self.disks.len()));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.len.is_zero() || !disk.len.is_aligned(BlockShift::SECTOR) {
                return wrong(format!("{}: disk {index} of {} bytes", self.name, disk.len));
            }
            self.image_format
                .check_len(disk.len)
                .map_err(|error| error.context(format!("{}: disk {index}", self.name)))?;
        }
        Ok(())
    }
}

impl Unit {
    /// Makes a new unit in the folder `dir`. The manifest comes last: without it the folder is rubbish.
    pub(crate) fn create(
        dir: &str,
        store: StoreId,
        salt: u64,
        spec: UnitSpec,
        context: &UnitContext,
    ) -> Result<Arc<Unit>> {
        spec.check()?;
        let storage = Arc::clone(context.table.storage());
        storage.make_dir(dir)?;
        let manifest = first_version(store, salt, spec);
        for (disk, spec) in manifest.disk_indexes().zip(&manifest.disks) {
            files::create_unit_image(&*storage, dir, disk, (manifest.image_format, spec.len))?;
        }
        // The disks' folders come before the manifest that names them.
        storage.sync_dir(dir)?;
        files::publish(&*storage, dir, &manifest).map_err(PublishError::into_error)?;
        Unit::open(dir, context, &mut Vec::new())
    }

    /// Opens the unit in the folder `dir`; `findings` is told what had to be cut or removed.
    pub(crate) fn open(dir: &str, context: &UnitContext, findings: &mut Vec<String>) -> Result<Arc<Unit>> {
        let storage = Arc::clone(context.table.storage());
        let manifest = files::read_manifest(&*storage, dir)?;
        for name in files::tidy(&*storage, dir, &manifest)? {
            findings.push(format!("{name} was left by an interrupted operation and is removed"));
        }
        let mut images = Vec::new();
        for disk in manifest.disk_indexes() {
            images.push(files::open_unit_image(&*storage, dir, &manifest, disk, true)?);
        }
        let (table, cache) = (Arc::clone(&context.table), Arc::clone(&context.cache));
        let mut inventory = Inventory::new(dir.to_owned(), table, cache, images);
        if let Some(replay) = &manifest.replay {
            findings.push(format!(
                "{dir}: the consolidation up to checkpoint {} has to be repeated",
                replay.up_to
            ));
            for (disk, floor) in manifest.disk_indexes().zip(&replay.floors) {
                excuse_replayed(&mut inventory, &manifest, disk, *floor)?;
            }
        }
        let manifest = Arc::new(manifest);
        let state = UnitState {
            manifest: Arc::clone(&manifest),
            inventory,
            disks: BTreeMap::new(),
            poison: None,
            closed: false,
        };
        let unit = Arc::new_cyclic(|me| Unit {
            me: me.clone(),
            dir: dir.to_owned(),
            table: Arc::clone(&context.table),
            options: context.options.clone(),
            merges: context.merges.clone(),
            view_pins: Arc::new(ViewPins::default()),
            hashes: manifest.disk_indexes().map(|_| Arc::default()).collect(),
            consolidating: Mutex::new(()),
            space: Arc::default(),
            not_worth_merging: Mutex::default(),
            consolidated: Mutex::default(),
            torn_tails: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        let mut state = unit.lock();
        let mut is_written = false;
        for branch in manifest.branches.keys() {
            for disk in manifest.disk_indexes() {
                let open = unit.recover_open_delta(&manifest, *branch, disk, findings)?;
                is_written |=
                    *branch == manifest.main && open.log_len.is_some_and(|len| len > ByteOffset::ZERO);
                let (key, opened) = unit.branch_disk(&mut state, &manifest, (*branch, disk), open)?;
                state.disks.insert(key, opened);
            }
        }
        unit.recount(&state)?;
        drop(state);
        unit.note_torn_tails(is_written, findings);
        Ok(unit)
    }

    /// A branch disk of a branch that is about to be published.
    pub(super) fn new_branch_disk(
        &self,
        state: &mut UnitState,
        manifest: &Manifest,
        branch: BranchId,
        disk: DiskIndex,
    ) -> Result<KeyedDisk> {
        let end = manifest.end(branch, disk)?;
        let open = self.empty_delta(end, disk);
        self.branch_disk(state, manifest, (branch, disk), open)
    }

    fn empty_delta(&self, end: BranchEnd, disk: DiskIndex) -> OpenDelta {
        OpenDelta {
            id: end.open,
            log: self.table.file(files::log_name(&self.dir, disk, Edition::first(end.open))),
            map: ExtentMap::new(),
            log_len: None,
            last_seq: end.sealed_seq,
            last_time: None,
        }
    }

    fn branch_disk(
        &self,
        state: &mut UnitState,
        manifest: &Manifest,
        (branch, disk): (BranchId, DiskIndex),
        open: OpenDelta,
    ) -> Result<KeyedDisk> {
        let identity = BranchDiskIdentity { branch, disk, salt: manifest.salt, unit_dir: self.dir.clone() };
        let stack = state.inventory.stack(manifest, disk, manifest.end(branch, disk)?.sealed)?;
        let (table, options) = (Arc::clone(&self.table), self.options.clone());
        let opened = BranchDisk::new(
            identity,
            self.me.clone(),
            (table, Arc::clone(&self.space)),
            options,
            open,
            (manifest.end(branch, disk)?.len, stack),
        )?;
        Ok(((branch, disk), Arc::new(opened)))
    }

    /// Reads the log of an open delta back, cuts a torn tail, and puts what is left on the medium.
    fn recover_open_delta(
        &self,
        manifest: &Manifest,
        branch: BranchId,
        disk: DiskIndex,
        findings: &mut Vec<String>,
    ) -> Result<OpenDelta> {
        let end = manifest.end(branch, disk)?;
        let mut open = self.empty_delta(end, disk);
        let file = match self.storage().open(open.log.name(), OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(open),
            Err(error) => return Err(error),
        };
        let recovered = recover(&*file, LogIdentity { salt: manifest.salt, delta: end.open })?;
        if !recovered.torn.is_zero() {
            let (name, torn, at) = (file.name(), recovered.torn, recovered.len);
            if !is_padding(&*file, at, torn)? {
                findings.push(format!("{name}: a torn tail of {torn} bytes at offset {at} was cut"));
            }
            file.set_len(recovered.len - ByteOffset::ZERO)?;
        }
        rewrite(&*file, recovered.synced_to, recovered.len)?;
        file.sync()?;
        self.storage().sync_dir(&files::disk_dir(&self.dir, disk))?;
        open.map = recovered.map;
        open.log_len = Some(recovered.len);
        open.last_seq = open.last_seq.max(recovered.last_seq);
        open.last_time = recovered.last_time;
        Ok(open)
    }
}

/// Writes what is in the file from `from` to `to` once more. It may be in the kernel's cache and on no medium, and marked
/// as clean there since a sync of it has failed: then syncing alone would not write it.
fn rewrite(file: &dyn StorageFile, from: ByteOffset, to: ByteOffset) -> Result<()> {
    let mut buffer = Vec::new();
    for piece in Extent::between(from, to).into_iter().flat_map(|rest| rest.split(REWRITE_STEP)) {
        buffer.resize(piece.len().as_usize(), 0);
        file.read_at(piece.start(), &mut buffer)?;
        file.write_at(piece.start(), &buffer)?;
    }
    Ok(())
}

/// Blocks of the image that an interrupted replay may have torn are not held against their checksums.
pub(crate) fn excuse_replayed(
    inventory: &mut Inventory,
    manifest: &Manifest,
    disk: DiskIndex,
    floor: DeltaId,
) -> Result<()> {
    let stack = inventory.stack(manifest, disk, floor)?;
    let mut touched = ExtentSet::new();
    let mut merge = stack.merge()?;
    while let Some(entry) = merge.next()? {
        // Whole blocks: few extents, however many small writes there were.
        touched.insert(entry.extent.align_out(BlockShift::KIB_64), ());
    }
    inventory.image(disk).redo(&touched);
    Ok(())
}

fn first_version(store: StoreId, salt: u64, spec: UnitSpec) -> Manifest {
    let main = BranchId(1);
    let disks = spec.disks.len();
    let lens: Vec<_> = spec.disks.iter().map(|disk| disk.len).collect();
    let mut manifest = Manifest {
        store,
        salt,
        machine: spec.machine,
        name: spec.name,
        definition: spec.definition,
        image_format: spec.image_format,
        disks: spec.disks,
        generation: Generation::FIRST,
        next_delta: 1,
        next_branch: 2,
        next_checkpoint: 1,
        main,
        horizon: None,
        floors: vec![DeltaId::IMAGE; disks],
        image_lens: lens.clone(),
        replay: None,
        branches: BTreeMap::new(),
        deltas: BTreeMap::new(),
        merged: Vec::new(),
        checkpoints: BTreeMap::new(),
        gaps: Vec::new(),
        notes: BTreeMap::new(),
        quota: None,
    };
    let mut end = |len| {
        let (sealed, sealed_seq, open) = (DeltaId::IMAGE, Seq(0), manifest.take_delta());
        BranchEnd { sealed, sealed_seq, open, len }
    };
    let ends = lens.into_iter().map(&mut end).collect();
    manifest.branches.insert(main, Branch { kind: BranchKind::Main, name: String::new(), base: None, ends });
    manifest
}
