//! Thinning: checkpoints are forgotten, and the deltas between those that stay become one with a log of its own, so that
//! what was overwritten in between gives its space back.
//!
//! It is three steps, each of which can be cut off and done again: the checkpoints go from the manifest; the merged log
//! and index are written under new names and synced; the manifest puts them in the place of the old ones, whose files go
//! with their last reader.

use crate::index::entry::Entry;
use crate::index::merge::Merge;
use crate::index::reader::IndexReader;
use crate::index::writer::IndexWriter;
use crate::journal::location::Location;
use crate::journal::log::{LogWriter, PreparedWrite};
use crate::journal::packer::Packer;
use crate::journal::record::{HEADER_BYTES, LogIdentity};
use crate::journal::writes::read_writes;
use crate::plan::{Plan, PlanPiece};
use crate::stored_file::StoredFile;
use crate::unit::Unit;
use crate::unit::branch::{DeltaId, Edition};
use crate::unit::changes::delta_readers;
use crate::unit::files;
use crate::unit::lineage::Span;
use crate::unit::manifest::Manifest;
use crate::unit::run::{Run, Stored};
use crate::unit::unit::UnitState;
use blocks::Compression;
use blocks::{
    ByteLen, ByteOffset, CheckpointId, Error, ErrorKind, RequestClass, Result, Seq, WallClock, crash_point,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// When merging is worth what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinGoal {
    /// Only where a quarter of what several deltas hold, or half of what one holds, comes back, or where there are very
    /// many deltas: then no more than three bytes are written for each that comes back.
    Worthwhile,
    /// Wherever anything comes back.
    Everything,
}

/// What thinning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThinReport {
    /// How many deltas are gone.
    pub deltas: u64,
    /// Bytes of log that were written.
    pub written: ByteLen,
    /// Bytes of log that were given back, less those written.
    pub freed: ByteLen,
}

/// So many neighbours become one even where nothing comes back: each costs two files and a line of the manifest.
const NEIGHBOURS_MAX: usize = 32;

/// A run that is worth merging, with what is needed for it.
struct Work {
    run: Run,
    last: Edition,
    manifest: Arc<Manifest>,
    /// The newest first.
    readers: Vec<Arc<IndexReader>>,
    logs: BTreeMap<DeltaId, Arc<StoredFile>>,
    seq: Seq,
    /// How long the logs are, and how long the merged one will be.
    old_len: ByteLen,
    new_len: ByteLen,
}

