//! The whole story with a kill at every named step: protected, lost, served, migrated, home, protected again.
//!
//! Before each action the process that shall die is restarted with `UNDERSTUDY_CRASH_AT`; the action is repeated until
//! it succeeds, as an administrator would; the step must really have been reached; and nothing promised may be lost.
//! Kills at random moments, with a printed seed, are in `random_kills.rs`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::disk::Mount;
use support::guest::Guest;
use support::{NAME, Stage, run, sh, uri};

/// Restarts the server, to die at `step`; does `action`; checks that it died there.
fn server_dies(stage: &mut Stage, step: &str, mut action: impl FnMut(&mut Stage)) {
    println!("server dies at {step}");
    stage.start_server(Some(step));
    action(stage);
    assert!(stage.died_at(step), "{step} was never reached\n{}", stage.logs());
    stage.revive();
}

/// Restarts the agent, to die at `step`; does `action`; checks that it died there.
fn agent_dies(stage: &mut Stage, step: &str, mut action: impl FnMut(&mut Stage)) {
    println!("agent dies at {step}");
    stage.start_agent(Some(step));
    action(stage);
    stage.wait_until(step, 60, |stage| stage.died_at(step));
    stage.revive();
}

/// Repeats a command that may have come too early until it succeeds or kills.
fn try_until_someone_dies(stage: &mut Stage, arguments: &[&str]) {
    stage.wait_until("a success or a death", 60, |stage| {
        stage.us(arguments).is_ok() || !stage.server_alive() || !stage.agent_alive()
    });
}

fn checkpoint(stage: &mut Stage) {
    stage.insist(&["checkpoint", NAME]);
}

#[test]
fn a_kill_at_every_step_loses_nothing_and_work_goes_on() {
    let mut stage = Stage::new(192);
    stage.disk.format();
    let mnt = stage.path("mnt");
    let mount = stage.disk.mount(&mnt);
    run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "count=48", "conv=fsync"])
        .arg(format!("of={}/fill", mnt.display())));
    stage.start_writer(&mnt);
    stage.start_server(None);
    stage.start_agent(None);

    protect(&mut stage);
    stage.stop_writer();
    drop(mount);
    stage.assert_stand_in_equals_disk("at-rest");
    let mount = stage.disk.mount(&mnt);
    stage.start_writer(&mnt);

    let session = lose_and_recover(&mut stage, mount);
    let id = session["session"].as_str().unwrap().to_owned();
    let guest = Guest::attach(&uri(&session, 0), &stage.path("guest"));
    e2fsck(guest.device());
    let mount = Mount::new(guest.device(), &mnt);
    stage.start_writer(&mnt);
    migrate(&mut stage, &id);

    stage.start_agent(None);
    stage.insist(&["failback", &id, "--to", NAME]);
    stage.stop_writer();
    drop(mount);
    drop(guest);
    fail_back(&mut stage, &id);
    e2fsck(stage.disk.device());
    let mount = stage.disk.mount(&mnt);
    assert!(stage.check_ledger(&mnt, None) > 0);

    stage.start_writer(&mnt);
    protect_again(&mut stage);
    stage.stop_writer();
    drop(mount);
    stage.assert_stand_in_equals_disk("home-at-rest");
    settle(&mut stage);
}

/// Ingest, checkpoints and the barrier, each cut short once.
fn protect(stage: &mut Stage) {
    for step in ["ingest.appended", "ingest.synced"] {
        server_dies(stage, step, Stage::wait_protected_again);
    }
    for step in ["copy.taken", "copy.sent"] {
        agent_dies(stage, step, |_| ());
    }
    stage.wait_protected();
    for step in ["seal.synced", "seal.indexed", "seal.published"] {
        server_dies(stage, step, checkpoint);
    }
    for step in ["barrier.frozen", "barrier.read", "barrier.thawed"] {
        agent_dies(stage, step, checkpoint);
    }
}

