//! Random histories of writes to a volume, compared with a model of what must be there.

use super::random::Random;
use blocks::{ByteLen, ByteOffset, Extent, RequestClass, Result, SECTOR_BYTES, Volume};
use std::collections::{BTreeMap, BTreeSet};

const CLASS: RequestClass = RequestClass::Guest;
/// The longest write of a history, in sectors: a little over one VHD block.
const SECTORS_MAX: u64 = 4200;

/// What a disk must hold, sector by sector: after a flush exactly one content, before it any that was written since.
///
/// Works on a few windows of the disk, so that disks of any size can be tested.
#[derive(Debug, Clone)]
pub struct History {
    random: Random,
    windows: Vec<Extent>,
    /// Sector number -> fill byte of each version since the last flush, the newest last. Missing means zero.
    sectors: BTreeMap<u64, Vec<u64>>,
    dirty: BTreeSet<u64>,
    next_fill: u64,
}

impl History {
    /// A history in these windows, which are aligned to sectors.
    pub fn new(seed: u64, windows: Vec<Extent>) -> History {
        History {
            random: Random::new(seed),
            windows,
            sectors: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next_fill: 1,
        }
    }

    /// Does one random thing to the volume; an error is the volume's, and what it should have changed may then hold the
    /// old or the new content.
    pub fn step(&mut self, volume: &dyn Volume) -> Result<()> {
        let extent = self.choose();
        match self.random.below(20) {
            0..=11 => {
                let fill = self.next_fill;
                self.next_fill += 1;
                self.note(extent, fill);
                let fua = self.random.chance(5);
                volume.write_at(extent.start(), &pattern(extent, fill), fua, CLASS)?;
                if fua {
                    self.settle(extent);
                }
                Ok(())
            }
            12..=14 => {
                self.note(extent, 0);
                volume.discard(extent, false, CLASS)
            }
            15..=17 => {
                self.note(extent, 0);
                let keep_allocated = self.random.chance(20);
                volume.write_zeroes(extent, keep_allocated, false, CLASS)
            }
            _ => {
                volume.flush()?;
                self.flushed();
                Ok(())
            }
        }
    }

    /// Everything done so far is on the medium.
    pub fn flushed(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.keep_newest(sector);
        }
    }

    fn settle(&mut self, extent: Extent) {
        for sector in sectors(extent) {
            self.keep_newest(sector);
            self.dirty.remove(&sector);
        }
    }

    fn keep_newest(&mut self, sector: u64) {
        if let Some(versions) = self.sectors.get_mut(&sector) {
            versions.drain(..versions.len() - 1);
        }
    }

    fn note(&mut self, extent: Extent, fill: u64) {
        for sector in sectors(extent) {
            self.sectors.entry(sector).or_insert_with(|| vec![0]).push(fill);
            self.dirty.insert(sector);
        }
    }

    fn choose(&mut self) -> Extent {
        let window = self.windows[ByteLen::new(self.random.below(self.windows.len() as u64)).as_usize()];
        let count = window.len().get() / SECTOR_BYTES;
        let start = self.random.below(count);
        let longest = if self.random.chance(25) { SECTORS_MAX } else { 40 };
        let len = 1 + self.random.below(longest.min(count - start));
        let at = window.start() + ByteLen::new(start * SECTOR_BYTES);
        Extent::new(at, ByteLen::new(len * SECTOR_BYTES)).expect("within the window")
    }

    /// Compares the windows of the volume with the newest content. A message that says where they differ.
    pub fn check(&self, volume: &dyn Volume) -> std::result::Result<(), String> {
        self.compare(volume, |versions, found| versions.last() == Some(&found))
    }

    /// The same after a crash: flushed sectors hold what was flushed, others any version since.
    pub fn check_crashed(&self, volume: &dyn Volume) -> std::result::Result<(), String> {
        self.compare(volume, |versions, found| versions.contains(&found))
    }

    /// Takes what the volume holds now as the truth, after [`History::check_crashed`].
    pub fn adopt(&mut self, volume: &dyn Volume) -> std::result::Result<(), String> {
        for sector in std::mem::take(&mut self.dirty) {
            let found = read_fill(volume, sector)?;
            self.sectors.insert(sector, vec![found]);
        }
        Ok(())
    }

    fn compare(
        &self,
        volume: &dyn Volume,
        is_right: impl Fn(&[u64], u64) -> bool,
    ) -> std::result::Result<(), String> {
        for window in &self.windows {
            for piece in window.split(ByteLen::new(1 << 20)) {
                let mut bytes = vec![0; piece.len().as_usize()];
                volume.read_at(piece.start(), &mut bytes, CLASS).map_err(|error| error.to_string())?;
                for (sector, bytes) in sectors(piece).zip(bytes.chunks_exact(512)) {
                    let found = fill_of(sector, bytes)?;
                    let versions = self.sectors.get(&sector).map_or(&[0][..], Vec::as_slice);
                    if !is_right(versions, found) {
                        return Err(format!(
                            "sector {sector}: version {found} where {versions:?} were written"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

fn sectors(extent: Extent) -> std::ops::Range<u64> {
    extent.start().lba().get()..extent.end().lba().get()
}

/// Each sector says which it is and which version.
fn pattern(extent: Extent, fill: u64) -> Vec<u8> {
    let words = |sector: u64| [sector.to_le_bytes(), fill.to_le_bytes()].concat().repeat(32);
    sectors(extent).flat_map(words).collect()
}

fn fill_of(sector: u64, bytes: &[u8]) -> std::result::Result<u64, String> {
    if blocks::is_zero(bytes) {
        return Ok(0);
    }
    let fill = bytes.get(8..16).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
    let whole = Extent::new(ByteOffset::new(sector * SECTOR_BYTES), ByteLen::new(SECTOR_BYTES));
    match whole {
        Ok(whole) if pattern(whole, fill) == bytes => Ok(fill),
        _ => Err(format!("sector {sector} holds what nobody wrote: {:02x?}", &bytes[..32.min(bytes.len())])),
    }
}

fn read_fill(volume: &dyn Volume, sector: u64) -> std::result::Result<u64, String> {
    let mut bytes = [0; 512];
    let at = ByteOffset::new(sector * SECTOR_BYTES);
    volume.read_at(at, &mut bytes, CLASS).map_err(|error| error.to_string())?;
    fill_of(sector, &bytes)
}
