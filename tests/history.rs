//! The server is killed at every named step of thinning, settling, cloning and deleting; what was to stay is there, and
//! repeating the command comes to its end. Several drills stand side by side meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::Value;
use support::{NAME, Stage, run, sh, uri};

/// Overwrites the same 2 MiB of the disk and takes a checkpoint of that name.
fn round(stage: &mut Stage, name: &str) -> u64 {
    let device = stage.disk.device().to_owned();
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=2 conv=fsync status=none"));
    stage.insist(&["checkpoint", NAME, "--name", name])["checkpoint"].as_u64().unwrap()
}

fn names(stage: &mut Stage) -> Vec<String> {
    let list = stage.insist(&["checkpoints", NAME]);
    let all = list["checkpoints"].as_array().unwrap().iter();
    all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// The bytes of a checkpoint, by way of an export.
fn exported(stage: &mut Stage, at: &str) -> Vec<u8> {
    let path = stage.path("export.raw");
    let _ = std::fs::remove_file(&path);
    stage.insist(&["export", NAME, "--at", at, "-o", path.to_str().unwrap()]);
    std::fs::read(&path).unwrap()
}

/// Restarts the server so that it dies at that step of the command, then has it come to its end.
fn kill_at(stage: &mut Stage, step: &str, command: &[&str], is_done: impl Fn(&mut Stage) -> bool) {
    stage.start_server(Some(step));
    let first = stage.us(command);
    assert!(first.is_err() || !stage.server_alive(), "{step}: {first:?}");
    stage.wait_until(step, 30, |stage| !stage.server_alive());
    assert!(stage.died_at(step), "{step} was not reached\n{}", stage.logs());
    stage.revive();
    if !is_done(stage) {
        stage.insist(command);
    }
    assert!(is_done(stage), "{step}: {command:?} has not come to its end");
}

#[test]
fn killed_at_every_step_of_thin_settle_clone_and_delete() {
    let mut stage = Stage::new(8);
    stage.start_server(None);
    // One of its own between two rounds would keep what the test gives up.
    stage.start_agent_towards(None, stage.port, &["--checkpoint-every", "1h"]);
    stage.wait_protected();
    stage.insist(&["checkpoints", NAME]);
    round(&mut stage, "first");
    let first = exported(&mut stage, "first");
    for step in ["thin.dropped", "thin.written", "thin.published", "thin.removed"] {
        // An agent that has come back takes a checkpoint of its own, which would hold what the inner one is to hold.
        stage.insist(&["checkpoint", NAME]);
        round(&mut stage, "inner");
        round(&mut stage, "last");
        let last = exported(&mut stage, "last");
        kill_at(&mut stage, step, &["checkpoints", "delete", NAME, "inner"], |stage| {
            !names(stage).contains(&"inner".to_owned())
        });
        assert!(exported(&mut stage, "last") == last, "{step}");
        assert!(exported(&mut stage, "first") == first, "{step}");
    }
    // Drills side by side, from two checkpoints.
    let drills: Vec<Value> =
        ["first", "last", "last"].map(|at| stage.insist(&["recover", NAME, "--at", at, "--drill"])).into();
    for (number, drill) in drills.iter().enumerate() {
        run(std::process::Command::new("qemu-io")
            .args(["-f", "raw", "-c"])
            .arg(format!("write -P {} 4M 64k", number + 1))
            .arg(uri(drill, 0)));
    }
    for (number, drill) in drills.iter().enumerate() {
        run(std::process::Command::new("qemu-io")
            .args(["-f", "raw", "-c"])
            .arg(format!("read -P {} 4M 64k", number + 1))
            .arg(uri(drill, 0)));
    }
    let session = |number: usize| drills[number]["session"].as_str().unwrap();
    for (number, step) in ["clone.forked", "clone.sealed"].into_iter().enumerate() {
        let name = format!("clone-{number}");
        let command = ["branch", "clone", session(number), "--name", &name];
        stage.start_server(Some(step));
        let _ = stage.us(&command);
        stage.wait_until(step, 30, |stage| !stage.server_alive());
        stage.revive();
        // One that was made without its checkpoint is given up and made again.
        if !names(&mut stage).contains(&name) {
            let list = stage.insist(&["branches", NAME]);
            let half =
                list["branches"].as_array().unwrap().iter().find(|one| one["name"] == name.as_str()).unwrap();
            stage.insist(&["branch", "drop", NAME, &half["branch"].to_string()]);
            stage.insist(&command);
        }
        let copy = exported(&mut stage, &name);
        assert!(copy[4 << 20..(4 << 20) + 65536].iter().all(|byte| *byte == number as u8 + 1), "{step}");
        // It outlives its session.
        stage.insist(&["session", "stop", session(number), "--discard"]);
        assert!(exported(&mut stage, &name) == copy, "{step}");
    }
    stage.insist(&["session", "stop", session(2), "--discard"]);
    let list = stage.insist(&["branches", NAME]);
    for clone in list["branches"].as_array().unwrap().iter().filter(|one| one["kind"] == "clone") {
        let number = clone["branch"].to_string();
        kill_at(&mut stage, "delete.published", &["branch", "drop", NAME, &number], |stage| {
            let list = stage.insist(&["branches", NAME]);
            !list["branches"].as_array().unwrap().iter().any(|one| one["branch"] == clone["branch"])
        });
    }
    let steps = ["recorded", "marked", "replayed", "unmarked", "published"];
    for (number, step) in steps.iter().map(|step| format!("consolidate.{step}")).enumerate() {
        let name = format!("settled-{number}");
        round(&mut stage, &name);
        let content = exported(&mut stage, &name);
        kill_at(&mut stage, &step, &["settle", NAME, "--at", &name], |stage| {
            // Repeating it is the administrator's way to know.
            stage.us(&["settle", NAME, "--at", &name]).is_ok()
        });
        assert!(exported(&mut stage, &name) == content, "{step}");
        let image = stage.status("/disks/0/image");
        assert!(!image.as_str().unwrap().ends_with(".settling"), "{step}: {image}");
    }
    stage.assert_stand_in_equals_disk("at-rest");
    stage.agent = None;
    stage.wait_until("the machine to be gone", 30, |stage| {
        ["disconnected", "failed", "stopped"].iter().any(|state| stage.status("/state") == *state)
    });
    let unit = stage.path("store").join("units").join(stage.status("/machine").as_str().unwrap());
    let remove = ["machine", "remove", NAME];
    for step in ["delete.closed", "delete.marked"] {
        stage.start_server(Some(step));
        let _ = stage.us(&remove);
        stage.wait_until(step, 30, |stage| !stage.server_alive());
        assert!(stage.died_at(step), "{step} was not reached\n{}", stage.logs());
        assert!(unit.exists(), "{step}");
        if step == "delete.closed" {
            stage.revive();
            assert!(stage.us(&["status", NAME]).is_ok(), "{step}: nothing of it has gone yet");
        }
    }
    // From its mark on the rest goes with the next start, and with the one after where that one dies as well.
    stage.start_server(Some("delete.emptied"));
    assert!(stage.died_at("delete.emptied"), "it was not reached\n{}", stage.logs());
    stage.revive();
    assert!(!unit.exists(), "its space is free again");
    assert!(stage.us(&["status", NAME]).is_err());
}
