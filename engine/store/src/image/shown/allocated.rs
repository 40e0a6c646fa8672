//! Which blocks of a disk hold data, counted.

use blocks::{BlockShift, Extent, Result, Volume};

/// Blocks of one chunk: its bits fill eight lines of a processor's cache.
const CHUNK: u64 = 4096;
const WORDS: usize = 64;

/// The blocks with data. Where a stretch of 4096 blocks has data in all of them or in none, it takes 16 bytes, else 512
/// more: at 64 KiB a block at most 2 MiB for each TiB.
#[derive(Debug)]
pub(in crate::image) struct AllocatedBlocks {
    block: BlockShift,
    chunks: Vec<Chunk>,
    count: u64,
}

#[derive(Debug)]
struct Chunk {
    /// How many blocks before it hold data.
    before: u64,
    bits: Bits,
}

#[derive(Debug)]
enum Bits {
    None,
    All,
    Some(Box<[u64; WORDS]>),
}

impl AllocatedBlocks {
    /// Looks at the status of the whole disk.
    pub(in crate::image) fn of(disk: &dyn Volume, block: BlockShift) -> Result<AllocatedBlocks> {
        let mut found = AllocatedBlocks::none(disk.len().blocks(block), block);
        let end = disk.len().end();
        let mut at = blocks::ByteOffset::ZERO;
        while let Some(rest) = Extent::between(at, end) {
            for run in disk.status(rest)? {
                if !run.allocation.reads_as_zero() {
                    let blocks = run.extent.blocks(block);
                    found.mark(blocks.start, blocks.end);
                }
                at = run.extent.end();
            }
        }
        found.finish();
        Ok(found)
    }

    /// The same in larger blocks.
    pub(in crate::image) fn grouped(&self, block: BlockShift, len: blocks::ByteLen) -> AllocatedBlocks {
        let mut found = AllocatedBlocks::none(len.blocks(block), block);
        let shift = block.get() - self.block.get();
        let mut index = 0;
        while index < self.count {
            let group = self.at(index) >> shift;
            found.mark(group, group + 1);
            index = self.before((group + 1) << shift);
        }
        found.finish();
        found
    }

    fn none(blocks: u64, block: BlockShift) -> AllocatedBlocks {
        let chunks = (0..blocks.div_ceil(CHUNK)).map(|_| Chunk { before: 0, bits: Bits::None });
        AllocatedBlocks { block, chunks: chunks.collect(), count: 0 }
    }

