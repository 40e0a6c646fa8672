//! An image whose every block carries a checksum, so that rot in it is found and told from data.
//!
//! The checksum of a block and its bytes are two writes in two files; a crash between them leaves a block that does not
//! match. Images are changed by replays alone, and a replay is repeated after a crash: [`SummedImage::redo`] names the
//! blocks that the interrupted one may have touched, and they are not held against their checksums until they have
//! been written again.

use super::growing::Medium;
use super::poison::{Poison, check_writable};
use super::sum_table::{Sum, SumTable};
use blocks::{
    BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentSet, ExtentStatus, FileRange,
    RequestClass, Result, StorageFile, Volume, check_request,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What one lock covers and one step handles: many blocks.
pub(super) const REGION: ByteLen = ByteLen::new(1 << 20);
/// Regions share this many locks, so that readers of different places seldom meet.
const STRIPES: usize = 64;
/// Zeroes are written in steps of this size, for which all regions are locked.
const ZERO_STEP: ByteLen = ByteLen::new(1 << 30);

/// An image and its checksums, as one volume.
///
/// A read verifies every block that it touches; what does not match is `Corrupt`, naming the image and the extent.
/// Readers see a block as it was before a write or after it, never between.
pub struct SummedImage {
    /// In bytes; changes while all stripes are locked.
    pub(super) len: AtomicU64,
    pub(super) layers: RwLock<Layers>,
    /// The image's file, where it is known: then the disk can be made longer.
    pub(super) medium: Option<Medium>,
    /// The sidecar's, for messages.
    name: String,
    block: BlockShift,
    read_only: bool,
    stripes: Vec<RwLock<()>>,
    redo: Mutex<ExtentSet>,
    pub(super) poison: Poison,
    /// Bytes read because blocks were changed in part only.
    read_back: AtomicU64,
}

/// An image and its checksums. Held for one call at a time, never for one inside another.
pub(super) struct Layers {
    /// `None` where it could not be opened again after it was made longer.
    pub(super) image: Option<Arc<dyn Volume>>,
    pub(super) sums: SumTable,
}

/// A change of a part of one region.
#[derive(Clone, Copy)]
pub(super) enum Patch<'a> {
    Data(Extent, &'a [u8]),
    Zero(Extent),
    Discard(Extent),
}

impl Patch<'_> {
    fn extent(&self) -> Extent {
        match self {
            Patch::Data(extent, _) | Patch::Zero(extent) | Patch::Discard(extent) => *extent,
        }
    }
}

/// Puts the checksums in `sums` beside an image. An empty file becomes the checksums of an image that is all zeroes.
/// `Corrupt` where the file belongs to an image of another length or is no sidecar.
pub fn with_sums(image: Arc<dyn Volume>, sums: Arc<dyn StorageFile>) -> Result<Arc<SummedImage>> {
    let len = image.len();
    Ok(Arc::new(SummedImage::new(image, SumTable::open(sums, len, len)?, None)))
}

impl std::fmt::Debug for SummedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SummedImage").field("sums", &self.name).finish_non_exhaustive()
    }
}

impl SummedImage {
    /// Of an image that may be longer already than its sidecar: then the disk is as long as that one.
    pub(super) fn new(image: Arc<dyn Volume>, sums: SumTable, medium: Option<Medium>) -> SummedImage {
        SummedImage {
            len: AtomicU64::new(sums.len().get()),
            medium,
            name: sums.name().to_owned(),
            block: sums.block(),
            read_only: image.is_read_only(),
            layers: RwLock::new(Layers { image: Some(image), sums }),
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            redo: Mutex::default(),
            poison: Poison::default(),
            read_back: AtomicU64::new(0),
        }
    }

    /// Says that an interrupted replay may have touched these extents: their blocks are not verified until they are
    /// written again. To be called after opening, before the replay is repeated.
    pub fn redo(&self, extents: &ExtentSet) {
        let mut redo = self.redo_blocks();
        for (extent, ()) in extents.iter() {
            redo.insert(extent.align_out(self.block()), ());
        }
    }

    /// Bytes written to the image's file since it was opened, with everything that its format adds; without the sidecar.
    pub(crate) fn file_written(&self) -> ByteLen {
        self.medium.as_ref().map_or(ByteLen::ZERO, Medium::written)
    }

