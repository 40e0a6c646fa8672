//! Copying a live disk: exact checkpoints, resumption, backpressure.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent_support;
use agent_support::*;
use cbt::TrackerWish;
use std::fs::OpenOptions;
use std::time::Duration;
use wire::{Consistency, Refusal, RefusalKind};

const MIB: u64 = 1 << 20;

/// Freezes the mounted disk itself and compares it with what the server holds after a checkpoint under that freeze.
fn assert_exact_while_idle(server: &Server, disk: &Disk) {
    let (_, content) = server.checkpoint(false);
    assert_same("a checkpoint of a disk at rest", &content[0], &disk.content());
}

#[test]
fn a_mounted_disk_under_load_is_copied_exactly() {
    let disk = Disk::with_ext4(192 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mounted = disk.mount();
    let writer = Writer::start(&mounted.at, Duration::from_millis(5));
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    for _ in 0..3 {
        let (report, content) = server.checkpoint(true);
        assert_eq!(report.consistency, Consistency::FileSystem);
        assert!(report.frozen_ms < 5000, "{report:?}");
        // Byte for byte against a source that keeps being written to: by the hashes of what was not.
        eventually("the verification", || server.model().verify_done(report.request));
        let (wrong, known) = server.model().verified(report.request, &content);
        assert_eq!(wrong, 0, "of {known}");
        assert!(known > 1000, "only {known} blocks were comparable");
        check_ext4(&content[0], folder.path());
    }
    assert!(writer.finish() > 10);
    drop(mounted);
    assert_exact_while_idle(&server, &disk);
    // What reads as zero was not sent: an empty file system of 192 MiB is mostly that.
    let received = server.model().bytes_received;
    assert!(received < 100 * MIB, "{received} bytes were sent");
    agent.stop().unwrap();
    eventually("the goodbye", || server.model().goodbyes == 1);
    assert!(server.model().order_errors.is_empty(), "{:?}", server.model().order_errors);
}

/// A tool of others says that the frozen file system is clean.
fn check_ext4(content: &[u8], folder: &std::path::Path) {
    let image = folder.join("checkpoint.img");
    std::fs::write(&image, content).unwrap();
    run("e2fsck", &["-fn", image.to_str().unwrap()]);
}

#[test]
fn a_cut_connection_costs_no_second_copy() {
    let disk = Disk::new(64 * MIB);
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 64 * MIB, 7);
    drop(file);
    let server = Server::start();
    // Once in the first copy, and again in what follows.
    server.model().rules.cut_after = vec![20 * MIB, 30 * MIB];
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    eventually("both cuts", || server.model().connections == 3);
    server.wait_connected();
    assert_exact_while_idle(&server, &disk);
    let first = server.model().bytes_received;
    let connections = server.model().connections;
    assert!(connections >= 3, "{connections}");
    // The queue and one unanswered range may be sent twice with each cut.
    assert!(first < 64 * MIB + 2 * 26 * MIB, "{first} bytes for a disk of 64 MiB");
    // Tracked now: a cut costs what changed, and a quiet disk nothing.
    let before = server.model().hashes_received;
    server.cut();
    disk.write(5 * MIB, &vec![9; MIB as usize]);
    eventually("a new connection", || server.model().connections > connections);
    server.wait_connected();
    assert_exact_while_idle(&server, &disk);
    let again = server.model().bytes_received - first;
    assert!(again <= 2 * MIB, "{again} bytes for 1 MiB");
    assert_eq!(server.model().hashes_received, before, "a trusted map needs no scan");
    agent.stop().unwrap();
}

#[test]
fn a_restarted_agent_goes_on_from_its_pinned_map() {
    let disk = Disk::new(32 * MIB);
    disk.write(0, &vec![5; 8 * MIB as usize]);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    assert_exact_while_idle(&server, &disk);
    agent.stop().unwrap();
    let before = server.model().bytes_received;
    disk.write(20 * MIB, &vec![6; MIB as usize]);
    eventually("the connection ends", || server.model().goodbyes == 1);
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    eventually("a second hello", || server.model().hellos.len() == 2);
    assert_exact_while_idle(&server, &disk);
    let sent = server.model().bytes_received - before;
    assert!((MIB..=2 * MIB).contains(&sent), "{sent} bytes for 1 MiB");
    let hello = server.model().hellos[1].clone();
    assert!(matches!(hello.disks[0].continuity, wire::Continuity::Tracked { .. }), "{hello:?}");
    assert_eq!(hello.machine, Some(machine_id()));
    agent.stop().unwrap();
}