    fn mark(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let (chunk, first) = (at / CHUNK, at % CHUNK);
            let last = (end - chunk * CHUNK).min(CHUNK);
            let bits = &mut self.chunks[chunk as usize].bits;
            match bits {
                Bits::All => {}
                bits if first == 0 && last == CHUNK => *bits = Bits::All,
                Bits::None => {
                    let mut words = Box::new([0; WORDS]);
                    set(&mut words, first, last);
                    *bits = Bits::Some(words);
                }
                Bits::Some(words) => set(words, first, last),
            }
            at = chunk * CHUNK + last;
        }
    }

    fn finish(&mut self) {
        let mut before = 0;
        for chunk in &mut self.chunks {
            chunk.before = before;
            before += match &chunk.bits {
                Bits::None => 0,
                Bits::All => CHUNK,
                Bits::Some(words) => words.iter().map(|word| u64::from(word.count_ones())).sum(),
            };
            if before - chunk.before == CHUNK {
                chunk.bits = Bits::All;
            }
        }
        self.count = before;
    }

    /// How large blocks are.
    pub(in crate::image) fn block(&self) -> BlockShift {
        self.block
    }

    /// How many blocks hold data.
    pub(in crate::image) fn count(&self) -> u64 {
        self.count
    }

    /// How many blocks with data come before this one, where it holds data itself.
    pub(in crate::image) fn index_of(&self, block: u64) -> Option<u64> {
        let chunk = self.chunks.get((block / CHUNK) as usize)?;
        let (word, bit) = ((block % CHUNK / 64) as usize, block % 64);
        let holds = match &chunk.bits {
            Bits::None => false,
            Bits::All => true,
            Bits::Some(words) => words[word] >> bit & 1 == 1,
        };
        holds.then(|| self.before(block))
    }

    /// How many blocks with data come before this one.
    fn before(&self, block: u64) -> u64 {
        let Some(chunk) = self.chunks.get((block / CHUNK) as usize) else { return self.count };
        let inside = block % CHUNK;
        chunk.before
            + match &chunk.bits {
                Bits::None => 0,
                Bits::All => inside,
                Bits::Some(words) => {
                    let (word, bit) = ((inside / 64) as usize, inside % 64);
                    let whole: u64 = words[..word].iter().map(|word| u64::from(word.count_ones())).sum();
                    whole + u64::from((words[word] & ((1 << bit) - 1)).count_ones())
                }
            }
    }

    /// The block with data that has so many before it; the caller knows that there are more.
    pub(in crate::image) fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.count, "block {index} of {}", self.count);
        let chunk = self.chunks.partition_point(|chunk| chunk.before <= index) - 1;
        let (start, mut left) = (chunk as u64 * CHUNK, index - self.chunks[chunk].before);
        let Bits::Some(words) = &self.chunks[chunk].bits else { return start + left };
        for (number, word) in (0..).zip(words.iter()) {
            let ones = u64::from(word.count_ones());
            if left < ones {
                let rest = (0..left).fold(*word, |word, _| word & (word - 1));
                return start + number * 64 + u64::from(rest.trailing_zeros());
            }
            left -= ones;
        }
        unreachable!("the chunk counts more blocks than it has")
    }
}

/// Sets the bits from `first` up to `last`.
fn set(words: &mut [u64; WORDS], first: u64, last: u64) {
    let mut at = first;
    while at < last {
        let count = (64 - at % 64).min(last - at);
        words[(at / 64) as usize] |= (u64::MAX >> (64 - count)) << (at % 64);
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteLen, ByteOffset, MemoryVolume, RequestClass};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_counted_as_a_list_of_them_says(runs in prop::collection::vec((0..20_000_u64, 1..6000_u64), 0..12)) {
            let disk = MemoryVolume::new(ByteLen::new(20_000 * 512));
            let mut model = vec![false; 20_000];
            for (start, len) in runs {
                let end = (start + len).min(20_000);
                let bytes = vec![1; ((end - start) * 512) as usize];
                disk.write_at(ByteOffset::new(start * 512), &bytes, false, RequestClass::Guest).unwrap();
                model[start as usize..end as usize].fill(true);
            }
            for shift in [9, 11] {
                let found = AllocatedBlocks::of(&disk, BlockShift::new(shift).unwrap()).unwrap();
                let span = 1 << (shift - 9);
                let wanted: Vec<u64> = (0..20_000 / span)
                    .filter(|block| model[(block * span) as usize..((block + 1) * span) as usize].contains(&true))
                    .collect();
                prop_assert_eq!(found.count(), wanted.len() as u64);
                for (index, block) in (0..).zip(&wanted) {
                    prop_assert_eq!(found.at(index), *block);
                    prop_assert_eq!(found.index_of(*block), Some(index));
                }
                let empty = (0..20_000 / span + 9000).filter(|block| found.index_of(*block).is_some());
                prop_assert_eq!(empty.count(), wanted.len());
                let large = found.grouped(BlockShift::new(16).unwrap(), disk.len());
                let direct = AllocatedBlocks::of(&disk, BlockShift::new(16).unwrap()).unwrap();
                prop_assert_eq!((0..160).map(|block| large.index_of(block)).collect::<Vec<_>>(),
                    (0..160).map(|block| direct.index_of(block)).collect::<Vec<_>>());
            }
        }
    }
}
