//! Which 64 KiB blocks of a disk: the grain in which sessions remember what was written.

use blocks::{BlockShift, ByteLen, ByteOffset, Extent, ExtentSet};
use std::collections::BTreeMap;

/// The size of a block.
pub(crate) const BLOCK: BlockShift = BlockShift::KIB_64;

const WORDS: usize = 64;
const BLOCKS_PER_CHUNK: u64 = WORDS as u64 * 64;

/// A set of blocks: bits in chunks of 256 MiB of disk, which exist only where a bit is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSet {
    chunks: BTreeMap<u64, [u64; WORDS]>,
    count: u64,
}

impl BlockSet {
    /// The empty set.
    pub fn new() -> BlockSet {
        BlockSet::default()
    }

    /// The blocks that `extents` touch.
    pub fn touched(extents: &ExtentSet) -> BlockSet {
        let mut set = BlockSet::new();
        extents.iter().for_each(|(extent, ())| set.insert(extent));
        set
    }

    /// Adds one block.
    pub fn insert_block(&mut self, block: u64) {
        let words = self.chunks.entry(block / BLOCKS_PER_CHUNK).or_insert([0; WORDS]);
        let (word, bit) = position(block);
        self.count += u64::from(words[word] & bit == 0);
        words[word] |= bit;
    }

    /// Adds every block that `extent` touches.
    pub fn insert(&mut self, extent: Extent) {
        extent.blocks(BLOCK).for_each(|block| self.insert_block(block));
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &BlockSet) {
        for (chunk, theirs) in &other.chunks {
            let ours = self.chunks.entry(*chunk).or_insert([0; WORDS]);
            for (word, more) in ours.iter_mut().zip(theirs) {
                self.count += u64::from((*more & !*word).count_ones());
                *word |= more;
            }
        }
    }

    /// Whether the block is in the set.
    pub fn contains_block(&self, block: u64) -> bool {
        let (word, bit) = position(block);
        self.chunks.get(&(block / BLOCKS_PER_CHUNK)).is_some_and(|words| words[word] & bit != 0)
    }

    /// How many blocks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many bytes in whole blocks.
    pub fn bytes(&self) -> ByteLen {
        ByteLen::new(self.count << BLOCK.get())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The blocks' numbers, rising.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().flat_map(|(chunk, words)| {
            words.iter().enumerate().flat_map(move |(index, word)| {
                let first = chunk * BLOCKS_PER_CHUNK + index as u64 * 64;
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
            })
        })
    }

    /// Runs of neighbouring blocks, as first block and count.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut blocks = self.blocks().peekable();
        std::iter::from_fn(move || {
            let first = blocks.next()?;
            let mut count = 1;
            while blocks.next_if_eq(&(first + count)).is_some() {
                count += 1;
            }
            Some((first, count))
        })
    }

    /// The bytes of the blocks on a disk of `len` bytes; the last block of a disk may be short.
    pub fn extents(&self, len: ByteLen) -> ExtentSet {
        self.runs().filter_map(|(first, count)| block_range(first, count, len)).collect()
    }
}

/// The bytes of `count` blocks from `first` on, as far as they lie on a disk of `len` bytes.
pub(crate) fn block_range(first: u64, count: u64, len: ByteLen) -> Option<Extent> {
    let end = first.checked_add(count)?.checked_mul(BLOCK.bytes())?;
    Extent::between(ByteOffset::new(first << BLOCK.get()), ByteOffset::new(end).min(len.end()))
}

/// `extents` rounded out to whole blocks of a disk of `len` bytes.
pub(crate) fn whole_blocks(extents: &ExtentSet, len: ByteLen) -> ExtentSet {
    let Some(disk) = Extent::whole(len) else { return ExtentSet::new() };
    extents.iter().filter_map(|(extent, ())| extent.align_out(BLOCK).intersect(disk)).collect()
}

fn position(block: u64) -> (usize, u64) {
    let within = block % BLOCKS_PER_CHUNK;
    ((within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_naive_set(runs in prop::collection::vec((0_u64..20_000, 1_u64..200), 0..30)) {
            let (mut set, mut halves, mut model) = (BlockSet::new(), [BlockSet::new(), BlockSet::new()], BTreeSet::new());
            for (index, (first, count)) in runs.iter().enumerate() {
                let start = ByteOffset::new((first << BLOCK.get()) + 512);
                let extent = Extent::new(start, ByteLen::new((count << BLOCK.get()) - 512)).unwrap();
                set.insert(extent);
                halves[index % 2].insert(extent);
                model.extend(*first..first + count);
            }
            let [mut union, other] = halves;
            union.union(&other);
            prop_assert_eq!(&union, &set);
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.blocks().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let from_runs: Vec<u64> = set.runs().flat_map(|(first, count)| first..first + count).collect();
            prop_assert_eq!(from_runs, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_block_ends_with_the_disk() {
        let mut set = BlockSet::new();
        set.insert_block(1);
        let extents = set.extents(ByteLen::new(BLOCK.bytes() + 512));
        assert_eq!(extents.covered(), ByteLen::new(512));
        set.insert_block(9);
        assert_eq!(set.extents(ByteLen::new(BLOCK.bytes() + 512)).covered(), ByteLen::new(512));
    }
}
