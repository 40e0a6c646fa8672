//! Consolidation: the oldest deltas are merged and replayed into the image, and the horizon moves.
//!
//! It is redo. The manifest says up to where the image is being changed before its first byte changes; until it says
//! that this is done, those deltas stay in every view and hide what the image holds there. After a crash the same is
//! done again, from the start.

use crate::image::{ReplayContent, ReplayPiece, replay};
use crate::index::entry::Entry;
use crate::index::merge::Merge;
use crate::index::stack::Stack;
use crate::journal::location::{Location, RecordKind};
use crate::pace::Pace;
use crate::plan::{Plan, PlanPiece};
use crate::unit::Unit;
use crate::unit::files;
use crate::unit::manifest::Manifest;
use blocks::{
    ByteLen, CheckpointId, Error, ErrorKind, Extent, PlantedBug, RequestClass, Result, Storage, Volume,
    WallClock, crash_point,
};
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};

/// What a consolidation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsolidateReport {
    /// Bytes written into images: each byte once, however often it was written before.
    pub written: ByteLen,
    /// Bytes that became zero in images.
    pub zeroed: ByteLen,
    /// Deltas that are gone.
    pub deltas: u64,
    /// How long their logs were.
    pub freed: ByteLen,
    /// Bytes written to the image files for it, with everything that their format adds.
    pub image_written: ByteLen,
    /// Bytes read from the logs.
    pub log_read: ByteLen,
    /// Bytes read back from the images, because a block is summed as a whole and was changed in part only.
    pub image_read: ByteLen,
}

impl ConsolidateReport {
    /// Bytes written to the image files for each byte of data that changed; `None` where none did.
    pub fn amplification(&self) -> Option<f64> {
        (!self.written.is_zero()).then(|| self.image_written.get() as f64 / self.written.get() as f64)
    }

    /// Adds another one's numbers.
    pub fn absorb(&mut self, other: &ConsolidateReport) {
        self.written += other.written;
        self.zeroed += other.zeroed;
        self.deltas += other.deltas;
        self.freed += other.freed;
        self.image_written += other.image_written;
        self.log_read += other.log_read;
        self.image_read += other.image_read;
    }
}

impl Unit {
    /// Brings the images to a checkpoint of the main branch and forgets what lies before it. `progress` is told how
    /// many bytes of how many are done, and calls it off by `false`: that is `Cancelled`, and the checkpoints before
    /// `up_to` are gone nevertheless. `Busy`, naming the holder, where a pin would be passed or another consolidation
    /// goes on. `NoSpace` where the images would eat up the reserve: repeated with more room it goes on. Memory does not grow with what is consolidated.
    pub fn consolidate(
        &self,
        up_to: CheckpointId,
        progress: &dyn Fn(ByteLen, ByteLen) -> bool,
    ) -> Result<ConsolidateReport> {
        self.consolidate_at_pace(up_to, &Pace::unlimited(), progress)
    }

    /// The same no faster than `pace` allows; a byte counts when it is read from a log and when it is written.
    pub fn consolidate_at_pace(
        &self,
        up_to: CheckpointId,
        pace: &Pace<'_>,
        progress: &dyn Fn(ByteLen, ByteLen) -> bool,
    ) -> Result<ConsolidateReport> {
        let _alone = self.take_consolidating()?;
        let Some(stacks) = self.begin_consolidation(up_to)? else { return Ok(ConsolidateReport::default()) };
        let mut report = ConsolidateReport::default();
        let outcome = self.replay_stacks(&stacks, pace, progress, &mut report);
        // What an attempt has cost counts, whether it came to its end or not.
        let done = outcome.and_then(|()| self.end_consolidation(&mut report));
        self.consolidated.lock().unwrap_or_else(PoisonError::into_inner).absorb(&report);
        done.map(|()| report)
    }

