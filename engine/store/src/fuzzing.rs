//! The store's decoders as functions of bytes from anywhere, for the fuzz targets (tests/support/decoders.rs).
//!
//! Checksums keep mutated bytes from everything behind them. So each target judges the bytes as they are, and once more
//! with the checksums put right, as if somebody had written them so. A target panics where a promise is broken: a decoder
//! refuses with an error, or gives something that the rest of the store can rely on.

use crate::index::block_cache::BlockCache;
use crate::index::entry::BLOCK_BYTES;
use crate::index::reader::IndexReader;
use crate::journal::record::{HEADER_BYTES, LogIdentity, reseal_header};
use crate::journal::recovery::recover;
use crate::store::decode_marker;
use crate::stored_file::FileTable;
use crate::testing::CrashStorage;
use crate::unit::branch::{BranchKind, DeltaId};
use crate::unit::manifest_codec;
use crate::{ImageFormat, ImageKind, check_image, create_image, export_volume, open_image, with_sums};
use blocks::{
    ByteLen, ByteOffset, ErrorKind, Extent, OpenMode, RequestClass, Result, SessionId, Storage, StorageFile,
    Volume,
};
use std::sync::Arc;

pub use crate::delta_file::fuzzing::{delta, deltas};

/// The most that a target looks at: longer inputs find nothing more.
pub(crate) const INPUT_BYTES_MAX: usize = 1 << 20;
/// How many extents or blocks a target asks about.
const QUESTIONS_MAX: u64 = 64;

pub(crate) fn file_of(bytes: &[u8]) -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    let file = storage.open("input", OpenMode::CreateNew).expect("an empty storage in memory");
    if !bytes.is_empty() {
        file.write_at(ByteOffset::ZERO, bytes).expect("a storage in memory without faults");
    }
    (storage, file)
}

pub(crate) fn refused<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let expected = matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::OutOfRange
            );
            assert!(expected, "a decoder's error says what is wrong with the bytes: {error:?}");
            None
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Puts the CRC32C of all before it into the last four bytes.
fn reseal(bytes: &mut [u8]) {
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = blocks::crc32c(body).to_le_bytes();
    }
}

/// A log of a delta that was open: recovery.
pub fn log(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    let identity = LogIdentity { salt: u64_at(bytes, 8), delta: DeltaId(u64_at(bytes, 16)) };
    recover_log(bytes, identity);
    for payloads_too in [false, true] {
        let mut sealed = bytes.to_vec();
        for at in (0..sealed.len()).step_by(HEADER_BYTES) {
            reseal_header(&mut sealed, at, identity, payloads_too);
        }
        recover_log(&sealed, identity);
    }
}

fn recover_log(bytes: &[u8], identity: LogIdentity) {
    let (_storage, file) = file_of(bytes);
    let Some(log) = refused(recover(&*file, identity)) else { return };
    assert_eq!(log.len + log.torn, ByteLen::of(bytes).end(), "what is kept and what is cut is everything");
    assert!(log.synced_to <= log.len, "nothing is cut that was on the medium");
    // The same again after the tail was cut, or a second crash would lose what the first one left.
    file.set_len(log.len - ByteOffset::ZERO).expect("a storage in memory without faults");
    let again = recover(&*file, identity).expect("what recovery has left is whole");
    assert_eq!((again.len, again.last_seq, again.torn), (log.len, log.last_seq, ByteLen::ZERO));
    assert!(again.map == log.map, "recovering twice gives the same");
}

/// A compressed payload of 4 KiB.
pub fn packed(bytes: &[u8]) {
    let mut payload = vec![0; 4096];
    let _ = crate::journal::pack::unpack(bytes, &mut payload);
    if let Some(stored) = crate::journal::pack::pack(bytes) {
        let mut again = vec![0; bytes.len()];
        crate::journal::pack::unpack(&stored, &mut again).expect("it reads what it writes");
        assert!(again == bytes, "it reads what it writes");
    }
}

/// An index file: opening, looking up, reading it through.
pub fn index(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    read_index(bytes);
    let mut sealed = bytes.to_vec();
    for block in sealed.chunks_exact_mut(BLOCK_BYTES) {
        reseal(block);
    }
    read_index(&sealed);
}

fn read_index(bytes: &[u8]) {
    let (storage, _file) = file_of(bytes);
    let table = FileTable::new(Arc::new(storage));
    let deltas = (DeltaId(u64_at(bytes, 16)), DeltaId(u64_at(bytes, 24)));
    let cache = Arc::new(BlockCache::new(ByteLen::new(64 << 10)));
    let opened = IndexReader::open(table.file("input".to_owned()), u64_at(bytes, 8), deltas, cache);
    let Some(reader) = refused(opened).map(Arc::new) else { return };
    let mut cursor = reader.cursor();
    let mut after = ByteOffset::ZERO;
    let mut asked = 0;
    while let Some(Some(entry)) = refused(cursor.next()) {
        assert!(after <= entry.extent.start(), "entries are in order and disjoint");
        after = entry.extent.end();
        asked += 1;
        if asked <= QUESTIONS_MAX {
            let mut found = Vec::new();
            let looked = refused(reader.lookup(entry.extent, |entry| found.push(entry)));
            assert!(looked.is_none() || found == [entry], "what is in the index is found in it: {entry:?}");
        }
    }
    for at in [0, 512, 1 << 20, u64_at(bytes, BLOCK_BYTES + 12) & !511, !511] {
        if let Ok(range) = Extent::new(ByteOffset::new(at), ByteLen::new(512)) {
            let _ = refused(reader.lookup(range, |entry| assert!(entry.extent.len().get() <= 512)));
        }
    }
}

