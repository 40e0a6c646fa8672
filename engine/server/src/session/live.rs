//! A session whose disks are open.

use crate::session::changes::DiskChanges;
use crate::session::context::Context;
use crate::session::dirty_map::{DirtyMap, MapOwner};
use crate::session::door::Door;
use crate::session::failback::Parked;
use crate::session::migrate::{Migration, Target};
use crate::session::pivoted_volume::PivotedVolume;
use crate::session::record::{
    MigrationEvent, MigrationRecord, MigrationState, RecordKeeper, SessionRecord, SessionState,
};
use crate::session::volume::{SessionVolume, lock};
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, Result, SessionId, Volume};
use nbd_server::{Export, Pass};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use store::{BranchDisk, Unit};

/// A session and its open disks.
pub(crate) struct LiveSession {
    pub id: SessionId,
    pub unit: Arc<Unit>,
    pub context: Arc<Context>,
    pub record: Arc<RecordKeeper>,
    /// Empty once the session has ended.
    pub disks: Vec<Arc<LiveDisk>>,
    /// Held by whoever ends the session or brings it home.
    pub busy: AtomicBool,
    /// A failback is under way.
    pub failing_back: AtomicBool,
    /// A failback that is in step and waits for the next call.
    parked: Mutex<Option<Parked>>,
    /// Why the disks are not served, for the administrator.
    held: Mutex<Option<String>>,
}

/// One disk of it.
pub(crate) struct LiveDisk {
    pub index: DiskIndex,
    pub branch: Arc<BranchDisk>,
    pub volume: Arc<SessionVolume>,
    /// Open while the disk is served.
    pub door: Arc<Door>,
    /// Once the disk was pivoted.
    map: Mutex<Option<Arc<DirtyMap>>>,
    migration: Mutex<Option<Migration>>,
}

/// Lets go of [`LiveSession::busy`].
pub(crate) struct Occupied<'a>(&'a AtomicBool);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl LiveDisk {
    /// Opens a disk as its record says. A pivoted one opens its target.
    fn open(
        id: SessionId,
        index: DiskIndex,
        unit: &Unit,
        context: &Arc<Context>,
        record: &Arc<RecordKeeper>,
    ) -> Result<LiveDisk> {
        let known = record.get();
        let known_state = known.state();
        let disk = known.disk(index)?;
        let branch = unit.disk(known.branch(), index)?;
        let len = branch.len();
        let (mut inner, mut map): (Arc<dyn Volume>, _) = (Arc::clone(&branch) as Arc<dyn Volume>, None);
        // Once the branch is the machine's history it holds all that the target held.
        let pivoted = |known: &&MigrationRecord| {
            *known.state() == MigrationState::Pivoted
                && !matches!(known_state, SessionState::Finishing { .. })
        };
        if let Some(migration) = disk.migration.as_ref().filter(pivoted) {
            let owner = MapOwner { session: id, disk: index, len };
            let opened = Arc::new(DirtyMap::open(&*context.storage, &map_name(id, index), owner)?);
            let target = Target::parse(&migration.to, Some(&migration.format))?.open(len)?;
            inner = Arc::new(PivotedVolume::new(target, Arc::clone(&opened)));
            map = Some(opened);
        }
        let (keeper, boot) = (Arc::clone(record), context.boot.clone());
        let hook = move |unflushed: bool| {
            keeper.update(|record| {
                record.disk_mut(index)?.unflushed_boot = unflushed.then(|| boot.clone());
                Ok(())
            })
        };
        let volume = SessionVolume::new(len, inner, disk.unflushed_boot.is_some(), Box::new(hook));
        Ok(LiveDisk {
            index,
            branch,
            volume: Arc::new(volume),
            door: Door::new(),
            map: Mutex::new(map),
            migration: Mutex::default(),
        })
    }

    /// The size of the disk.
    pub fn len(&self) -> ByteLen {
        self.volume.len()
    }

