//! Which blocks differ: an agent's hashes against what the stand-in holds.

use blocks::{
    Allocation, BlockShift, ByteLen, Error, ErrorKind, Extent, ExtentSet, RequestClass, Result, Volume,
};
use std::sync::OnceLock;
use wire::{BlockHash, HashReport};

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Bytes that are the same.
    pub equal: ByteLen,
    /// Bytes that were not compared.
    pub skipped: ByteLen,
    /// What differs, neighbours joined.
    pub differing: Vec<Extent>,
}

/// Compares block by block, without blocks that touch `skip` or have no hash. Only 64 KiB blocks, and only whole ranges
/// of the disk. A block that the stand-in cannot read because it is rotten counts as differing, and is reported in the
/// log: what is sent for it mends it.
pub(crate) fn compare(volume: &dyn Volume, report: &HashReport, skip: &ExtentSet) -> Result<Compared> {
    check(volume, report)?;
    let zero = known_zero(volume, report.range)?;
    let mut compared = Compared::default();
    let mut differing = ExtentSet::new();
    let mut buffer = vec![0; BlockShift::KIB_64.len().as_usize()];
    for (block, hash) in report.range.split(BlockShift::KIB_64.len()).zip(&report.hashes) {
        let Some(theirs) = hash.filter(|_| !skip.overlaps(block)) else {
            compared.skipped += block.len();
            continue;
        };
        let ours = if zero.contains(block) {
            Some(zero_hash(block.len()))
        } else {
            hash_block(volume, block, &mut buffer)?
        };
        if ours == Some(theirs) {
            compared.equal += block.len();
        } else {
            differing.insert(block, ());
        }
    }
    compared.differing = differing.iter().map(|(extent, ())| extent).collect();
    Ok(compared)
}

fn check(volume: &dyn Volume, report: &HashReport) -> Result<()> {
    let range = report.range;
    let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
    if report.block != BlockShift::KIB_64 {
        return wrong(format!(
            "hashes of blocks of {} bytes; only 65536 is understood",
            report.block.bytes()
        ));
    }
    let at_the_end = range.end() == volume.len().end();
    if !range.start().is_aligned(report.block) || !(range.end().is_aligned(report.block) || at_the_end) {
        return wrong(format!("hashes of {range}, which are no whole blocks"));
    }
    if range.end() > volume.len().end() {
        return wrong(format!("hashes of {range} of a disk of {} bytes", volume.len()));
    }
    let blocks = range.blocks(report.block);
    if u64::try_from(report.hashes.len()).ok() != Some(blocks.end - blocks.start) {
        return wrong(format!("{} hashes of {range}", report.hashes.len()));
    }
    Ok(())
}

/// What reads as zero without being read.
fn known_zero(volume: &dyn Volume, range: Extent) -> Result<ExtentSet> {
    let mut zero = ExtentSet::new();
    let mut at = range.start();
    while let Some(rest) = Extent::between(at, range.end()) {
        for run in volume.status(rest)? {
            if run.allocation != Allocation::Data {
                zero.insert(run.extent, ());
            }
            at = run.extent.end();
        }
        if at == rest.start() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("nothing is known about the allocation of {rest}"),
            ));
        }
    }
    Ok(zero)
}

fn hash_block(volume: &dyn Volume, block: Extent, buffer: &mut [u8]) -> Result<Option<BlockHash>> {
    let buffer = &mut buffer[..block.len().as_usize()];
    match volume.read_at(block.start(), buffer, RequestClass::Background) {
        Ok(()) => Ok(Some(*blake3::hash(buffer).as_bytes())),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::error!(%error, "{block} of the stand-in is damaged; it counts as differing");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn zero_hash(len: ByteLen) -> BlockHash {
    static WHOLE: OnceLock<BlockHash> = OnceLock::new();
    let hash = |len: ByteLen| *blake3::hash(&vec![0; len.as_usize()]).as_bytes();
    if len == BlockShift::KIB_64.len() { *WHOLE.get_or_init(|| hash(len)) } else { hash(len) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteOffset, DiskIndex, MemoryVolume};
    use wire::HashPurpose;

    const BLOCK: u64 = 65536;

    fn from(at: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(at), ByteLen::new(len)).unwrap()
    }

    fn report(disk: &MemoryVolume, range: Extent) -> HashReport {
        let bytes = disk.snapshot();
        let hash = |block: Extent| {
            let at = block.start().get() as usize;
            Some(*blake3::hash(&bytes[at..at + block.len().as_usize()]).as_bytes())
        };
        HashReport {
            purpose: HashPurpose::Scan,
            disk: DiskIndex(0),
            range,
            block: BlockShift::KIB_64,
            hashes: range.split(BlockShift::KIB_64.len()).map(hash).collect(),
        }
    }

    fn disk(writes: &[(u64, u8)]) -> MemoryVolume {
        let disk = MemoryVolume::new(ByteLen::new(5 * BLOCK + 512));
        for (at, byte) in writes {
            disk.write_at(ByteOffset::new(*at), &[*byte; 512], false, RequestClass::Guest).unwrap();
        }
        disk
    }

    #[test]
    fn finds_exactly_the_blocks_that_differ() {
        let ours = disk(&[(0, 1), (BLOCK, 2), (5 * BLOCK, 3)]);
        let theirs = disk(&[(0, 1), (BLOCK, 9), (2 * BLOCK + 512, 2), (5 * BLOCK, 4)]);
        let whole = from(0, 5 * BLOCK + 512);
        let compared = compare(&ours, &report(&theirs, whole), &ExtentSet::new()).unwrap();
        assert_eq!(compared.differing, [from(BLOCK, 2 * BLOCK), from(5 * BLOCK, 512)]);
        assert_eq!(compared.equal, ByteLen::new(3 * BLOCK));
        let same = compare(&ours, &report(&ours, whole), &ExtentSet::new()).unwrap();
        assert_eq!((same.equal, same.differing), (whole.len(), vec![]));
    }

    #[test]
    fn skips_what_it_is_told_and_what_has_no_hash() {
        let ours = disk(&[]);
        let theirs = disk(&[(0, 1), (BLOCK, 1), (2 * BLOCK, 1)]);
        let mut report = report(&theirs, from(0, 3 * BLOCK));
        report.hashes[2] = None;
        let skip = ExtentSet::from_iter([from(BLOCK + 512, 512)]);
        let compared = compare(&ours, &report, &skip).unwrap();
        assert_eq!(compared.differing, [from(0, BLOCK)]);
        assert_eq!(compared.skipped, ByteLen::new(2 * BLOCK));
    }

    #[test]
    fn refuses_what_is_no_report_of_this_disk() {
        let ours = disk(&[]);
        let good = report(&ours, from(0, 2 * BLOCK));
        let wrong = |change: &dyn Fn(&mut HashReport)| {
            let mut report = good.clone();
            change(&mut report);
            compare(&ours, &report, &ExtentSet::new()).unwrap_err().kind()
        };
        assert_eq!(wrong(&|report| report.block = BlockShift::KIB_4), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(512, 2 * BLOCK)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(0, 9 * BLOCK)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(0, BLOCK + 512)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.hashes.truncate(1)), ErrorKind::InvalidInput);
    }
}
