//! A disk that grows is followed: what lies behind its old end is in the stand-in afterwards, checkpoints from before keep
//! their length, and images of every format become longer.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::io::Seek;
use std::path::Path;
use std::process::Command;
use support::disk::Disk;
use support::guest::Guest;
use support::tapped::{Tapped, logged};
use support::{NAME, Stage, run, sh, uri};

const MIB: u64 = 1 << 20;

/// Writes noise past every cache.
fn noise(device: &str, at_mib: u64, mib: u64) {
    let place = [format!("of={device}"), format!("seek={at_mib}"), format!("count={mib}")];
    run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "oflag=direct", "conv=fsync,notrunc"])
        .args(place));
}

/// Waits until the server follows and the scan is over.
fn wait_followed(stage: &mut Stage, mib: u64) {
    stage.wait_until("protection of the longer disk", 90, |stage| {
        stage.revive();
        let trusted = |tracker: Value| tracker.as_str().is_some_and(|text| !text.contains("not trusted"));
        stage.status("/disks/0/len") == mib * MIB
            && stage.status("/state") == "protected"
            && trusted(stage.status("/disks/0/tracker"))
    });
}

/// The machine at that checkpoint, read over NBD, is that file or device, its length included.
fn assert_recovers(stage: &mut Stage, checkpoint: &str, expected: &Path) {
    let session = stage.insist(&["recover", NAME, "--at", checkpoint, "--drill"]);
    assert_serves(stage, &session, expected);
    stage.insist(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
}

fn assert_serves(stage: &Stage, session: &Value, expected: &Path) {
    let copy = stage.path("served.raw");
    sh(&format!("nbdcopy {} {}", uri(session, 0), copy.display()));
    run(Command::new("cmp").arg(&copy).arg(expected));
    std::fs::remove_file(copy).unwrap();
}

/// The image file alone is that file or device.
fn assert_settled(stage: &mut Stage, at: Option<&str>, format: &str, expected: &Path) -> String {
    let mut command = vec!["settle", NAME];
    command.extend(at.into_iter().flat_map(|at| ["--at", at]));
    let settled = stage.insist(&command);
    let image = settled["images"][0].as_str().unwrap().to_owned();
    sh(&format!("qemu-img compare -f {format} -F raw {image} {}", expected.display()));
    let info: Value =
        serde_json::from_str(&sh(&format!("qemu-img info --output=json -f {format} {image}"))).unwrap();
    let len = std::fs::File::open(expected).unwrap().seek(std::io::SeekFrom::End(0)).unwrap();
    assert_eq!(info["virtual-size"], len, "{image}");
    image
}

fn copy_of(stage: &Stage, name: &str) -> std::path::PathBuf {
    let copy = stage.path(name);
    run(Command::new("cp").arg("--sparse=always").arg(stage.disk.file()).arg(&copy));
    copy
}

#[test]
fn a_disk_that_grows_under_a_writer_is_followed_and_older_checkpoints_keep_their_length() {
    let mut stage = Stage::new(96);
    stage.disk.format();
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage.insist(&["checkpoint", NAME, "--name", "before"]);
    let before = copy_of(&stage, "before.raw");
    // A session is open all the time, with writes of its own.
    let open = stage.insist(&["recover", NAME, "--at", "before", "--drill"]);
    let guest = Guest::attach(&uri(&open, 0), &stage.path("guest"));
    let sessions_disk = copy_of(&stage, "session.raw");
    for disk in [guest.device(), sessions_disk.to_str().unwrap()] {
        run(Command::new("dd")
            .args(["if=/bin/sh", "bs=64K", "count=1", "seek=70", "conv=notrunc,fsync"])
            .arg(format!("of={disk}")));
    }

    let mount = stage.disk.mount(&stage.path("mnt"));
    stage.start_writer(mount.path());
    stage.disk.resize(160);
    wait_followed(&mut stage, 160);
    assert!(stage.writer.as_mut().unwrap().alive(), "the writer was not disturbed");
    stage.stop_writer();
    drop(mount);
    // Not while it is mounted: a kernel may want more rights for that than a test has.
    sh(&format!("e2fsck -fp {}", stage.disk.device()));
    sh(&format!("resize2fs {}", stage.disk.device()));
    let mount = stage.disk.mount(&stage.path("mnt"));
    stage.start_writer(mount.path());
    let fill = format!("of={}/fill", mount.path().display());
    run(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=60", "conv=fsync"]).arg(fill));
    stage.insist(&["checkpoint", NAME, "--name", "under-the-writer"]);
    stage.stop_writer();
    drop(mount);
    sh(&format!("e2fsck -fn {}", stage.disk.device()));
    stage.assert_stand_in_equals_disk("after");

    let gaps = stage.insist(&["checkpoints", NAME]);
    let said = format!("has grown from {} to {} bytes", 96 * MIB, 160 * MIB);
    assert!(gaps["gaps"].to_string().contains(&said), "{gaps}");
    assert!(log(&stage, "server.log").contains(&said));
    drop(guest);
    assert_serves(&stage, &open, &sessions_disk);
    stage.start_server(None);
    stage.wait_until("the session", 60, |stage| {
        stage.us(&["session", "show", open["session"].as_str().unwrap()]).is_ok()
    });
    assert_serves(&stage, &open, &sessions_disk);
    assert_recovers(&mut stage, "before", &before);
    wait_followed(&mut stage, 160);
    stage.assert_stand_in_equals_disk("after-a-restart");

    stage.insist(&["session", "stop", open["session"].as_str().unwrap(), "--discard"]);
    assert_settled(&mut stage, Some("before"), "vpc", &before);
    let device = std::path::PathBuf::from(stage.disk.device());
    stage.agent.take().unwrap().stop();
    assert_settled(&mut stage, None, "vpc", &device);
}

fn log(stage: &Stage, name: &str) -> String {
    std::fs::read_to_string(stage.path(name)).unwrap_or_default()
}

/// Grown while the agent runs, and while it does not; killed while the image becomes longer.
#[test]
fn images_of_every_format_become_longer() {
    for (format, qemu) in [("vhdx", "vhdx"), ("qcow2", "qcow2"), ("vmdk", "vmdk"), ("raw", "raw")] {
        println!("{format}");
        let mut stage = Stage::new(20);
        noise(stage.disk.device(), 3, 9);
        stage.start_server_with(None, &["--image-format", format]);
        stage.start_agent(None);
        stage.wait_protected();
        let device = std::path::PathBuf::from(stage.disk.device());
        assert_settled(&mut stage, None, qemu, &device);
        noise(stage.disk.device(), 18, 2);
        stage.insist(&["checkpoint", NAME, "--name", "before"]);
        let before = copy_of(&stage, "before.raw");

        stage.agent.take().unwrap().stop();
        stage.disk.resize(41);
        noise(stage.disk.device(), 19, 20);
        stage.start_agent(None);
        wait_followed(&mut stage, 41);
        assert!(log(&stage, "agent.log").contains("the disk has 42991616 bytes, it had 20971520"));
        assert_recovers(&mut stage, "before", &before);
        stage.assert_stand_in_equals_disk("stopped-meanwhile");

        stage.disk.resize(70);
        noise(stage.disk.device(), 60, 10);
        wait_followed(&mut stage, 70);
        stage.insist(&["checkpoint", NAME]);
        assert_recovers(&mut stage, "before", &before);
        for step in ["consolidate.resized", "consolidate.grown"] {
            stage.start_server(Some(step));
            let _ = stage.us(&["settle", NAME]);
            assert!(stage.died_at(step), "{step} was never reached\n{}", stage.logs());
            stage.revive();
            wait_followed(&mut stage, 70);
            stage.assert_stand_in_equals_disk(step);
        }
        stage.agent.take().unwrap().stop();
        let image = assert_settled(&mut stage, None, qemu, &device);
        stage.server.take().unwrap().stop();
        if format != "raw" {
            // Room that was made ahead and is not used is what a kill may leave.
            let checked = support::program().args(["--json", "image", "check"]).arg(image).output().unwrap();
            let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
            assert_eq!(report["damaged"], 0, "{report}");
        }
    }
}

#[test]
fn a_kill_at_every_step_of_following_loses_nothing() {
    let mut stage = Stage::new(32);
    noise(stage.disk.device(), 0, 8);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    let mut mib = 32;
    for step in ["grow.published", "grow.followed", "ingest.appended", "seal.synced", "seal.published"] {
        println!("server dies at {step}");
        stage.start_server(Some(step));
        mib += 8;
        stage.disk.resize(mib);
        noise(stage.disk.device(), mib - 9, 9);
        stage.wait_until("a death", 90, |stage| !stage.server_alive());
        assert!(stage.died_at(step), "{step} was never reached\n{}", stage.logs());
        stage.revive();
        wait_followed(&mut stage, mib);
        stage.assert_stand_in_equals_disk(step);
    }
    for step in ["copy.taken", "copy.sent", "barrier.read"] {
        println!("agent dies at {step}");
        stage.start_agent(Some(step));
        mib += 8;
        stage.disk.resize(mib);
        noise(stage.disk.device(), mib - 9, 9);
        stage.wait_until("a death", 90, |stage| {
            noise(stage.disk.device(), mib - 3, 1);
            !stage.agent_alive()
        });
        stage.revive();
        wait_followed(&mut stage, mib);
        stage.assert_stand_in_equals_disk(step);
    }
    let device = std::path::PathBuf::from(stage.disk.device());
    stage.agent.take().unwrap().stop();
    assert_settled(&mut stage, None, "vpc", &device);
}

#[test]
fn what_cannot_be_followed_is_refused_and_nothing_is_damaged() {
    let mut stage = Stage::new(64);
    noise(stage.disk.device(), 0, 8);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    let refused = |stage: &mut Stage, mib: u64, said: &[&str]| {
        stage.disk.resize(mib);
        stage.wait_until("the refused agent's end", 60, |stage| !stage.agent_alive());
        let log = log(stage, "agent.log");
        assert!(said.iter().all(|word| log.contains(word)), "{said:?} in {log}");
        assert_eq!(stage.status("/disks/0/len"), 64 * MIB);
        stage.disk.resize(64);
        stage.start_agent(None);
        wait_followed(stage, 64);
        stage.assert_stand_in_equals_disk(&format!("refused-{mib}"));
    };
    refused(&mut stage, 2041 << 10, &["disk 0", "VHD", "2040 GiB", "--image-format"]);
    refused(&mut stage, 48, &["disk 0", "has shrunk from 67108864 to 50331648 bytes"]);
}

#[test]
fn after_a_failback_to_a_larger_disk_protection_goes_on_with_the_differences_alone() {
    let mut stage = Stage::new(64);
    noise(stage.disk.device(), 0, 48);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage.agent = None;
    let session = stage.insist(&["recover", NAME]);
    let id = session["session"].as_str().unwrap().to_owned();
    let guest = Guest::attach(&uri(&session, 0), &stage.path("guest"));
    noise(guest.device(), 20, 4);
    drop(guest);

    let folder = stage.disk.file().parent().unwrap().to_owned();
    stage.disk = Disk::new(&folder, "replacement", 97);
    // Whatever was on it: behind the old end it is the machine's from now on.
    noise(stage.disk.device(), 95, 2);
    stage.start_agent(None);
    stage.wait_until("the agent", 60, |stage| {
        stage.status("/state") == "promoted"
            && stage.status("/heartbeat_age_ms").as_u64().is_some_and(|age| age < 900)
    });
    let received = |stage: &Stage| stage.status("/disks/0/received_bytes").as_u64().unwrap();
    let before = received(&stage);
    stage.insist(&["failback", &id, "--to", NAME, "--cutover", "--discard-unsent"]);
    wait_followed(&mut stage, 97);
    stage.assert_stand_in_equals_disk("home");
    let sent = received(&stage) - before;
    println!(
        "after the failback to a disk of 97 MiB {sent} bytes were sent, 2 MiB of them behind the old end"
    );
    assert!(sent < 4 * MIB, "{sent} bytes are more than the difference");

    noise(stage.disk.device(), 60, 8);
    stage.assert_stand_in_equals_disk("home-and-written");
    let device = std::path::PathBuf::from(stage.disk.device());
    stage.agent.take().unwrap().stop();
    stage.drop_superseded();
    assert_settled(&mut stage, None, "vpc", &device);
}

/// The tap's device keeps its size while it is there, and protection goes on; after a restart it has the new one.
#[test]
fn a_tapped_disk_is_followed_when_the_agent_starts_again() {
    let mut stage = Stage::new(48);
    noise(stage.disk.device(), 0, 8);
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(&mut stage, port, &[]);
    stage.wait_protected();
    stage.disk.resize(75);
    stage.wait_until("a word about it", 60, |stage| {
        logged(stage).contains("78643200 bytes now, it had 50331648: the tap goes on showing the old size")
    });
    noise(tapped.device(), 40, 8);
    stage.insist(&["checkpoint", NAME, "--name", "still-short"]);
    let short = copy_of(&stage, "short.raw");
    sh(&format!("truncate -s 48M {}", short.display()));
    assert_recovers(&mut stage, "still-short", &short);
    drop(tapped);
    stage.agent = None;

    noise(stage.disk.device(), 70, 5);
    let tapped = Tapped::start(&mut stage, port, &[]);
    wait_followed(&mut stage, 75);
    noise(tapped.device(), 46, 8);
    tapped.wait_in_order(&mut stage);
    stage.assert_stand_in_equals_disk("longer");
    assert_recovers(&mut stage, "still-short", &short);
    drop(tapped);
}
