//! Scrubbing a unit that is open, beside everything else that goes on.

use crate::index::block_cache::BlockCache;
use crate::pace::Pace;
use crate::scrub::{Finding, OpenLog, Remedy, ScrubReport, Scrubber, own_span};
use crate::unit::Unit;
use crate::unit::files;
use crate::unit::inventory::Inventory;
use crate::unit::lineage::Span;
use blocks::{ByteLen, Result};
use std::sync::Arc;

/// Indexes are read past the cache; it serves the few lookups that find out whom damage touches.
const CACHE: ByteLen = ByteLen::new(256 << 10);

impl Unit {
    /// Reads everything of the unit again and checks it; changes nothing. What is sealed, consolidated or dropped
    /// meanwhile is none of its business. `progress` is told the bytes done and about how many there are. Errors:
    /// `Cancelled` by the pace, `NotFound` where the unit was removed; what is damaged is in the report.
    pub fn scrub(&self, pace: &Pace<'_>, progress: &dyn Fn(ByteLen, ByteLen)) -> Result<ScrubReport> {
        let (manifest, images, open_logs, stored) = {
            let state = self.lock_open()?;
            let manifest = Arc::clone(&state.manifest);
            // While the lock is held nothing is published.
            let stored = files::read_manifest(self.storage(), self.dir());
            let images =
                manifest.disk_indexes().map(|disk| Arc::clone(state.inventory.image(disk))).collect();
            let open = state.disks.values().filter_map(|disk| {
                let (delta, len) = disk.durable_log()?;
                Some(OpenLog { branch: disk.identity().branch, disk: disk.identity().disk, delta, len })
            });
            (Arc::clone(&manifest), images, open.collect::<Vec<_>>(), stored)
        };
        let mut report = ScrubReport::default();
        let what = match stored {
            Ok(stored) if stored == *manifest => None,
            Ok(_) => Some("it is not what was published last".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(what) = what {
            report.add(Finding {
                unit: manifest.name.clone(),
                disk: None,
                file: files::manifest_name(self.dir()),
                offset: None,
                extent: None,
                what: format!("{}: {what}", files::manifest_name(self.dir())),
                checkpoints: manifest.checkpoints.keys().copied().collect(),
                branches: manifest.branches.keys().copied().collect(),
                remedy: Remedy::None(
                    "as long as the server runs it knows better: whatever it publishes next, such as a checkpoint, \
                     replaces the file",
                ),
            });
        }
        let cache = Arc::new(BlockCache::new(CACHE));
        let inventory = Inventory::new(self.dir().to_owned(), Arc::clone(&self.table), cache, images);
        let still_there = |span: Span| {
            let now = self.manifest();
            let is_delta = now.deltas.contains_key(&span.last) && own_span(now.edition(span.last)) == span;
            is_delta
                || now.merged.iter().any(|merged| merged.span() == span)
                || now.branches.values().any(|b| b.ends.iter().any(|e| e.open == span.last))
        };
        let parts = (self.dir().to_owned(), manifest, inventory);
        report.absorb(Scrubber::new(self.storage(), parts, pace, &still_there, progress).run(&open_logs)?);
        Ok(report)
    }
}
