//! What goes wrong is said clearly, names the thing, and changes nothing.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::process::Command;
use support::disk::Disk;
use support::{NAME, Stage, run, sh, uri};

/// A stage whose disk is protected and at rest.
fn protected(mib: u64) -> Stage {
    let mut stage = Stage::new(mib);
    stage.disk.format();
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage
}

fn error(result: Result<Value, String>) -> String {
    result.expect_err("this must fail")
}

#[track_caller]
fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "'{error}' does not name {word}");
    }
}

#[test]
fn unknown_names_are_named() {
    let stage = protected(64);
    for arguments in [
        &["status", "nowhere"][..],
        &["checkpoints", "nowhere"],
        &["checkpoint", "nowhere"],
        &["recover", "nowhere"],
        &["verify", "nowhere"],
        &["export", "nowhere", "-o", "/tmp/understudy-never-written"],
        &["machine", "remove", "nowhere"],
    ] {
        assert_names(&error(stage.us(arguments)), &["nowhere"]);
    }
    assert_names(&error(stage.us(&["recover", NAME, "--at", "9999"])), &["9999", NAME]);
    assert_names(&error(stage.us(&["recover", NAME, "--at", "2001-01-01T00:00:00Z"])), &["2001-01-01", NAME]);
    assert_names(&error(stage.us(&["session", "show", "abcdef"])), &["abcdef"]);
    assert_eq!(stage.us(&["sessions"]).unwrap()["sessions"].as_array().unwrap().len(), 0);
}

#[test]
fn wrong_usage_is_exit_status_2() {
    for arguments in [
        &["migrate", "abc"][..],
        &["recover"],
        &["failback", "abc", "--to", "m", "--disk", "x"],
        &["nonsense"],
    ] {
        let output = support::program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = support::program().args(["--control", "/nonexistent/sock", "status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8_lossy(&output.stderr), &["/nonexistent/sock"]);
}

#[test]
fn a_disk_too_large_for_vhd_is_refused_before_anything_is_stored() {
    let mut stage = Stage::new(3 << 20);
    stage.start_server_with(None, &["--image-format", "vhd"]);
    stage.start_agent(None);
    stage.wait_until("the refusal", 60, |stage| stage.logs().contains("2040 GiB") || !stage.agent_alive());
    assert_names(&stage.logs(), &["2040 GiB"]);
    assert_eq!(stage.us(&["status"]).unwrap()["machines"].as_array().unwrap().len(), 0);
}

#[test]
fn a_second_agent_of_that_name_is_refused_and_the_first_goes_on() {
    let mut stage = protected(64);
    let other = Disk::new(stage.disk.file().parent().unwrap(), "other", 64);
    let mut second = support::program();
    second.args(["agent", "--server", &format!("127.0.0.1:{}", stage.port), "--name", NAME]);
    second.arg("--disk").arg(other.device()).arg("--state").arg(stage.path("other-agent"));
    let output =
        Command::new("timeout").arg("20").arg(second.get_program()).args(second.get_args()).output().unwrap();
    assert!(!output.status.success());
    assert_names(&String::from_utf8_lossy(&output.stderr), &[NAME]);
    let mut third = support::program();
    third.args(["agent", "--server", &format!("127.0.0.1:{}", stage.port), "--name", "another"]);
    third.arg("--disk").arg(stage.disk.device()).arg("--state").arg(stage.path("third-agent"));
    let output =
        Command::new("timeout").arg("20").arg(third.get_program()).args(third.get_args()).output().unwrap();
    assert!(!output.status.success(), "one disk, two agents");
    assert_names(&String::from_utf8_lossy(&output.stderr), &[stage.disk.device()]);
    assert!(stage.agent_alive());
    stage.us(&["checkpoint", NAME]).unwrap();
}

#[test]
fn migration_targets_are_checked_first() {
    let stage = protected(64);
    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let id = session["session"].as_str().unwrap();
    let small = Disk::new(stage.disk.file().parent().unwrap(), "small", 32);
    assert_names(&error(stage.us(&["migrate", id, "--to", small.device()])), &[small.device()]);
    let used = stage.path("used");
    std::fs::write(&used, b"somebody's data").unwrap();
    assert_names(&error(stage.us(&["migrate", id, "--to", used.to_str().unwrap()])), &["used"]);
    assert_eq!(std::fs::read(&used).unwrap(), b"somebody's data");
    let mounted = Disk::new(stage.disk.file().parent().unwrap(), "mounted", 128);
    mounted.format();
    let _mount = mounted.mount(&stage.path("mounted-at"));
    assert_names(&error(stage.us(&["migrate", id, "--to", mounted.device()])), &[mounted.device()]);
    assert_names(&error(stage.us(&["migrate", id, "--to", "nbd://127.0.0.1:1/x"])), &["nbd://127.0.0.1:1/x"]);
    sh(&format!("nbdinfo --size {}", uri(&session, 0)));
}

#[test]
fn a_mounted_failback_target_is_refused_and_the_session_goes_on() {
    let mut stage = protected(64);
    let session = stage.us(&["recover", NAME]).unwrap();
    let id = session["session"].as_str().unwrap().to_owned();
    let mount = stage.disk.mount(&stage.path("mnt"));
    stage.wait_until("the fenced agent", 60, |stage| {
        stage.status("/state") == "promoted"
            && stage.status("/heartbeat_age_ms").as_u64().is_some_and(|age| age < 900)
    });
    let refused = error(stage.us(&["failback", &id, "--to", NAME, "--cutover"]));
    assert_names(&refused, &[stage.disk.device(), "mounted"]);
    sh(&format!("nbdinfo --size {}", uri(&session, 0)));
    drop(mount);
    stage.insist(&["failback", &id, "--to", NAME, "--cutover"]);
}

#[test]
fn a_full_store_holds_its_machine_and_goes_on_when_there_is_room() {
    let mut stage = Stage::new(256);
    let medium = Disk::new(stage.disk.file().parent().unwrap(), "medium", 400);
    medium.format();
    let store = stage.path("store");
    let mount = medium.mount(&store);
    let ballast = store.join("ballast");
    run(Command::new("fallocate").args(["-l", "330M"]).arg(&ballast));
    stage.start_server_with(None, &["--reserve", "4MiB"]);
    stage.start_agent(None);
    stage.wait_protected();
    let mut dd = Command::new("dd");
    run(dd
        .args(["if=/dev/urandom", "bs=1M", "count=60", "oflag=direct"])
        .arg(format!("of={}", stage.disk.device())));
    stage.wait_until("the hold", 60, |stage| stage.status("/state") == "held");
    assert!(stage.server_alive() && stage.agent_alive());
    assert_names(&error(stage.us(&["checkpoint", NAME])), &[NAME, "full"]);
    stage.start_agent(None);
    stage.wait_until("the agent that came again", 60, |stage| {
        stage.status("/state") == "held"
            && stage.status("/heartbeat_age_ms").as_u64().is_some_and(|age| age < 2000)
    });
    std::fs::remove_file(&ballast).unwrap();
    stage.wait_until("room", 60, |stage| stage.status("/state") == "protected");
    stage.insist(&["checkpoint", NAME]);
    assert!(
        !stage.us(&["checkpoints", NAME]).unwrap()["gaps"].as_array().unwrap().is_empty(),
        "the hold left a gap"
    );
    stage.server.take().unwrap().stop();
    drop(mount);
}
