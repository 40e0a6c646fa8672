//! What an administrator asks, and the errors that a slip ends in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use server::control::api::{Reply, Request};
use std::path::Path;
use store::testing::Random;
use wire::{AgentMessage, RefusalKind, Role, ServerMessage};

const DISK: usize = 2 << 20;

async fn protected(data: &Path, random: &mut Random) -> (Machine, Link) {
    let mut machine = Machine::new(data, "web-1", DISK);
    let mut link = machine.connect().await;
    for _ in 0..20 {
        machine.write_random(&mut link, random).await.unwrap();
    }
    machine.checkpoint(&mut link).await;
    (machine, link)
}

fn export(of: &str, at: Option<&str>, format: &str, output: &Path) -> Request {
    Request::Export {
        of: of.into(),
        disk: None,
        at: at.map(Into::into),
        ovf_version: None,
        format: format.into(),
        output: output.to_str().unwrap().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_is_a_clear_error_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let (kind, message) = ask(data, Request::Checkpoints { machine: "web".into() }).await.unwrap_err();
    assert_eq!(kind, "not-found");
    assert!(message.contains("none is registered"), "{message}");
    let (_machine, _link) = protected(data, &mut Random::new(1)).await;

    let not_found = |request| async move {
        let (kind, message) = ask(data, request).await.unwrap_err();
        assert_eq!(kind, "not-found", "{message}");
        message
    };
    let wbe = || "wbe-1".to_string();
    for request in [
        Request::Status { machine: Some(wbe()) },
        Request::Checkpoint { of: wbe(), name: String::new(), protect_until: None },
        Request::Checkpoints { machine: wbe() },
        Request::Settle { machine: wbe(), at: None },
        Request::Recover { machine: wbe(), at: None, drill: false, boot: None },
        Request::Verify { machine: wbe() },
        Request::RemoveMachine { machine: wbe() },
        export("wbe-1", None, "raw", &data.join("x")),
    ] {
        let message = not_found(request).await;
        assert!(message.contains("'wbe-1'") && message.contains("did you mean web-1?"), "{message}");
    }
    let at = |at: &str| Request::Recover {
        machine: "web-1".into(),
        at: Some(at.into()),
        drill: false,
        boot: None,
    };
    assert!(not_found(at("99")).await.contains("no checkpoint 99"));
    assert!(not_found(at("2001-01-01 00:00")).await.contains("the oldest is"));
    assert!(not_found(Request::Session { session: "abc".into() }).await.contains("abc"));
    let (kind, message) = ask(data, Request::RemoveMachine { machine: "web-1".into() }).await.unwrap_err();
    assert_eq!(kind, "busy", "{message}");
    assert!(message.contains("connected"), "{message}");
    let taken = data.join("taken");
    std::fs::write(&taken, "mine").unwrap();
    assert_eq!(ask(data, export("web-1", None, "raw", &taken)).await.unwrap_err().0, "already-exists");
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
    assert_eq!(
        ask(data, export("web-1", None, "qcow9", &data.join("x"))).await.unwrap_err().0,
        "invalid-input"
    );
    assert_eq!(ask(data, export("web-1", None, "raw", Path::new("x"))).await.unwrap_err().0, "invalid-input");
    assert!(!data.join("x").exists());
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_on_demand_and_one_that_comes_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let (mut machine, mut link) = protected(data, &mut Random::new(2)).await;
    for wanted in ["nightly", "refused"] {
        let request = Request::Checkpoint { of: "web-1".into(), name: wanted.into(), protect_until: None };
        let asked = {
            let data = data.to_owned();
            tokio::spawn(async move { ask(&data, request).await })
        };
        assert!(machine.hear_until(&mut link, |machine| !machine.heard.is_empty()).await);
        let Some(ServerMessage::TakeCheckpoint { request, name, verify: false }) = machine.heard.pop() else {
            panic!("asked for something else");
        };
        assert_eq!((request >> 63, name.as_str()), (1, wanted));
        if wanted == "nightly" {
            machine.report_checkpoint(&mut link, Some(request)).await.unwrap();
        } else {
            let reason = "the file system would not freeze".to_string();
            link.sender.send(&AgentMessage::CheckpointFailed { request, reason }).await.unwrap();
        }
        match asked.await.unwrap() {
            Ok(Reply::Checkpoint(info)) => assert_eq!((info.branch.as_str(), wanted), ("main", "nightly")),
            Err((_, message)) => {
                assert!(wanted == "refused" && message.contains("would not freeze"), "{message}")
            }
            Ok(other) => panic!("{other:?}"),
        }
    }
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let (mut machine, mut link) = protected(data, &mut Random::new(3)).await;
    for damaged in [false, true] {
        let request = Request::Verify { machine: "web-1".into() };
        let asked = {
            let data = data.to_owned();
            tokio::spawn(async move { ask(&data, request).await })
        };
        assert!(machine.hear_until(&mut link, |machine| !machine.heard.is_empty()).await);
        let Some(ServerMessage::TakeCheckpoint { request, verify: true, .. }) = machine.heard.pop() else {
            panic!("asked for something else");
        };
        machine.report_checkpoint(&mut link, Some(request)).await.unwrap();
        let mut disk = machine.disk.clone();
        if damaged {
            disk[300_000] ^= 1;
        }
        let ranges: Vec<_> = extent(0, DISK as u64).split(blocks::ByteLen::new(1 << 19)).collect();
        for (index, range) in ranges.iter().enumerate() {
            let last = index + 1 == ranges.len();
            let purpose = wire::HashPurpose::Verify { request, last };
            let mut report = hash_report(&disk, *range, purpose);
            if last {
                *report.hashes.last_mut().unwrap() = None;
            }
            link.sender.send(&AgentMessage::Hashes(report)).await.unwrap();
        }
        let Reply::Verified(info) = asked.await.unwrap().unwrap() else { panic!("another reply") };
        let differing: &[(u64, u64)] = if damaged { &[(4 * 65536, 65536)] } else { &[] };
        assert_eq!(info.disks[0].differing, differing);
        assert_eq!(info.disks[0].skipped_bytes, 65536);
        assert_eq!(info.disks[0].equal_bytes, DISK as u64 - 65536 * (1 + differing.len() as u64));
    }
    running.shutdown().await.unwrap();
}

fn hash_report(disk: &[u8], range: blocks::Extent, purpose: wire::HashPurpose) -> wire::HashReport {
    let hash = |block: blocks::Extent| {
        let at = block.start().get() as usize;
        Some(*blake3::hash(&disk[at..at + block.len().as_usize()]).as_bytes())
    };
    wire::HashReport {
        purpose,
        disk: blocks::DiskIndex(0),
        range,
        block: blocks::BlockShift::KIB_64,
        hashes: range.split(blocks::BlockShift::KIB_64.len()).map(hash).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_fences_the_machine_and_giving_it_up_lets_it_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let (mut machine, mut link) = protected(data, &mut Random::new(4)).await;
    let drill = Request::Recover { machine: "web-1".into(), at: None, drill: true, boot: None };
    let Reply::Session(drill) = ask(data, drill).await.unwrap() else { panic!("another reply") };
    machine.checkpoint(&mut link).await;
    let recover = Request::Recover { machine: "web-1".into(), at: None, drill: false, boot: None };
    let Reply::Session(session) = ask(data, recover).await.unwrap() else { panic!("another reply") };
    // The connection has ended, and the machine comes back to stand by.
    while machine.hear(&mut link).await.is_some() {}
    let link = machine.connect().await;
    assert!(matches!(&link.welcome.role, Role::Standby { .. }), "{:?}", link.welcome);
    wait_for_state(data, "web-1", "promoted").await;
    let checkpoint = Request::Checkpoint { of: "web-1".into(), name: String::new(), protect_until: None };
    assert!(ask(data, checkpoint).await.unwrap_err().1.contains("stands by"));
    drop(link);
    wait_for_state(data, "web-1", "promoted").await;
    let remove = || Request::RemoveMachine { machine: "web-1".into() };
    assert_eq!(ask(data, remove()).await.unwrap_err().0, "busy", "it has sessions");
    for session in [&drill, &session] {
        let stop =
            Request::StopSession { session: session.session.clone(), discard: true, patience_ms: None };
        ask(data, stop).await.unwrap();
    }
    let mut link = machine.connect().await;
    assert_eq!(link.welcome.role, Role::Source);
    assert_eq!(link.welcome.generation.0, 2, "the number is used up");
    machine.checkpoint(&mut link).await;
    link.sender.send(&AgentMessage::Goodbye).await.unwrap();
    wait_for_state(data, "web-1", "stopped").await;
    assert_eq!(ask(data, remove()).await.unwrap(), Reply::Removed { machine: "web-1".into() });
    assert_eq!(ask(data, remove()).await.unwrap_err().0, "not-found");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_wrong_format_is_refused_before_anything_exists() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.image_format = Some(store::ImageFormat::Vhd);
    let running = server::Server::start(config).await.unwrap();
    let mut machine = Machine::new(data, "large", DISK);
    let mut hello = machine.hello();
    hello.disks[0].len = blocks::ByteLen::new(3 << 40);
    let refusal = machine.try_connect(hello).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Disks);
    assert!(refusal.reason.contains("2040 GiB"), "{}", refusal.reason);
    let Reply::Status(status) = ask(data, Request::Status { machine: None }).await.unwrap() else { panic!() };
    assert!(status.machines.is_empty());
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_given_out_and_nonsense_is_not_understood() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let enroll = |seconds| Request::Enroll { name: Some("web-1".into()), rescue: false, seconds };
    let Reply::Token(token) = ask(data, enroll(60)).await.unwrap() else { panic!("another reply") };
    assert!(token.token.parse::<wire::Token>().is_ok());
    assert_eq!(ask(data, enroll(0)).await.unwrap_err().0, "invalid-input");
    let socket = data.join("control.sock");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"{\"command\":\"format-everything\"}\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"failed\"") && answer.contains("invalid-input"), "{answer}");
    running.shutdown().await.unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_machine_shows_its_certificate_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.listen = Some("127.0.0.1:0".parse().unwrap());
    let running = server::Server::start(config).await.unwrap();
    let address = running.agent_addresses()[0].clone();
    let enroll = Request::Enroll { name: None, rescue: false, seconds: 60 };
    let Reply::Token(token) = ask(data, enroll).await.unwrap() else { panic!("another reply") };
    let token = token.token.parse().unwrap();
    let state = folder.path().join("agent-state");
    let identity = wire::enroll(&address, &token, "web-1", &state).await.unwrap();
    assert!(wire::enroll(&address, &token, "web-2", &state).await.is_err(), "a token is good once");

    let mut machine = Machine::new(data, "web-1", DISK);
    machine.address = address;
    let refusal = machine.try_connect(machine.hello()).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Identity, "without its certificate: {}", refusal.reason);
    machine.identity = Some(identity);
    let mut other_name = machine.hello();
    other_name.name = "db".into();
    let refusal = machine.try_connect(other_name).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Identity, "{}", refusal.reason);
    let mut link = machine.connect().await;
    machine.write_random(&mut link, &mut Random::new(6)).await.unwrap();
    machine.checkpoint(&mut link).await;
    link.sender.send(&AgentMessage::Goodbye).await.unwrap();
    wait_for_state(data, "web-1", "stopped").await;
    let remove = Request::RemoveMachine { machine: "web-1".into() };
    ask(data, remove).await.unwrap();
    // Whether the handshake or the first answer says so, nobody is welcomed with that certificate.
    if let Ok(connection) = wire::connect(&machine.address, machine.identity.as_ref()).await {
        let (mut sender, mut receiver) = connection.split();
        let _ = sender.send(&AgentMessage::Hello(machine.hello())).await;
        let answer = receiver.recv().await;
        assert!(!matches!(answer, Ok(Some(ServerMessage::Welcome(_)))), "{answer:?}");
    }
    running.shutdown().await.unwrap();
}
