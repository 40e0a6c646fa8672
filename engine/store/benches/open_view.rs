//! How long a recovery takes to answer its first read: a sparse 1 TiB disk, 100,000 extents over 240 deltas, cold.
//!
//! `cargo bench -p understudy-store`. STORE_BENCH_DIR names where the store is made (default: the temporary folder).
//! STORE_BENCH_KEEP only makes it, in that folder, and leaves it: `scripts/bench recover` has a server recover it.

mod support;

use blocks::*;
use std::path::Path;
use std::time::Instant;
use store::testing::Random;
use store::*;
use support::{drop_caches, open, resident_kib};

const DISK: ByteLen = ByteLen::new(1 << 40);
const DELTAS: u64 = 240;
const EXTENTS: u64 = 100_000;
const WRITE: usize = 4096;
/// Set in the process that measures, to where the store is.
const MEASURE: &str = "STORE_BENCH_MEASURE";

fn main() {
    if let Ok(folder) = std::env::var(MEASURE) {
        return measure(Path::new(&folder));
    }
    if let Ok(folder) = std::env::var("STORE_BENCH_KEEP") {
        std::fs::create_dir_all(&folder).expect("a folder");
        return build(Path::new(&folder));
    }
    let parent =
        std::env::var("STORE_BENCH_DIR").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
    let folder =
        tempfile::Builder::new().prefix("understudy-store-bench").tempdir_in(parent).expect("a folder");
    build(folder.path());
    println!("caches dropped: {}", drop_caches());
    // A process of its own, as after a restart: its memory is that of the recovery alone.
    let program = std::env::current_exe().expect("this program");
    let status = std::process::Command::new(program).env(MEASURE, folder.path()).status().expect("it runs");
    assert!(status.success());
}

fn measure(folder: &Path) {
    let written: Vec<ByteOffset> = places().collect();
    let before = resident_kib();
    let start = Instant::now();
    let store = open(folder);
    let opened = start.elapsed();
    let unit = store.units().pop().expect("the unit");
    let newest = unit.checkpoints().last().expect("a checkpoint").id;
    let session = SessionId(Id::from_bytes([8; 16]).expect("not zero"));
    let branch = unit.fork(newest, BranchKind::Session(session)).expect("a fork");
    let disk = unit.disk(branch, DiskIndex(0)).expect("a disk");
    let forked = start.elapsed();
    let mut buffer = vec![0; WRITE];
    disk.read_at(written[written.len() / 2], &mut buffer, RequestClass::Guest).expect("a read");
    let first_read = start.elapsed();
    println!("Store::open             {:>9.3} ms", opened.as_secs_f64() * 1e3);
    println!("... and fork            {:>9.3} ms", forked.as_secs_f64() * 1e3);
    println!("... and the first read  {:>9.3} ms", first_read.as_secs_f64() * 1e3);
    println!("memory for it           {:>9} KiB (process {} KiB)", resident_kib() - before, resident_kib());
    let view = unit.view(newest, DiskIndex(0)).expect("a view");
    println!("indexes a lookup asks   {:>9}", view.depth());
    for round in ["cold", "warm"] {
        let mut random = Random::new(2);
        let start = Instant::now();
        for _ in 0..20_000 {
            let at = written[random.below(written.len() as u64) as usize];
            view.read_at(at, &mut buffer, RequestClass::Guest).expect("a read");
        }
        println!("4 KiB random read, {round} {:>8.1} us", start.elapsed().as_secs_f64() * 1e6 / 20_000.0);
    }
    let mut random = Random::new(3);
    let start = Instant::now();
    for _ in 0..20_000 {
        let at = ByteOffset::new(random.below(DISK.get() / 4096) * 4096);
        view.read_at(at, &mut buffer, RequestClass::Guest).expect("a read");
    }
    println!("4 KiB read of a hole    {:>9.1} us", start.elapsed().as_secs_f64() * 1e6 / 20_000.0);
    println!("memory in the end       {:>9} KiB", resident_kib());
    append_rates(&disk);
}

/// Where something is written.
fn places() -> impl Iterator<Item = ByteOffset> {
    let mut random = Random::new(1);
    (0..EXTENTS).map(move |_| ByteOffset::new(random.below(DISK.get() / WRITE as u64) * WRITE as u64))
}

fn build(folder: &Path) {
    let start = Instant::now();
    let store = open(folder);
    let spec = UnitSpec {
        machine: MachineId(Id::from_bytes([7; 16]).expect("not zero")),
        name: "bench".into(),
        definition: Vec::new(),
        disks: vec![DiskSpec { len: DISK, serial: String::new(), device: "/dev/bench".into() }],
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).expect("a unit");
    let disk = unit.disk(unit.main_branch(), DiskIndex(0)).expect("a disk");
    let mut random = Random::new(4);
    let mut data = vec![0; WRITE];
    let mut places = places();
    for delta in 0..DELTAS {
        let extents = EXTENTS * (delta + 1) / DELTAS - EXTENTS * delta / DELTAS;
        for at in places.by_ref().take(extents as usize) {
            random.fill(&mut data);
            disk.write_at(at, &data, false, RequestClass::Guest).expect("a write");
        }
        unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).expect("a seal");
    }
    // The thread that merges indexes is given the time that it has between two checkpoints.
    let depth =
        || unit.view(unit.checkpoints().last().expect("one").id, DiskIndex(0)).expect("a view").depth();
    let patience = Instant::now();
    while depth() > 10 && patience.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    println!("{EXTENTS} writes and {DELTAS} seals took {:.1} s", start.elapsed().as_secs_f64());
}

fn append_rates(disk: &BranchDisk) {
    let mut random = Random::new(3);
    for (bytes, count) in [(4096usize, 50_000u64), (65_536, 8_000)] {
        let mut data = vec![0; bytes];
        random.fill(&mut data);
        let start = Instant::now();
        for _ in 0..count {
            let at = ByteOffset::new(random.below(DISK.get() / bytes as u64) * bytes as u64);
            disk.write_at(at, &data, false, RequestClass::Guest).expect("a write");
        }
        disk.flush().expect("a flush");
        let seconds = start.elapsed().as_secs_f64();
        let mib = (bytes as u64 * count) as f64 / f64::from(1 << 20);
        println!(
            "random writes of {bytes:>6}   {:>8.1} us, {:.0} MiB/s",
            seconds * 1e6 / count as f64,
            mib / seconds
        );
    }
}
