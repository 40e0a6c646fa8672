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
    /// Hashes that were computed of the stand-in's blocks, which are counted in 64 KiB.
    pub computed: Vec<(u64, BlockHash)>,
}

/// Compares block by block, without blocks that touch `skip` or have no hash. Only 64 KiB blocks, and only whole ranges
/// of the disk. A block that the stand-in cannot read because it is rotten counts as differing, and is reported in the
/// log: what is sent for it mends it.
///
/// `known` has the hashes of blocks in this very state: such blocks are not read.
pub(crate) fn compare(
    volume: &dyn Volume,
    report: &HashReport,
    skip: &ExtentSet,
    known: &dyn Fn(u64) -> Option<BlockHash>,
) -> Result<Compared> {
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
        let number = BlockShift::KIB_64.block_of(block.start());
        let ours = if zero.contains(block) {
            Some(zero_hash(block.len()))
        } else if let Some(kept) = known(number) {
            Some(kept)
        } else {
            let computed = hash_block(volume, block, &mut buffer)?;
            compared.computed.extend(computed.map(|hash| (number, hash)));
            computed
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
        let compared = compare(&ours, &report(&theirs, whole), &ExtentSet::new(), &|_| None).unwrap();
        assert_eq!(compared.differing, [from(BLOCK, 2 * BLOCK), from(5 * BLOCK, 512)]);
        assert_eq!(compared.equal, ByteLen::new(3 * BLOCK));
        let same = compare(&ours, &report(&ours, whole), &ExtentSet::new(), &|_| None).unwrap();
        assert_eq!((same.equal, same.differing), (whole.len(), vec![]));
    }

    #[test]
    fn skips_what_it_is_told_and_what_has_no_hash() {
        let ours = disk(&[]);
        let theirs = disk(&[(0, 1), (BLOCK, 1), (2 * BLOCK, 1)]);
        let mut report = report(&theirs, from(0, 3 * BLOCK));
        report.hashes[2] = None;
        let skip = ExtentSet::from_iter([from(BLOCK + 512, 512)]);
        let compared = compare(&ours, &report, &skip, &|_| None).unwrap();
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
            compare(&ours, &report, &ExtentSet::new(), &|_| None).unwrap_err().kind()
        };
        assert_eq!(wrong(&|report| report.block = BlockShift::KIB_4), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(512, 2 * BLOCK)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(0, 9 * BLOCK)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.range = from(0, BLOCK + 512)), ErrorKind::InvalidInput);
        assert_eq!(wrong(&|report| report.hashes.truncate(1)), ErrorKind::InvalidInput);
    }

    /// A volume that counts what is read of it.
    struct Counted<'a>(&'a dyn Volume, std::sync::atomic::AtomicU64);

    impl Volume for Counted<'_> {
        fn len(&self) -> ByteLen {
            self.0.len()
        }
        fn is_read_only(&self) -> bool {
            self.0.is_read_only()
        }
        fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
            self.1.fetch_add(buffer.len() as u64, std::sync::atomic::Ordering::Relaxed);
            self.0.read_at(offset, buffer, class)
        }
        fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
            self.0.write_at(offset, data, fua, class)
        }
        fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, class: RequestClass) -> Result<()> {
            self.0.write_zeroes(extent, keep, fua, class)
        }
        fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
            self.0.discard(extent, fua, class)
        }
        fn flush(&self) -> Result<()> {
            self.0.flush()
        }
        fn status(&self, extent: Extent) -> Result<Vec<blocks::ExtentStatus>> {
            self.0.status(extent)
        }
    }

    /// A verification of a disk that did not change since the last one reads none of its data, and of one that did only
    /// the blocks that changed.
    #[test]
    fn what_is_known_is_not_read_again() {
        use store::*;
        let options = StoreOptions { reserve: ByteLen::ZERO, ..StoreOptions::default() };
        let store = Store::open(std::sync::Arc::new(testing::CrashStorage::new()), options).unwrap();
        let len = ByteLen::new(5 * BLOCK + 512);
        let unit = store
            .create_unit(UnitSpec {
                machine: blocks::MachineId(blocks::Id::from_bytes([1; 16]).unwrap()),
                name: "box".into(),
                definition: Vec::new(),
                disks: vec![DiskSpec { len, serial: String::new(), device: "/dev/sda".into() }],
                image_format: ImageFormat::Raw,
            })
            .unwrap();
        let theirs = MemoryVolume::new(len);
        let head = unit.disk(unit.main_branch(), DiskIndex(0)).unwrap();
        let write = |at: u64, byte: u8| {
            let at = ByteOffset::new(at);
            theirs.write_at(at, &[byte; 512], false, RequestClass::Guest).unwrap();
            head.write_at(at, &[byte; 512], false, RequestClass::Background).unwrap();
        };
        [0, BLOCK, 3 * BLOCK, 5 * BLOCK].into_iter().for_each(|at| write(at, 7));
        let verify = || {
            let sealed = unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap();
            let view = unit.view(sealed.into_inner(), DiskIndex(0)).unwrap();
            let hashes = unit.block_hashes(unit.checkpoints().last().unwrap().id, DiskIndex(0)).unwrap();
            let counted = Counted(&view, 0.into());
            let whole = from(0, len.get());
            let compared =
                compare(&counted, &report(&theirs, whole), &ExtentSet::new(), &|block| hashes.get(block))
                    .unwrap();
            assert_eq!((compared.equal, compared.differing), (len, vec![]));
            compared.computed.iter().for_each(|(block, hash)| hashes.put(*block, hash));
            counted.1.into_inner()
        };
        assert_eq!(verify(), 3 * BLOCK + 512, "the first reads what is not zero");
        assert_eq!(verify(), 0, "nothing changed: nothing is read");
        write(BLOCK + 1024, 9);
        assert_eq!(verify(), BLOCK, "one block changed");
        assert_eq!(verify(), 0);
        // A difference is found by kept hashes too.
        theirs.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();
        let newest = unit.checkpoints().last().unwrap().id;
        let (view, hashes) =
            (unit.view(newest, DiskIndex(0)).unwrap(), unit.block_hashes(newest, DiskIndex(0)).unwrap());
        let compared = compare(&view, &report(&theirs, from(0, len.get())), &ExtentSet::new(), &|block| {
            hashes.get(block)
        })
        .unwrap();
        assert_eq!(compared.differing, [from(0, BLOCK)]);
    }
}
