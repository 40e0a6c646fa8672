//! One file of a [`super::CrashStorage`]: what readers see, what is on the medium, and what lies between.
//!
//! Content is pages that the two states share until one of them changes. What was written since the last sync is kept
//! as a list of changes. A power cut leaves each 512-byte sector as it was after *some* prefix of the changes that
//! touched it, each sector choosing on its own: that covers loss, reordering and tearing, and never invents a mixture
//! within a sector that no disk would hold.

use super::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

pub(super) const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;

type Page = [u8; PAGE_BYTES as usize];

/// Bytes of a file; what has no page is zero.
#[derive(Clone, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<Page>>,
    pub(super) len: u64,
}

impl Content {
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (page, inside, range) in pieces(offset, buffer.len()) {
            match self.pages.get(&page) {
                Some(bytes) => buffer[range.clone()].copy_from_slice(&bytes[inside..inside + range.len()]),
                None => buffer[range].fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, inside, range) in pieces(offset, data.len()) {
            let bytes =
                Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize])));
            bytes[inside..inside + range.len()].copy_from_slice(&data[range]);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Makes the range zero; whole pages go away.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        let first = range.start / PAGE_BYTES;
        let touched: Vec<u64> =
            self.pages.range(first..range.end.div_ceil(PAGE_BYTES)).map(|(page, _)| *page).collect();
        for page in touched {
            let start = range.start.saturating_sub(page * PAGE_BYTES);
            let end = (range.end - page * PAGE_BYTES).min(PAGE_BYTES);
            if start == 0 && end == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[start as usize..end as usize].fill(0);
            }
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len..self.len.max(len));
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
        }
        self.len = len;
    }

    /// Takes these pages over from `other`.
    fn share(&mut self, other: &Content, pages: impl Iterator<Item = u64>) {
        for page in pages {
            match other.pages.get(&page) {
                Some(bytes) => self.pages.insert(page, Arc::clone(bytes)),
                None => self.pages.remove(&page),
            };
        }
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// How many pages writing the range would add.
    pub(super) fn pages_missing(&self, offset: u64, len: usize) -> u64 {
        pieces(offset, len).filter(|(page, _, _)| !self.pages.contains_key(page)).count() as u64
    }

    /// The next run of pages at or after `from`, within the length.
    pub(super) fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let (&first, _) = self.pages.range(from / PAGE_BYTES..).next()?;
        let mut after = first + 1;
        while self.pages.contains_key(&after) {
            after += 1;
        }
        let range = (first * PAGE_BYTES).max(from)..(after * PAGE_BYTES).min(self.len);
        (range.start < range.end).then_some(range)
    }
}

/// Cuts a range into (page, offset in the page, range of the buffer).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % PAGE_BYTES) as usize;
        let count = (len - done).min(PAGE_BYTES as usize - inside);
        (count > 0).then(|| {
            done += count;
            (at / PAGE_BYTES, inside, done - count..done)
        })
    })
}

/// Something that happened to a file since its last sync.
#[derive(Clone)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Zero { range: Range<u64> },
}

impl Change {
    fn range(&self) -> Range<u64> {
        match self {
            Change::Write { offset, data } => *offset..*offset + data.len() as u64,
            Change::Zero { range } => range.clone(),
        }
    }

    /// The part of the change that lies in one sector.
    fn apply_sector(&self, content: &mut Content, sector: u64) {
        let bounds = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        let range = self.range().start.max(bounds.start)..self.range().end.min(bounds.end);
        match self {
            Change::Write { offset, data } => {
                content.write(
                    range.start,
                    &data[(range.start - offset) as usize..(range.end - offset) as usize],
                );
            }
            Change::Zero { .. } => content.zero(range),
        }
    }
}

/// How thoroughly a power cut mixes what was not synced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// All of it is gone.
    All,
    /// All of it is there.
    None,
    /// Each change is there wholly or not at all.
    Changes,
    /// Each sector has a fate of its own.
    Sectors,
}

impl Loss {
    pub(super) fn choose(random: &mut Random) -> Loss {
        match random.below(8) {
            0 => Loss::All,
            1 => Loss::None,
            2..=4 => Loss::Changes,
            _ => Loss::Sectors,
        }
    }
}

