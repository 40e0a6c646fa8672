//! A store: one pool of units on one storage.

use crate::index::block_cache::BlockCache;
use crate::pace::GuestActivity;
use crate::stored_file::FileTable;
use crate::unit::Unit;
use crate::unit::files;
use crate::unit::manifest::UnitSpec;
use crate::unit::merging::{MergeQueue, MergeWorker};
use crate::unit::unit::UnitContext;
use blocks::Compression;
use blocks::{
    ByteLen, ByteOffset, ByteReader, ByteWriter, Error, ErrorKind, Id, MachineId, OpenMode, Result, Storage,
    StoreId, crash_point,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const MARKER: &str = "store";
const MARKER_NEW: &str = "store.new";
pub(crate) const UNITS: &str = "units";
const MAGIC: [u8; 4] = *b"UStr";
const VERSION: u16 = 1;
/// Logs may have compressed payloads (from version 2 on) and say when writes were completed (3): the programs of earlier
/// versions would take such records for a torn tail.
pub(crate) const VERSION_TIMED: u16 = 3;

/// How a store behaves; nothing of it is written down.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Free space that is kept: appends fail with `NoSpace` rather than touch it, so that seals and manifests fit.
    pub reserve: ByteLen,
    /// How many extents the open delta of a disk may have before a part of it is sealed; bounds memory.
    pub part_extents_max: usize,
    /// How long the log of an open delta may be before a part of it is sealed; bounds recovery.
    pub part_log_bytes_max: ByteLen,
    /// From where on a write is long, as it is stored: some of them in a row go to the medium past the page cache, and no
    /// sync has to wait for them.
    pub long_write: ByteLen,
    /// How much of all indexes is kept in memory.
    pub index_cache: ByteLen,
    /// Whether a thread merges indexes; otherwise a seal does before it returns.
    pub merge_in_background: bool,
    /// Whether payloads are compressed in the logs.
    pub compress: Compression,
    /// Where it is noted that guests are being served, for background work to make way.
    pub guests: Arc<GuestActivity>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            reserve: ByteLen::new(256 << 20),
            part_extents_max: 128 << 10,
            part_log_bytes_max: ByteLen::new(512 << 20),
            long_write: ByteLen::new(256 << 10),
            index_cache: ByteLen::new(16 << 20),
            merge_in_background: true,
            compress: Compression::Never,
            guests: Arc::default(),
        }
    }
}

/// A store that is open, by this process alone.
#[derive(Debug)]
pub struct Store {
    id: StoreId,
    context: UnitContext,
    units: Mutex<Units>,
    findings: Mutex<Vec<String>>,
    // Last, so that it ends after nothing can ask it any more.
    _worker: Option<MergeWorker>,
}

#[derive(Debug, Default)]
struct Units {
    open: BTreeMap<MachineId, Arc<Unit>>,
    damaged: BTreeMap<MachineId, String>,
}

impl Store {
    /// Opens the store, or makes one where there is none. `Busy`, naming the folder, where another process has it.
    /// A unit that is damaged does not keep the others from being opened: see [`Store::damaged_units`].
    pub fn open(storage: Arc<dyn Storage>, options: StoreOptions) -> Result<Store> {
        storage.lock()?;
        let id = match read_marker(&*storage)? {
            Some((id, _)) => id,
            None => create(&*storage)?,
        };
        if read_marker(&*storage)?.is_some_and(|(_, version)| version < VERSION_TIMED) {
            write_marker(&*storage, id, VERSION_TIMED)?;
        }
        let worker = if options.merge_in_background { Some(MergeWorker::start()?) } else { None };
        let context = UnitContext {
            table: FileTable::new(storage),
            cache: Arc::new(BlockCache::new(options.index_cache)),
            options,
            merges: worker.as_ref().map_or(MergeQueue::Inline, MergeWorker::queue),
        };
        let (units, findings) = (Mutex::default(), Mutex::default());
        let store = Store { id, context, units, findings, _worker: worker };
        store.open_units()?;
        Ok(store)
    }

    /// The store's identity.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// What opening the store has found and done about it, for the log.
    pub fn findings(&self) -> Vec<String> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Units that cannot be opened, and why. Nothing of them has been changed.
    pub fn damaged_units(&self) -> Vec<(MachineId, String)> {
        self.lock().damaged.iter().map(|(machine, why)| (*machine, why.clone())).collect()
    }

