//! The blocks of indexes that were looked at lately, of all units together, in bounded memory.

use super::entry::{BLOCK_BYTES, Block};
use blocks::{ByteLen, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A cached block's name: which file, which block of it.
pub(crate) type BlockKey = (u64, u64);

/// A clock: a block that was used since the hand last came by is spared once.
#[derive(Debug)]
pub(crate) struct BlockCache {
    state: Mutex<Clock>,
    blocks_max: usize,
}

#[derive(Debug, Default)]
struct Clock {
    slots: Vec<Slot>,
    places: HashMap<BlockKey, usize>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    key: BlockKey,
    block: Arc<Block>,
    used: bool,
}

impl BlockCache {
    /// Holds at most `len` bytes of blocks, at least one block.
    pub(crate) fn new(len: ByteLen) -> BlockCache {
        let blocks_max = (len.as_usize() / BLOCK_BYTES).max(1);
        BlockCache { state: Mutex::default(), blocks_max }
    }

    /// The block of that name, read by `load` where it is not here. Not locked while it loads.
    pub(crate) fn get(&self, key: BlockKey, load: impl FnOnce() -> Result<Block>) -> Result<Arc<Block>> {
        if let Some(block) = self.lock().find(key) {
            return Ok(block);
        }
        let block = Arc::new(load()?);
        self.lock().keep(key, &block, self.blocks_max);
        Ok(block)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn find(&mut self, key: BlockKey) -> Option<Arc<Block>> {
        let slot = self.slots.get_mut(*self.places.get(&key)?)?;
        slot.used = true;
        Some(Arc::clone(&slot.block))
    }

    fn keep(&mut self, key: BlockKey, block: &Arc<Block>, blocks_max: usize) {
        if self.places.contains_key(&key) {
            return;
        }
        let slot = Slot { key, block: Arc::clone(block), used: false };
        if self.slots.len() < blocks_max {
            self.places.insert(key, self.slots.len());
            self.slots.push(slot);
            return;
        }
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % blocks_max;
        }
        self.places.remove(&self.slots[self.hand].key);
        self.places.insert(key, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % blocks_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::entry::encode_entries;

    #[test]
    fn stays_within_its_bound_and_spares_what_is_used() {
        let cache = BlockCache::new(ByteLen::new(4 * BLOCK_BYTES as u64));
        let load = |number| move || Block::check_entries(encode_entries(number, &[]), number, "test");
        for number in 0..20 {
            cache.get((1, 0), load(0)).unwrap();
            cache.get((1, number), load(number)).unwrap();
        }
        assert_eq!(cache.lock().slots.len(), 4);
        let never = || -> Result<Block> { panic!("the block in use is no longer cached") };
        cache.get((1, 0), never).unwrap();
    }
}