/// A file: its two states and the changes between them.
#[derive(Clone, Default)]
pub(super) struct CrashFile {
    pub(super) current: Content,
    durable: Content,
    pending: Vec<Change>,
    /// The lengths that the file had since the last sync.
    lens: Vec<u64>,
    /// A sync has failed: the medium is not what `current` was at the last sync.
    diverged: bool,
}

impl CrashFile {
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.current.write(offset, data);
        self.pending.push(Change::Write { offset, data: data.to_vec() });
        self.lens.push(self.current.len);
    }

    pub(super) fn punch(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.current.len);
        if range.start < range.end {
            self.current.zero(range.clone());
            self.pending.push(Change::Zero { range });
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.current.len {
            self.pending.push(Change::Zero { range: len..self.current.len });
        }
        self.current.set_len(len);
        self.lens.push(len);
    }

    pub(super) fn sync(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.settle(&pending);
        self.durable.set_len(self.lens.last().copied().unwrap_or(self.durable.len));
        self.lens.clear();
    }

    /// A sync that failed: a part has reached the medium, and as with real kernels the rest is forgotten by the cache,
    /// so that a later sync succeeds without it. Readers go on seeing it until the power is cut.
    pub(super) fn fail_sync(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.diverged = true;
        self.settle(&pending[..pending.len() / 2]);
        self.lens.clear();
    }

    /// Puts the changes on the medium.
    fn settle(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Write { offset, data } if self.diverged => self.durable.write(*offset, data),
                Change::Write { offset, data } => {
                    self.durable.share(&self.current, pieces(*offset, data.len()).map(|(page, _, _)| page));
                    self.durable.len = self.durable.len.max(offset + data.len() as u64);
                }
                Change::Zero { range } => self.durable.zero(range.clone()),
            }
        }
    }

    /// Flips one bit of both states: rot.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        for content in [&mut self.current, &mut self.durable] {
            if offset < content.len {
                let mut byte = [0];
                content.read(offset, &mut byte);
                byte[0] ^= 1 << (bit % 8);
                content.write(offset, &byte);
            }
        }
    }

    /// What a power cut may leave.
    pub(super) fn after_crash(&self, loss: Loss, random: &mut Random) -> CrashFile {
        let mut content = self.durable.clone();
        match loss {
            Loss::All => {}
            Loss::None => content = self.current.clone(),
            Loss::Changes | Loss::Sectors => {
                let whole = matches!(loss, Loss::Changes).then(|| self.choose_changes(random));
                for (sector, changes) in self.touched_sectors() {
                    let kept = match &whole {
                        Some(whole) => {
                            changes.iter().rposition(|change| whole[*change]).map_or(0, |last| last + 1)
                        }
                        None => random.below(changes.len() as u64 + 1) as usize,
                    };
                    for change in &changes[..kept] {
                        self.pending[*change].apply_sector(&mut content, sector);
                    }
                }
                let choice = random.below(self.lens.len() as u64 + 1) as usize;
                let len = self.lens.get(choice).copied().unwrap_or(self.durable.len);
                content.len = content.len.max(len);
                content.set_len(len);
            }
        }
        CrashFile { current: content.clone(), durable: content, ..CrashFile::default() }
    }

    fn choose_changes(&self, random: &mut Random) -> Vec<bool> {
        self.pending.iter().map(|_| random.chance(50)).collect()
    }

    /// For each sector that is not zero throughout: the changes that touched it, in order.
    fn touched_sectors(&self) -> BTreeMap<u64, Vec<usize>> {
        let per_page = PAGE_BYTES / SECTOR_BYTES;
        let mut pages: BTreeSet<u64> = self.durable.pages.keys().copied().collect();
        for change in &self.pending {
            if let Change::Write { offset, data } = change {
                pages.extend(pieces(*offset, data.len()).map(|(page, _, _)| page));
            }
        }
        let mut sectors: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, change) in self.pending.iter().enumerate() {
            let range = change.range();
            if range.is_empty() {
                continue;
            }
            let first = range.start / SECTOR_BYTES;
            let after = range.end.div_ceil(SECTOR_BYTES);
            for page in pages.range(first / per_page..after.div_ceil(per_page)) {
                for sector in (page * per_page).max(first)..((page + 1) * per_page).min(after) {
                    sectors.entry(sector).or_default().push(index);
                }
            }
        }
        sectors
    }
}
