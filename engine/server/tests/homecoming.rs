//! The way home through a real server: a machine fails, its session is written to, and a scripted agent is the target.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blocks::{ByteLen, DiskIndex, RequestClass, Volume};
use common::*;
use nbd_server::ListenAddress;
use server::control::api::{Reply, Request};
use std::path::Path;
use std::time::Duration;
use store::testing::Random;
use wire::{
    AgentMessage, HashPurpose, HashReport, Payload, RestoreReady, Role, ServerMessage, StartFrom,
    TargetKnowledge,
};

const DISK: usize = 4 << 20;

/// Answers a failback as an agent that knows nothing of its disk; returns at its end.
async fn be_restored(machine: &mut Machine, link: &mut Link) {
    loop {
        let message = link.receiver.recv().await.unwrap().unwrap();
        let answer = match message {
            ServerMessage::RestoreBegin(begin) => {
                let disks = vec![TargetKnowledge::Unknown { reason: "a power cut".into() }];
                AgentMessage::RestoreReady(RestoreReady { restore: begin.restore, disks })
            }
            ServerMessage::RestoreHash { restore, disk, range } => {
                let hash = |block: blocks::Extent| {
                    let at = block.start().get() as usize;
                    Some(*blake3::hash(&machine.disk[at..at + block.len().as_usize()]).as_bytes())
                };
                AgentMessage::Hashes(HashReport {
                    purpose: HashPurpose::Restore { restore },
                    disk,
                    range,
                    block: blocks::BlockShift::KIB_64,
                    hashes: range.split(blocks::BlockShift::KIB_64.len()).map(hash).collect(),
                })
            }
            ServerMessage::RestoreRead { restore, disk, range } => {
                let at = range.start().get() as usize;
                let payload = Payload::Data(machine.disk[at..at + range.len().as_usize()].to_vec());
                AgentMessage::RestoreData { restore, disk, extent: range, payload }
            }
            ServerMessage::RestoreWrite { extent, payload, .. } => {
                let at = extent.start().get() as usize;
                let target = &mut machine.disk[at..at + extent.len().as_usize()];
                match payload {
                    Payload::Data(data) => target.copy_from_slice(&data),
                    Payload::Zero => target.fill(0),
                }
                continue;
            }
            ServerMessage::RestoreSync { restore, sync } => AgentMessage::RestoreSynced { restore, sync },
            ServerMessage::RestoreFinish { restore, generation, seqs, .. } => {
                machine.generation = generation;
                machine.sent = machine.sent.max(seqs[0].1.0);
                machine.acked = seqs[0].1.0;
                machine.pending.clear();
                link.sender.send(&AgentMessage::RestoreFinished { restore }).await.unwrap();
                return;
            }
            other => panic!("{other:?}"),
        };
        link.sender.send(&answer).await.unwrap();
    }
}

async fn session_of(data: &Path) -> server::control::api::SessionInfo {
    let recover = Request::Recover { machine: "web".into(), at: None, drill: false, boot: None };
    match ask(data, recover).await.unwrap() {
        Reply::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_comes_home_and_is_protected_again_without_a_new_copy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.nbd = vec![ListenAddress::Unix(data.join("nbd.sock"))];
    let running = server::Server::start(config).await.unwrap();
    let mut random = Random::new(8);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    for _ in 0..40 {
        machine.write_random(&mut link, &mut random).await.unwrap();
    }
    machine.checkpoint(&mut link).await;
    drop(link);
    let session = session_of(data).await;
    assert!(session.rto_ms < 1000, "{session:?}");

    // The guest writes; the machine's own disk is scrambled meanwhile.
    let mut expected = machine.disk.clone();
    expected[1 << 20..(1 << 20) + 8192].fill(0xab);
    let uri = session.disks[0].uris[0].clone();
    tokio::task::spawn_blocking(move || {
        let disk = nbd_server::NbdVolume::connect(&uri.parse().unwrap()).unwrap();
        let at = blocks::ByteOffset::new(1 << 20);
        disk.write_at(at, &[0xab; 8192], true, RequestClass::Guest).unwrap();
        assert_eq!(disk.len(), ByteLen::new(DISK as u64));
    })
    .await
    .unwrap();
    random.fill(&mut machine.disk[2 << 20..3 << 20]);

    let mut link = machine.connect().await;
    assert!(matches!(link.welcome.role, Role::Standby { .. }));
    let failback = Request::Failback {
        session: session.session.clone(),
        to: "web".into(),
        disks: Vec::new(),
        cutover: true,
        discard_unsent: true,
    };
    let asked = {
        let data = data.to_owned();
        tokio::spawn(async move { ask(&data, failback).await })
    };
    tokio::time::timeout(Duration::from_secs(60), be_restored(&mut machine, &mut link)).await.unwrap();
    let Reply::Failback(home) = asked.await.unwrap().unwrap() else { panic!("another reply") };
    assert_eq!(home.state, "home");
    assert_same(&expected, &machine.disk, "the machine after failback");

    // On the same connection the machine is the source again; nothing is copied anew.
    wait_for_state(data, "web", "protected").await;
    for _ in 0..10 {
        machine.write_random(&mut link, &mut random).await.unwrap();
    }
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "protected again");
    // And over another one it goes on from its marks, under the new generation.
    drop(link);
    let mut link = machine.connect().await;
    assert_eq!(link.welcome.disks[0].start, StartFrom::Marked);
    assert_eq!(link.welcome.role, Role::Source);
    machine.disk[..512].fill(3);
    machine.send(&mut link, extent(0, 512)).await.unwrap();
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "after connecting again");
    assert_eq!(DiskIndex(0), DiskIndex(home.disks[0].index));
    running.shutdown().await.unwrap();
}

