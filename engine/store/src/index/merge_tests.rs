use super::*;
use crate::index::block_cache::BlockCache;
use crate::index::entry::Entry;
use crate::index::writer::IndexWriter;
use crate::journal::location::{Location, LogLocation, RecordKind};
use crate::stored_file::FileTable;
use crate::testing::{CrashStorage, Random};
use blocks::{ByteLen, ErrorKind, ExtentMap, OpenMode, Piece, Sliceable, Storage};

#[derive(Clone, Debug, PartialEq)]
struct Value(DeltaId, Location);

impl Sliceable for Value {
    fn skip(&self, skip: ByteLen) -> Value {
        Value(self.0, self.1.skip(skip))
    }
    fn continues(&self, len: ByteLen, next: &Value) -> bool {
        self.0 == next.0 && self.1.continues(len, &next.1)
    }
}

fn extent(start: u64, sectors: u64) -> Extent {
    Extent::new(ByteOffset::new(start * 512), ByteLen::new(sectors * 512)).unwrap()
}

struct Bench {
    storage: CrashStorage,
    table: Arc<FileTable>,
    cache: Arc<BlockCache>,
}

impl Bench {
    fn new() -> Bench {
        let storage = CrashStorage::new();
        let table = FileTable::new(Arc::new(storage.clone()));
        Bench { storage, table, cache: Arc::new(BlockCache::new(ByteLen::new(1 << 20))) }
    }

    fn index(
        &self,
        name: &str,
        span: (DeltaId, DeltaId),
        entries: impl Iterator<Item = Entry>,
    ) -> Arc<IndexReader> {
        let file = self.storage.open(name, OpenMode::CreateNew).unwrap();
        let mut writer = IndexWriter::new(file, 1, span.0, span.1);
        entries.for_each(|entry| writer.push(entry).unwrap());
        writer.finish().unwrap();
        self.open(name, span).unwrap()
    }

    fn open(&self, name: &str, span: (DeltaId, DeltaId)) -> Result<Arc<IndexReader>> {
        IndexReader::open(self.table.file(name.to_owned()), 1, span, Arc::clone(&self.cache)).map(Arc::new)
    }
}

fn random_delta(random: &mut Random, extents: u64) -> ExtentMap<Location> {
    let mut map = ExtentMap::new();
    for number in 0..extents {
        let sectors = 1 + random.below(60);
        let location = match random.below(5) {
            0 => Location::Empty(RecordKind::Zero),
            1 => Location::Empty(RecordKind::Discard),
            _ => Location::Log(LogLocation {
                packed: 0,
                payload: ByteOffset::new(number * 65536),
                crc: random.number() as u32,
                sectors: sectors as u8,
                skip: 0,
            }),
        };
        map.insert(extent(random.below(100_000), sectors), location);
    }
    map
}

fn entries(map: &ExtentMap<Location>, delta: DeltaId) -> impl Iterator<Item = Entry> + '_ {
    map.iter().map(move |(extent, location)| Entry { extent, delta, location: *location })
}

/// A merge is what inserting one delta after the other into one map gives; lookups in it agree with the map.
#[test]
fn merges_and_lookups_agree_with_a_map() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let bench = Bench::new();
        let mut naive: ExtentMap<Value> = ExtentMap::new();
        let mut readers = Vec::new();
        for number in 1..=8 {
            let delta = DeltaId(number);
            let count = random.below(900);
            let map = random_delta(&mut random, count);
            for (extent, location) in map.iter() {
                naive.insert(extent, Value(delta, *location));
            }
            readers.insert(0, bench.index(&format!("{number}.index"), (delta, delta), entries(&map, delta)));
        }
        let mut merge = Merge::new(&readers, DeltaId::IMAGE).unwrap();
        let merged = std::iter::from_fn(|| merge.next().unwrap());
        let reader = bench.index("1-8.index", (DeltaId(1), DeltaId(8)), merged);
        let mut cursor = reader.cursor();
        let mut found = ExtentMap::new();
        while let Some(entry) = cursor.next().unwrap() {
            found.insert(entry.extent, Value(entry.delta, entry.location));
        }
        assert_eq!(found, naive, "seed {seed}");
        assert_eq!(reader.header().covered, naive.covered());
        for _ in 0..200 {
            let range = extent(random.below(100_000), 1 + random.below(500));
            let mut looked_up = Vec::new();
            reader
                .lookup(range, |entry| looked_up.push((entry.extent, Value(entry.delta, entry.location))))
                .unwrap();
            let expected: Vec<_> = naive
                .lookup(range)
                .filter_map(|piece| match piece {
                    Piece::Data(extent, value) => Some((extent, value)),
                    Piece::Hole(_) => None,
                })
                .collect();
            assert_eq!(looked_up, expected, "seed {seed}, {range}");
        }
    }
}

#[test]
fn what_the_image_has_already_is_left_out() {
    let bench = Bench::new();
    let zero = Location::Empty(RecordKind::Zero);
    let entry = |start, delta| Entry { extent: extent(start, 4), delta: DeltaId(delta), location: zero };
    let reader = bench.index("1-2.index", (DeltaId(1), DeltaId(2)), [entry(0, 1), entry(4, 2)].into_iter());
    let mut merge = Merge::new(&[reader], DeltaId(1)).unwrap();
    assert_eq!(merge.next().unwrap(), Some(entry(4, 2)));
    assert_eq!(merge.next().unwrap(), None);
}

#[test]
fn rot_is_found_wherever_it_is() {
    let map = random_delta(&mut Random::new(3), 800);
    let blocks = Bench::new();
    let span = (DeltaId(1), DeltaId(1));
    blocks.index("1.index", span, entries(&map, DeltaId(1)));
    let len = blocks.storage.open("1.index", OpenMode::Read).unwrap().len().unwrap();
    for at in (0..len.get()).step_by(501) {
        let bench = Bench::new();
        bench.index("1.index", span, entries(&map, DeltaId(1)));
        bench.storage.flip_bit("1.index", ByteOffset::new(at), 5).unwrap();
        let read = bench.open("1.index", span).and_then(|reader| {
            let mut cursor = reader.cursor();
            while cursor.next()?.is_some() {}
            Ok(())
        });
        let error = read.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "offset {at}");
        assert!(error.to_string().contains("1.index"), "{error}");
    }
    let of_another = blocks.open("1.index", (DeltaId(2), DeltaId(2))).unwrap_err();
    assert_eq!(of_another.kind(), ErrorKind::Corrupt);
}
