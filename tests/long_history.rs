//! A history of thousands of checkpoints, shown as folders by a server and looked at by programs that list them.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use blocks::{ByteLen, ByteOffset, DiskIndex, Extent, MachineId, Seq};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use store::{CheckpointSpec, DiskSpec, HostStorage, ImageFormat, Payload, Store, StoreOptions, UnitSpec};
use support::disk::Mount;
use support::shown::{Shown, bash};
use support::{NAME, Stage};

const CHECKPOINTS: u64 = 5_000;
const DISK: ByteLen = ByteLen::new(64 << 20);

/// Where checkpoint `number` says which one it is, in a sector that only it writes to.
fn signature(number: u64) -> (Extent, [u8; 512]) {
    let mut sector = [0x55; 512];
    sector[..8].copy_from_slice(&number.to_le_bytes());
    (Extent::new(ByteOffset::new(number * 512), ByteLen::new(512)).unwrap(), sector)
}

/// Makes the history as a server would, on a machine that nobody protects any more.
fn make_history(stage: &Stage) {
    let storage = HostStorage::new(stage.path("store")).unwrap();
    let store = Store::open(std::sync::Arc::new(storage), StoreOptions::default()).unwrap();
    let disk = DiskSpec { len: DISK, serial: "S1".to_owned(), device: "/dev/sda".to_owned() };
    let unit = store
        .create_unit(UnitSpec {
            machine: "000102030405060708090a0b0c0d0e0f".parse::<MachineId>().unwrap(),
            name: NAME.to_owned(),
            definition: Vec::new(),
            disks: vec![disk],
            image_format: ImageFormat::Vhd,
        })
        .unwrap();
    let head = unit.disk(unit.main_branch(), DiskIndex(0)).unwrap();
    for number in 1..=CHECKPOINTS {
        let (extent, sector) = signature(number);
        head.append(Seq(number), extent, Payload::Data(&sector)).unwrap();
        unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap();
    }
}

fn timed<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let outcome = action();
    println!("{what}: {:?}", begun.elapsed());
    outcome
}

#[test]
fn thousands_of_checkpoints_are_folders_each_with_its_own_instant() {
    let mut stage = Stage::new(8);
    // Each seal is on the medium before the next begins; how long a disk takes for that is not what is looked at here.
    let memory = Mount::new("-t tmpfs tmpfs", &stage.path("store"));
    timed("5,000 checkpoints", || make_history(&stage));
    timed("the server's start", || stage.start_server(None));
    let folder = stage.path("datastore");
    fs::create_dir(&folder).unwrap();
    let mut shown = Shown { mount: None, stage, folder };
    shown.mount(&[]);
    let checkpoints = shown.folder.join(NAME).join("checkpoints");
    let names: HashSet<_> = timed("listed", || {
        fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    });
    assert_eq!(names.len() as u64, CHECKPOINTS, "each once");
    std::thread::sleep(Duration::from_millis(1100));
    let listed = timed("listed by ls -l, the list forgotten", || {
        bash(&format!("ls -l {} | grep -c ^d", checkpoints.display()))
    });
    assert_eq!(listed.trim(), CHECKPOINTS.to_string());

    let mut ordered: Vec<_> = names.into_iter().map(|name| name.into_string().unwrap()).collect();
    // Of those of one millisecond all but the first have their numbers behind the time.
    ordered.sort_by_key(|name| {
        let (time, number) = name.split_once("Z-").unwrap_or((name.trim_end_matches('Z'), "0"));
        (time.to_owned(), number.parse::<u64>().unwrap())
    });
    for number in [1, 2, CHECKPOINTS / 2, CHECKPOINTS - 1, CHECKPOINTS] {
        let disk = checkpoints.join(&ordered[number as usize - 1]).join("disk0.raw");
        let disk = timed("opened", || File::open(disk).unwrap());
        let mut found = [0; 512];
        disk.read_exact_at(&mut found, number * 512).unwrap();
        assert_eq!(found, signature(number).1, "checkpoint {number} has its own write");
        if number < CHECKPOINTS {
            disk.read_exact_at(&mut found, (number + 1) * 512).unwrap();
            assert_eq!(found, [0; 512], "checkpoint {number} has not the next one's");
        }
    }
    shown.stage.server.take().unwrap().stop();
    drop(memory);
}
