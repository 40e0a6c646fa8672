//! Whatever changes a disk's content is marked: every block that differs from a copy, found by cmp, for writes of every
//! kind and way in. And the counts prove it: queued, completed and /sys/block/X/stat agree at rest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tracker_support;

use blocks::ByteLen;
use cbt::{Agreement, Mutant, Tracker, TrackerKind, TrackerWish};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tracker_support::*;

fn ebpf(disk: &Loop) -> Arc<dyn Tracker> {
    let (tracker, why) = cbt::best_tracker(&disk.device, TrackerWish::Auto).unwrap();
    assert_eq!(tracker.kind(), TrackerKind::Ebpf, "{why}");
    tracker
}

// linux/fs.h
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

/// One random change of `bytes` bytes somewhere: direct, through the page cache, discarded or zeroed.
fn scribble(random: &mut StdRng, direct: &File, cached: &File, bytes: u64) {
    let sectors = bytes / 512;
    let start = random.random_range(0..sectors);
    let longest = if random.random_bool(0.1) { 4096 } else { 64 };
    let len = random.random_range(1..=longest).min(sectors - start) * 512;
    let start = start * 512;
    match random.random_range(0..6) {
        0..=2 => {
            let data = &mut aligned(len as usize)[..];
            random.fill(data);
            direct.write_all_at(data, start).unwrap();
        }
        3 => {
            let data: Vec<u8> = (0..len).map(|_| random.random()).collect();
            cached.write_all_at(&data, start).unwrap();
        }
        kind => {
            let request = if kind == 4 { BLKDISCARD } else { BLKZEROOUT };
            let range = [start, len];
            // SAFETY: both take a pointer to two u64, which lives through the call.
            let done = unsafe { libc::ioctl(direct.as_raw_fd(), request, range.as_ptr()) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
    }
}

fn sized(file: &Path) -> u64 {
    use std::io::{Seek, SeekFrom};
    File::open(file).unwrap().seek(SeekFrom::End(0)).unwrap()
}

fn random_changes_are_marked(disk: &Loop, node: &Path, seed: u64) {
    random_changes_are_marked_by(&*ebpf(disk), disk, node, seed);
}

fn random_changes_are_marked_by(tracker: &dyn Tracker, disk: &Loop, node: &Path, seed: u64) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut copy = Copy::begin(tracker, disk);
    let direct = open_direct(node);
    let cached = OpenOptions::new().write(true).open(node).unwrap();
    let mut differing = 0;
    for _ in 0..8 {
        for _ in 0..40 {
            scribble(&mut random, &direct, &cached, sized(node));
            if random.random_bool(0.2) {
                copy.drain(tracker);
            }
        }
        cached.sync_all().unwrap();
        differing += copy.assert_marked(tracker, disk);
        copy.barrier(tracker);
        assert_eq!(copy.differing(disk), Vec::<u64>::new());
        assert_eq!(tracker.backlog().unwrap(), ByteLen::ZERO);
        assert!(tracker.trust().is_trusted());
    }
    assert!(differing > 500, "only {differing} blocks ever differed");
    println!("{differing} blocks differed and were marked; {:?}", tracker.census().unwrap());
}

#[test]
fn random_changes_of_the_whole_disk_are_marked() {
    // The last block is a part of one.
    let disk = Loop::new((48 << 20) + 3 * 512);
    random_changes_are_marked(&disk, &disk.device, rand::random());
}

#[test]
fn random_changes_through_a_partition_are_marked() {
    let disk = Loop::new(48 << 20);
    let partition = disk.partition(1, (7 << 20) + 512, 30 << 20);
    random_changes_are_marked(&disk, &partition, rand::random());
}

#[test]
fn random_changes_are_marked_without_the_newer_kernels_loops() {
    let disk = Loop::new((48 << 20) + 3 * 512);
    let tracker = cbt::open_mutant(&disk.device, Mutant::BySteps).unwrap();
    random_changes_are_marked_by(&*tracker, &disk, &disk.device, rand::random());
    // 192 words in one request.
    let mut copy = Copy::begin(&*tracker, &disk);
    copy.barrier(&*tracker);
    let device = open_direct(&disk.device);
    let range = [0_u64, 48 << 20];
    // SAFETY: takes a pointer to two u64, which lives through the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(tracker.backlog().unwrap(), ByteLen::new(48 << 20));
    assert!(tracker.trust().is_trusted());
}

#[test]
fn a_mounted_file_system_under_load_is_copied_exactly() {
    let disk = Loop::new(192 << 20);
    let partition = disk.partition(1, 1 << 20, 190 << 20);
    run("mkfs.ext4", &["-q", "-F", partition.to_str().unwrap()]);
    let tracker = ebpf(&disk);
    let mounted = Mounted::new(&partition, disk.folder.path().join("mnt"));
    let mut copy = Copy::begin(&*tracker, &disk);
    for direct in ["0", "1"] {
        let folder = mounted.at.to_str().unwrap();
        let fio = std::process::Command::new("fio")
            .args(["--name=a", "--rw=randwrite", "--bssplit=4k/60:64k/30:1m/10", "--size=48m", "--nrfiles=4"])
            .args(["--ioengine=libaio", "--iodepth=8", "--fsync=64", "--time_based", "--runtime=3"])
            .args([&format!("--directory={folder}"), &format!("--direct={direct}")])
            .stdout(std::process::Stdio::null())
            .spawn();
        let mut fio = fio.unwrap();
        while fio.try_wait().unwrap().is_none() {
            copy.drain(&*tracker);
        }
        assert!(fio.wait().unwrap().success());
        run("fstrim", &[folder]);
        run("sync", &["-f", folder]);
        mounted.freeze();
        copy.assert_marked(&*tracker, &disk);
        copy.barrier(&*tracker);
        let left = copy.differing(&disk);
        mounted.thaw();
        assert_eq!(left, Vec::<u64>::new(), "direct={direct}");
        println!("direct={direct}: {:?}", tracker.census().unwrap());
    }
    assert!(tracker.census().unwrap().kernel > ByteLen::new(20 << 20));
    assert!(tracker.trust().is_trusted());
}

#[test]
fn a_flush_is_not_a_write() {
    let disk = Loop::new(16 << 20);
    let tracker = ebpf(&disk);
    let mut copy = Copy::begin(&*tracker, &disk);
    copy.barrier(&*tracker);
    let before = tracker.census().unwrap();
    let device = OpenOptions::new().write(true).open(&disk.device).unwrap();
    for _ in 0..20 {
        device.sync_all().unwrap();
    }
    assert_eq!(tracker.census().unwrap(), before);
    assert_eq!(tracker.backlog().unwrap(), ByteLen::ZERO);
}

#[test]
fn the_counts_agree_run_after_run() {
    let disk = Loop::new(64 << 20);
    let tracker = ebpf(&disk);
    let mut copy = Copy::begin(&*tracker, &disk);
    let device = open_direct(&disk.device);
    let data = aligned(1 << 20);
    for run in 0..30_u64 {
        for at in 0..50 {
            let len = 4096 << (at % 8);
            device.write_all_at(&data[..len], (run * 977 + at * 131) % 15_000 * 4096).unwrap();
        }
        // No re-reading here: the bare verdict is printed, and only a queued write that was missed is a failure.
        let verdict = tracker.agree(PATIENCE).unwrap();
        println!("run {run}: {verdict:?} {:?}", tracker.census().unwrap());
        assert!(matches!(verdict, Agreement::Agree | Agreement::CompletedShort { .. }));
    }
    copy.barrier(&*tracker);
    assert_eq!(copy.differing(&disk), Vec::<u64>::new());
}

#[test]
fn the_grain_grows_with_the_disk_and_its_end_is_covered() {
    // 1 TiB, sparse.
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("large");
    File::create(&backing).unwrap().set_len(1 << 40).unwrap();
    let device = run("losetup", &["-f", "--show", backing.to_str().unwrap()]).stdout;
    let device = std::path::PathBuf::from(String::from_utf8(device).unwrap().trim());
    let disk = Loop { device, backing, folder };
    let tracker = ebpf(&disk);
    assert_eq!(tracker.grain().bytes(), 16384);
    let scan = tracker.begin_scan(PATIENCE).unwrap();
    tracker.finish_scan(scan, base()).unwrap();
    let device = open_direct(&disk.device);
    device.write_all_at(aligned(4096), (1 << 40) - 4096).unwrap();
    let changed: Vec<_> = tracker.changed().unwrap().iter().map(|(extent, ())| extent).collect();
    assert_eq!(changed, vec![extent((1 << 40) - 16384, 16384)]);
}
