//! What outlives what: tracking the agent, trust a restart; and what neither may outlive.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tracker_support;

use blocks::{ByteLen, ErrorKind, ExtentSet, Seq};
use cbt::{Agreement, Mutant, Tracker, TrackerKind, TrackerWish, Trust};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracker_support::*;

const BYTES: u64 = 32 << 20;

fn open(disk: &Loop) -> (Arc<dyn Tracker>, String) {
    cbt::best_tracker(&disk.device, TrackerWish::Only(TrackerKind::Ebpf)).unwrap()
}

/// A tracker that is trusted, over a copy that is the disk.
fn trusted(disk: &Loop) -> (Arc<dyn Tracker>, Copy) {
    let (tracker, _) = open(disk);
    let mut copy = Copy::begin(&*tracker, disk);
    copy.barrier(&*tracker);
    (tracker, copy)
}

fn write(disk: &Loop, block: u64, byte: u8) {
    let data = aligned(4096);
    data.fill(byte);
    open_direct(&disk.device).write_all_at(data, block * KIB_4).unwrap();
}

fn blocks_set(blocks: &[u64]) -> ExtentSet {
    blocks.iter().map(|block| extent(block * KIB_4, KIB_4)).collect()
}

fn reason(tracker: &dyn Tracker) -> String {
    match tracker.trust() {
        Trust::Trusted => panic!("trusted"),
        Trust::Untrusted { reason } => reason,
    }
}

const CHILD: &str = "UNDERSTUDY_TEST_TRACKED_DEVICE";

/// Loads the programs, scans, writes block 3, takes it and waits for its death.
fn be_the_child(device: &Path) {
    let (tracker, _) = cbt::best_tracker(device, TrackerWish::Auto).unwrap();
    let scan = tracker.begin_scan(PATIENCE).unwrap();
    tracker.finish_scan(scan, base()).unwrap();
    tracker.set_base(cbt::Base { acked: Seq(77), ..base() }).unwrap();
    let data = aligned(4096);
    data.fill(0x33);
    open_direct(device).write_all_at(data, 3 * KIB_4).unwrap();
    assert_eq!(tracker.take(ByteLen::new(1 << 20)).unwrap().extents, vec![extent(3 * KIB_4, KIB_4)]);
    println!("\nready");
    std::thread::sleep(PATIENCE * 10);
}

#[test]
fn marks_go_on_while_the_killed_agent_is_away() {
    if let Some(device) = std::env::var_os(CHILD) {
        return be_the_child(Path::new(&device));
    }
    let disk = Loop::new(BYTES);
    let mut copy = Copy::of(&disk);
    std::fs::copy(&disk.backing, &copy.path).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "marks_go_on_while_the_killed_agent_is_away", "--nocapture"])
        .env(CHILD, &disk.device)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"), "the child failed");
    let busy = cbt::best_tracker(&disk.device, TrackerWish::Auto).map(|_| ()).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    child.kill().unwrap();
    child.wait().unwrap();

    for block in [100, 101, 5000] {
        write(&disk, block, 0x77);
    }
    let (tracker, why) = open(&disk);
    assert!(why.contains("taken over"), "{why}");
    assert!(tracker.trust().is_trusted(), "{}", tracker.trust());
    assert_eq!(tracker.base().unwrap().acked, Seq(77));
    // The child's unacknowledged taking and what was written since it died, and nothing else.
    assert_eq!(tracker.changed().unwrap(), blocks_set(&[3, 100, 101, 5000]));
    copy.assert_marked(&*tracker, &disk);
    copy.barrier(&*tracker);
    assert_eq!(copy.differing(&disk), Vec::<u64>::new());
}

#[test]
fn another_file_under_the_same_device_is_not_trusted() {
    let disk = Loop::new(BYTES);
    let (tracker, copy) = trusted(&disk);
    // A loop device lets go of its file only when nobody has it open.
    drop(copy);
    let other = disk.folder.path().join("other");
    std::fs::copy(&disk.backing, &other).unwrap();
    disk.reattach(&other);
    assert!(reason(&*tracker).contains("another medium"), "{}", tracker.trust());
    assert_eq!(tracker.begin_scan(PATIENCE).unwrap_err().kind(), ErrorKind::Poisoned);
    drop(tracker);
    let (tracker, why) = open(&disk);
    assert!(why.contains("another medium"), "{why}");
    assert!(!tracker.trust().is_trusted());
    assert_eq!(tracker.base(), None);
    let mut copy = Copy::begin(&*tracker, &disk);
    copy.barrier(&*tracker);
}