    /// What all consolidations since the unit was opened have done together, those that came to nothing included.
    pub fn consolidated(&self) -> ConsolidateReport {
        *self.consolidated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay_stacks(
        &self,
        stacks: &[Arc<Stack>],
        pace: &Pace<'_>,
        progress: &dyn Fn(ByteLen, ByteLen) -> bool,
        report: &mut ConsolidateReport,
    ) -> Result<()> {
        crash_point("consolidate.recorded");
        self.mark_images(true)?;
        crash_point("consolidate.marked");
        self.grow_images()?;
        let mut total = ByteLen::ZERO;
        for stack in stacks {
            let mut merge = stack.merge()?;
            while let Some(entry) = merge.next()? {
                total += entry.extent.len();
            }
        }
        let mut before = ByteLen::ZERO;
        for (disk, stack) in self.manifest().disk_indexes().zip(stacks) {
            let room = Room { storage: self.storage(), kept: self.kept_free(), region: None };
            let image = Arc::clone(self.lock().inventory.image(disk));
            let (written, read) = (image.file_written(), image.read_back());
            let mut pieces = Pieces { merge: stack.merge()?, stack, report, done: ByteLen::ZERO, room, pace };
            let replayed = replay(&mut pieces, &image, &|done| progress(before + done, total));
            before += pieces.done;
            let flushed = replayed.and_then(|()| image.flush());
            report.image_written += image.file_written().saturating_sub(written);
            report.image_read += image.read_back().saturating_sub(read);
            flushed?;
        }
        crash_point("consolidate.replayed");
        self.mark_images(false)?;
        crash_point("consolidate.unmarked");
        Ok(())
    }

    /// Makes images as long as the disks are at the checkpoint that they will hold. Not before: an image of its own name is
    /// one checkpoint, its length included.
    fn grow_images(&self) -> Result<()> {
        let manifest = self.manifest();
        for disk in manifest.disk_indexes() {
            let (_, becoming) = manifest.image_len(disk)?;
            let image = Arc::clone(self.lock().inventory.image(disk));
            if image.len() < becoming {
                let mut room = Room { storage: self.storage(), kept: self.kept_free(), region: None };
                room.check(Extent::whole(becoming).ok_or_else(|| Error::corrupt("a disk without bytes"))?)?;
                image.grow(becoming)?;
                crash_point("consolidate.grown");
            }
        }
        Ok(())
    }

    /// One rewrites the history at a time; `Busy` while another one does.
    pub(super) fn take_consolidating(&self) -> Result<MutexGuard<'_, ()>> {
        match self.consolidating.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(guard)) => Ok(guard.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let context = format!("the history of {} is being consolidated or thinned", self.name());
                Err(Error::new(ErrorKind::Busy, context))
            }
        }
    }

    /// Publishes that the images are being changed; `None` where they hold that checkpoint.
    fn begin_consolidation(&self, up_to: CheckpointId) -> Result<Option<Vec<Arc<Stack>>>> {
        let mut state = self.lock_open()?;
        let manifest = Arc::clone(&state.manifest);
        let sealed = manifest.sealed(up_to)?;
        if sealed.checkpoint.branch != manifest.main {
            let context = format!("{}: checkpoint {up_to} is not on the main branch", manifest.name);
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        if manifest.horizon == Some(up_to) && manifest.replay.is_none() {
            return Ok(None);
        }
        self.check_pins(&manifest, up_to)?;
        let mut stacks = Vec::new();
        for (disk, (end, _)) in manifest.disk_indexes().zip(&sealed.ends) {
            stacks.push(state.inventory.stack(&manifest, disk, *end)?);
        }
        let mut next = (*manifest).clone();
        next.begin_replay(up_to)?;
        state.publish(self.storage(), &self.dir, next)?;
        Ok(Some(stacks))
    }

    /// Whoever finds an image that is being changed sees it from its name.
    fn mark_images(&self, settling: bool) -> Result<()> {
        let manifest = self.manifest();
        for disk in manifest.disk_indexes() {
            files::mark_image(self.storage(), &self.dir, disk, manifest.image_format, settling)?;
        }
        Ok(())
    }

    fn check_pins(&self, manifest: &Manifest, up_to: CheckpointId) -> Result<()> {
        if PlantedBug::HorizonPassesPin.is_planted() {
            return Ok(());
        }
        let on_main = |id| manifest.sealed(id).is_ok_and(|sealed| sealed.checkpoint.branch == manifest.main);
        match self
            .pins_at(manifest, WallClock::now())
            .into_iter()
            .find(|pin| pin.checkpoint < up_to && on_main(pin.checkpoint))
        {
            None => Ok(()),
            Some(pin) => {
                let context = format!(
                    "{}: the horizon cannot pass checkpoint {}, which is held by {}",
                    manifest.name, pin.checkpoint, pin.holder
                );
                Err(Error::new(ErrorKind::Busy, context))
            }
        }
    }

    /// What consolidating leaves of the reserve, for seals and manifests; the rest of it may be used, as this gives space
    /// back in the end.
    pub(super) fn kept_free(&self) -> ByteLen {
        ByteLen::new(self.options.reserve.get() / 2)
    }

    fn end_consolidation(&self, report: &mut ConsolidateReport) -> Result<()> {
        let replay = self.manifest().replay.clone();
        for (disk, floor) in
            replay.iter().flat_map(|replay| self.manifest().disk_indexes().zip(&replay.floors))
        {
            let (_, len) = self.manifest().image_len(disk)?;
            self.save_hashes(disk, *floor, len);
        }
        let mut state = self.lock_open()?;
        let before = Arc::clone(&state.manifest);
        let mut next = (*before).clone();
        let removed = next.end_replay()?;
        state.publish(self.storage(), &self.dir, next)?;
        crash_point("consolidate.published");
        report.deltas = removed.deltas.len() as u64;
        report.freed = removed
            .deltas
            .iter()
            .filter_map(|(_, gone)| before.deltas.get(&gone.delta))
            .map(|d| d.log_len)
            .sum();
        state.inventory.remove(&removed);
        state.refresh_stacks(None)?;
        self.recount(&state).map(drop)
    }
}