/// A file of hashes of blocks.
pub fn hashes(bytes: &[u8]) {
    let mut sealed = bytes[..bytes.len().min(INPUT_BYTES_MAX)].to_vec();
    for _ in 0..2 {
        let (storage, _file) = file_of(&sealed);
        let _ = refused(crate::identity::fuzz(&storage, "input", &sealed));
        for page in sealed.chunks_exact_mut(4096) {
            reseal(page);
        }
    }
}

/// A manifest: what is accepted can be relied on.
pub fn manifest(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    read_manifest(bytes);
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    read_manifest(&sealed);
}

fn read_manifest(bytes: &[u8]) {
    let Some(manifest) = refused(manifest_codec::decode(bytes)) else { return };
    let again = manifest_codec::decode(&manifest_codec::encode(&manifest)).expect("it reads what it writes");
    assert!(again == manifest, "it reads what it writes");
    for disk in manifest.disk_indexes() {
        for sealed in manifest.checkpoints.values().take(16) {
            let end = sealed.ends[usize::from(disk.0)].0;
            manifest.line(disk, end).expect("every checkpoint's line is whole");
            manifest.cover(disk, end);
        }
        for branch in manifest.branches.keys().take(16) {
            let end = manifest.end(*branch, disk).expect("every branch has every disk").sealed;
            manifest.line(disk, end).expect("every branch's line is whole");
            let _ = manifest.own_line(*branch, disk);
            let _ = manifest.merge_choice(disk, end);
        }
    }
    let newest = manifest.checkpoints.keys().next_back().copied();
    if let Some(at) = newest {
        let session = BranchKind::Session(SessionId(manifest.machine.0));
        let mut next = manifest.clone();
        next.fork(at, session, "").expect("a branch can start at every checkpoint");
        let _ = next.begin_replay(at).and_then(|()| next.end_replay());
    }
}

/// The marker of a store.
pub fn marker(bytes: &[u8]) {
    let _ = refused(decode_marker(bytes));
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    let _ = refused(decode_marker(&sealed));
}

/// A checksum sidecar of the disk whose length it names, over an image of zeroes.
pub fn sums(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    read_sums(bytes);
    let mut sealed = bytes.to_vec();
    if let Some(header) = sealed.get_mut(..28) {
        reseal(header);
    }
    read_sums(&sealed);
}

fn read_sums(bytes: &[u8]) {
    let (_storage, sums) = file_of(bytes);
    let len = ByteLen::new(u64_at(bytes, 16) & !511);
    if len.is_zero() || len > ByteLen::new(1 << 40) {
        return;
    }
    let storage = CrashStorage::new();
    let file = storage.open("image", OpenMode::CreateNew).expect("an empty storage in memory");
    file.set_len(len).expect("a hole costs nothing");
    let Some(image) = refused(open_image(file, Some(ImageFormat::Raw), true)) else { return };
    let Some(image) = refused(with_sums(image, sums)) else { return };
    ask(&*image, true);
}

/// Small images of every format that has an inside, with a little written into each.
pub fn images() -> Vec<Vec<u8>> {
    let kinds = ImageKind::ALL.into_iter().filter(|kind| kind.name() != "raw");
    kinds.map(image_of).collect()
}

fn image_of(kind: ImageKind) -> Vec<u8> {
    let storage = CrashStorage::new();
    let source = create_image(&storage, "source", ImageFormat::Raw, ByteLen::new(64 << 10));
    let source = source.expect("an empty storage in memory");
    source
        .write_at(ByteOffset::new(4096), &[7; 1024], false, RequestClass::Background)
        .expect("a storage in memory without faults");
    export_volume(&*source, &storage, "made", kind, 1, &|_, _| true).expect("every kind takes a small disk");
    let file = storage.open("made", OpenMode::Read).expect("it was just made");
    let len = file.len().expect("a storage in memory").as_usize();
    let mut bytes = vec![0; len.min(INPUT_BYTES_MAX)];
    file.read_at(ByteOffset::ZERO, &mut bytes).expect("it has that many bytes");
    bytes
}

/// An image file of any format that is recognised.
pub fn image(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(INPUT_BYTES_MAX)];
    let (_storage, file) = file_of(bytes);
    let _ = refused(check_image(&file, None, false));
    if let Some(image) = refused(open_image(file, None, false)) {
        ask(&*image, false);
    }
}

/// Reads and asks about a few places; writes where that is wanted.
fn ask(volume: &dyn Volume, writes: bool) {
    let sectors = volume.len().get() / 512;
    let mut buffer = vec![0; 4096];
    for question in 0..QUESTIONS_MAX.min(sectors) {
        let at = ByteOffset::new(question * (sectors / QUESTIONS_MAX.min(sectors)) * 512);
        let len = ByteLen::new((sectors * 512 - at.get()).min(4096));
        let part = &mut buffer[..len.as_usize()];
        let read = refused(volume.read_at(at, part, RequestClass::Background));
        let Ok(extent) = Extent::new(at, len) else { continue };
        if let Some(runs) = refused(volume.status(extent)) {
            assert_eq!(
                runs.first().map(|run| run.extent.start()),
                Some(at),
                "a status begins where it was asked"
            );
        }
        if writes && read.is_some() && question % 8 == 0 {
            let outcome = volume.write_at(at, part, false, RequestClass::Background);
            // Zeroes that are there already, or the block around them is damaged.
            let _: Option<()> = refused(outcome);
        }
    }
}
