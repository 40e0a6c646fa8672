//! A machine falls silent: nobody is promoted while a second opinion says that it lives, somebody is once it does not,
//! and never without having been heard of.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::{NAME, Stage};

/// A program that is asked whether the machine lives, and says so as long as the file is there.
fn asked(stage: &Stage, lives: &Path) -> String {
    let program = stage.path("asked");
    std::fs::write(&program, format!("#!/bin/sh\ntest \"$1\" = {NAME} && test -e {}\n", lives.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("command:{}", program.display())
}

fn state(stage: &Stage) -> (String, String) {
    let text = |pointer| stage.status(pointer).as_str().unwrap_or_default().to_owned();
    (text("/state"), text("/detail"))
}

#[test]
fn a_machine_is_recovered_by_itself_once_a_second_opinion_agrees() {
    let mut stage = Stage::new(32);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    let error = stage.us(&["machine", "set", NAME, "--on-failure", "recover"]).unwrap_err();
    assert!(error.contains("second opinion"), "{error}");
    let lives = stage.path("lives");
    std::fs::write(&lives, "").unwrap();
    let probe = asked(&stage, &lives);
    stage.us(&["machine", "set", NAME, "--on-failure", "recover", "--probe", &probe]).unwrap();
    assert_eq!(stage.status("/on_failure"), format!("recover, after asking {probe}"));

    stage.agent = None;
    stage.wait_until("a second opinion", 60, |stage| state(stage).1.contains("the machine lives"));
    assert_eq!(state(&stage).0, "failed");
    let alarm = stage.status("/alarms/0/words");
    assert!(alarm.as_str().unwrap().contains("the machine lives"), "{alarm}");

    // Heard of again, it is no longer failed; a clean stop is no failure at all.
    stage.start_agent(None);
    stage.wait_until("protection", 60, |stage| state(stage).0 == "protected");
    stage.agent.take().unwrap().stop();
    stage.wait_until("the goodbye", 30, |stage| state(stage).0 == "stopped");
    std::fs::remove_file(&lives).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(state(&stage).0, "stopped", "a stop in order is no failure, whoever is asked");

    std::fs::write(&lives, "").unwrap();
    stage.start_agent(None);
    stage.wait_until("protection", 60, |stage| state(stage).0 == "protected");
    stage.agent = None;
    std::fs::remove_file(&lives).unwrap();
    stage.wait_until("the recovery", 60, |stage| state(stage).0 == "promoted");
    let sessions = stage.us(&["sessions"]).unwrap();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1, "{sessions}");
    stage.start_agent(None);
    stage.wait_until("the agent to be told", 60, |stage| state(stage).1.contains("is in charge"));
}

#[test]
fn a_machine_that_was_not_heard_of_since_the_server_started_is_left_to_people() {
    let mut stage = Stage::new(32);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage.us(&["machine", "set", NAME, "--on-failure", "recover", "--probe", "none"]).unwrap();
    stage.server.take().unwrap().kill();
    stage.agent = None;
    stage.start_server(None);
    stage.wait_until("the deadline", 30, |stage| state(stage).0 == "failed");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(state(&stage).0, "failed");
    assert_eq!(stage.status("/on_failure"), "recover, by heartbeats alone", "it is kept over a restart");
}