fn failback_of(session: &str, cutover: bool) -> Request {
    Request::Failback {
        session: session.into(),
        to: "web".into(),
        disks: Vec::new(),
        cutover,
        discard_unsent: false,
    }
}

async fn shown(data: &Path, session: &str) -> server::control::api::SessionInfo {
    match ask(data, Request::Session { session: session.into() }).await.unwrap() {
        Reply::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

async fn write_to(session: &server::control::api::SessionInfo, at: u64) {
    let uri = session.disks[0].uris[0].clone();
    let write = move || {
        let disk = nbd_server::NbdVolume::connect(&uri.parse().unwrap()).unwrap();
        disk.write_at(blocks::ByteOffset::new(at), &[0xcd; 4096], true, RequestClass::Guest).unwrap();
    };
    tokio::task::spawn_blocking(write).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_in_step_waits_for_the_next_call_as_long_as_the_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.nbd = vec![ListenAddress::Unix(data.join("nbd.sock"))];
    let running = server::Server::start(config).await.unwrap();
    let mut random = Random::new(10);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    for _ in 0..40 {
        machine.write_random(&mut link, &mut random).await.unwrap();
    }
    machine.checkpoint(&mut link).await;
    drop(link);
    let session = session_of(data).await;
    let mut expected = machine.disk.clone();
    let id = session.session.clone();

    // One that waits is gone with its connection; the call after that begins anew.
    for (round, connections) in [1_usize, 2].into_iter().enumerate() {
        let at = (round + 1) << 20;
        expected[at..at + 4096].fill(0xcd);
        write_to(&session, at as u64).await;
        let mut link = machine.connect().await;
        let first = {
            let (data, request) = (data.to_owned(), failback_of(&id, false));
            tokio::spawn(async move { ask(&data, request).await })
        };
        let played = tokio::select! {
            // Returns when the connection is dropped or the machine is in charge, neither of which happens here.
            () = be_restored(&mut machine, &mut link) => panic!("it was not to finish"),
            first = first => first.unwrap().unwrap(),
        };
        let Reply::Failback(first) = played else { panic!("another reply") };
        assert_eq!(first.state, "in-step");
        let waiting = shown(data, &id).await;
        assert!(waiting.detail.starts_with("in step with web, 0.0 MiB"), "{waiting:?}");
        assert_eq!(waiting.state, "running");
        let status = machine_state(data, "web").await;
        assert_eq!((status.state.as_str(), &status.detail), ("failing-back", &waiting.detail));
        if connections == 1 {
            drop(link);
            let deadline = std::time::Instant::now() + PATIENCE;
            while !shown(data, &id).await.detail.is_empty() {
                assert!(std::time::Instant::now() < deadline, "it waits for nobody");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            continue;
        }
        expected[..4096].fill(0xcd);
        write_to(&session, 0).await;
        let last = {
            let (data, request) = (data.to_owned(), failback_of(&id, true));
            tokio::spawn(async move { ask(&data, request).await })
        };
        tokio::time::timeout(Duration::from_secs(60), be_restored(&mut machine, &mut link)).await.unwrap();
        let Reply::Failback(home) = last.await.unwrap().unwrap() else { panic!("another reply") };
        assert_eq!(home.state, "home");
        let hashed = DISK as u64 + home.disks[0].verified_bytes;
        assert_eq!(home.disks[0].hashed_bytes, hashed, "the unknown disk was hashed once, by the first call");
    }
    assert_same(&expected, &machine.disk, "the machine after failback");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_go_into_the_image_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.keep = server::Ladder::all(Duration::from_secs(1));
    let running = server::Server::start(config).await.unwrap();
    let mut random = Random::new(9);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    for _ in 0..5 {
        for _ in 0..20 {
            machine.write_random(&mut link, &mut random).await.unwrap();
        }
        machine.checkpoint(&mut link).await;
    }
    let newest = machine.sealed.last().unwrap().1;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        machine.heartbeat(&mut link).await;
        let state = machine_state(data, "web").await;
        if state.disks[0].horizon == Some(newest.0) {
            assert_eq!(state.checkpoints, 1, "{state:?}");
            assert_same(&machine.disk, &std::fs::read(&state.disks[0].image).unwrap(), "the image");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{state:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_same(&machine.disk, &exported(data, "web", newest).await, "a view of the image alone");
    running.shutdown().await.unwrap();
}