#[test]
fn a_disk_that_changes_its_size_is_not_trusted() {
    let disk = Loop::new(BYTES);
    let (tracker, _copy) = trusted(&disk);
    std::fs::OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(BYTES + 8192).unwrap();
    run("losetup", &["-c", disk.device.to_str().unwrap()]);
    write(&disk, BYTES / KIB_4 + 1, 1);
    assert!(reason(&*tracker).contains("33562624 bytes, it had 33554432"), "{}", tracker.trust());
    // Back to the old size: a write past the end has been seen, and that stays.
    std::fs::OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(BYTES).unwrap();
    run("losetup", &["-c", disk.device.to_str().unwrap()]);
    assert!(!tracker.trust().is_trusted());
    drop(tracker);
    let (tracker, _) = open(&disk);
    assert!(!tracker.trust().is_trusted());
}

#[test]
fn pins_that_are_not_whole_are_not_trusted() {
    let disk = Loop::new(BYTES);
    let (tracker, _copy) = trusted(&disk);
    drop(tracker);
    std::fs::remove_file(format!("/sys/fs/bpf/understudy/{}/live/link_rq_complete", disk.name())).unwrap();
    let (tracker, why) = open(&disk);
    assert!(why.contains("link_rq_complete"), "{why}");
    assert!(!tracker.trust().is_trusted());
    let mut copy = Copy::begin(&*tracker, &disk);
    write(&disk, 9, 9);
    copy.barrier(&*tracker);
    assert_eq!(copy.differing(&disk), Vec::<u64>::new());
}

#[test]
fn a_first_attachment_is_untrusted_and_detaching_forgets() {
    let disk = Loop::new(BYTES);
    let (tracker, _) = open(&disk);
    assert!(reason(&*tracker).contains("already in use"), "{}", tracker.trust());
    let error = tracker.agree(PATIENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(cbt::detach_tracker(&disk.name()).unwrap_err().kind(), ErrorKind::Busy);
    drop(tracker);
    cbt::detach_tracker(&disk.name()).unwrap();
    assert!(!Path::new("/sys/fs/bpf/understudy").join(disk.name()).exists());
    assert_eq!(cbt::detach_tracker("../x").unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn counting_switched_off_ends_the_trust_until_a_scan() {
    let disk = Loop::new(BYTES);
    let (tracker, _copy) = trusted(&disk);
    let switch = format!("/sys/block/{}/queue/iostats", disk.name());
    std::fs::write(&switch, "0").unwrap();
    assert!(reason(&*tracker).contains("iostats"), "{}", tracker.trust());
    assert_eq!(tracker.begin_scan(PATIENCE).unwrap_err().kind(), ErrorKind::Unsupported);
    write(&disk, 1, 1);
    std::fs::write(&switch, "1").unwrap();
    assert!(!tracker.trust().is_trusted());
    let mut copy = Copy::begin(&*tracker, &disk);
    copy.barrier(&*tracker);
    assert!(tracker.trust().is_trusted());
}

#[test]
fn a_reset_forgets_all_and_is_refused_under_writes() {
    let disk = Loop::new(BYTES);
    let (tracker, _) = open(&disk);
    write(&disk, 1, 1);
    tracker.take(ByteLen::new(1)).unwrap();
    write(&disk, 2, 2);
    tracker.reset(base()).unwrap();
    assert!(tracker.trust().is_trusted());
    assert_eq!((tracker.backlog().unwrap(), tracker.base()), (ByteLen::ZERO, Some(base())));
    assert_eq!(tracker.agree(PATIENCE).unwrap(), Agreement::Agree);

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, device) = (Arc::clone(&stop), open_direct(&disk.device));
        std::thread::spawn(move || {
            let data = aligned(4096);
            while !stop.load(Ordering::SeqCst) {
                device.write_all_at(data, 7 * KIB_4).unwrap();
            }
        })
    };
    // The writer may not have begun, or have lost its core: then there is nothing to refuse.
    let until = std::time::Instant::now() + PATIENCE;
    let refused = loop {
        match tracker.reset(base()) {
            Ok(()) if std::time::Instant::now() < until => {}
            refused => break refused,
        }
    };
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
    assert!(!tracker.trust().is_trusted());
}

#[test]
fn what_cannot_be_tracked_is_refused_by_name() {
    let disk = Loop::new(BYTES);
    let partition = disk.partition(1, 1 << 20, 8 << 20);
    let error = |device: &Path, wish| cbt::best_tracker(device, wish).map(|_| ()).unwrap_err();
    let part = error(&partition, TrackerWish::Auto);
    assert_eq!(part.kind(), ErrorKind::InvalidInput);
    assert!(part.to_string().contains(&format!("/dev/{}", disk.name())), "{part}");
    assert_eq!(error(&disk.backing, TrackerWish::Auto).kind(), ErrorKind::InvalidInput);
    assert_eq!(error(Path::new("/dev/none"), TrackerWish::Auto).kind(), ErrorKind::NotFound);

    let memory = Zram::new(1 << 20);
    let refused = error(&memory.device, TrackerWish::Only(TrackerKind::Ebpf));
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains(&name_of(&memory.device)), "{refused}");
    let (tracker, why) = cbt::best_tracker(&memory.device, TrackerWish::Auto).unwrap();
    assert_eq!(tracker.kind(), TrackerKind::Scan);
    assert!(why.contains("memory disk"), "{why}");
}

