//! Merging neighbouring indexes, so that a lookup asks few of them. Changes no content and nobody waits for it.

use crate::index::merge::Merge;
use crate::index::writer::IndexWriter;
use crate::unit::Unit;
use crate::unit::branch::BranchId;
use crate::unit::files;
use crate::unit::manifest::{Manifest, MergedIndex};
use blocks::{DiskIndex, Error, ErrorKind, Result, Storage};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

/// How many requests may wait; one that finds no place comes again with the next seal.
const REQUESTS_MAX: usize = 256;

/// Where a seal asks for merges.
#[derive(Clone, Debug)]
pub(crate) enum MergeQueue {
    /// They are made before the seal returns.
    Inline,
    /// A thread makes them.
    Background(SyncSender<MergeRequest>),
}

/// A line that may have neighbours to merge.
#[derive(Debug)]
pub(crate) enum MergeRequest {
    Line(Weak<Unit>, BranchId, DiskIndex),
    Stop,
}

/// The thread that merges; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct MergeWorker {
    queue: SyncSender<MergeRequest>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MergeWorker {
    pub(crate) fn start() -> Result<MergeWorker> {
        let (queue, requests) = sync_channel(REQUESTS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("index-merge".to_owned())
            .spawn(move || work(&requests, &stopping))
            .map_err(|error| Error::io("the thread that merges indexes", error))?;
        Ok(MergeWorker { queue, stop, thread: Some(thread) })
    }

    pub(crate) fn queue(&self) -> MergeQueue {
        MergeQueue::Background(self.queue.clone())
    }
}

impl Drop for MergeWorker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.queue.try_send(MergeRequest::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that merges indexes has panicked");
        }
    }
}

fn work(requests: &Receiver<MergeRequest>, stop: &AtomicBool) {
    while let Ok(MergeRequest::Line(unit, branch, disk)) = requests.recv() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        if let Some(unit) = unit.upgrade() {
            unit.merge_and_report(branch, disk, stop);
        }
    }
}

impl MergeQueue {
    pub(crate) fn request(&self, unit: &Weak<Unit>, branch: BranchId, disk: DiskIndex) {
        match self {
            MergeQueue::Inline => {
                if let Some(unit) = unit.upgrade() {
                    unit.merge_and_report(branch, disk, &AtomicBool::new(false));
                }
            }
            MergeQueue::Background(queue) => {
                // Full: a later seal asks again.
                let _ = queue.try_send(MergeRequest::Line(Weak::clone(unit), branch, disk));
            }
        }
    }
}

impl Unit {
    fn merge_and_report(&self, branch: BranchId, disk: DiskIndex, stop: &AtomicBool) {
        match self.merge_line(branch, disk, stop) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Cancelled) => {}
            // Without a merged index lookups take longer and are as right.
            Err(error) => tracing::warn!("indexes of {} could not be merged: {error}", self.dir()),
        }
    }

    /// Merges neighbours of the branch's line on that disk until none are left to merge.
    fn merge_line(&self, branch: BranchId, disk: DiskIndex, stop: &AtomicBool) -> Result<()> {
        loop {
            let mut state = self.lock_open()?;
            let manifest = Arc::clone(&state.manifest);
            let end = manifest.end(branch, disk)?.sealed;
            let Some(spans) = manifest.merge_choice(disk, end) else { return Ok(()) };
            let (Some(newest), Some(oldest)) = (spans.first(), spans.last()) else { return Ok(()) };
            let readers = spans.iter().map(|span| state.inventory.reader(manifest.salt, disk, span));
            let readers = readers.collect::<Result<Vec<_>>>()?;
            drop(state);
            let merged = MergedIndex {
                disk,
                first: oldest.first,
                last: newest.last,
                tier: newest.tier.saturating_add(1),
                revision: spans.iter().map(|span| span.revision).sum(),
            };
            let name = files::index_name(&self.dir, disk, merged.span());
            let merge = Merge::new(&readers, manifest.floor(disk))?;
            let outcome = self
                .write_merged(merge, manifest.salt, &merged, &name, stop)
                .and_then(|()| self.publish_merged(&manifest, merged));
            if let Err(error) = outcome {
                // Opening the store removes what cannot be removed now. Once published it must stay.
                if !self.manifest().merged.contains(&merged) && self.lock().poison.is_none() {
                    let _ = self.storage().remove(&name);
                }
                return Err(error);
            }
        }
    }

    fn write_merged(
        &self,
        mut merge: Merge,
        salt: u64,
        merged: &MergedIndex,
        name: &str,
        stop: &AtomicBool,
    ) -> Result<()> {
        let storage: &dyn Storage = self.storage();
        let file = files::create_anew(storage, name)?;
        let mut writer = IndexWriter::new(file, salt, merged.first, merged.last);
        while let Some(entry) = merge.next()? {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Cancelled, "the store is being closed"));
            }
            writer.push(entry)?;
        }
        writer.finish()?;
        storage.sync_dir(&files::disk_dir(&self.dir, merged.disk)).map(drop)
    }

    /// Makes the merged index part of the unit, unless what it was made of is gone by now.
    fn publish_merged(&self, before: &Manifest, merged: MergedIndex) -> Result<()> {
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        if !next.has_line_of(before, &merged) {
            return Err(Error::new(ErrorKind::NotFound, "the deltas of a merged index are gone"));
        }
        state.inventory.forget_index(merged.disk, &merged.span());
        next.merged.push(merged);
        state.publish(self.storage(), &self.dir, next)?;
        state.refresh_stacks(Some(merged.disk))
    }
}
