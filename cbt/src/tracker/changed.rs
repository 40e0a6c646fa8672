//! Which blocks are marked, which are pending, and which were taken since the counts last agreed: three bitmaps.
//!
//! Only this side clears bits, under one lock; the kernel may set marks at any moment. Every step first sets a bit where
//! it goes and then clears it where it was, so that death at any instant leaves a block marked twice, never nowhere.

use super::Taking;
use super::words::Words;
use blocks::{BlockShift, ByteLen, Error, ErrorKind, Extent, ExtentSet, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

const WORD_BITS: u64 = u64::BITS as u64;

/// The three bitmaps and the takings of this process.
#[derive(Debug)]
pub(crate) struct Changed {
    shift: BlockShift,
    len: ByteLen,
    marks: Words,
    pending: Words,
    since: Words,
    takings: Mutex<Takings>,
}

#[derive(Debug, Default)]
struct Takings {
    last: u64,
    /// Where the next taking begins to look, so that a busy start of the disk does not starve the rest.
    cursor: u64,
    /// Not acknowledged: number -> runs of blocks.
    open: BTreeMap<u64, Vec<Range<u64>>>,
}

impl Changed {
    /// Bitmaps for a disk of `len` bytes; each must have [`Changed::words_for`] words.
    pub fn new(shift: BlockShift, len: ByteLen, marks: Words, pending: Words, since: Words) -> Changed {
        let wanted = Changed::words_for(shift, len);
        assert!([&marks, &pending, &since].iter().all(|words| words.len() == wanted));
        Changed { shift, len, marks, pending, since, takings: Mutex::default() }
    }

    /// Bitmaps in this process's memory.
    pub fn owned(shift: BlockShift, len: ByteLen) -> Changed {
        let words = || Words::owned(Changed::words_for(shift, len));
        Changed::new(shift, len, words(), words(), words())
    }

    /// How many words a bitmap needs; at least one.
    pub fn words_for(shift: BlockShift, len: ByteLen) -> usize {
        let words = len.blocks(shift).div_ceil(WORD_BITS).max(1);
        usize::try_from(words).expect("a bitmap fits the address space")
    }

    pub fn shift(&self) -> BlockShift {
        self.shift
    }

    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// See [`super::Tracker::take`].
    pub fn take(&self, bytes_max: ByteLen) -> Taking {
        let mut takings = self.lock();
        let end = self.marks.len() as u64 * WORD_BITS;
        let start = takings.cursor.min(end);
        let mut left = (bytes_max.get() >> self.shift.get()).max(1);
        let (mut lower, mut upper) = (Runs::default(), Runs::default());
        // To the end, then from the top up to where this taking began.
        let stopped = self
            .take_blocks(start..end, &mut left, &mut upper)
            .or_else(|| self.take_blocks(0..start, &mut left, &mut lower));
        takings.cursor = stopped.unwrap_or(start);
        let mut runs = lower;
        upper.0.into_iter().for_each(|run| runs.push(run));
        takings.last += 1;
        let number = takings.last;
        let extents = runs.0.iter().filter_map(|run| self.extent(run)).collect();
        if !runs.0.is_empty() {
            takings.open.insert(number, runs.0);
        }
        Taking { number, extents }
    }

    /// A taking that is empty whatever is marked.
    pub fn take_nothing(&self) -> Taking {
        let mut takings = self.lock();
        takings.last += 1;
        Taking { number: takings.last, extents: Vec::new() }
    }

    /// Moves marks to pending until `left` blocks were moved; the first marked block that was not.
    fn take_blocks(&self, blocks: Range<u64>, left: &mut u64, runs: &mut Runs) -> Option<u64> {
        for (index, mask) in words_of(blocks) {
            let marked = self.marks[index].load(Acquire) & mask;
            if marked == 0 {
                continue;
            }
            let taken = lowest_bits(marked, *left);
            if taken != 0 {
                self.pending[index].fetch_or(taken, SeqCst);
                self.since[index].fetch_or(taken, SeqCst);
                self.marks[index].fetch_and(!taken, SeqCst);
                *left -= u64::from(taken.count_ones());
                runs.push_word(index, taken);
            }
            if taken != marked {
                return Some(index as u64 * WORD_BITS + u64::from((marked & !taken).trailing_zeros()));
            }
        }
        None
    }

    /// See [`super::Tracker::acknowledge`].
    pub fn acknowledge(&self, number: u64) -> Result<()> {
        let mut takings = self.lock();
        let Some(runs) = takings.open.remove(&number) else {
            return Err(Error::new(ErrorKind::NotFound, format!("taking {number} is not open")));
        };
        let mut done = ExtentSet::new();
        runs.iter().filter_map(|run| self.extent(run)).for_each(|extent| done.insert(extent, ()));
        for later in takings.open.range(number..).flat_map(|(_, runs)| runs) {
            if let Some(extent) = self.extent(later) {
                done.remove(extent);
            }
        }
        for (extent, ()) in done.iter() {
            for (index, mask) in words_of(extent.blocks(self.shift)) {
                self.pending[index].fetch_and(!mask, SeqCst);
            }
        }
        Ok(())
    }

    /// See [`super::Tracker::requeue`].
    pub fn requeue(&self) {
        let mut takings = self.lock();
        takings.open.clear();
        takings.cursor = 0;
        for (marks, pending) in self.marks.iter().zip(self.pending.iter()) {
            let moved = pending.load(Acquire);
            if moved != 0 {
                marks.fetch_or(moved, SeqCst);
                pending.fetch_and(!moved, SeqCst);
            }
        }
    }

    /// Marks the blocks that these extents touch. `OutOfRange` past the end of the disk, and then nothing is marked.
    pub fn mark(&self, extents: &[Extent]) -> Result<()> {
        if let Some(extent) = extents.iter().find(|extent| extent.end() > self.len.end()) {
            let context = format!("{extent:?} ends past the disk's {} bytes", self.len);
            return Err(Error::new(ErrorKind::OutOfRange, context));
        }
        for extent in extents {
            for (index, mask) in words_of(extent.blocks(self.shift)) {
                self.marks[index].fetch_or(mask, SeqCst);
            }
        }
        Ok(())
    }

    /// Marks what is set in these words. `Corrupt`, and nothing is marked, if there are more or fewer than the map has.
    pub fn mark_words(&self, words: &[u64]) -> Result<()> {
        if words.len() != self.marks.len() {
            return Err(Error::corrupt(format!("{} words for a map of {}", words.len(), self.marks.len())));
        }
        for (marks, word) in self.marks.iter().zip(words) {
            marks.fetch_or(*word, SeqCst);
        }
        Ok(())
    }

    /// What is marked or pending, a bit a block.
    pub fn words(&self) -> Vec<u64> {
        self.marks
            .iter()
            .zip(self.pending.iter())
            .map(|(marks, pending)| marks.load(Acquire) | pending.load(Acquire))
            .collect()
    }

    /// Bytes marked or pending.
    pub fn backlog(&self) -> ByteLen {
        let blocks: u64 = self.changed_words().map(|(_, word)| u64::from(word.count_ones())).sum();
        // The last block may be cut by the end of the disk.
        ByteLen::new((blocks << self.shift.get()).min(self.len.get()))
    }

    /// What is marked or pending.
    pub fn changed(&self) -> ExtentSet {
        let mut runs = Runs::default();
        self.changed_words().for_each(|(index, word)| runs.push_word(index, word));
        runs.0.iter().filter_map(|run| self.extent(run)).collect()
    }

    /// Whether nothing at all is marked.
    pub fn nothing_marked(&self) -> bool {
        self.marks.iter().all(|word| word.load(Acquire) == 0)
    }

    fn changed_words(&self) -> impl Iterator<Item = (usize, u64)> {
        let words = self.marks.iter().zip(self.pending.iter()).enumerate();
        // Marks first: a block on its way from marked to pending is then seen in one of them.
        words.map(|(index, (marks, pending))| (index, marks.load(Acquire) | pending.load(Acquire)))
    }

    /// Keeps takings from happening while it lives, so that counts and `since` can be judged together.
    pub fn hold(&self) -> Held<'_> {
        Held { changed: self, _takings: self.lock() }
    }

    /// Nothing is changed. Loses marks that are set meanwhile.
    pub fn forget_all(&self) {
        let mut takings = self.lock();
        takings.open.clear();
        takings.cursor = 0;
        for words in [&self.marks, &self.pending, &self.since] {
            words.iter().for_each(|word| word.store(0, SeqCst));
        }
    }

    fn extent(&self, run: &Range<u64>) -> Option<Extent> {
        let end = self.shift.start_of(run.end).min(self.len.end());
        Extent::between(self.shift.start_of(run.start), end)
    }

    fn lock(&self) -> MutexGuard<'_, Takings> {
        // Every step leaves the bitmaps sound, so a panic elsewhere spoils nothing.
        self.takings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No taking happens while this lives.
pub(crate) struct Held<'a> {
    changed: &'a Changed,
    _takings: MutexGuard<'a, Takings>,
}