    /// Bytes read back since it was opened, because blocks were changed in part only.
    pub(crate) fn read_back(&self) -> ByteLen {
        ByteLen::new(self.read_back.load(Ordering::Relaxed))
    }

    /// How many bytes [`SummedImage::redo`] has excused from verification and nothing has written since.
    pub fn unverified(&self) -> ByteLen {
        self.redo_blocks().covered()
    }

    /// Reads one region of the image, at most [`SummedImage::SCRUB_STEP`] long, and holds it against its checksums, both
    /// as they are stored: how much was read, and the blocks that do not match with the reason. What is zero by the
    /// image's own map and by its checksum is not read.
    pub(crate) fn scrub(&self, region: Extent) -> Result<(ByteLen, Vec<(Extent, String)>)> {
        debug_assert!(region.split(REGION).nth(1).is_none() && region.start().is_aligned(self.block()));
        let _lock = self.reading(region.start());
        let sums = self.layers().sums.stored(region.blocks(self.block()))?;
        let is_empty = |extent| -> Result<bool> {
            let runs = self.on_image(|image| image.status(extent))?;
            Ok(runs.last().map(|run| run.extent.end()) == Some(region.end())
                && runs.iter().all(|run| run.allocation.reads_as_zero()))
        };
        if sums.iter().all(|sum| *sum == Sum::ZERO) && is_empty(region)? {
            return Ok((ByteLen::ZERO, Vec::new()));
        }
        let mut bad: Vec<(Extent, String)> = Vec::new();
        let mut buffer = vec![0; region.len().as_usize()];
        let whole =
            self.on_image(|image| image.read_at(region.start(), &mut buffer, RequestClass::Background));
        for (block, sum) in region.split(self.block().len()).zip(sums) {
            let skip = (block.start() - region.start()).as_usize();
            let bytes = &mut buffer[skip..skip + block.len().as_usize()];
            // Where something cannot be read, it is said of the block, and not of all of them.
            let read = match whole {
                Ok(()) => Ok(()),
                Err(_) => {
                    self.on_image(|image| image.read_at(block.start(), bytes, RequestClass::Background))
                }
            };
            let what = match read {
                Ok(()) if sum.is_of(bytes) || self.redo_blocks().overlaps(block) => continue,
                Ok(()) => "it does not match its checksum".into(),
                Err(error) => error.to_string(),
            };
            match bad.last_mut() {
                Some((run, said)) if *said == what && run.end() == block.start() => {
                    *run = Extent::between(run.start(), block.end()).unwrap_or(*run);
                }
                _ => bad.push((block, what)),
            }
        }
        Ok((region.len(), bad))
    }

    /// How much [`SummedImage::scrub`] looks at at a time; the last piece of a disk may be shorter.
    pub(crate) const SCRUB_STEP: ByteLen = REGION;

    /// Lets the system forget what it holds of the checksums in memory.
    pub(crate) fn drop_cached(&self) {
        self.layers().sums.drop_cached();
    }

    /// What one checksum covers.
    pub(super) fn block(&self) -> BlockShift {
        self.block
    }

    fn layers(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_image<T>(&self, work: impl FnOnce(&dyn Volume) -> Result<T>) -> Result<T> {
        match &self.layers().image {
            Some(image) => work(&**image),
            None => {
                let context =
                    format!("{}: its image could not be opened again; the store must be", self.name);
                Err(Error::new(ErrorKind::Poisoned, context))
            }
        }
    }

    /// Everybody is kept out.
    pub(super) fn lock_all(&self) -> Vec<RwLockWriteGuard<'_, ()>> {
        self.stripes.iter().map(|stripe| stripe.write().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    pub(super) fn redo_blocks(&self) -> MutexGuard<'_, ExtentSet> {
        self.redo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, at: ByteOffset) -> &RwLock<()> {
        let region = at.get() / REGION.get();
        &self.stripes[ByteLen::new(region % STRIPES as u64).as_usize()]
    }

    fn reading(&self, at: ByteOffset) -> RwLockReadGuard<'_, ()> {
        self.stripe(at).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self, at: ByteOffset) -> RwLockWriteGuard<'_, ()> {
        self.stripe(at).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks that `extent` touches; the last block of a disk may be short.
    fn blocks_of(&self, extent: Extent) -> Extent {
        let whole = extent.align_out(self.block());
        Extent::between(whole.start(), whole.end().min(self.len().end())).unwrap_or(extent)
    }