    /// Makes a new unit. `AlreadyExists` where the machine or the name has one; `InvalidInput` and `Unsupported` for
    /// disks that cannot be; then nothing is left behind.
    pub fn create_unit(&self, spec: UnitSpec) -> Result<Arc<Unit>> {
        spec.check()?;
        let mut units = self.lock();
        let exists = |what: String| Err(Error::new(ErrorKind::AlreadyExists, what));
        if units.open.contains_key(&spec.machine) || units.damaged.contains_key(&spec.machine) {
            return exists(format!("there is a unit of machine {}", spec.machine));
        }
        if units.open.values().any(|unit| unit.name() == spec.name) {
            return exists(format!("there is a unit named {}", spec.name));
        }
        let machine = spec.machine;
        let dir = unit_dir(machine);
        let storage = self.storage();
        if storage.list(UNITS)?.contains(&machine.to_string()) {
            // Nothing open and nothing damaged: what a removal that failed has left, with its mark.
            remove_unit_dir(storage, &dir)?;
        }
        let made = Unit::create(&dir, self.id, random_u64(), spec, &self.context)
            .and_then(|unit| storage.sync_dir(UNITS).map(|_| unit));
        match made {
            Ok(unit) => {
                units.open.insert(machine, Arc::clone(&unit));
                Ok(unit)
            }
            Err(error) => {
                if let Err(left) = remove_unit_dir(storage, &dir) {
                    tracing::warn!("{dir} could not be removed again: {left}");
                }
                Err(error)
            }
        }
    }

    /// All units, by machine.
    pub fn units(&self) -> Vec<Arc<Unit>> {
        self.lock().open.values().cloned().collect()
    }

    /// The unit of a machine.
    pub fn unit(&self, machine: MachineId) -> Option<Arc<Unit>> {
        self.lock().open.get(&machine).cloned()
    }

    /// The unit of that name.
    pub fn unit_by_name(&self, name: &str) -> Option<Arc<Unit>> {
        self.lock().open.values().find(|unit| unit.name() == name).cloned()
    }

    /// Removes a unit with everything in it. `Busy` where a view or a disk of it is in use. After another error repeating it
    /// goes on.
    pub fn remove_unit(&self, machine: MachineId) -> Result<()> {
        let mut units = self.lock();
        let Some(unit) = units.open.get(&machine) else {
            let is_left = self.storage().list(UNITS)?.contains(&machine.to_string());
            if is_left && !units.damaged.contains_key(&machine) {
                return remove_unit_dir(self.storage(), &unit_dir(machine));
            }
            return Err(Error::new(ErrorKind::NotFound, format!("there is no unit of machine {machine}")));
        };
        unit.close()?;
        crash_point("delete.closed");
        units.open.remove(&machine);
        remove_unit_dir(self.storage(), &unit_dir(machine))
    }

    /// Room left on the storage, the reserve included; `None` where it cannot be told.
    pub fn free_space(&self) -> Result<Option<ByteLen>> {
        self.storage().free_space()
    }

    /// How the store behaves.
    pub fn options(&self) -> &StoreOptions {
        &self.context.options
    }

    fn storage(&self) -> &dyn Storage {
        &**self.context.table.storage()
    }

    fn lock(&self) -> MutexGuard<'_, Units> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_units(&self) -> Result<()> {
        let mut findings = Vec::new();
        let mut units = self.lock();
        // The names of the marker and of units may be in the kernel's cache only: whoever made them may have died before
        // the folder was synced. What is acknowledged from now on relies on them.
        self.storage().sync_dir("")?;
        self.storage().sync_dir(UNITS)?;
        for name in self.storage().list(UNITS)? {
            let Ok(machine) = name.parse::<MachineId>() else {
                findings.push(format!("{UNITS}/{name} is no unit and is left alone"));
                continue;
            };
            let dir = unit_dir(machine);
            if is_rubbish(self.storage(), &dir)? {
                findings.push(format!("{dir} was not made or removed completely and is removed"));
                remove_unit_dir(self.storage(), &dir)?;
                continue;
            }
            match Unit::open(&dir, &self.context, &mut findings) {
                Ok(unit) => drop(units.open.insert(machine, unit)),
                Err(error) => {
                    findings.push(format!("{dir} cannot be opened: {error}"));
                    units.damaged.insert(machine, error.to_string());
                }
            }
        }
        *self.findings.lock().unwrap_or_else(PoisonError::into_inner) = findings;
        Ok(())
    }
}

