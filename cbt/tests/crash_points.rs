//! An agent that dies at a named step leaves nothing frozen and loses nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent_support;
use agent_support::*;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn an_agent_that_dies_at_any_step_of_a_checkpoint_loses_nothing() {
    let disk = Disk::with_ext4(64 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mounted = disk.mount();
    let writer = Writer::start(&mounted.at, Duration::from_millis(2));
    // The first copy is through, so that all that follows is a normal run.
    let mut agent = spawn_agent(&server, &disk, folder.path(), 200, None);
    eventually("the first checkpoint", || !server.model().checkpoints.is_empty());
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    for step in ["copy.taken", "copy.sent", "barrier.frozen", "barrier.read", "barrier.thawed"] {
        let mut agent = spawn_agent(&server, &disk, folder.path(), 200, Some(step));
        wait_dead_at(step, &mut agent, folder.path());
        assert!(writes_go_on(&mounted), "frozen after a death at {step}");
    }
    drop(writer);
    drop(mounted);
    let hashes = server.model().hashes_received;
    let before = server.model().connections;
    let _agent = spawn_agent(&server, &disk, folder.path(), 3_600_000, None);
    eventually("the agent is back", || server.model().connections > before);
    let (_, content) = server.checkpoint(false);
    assert_same("after five deaths", &content[0], &disk.content());
    assert_eq!(server.model().hashes_received, hashes, "no death costs a scan");
}