    /// Reads whole blocks and holds them against their checksums. The region is locked by the caller.
    fn read_blocks(&self, blocks: Extent, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        // A table of a disk that is read all over is not in the processor's cache: a twentieth of a read of 4 KiB.
        self.layers().sums.hint(blocks.blocks(self.block()).start);
        self.on_image(|image| image.read_at(blocks.start(), buffer, class))?;
        let sums = self.layers().sums.get(blocks.blocks(self.block()))?;
        for (block, sum) in blocks.split(self.block().len()).zip(sums) {
            let skip = (block.start() - blocks.start()).as_usize();
            let bytes = &buffer[skip..skip + block.len().as_usize()];
            if !sum.is_of(bytes) && !self.redo_blocks().overlaps(block) {
                let found = Sum::of(bytes);
                let context = format!(
                    "{block} of the image do not match their checksum in {}: {found:?} instead of {sum:?}",
                    self.name
                );
                return Err(Error::corrupt(context));
            }
        }
        Ok(())
    }

    /// Applies patches that lie in one region, in ascending order and disjoint: reads and verifies the blocks that are
    /// changed only in part, writes what changed, and sums each block once.
    pub(super) fn patch_region(&self, patches: &[Patch<'_>], class: RequestClass) -> Result<()> {
        let (Some(first), Some(last)) = (patches.first(), patches.last()) else { return Ok(()) };
        let (start, end) = (first.extent().start(), last.extent().end());
        let changed = check_request(self.len(), BlockShift::SECTOR, start, end - start)?;
        check_writable(!self.is_read_only(), &self.name)?;
        let Some(changed) = changed else { return Ok(()) };
        let blocks = self.blocks_of(changed);
        debug_assert!(blocks.len() <= REGION, "patches of one region");
        let _lock = self.writing(start);
        let mut content = vec![0; blocks.len().as_usize()];
        let range = |extent: Extent| {
            let skip = (extent.start() - blocks.start()).as_usize();
            skip..skip + extent.len().as_usize()
        };
        for block in blocks.split(self.block().len()) {
            let touched = patches.iter().filter_map(|patch| patch.extent().intersect(block));
            let touched: ByteLen = touched.map(Extent::len).sum();
            // Blocks between the patches are left alone.
            if !touched.is_zero() && touched < block.len() {
                self.read_blocks(block, &mut content[range(block)], class)?;
                self.read_back.fetch_add(block.len().get(), Ordering::Relaxed);
            }
        }
        for patch in patches {
            match patch {
                Patch::Data(extent, bytes) => content[range(*extent)].copy_from_slice(bytes),
                Patch::Zero(extent) | Patch::Discard(extent) => content[range(*extent)].fill(0),
            }
        }
        self.poison.guard(&self.name, || {
            self.write_patches(patches, |extent| &content[range(extent)], class)?;
            for run in touched_blocks(patches, blocks, self.block()) {
                let sums: Vec<Sum> =
                    run.split(self.block().len()).map(|block| Sum::of(&content[range(block)])).collect();
                self.layers().sums.set(self.block().block_of(run.start()), &sums)?;
                self.redo_blocks().remove(run.align_out(self.block()));
            }
            Ok(())
        })
    }

    /// Data that lies side by side goes down as one write.
    fn write_patches<'a>(
        &self,
        patches: &[Patch<'_>],
        content: impl Fn(Extent) -> &'a [u8],
        class: RequestClass,
    ) -> Result<()> {
        let mut run: Option<Extent> = None;
        let write = |run: Option<Extent>| match run {
            Some(run) => self.on_image(|image| image.write_at(run.start(), content(run), false, class)),
            None => Ok(()),
        };
        for patch in patches {
            match (patch, run) {
                (Patch::Data(extent, _), Some(before)) if before.end() == extent.start() => {
                    run = Extent::between(before.start(), extent.end());
                }
                (Patch::Data(extent, _), _) => {
                    write(run.replace(*extent))?;
                }
                (Patch::Zero(extent), _) => {
                    self.on_image(|image| image.write_zeroes(*extent, false, false, class))?;
                }
                (Patch::Discard(extent), _) => self.on_image(|image| image.discard(*extent, false, class))?,
            }
        }
        write(run)
    }

    /// Zeroes of any length: blocks that they cover in part as patches, all others at once.
    fn zero(
        &self,
        extent: Extent,
        make_zero: &dyn Fn(Extent) -> Result<()>,
        class: RequestClass,
    ) -> Result<()> {
        let end = self.len().end();
        let first = extent.start().align_up(self.block()).min(extent.end());
        let last = if extent.end() == end { end } else { extent.end().align_down(self.block()) }.max(first);
        for piece in Extent::between(extent.start(), first).into_iter().flat_map(|head| head.split(REGION)) {
            self.patch_region(&[Patch::Zero(piece)], class)?;
        }
        for step in Extent::between(first, last).into_iter().flat_map(|middle| middle.split(ZERO_STEP)) {
            let _locks = self.lock_all();
            self.poison.guard(&self.name, || {
                make_zero(step)?;
                self.layers().sums.clear(step.blocks(self.block()))?;
                self.redo_blocks().remove(step.align_out(self.block()));
                Ok(())
            })?;
        }
        match Extent::between(last, extent.end()) {
            Some(tail) => self.patch_region(&[Patch::Zero(tail)], class),
            None => Ok(()),
        }
    }

    fn check_change(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        let extent = check_request(self.len(), BlockShift::SECTOR, offset, len)?;
        check_writable(!self.is_read_only(), &self.name)?;
        Ok(extent)
    }

    fn flush_if(&self, fua: bool) -> Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }
}

