//! A long history at size: a disk of 10 TiB, 20 million extents in as many deltas as the default retention keeps.
//!
//! `cargo bench -p understudy-store --bench history_at_size`. STORE_BENCH_DIR names where the store is made (default: the
//! temporary folder; it takes 20 GB), STORE_BENCH_EXTENTS how many extents it has.
//!
//! What is asked, each in a process of its own with dropped caches: how long opening the store takes, recovering its newest and
//! its oldest checkpoint up to the first read, in how much memory; and what a read costs beside the same read of a plain
//! file. Exit status 1 where one of the limits is passed.

mod support;

use blocks::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use store::testing::Random;
use store::*;
use support::{drop_caches, open, resident_peak_kib};

const DISK: ByteLen = ByteLen::new(10 << 40);
/// Four hours of a checkpoint a minute, two days of one an hour, two weeks of one a day.
const CHECKPOINTS: u64 = 4 * 60 + 48 + 14;
/// One sector an extent: the index is as long as for longer ones, the logs are not.
const WRITE: usize = 512;
const READ: usize = 4096;
const READS: u64 = 50_000;
const SECONDS_MAX: f64 = 2.0;
const MIB_MAX: u64 = 500;
/// Set in a process that measures, to where the store is, and what it measures.
const MEASURE: &str = "STORE_BENCH_MEASURE";
const WHICH: &str = "STORE_BENCH_WHICH";

fn main() {
    if let Ok(folder) = std::env::var(MEASURE) {
        let which = std::env::var(WHICH).expect("newest or oldest");
        return measure(Path::new(&folder), &which);
    }
    let parent =
        std::env::var("STORE_BENCH_DIR").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
    let folder =
        tempfile::Builder::new().prefix("understudy-store-bench").tempdir_in(parent).expect("a folder");
    build(folder.path());
    let program = std::env::current_exe().expect("this program");
    for which in ["newest", "oldest"] {
        println!("\n{which} checkpoint; caches dropped: {}", drop_caches());
        let mut command = std::process::Command::new(&program);
        let status = command.env(MEASURE, folder.path()).env(WHICH, which).status().expect("it runs");
        assert!(status.success(), "the {which} checkpoint passed a limit");
    }
}

fn extents() -> u64 {
    let text = std::env::var("STORE_BENCH_EXTENTS").unwrap_or_else(|_| "20000000".into());
    text.parse().expect("STORE_BENCH_EXTENTS is a number")
}

/// Where something is written, in the order of writing.
fn places() -> impl Iterator<Item = ByteOffset> {
    let mut random = Random::new(1);
    (0..extents()).map(move |_| ByteOffset::new(random.below(DISK.get() / READ as u64) * READ as u64))
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
    random.fill(&mut data);
    let mut places = places();
    for number in 0..CHECKPOINTS {
        let count = extents() * (number + 1) / CHECKPOINTS - extents() * number / CHECKPOINTS;
        for (write, at) in places.by_ref().take(count as usize).enumerate() {
            data[..8].copy_from_slice(&(write as u64 + 1).to_le_bytes());
            disk.write_at(at, &data, false, RequestClass::Guest).expect("a write");
        }
        unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).expect("a seal");
    }
    let written = start.elapsed();
    let depth =
        || unit.view(unit.checkpoints().last().expect("one").id, DiskIndex(0)).expect("a view").depth();
    let patience = Instant::now();
    while depth() > 24 && patience.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{} extents over {CHECKPOINTS} checkpoints: written in {:.0} s, indexes merged {:.0} s later",
        extents(),
        written.as_secs_f64(),
        patience.elapsed().as_secs_f64()
    );
}

fn measure(folder: &Path, which: &str) {
    let start = Instant::now();
    let store = open(folder);
    let opened = start.elapsed().as_secs_f64();
    let unit = store.units().pop().expect("the unit");
    let checkpoints = unit.checkpoints();
    let chosen = if which == "newest" { checkpoints.last() } else { checkpoints.first() };
    let begun = Instant::now();
    let session = SessionId(Id::from_bytes([8; 16]).expect("not zero"));
    let branch = unit.fork(chosen.expect("a checkpoint").id, BranchKind::Session(session)).expect("a fork");
    let disk = unit.disk(branch, DiskIndex(0)).expect("a disk");
    let mut buffer = vec![0; READ];
    let first = places().next().expect("an extent");
    disk.read_at(first, &mut buffer, RequestClass::Guest).expect("a read");
    assert!(buffer[..8] != [0; 8], "the first extent is there");
    let recovered = begun.elapsed().as_secs_f64();
    let depth = unit.view(chosen.expect("a checkpoint").id, DiskIndex(0)).expect("a view").depth();
    drop(unit.drop_branch(branch));
    println!("Store::open              {opened:>8.3} s");
    println!("fork and first read      {recovered:>8.3} s");
    println!("indexes a lookup asks    {depth:>8}");
    println!("memory so far            {:>8} MiB", resident_peak_kib() >> 10);
    reads(&disk, folder);
    let peak = resident_peak_kib() >> 10;
    println!("memory in the end        {peak:>8} MiB");
    let kept = opened < SECONDS_MAX && recovered < SECONDS_MAX && peak < MIB_MAX;
    println!(
        "limits ({SECONDS_MAX} s, {SECONDS_MAX} s, {MIB_MAX} MiB): {}",
        if kept { "kept" } else { "passed" }
    );
    std::process::exit(i32::from(!kept));
}

/// Random reads of 4 KiB from the disk where it was written, from it anywhere, and from a sparse file of its size.
fn reads(disk: &BranchDisk, folder: &Path) {
    let written: Vec<ByteOffset> = places().step_by((extents() / 100_000).max(1) as usize).collect();
    let anywhere =
        |random: &mut Random| ByteOffset::new(random.below(DISK.get() / READ as u64) * READ as u64);
    let some = |random: &mut Random| written[random.below(written.len() as u64) as usize];
    let file = std::fs::File::options().create_new(true).read(true).write(true).open(folder.join("plain"));
    let file = file.expect("a file");
    file.set_len(DISK.get()).expect("a sparse file");
    let bare = |at: ByteOffset, buffer: &mut [u8]| file.read_exact_at(buffer, at.get()).expect("a read");
    let ours = |at: ByteOffset, buffer: &mut [u8]| {
        disk.read_at(at, buffer, RequestClass::Guest).expect("a read");
    };
    rate("what was written", some, ours);
    rate("anywhere", anywhere, ours);
    rate("a plain sparse file", anywhere, bare);
    std::fs::remove_file(folder.join("plain")).expect("the file is there");
}

fn rate(what: &str, place: impl Fn(&mut Random) -> ByteOffset, read: impl Fn(ByteOffset, &mut [u8])) {
    let mut buffer = vec![0; READ];
    for round in ["first", "second"] {
        let mut random = Random::new(2);
        let start = Instant::now();
        for _ in 0..READS {
            read(place(&mut random), &mut buffer);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("4 KiB random reads, {what}, {round} round: {:.0} a second", READS as f64 / seconds);
    }
}
