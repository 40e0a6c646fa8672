//! Comparing hashes beside the ingest, a few at a time.

use super::compare::compare;
use super::requests::{Comparison, RequestEvent};
use super::source::Source;
use blocks::{CheckpointId, DiskIndex, ExtentSet, Result, Volume};
use std::collections::HashMap;
use std::sync::Arc;
use store::View;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wire::{HashReport, ServerMessage};

/// How many reports of one connection are compared at once.
const PARALLEL: u32 = 2;

/// The comparisons of one connection.
pub(crate) struct Comparers {
    source: Arc<Source>,
    runtime: Handle,
    permits: Arc<Semaphore>,
    /// The checkpoint that is being verified, and its views; they pin it.
    views: HashMap<(CheckpointId, DiskIndex), Arc<View>>,
}

impl Comparers {
    /// Call within the runtime whose blocking threads do the work.
    pub fn new(source: Arc<Source>) -> Comparers {
        let permits = Arc::new(Semaphore::new(PARALLEL as usize));
        Comparers { source, runtime: Handle::current(), permits, views: HashMap::new() }
    }

    /// Compares with the newest state and answers the agent. What was appended before this call is part of that state.
    pub fn scan(&self, report: HashReport) -> Result<()> {
        let disk = self.source.disk(report.disk)?.clone();
        self.spawn(move |source| {
            let compared = compare(&*disk, &report, &ExtentSet::new())?;
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
        let view = self.view(checkpoint, disk)?;
        let excluded = self.excluded(checkpoint, disk);
        self.spawn(move |source| {
            let compared = compare(&*view as &dyn Volume, &report, &excluded)?;
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
        drop(self.runtime.block_on(self.permits.acquire_many(PARALLEL)));
    }

    fn view(&mut self, checkpoint: CheckpointId, disk: DiskIndex) -> Result<Arc<View>> {
        if let Some(view) = self.views.get(&(checkpoint, disk)) {
            return Ok(view.clone());
        }
        // One checkpoint is verified at a time; one that was given up must not stay pinned.
        self.views.retain(|(_, other), _| *other != disk);
        let view = Arc::new(self.source.unit.view(checkpoint, disk)?);
        self.views.insert((checkpoint, disk), view.clone());
        Ok(view)
    }

    fn excluded(&self, checkpoint: CheckpointId, disk: DiskIndex) -> ExtentSet {
        let checkpoint = self.source.unit.checkpoint(checkpoint);
        let extents = checkpoint.and_then(|checkpoint| checkpoint.excluded.get(usize::from(disk.0)).cloned());
        extents.unwrap_or_default().into_iter().collect()
    }

    /// Does `work` on another thread, after waiting until few enough are busy.
    fn spawn(&self, work: impl FnOnce(&Source) -> Result<()> + Send + 'static) {
        let permit = self.runtime.block_on(self.permits.clone().acquire_owned());
        let source = self.source.clone();
        self.runtime.spawn_blocking(move || {
            if let Err(error) = work(&source) {
                source.fail(error.context("comparing hashes"));
            }
            drop(permit);
        });
    }
}