impl Held<'_> {
    /// Marks again all that was taken since the last [`Held::forget_since`].
    pub fn mark_since(&self) {
        for (marks, since) in self.changed.marks.iter().zip(self.changed.since.iter()) {
            let taken = since.load(Acquire);
            if taken != 0 {
                marks.fetch_or(taken, SeqCst);
            }
        }
    }

    /// The counts agree: nothing taken so far has to be read again.
    pub fn forget_since(&self) {
        self.changed.since.iter().for_each(|word| word.store(0, SeqCst));
    }
}

/// Runs of blocks in rising order; neighbours are joined.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn push(&mut self, run: Range<u64>) {
        match self.0.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.0.push(run),
        }
    }

    fn push_word(&mut self, index: usize, word: u64) {
        let base = index as u64 * WORD_BITS;
        let mut rest = word;
        while rest != 0 {
            let first = u64::from(rest.trailing_zeros());
            let ones = u64::from((rest >> first).trailing_ones());
            self.push(base + first..base + first + ones);
            if first + ones == WORD_BITS {
                break;
            }
            rest &= u64::MAX << (first + ones);
        }
    }
}

/// The `count` lowest set bits of `word`.
fn lowest_bits(word: u64, count: u64) -> u64 {
    if u64::from(word.count_ones()) <= count {
        return word;
    }
    let mut rest = word;
    (0..count).for_each(|_| rest &= rest - 1);
    word & !rest
}

/// Every word that holds one of these blocks, and the mask of them in it.
fn words_of(blocks: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        if at >= blocks.end {
            return None;
        }
        let end = blocks.end.min((at / WORD_BITS + 1) * WORD_BITS);
        let mask = (u64::MAX >> (WORD_BITS - (end - at))) << (at % WORD_BITS);
        let index = usize::try_from(at / WORD_BITS).expect("a bitmap fits the address space");
        at = end;
        Some((index, mask))
    })
}

#[cfg(test)]
#[path = "changed_tests.rs"]
mod tests;
