//! The sealed files of a unit that are in use, each once.

use crate::image::SummedImage;
use crate::index::block_cache::BlockCache;
use crate::index::reader::IndexReader;
use crate::index::stack::Stack;
use crate::stored_file::{FileTable, StoredFile};
use crate::unit::branch::{DeltaId, Edition};
use crate::unit::files;
use crate::unit::lineage::{Removed, Span};
use crate::unit::manifest::Manifest;
use blocks::{DiskIndex, Result, Volume};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Disk, first and last delta, revision.
type IndexKey = (DiskIndex, DeltaId, DeltaId, u32);

/// Logs, indexes and images, by what they are of.
#[derive(Debug)]
pub(crate) struct Inventory {
    unit_dir: String,
    table: Arc<FileTable>,
    cache: Arc<BlockCache>,
    images: Vec<Arc<SummedImage>>,
    logs: BTreeMap<Edition, Arc<StoredFile>>,
    indexes: BTreeMap<IndexKey, IndexFile>,
}

#[derive(Debug)]
struct IndexFile {
    file: Arc<StoredFile>,
    reader: Weak<IndexReader>,
}

impl Inventory {
    pub(crate) fn new(
        unit_dir: String,
        table: Arc<FileTable>,
        cache: Arc<BlockCache>,
        images: Vec<Arc<SummedImage>>,
    ) -> Inventory {
        Inventory { unit_dir, table, cache, images, logs: BTreeMap::new(), indexes: BTreeMap::new() }
    }

    pub(crate) fn image(&self, disk: DiskIndex) -> &Arc<SummedImage> {
        &self.images[usize::from(disk.0)]
    }

    /// The log of a delta that is sealed or about to be.
    pub(crate) fn log(&mut self, disk: DiskIndex, edition: Edition) -> Arc<StoredFile> {
        let name = || files::log_name(&self.unit_dir, disk, edition);
        Arc::clone(self.logs.entry(edition).or_insert_with(|| self.table.file(name())))
    }

    /// Takes over the log of a delta that was open.
    pub(crate) fn keep_log(&mut self, delta: DeltaId, log: &Arc<StoredFile>) {
        self.logs.insert(Edition::first(delta), Arc::clone(log));
    }

    pub(crate) fn reader(&mut self, salt: u64, disk: DiskIndex, span: &Span) -> Result<Arc<IndexReader>> {
        let ends = (span.first, span.last);
        let name = || files::index_name(&self.unit_dir, disk, *span);
        let entry = self
            .indexes
            .entry(key(disk, span))
            .or_insert_with(|| IndexFile { file: self.table.file(name()), reader: Weak::new() });
        if let Some(reader) = entry.reader.upgrade() {
            return Ok(reader);
        }
        let reader = IndexReader::open(Arc::clone(&entry.file), salt, ends, Arc::clone(&self.cache))?;
        let reader = Arc::new(reader);
        entry.reader = Arc::downgrade(&reader);
        Ok(reader)
    }

    /// The layers from `end` down to the image.
    pub(crate) fn stack(&mut self, manifest: &Manifest, disk: DiskIndex, end: DeltaId) -> Result<Arc<Stack>> {
        let cover = manifest.cover(disk, end);
        let indexes =
            cover.iter().map(|span| self.reader(manifest.salt, disk, span)).collect::<Result<_>>()?;
        let logs = manifest.line(disk, end)?.into_iter();
        let logs = logs.map(|delta| (delta, self.log(disk, manifest.edition(delta)))).collect();
        let image: Arc<dyn Volume> = Arc::clone(self.image(disk)) as Arc<dyn Volume>;
        Ok(Arc::new(Stack::new(indexes, logs, manifest.floor(disk), image)))
    }

    /// Lets go of what is no longer part of the unit; the files go with their last user.
    pub(crate) fn remove(&mut self, removed: &Removed) {
        let own = |edition: &Edition| Span {
            first: edition.delta,
            last: edition.delta,
            tier: 0,
            revision: edition.revision,
        };
        let singles = removed.deltas.iter().map(|(disk, edition)| (*disk, own(edition)));
        let merged = removed.merged.iter().map(|merged| (merged.disk, merged.span()));
        let spans: Vec<(DiskIndex, Span)> = singles.chain(merged).collect();
        for (disk, edition) in &removed.deltas {
            self.log(*disk, *edition).doom();
            self.logs.remove(edition);
        }
        for (disk, span) in spans {
            let name = || files::index_name(&self.unit_dir, disk, span);
            let file = self
                .indexes
                .remove(&key(disk, &span))
                .map_or_else(|| self.table.file(name()), |index| index.file);
            file.doom();
        }
    }

    /// Forgets an index that did not become part of the unit.
    pub(crate) fn forget_index(&mut self, disk: DiskIndex, span: &Span) {
        self.indexes.remove(&key(disk, span));
    }
}

fn key(disk: DiskIndex, span: &Span) -> IndexKey {
    (disk, span.first, span.last, span.revision)
}
