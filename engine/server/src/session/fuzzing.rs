//! What a session has on the medium, read from bytes from anywhere.

use super::dirty_map::{DirtyMap, reseal};
use super::record::SessionRecord;
use blocks::{ByteLen, ByteOffset, ErrorKind, OpenMode, Storage};
use store::testing::CrashStorage;

/// A map says which blocks it has memory for: a larger disk only takes longer.
const DISK_BYTES_MAX: ByteLen = ByteLen::new(64 << 30);

pub(crate) fn dirty_map(bytes: &[u8]) {
    open_map(bytes);
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    open_map(&sealed);
}

fn open_map(bytes: &[u8]) {
    let storage = CrashStorage::new();
    let file = storage.open("map", OpenMode::CreateNew).expect("an empty storage in memory");
    if !bytes.is_empty() {
        file.write_at(ByteOffset::ZERO, bytes).expect("a storage in memory without faults");
    }
    let Some(owner) = DirtyMap::owner_of(bytes).filter(|owner| owner.len <= DISK_BYTES_MAX) else { return };
    match DirtyMap::open(&storage, "map", owner) {
        Ok(map) => {
            let again = DirtyMap::open(&storage, "map", owner).expect("what opening has left is whole");
            assert_eq!(again.blocks(), map.blocks(), "opening twice gives the same");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}"),
    }
}

pub(crate) fn session_record(bytes: &[u8]) {
    match SessionRecord::decode(bytes, || "a session".to_owned()) {
        Ok(record) => {
            let again = record.encode().and_then(|bytes| SessionRecord::decode(&bytes, String::new));
            assert_eq!(again.expect("it reads what it writes"), record);
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
        }
    }
}
