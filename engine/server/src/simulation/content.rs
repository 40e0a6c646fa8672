//! What a disk holds, said as simply as possible: which write each sector is from.

use super::failure::{Failure, Outcome};
use blocks::{ByteLen, ByteOffset, Extent, RequestClass, Volume};

pub(super) const SECTOR: usize = 512;

/// The number of the write that a sector is from; 0 is zeroes.
pub(super) type Version = u32;

/// One version a sector.
pub(super) type Content = Vec<Version>;

/// The bytes of sectors from `first` on. Each says of which disk and sector it is, and from which write.
pub(super) fn encode(disk: u16, first: usize, versions: &[Version]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(versions.len() * SECTOR);
    for (sector, version) in (first..).zip(versions) {
        let word = word(disk, sector, *version).to_le_bytes();
        (0..SECTOR / 8).for_each(|_| bytes.extend_from_slice(&word));
    }
    bytes
}

fn word(disk: u16, sector: usize, version: Version) -> u64 {
    match version {
        0 => 0,
        version => u64::from(disk + 1) << 48 | (sector as u64) << 32 | u64::from(version),
    }
}

/// The versions in bytes that are said to be from `first` on. A failure where a sector is of no write to that place.
pub(super) fn decode(disk: u16, first: usize, bytes: &[u8]) -> Outcome<Content> {
    let mut versions = Vec::with_capacity(bytes.len() / SECTOR);
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR)) {
        let mut words =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(std::array::from_fn(|at| word[at])));
        let found = words.next().unwrap_or(0);
        let version = (found & u64::from(u32::MAX)) as Version;
        if found != word(disk, sector, version) || words.any(|word| word != found) {
            return Err(Failure::new(format!("sector {sector} holds what nobody wrote: {found:#x}")));
        }
        versions.push(version);
    }
    Ok(versions)
}

/// What a whole volume holds. `Ok(Err)`: it cannot be read.
pub(super) fn read(volume: &dyn Volume, disk: u16) -> Outcome<blocks::Result<Content>> {
    let mut bytes = vec![0; volume.len().as_usize()];
    match volume.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest) {
        Ok(()) => decode(disk, 0, &bytes).map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

/// A failure that names the first sector in which the two differ.
pub(super) fn compare(found: &Content, expected: &Content, what: &str) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let differing = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
    let first = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let sector = first.unwrap_or(0);
    let context = format!(
        "{what}: {differing} sectors differ, the first is {sector}: version {:?} where {:?} must be",
        found.get(sector),
        expected.get(sector)
    );
    Err(Failure::new(context))
}

/// An extent of sectors.
pub(super) fn extent(first: usize, count: usize) -> Outcome<Extent> {
    let start = ByteOffset::new((first * SECTOR) as u64);
    Extent::new(start, ByteLen::new((count * SECTOR) as u64)).map_err(|error| Failure::new(error.to_string()))
}

/// The sectors of an extent.
pub(super) fn sectors(extent: Extent) -> std::ops::Range<usize> {
    extent.start().as_usize_sectors()..extent.end().as_usize_sectors()
}

trait Sectors {
    fn as_usize_sectors(&self) -> usize;
}

impl Sectors for ByteOffset {
    fn as_usize_sectors(&self) -> usize {
        ByteLen::new(self.get()).as_usize() / SECTOR
    }
}
