use super::*;
use crate::journal::location::RecordKind;
use crate::journal::log::{LogWriter, PreparedWrite};
use crate::journal::packer::Packer;
use crate::testing::CrashStorage;
use crate::unit::branch::DeltaId;
use blocks::Compression;
use blocks::{ErrorKind, OpenMode, Storage};
use std::sync::Arc;

const IDENTITY: LogIdentity = LogIdentity { salt: 5, delta: DeltaId(7) };

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// A log of five writes; the third is of three records. The first two are known to be synced when the fourth comes.
fn log(storage: &CrashStorage) -> (Arc<dyn StorageFile>, Vec<ByteOffset>) {
    let file = storage.open("1.log", OpenMode::CreateNew).unwrap();
    let mut writer = LogWriter::new(Arc::clone(&file), IDENTITY, ByteOffset::ZERO);
    let data = vec![0xa5; 160 << 10];
    let long = extent(8192, 160 << 10);
    let never = Packer::new(Compression::Never);
    let writes = [
        PreparedWrite::data(extent(0, 4096), &data[..4096], &never),
        PreparedWrite::empty(extent(4096, 1 << 40), RecordKind::Zero),
        PreparedWrite::data(long, &data, &never),
        PreparedWrite::empty(extent(512, 512), RecordKind::Discard),
        PreparedWrite::data(extent(1024, 512), &data[..512], &never),
    ];
    let mut ends = vec![ByteOffset::ZERO];
    for (index, write) in writes.iter().enumerate() {
        let synced_to = if index >= 3 { ends[2] } else { ByteOffset::ZERO };
        writer.append(Seq(index as u64 + 1), write, synced_to).unwrap();
        assert_eq!(writer.len(), ends[index] + write.log_len());
        ends.push(writer.len());
    }
    (file, ends)
}

#[test]
fn reads_back_what_was_written() {
    let storage = CrashStorage::new();
    let (file, ends) = log(&storage);
    let recovered = recover(&*file, IDENTITY).unwrap();
    assert_eq!((recovered.len, recovered.last_seq, recovered.torn), (ends[5], Seq(5), ByteLen::ZERO));
    let kinds: Vec<_> = recovered
        .map
        .iter()
        .take(4)
        .map(|(extent, location)| (extent.start().get(), location.kind()))
        .collect();
    use RecordKind::{Data, Discard};
    assert_eq!(kinds, [(0, Data), (512, Discard), (1024, Data), (1536, Data)]);
}

/// Whatever the length at which the log ends, what is left is the whole writes before that.
#[test]
fn a_torn_tail_is_cut_at_a_whole_write() {
    let (full, ends) = log(&CrashStorage::new());
    let mut bytes = vec![0; full.len().unwrap().as_usize()];
    full.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    let near =
        |at: usize| ends.iter().any(|end| (end.get() as usize).abs_diff(at) < 70) || at.is_multiple_of(4099);
    for cut in (0..bytes.len()).filter(|at| near(*at)) {
        let storage = CrashStorage::new();
        let file = storage.open("1.log", OpenMode::CreateNew).unwrap();
        file.write_at(ByteOffset::ZERO, &bytes[..cut]).unwrap();
        let expected = ends.iter().rposition(|end| end.get() <= cut as u64).unwrap();
        let recovered = recover(&*file, IDENTITY).unwrap();
        assert_eq!(
            (recovered.len, recovered.last_seq),
            (ends[expected], Seq(expected as u64)),
            "cut at {cut}"
        );
        assert_eq!(recovered.torn.get(), cut as u64 - ends[expected].get());
    }
}

#[test]
fn damage_below_what_was_synced_is_an_error_that_names_the_place() {
    for at in [10, ends_of_log()[1].get() + 40] {
        let storage = CrashStorage::new();
        let (file, _) = log(&storage);
        storage.flip_bit("1.log", ByteOffset::new(at), 3).unwrap();
        let error = recover(&*file, IDENTITY).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let record = if at < 64 { 0 } else { ends_of_log()[1].get() };
        assert!(error.to_string().contains("1.log"), "{error}");
        assert!(error.to_string().contains(&format!("offset {record}")), "{error}");
    }
}

#[test]
fn damage_behind_what_was_synced_is_a_torn_tail() {
    let storage = CrashStorage::new();
    let (file, ends) = log(&storage);
    // In the payload of the third write's second record: nothing says that it ever reached the medium.
    storage.flip_bit("1.log", ends[2] + ByteLen::new(90_000), 0).unwrap();
    let recovered = recover(&*file, IDENTITY).unwrap();
    assert_eq!((recovered.len, recovered.last_seq), (ends[2], Seq(2)));
}

/// The only header that tells of the sync is torn off with the tail: what it proved must not be forgotten with it.
#[test]
fn damage_that_only_the_tail_gives_away_is_found_before_the_tail_is_cut() {
    let storage = CrashStorage::new();
    let (file, ends) = log(&storage);
    // The fourth write's record stays whole, the fifth's payload is torn: both say that the first two were synced. The
    // fourth is cut too once the third is torn.
    storage.flip_bit("1.log", ends[2] + ByteLen::new(90_000), 0).unwrap();
    let whole = recover(&*file, IDENTITY).unwrap();
    assert_eq!((whole.len, whole.synced_to), (ends[2], ends[2]));
    storage.flip_bit("1.log", ByteOffset::new(100), 0).unwrap();
    let error = recover(&*file, IDENTITY).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "a payload that was on the medium is rotten");
    assert!(error.to_string().contains("damaged at offset 0"), "{error}");
}

fn ends_of_log() -> Vec<ByteOffset> {
    log(&CrashStorage::new()).1
}
