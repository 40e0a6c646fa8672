//! How long history is kept, and what happens where there is no room for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use server::Server;
use server::control::api::{CheckpointList, MachineStatus, Reply, Request, ThinnedInfo};
use std::path::Path;
use std::time::{Duration, Instant};
use store::testing::Random;

const DISK: usize = 1 << 20;

async fn history(data: &Path, name: &str) -> CheckpointList {
    match ask(data, Request::Checkpoints { machine: name.into() }).await.unwrap() {
        Reply::Checkpoints(list) => list,
        other => panic!("{other:?}"),
    }
}

async fn set(data: &Path, name: &str, keep: Option<&str>, quota: Option<u64>) -> MachineStatus {
    let request = Request::SetMachine {
        machine: name.into(),
        keep: keep.map(Into::into),
        quota,
        on_failure: None,
        probe: None,
        drill_every_ms: None,
        drill_boot: None,
    };
    match ask(data, request).await.unwrap() {
        Reply::Status(mut status) => status.machines.remove(0),
        other => panic!("{other:?}"),
    }
}

fn protect(name: &str, checkpoint: u64, until: Option<&str>) -> Request {
    let until = until.map(Into::into);
    Request::ProtectCheckpoint { machine: name.into(), checkpoint: checkpoint.to_string(), until }
}