/// The content of a merge, piece by piece.
struct Pieces<'a> {
    merge: Merge,
    stack: &'a Stack,
    report: &'a mut ConsolidateReport,
    done: ByteLen,
    room: Room<'a>,
    pace: &'a Pace<'a>,
}

/// Looks at the free space before an image is written: a write that fails would poison the image.
struct Room<'a> {
    storage: &'a dyn Storage,
    kept: ByteLen,
    /// Where it was looked at last.
    region: Option<u64>,
}

/// How often the free space is looked at, in bytes of the disk.
const ROOM_STEP_BYTES: u64 = 1 << 20;
/// More than an image grows by for one such step: a block of a VHD is 2 MiB and its bitmap.
const ROOM_BYTES: ByteLen = ByteLen::new(4 << 20);

impl Room<'_> {
    fn check(&mut self, extent: Extent) -> Result<()> {
        let region = extent.start().get() / ROOM_STEP_BYTES;
        if self.region == Some(region) {
            return Ok(());
        }
        self.region = Some(region);
        match self.storage.free_space()? {
            Some(free) if !self.kept.is_zero() && free < self.kept + ROOM_BYTES => {
                let context = format!(
                    "{free} bytes are free and {} are kept in reserve; the image needs {ROOM_BYTES} more",
                    self.kept
                );
                Err(Error::new(ErrorKind::NoSpace, context))
            }
            _ => Ok(()),
        }
    }
}

impl Pieces<'_> {
    fn piece(&mut self, entry: &Entry) -> Result<ReplayPiece> {
        let extent = entry.extent;
        self.done += extent.len();
        let content = match entry.location.kind() {
            RecordKind::Zero => ReplayContent::Zero,
            RecordKind::Discard => ReplayContent::Discard,
            RecordKind::Data => {
                self.room.check(extent)?;
                let log = self.stack.log(entry.delta).ok_or_else(|| {
                    Error::corrupt(format!("an index names delta {}, which is not below it", entry.delta))
                })?;
                self.pace.take(ByteLen::new(2 * extent.len().get()))?;
                if let Location::Log(location) = entry.location {
                    self.report.log_read += location.stored_len();
                }
                let mut bytes = vec![0; extent.len().as_usize()];
                let plan = Plan::of(PlanPiece::at(extent, entry.location, log));
                plan.read(extent.start(), &mut bytes, self.stack.image(), RequestClass::Background)?;
                ReplayContent::Data(bytes)
            }
        };
        match content {
            ReplayContent::Data(_) => {
                self.report.written += extent.len();
            }
            ReplayContent::Zero | ReplayContent::Discard => self.report.zeroed += extent.len(),
        }
        Ok(ReplayPiece { extent, content })
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<ReplayPiece>;

    fn next(&mut self) -> Option<Result<ReplayPiece>> {
        match self.merge.next() {
            Ok(entry) => entry.map(|entry| self.piece(&entry)),
            Err(error) => Some(Err(error)),
        }
    }
}
