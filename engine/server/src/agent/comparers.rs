//! Comparing hashes beside the ingest, a few at a time.

use super::compare::{Compared, compare};
use super::requests::{Comparison, RequestEvent};
use super::source::Source;
use blocks::{BlockShift, CheckpointId, DiskIndex, Extent, ExtentSet, Result, Volume};
use std::collections::HashMap;
use std::sync::Arc;
use store::{BlockHashes, BranchDisk, View};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wire::{HashReport, ServerMessage};

/// How many reports of one connection are compared at once.
const PARALLEL: u32 = 2;

/// The comparisons of one connection.
pub(crate) struct Comparers {
    source: Arc<Source>,
    hands: Hands,
    /// The checkpoint that is being verified, and its views; they pin it.
    views: HashMap<(CheckpointId, DiskIndex), (Arc<View>, BlockHashes)>,
}

/// Who compares.
enum Hands {
    /// The blocking threads of a runtime, as many as there are permits.
    Threads { runtime: Handle, permits: Arc<Semaphore> },
    /// The caller, at once.
    #[cfg(feature = "simulation")]
    Inline,
}

impl Comparers {
    /// Call within the runtime whose blocking threads do the work.
    pub fn new(source: Arc<Source>) -> Comparers {
        let permits = Arc::new(Semaphore::new(PARALLEL as usize));
        let hands = Hands::Threads { runtime: Handle::current(), permits };
        Comparers { source, hands, views: HashMap::new() }
    }

    /// Compares on the thread that asks for it.
    #[cfg(feature = "simulation")]
    pub fn inline(source: Arc<Source>) -> Comparers {
        Comparers { source, hands: Hands::Inline, views: HashMap::new() }
    }

    /// Compares with the newest state and answers the agent. What was appended before this call is part of that state.
    pub fn scan(&self, report: HashReport) -> Result<()> {
        let disk = self.source.disk(report.disk)?.clone();
        self.spawn(move |source| {
            let compared = scan_with_kept(source, &disk, &report)?;
            let (disk, range) = (report.disk, report.range);
            source.tell(ServerMessage::Differing { disk, range, extents: compared.differing });
            Ok(())
        });
        Ok(())
    }

    /// Compares with a checkpoint and tells whoever asked for it.
    pub fn verify(
        &mut self,
        report: HashReport,
        request: u64,
        checkpoint: CheckpointId,
        last: bool,
    ) -> Result<()> {
        let disk = report.disk;
        let (view, hashes) = self.view(checkpoint, disk)?;
        let excluded = self.excluded(checkpoint, disk);
        self.spawn(move |source| {
            let compared = compare(&*view as &dyn Volume, &report, &excluded, &|block| hashes.get(block))?;
            compared.computed.iter().for_each(|(block, hash)| hashes.put(*block, hash));
            let comparison = Comparison {
                disk,
                equal: compared.equal,
                skipped: compared.skipped,
                differing: compared.differing,
            };
            source.requests.tell_blocking(request, RequestEvent::Compared(comparison));
            Ok(())
        });
        if last {
            self.wait();
            self.views.remove(&(checkpoint, disk));
            self.source.requests.tell_blocking(request, RequestEvent::DiskDone(disk));
        }
        Ok(())
    }

    /// Returns when nothing is being compared.
    pub fn wait(&self) {
        match &self.hands {
            Hands::Threads { runtime, permits } => drop(runtime.block_on(permits.acquire_many(PARALLEL))),
            #[cfg(feature = "simulation")]
            Hands::Inline => {}
        }
    }

    fn view(&mut self, checkpoint: CheckpointId, disk: DiskIndex) -> Result<(Arc<View>, BlockHashes)> {
        if let Some(view) = self.views.get(&(checkpoint, disk)) {
            return Ok(view.clone());
        }
        // One checkpoint is verified at a time; one that was given up must not stay pinned.
        self.views.retain(|(_, other), _| *other != disk);
        let view = Arc::new(self.source.unit.view(checkpoint, disk)?);
        let hashes = self.source.unit.block_hashes(checkpoint, disk)?;
        self.views.insert((checkpoint, disk), (view.clone(), hashes.clone()));
        Ok((view, hashes))
    }

    fn excluded(&self, checkpoint: CheckpointId, disk: DiskIndex) -> ExtentSet {
        let checkpoint = self.source.unit.checkpoint(checkpoint);
        let extents = checkpoint.and_then(|checkpoint| checkpoint.excluded.get(usize::from(disk.0)).cloned());
        extents.unwrap_or_default().into_iter().collect()
    }

    /// Does `work` on another thread, after waiting until few enough are busy.
    fn spawn(&self, work: impl FnOnce(&Source) -> Result<()> + Send + 'static) {
        let source = self.source.clone();
        let compare = move || {
            if let Err(error) = work(&source) {
                source.fail(error.context("comparing hashes"));
            }
        };
        match &self.hands {
            Hands::Threads { runtime, permits } => {
                let permit = runtime.block_on(permits.clone().acquire_owned());
                runtime.spawn_blocking(move || {
                    compare();
                    drop(permit);
                });
            }
            #[cfg(feature = "simulation")]
            Hands::Inline => compare(),
        }
    }
}

/// Compares with the newest state. Kept hashes serve where nothing was written since the newest sealed delta; those that
/// are computed are kept where nothing was written until after the block had been read.
fn scan_with_kept(source: &Source, disk: &BranchDisk, report: &HashReport) -> Result<Compared> {
    let (hashes, sealed) = source.unit.head_hashes(source.branch, report.disk)?;
    let written = disk.changed_since(sealed)?;
    let is_sealed = |written: &ExtentSet, block: u64| {
        let extent = Extent::new(BlockShift::KIB_64.start_of(block), BlockShift::KIB_64.len());
        extent.is_ok_and(|extent| !written.overlaps(extent))
    };
    let known = |block| hashes.get(block).filter(|_| is_sealed(&written, block));
    let compared = compare(disk, report, &ExtentSet::new(), &known)?;
    if !compared.computed.is_empty() {
        let written = disk.changed_since(sealed)?;
        let sealed_blocks = compared.computed.iter().filter(|(block, _)| is_sealed(&written, *block));
        sealed_blocks.for_each(|(block, hash)| hashes.put(*block, hash));
    }
    Ok(compared)
}
