//! A dynamic VHD as a disk.
//!
//! Where a sector is: not allocated (its block has no table entry, or its bit is clear), else in the block's data. What
//! was discarded stays allocated in the table and is a hole in the file, so bits and entries are only ever set and a
//! crash cannot bring old content back. New blocks are marked wholly present at once, as QEMU marks them, which ignores
//! bitmaps: both see the same disk, because room for blocks is made of zeroes.

use super::super::beyond::read_parent;
use super::super::disk::Disk;
use super::super::status::Runs;
use super::Parts;
use super::bat::Bat;
use super::block::{Bitmap, BitmapCache, BlockLayout};
use super::footer::Footer;
use super::slots::Slots;
use blocks::{ByteLen, ByteOffset, Extent, FileRange, Result, StorageFile, Volume};
use smallvec::{SmallVec, smallvec};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A dynamic VHD, open.
pub(in super::super) struct VhdDisk {
    file: Arc<dyn StorageFile>,
    footer: Footer,
    len: ByteLen,
    layout: BlockLayout,
    bat: Bat,
    bitmaps: BitmapCache,
    slots: Mutex<Slots>,
    parent: Option<Arc<dyn Volume>>,
}

/// A part of a request that lies in one block.
struct BlockPart {
    block: u64,
    /// On the disk.
    extent: Extent,
    /// From the block's start.
    inside: Extent,
}

/// Runs of a part, in order, from the block's start, and where each is in the file. Mostly one.
type Stored = SmallVec<[(Extent, Option<ByteOffset>); 1]>;

impl VhdDisk {
    /// The disk of checked structures. Opened for writing, a footer that a crash has left behind is put right.
    pub(in super::super) fn new(
        file: Arc<dyn StorageFile>,
        parts: Parts,
        parent: Option<Arc<dyn Volume>>,
        writable: bool,
    ) -> Result<VhdDisk> {
        let Parts { footer, footers_agree, header, bat } = parts;
        let layout = BlockLayout { block: header.block };
        let mut slots = Slots::new(layout, bat.used_end(), bat.allocated());
        if writable && !footers_agree {
            file.write_at(ByteOffset::ZERO, &footer.encode())?;
            slots.make_ready(&*file, &footer, bat.used_end())?;
        }
        let bitmaps = BitmapCache::new(bat.blocks());
        let (len, slots) = (footer.current_size, Mutex::new(slots));
        Ok(VhdDisk { file, footer, len, layout, bat, bitmaps, slots, parent })
    }

    fn parts(&self, extent: Extent) -> impl Iterator<Item = BlockPart> {
        let shift = self.layout.block;
        extent.split(shift.len()).map(move |extent| {
            let block = shift.block_of(extent.start());
            let skip = extent.start() - shift.start_of(block);
            let inside = Extent::new(skip.end(), extent.len()).expect("a part of a block is not empty");
            BlockPart { block, extent, inside }
        })
    }

