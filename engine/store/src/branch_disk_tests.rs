use super::*;
use crate::image::ImageFormat;
use crate::journal::recovery::recover;
use crate::testing::CrashStorage;
use crate::unit::manifest::{DiskSpec, UnitSpec};
use crate::{Store, StoreOptions};
use blocks::{Id, MachineId, Storage};

fn unit(storage: &CrashStorage) -> (Store, Arc<Unit>) {
    let options =
        StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() };
    let store = Store::open(Arc::new(storage.clone()), options).unwrap();
    let spec = UnitSpec {
        machine: MachineId(Id::from_bytes([1; 16]).unwrap()),
        name: "box".into(),
        definition: Vec::new(),
        disks: vec![DiskSpec { len: ByteLen::new(1 << 20), serial: String::new(), device: String::new() }],
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).unwrap();
    (store, unit)
}

/// What is appended between the sync that a seal begins with and the moment at which appends stop is sealed too, so it
/// must be on the medium before the index and the manifest speak of it.
#[test]
fn a_seal_syncs_what_came_after_the_sync_before_it() {
    let storage = CrashStorage::new();
    let (_store, unit) = unit(&storage);
    let disk = unit.disk(unit.main_branch(), DiskIndex(0)).unwrap();
    disk.write_at(ByteOffset::ZERO, &[1; 4096], true, RequestClass::Guest).unwrap();
    disk.write_at(ByteOffset::ZERO, &[2; 4096], false, RequestClass::Guest).unwrap();
    let sealing = disk.begin_seal().unwrap();
    let sealed = sealing.sealed().unwrap();
    for seed in 0..20 {
        let file = storage.crash(seed).open(sealed.log.name(), OpenMode::Read).unwrap();
        let identity = LogIdentity { salt: disk.identity().salt, delta: sealed.id };
        let recovered = recover(&*file, identity).unwrap();
        assert_eq!(
            (recovered.len - ByteOffset::ZERO, recovered.last_seq),
            (sealed.log_len, Seq(2)),
            "seed {seed}"
        );
    }
}

/// Many who wait for the medium at once share few syncs, and each is told of at least its own write.
#[test]
fn those_who_wait_share_a_sync() {
    let storage = CrashStorage::new();
    let (_store, unit) = unit(&storage);
    let disk = unit.disk(unit.main_branch(), DiskIndex(0)).unwrap();
    let before = storage.changes();
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (disk, barrier) = (&disk, &barrier);
            scope.spawn(move || {
                let extent = Extent::new(ByteOffset::new(thread * 512), ByteLen::new(512)).unwrap();
                let seq = disk.write(None, None, extent, Payload::Data(&[7; 512])).unwrap();
                barrier.wait();
                assert!(*disk.sync().unwrap().get() >= seq);
            });
        }
    });
    // Eight writes in two parts each at most, creating the file, and the syncs: at most two, and one of the folder.
    let changes = storage.changes() - before;
    assert!(changes <= 8 * 2 + 2 + 3, "{changes} changes for eight writes and one wait");
    assert_eq!(disk.last_seq(), Seq(8));
}
