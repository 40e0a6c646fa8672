//! A write that is queued, taken and read before the device has done it must be read again. On a device whose writes
//! take a while this separates the real tracker from mutants of it, each of which must be noticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tracker_support;

use blocks::ByteLen;
use cbt::{Agreement, Mutant, TrackerWish};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tracker_support::*;

const BYTES: u64 = 16 << 20;
const AT: u64 = 5 << 20;

/// A loop device over an NBD export that thinks about each write for a while before doing it, while reads go on.
struct Delayed {
    disk: Option<Loop>,
    servers: Vec<Child>,
    mountpoint: PathBuf,
    _folder: tempfile::TempDir,
}

impl Delayed {
    fn new() -> Delayed {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (socket, mountpoint) = (at("socket"), at("mnt"));
        std::fs::create_dir(&mountpoint).unwrap();
        let backing = mountpoint.join("nbd");
        let mut delayed = Delayed { disk: None, servers: Vec::new(), mountpoint, _folder: folder };
        delayed.start(Command::new("nbdkit").arg("-f").arg("-U").arg(&socket).args([
            "--filter=delay",
            "memory",
            &format!("size={BYTES}"),
            "wdelay=5",
        ]));
        wait_for(&socket);
        // Several connections: over one, a read would wait for the write before it.
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        delayed.start(Command::new("nbdfuse").args(["-C", "4"]).arg(&backing).arg(uri));
        wait_for(&backing);
        // Direct, because in the page cache of the file below a read waits as well.
        let output = run("losetup", &["-f", "--show", "--direct-io=on", backing.to_str().unwrap()]);
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        delayed.disk = Some(Loop { device, backing, folder: tempfile::tempdir().unwrap() });
        delayed
    }

    fn start(&mut self, command: &mut Command) {
        self.servers.push(command.stdout(Stdio::null()).spawn().unwrap());
    }

    fn disk(&self) -> &Loop {
        self.disk.as_ref().unwrap()
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        // Once: the number may be another test's a moment later.
        drop(self.disk.take());
        for _ in 0..50 {
            if Command::new("umount").arg(&self.mountpoint).output().is_ok_and(|done| done.status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for server in self.servers.iter_mut().rev() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// How the story ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The copy was the disk after the last drain, before any counting.
    equal_by_marks: bool,
    /// What the barrier's counts said.
    agreement: Agreement,
    /// The copy was the disk after the barrier.
    equal_after_barrier: bool,
    trusted: bool,
}

/// A direct write is queued; its block is taken and read (old data); the write completes; what is marked is copied.
fn read_before_completion(mutant: Mutant) -> Outcome {
    let delayed = Delayed::new();
    let disk = delayed.disk();
    let tracker = cbt::open_mutant(&disk.device, mutant).unwrap();
    let mut copy = Copy::begin(&*tracker, disk);
    copy.drain(&*tracker);

    let writer = {
        let device = open_direct(&disk.device);
        std::thread::spawn(move || {
            let data = aligned(8192);
            data.fill(0xa5);
            device.write_all_at(data, AT).unwrap();
        })
    };
    let seen_at_queueing = wait_until(|| tracker.backlog().unwrap() == ByteLen::new(8192));
    assert_eq!(seen_at_queueing, mutant != Mutant::LoseQueued);
    copy.drain(&*tracker);
    if seen_at_queueing {
        assert!(!writer.is_finished(), "the device was too quick to show anything");
        assert_eq!(first_byte(&copy), 0, "old data was to be read");
    }
    writer.join().unwrap();
    copy.drain(&*tracker);
    let equal_by_marks = first_byte(&copy) == 0xa5;

    let agreement = tracker.agree(PATIENCE).unwrap();
    copy.drain(&*tracker);
    if matches!(agreement, Agreement::CompletedShort { .. }) {
        assert_eq!(tracker.agree(PATIENCE).unwrap(), Agreement::Agree);
    }
    let equal_after_barrier = copy.differing(disk).is_empty();
    Outcome { equal_by_marks, agreement, equal_after_barrier, trusted: tracker.trust().is_trusted() }
}

fn first_byte(copy: &Copy) -> u8 {
    let mut byte = [0];
    std::fs::File::open(&copy.path).unwrap().read_exact_at(&mut byte, AT).unwrap();
    byte[0]
}

fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    for _ in 0..1000 {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

#[test]
fn the_real_tracker_copies_what_completed_after_it_was_read() {
    let outcome = read_before_completion(Mutant::None);
    println!("{outcome:?}");
    // Where the kernel does not report the completion to the tracker, counting has to make up for it.
    match outcome.agreement {
        Agreement::Agree => assert!(outcome.equal_by_marks),
        Agreement::CompletedShort { by } => assert_eq!(by, ByteLen::new(8192)),
        other => panic!("{other:?}"),
    }
    assert!(outcome.equal_after_barrier && outcome.trusted);
}

#[test]
fn a_tracker_that_marks_only_at_queueing_loses_the_write() {
    let outcome = read_before_completion(Mutant::MarkOnlyQueued);
    println!("{outcome:?}");
    assert!(!outcome.equal_by_marks, "this device cannot tell the mutant from the real tracker");
    // Its counts are right, so nothing but the second mark could have saved it (unless the kernel lost the completion).
    if outcome.agreement == Agreement::Agree {
        assert!(!outcome.equal_after_barrier);
    }
}

#[test]
fn lost_completions_are_found_by_counting_and_read_again() {
    let outcome = read_before_completion(Mutant::LoseCompletions);
    assert_eq!(
        outcome,
        Outcome {
            equal_by_marks: false,
            agreement: Agreement::CompletedShort { by: ByteLen::new(8192) },
            equal_after_barrier: true,
            trusted: true,
        }
    );
}

#[test]
fn writes_that_were_not_seen_when_queued_end_the_trust() {
    let outcome = read_before_completion(Mutant::LoseQueued);
    assert_eq!(outcome.agreement, Agreement::QueuedShort { by: ByteLen::new(8192) });
    assert!(!outcome.trusted);
}

#[test]
fn a_write_in_flight_is_neither_agreement_nor_a_place_to_begin_a_scan() {
    let delayed = Delayed::new();
    let disk = delayed.disk();
    let (tracker, _) = cbt::best_tracker(&disk.device, TrackerWish::Auto).unwrap();
    let scan = tracker.begin_scan(PATIENCE).unwrap();
    let device = open_direct(&disk.device);
    let writer = std::thread::spawn(move || device.write_all_at(aligned(4096), AT).unwrap());
    assert!(wait_until(|| tracker.backlog().unwrap() == ByteLen::new(4096)));
    let short = Duration::from_millis(20);
    assert_eq!(tracker.agree(short).unwrap(), Agreement::InFlight { bytes: ByteLen::new(4096) });
    assert_eq!(tracker.begin_scan(short).unwrap_err().kind(), blocks::ErrorKind::Busy);
    writer.join().unwrap();
    assert!(tracker.finish_scan(scan, base()).is_err(), "the second begin voided the first");
    assert!(tracker.begin_scan(PATIENCE).is_ok());
}