    fn data_at(&self, bitmap: ByteOffset, inside: Extent) -> ByteOffset {
        self.layout.data_at(bitmap, ByteLen::new(inside.start().get()))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part's runs, with where their bytes lie in the file, `None` for those that are not stored: the parent's, or
    /// zeroes.
    fn resolve(&self, part: &BlockPart) -> Result<Stored> {
        let Some(bitmap_at) = self.bat.get(part.block) else { return Ok(smallvec![(part.inside, None)]) };
        let Some(bitmap) = self.bitmaps.get(&*self.file, part.block, bitmap_at, self.layout)? else {
            return Ok(smallvec![(part.inside, Some(self.data_at(bitmap_at, part.inside)))]);
        };
        let stored = |run, present: bool| present.then(|| self.data_at(bitmap_at, run));
        Ok(bitmap.runs(part.inside).into_iter().map(|(run, present)| (run, stored(run, present))).collect())
    }

    fn write_part(&self, part: &BlockPart, data: &[u8]) -> Result<()> {
        let bitmap_at = match self.bat.get(part.block) {
            Some(bitmap_at) => bitmap_at,
            None => match self.allocate(part, data)? {
                Some(other) => other,
                None => return Ok(()),
            },
        };
        self.make_full(part.block, bitmap_at)?;
        self.make_written(part.block, bitmap_at)?;
        self.file.write_at(self.data_at(bitmap_at, part.inside), data)
    }

    /// Gives the block room and writes its first data; where the block is, if another thread was quicker and nothing
    /// has been written.
    fn allocate(&self, part: &BlockPart, data: &[u8]) -> Result<Option<ByteOffset>> {
        let mut slots = self.slots();
        if let Some(bitmap_at) = self.bat.get(part.block) {
            return Ok(Some(bitmap_at));
        }
        let bitmap_at = slots.take(&*self.file, &self.footer, self.bat.blocks())?;
        if self.parent.is_some() {
            self.copy_up(part, bitmap_at, data)?;
        } else {
            self.file.write_at(bitmap_at, Bitmap::full(self.layout).as_bytes())?;
            self.file.write_at(self.data_at(bitmap_at, part.inside), data)?;
        }
        self.bitmaps.set_full(part.block);
        self.bat.set(&*self.file, part.block, bitmap_at)?;
        self.bitmaps.set_written(part.block);
        Ok(None)
    }

    /// Puts a whole block on the medium, of which the parent's content shows until an entry leads there: no power cut
    /// may show a mixture of neither.
    fn copy_up(&self, part: &BlockPart, bitmap_at: ByteOffset, data: &[u8]) -> Result<()> {
        let whole = self.whole(part.block);
        let mut content = vec![0; whole.len().as_usize()];
        read_parent(self.parent.as_ref(), whole, &mut content)?;
        let skip = ByteLen::new(part.inside.start().get()).as_usize();
        content[skip..skip + data.len()].copy_from_slice(data);
        self.file.write_at(bitmap_at, Bitmap::full(self.layout).as_bytes())?;
        self.file.write_at(self.layout.data_at(bitmap_at, ByteLen::ZERO), &content)?;
        self.file.sync().map(drop)
    }

    /// A block on the disk, whose end may cut it.
    fn whole(&self, block: u64) -> Extent {
        let start = self.layout.block.start_of(block);
        let end = (start + self.layout.block.len()).min(self.len.end());
        Extent::between(start, end).expect("a block begins on the disk")
    }

    /// Where a run that counts from its block's start is on the disk.
    fn on_disk(&self, block: u64, run: Extent) -> Result<Extent> {
        let start = self.layout.block.start_of(block) + (run.start() - ByteOffset::ZERO);
        Ok(Extent::new(start, run.len())?)
    }

    /// The runs of the extent that are stored in this file, and not in a parent.
    pub(in super::super) fn stored(&self, extent: Extent) -> Result<Vec<Extent>> {
        let mut runs = Vec::new();
        for part in self.parts(extent) {
            for (run, _) in self.resolve(&part)?.into_iter().filter(|(_, stored)| stored.is_some()) {
                runs.push(self.on_disk(part.block, run)?);
            }
        }
        Ok(runs)
    }

    /// Makes a part of a block read as zeroes where the parent shows.
    fn hide(&self, part: &BlockPart) -> Result<()> {
        if part.extent != self.whole(part.block) {
            return self.write_part(part, &vec![0; part.extent.len().as_usize()]);
        }
        let mut slots = self.slots();
        if let Some(bitmap_at) = self.bat.get(part.block) {
            drop(slots);
            self.make_full(part.block, bitmap_at)?;
            return self
                .file
                .punch_hole(Extent::new(self.data_at(bitmap_at, part.inside), part.inside.len())?);
        }
        // Room is of zeroes, so bits and entry may reach the medium in any order: without bits the parent shows.
        let bitmap_at = slots.take(&*self.file, &self.footer, self.bat.blocks())?;
        self.file.write_at(bitmap_at, Bitmap::full(self.layout).as_bytes())?;
        self.bitmaps.set_full(part.block);
        self.bat.set(&*self.file, part.block, bitmap_at)?;
        self.bitmaps.set_written(part.block);
        Ok(())
    }

    /// Writes the bitmap and the table entry of an allocated block again, once after each opening. Both may be in the
    /// kernel's cache only, and marked as clean there since a sync of them has failed: then the next sync would put the
    /// data on the medium, but not what leads to it.
    fn make_written(&self, block: u64, bitmap_at: ByteOffset) -> Result<()> {
        if self.bitmaps.is_written(block) {
            return Ok(());
        }
        let _one_at_a_time = self.slots();
        self.file.write_at(bitmap_at, Bitmap::full(self.layout).as_bytes())?;
        self.bat.set(&*self.file, block, bitmap_at)?;
        self.bitmaps.set_written(block);
        Ok(())
    }

    /// Marks every sector of an allocated block as present. Sectors that were not are made what they read as on the medium
    /// first, zeroes or the parent's: what lies there is a crash's or another writer's remains, and must not appear.
    fn make_full(&self, block: u64, bitmap_at: ByteOffset) -> Result<()> {
        if self.bitmaps.is_full(block) {
            return Ok(());
        }
        let _one_at_a_time = self.slots();
        let Some(bitmap) = self.bitmaps.get(&*self.file, block, bitmap_at, self.layout)? else {
            return Ok(());
        };
        let whole = Extent::new(ByteOffset::ZERO, self.layout.block.len())?;
        for (run, _) in bitmap.runs(whole).into_iter().filter(|(_, present)| !present) {
            let place = Extent::new(self.data_at(bitmap_at, run), run.len())?;
            let shown =
                self.on_disk(block, run)?.intersect(self.whole(block)).filter(|_| self.parent.is_some());
            self.file.punch_hole(place)?;
            if let Some(shown) = shown {
                let mut content = vec![0; shown.len().as_usize()];
                read_parent(self.parent.as_ref(), shown, &mut content)?;
                self.file.write_at(place.start(), &content)?;
            }
        }
        self.file.sync()?;
        self.file.write_at(bitmap_at, Bitmap::full(self.layout).as_bytes())?;
        self.bitmaps.set_full(block);
        Ok(())
    }
}

impl Disk for VhdDisk {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for part in self.parts(extent) {
            for (run, stored) in self.resolve(&part)? {
                let (bytes, after) = rest.split_at_mut(run.len().as_usize());
                rest = after;
                match stored {
                    Some(at) => self.file.read_at(at, bytes)?,
                    None => read_parent(self.parent.as_ref(), self.on_disk(part.block, run)?, bytes)?,
                }
            }
        }
        Ok(())
    }

    fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        self.parts(extent).try_for_each(|part| {
            let skip = (part.extent.start() - extent.start()).as_usize();
            self.write_part(&part, &data[skip..skip + part.extent.len().as_usize()])
        })
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        for part in self.parts(extent) {
            match self.bat.get(part.block) {
                Some(bitmap_at) => {
                    if self.parent.is_some() {
                        self.make_full(part.block, bitmap_at)?;
                    }
                    let place = Extent::new(self.data_at(bitmap_at, part.inside), part.inside.len())?;
                    self.file.punch_hole(place)?;
                }
                None if self.parent.is_some() => self.hide(&part)?,
                None => {}
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map(drop)
    }

    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()> {
        for part in self.parts(extent) {
            for (run, stored) in self.resolve(&part)? {
                let on_disk = self.on_disk(part.block, run)?;
                match stored {
                    Some(at) => runs.push_stored(&*self.file, on_disk, at)?,
                    None => runs.push_volume(self.parent.as_deref(), on_disk)?,
                }
                if runs.is_full() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What lies in one block and is stored wholly.
    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let file = Arc::clone(self.file.host_file()?);
        let part = self.parts(extent).next().filter(|part| part.extent == extent)?;
        match self.resolve(&part).ok()?.as_slice() {
            [(_, Some(offset))] => Some(FileRange { file, offset: *offset }),
            _ => None,
        }
    }

    /// Gives back room that was made ready in vain.
    fn close(&mut self) -> Result<()> {
        self.slots().trim(&*self.file, &self.footer)
    }
}

impl std::fmt::Debug for VhdDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhdDisk").field("file", &self.file.name()).finish_non_exhaustive()
    }
}
