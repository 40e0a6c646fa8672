//! A disk of any size that costs what was written to it.

use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Extent, ExtentMap, ExtentStatus, Piece, RequestClass,
    Result, Volume, check_request,
};
use std::collections::BTreeMap;
use std::sync::Mutex;

const BLOCK: BlockShift = BlockShift::KIB_64;

pub struct SparseVolume {
    len: ByteLen,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
    fast: bool,
}

impl SparseVolume {
    /// An empty disk; `fast` says whether it calls its zeroing fast.
    pub fn new(len: u64, fast: bool) -> SparseVolume {
        SparseVolume { len: ByteLen::new(len), blocks: Mutex::default(), fast }
    }

    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        check_request(self.len, BlockShift::SECTOR, offset, len)
    }
}

impl Volume for SparseVolume {
    fn len(&self) -> ByteLen {
        self.len
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        let Some(extent) = self.check(offset, ByteLen::of(buffer))? else { return Ok(()) };
        let blocks = self.blocks.lock().unwrap();
        for part in extent.split(BLOCK.len()) {
            let start = (part.start() - offset).as_usize();
            for block in part.blocks(BLOCK) {
                let inside =
                    part.intersect(Extent::new(BLOCK.start_of(block), BLOCK.len()).unwrap()).unwrap();
                let at = start + (inside.start() - part.start()).as_usize();
                let out = &mut buffer[at..at + inside.len().as_usize()];
                let from = (inside.start() - BLOCK.start_of(block)).as_usize();
                match blocks.get(&block) {
                    Some(bytes) => out.copy_from_slice(&bytes[from..from + out.len()]),
                    None => out.fill(0),
                }
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], _: bool, _: RequestClass) -> Result<()> {
        let Some(extent) = self.check(offset, ByteLen::of(data))? else { return Ok(()) };
        let mut blocks = self.blocks.lock().unwrap();
        for block in extent.blocks(BLOCK) {
            let inside = extent.intersect(Extent::new(BLOCK.start_of(block), BLOCK.len()).unwrap()).unwrap();
            let from = (inside.start() - offset).as_usize();
            let to = (inside.start() - BLOCK.start_of(block)).as_usize();
            let len = inside.len().as_usize();
            let bytes = blocks.entry(block).or_insert_with(|| vec![0; BLOCK.len().as_usize()]);
            bytes[to..to + len].copy_from_slice(&data[from..from + len]);
        }
        Ok(())
    }
    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, class: RequestClass) -> Result<()> {
        self.check(extent.start(), extent.len())?;
        let (first, last) = (extent.start().align_up(BLOCK), extent.end().align_down(BLOCK));
        let Some(whole) = Extent::between(first, last) else {
            return self.write_at(extent.start(), &vec![0; extent.len().as_usize()], fua, class);
        };
        let range = whole.blocks(BLOCK);
        self.blocks.lock().unwrap().retain(|block, _| !range.contains(block));
        let edges = [Extent::between(extent.start(), first), Extent::between(last, extent.end())];
        for edge in edges.into_iter().flatten() {
            self.write_at(edge.start(), &vec![0; edge.len().as_usize()], fua, class)?;
        }
        Ok(())
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        let held: ExtentMap<()> = self
            .blocks
            .lock()
            .unwrap()
            .keys()
            .filter_map(|block| Extent::new(BLOCK.start_of(*block), BLOCK.len()).ok())
            .collect();
        let run = |piece| match piece {
            Piece::Data(extent, ()) => ExtentStatus { extent, allocation: Allocation::Data },
            Piece::Hole(extent) => ExtentStatus { extent, allocation: Allocation::Hole },
        };
        Ok(held.lookup(extent).map(run).collect())
    }
    fn zeroes_fast(&self, _: bool) -> bool {
        self.fast
    }
}