async fn wait_for(
    data: &Path,
    name: &str,
    what: &str,
    holds: impl Fn(&MachineStatus) -> bool,
) -> MachineStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = machine_state(data, name).await;
        if holds(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "waited for {what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reached_quota_stops_that_machine_alone_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    // Long enough that nothing goes by age, and looked at every few seconds.
    config.keep = server::Ladder::all(Duration::from_secs(30));
    let running = Server::start(config).await.unwrap();
    let mut random = Random::new(8);
    let (mut bounded, mut free) = (Machine::new(data, "bounded", DISK), Machine::new(data, "free", DISK));
    let (mut link, mut other) = (bounded.connect().await, free.connect().await);
    bounded.write_random(&mut link, &mut random).await.unwrap();
    let first = bounded.checkpoint(&mut link).await;
    ask(data, protect("bounded", first.0, Some("forever"))).await.unwrap();
    let status = set(data, "bounded", None, Some(3 << 20)).await;
    assert_eq!(status.space.quota_bytes, Some(3 << 20));
    while !bounded.held {
        bounded.write_random(&mut link, &mut random).await.unwrap();
        if bounded.sent % 20 == 0 {
            bounded.report_checkpoint(&mut link, None).await.unwrap();
        }
        bounded.heartbeat(&mut link).await;
        bounded.hear_what_is_there(&mut link).await;
        assert!(bounded.sent < 3000, "its quota was never reached");
    }
    let status = machine_state(data, "bounded").await;
    assert_eq!(status.state, "held");
    assert!(status.detail.contains("quota"), "{}", status.detail);
    assert!(status.alarms.iter().any(|alarm| alarm.alarm == "held"), "{status:?}");
    assert!(status.pins.iter().any(|pin| pin.contains("protection")), "the holder is named: {status:?}");
    let acked = bounded.acked;
    // The other machine is as well as ever.
    free.write_random(&mut other, &mut random).await.unwrap();
    let checkpoint = free.checkpoint(&mut other).await;
    assert_same(&free.disk, &exported(data, "free", checkpoint).await, "the other machine");
    let status = machine_state(data, "free").await;
    assert!(status.state == "protected" && status.alarms.is_empty() && status.gaps == 0, "{status:?}");
    // What held the horizon is let go: its history is shortened, and it goes on by itself.
    bounded.heartbeat(&mut link).await;
    ask(data, protect("bounded", first.0, None)).await.unwrap();
    assert!(bounded.hear_until(&mut link, |machine| !machine.held && machine.acked == machine.sent).await);
    assert!(bounded.acked > acked);
    let checkpoint = bounded.checkpoint(&mut link).await;
    assert_same(&bounded.disk, &exported(data, "bounded", checkpoint).await, "after its quota was reached");
    let gaps = history(data, "bounded").await.gaps;
    assert!(gaps.iter().any(|gap| gap.cause.contains("quota") && gap.until_ms != 0), "{gaps:?}");
    // Removing the machine frees what it took up.
    let unit = data.join("units").join(bounded.machine.unwrap().to_string());
    assert!(unit.exists());
    drop(link);
    wait_for_state(data, "bounded", "disconnected").await;
    ask(data, Request::RemoveMachine { machine: "bounded".into() }).await.unwrap();
    assert!(!unit.exists());
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_history_the_plain_image_is_always_the_newest_state() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut random = Random::new(9);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.checkpoint(&mut link).await;
    assert_eq!(machine_state(data, "web").await.keep, "all=4h,hourly=2d,daily=14d");
    assert_eq!(set(data, "web", Some("none"), None).await.keep, "none");
    for _ in 0..2 {
        for _ in 0..20 {
            machine.write_random(&mut link, &mut random).await.unwrap();
        }
        let checkpoint = machine.checkpoint(&mut link).await;
        let held = |status: &MachineStatus| status.disks[0].horizon == Some(checkpoint.0);
        let status = wait_for(data, "web", "the image to follow", held).await;
        assert!(status.disks[0].image.ends_with("image.raw"), "{status:?}");
        assert_same(&machine.disk, &std::fs::read(&status.disks[0].image).unwrap(), "the image alone");
        assert_eq!(history(data, "web").await.checkpoints.len(), 1);
    }
    let (kind, message) = ask(
        data,
        Request::SetMachine {
            machine: "web".into(),
            keep: Some("soon".into()),
            quota: None,
            on_failure: None,
            probe: None,
            drill_every_ms: None,
            drill_boot: None,
        },
    )
    .await
    .unwrap_err();
    assert!(kind == "invalid-input" && message.contains("all=4h,hourly=2d,daily=14d"), "{message}");
    assert_eq!(set(data, "web", Some("default"), None).await.keep, "all=4h,hourly=2d,daily=14d");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_protected_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut random = Random::new(10);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    let mut disks = Vec::new();
    for _ in 0..5 {
        for _ in 0..30 {
            machine.write_random(&mut link, &mut random).await.unwrap();
        }
        disks.push((machine.checkpoint(&mut link).await, machine.disk.clone()));
    }
    let delete = |checkpoints: &[u64]| Request::DeleteCheckpoints {
        machine: "web".into(),
        checkpoints: checkpoints.iter().map(ToString::to_string).collect(),
    };
    let [_, second, third, fourth, newest] = [0, 1, 2, 3, 4].map(|i: usize| disks[i].0.0);
    let Reply::Checkpoint(info) = ask(data, protect("web", third, Some("2999-01-01"))).await.unwrap() else {
        panic!("another answer");
    };
    assert_eq!(info.protected_until.as_deref(), Some("2999-01-01T00:00:00Z"));
    let (kind, message) = ask(data, delete(&[second, third])).await.unwrap_err();
    assert!(kind == "busy" && message.contains("protection"), "{message}");
    let (_, message) = ask(data, delete(&[newest])).await.unwrap_err();
    assert!(message.contains("newest"), "{message}");
    let (kind, _) = ask(data, delete(&[99])).await.unwrap_err();
    assert_eq!(kind, "not-found");
    let before = machine_state(data, "web").await.space.journal_bytes;
    let Reply::Thinned(ThinnedInfo { deleted, freed_bytes, .. }) =
        ask(data, delete(&[second, fourth])).await.unwrap()
    else {
        panic!("another answer");
    };
    assert_eq!(deleted, [second, fourth]);
    assert!(freed_bytes > 0);
    assert!(machine_state(data, "web").await.space.journal_bytes < before);
    disks.retain(|(id, _)| ![second, fourth].contains(&id.0));
    for (id, disk) in &disks {
        assert_same(disk, &exported(data, "web", *id).await, &format!("checkpoint {id}"));
    }
    let (kind, message) = ask(data, protect("web", third, Some("2001-01-01"))).await.unwrap_err();
    assert!(kind == "invalid-input" && message.contains("past"), "{message}");
    ask(data, protect("web", third, None)).await.unwrap();
    ask(data, delete(&[third])).await.unwrap();
    let left: Vec<u64> = history(data, "web").await.checkpoints.iter().map(|one| one.checkpoint).collect();
    assert_eq!(left, [disks[0].0.0, newest]);
    running.shutdown().await.unwrap();
}