#[test]
fn the_scan_rung_knows_what_it_is_told_and_vouches_for_nothing() {
    let disk = Loop::new(BYTES);
    let (tracker, why) = cbt::best_tracker(&disk.device, TrackerWish::Only(TrackerKind::Scan)).unwrap();
    assert_eq!((tracker.kind().to_string(), why.as_str()), ("scan".into(), "scan: asked for"));
    write(&disk, 4, 4);
    assert_eq!(tracker.backlog().unwrap(), ByteLen::ZERO);
    tracker.mark(&[extent(1 << 16, 1)]).unwrap();
    let taking = tracker.take(ByteLen::new(1 << 30)).unwrap();
    assert_eq!(taking.extents, vec![extent(1 << 16, 1 << 16)]);
    tracker.requeue().unwrap();
    assert!(tracker.acknowledge(taking.number).is_err());
    let taking = tracker.take(ByteLen::new(1 << 30)).unwrap();
    tracker.acknowledge(taking.number).unwrap();
    assert_eq!(tracker.backlog().unwrap(), ByteLen::ZERO);
    tracker.reset(base()).unwrap();
    assert!(!tracker.trust().is_trusted());
    assert_eq!(tracker.begin_scan(PATIENCE).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(tracker.agree(PATIENCE).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(tracker.written().unwrap(), ByteLen::new(4096));
}

/// A memory disk of its own: the only one here that takes bios as they are.
struct Zram {
    number: String,
    device: std::path::PathBuf,
}

impl Zram {
    fn new(bytes: u64) -> Zram {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").unwrap().trim().to_owned();
        let zram = Zram { device: format!("/dev/zram{number}").into(), number };
        // Off by default for memory disks.
        std::fs::write(format!("/sys/block/zram{}/queue/iostats", zram.number), "1").unwrap();
        std::fs::write(format!("/sys/block/zram{}/disksize", zram.number), bytes.to_string()).unwrap();
        wait_for(&zram.device);
        zram
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = cbt::detach_tracker(&format!("zram{}", self.number));
        // A program that another test is just starting may still have the device open.
        for _ in 0..100 {
            if std::fs::write("/sys/class/zram-control/hot_remove", &self.number).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Device-mapper and md take bios too, but this kernel has neither; writes to zram take the same way.
#[test]
fn a_disk_that_takes_bios_is_tracked_by_them() {
    for loops in [Mutant::None, Mutant::BySteps] {
        bios_are_tracked(loops);
    }
}

fn bios_are_tracked(loops: Mutant) {
    let zram = Zram::new(16 << 20);
    let tracker = cbt::open_mutant(&zram.device, loops).unwrap();
    let scan = tracker.begin_scan(PATIENCE).unwrap();
    tracker.finish_scan(scan, base()).unwrap();
    let device = open_direct(&zram.device);
    let data = aligned(2 << 20);
    let mut expected = ExtentSet::new();
    for (block, blocks) in [(3_u64, 1_u64), (7, 300), (4095, 1), (1000, 512)] {
        let len = blocks * KIB_4;
        device.write_all_at(&data[..len as usize], block * KIB_4).unwrap();
        expected.insert(extent(block * KIB_4, len), ());
    }
    assert_eq!(tracker.changed().unwrap(), expected);
    assert_eq!(tracker.agree(PATIENCE).unwrap(), Agreement::Agree, "{:?}", tracker.census().unwrap());
    let census = tracker.census().unwrap();
    assert_eq!((census.queued, census.kernel), (ByteLen::new(814 * KIB_4), ByteLen::new(814 * KIB_4)));
    drop(tracker);
    let lossy = {
        cbt::detach_tracker(&name_of(&zram.device)).unwrap();
        cbt::open_mutant(&zram.device, Mutant::LoseCompletions).unwrap()
    };
    let scan = lossy.begin_scan(PATIENCE).unwrap();
    lossy.finish_scan(scan, base()).unwrap();
    device.write_all_at(&data[..4096], 0).unwrap();
    assert_eq!(lossy.agree(PATIENCE).unwrap(), Agreement::CompletedShort { by: ByteLen::new(4096) });
}
