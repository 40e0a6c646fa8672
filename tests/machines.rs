//! Machines that are not the usual one: several disks, a tracker that has to hash.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::process::Command;
use support::disk::Disk;
use support::{NAME, Stage, run, sh, uri};

/// Overwrites 4 KiB at that MiB of a device, past the page cache.
fn scribble(device: &str, mib: u64) {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/urandom", "bs=4k", "count=1", "oflag=direct", "conv=notrunc"]);
    run(dd.arg(format!("seek={}", mib * 256)).arg(format!("of={device}")));
}

fn assert_export_equals(stage: &Stage, uri: &str, device: &str) {
    let copy = stage.path("copy.raw");
    sh(&format!("nbdcopy {uri} {}", copy.display()));
    run(Command::new("cmp").arg(&copy).arg(device));
    std::fs::remove_file(copy).unwrap();
}

#[test]
fn several_disks_are_one_checkpoint_one_session_one_failback() {
    let mut stage = Stage::new(64);
    let second = Disk::new(stage.disk.file().parent().unwrap(), "second", 96);
    let (first_device, second_device) = (stage.disk.device().to_owned(), second.device().to_owned());
    scribble(&first_device, 3);
    scribble(&second_device, 90);
    stage.start_server(None);
    let port = stage.port;
    stage.start_agent_towards(None, port, &["--disk", &second_device]);
    stage.wait_protected();
    scribble(&second_device, 7);
    stage.insist(&["checkpoint", NAME, "--name", "both"]);

    let session = stage.insist(&["recover", NAME, "--at", "both"]);
    let id = session["session"].as_str().unwrap().to_owned();
    let uris = [uri(&session, 0), uri(&session, 1)];
    assert_eq!(sh(&format!("nbdinfo --size {}", uris[1])).trim(), (96u64 << 20).to_string());
    assert_export_equals(&stage, &uris[0], &first_device);
    assert_export_equals(&stage, &uris[1], &second_device);

    for uri in &uris {
        run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 7 20M 128k", uri]));
        run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -z 3M 64k", uri]));
    }
    let wanted: Vec<_> = (0..2).map(|disk| stage.path(&format!("wanted{disk}"))).collect();
    for (uri, copy) in uris.iter().zip(&wanted) {
        sh(&format!("nbdcopy {uri} {}", copy.display()));
    }
    let home = stage.insist(&["failback", &id, "--to", NAME, "--cutover"]);
    assert_eq!(home["disks"].as_array().unwrap().len(), 2);
    assert!(home["disks"].as_array().unwrap().iter().all(|disk| disk["known"] == true));
    run(Command::new("cmp").arg(&wanted[0]).arg(&first_device));
    run(Command::new("cmp").arg(&wanted[1]).arg(&second_device));

    scribble(&first_device, 40);
    stage.wait_until("charge", 60, |stage| stage.status("/state") == "protected");
    stage.insist(&["checkpoint", NAME, "--name", "again"]);
    let drill = stage.insist(&["recover", NAME, "--at", "again", "--drill"]);
    assert_export_equals(&stage, &uri(&drill, 0), &first_device);
    assert_export_equals(&stage, &uri(&drill, 1), &second_device);
}

#[test]
fn without_a_tracker_hashes_find_what_changed() {
    let mut stage = Stage::new(64);
    let device = stage.disk.device().to_owned();
    scribble(&device, 5);
    stage.start_server(None);
    let port = stage.port;
    stage.start_agent_towards(None, port, &["--tracker", "scan"]);
    stage.wait_protected();
    scribble(&device, 31);
    let before = stage.status("/disks/0/received_bytes").as_u64().unwrap();
    stage.assert_stand_in_equals_disk("scanned");
    let received = stage.status("/disks/0/received_bytes").as_u64().unwrap() - before;
    assert!(received <= 256 << 10, "4 KiB changed and {received} bytes came");
    let verified = stage.insist(&["verify", NAME]);
    assert_eq!(verified["disks"][0]["differing"].as_array().unwrap().len(), 0);
}
