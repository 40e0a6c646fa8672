//! Delta files out of any bytes, for the fuzz targets.

use super::reader::DeltaFile;
use super::record::{DeltaHeader, reseal};
use super::writer::DeltaWriter;
use super::{Prefer, apply_delta, merge_deltas};
use crate::fuzzing::{INPUT_BYTES_MAX, file_of, refused};
use crate::image::ReplayContent;
use crate::testing::CrashStorage;
use blocks::{
    ByteLen, ByteOffset, CheckpointId, DiskIndex, Extent, Id, MachineId, MemoryVolume, OpenMode, Storage,
    StoreId, WallClock,
};

/// A disk of this size or less is filled in memory.
const APPLIED_LEN_MAX: ByteLen = ByteLen::new(1 << 20);

/// A delta file: opening it, merging it with itself, applying it.
pub fn delta(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    read(bytes);
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    read(&sealed);
}

fn read(bytes: &[u8]) {
    let (storage, file) = file_of(bytes);
    let Some(delta) = refused(DeltaFile::open(file.clone())) else { return };
    let (header, covered) = (delta.header().clone(), delta.covered());
    assert!(covered <= header.len, "what it covers is on the disk");
    if header.len <= APPLIED_LEN_MAX {
        let disk = MemoryVolume::new(header.len);
        refused(apply_delta(&delta, &disk, &|done, whole| {
            assert!(done <= whole, "no more is done than there is");
            true
        }));
    }
    let again = DeltaFile::open(file).expect("it was opened a moment ago");
    let output = storage.open("merged", OpenMode::CreateNew).expect("a storage in memory without faults");
    if refused(merge_deltas(&[delta, again], output.clone(), Prefer::Neither)).is_some() {
        let merged = DeltaFile::open(output).expect("it reads what it writes");
        assert_eq!(
            (merged.covered(), merged.header()),
            (covered, &header),
            "merged with itself it says the same"
        );
    }
}

/// A file with a record of each kind.
pub fn deltas() -> Vec<Vec<u8>> {
    let storage = CrashStorage::new();
    let file = storage.open("made", OpenMode::CreateNew).expect("an empty storage in memory");
    let id = |byte| Id::from_bytes([byte; 16]).expect("not all zero");
    let header = DeltaHeader {
        store: StoreId(id(7)),
        machine: MachineId(id(9)),
        disk: DiskIndex(0),
        len: ByteLen::new(256 << 10),
        from: CheckpointId(3),
        to: CheckpointId(4),
        time: WallClock(1_800_000_000_000),
    };
    let mut writer = DeltaWriter::new(file.clone(), header).expect("a storage in memory without faults");
    let contents = [ReplayContent::Data(vec![5; 8192]), ReplayContent::Zero, ReplayContent::Discard];
    for (number, content) in contents.into_iter().enumerate() {
        let start = ByteOffset::new(number as u64 * (16 << 10));
        let extent = Extent::new(start, ByteLen::new(8192)).expect("not empty");
        writer.push(extent, &content).expect("in order, and on the disk");
    }
    let (len, _) = writer.finish().expect("a storage in memory without faults");
    let mut bytes = vec![0; len.as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes).expect("it has that many bytes");
    vec![bytes]
}