    /// What differs from the session's base, where the disk was pivoted.
    pub fn map(&self) -> Option<Arc<DirtyMap>> {
        lock(&self.map).clone()
    }

    /// Takes note of the pivot.
    pub fn set_map(&self, map: Arc<DirtyMap>) {
        *lock(&self.map) = Some(map);
    }

    /// Bytes that differ from the session's base.
    pub fn written(&self) -> Result<ByteLen> {
        match self.map() {
            Some(map) => Ok(map.bytes()),
            None => Ok(self.branch.changed_since_fork()?.covered()),
        }
    }

    /// Runs `work` on the running migration, if there is one.
    pub fn with_migration<T>(&self, work: impl FnOnce(&Migration) -> T) -> Option<T> {
        lock(&self.migration).as_ref().map(work)
    }

    /// Puts a migration in the place of the one before, which has ended.
    pub fn set_migration(&self, migration: Option<Migration>) {
        let before = std::mem::replace(&mut *lock(&self.migration), migration);
        if let Some(before) = before {
            before.stop();
        }
    }
}

impl LiveSession {
    /// Opens the disks of a session; of one that has ended, nothing.
    pub fn open(id: SessionId, unit: Arc<Unit>, context: Arc<Context>, record: SessionRecord) -> LiveSession {
        let served = record.state().has_disks();
        let unflushed_elsewhere = record.state() == SessionState::Running
            && record
                .disks
                .iter()
                .any(|disk| disk.unflushed_boot.as_ref().is_some_and(|boot| *boot != context.boot));
        let count = record.disks.len();
        let record = Arc::new(RecordKeeper::new(Arc::clone(&unit), record));
        let mut held = None;
        let mut disks = Vec::new();
        if served {
            let open = |index| LiveDisk::open(id, DiskIndex(index), &unit, &context, &record).map(Arc::new);
            match (0..u16::try_from(count).unwrap_or(u16::MAX)).map(open).collect::<Result<Vec<_>>>() {
                Ok(opened) => disks = opened,
                Err(error) => held = Some(error.to_string()),
            }
        }
        if served && held.is_none() && unflushed_elsewhere {
            held = Some(
                "the server's host was restarted while writes waited for a flush and may have lost them: restart the \
                 guest, then say so"
                    .to_owned(),
            );
        }
        LiveSession {
            id,
            unit,
            context,
            record,
            disks,
            busy: AtomicBool::new(false),
            failing_back: AtomicBool::new(false),
            parked: Mutex::default(),
            held: Mutex::new(held),
        }
    }

    /// The name of a disk's export.
    pub fn export_name(&self, disk: DiskIndex) -> String {
        let id = self.id.to_string();
        format!("{}-{}-disk{disk}", self.unit.name(), &id[..8])
    }

    /// Why the disks are not served; `None` where nothing is in the way.
    pub fn held(&self) -> Option<String> {
        lock(&self.held).clone()
    }

    /// Does not serve the disks, because.
    pub fn hold(&self, why: String) {
        *lock(&self.held) = Some(why);
    }

    /// The guest was restarted: what was lost with the host is no longer relied on.
    pub fn release(&self) -> Result<()> {
        self.record.update(|record| {
            record.disks.iter_mut().for_each(|disk| disk.unflushed_boot = None);
            Ok(())
        })?;
        *lock(&self.held) = None;
        Ok(())
    }