#[test]
fn no_more_than_the_rate_is_sent_and_heartbeats_go_on() {
    let disk = Disk::new(64 * MIB);
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 6 * MIB, 9);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server, &[&disk], folder.path());
    config.rate = Some(blocks::ByteLen::new(2 * MIB));
    let began = std::time::Instant::now();
    let agent = RunningAgent::start(config);
    eventually("the data", || server.model().bytes_received >= 6 * MIB);
    // The last piece is sent before its pause.
    assert!(began.elapsed() >= Duration::from_millis(2400), "{:?}", began.elapsed());
    assert!(server.model().heartbeats.len() >= 5, "{} heartbeats", server.model().heartbeats.len());
    let (_, content) = server.checkpoint(false);
    assert_same("slowly", &content[0], &disk.content());
    agent.stop().unwrap();
}

#[test]
fn zeroes_and_discards_travel_as_zeroes() {
    let disk = Disk::new(64 * MIB);
    disk.write(0, &vec![1; 16 * MIB as usize]);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    assert_exact_while_idle(&server, &disk);
    assert_eq!(server.model().bytes_received, 16 * MIB);
    assert_eq!(server.model().zero_bytes_received, 0, "the server holds zeroes already");
    run("blkdiscard", &["-o", "0", "-l", &(8 * MIB).to_string(), disk.path()]);
    assert_exact_while_idle(&server, &disk);
    // What is taken in the middle of a discard is taken once more at its end: then what was there before may have been read.
    let bytes = server.model().bytes_received;
    assert!((16 * MIB..=24 * MIB).contains(&bytes), "{bytes} bytes of data");
    let zeroes = server.model().zero_bytes_received;
    assert!((8 * MIB..=16 * MIB).contains(&zeroes), "{zeroes} bytes of zeroes for 8 MiB");
    agent.stop().unwrap();
}

#[test]
fn the_scan_rung_copies_and_takes_checkpoints_too() {
    let disk = Disk::with_ext4(64 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mounted = disk.mount();
    let mut config = config(&server, &[&disk], folder.path());
    config.tracker = TrackerWish::Only(cbt::TrackerKind::Scan);
    config.barrier.budget = Duration::from_secs(20);
    let agent = RunningAgent::start(config);
    std::fs::write(mounted.at.join("file"), vec![3; 3 * MIB as usize]).unwrap();
    let (report, content) = server.checkpoint(true);
    assert_eq!(report.consistency, Consistency::FileSystem);
    eventually("the verification", || server.model().verify_done(report.request));
    assert_eq!(server.model().verified(report.request, &content).0, 0);
    check_ext4(&content[0], folder.path());
    std::fs::write(mounted.at.join("other"), vec![4; 3 * MIB as usize]).unwrap();
    drop(mounted);
    assert_exact_while_idle(&server, &disk);
    agent.stop().unwrap();
}

#[test]
fn a_server_that_never_acknowledges_leaves_everything_marked() {
    let disk = Disk::new(32 * MIB);
    disk.write(0, &vec![5; 4 * MIB as usize]);
    let server = Server::start();
    server.model().rules.never_ack = true;
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    eventually("the data", || server.model().bytes_received == 4 * MIB);
    std::thread::sleep(Duration::from_millis(500));
    assert!(server.model().checkpoints.is_empty(), "no checkpoint without acknowledgement of the first copy");
    agent.stop().unwrap();
    eventually("the goodbye", || server.model().goodbyes == 1);
    server.model().rules.never_ack = false;
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    assert_exact_while_idle(&server, &disk);
    let hello = server.model().hellos[1].clone();
    assert!(matches!(hello.disks[0].continuity, wire::Continuity::Unknown { .. }), "{hello:?}");
    agent.stop().unwrap();
}

#[test]
fn final_refusals_and_second_agents_are_clear_errors() {
    let disk = Disk::new(16 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let first = RunningAgent::start(config(&server, &[&disk], folder.path()));
    server.wait_connected();
    let second = RunningAgent::start(config(&server, &[&disk], folder.path())).wait().unwrap_err();
    assert!(
        second.to_string().contains(disk.path()) && second.to_string().contains("another agent"),
        "{second}"
    );
    first.stop().unwrap();
    let reason = "the disk has shrunk".to_owned();
    server.model().rules.refuse = Some(Refusal { kind: RefusalKind::Disks, reason });
    let refused = RunningAgent::start(config(&server, &[&disk], folder.path())).wait().unwrap_err();
    assert!(refused.to_string().contains("the disk has shrunk"), "{refused}");
}