impl Unit {
    /// Forgets checkpoints; what they held of later ones stays. All of them or none: `NotFound`; `Busy`, naming the
    /// reason, for one that is held by a view or a branch, protected, held by the images, or the newest of its branch.
    /// The space comes back with [`Unit::thin`].
    pub fn delete_checkpoints(&self, ids: &[CheckpointId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        let now = WallClock::now();
        for id in ids {
            self.check_deletable(&next, *id, now)?;
            next.forget_checkpoint(*id)?;
        }
        state.publish(self.storage(), &self.dir, next)?;
        drop(state);
        crash_point("thin.dropped");
        Ok(())
    }

    /// Protects a checkpoint until that instant, or no longer with 0. It stays, and the horizon with it.
    pub fn protect_checkpoint(&self, id: CheckpointId, until: WallClock) -> Result<()> {
        let change = |manifest: &mut Manifest| {
            manifest.sealed(id)?;
            manifest.checkpoints.entry(id).and_modify(|sealed| sealed.checkpoint.protected_until = until);
            Ok(())
        };
        self.change(change).map(drop)
    }

    /// Merges deltas between which there is no checkpoint any more. `progress` is told how many bytes were looked at, and
    /// ends it by `false`: what was merged so far stays so. `Busy` while the unit is consolidated; `NoSpace`, with
    /// everything as it was, where the merged log of some deltas does not fit beside theirs.
    pub fn thin(&self, goal: ThinGoal, progress: &dyn Fn(ByteLen) -> bool) -> Result<ThinReport> {
        let _alone = self.take_consolidating()?;
        let mut report = ThinReport::default();
        let mut looked = ByteLen::ZERO;
        let mut full = None;
        for disk in self.manifest().disk_indexes() {
            for run in self.manifest().runs(disk) {
                let Some(work) = self.worth_merging(run, goal)? else { continue };
                match self.merge_run(&work, &|done| progress(looked + done)) {
                    Ok(written) => {
                        report.deltas += work.run.deltas.len() as u64 - 1;
                        report.written += written;
                        report.freed += work.old_len.saturating_sub(written);
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Ok(report),
                    // Another one may be smaller.
                    Err(error) if error.kind() == ErrorKind::NoSpace => full = Some(error),
                    Err(error) => return Err(error),
                }
                looked += work.old_len;
            }
        }
        match full {
            Some(error) if report.deltas == 0 => Err(error),
            _ => Ok(report),
        }
    }

    fn check_deletable(&self, manifest: &Manifest, id: CheckpointId, now: WallClock) -> Result<()> {
        let sealed = manifest.sealed(id)?;
        let busy = |why: String| {
            let context = format!("{}: checkpoint {id} cannot be deleted: {why}", manifest.name);
            Err(Error::new(ErrorKind::Busy, context))
        };
        if let Some(pin) = self.pins_at(manifest, now).into_iter().find(|pin| pin.checkpoint == id) {
            return busy(format!("it is held by {}", pin.holder));
        }
        let replaying = manifest.replay.as_ref().map(|replay| replay.up_to);
        if manifest.horizon == Some(id) || replaying == Some(id) {
            return busy("it is what the images hold".to_owned());
        }
        let branch = sealed.checkpoint.branch;
        let newest = manifest.checkpoints.iter().rfind(|(_, other)| other.checkpoint.branch == branch);
        if newest.is_some_and(|(newest, _)| *newest == id) {
            return busy("it is the newest of its branch".to_owned());
        }
        Ok(())
    }

    /// What merging that run takes; `None` where it is not worth it.
    fn worth_merging(&self, run: Run, goal: ThinGoal) -> Result<Option<Work>> {
        let Some(last) = run.last() else { return Ok(None) };
        let mut state = self.lock_open()?;
        let manifest = Arc::clone(&state.manifest);
        if !manifest.is_run(&run) {
            return Ok(None);
        }
        let of_run = || run.deltas.iter().filter_map(|edition| manifest.deltas.get(&edition.delta));
        let old_len: ByteLen = of_run().map(|delta| delta.log_len).sum();
        // From the manifest alone: what is covered without data only makes it look fuller than it is. So does compression,
        // by too much to rely on it.
        let records = of_run().map(|delta| delta.entries * HEADER_BYTES as u64).sum();
        let held: ByteLen = of_run().map(|delta| delta.covered).sum::<ByteLen>() + ByteLen::new(records);
        let may_be_packed = self.options.compress != Compression::Never;
        if run.deltas.len() == 1 && !may_be_packed && !goal.is_reached(&run, old_len, held) {
            return Ok(None);
        }
        let key = (run.clone(), goal == ThinGoal::Everything);
        if self.not_worth_merging.lock().is_ok_and(|known| known.contains(&key)) {
            return Ok(None);
        }
        // What cannot be read is not merged either.
        if run.deltas.len() == 1 && self.holds_moments(&mut state, &run).unwrap_or(true) {
            self.remember_not_worth(key, &manifest);
            return Ok(None);
        }
        let ids: Vec<DeltaId> = run.deltas.iter().rev().map(|edition| edition.delta).collect();
        let readers = delta_readers(&mut state, run.disk, &ids)?;
        let logs = run.deltas.iter().map(|edition| (edition.delta, state.inventory.log(run.disk, *edition)));
        let logs = logs.collect();
        drop(state);
        let new_len = merged_len(&readers)?;
        if !goal.is_reached(&run, old_len, new_len) {
            self.remember_not_worth(key, &manifest);
            return Ok(None);
        }
        // Every boundary has one; the head of a branch without anything has none and no deltas either.
        let seq = manifest.seq_at(run.disk, last.delta).unwrap_or(Seq(0));
        Ok(Some(Work { run, last, manifest, readers, logs, seq, old_len, new_len }))
    }

    /// Whether single writes of a run can be asked for: a merge would end that.
    fn holds_moments(&self, state: &mut UnitState, run: &Run) -> Result<bool> {
        let Some(edition) = run.last().filter(|edition| edition.revision == 0) else { return Ok(false) };
        let Some(delta) = state.manifest.deltas.get(&edition.delta).copied() else { return Ok(false) };
        let identity = LogIdentity { salt: state.manifest.salt, delta: edition.delta };
        let log = state.inventory.log(run.disk, edition).open()?;
        let mut is_timed = false;
        read_writes(&*log, identity, delta.log_len, |time, _| {
            is_timed = time.is_some();
            false
        })?;
        Ok(is_timed)
    }

    /// Counting again what a run holds costs reading its indexes: once is enough.
    fn remember_not_worth(&self, key: (Run, bool), manifest: &Manifest) {
        if let Ok(mut known) = self.not_worth_merging.lock() {
            let disks = manifest.disk_indexes();
            let now: std::collections::BTreeSet<Run> = disks.flat_map(|disk| manifest.runs(disk)).collect();
            known.retain(|(run, _)| now.contains(run));
            known.insert(key);
        }
    }

    /// Merges a run; gives how long its log is.
    fn merge_run(&self, work: &Work, progress: &dyn Fn(ByteLen) -> bool) -> Result<ByteLen> {
        self.check_room(work.new_len)?;
        let edition = Edition { delta: work.last.delta, revision: work.run.revision() };
        let span = Span { first: edition.delta, last: edition.delta, tier: 0, revision: edition.revision };
        let names = [
            files::log_name(&self.dir, work.run.disk, edition),
            files::index_name(&self.dir, work.run.disk, span),
        ];
        let outcome = self.write_merged_delta(work, &names, progress).and_then(|stored| {
            crash_point("thin.written");
            self.publish_merged_delta(work, stored)?;
            Ok(stored.log_len)
        });
        // Once published, or where nobody knows whether it is, it must stay. Opening removes what cannot be removed now.
        if outcome.is_err()
            && self.manifest().edition(edition.delta) != edition
            && self.lock().poison.is_none()
        {
            names.iter().for_each(|name| drop(self.storage().remove(name)));
        }
        outcome
    }

    fn check_room(&self, needed: ByteLen) -> Result<()> {
        let kept = self.kept_free();
        match self.storage().free_space()? {
            Some(free) if free < kept + needed => {
                let context =
                    format!("{free} bytes are free, {kept} of them in reserve; merging needs {needed}");
                Err(Error::new(ErrorKind::NoSpace, context))
            }
            _ => Ok(()),
        }
    }

    fn write_merged_delta(
        &self,
        work: &Work,
        names: &[String; 2],
        progress: &dyn Fn(ByteLen) -> bool,
    ) -> Result<Stored> {
        let (delta, salt) = (work.last.delta, work.manifest.salt);
        let log = files::create_anew(self.storage(), &names[0])?;
        let mut log = LogWriter::new(log, LogIdentity { salt, delta }, ByteOffset::ZERO);
        let index = files::create_anew(self.storage(), &names[1])?;
        let mut index = IndexWriter::new(index, salt, delta, delta);
        let image = Arc::clone(self.lock().inventory.image(work.run.disk));
        // What was compressed stays so. Measuring anew what pays would take samples that there may be too few of.
        let (packing, plain) = (Packer::new(Compression::Always), Packer::new(Compression::Never));
        let packs_all = self.options.compress == Compression::Always;
        let mut merge = Merge::new(&work.readers, DeltaId::IMAGE)?;
        while let Some(entry) = merge.next()? {
            let bytes = match entry.location {
                Location::Empty(_) => Vec::new(),
                Location::Log(_) => {
                    let log = work.logs.get(&entry.delta).ok_or_else(|| {
                        Error::corrupt(format!("an index names delta {}, which is not of it", entry.delta))
                    })?;
                    let mut bytes = vec![0; entry.extent.len().as_usize()];
                    let plan = Plan::of(PlanPiece::at(entry.extent, entry.location, log));
                    plan.read(entry.extent.start(), &mut bytes, &*image, RequestClass::Background)?;
                    bytes
                }
            };
            let write = match entry.location {
                Location::Empty(kind) => PreparedWrite::empty(entry.extent, kind),
                Location::Log(location) => {
                    let packer = if packs_all || location.packed > 0 { &packing } else { &plain };
                    PreparedWrite::data(entry.extent, &bytes, packer)
                }
            };
            for (extent, location) in log.append(work.seq, &write, ByteOffset::ZERO)? {
                index.push(Entry { extent, delta, location })?;
            }
            if !progress(log.len() - ByteOffset::ZERO) {
                return Err(Error::new(ErrorKind::Cancelled, "merging was called off"));
            }
        }
        log.file().sync()?;
        let (header, _) = index.finish()?;
        self.storage().sync_dir(&files::disk_dir(&self.dir, work.run.disk))?;
        Ok(Stored { log_len: log.len() - ByteOffset::ZERO, entries: header.entries, covered: header.covered })
    }

    fn publish_merged_delta(&self, work: &Work, stored: Stored) -> Result<()> {
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        if !next.is_run(&work.run) {
            return Err(Error::new(ErrorKind::NotFound, "the deltas that were merged are gone"));
        }
        let removed = next.replace_run(&work.run, stored)?;
        state.publish(self.storage(), &self.dir, next)?;
        crash_point("thin.published");
        state.inventory.remove(&removed);
        state.refresh_stacks(Some(work.run.disk))?;
        self.recount(&state)?;
        let branches: Vec<_> = state.manifest.branches.keys().copied().collect();
        drop(state);
        crash_point("thin.removed");
        for branch in branches {
            self.merges.request(&self.me, branch, work.run.disk);
        }
        Ok(())
    }
}

impl ThinGoal {
    fn is_reached(self, run: &Run, old: ByteLen, new: ByteLen) -> bool {
        let (old, new, neighbours) = (u128::from(old.get()), u128::from(new.get()), run.deltas.len());
        match self {
            ThinGoal::Everything => neighbours > 1 || new < old,
            ThinGoal::Worthwhile if neighbours == 1 => new * 2 <= old,
            ThinGoal::Worthwhile => new * 4 <= old * 3 || neighbours >= NEIGHBOURS_MAX,
        }
    }
}

/// How long the log of a merge will be: at most so long without compression, and with it where a part shrinks as the whole
/// did.
fn merged_len(readers: &[Arc<IndexReader>]) -> Result<ByteLen> {
    let mut len = ByteLen::ZERO;
    let mut merge = Merge::new(readers, DeltaId::IMAGE)?;
    while let Some(entry) = merge.next()? {
        let data = match entry.location {
            Location::Empty(_) => ByteLen::ZERO,
            Location::Log(log) => {
                let (stored, whole) = (log.stored_len().get(), log.payload_len().get());
                ByteLen::new((entry.extent.len().get() * stored).div_ceil(whole))
            }
        };
        len += data + ByteLen::new(HEADER_BYTES as u64);
    }
    Ok(len)
}

impl Manifest {
    /// Forgets a checkpoint; the next one of its branch says that all since the one before has changed.
    fn forget_checkpoint(&mut self, id: CheckpointId) -> Result<()> {
        let gone = self.sealed(id)?.checkpoint.clone();
        self.checkpoints.remove(&id);
        let mut later = self.checkpoints.range_mut(id..);
        if let Some((_, next)) = later.find(|(_, sealed)| sealed.checkpoint.branch == gone.branch) {
            next.checkpoint.changed += gone.changed;
        }
        Ok(())
    }
}
