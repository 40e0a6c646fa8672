use crate::journal::log::{LogWriter, PreparedWrite};
use crate::journal::packer::Packer;
use crate::journal::record::LogIdentity;
use crate::journal::recovery::recover;
use crate::storage::HostStorage;
use crate::testing::{CrashStorage, Random};
use crate::unit::branch::DeltaId;
use blocks::{ByteLen, ByteOffset, Compression, Extent, OpenMode, Seq, Storage, StorageFile};
use std::sync::Arc;

const IDENTITY: LogIdentity = LogIdentity { salt: 5, delta: DeltaId(7) };
const LONG: ByteLen = ByteLen::new(2 << 10);

fn writer(storage: &dyn Storage, name: &str, long: Option<ByteLen>) -> LogWriter {
    let file = storage.open(name, OpenMode::CreateNew).unwrap();
    storage.sync_dir("").unwrap();
    let writer = LogWriter::new(file, IDENTITY, ByteOffset::ZERO);
    match long {
        Some(long) => writer.with_straight(long),
        None => writer,
    }
}

/// Lengths in sectors: mostly runs of long ones, which end anywhere in a block, sometimes many pieces long.
fn lengths(random: &mut Random, count: usize, most: u64) -> Vec<u64> {
    (0..count).map(|_| if random.chance(8) { 1 } else { 4 + random.below(most) }).collect()
}

/// Appends a write of that many sectors, each full of its number.
fn append(writer: &mut LogWriter, number: u64, sectors: u64, synced_to: ByteOffset) {
    let data = vec![number as u8; (sectors * 512) as usize];
    let extent = Extent::new(ByteOffset::new(number << 20), ByteLen::of(&data)).unwrap();
    let never = Packer::new(Compression::Never);
    writer.append(Seq(number), &PreparedWrite::data(extent, &data, &never), synced_to).unwrap();
}

fn content(file: &dyn StorageFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap().as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    bytes
}

/// Both ways make the same file, byte for byte; the host's files are on whatever the tests run on.
#[test]
fn a_log_is_the_same_whichever_way_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let storages: [Arc<dyn Storage>; 2] =
        [Arc::new(CrashStorage::new()), Arc::new(HostStorage::new(folder.path()).unwrap())];
    for storage in storages {
        for seed in 0..8 {
            let mut random = Random::new(seed);
            let mut straight = writer(&*storage, &format!("straight-{seed}"), Some(LONG));
            let mut usual = writer(&*storage, &format!("usual-{seed}"), None);
            let mut went = 0;
            for (number, sectors) in (1..).zip(lengths(&mut random, 60, if seed < 6 { 40 } else { 3000 })) {
                for writer in [&mut straight, &mut usual] {
                    append(writer, number, sectors, ByteOffset::ZERO);
                }
                went += u32::from(straight.went_straight().is_some());
                assert!(usual.went_straight().is_none());
                assert!(
                    straight.file().len().unwrap() < straight.len() - ByteOffset::ZERO + ByteLen::new(4096)
                );
            }
            let goes = straight.file().write_past_cache();
            assert_eq!(went > 10, goes, "seed {seed}: {went} of 60 went straight");
            straight.trim().unwrap();
            assert!(content(&**straight.file()) == content(&**usual.file()), "seed {seed}");
        }
    }
}

/// The power is cut after each change of the file: what was synced is there, and what is there is whole writes.
#[test]
fn a_power_cut_leaves_whole_writes_and_all_that_were_synced() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let storage = CrashStorage::new();
        let mut writer = writer(&storage, "log", Some(LONG));
        let count = 20 + random.below(60) as usize;
        let mut ends = vec![ByteOffset::ZERO];
        let mut synced = 0;
        for (number, sectors) in (1..).zip(lengths(&mut random, count, 40)) {
            append(&mut writer, number, sectors, ends[synced]);
            ends.push(writer.len());
            if random.chance(15) {
                writer.file().sync().unwrap();
                synced = ends.len() - 1;
            }
        }
        for cut in 0..6 {
            let after = storage.crash(seed * 7 + cut);
            let file = after.open("log", OpenMode::ReadWrite).unwrap();
            let recovered = recover(&*file, IDENTITY).unwrap();
            let context = format!("seed {seed}, cut {cut}: {:?}", recovered.len);
            let kept = ends.iter().position(|end| *end == recovered.len).expect(&context);
            assert!(kept >= synced, "{context}: {synced} writes were synced, {kept} are there");
            // Appending goes on where it ended, with a block that may be half a piece of zeroes.
            file.set_len(recovered.len - ByteOffset::ZERO).unwrap();
            let mut writer = LogWriter::new(file, IDENTITY, recovered.len).with_straight(LONG);
            let more = 12;
            (1..=more).for_each(|number| append(&mut writer, kept as u64 + number, 9, recovered.synced_to));
            let again = recover(&**writer.file(), IDENTITY).unwrap();
            assert_eq!((again.len, again.last_seq), (writer.len(), Seq(kept as u64 + more)), "{context}");
        }
    }
}
