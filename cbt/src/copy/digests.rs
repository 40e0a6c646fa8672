//! Hashing a disk in blocks.

use blocks::{BlockShift, ByteLen, Extent, Result};
use wire::BlockHash;

/// The unit of hashing.
pub(crate) const HASH_BLOCK: BlockShift = BlockShift::KIB_64;

/// What each block of a disk last held, as far as a scan knows: 16 bytes of BLAKE3 for each 64 KiB.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    known: Vec<[u8; 16]>,
}

/// The most memory that the digests of one disk may take: 192 GiB of disk.
const DIGESTS_BYTES_MAX: u64 = 48 << 20;

impl Digests {
    /// Nothing known of a disk of that size; `None` where that is too large to be remembered.
    pub fn new(len: ByteLen) -> Option<Digests> {
        let blocks = len.blocks(HASH_BLOCK);
        if blocks * 16 > DIGESTS_BYTES_MAX {
            return None;
        }
        Some(Digests { known: vec![[0; 16]; usize::try_from(blocks).ok()?] })
    }

    /// Whether the block is known to have that hash.
    pub fn is(&self, block: u64, hash: &BlockHash) -> bool {
        let known = usize::try_from(block).ok().and_then(|block| self.known.get(block));
        known.is_some_and(|known| known[..] == hash[..16])
    }

    /// Notes a block's hash; whether it differs from what was known.
    pub fn note(&mut self, block: u64, hash: &BlockHash) -> bool {
        let short: [u8; 16] = hash[..16].try_into().expect("16 of 32 bytes");
        match usize::try_from(block).ok().and_then(|block| self.known.get_mut(block)) {
            Some(known) => std::mem::replace(known, short) != short,
            None => true,
        }
    }
}

/// The hashes of the blocks in `bytes`, which start at a multiple of the block size; the last may be short.
pub(crate) fn hash_blocks(bytes: &[u8]) -> Vec<BlockHash> {
    let block = HASH_BLOCK.len().as_usize();
    bytes.chunks(block).map(|block| blake3::hash(block).into()).collect()
}

/// The whole blocks of a disk of that length that cover `extent`, cut at the disk's end.
pub(crate) fn covering(extent: Extent, len: ByteLen) -> Result<Extent> {
    let wide = extent.align_out(HASH_BLOCK);
    let whole = Extent::whole(len).and_then(|whole| wide.intersect(whole));
    whole.ok_or_else(|| {
        let context = format!("{extent} lies past the disk's {len} bytes");
        blocks::Error::new(blocks::ErrorKind::OutOfRange, context)
    })
}
