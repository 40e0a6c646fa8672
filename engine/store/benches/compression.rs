//! What compressing logs costs, at which size of writes, on which data: docs/design/0010-integrity.md.
//!
//! `cargo bench -p understudy-store --bench compression`

use blocks::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::testing::Random;
use store::*;

const BYTES: usize = 64 << 20;
const DISK: DiskIndex = DiskIndex(0);

fn main() {
    let mut random = Random::new(1);
    let mut noise = vec![0; BYTES];
    random.fill(&mut noise);
    // Half of it repeats.
    let mut text = vec![b' '; BYTES];
    text.chunks_mut(32).for_each(|chunk| random.fill(&mut chunk[..8]));
    for (what, data) in [("text", text), ("noise", noise)] {
        for compress in [Compression::Never, Compression::Always] {
            measure(what, &data, compress);
        }
    }
}

fn measure(what: &str, data: &[u8], compress: Compression) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = StoreOptions { reserve: ByteLen::ZERO, compress, ..StoreOptions::default() };
    let storage = HostStorage::new(folder.path()).expect("a folder of the host");
    let store = Store::open(Arc::new(storage), options).expect("a new store");
    let spec = UnitSpec {
        machine: MachineId(Id::from_bytes([7; 16]).expect("not zero")),
        name: "box".into(),
        definition: Vec::new(),
        disks: vec![DiskSpec { len: ByteLen::of(data), serial: "S".into(), device: "/dev/sda".into() }],
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).expect("a new unit");
    let head = unit.disk(unit.main_branch(), DISK).expect("its disk");
    for piece in [64 << 10, 4 << 10] {
        let begun = Instant::now();
        for (at, bytes) in (0..).step_by(piece).zip(data.chunks(piece)) {
            let extent = Extent::new(ByteOffset::new(at), ByteLen::of(bytes)).expect("not empty");
            head.append(head.last_seq().next(), extent, Payload::Data(bytes)).expect("room");
        }
        let appended = begun.elapsed();
        let begun = Instant::now();
        let mut buffer = vec![0; piece];
        for at in (0..data.len() as u64).step_by(piece) {
            head.read_at(ByteOffset::new(at), &mut buffer, RequestClass::Guest).expect("what was written");
        }
        let rate = |took: Duration| (data.len() >> 20) as f64 / took.as_secs_f64();
        println!(
            "{what}, {compress:?}, {} KiB: appends {:.0} MiB/s, reads {:.0} MiB/s",
            piece >> 10,
            rate(appended),
            rate(begun.elapsed())
        );
    }
}