    /// Serves every disk. All or none.
    pub fn serve(&self) -> Result<()> {
        for disk in &self.disks {
            let description = format!("disk {} of {}, session {}", disk.index, self.unit.name(), self.id);
            let volume: Arc<dyn Volume> = Arc::clone(&disk.volume) as Arc<dyn Volume>;
            let changes =
                DiskChanges::new(Arc::clone(&self.unit), Arc::clone(&self.record), Arc::clone(disk));
            let door = Arc::clone(&disk.door);
            let gate = move || door.enter_over_nbd().map(|visit| Box::new(visit) as Pass);
            let export = Export::new(volume)
                .with_description(description)
                .with_metadata(Arc::new(changes))
                .with_gate(Arc::new(gate));
            disk.door.open(Arc::clone(&disk.volume) as Arc<dyn Volume>);
            if let Err(error) = self.context.exports.insert(self.export_name(disk.index), export) {
                self.withdraw();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends every export; returns when no request is in flight. Clients are disconnected, and files of mounts fail.
    pub fn withdraw(&self) {
        for disk in &self.disks {
            disk.door.shut();
            self.context.exports.remove(&self.export_name(disk.index));
        }
    }

    /// The disk of that number; the only one where none is named.
    pub fn disk(&self, disk: Option<DiskIndex>) -> Result<&Arc<LiveDisk>> {
        match (disk, self.disks.as_slice()) {
            (None, [only]) => Ok(only),
            (None, []) => {
                Err(Error::new(ErrorKind::InvalidInput, format!("session {} has no open disks", self.id)))
            }
            (None, _) => {
                let context = format!("session {} has {} disks: say which", self.id, self.disks.len());
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
            (Some(disk), disks) => disks.get(usize::from(disk.0)).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("session {} has no open disk {disk}", self.id))
            }),
        }
    }

    /// Makes the caller the only one who ends, seals or brings home the session.
    pub fn occupy(&self) -> Result<Occupied<'_>> {
        if self.busy.swap(true, Ordering::SeqCst) {
            let context = format!("session {} is being ended, sealed or brought home already", self.id);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        Ok(Occupied(&self.busy))
    }

    /// Lets a failback that is in step wait for the next call.
    pub fn park(&self, parked: Parked) {
        *lock(&self.parked) = Some(parked);
    }

    /// The failback that waits, if its agent is still there; it waits no longer.
    pub fn unpark(&self) -> Option<Parked> {
        let mut parked = lock(&self.parked).take()?;
        parked.is_alive().then_some(parked)
    }

    /// What was written since a failback that waits; `None` where none does. One whose agent is gone is dropped.
    pub fn parked_since(&self) -> Option<ByteLen> {
        let mut parked = lock(&self.parked);
        match parked.as_mut().is_some_and(Parked::is_alive) {
            true => parked.as_ref().map(Parked::written_since),
            false => {
                *parked = None;
                None
            }
        }
    }

    /// Lets migrations go on from their marks. One that cannot even begin has failed; the session goes on.
    pub fn start_migrations(self: &Arc<Self>) -> Result<()> {
        let record = self.record.get();
        for disk in &self.disks {
            let Some(migration) = &record.disk(disk.index)?.migration else { continue };
            if matches!(migration.state(), MigrationState::Copying { .. } | MigrationState::InStep { .. })
                && let Err(error) = self.start_migration(disk, migration, false)
            {
                tracing::warn!("disk {} of session {} cannot be copied on: {error}", disk.index, self.id);
            }
        }
        Ok(())
    }

    /// Starts a migration that is recorded; where that is not possible, it is recorded as failed.
    pub fn start_migration(
        self: &Arc<Self>,
        disk: &LiveDisk,
        record: &MigrationRecord,
        new: bool,
    ) -> Result<()> {
        match Migration::start(self, disk.index, record, new) {
            Ok(migration) => {
                disk.set_migration(Some(migration));
                Ok(())
            }
            Err(error) => {
                self.record.migration(disk.index, MigrationEvent::Fail { detail: error.to_string() })?;
                Err(error)
            }
        }
    }

    /// Calls off running migrations and waits until they have stopped; their records stay, so they can go on.
    pub fn stop_migrations(&self) {
        self.disks.iter().for_each(|disk| disk.set_migration(None));
    }
}

/// The name of a disk's dirty map in the server's data folder.
pub(crate) fn map_name(session: SessionId, disk: DiskIndex) -> String {
    format!("{}/disk{disk}.map", session_dir(session))
}

/// A session's own folder in the server's data folder.
pub(crate) fn session_dir(session: SessionId) -> String {
    format!("sessions/{session}")
}