fn unit_dir(machine: MachineId) -> String {
    format!("{UNITS}/{machine}")
}

fn random_bytes() -> [u8; 16] {
    blocks::random_bytes(|| uuid::Uuid::new_v4().into_bytes())
}

fn random_u64() -> u64 {
    let bytes = random_bytes();
    u64::from_le_bytes(std::array::from_fn(|i| bytes[i] ^ bytes[i + 8]))
}

/// Whether the unit in that folder was never published, or is being removed. A folder without a manifest that has logs
/// was published once: that is damage, not rubbish.
pub(crate) fn is_rubbish(storage: &dyn Storage, dir: &str) -> Result<bool> {
    let names = storage.list(dir)?;
    if names.iter().any(|name| files::removed_name(dir).ends_with(&format!("/{name}"))) {
        return Ok(true);
    }
    if names.iter().any(|name| name == "manifest") {
        return Ok(false);
    }
    for name in names.iter().filter(|name| name.starts_with("disk")) {
        if storage.list(&format!("{dir}/{name}"))?.iter().any(|file| file.ends_with(".log")) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove_unit_dir(storage: &dyn Storage, dir: &str) -> Result<()> {
    let mark = files::removed_name(dir);
    match storage.open(&mark, OpenMode::CreateNew) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => storage.sync_dir(dir)?,
    };
    crash_point("delete.marked");
    // What is removed may vanish from the medium in any order: the mark goes when the rest is gone for certain.
    for name in
        storage.list(dir)?.into_iter().map(|name| format!("{dir}/{name}")).filter(|name| *name != mark)
    {
        let is_dir = storage.list(&name).is_ok();
        if is_dir { storage.remove_dir(&name)? } else { storage.remove(&name)? }
    }
    storage.sync_dir(dir)?;
    crash_point("delete.emptied");
    storage.remove_dir(dir)?;
    storage.sync_dir(UNITS).map(drop)
}

pub(crate) fn read_marker(storage: &dyn Storage) -> Result<Option<(StoreId, u16)>> {
    let names = storage.list("")?;
    if !names.iter().any(|name| name == MARKER) {
        if names.iter().any(|name| name == UNITS) && !storage.list(UNITS)?.is_empty() {
            return Err(Error::corrupt(format!("there are units, but the marker {MARKER} is missing")));
        }
        return Ok(None);
    }
    decode_marker(&files::read_small(storage, MARKER)?).map(Some)
}

/// The identity and the version that a marker's bytes say.
pub(crate) fn decode_marker(bytes: &[u8]) -> Result<(StoreId, u16)> {
    let mut reader = ByteReader::checksummed(bytes, "the marker of a store")?;
    if reader.array()? != MAGIC {
        return Err(Error::corrupt(format!("{MARKER} is not the marker of a store")));
    }
    let version = reader.u16()?;
    if !(VERSION..=VERSION_TIMED).contains(&version) {
        let context = format!("a store of version {version}, which is newer than this program");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let id = reader.id()?.ok_or_else(|| Error::corrupt("a store without identity"))?;
    reader.finish()?;
    Ok((StoreId(id), version))
}

fn create(storage: &dyn Storage) -> Result<StoreId> {
    let id = Id::from_bytes(random_bytes()).ok_or_else(|| Error::new(ErrorKind::Io, "no random numbers"))?;
    storage.make_dir(UNITS)?;
    storage.sync_dir("")?;
    write_marker(storage, StoreId(id), VERSION_TIMED)?;
    Ok(StoreId(id))
}

/// Puts the marker of that store on the medium, in place of one that may be there.
pub(crate) fn write_marker(storage: &dyn Storage, id: StoreId, version: u16) -> Result<()> {
    let mut writer = ByteWriter::new();
    writer.bytes(&MAGIC).u16(version).id(Some(id.0)).checksum();
    let file = files::create_anew(storage, MARKER_NEW)?;
    file.write_at(ByteOffset::ZERO, writer.as_bytes())?;
    file.sync()?;
    storage.rename(MARKER_NEW, MARKER)?;
    storage.sync_dir("").map(drop)
}
