//! One block: a bitmap with a bit for each sector, then the sectors. A clear bit means that the sector was never written
//! and reads as zeroes.

use blocks::{BlockShift, ByteLen, ByteOffset, Extent, Result, SECTOR_BYTES, StorageFile};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bitmaps of blocks that are not wholly present, as other writers leave them: 512 bytes each at 2 MiB.
const BITMAPS_MAX: usize = 256;

/// How blocks of one size lie in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockLayout {
    pub(super) block: BlockShift,
}

impl BlockLayout {
    /// The bitmap, filled up to whole sectors.
    pub(super) fn bitmap_len(self) -> ByteLen {
        ByteLen::new((self.block.bytes() / SECTOR_BYTES / 8).next_multiple_of(SECTOR_BYTES))
    }

    /// Bitmap and data.
    pub(super) fn len(self) -> ByteLen {
        self.bitmap_len() + self.block.len()
    }

    /// Where byte `inside` of the block whose bitmap is at `bitmap` lies in the file.
    pub(super) fn data_at(self, bitmap: ByteOffset, inside: ByteLen) -> ByteOffset {
        bitmap + self.bitmap_len() + inside
    }
}

/// Which sectors of a block are present; the most significant bit of each byte comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// Every sector present.
    pub(super) fn full(layout: BlockLayout) -> Bitmap {
        Bitmap(vec![0xff; layout.bitmap_len().as_usize()])
    }

    /// Reads the bitmap of the block at `start`.
    pub(super) fn read(file: &dyn StorageFile, start: ByteOffset, layout: BlockLayout) -> Result<Bitmap> {
        let mut bytes = vec![0; layout.bitmap_len().as_usize()];
        file.read_at(start, &mut bytes)?;
        Ok(Bitmap(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn is_full(&self, layout: BlockLayout) -> bool {
        let used = ByteLen::new(layout.block.bytes() / SECTOR_BYTES / 8).as_usize();
        self.0[..used].iter().all(|byte| *byte == 0xff)
    }

    fn is_present(&self, sector: u64) -> bool {
        let byte = ByteLen::new(sector / 8).as_usize();
        self.0[byte] & (0x80 >> (sector % 8)) != 0
    }

    /// Tiles `inside`, which lies within the block and counts from its start, with runs that are present or not.
    pub(super) fn runs(&self, inside: Extent) -> Vec<(Extent, bool)> {
        let mut runs: Vec<(Extent, bool)> = Vec::new();
        for sector in inside.split(BlockShift::SECTOR.len()) {
            let present = self.is_present(sector.start().lba().get());
            match runs.last_mut() {
                Some((run, same)) if *same == present => {
                    *run = Extent::between(run.start(), sector.end()).unwrap_or(*run);
                }
                _ => runs.push((sector, present)),
            }
        }
        runs
    }
}

/// What is known about bitmaps: one bit for each block that is wholly present, which is what we and QEMU write, and the
/// bitmaps of a few others.
#[derive(Debug)]
pub(super) struct BitmapCache {
    /// One bit a block, only ever set.
    full: Vec<AtomicU64>,
    /// The same for those whose bitmap and table entry were written since the file was opened.
    written: Vec<AtomicU64>,
    partial: Mutex<Partial>,
}

#[derive(Debug, Default)]
struct Partial {
    bitmaps: HashMap<u64, Arc<Bitmap>>,
    order: VecDeque<u64>,
}

impl BitmapCache {
    pub(super) fn new(blocks: usize) -> BitmapCache {
        let none = || (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        BitmapCache { full: none(), written: none(), partial: Mutex::default() }
    }

    /// Whether bitmap and table entry of the block were written since the file was opened.
    pub(super) fn is_written(&self, block: u64) -> bool {
        let (word, bit) = position(block);
        self.written.get(word).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Notes that they were.
    pub(super) fn set_written(&self, block: u64) {
        let (word, bit) = position(block);
        if let Some(word) = self.written.get(word) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether every sector of the block is known to be present.
    pub(super) fn is_full(&self, block: u64) -> bool {
        let (word, bit) = position(block);
        self.full.get(word).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Notes that every sector of the block is present from now on.
    pub(super) fn set_full(&self, block: u64) {
        let (word, bit) = position(block);
        if let Some(word) = self.full.get(word) {
            word.fetch_or(bit, Ordering::Release);
        }
        let mut partial = self.partial();
        if partial.bitmaps.remove(&block).is_some() {
            partial.order.retain(|other| *other != block);
        }
    }

    /// The bitmap of an allocated block; `None` where every sector is present.
    pub(super) fn get(
        &self,
        file: &dyn StorageFile,
        block: u64,
        start: ByteOffset,
        layout: BlockLayout,
    ) -> Result<Option<Arc<Bitmap>>> {
        if self.is_full(block) {
            return Ok(None);
        }
        if let Some(bitmap) = self.partial().bitmaps.get(&block) {
            return Ok(Some(Arc::clone(bitmap)));
        }
        let bitmap = Arc::new(Bitmap::read(file, start, layout)?);
        if bitmap.is_full(layout) {
            self.set_full(block);
            return Ok(None);
        }
        // Whoever makes the block full meanwhile sets the bit first, and the bit is what readers ask first.
        let mut partial = self.partial();
        if partial.order.len() >= BITMAPS_MAX
            && let Some(oldest) = partial.order.pop_front()
        {
            partial.bitmaps.remove(&oldest);
        }
        if partial.bitmaps.insert(block, Arc::clone(&bitmap)).is_none() {
            partial.order.push_back(block);
        }
        Ok(Some(bitmap))
    }

    fn partial(&self) -> MutexGuard<'_, Partial> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn position(block: u64) -> (usize, u64) {
    (ByteLen::new(block / 64).as_usize(), 1 << (block % 64))
}