/// Runs of blocks that a patch touches.
fn touched_blocks(patches: &[Patch<'_>], blocks: Extent, block: BlockShift) -> Vec<Extent> {
    let touched: ExtentSet =
        patches.iter().filter_map(|patch| patch.extent().align_out(block).intersect(blocks)).collect();
    touched.iter().map(|(run, ())| run).collect()
}

impl Volume for SummedImage {
    fn len(&self) -> ByteLen {
        ByteLen::new(self.len.load(Ordering::Acquire))
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        let Some(extent) = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(buffer))? else {
            return Ok(());
        };
        let mut rest = buffer;
        for piece in extent.split(REGION) {
            let (part, after) = rest.split_at_mut(piece.len().as_usize());
            rest = after;
            let blocks = self.blocks_of(piece);
            let _lock = self.reading(piece.start());
            if blocks == piece {
                self.read_blocks(blocks, part, class)?;
                continue;
            }
            let mut whole = vec![0; blocks.len().as_usize()];
            self.read_blocks(blocks, &mut whole, class)?;
            let skip = (piece.start() - blocks.start()).as_usize();
            part.copy_from_slice(&whole[skip..skip + part.len()]);
        }
        Ok(())
    }

    /// What was held against its checksum is changed by replays alone, and those change nothing that a stack shows which was
    /// opened before; growth moves what lies in its way.
    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        let extent = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(buffer))?;
        self.read_at(offset, buffer, class)?;
        let (Some(extent), Some(medium)) = (extent, self.medium.as_ref()) else { return Ok(None) };
        let found = self.on_image(|image| Ok(image.file_range(extent)))?;
        Ok(found.filter(|range| medium.stays_at(range.offset)))
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        let Some(extent) = self.check_change(offset, ByteLen::of(data))? else { return Ok(()) };
        for piece in extent.split(REGION) {
            let skip = (piece.start() - offset).as_usize();
            self.patch_region(&[Patch::Data(piece, &data[skip..skip + piece.len().as_usize()])], class)?;
        }
        self.flush_if(fua)
    }

    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        self.check_change(extent.start(), extent.len())?;
        let make_zero =
            |step: Extent| self.on_image(|image| image.write_zeroes(step, keep_allocated, false, class));
        self.zero(extent, &make_zero, class)?;
        self.flush_if(fua)
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.check_change(extent.start(), extent.len())?;
        let make_zero = |step: Extent| self.on_image(|image| image.discard(step, false, class));
        self.zero(extent, &make_zero, class)?;
        self.flush_if(fua)
    }

    fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.poison.guard(&self.name, || {
            self.on_image(|image| image.flush())?;
            self.layers().sums.sync().map(drop)
        })
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.on_image(|image| image.status(extent))
    }
}

#[cfg(test)]
#[path = "sums_tests.rs"]
mod tests;