/// The machine dies in the middle of its writes; the stand-in holds what was promised before its checkpoint.
fn lose_and_recover(stage: &mut Stage, mount: Mount) -> Value {
    checkpoint(stage);
    std::thread::sleep(Duration::from_millis(500));
    stage.stop_writer();
    stage.agent = None;
    drop(mount);
    for step in ["recover.forked", "recover.promoted"] {
        server_dies(stage, step, |stage| {
            let _ = stage.us(&["recover", NAME]);
        });
    }
    let session = stage.insist(&["recover", NAME]);
    let checkpoints = stage.insist(&["checkpoints", NAME]);
    let taken = checkpoints["checkpoints"].as_array().unwrap();
    let base = taken.iter().find(|checkpoint| checkpoint["checkpoint"] == session["checkpoint"]).unwrap();
    let until = base["source_time_ms"].as_u64().unwrap();
    let guest = Guest::attach(&uri(&session, 0), &stage.path("look"));
    let at = stage.path("look-at");
    let mount = Mount::new(guest.device(), &at);
    assert!(stage.check_ledger(&at, Some(until)) > 0, "promises were made before the checkpoint");
    drop(mount);
    drop(guest);
    // What was promised after the checkpoint went with the machine; the ledger goes on from the checkpoint.
    let ledger = std::fs::read_to_string(stage.path("ledger")).unwrap();
    let kept = ledger.lines().filter(|line| {
        line.split(' ').nth(2).and_then(|at| at.parse::<u64>().ok()).is_some_and(|at| at < until)
    });
    std::fs::write(stage.path("ledger"), kept.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    session
}

/// Copies under the running guest and pivots, each step cut short once.
fn migrate(stage: &mut Stage, id: &str) {
    let target = stage.path("production.raw");
    let target = target.to_str().unwrap();
    for step in ["migrate.recorded", "migrate.marked"] {
        server_dies(stage, step, |stage| {
            stage.insist(&["migrate", id, "--to", target]);
        });
    }
    // The wish to pivot is durable: the restarted server goes on with it by itself, into the second kill.
    println!("server dies at pivot.copied, then at pivot.recorded");
    stage.start_server(Some("pivot.copied"));
    let _ = stage.us(&["migrate", id, "--to", target, "--pivot"]);
    stage.wait_until("the first death", 60, |stage| stage.died_at("pivot.copied") && !stage.server_alive());
    stage.start_server(Some("pivot.recorded"));
    stage
        .wait_until("the second death", 60, |stage| stage.died_at("pivot.recorded") && !stage.server_alive());
    stage.insist(&["migrate", id, "--to", target, "--pivot"]);
    let session = stage.insist(&["session", "show", id]);
    assert_eq!(session["disks"][0]["migration"]["state"], "pivoted");
    std::thread::sleep(Duration::from_secs(1));
    assert!(stage.writer.as_mut().unwrap().alive(), "the guest's writer lived through it");
}

/// The differences travel home; each step cut short once, on both sides.
fn fail_back(stage: &mut Stage, id: &str) {
    let cutover =
        |stage: &mut Stage| try_until_someone_dies(stage, &["failback", id, "--to", NAME, "--cutover"]);
    for step in ["restore.ready", "restore.synced"] {
        agent_dies(stage, step, cutover);
    }
    for step in ["failback.sent", "failback.sealed", "failback.adopted"] {
        server_dies(stage, step, cutover);
    }
    agent_dies(stage, "restore.reset", cutover);
    let done = stage.insist(&["failback", id, "--to", NAME, "--cutover"]);
    assert_eq!(done["state"], "home");
    run(Command::new("cmp").arg(stage.path("production.raw")).arg(stage.disk.device()));
}

fn protect_again(stage: &mut Stage) {
    stage.wait_until("charge", 60, |stage| stage.status("/state") == "protected");
    checkpoint(stage);
}

/// The history becomes the image; the image alone equals the disk.
fn settle(stage: &mut Stage) {
    stage.drop_superseded();
    for step in ["consolidate.recorded", "consolidate.replayed", "consolidate.published"] {
        checkpoint(stage);
        server_dies(stage, step, |stage| {
            stage.insist(&["settle", NAME]);
        });
    }
    let settled = stage.insist(&["settle", NAME]);
    let image = settled["images"][0].as_str().unwrap();
    qemu_compare(image, stage.disk.device());
}

fn qemu_compare(image: &str, device: &str) {
    assert!(Path::new(image).exists());
    sh(&format!("qemu-img compare -f vpc -F raw {image} {device}"));
}

fn e2fsck(device: &str) {
    sh(&format!("e2fsck -fn {device}"));
}

impl Stage {
    /// Waits until the server died and came back with a checkpoint newer than before.
    fn wait_protected_again(&mut self) {
        self.wait_until("a death", 60, |stage| !stage.server_alive());
        self.revive();
        self.wait_protected();
    }
}
