//! What a server does with stand-ins, over a hypervisor that only pretends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use hypervisor::{FakeHypervisor, GuestState};
use nbd_server::ListenAddress;
use server::control::api::{BootRequest, GuestInfo, GuestOrder, Reply, Request, SessionInfo};
use server::{RunningServer, Server, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::testing::Random;

const INVENTORY: &str = r#"{"architecture": "x86_64", "cpus": 1, "memory_bytes": 67108864,
    "nics": [{"name": "eth0", "mac": "52:54:00:00:00:01"}]}"#;

async fn start_with(data: &Path, hypervisor: &Arc<FakeHypervisor>) -> RunningServer {
    let nbd = vec![ListenAddress::Unix(data.join("nbd.sock"))];
    let hypervisor: Arc<dyn hypervisor::Hypervisor> = hypervisor.clone();
    Server::start(ServerConfig { nbd, hypervisor, ..config(data) }).await.unwrap()
}

/// A machine with one checkpoint, whose inventory is known.
async fn protected(data: &Path) -> (Machine, Link) {
    let mut machine = Machine::new(data, "web", 2 << 20);
    let hello = wire::Hello { inventory: INVENTORY.into(), ..machine.hello() };
    let mut link = machine.try_connect(hello).await.unwrap();
    machine.write_random(&mut link, &mut Random::new(1)).await.unwrap();
    machine.checkpoint(&mut link).await;
    (machine, link)
}

fn recover(boot: BootRequest) -> Request {
    Request::Recover { machine: "web".into(), at: None, drill: true, boot: Some(boot) }
}

async fn session(data: &Path, request: Request) -> Result<SessionInfo, String> {
    match ask(data, request).await {
        Ok(Reply::Session(session)) => Ok(session),
        Ok(other) => panic!("another reply: {other:?}"),
        Err((_, message)) => Err(message),
    }
}

async fn guest(data: &Path, id: &str) -> GuestInfo {
    *session(data, Request::Session { session: id.into() }).await.unwrap().guest.unwrap()
}

/// Waits until the guest is in that state.
async fn wait_for_guest(data: &Path, id: &str, wanted: &str) -> GuestInfo {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = guest(data, id).await;
        if found.state == wanted {
            return found;
        }
        assert!(Instant::now() < deadline, "it is {}, not {wanted}", found.state);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The identity of the session's guest.
fn uuid(id: &str) -> String {
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_stand_in_is_seen_and_a_restart_finds_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let fake = Arc::new(FakeHypervisor::default());
    let running = start_with(data, &fake).await;
    let (_machine, link) = protected(data).await;
    let id = session(data, recover(BootRequest::default())).await.unwrap().session;
    assert_eq!(guest(data, &id).await.state, "running");
    assert_eq!(fake.calls(), ["start"]);
    session(data, Request::Boot { session: id.clone(), boot: BootRequest::default() }).await.unwrap();
    assert!(fake.calls().is_empty(), "one that runs is left as it is");

    drop(link);
    running.shutdown().await.unwrap();
    assert!(fake.calls().is_empty(), "the server's end is not the guest's");
    let running = start_with(data, &fake).await;
    assert_eq!(guest(data, &id).await.state, "running");

    fake.set(&uuid(&id), GuestState::DiskTrouble);
    wait_for_guest(data, &id, "running").await;
    assert_eq!(fake.calls(), ["resume"], "it goes on when its disks are served");
    fake.set(&uuid(&id), GuestState::Paused);
    assert_eq!(guest(data, &id).await.state, "paused");
    fake.set(&uuid(&id), GuestState::Silent("no answer".into()));
    assert_eq!(guest(data, &id).await.detail, "no answer");
    fake.set(&uuid(&id), GuestState::Gone("Segmentation fault".into()));
    let ended = wait_for_guest(data, &id, "ended").await;
    assert!(ended.detail.contains("Segmentation fault"), "{}", ended.detail);
    let order = Request::Guest { session: id.clone(), order: GuestOrder::Pause };
    assert!(session(data, order).await.unwrap_err().contains("has ended"));

    session(data, Request::Boot { session: id.clone(), boot: BootRequest::default() }).await.unwrap();
    fake.set(&uuid(&id), GuestState::Off);
    let ended = wait_for_guest(data, &id, "ended").await;
    assert_eq!(ended.detail, "it has switched itself off");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_its_stand_in_first_and_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let deaf = Arc::new(FakeHypervisor::deaf());
    let running = start_with(data, &deaf).await;
    let (_machine, _link) = protected(data).await;
    let id = session(data, recover(BootRequest::default())).await.unwrap().session;
    deaf.set(&uuid(&id), GuestState::Paused);
    deaf.calls();
    let stop = Request::StopSession { session: id.clone(), discard: true, patience_ms: Some(2000) };
    let stopped = session(data, stop).await.unwrap();
    let guest = stopped.guest.unwrap();
    assert_eq!(guest.state, "ended");
    assert!(guest.detail.contains("did not shut down within 2s"), "{}", guest.detail);
    assert_eq!(deaf.calls(), ["resume", "power_down", "kill"], "one that stands still hears nothing");
    assert!(!data.join("stand-ins").join(&id).exists());
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_is_said_and_the_session_stays() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let broken = Arc::new(FakeHypervisor::broken());
    let running = start_with(data, &broken).await;
    let (_machine, _link) = protected(data).await;
    let error = session(data, recover(BootRequest::default())).await.unwrap_err();
    assert!(error.contains("is served, its stand-in does not start") && error.contains("broken"), "{error}");
    let Reply::Sessions { sessions } = ask(data, Request::Sessions).await.unwrap() else { panic!() };
    assert_eq!((sessions.len(), sessions[0].state.as_str()), (1, "running"));
    assert_eq!(sessions[0].guest.as_ref().unwrap().state, "ended");
    for (boot, word) in [
        (BootRequest { network: Some("smb=/".into()), ..BootRequest::default() }, "network"),
        (BootRequest { probe: Some("ping".into()), ..BootRequest::default() }, "probe"),
        (
            BootRequest {
                network: Some("none".into()),
                probe: Some("tcp:80".into()),
                ..BootRequest::default()
            },
            "not to be reached",
        ),
        (BootRequest { acceleration: Some("warp".into()), ..BootRequest::default() }, "warp"),
    ] {
        let request = Request::Boot { session: sessions[0].session.clone(), boot };
        let error = session(data, request).await.unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    running.shutdown().await.unwrap();
}
