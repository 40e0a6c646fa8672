//! A scripted agent against a real server: what was acknowledged stays, whatever happens in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use blocks::{ByteLen, DiskIndex, Seq};
use common::*;
use server::control::api::{Reply, Request};
use std::path::Path;
use std::time::Duration;
use store::testing::{CrashStorage, Random};
use wire::{AgentMessage, HashPurpose, HashReport, Payload, RefusalKind, ServerMessage, StartFrom, Write};

const DISK: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_copied_and_every_checkpoint_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut random = Random::new(1);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    assert_eq!(link.welcome.disks[0].start, StartFrom::Everything);
    machine.heartbeat(&mut link).await;
    wait_for_state(data, "web", "initial-copy").await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        for _ in 0..50 {
            machine.write_random(&mut link, &mut random).await.unwrap();
        }
        let checkpoint = machine.checkpoint(&mut link).await;
        assert_eq!(machine.acked, machine.sent, "what is sealed is acknowledged");
        kept.push((checkpoint, machine.disk.clone()));
    }
    let state = machine_state(data, "web").await;
    assert_eq!((state.state.as_str(), state.checkpoints), ("protected", 4));
    assert!(state.rpo_ms.unwrap() < 60_000);
    assert!(state.disks[0].received_bytes > 0);
    for (checkpoint, disk) in &kept {
        assert_same(disk, &exported(data, "web", *checkpoint).await, "an exported checkpoint");
    }
    // The image file alone, after settling at the third.
    let at = Some(kept[2].0.0.to_string());
    match ask(data, Request::Settle { machine: "web".into(), at }).await.unwrap() {
        Reply::Settled(settled) => {
            assert_eq!(settled.checkpoint, kept[2].0.0);
            assert_same(&kept[2].1, &std::fs::read(&settled.images[0]).unwrap(), "the settled image");
        }
        other => panic!("{other:?}"),
    }
    assert_same(&kept[3].1, &exported(data, "web", kept[3].0).await, "what is newer than the image");
    running.shutdown().await.unwrap();
    assert!(machine.hear_until(&mut link, |machine| !machine.heard.is_empty()).await);
    assert!(
        matches!(&machine.heard[..], [ServerMessage::Refused(refusal)] if refusal.kind == RefusalKind::Shutdown),
        "{:?}",
        machine.heard
    );
}

/// Cuts, restarts and power cuts at random; whatever was acknowledged is never sent again, and the end is equal.
async fn ordeal(seed: u64) {
    eprintln!("UNDERSTUDY_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut random = Random::new(seed);
    let mut storage = CrashStorage::new();
    let mut running = start_on(data, storage.clone()).await.unwrap();
    let mut machine = Machine::new(data, "web", DISK);
    let mut kept = Vec::new();
    for _ in 0..12 {
        let mut link = machine.connect().await;
        let power_cut = random.chance(50);
        if power_cut {
            storage.power_off_after(random.below(120));
        }
        for _ in 0..random.below(150) {
            if machine.write_random(&mut link, &mut random).await.is_err() {
                break;
            }
            if random.chance(10) {
                machine.hear_what_is_there(&mut link).await;
            }
            if random.chance(3) && !power_cut {
                let disk = machine.disk.clone();
                kept.push((machine.checkpoint(&mut link).await, disk));
            }
        }
        if random.chance(50) {
            machine.hear_what_is_there(&mut link).await;
        }
        drop(link);
        if power_cut || random.chance(25) {
            let ended = running.shutdown().await;
            assert!(power_cut || ended.is_ok(), "{ended:?}");
            if power_cut {
                storage = storage.crash(random.number());
            }
            running = start_on(data, storage.clone()).await.unwrap();
        }
    }
    let mut link = machine.connect().await;
    kept.push((machine.checkpoint(&mut link).await, machine.disk.clone()));
    for (checkpoint, disk) in &kept {
        assert_same(disk, &exported(data, "web", *checkpoint).await, "a checkpoint after the ordeal");
    }
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost() {
    let first = seed();
    for seed in first..first + 4 {
        ordeal(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_never_comes_before_its_sync() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let storage = CrashStorage::new();
    let running = start_on(data, storage.clone()).await.unwrap();
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.disk[..512].fill(1);
    machine.send(&mut link, extent(0, 512)).await.unwrap();
    assert!(machine.hear_until(&mut link, |machine| machine.acked == 1).await);
    storage.fail_sync(1);
    machine.disk[..512].fill(2);
    machine.send(&mut link, extent(0, 512)).await.unwrap();
    // The sync fails, so the connection ends, without an acknowledgement.
    while machine.hear(&mut link).await.is_some() {}
    assert_eq!(machine.acked, 1);
    assert!(matches!(&machine.heard[..], [ServerMessage::Refused(_)]), "{:?}", machine.heard);
    // The disk is poisoned: nothing is acknowledged until the store is opened again.
    let refusal = machine.try_connect(machine.hello()).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Busy, "{}", refusal.reason);
    drop(running.shutdown().await);
    let running = start_on(data, storage.crash(1)).await.unwrap();
    let mut link = machine.connect().await;
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "after the store was opened again");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_map_is_mended_by_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut random = Random::new(3);
    let mut machine = Machine::new(data, "web", DISK + 512 * 3);
    let mut link = machine.connect().await;
    for _ in 0..60 {
        machine.write_random(&mut link, &mut random).await.unwrap();
    }
    machine.checkpoint(&mut link).await;
    drop(link);
    machine.disk[700_000..700_010].fill(9);
    machine.disk[3 << 20..(3 << 20) + 200_000].fill(0);
    machine.lost_map = true;
    let mut link = machine.connect().await;
    assert_eq!(link.welcome.disks[0].start, StartFrom::Scan);
    wait_for_state(data, "web", "scanning").await;
    let mut differing = 0;
    for range in extent(0, machine.disk.len() as u64).split(ByteLen::new(1 << 20)) {
        let report = hashes(&machine.disk, range, HashPurpose::Scan);
        link.sender.send(&AgentMessage::Hashes(report)).await.unwrap();
        assert!(machine.hear_until(&mut link, |machine| !machine.heard.is_empty()).await);
        let answer = machine.heard.remove(0);
        let ServerMessage::Differing { disk: DiskIndex(0), range: of, extents } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(of, range);
        for extent in extents {
            differing += extent.len().get();
            machine.send(&mut link, extent).await.unwrap();
        }
    }
    assert!((65536..=5 * 65536).contains(&differing), "{differing} bytes differed");
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "after the scan");
    assert_eq!(machine_state(data, "web").await.state, "protected");
    let gaps = gaps(data).await;
    assert!(gaps.iter().any(|gap| gap.cause.contains("hashed again") && gap.until_ms != 0), "{gaps:?}");
    running.shutdown().await.unwrap();
}

fn hashes(disk: &[u8], range: blocks::Extent, purpose: HashPurpose) -> HashReport {
    let hash = |block: blocks::Extent| {
        let at = block.start().get() as usize;
        Some(*blake3::hash(&disk[at..at + block.len().as_usize()]).as_bytes())
    };
    HashReport {
        purpose,
        disk: DiskIndex(0),
        range,
        block: blocks::BlockShift::KIB_64,
        hashes: range.split(blocks::BlockShift::KIB_64.len()).map(hash).collect(),
    }
}

async fn gaps(data: &Path) -> Vec<server::control::api::GapInfo> {
    match ask(data, Request::Checkpoints { machine: "web".into() }).await.unwrap() {
        Reply::Checkpoints(list) => list.gaps,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_holds_the_agent_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let storage = CrashStorage::new();
    let running = start_on(data, storage.clone()).await.unwrap();
    let mut random = Random::new(5);
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.write_random(&mut link, &mut random).await.unwrap();
    machine.checkpoint(&mut link).await;
    storage.set_capacity(Some(ByteLen::new(5 << 20)));
    while !machine.held {
        machine.write_random(&mut link, &mut random).await.unwrap();
        machine.hear_what_is_there(&mut link).await;
        assert!(machine.sent < 2000, "the store never said that it is full");
    }
    let state = machine_state(data, "web").await;
    assert_eq!(state.state, "held");
    assert!(state.detail.contains("full"), "{}", state.detail);
    machine.heartbeat(&mut link).await;
    storage.set_capacity(None);
    assert!(machine.hear_until(&mut link, |machine| !machine.held && machine.acked == machine.sent).await);
    machine.write_random(&mut link, &mut random).await.unwrap();
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "after the store was full");
    assert!(gaps(data).await.iter().any(|gap| gap.cause.contains("full") && gap.until_ms != 0));
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_connect() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.disk[..4096].fill(1);
    machine.send(&mut link, extent(0, 4096)).await.unwrap();
    machine.checkpoint(&mut link).await;

    let mut second = Machine::new(data, "web", DISK);
    let refusal = second.try_connect(second.hello()).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Taken, "{}", refusal.reason);
    // Nobody was disturbed by that.
    machine.checkpoint(&mut link).await;

    // The same machine comes back after its connection has died, but not with a shorter disk.
    drop(link);
    wait_for_state(data, "web", "disconnected").await;
    machine.disk.truncate(DISK / 2);
    let refusal = machine.try_connect(machine.hello()).await.err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Disks);
    assert!(refusal.reason.contains(&DISK.to_string()) && refusal.reason.contains(&(DISK / 2).to_string()));
    machine.disk.resize(DISK, 0);
    let mut link = machine.connect().await;
    machine.checkpoint(&mut link).await;
    link.sender.send(&AgentMessage::Goodbye).await.unwrap();
    wait_for_state(data, "web", "stopped").await;
    let gaps = gaps(data).await;
    assert!(gaps.iter().all(|gap| gap.until_ms != 0), "a goodbye is no gap: {gaps:?}");
    assert!(gaps.iter().any(|gap| gap.cause.contains("lost")), "{gaps:?}");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_failure_and_frees_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut config = config(data);
    config.heartbeat_deadline = Duration::from_secs(4);
    let running = server::Server::start(config).await.unwrap();
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.checkpoint(&mut link).await;
    // Longer than the deadline.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        machine.heartbeat(&mut link).await;
    }
    wait_for_state(data, "web", "protected").await;
    // The connection stays open, but nothing comes.
    wait_for_state(data, "web", "failed").await;
    assert!(gaps(data).await.iter().any(|gap| gap.until_ms == 0), "a gap goes on");
    // Its successor takes the place without waiting for the network to notice.
    let mut next = machine.connect().await;
    machine.checkpoint(&mut next).await;
    machine.heartbeat(&mut next).await;
    wait_for_state(data, "web", "protected").await;
    assert!(gaps(data).await.iter().all(|gap| gap.until_ms != 0));
    drop(link);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_ends_the_connection_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut machine = Machine::new(data, "web", DISK);
    let mut other = Machine::new(data, "db", DISK);
    let mut other_link = other.connect().await;
    let wrong = [
        (DiskIndex(7), 1, extent(0, 512)),
        (DiskIndex(0), 9, extent(0, 512)),
        (DiskIndex(0), 1, extent(DISK as u64, 512)),
    ];
    for (disk, ahead, extent) in wrong {
        let mut link = machine.connect().await;
        machine.disk[..512].fill(ahead as u8);
        machine.send(&mut link, common::extent(0, 512)).await.unwrap();
        let write = Write { disk, seq: Seq(machine.sent + ahead), extent, payload: Payload::Zero };
        link.sender.send(&AgentMessage::Write(write)).await.unwrap();
        while machine.hear(&mut link).await.is_some() {}
        let told = machine.heard.pop();
        assert!(matches!(told, Some(ServerMessage::Refused(_))), "{told:?}");
    }
    let mut link = machine.connect().await;
    let checkpoint = machine.checkpoint(&mut link).await;
    assert_same(&machine.disk, &exported(data, "web", checkpoint).await, "after nonsense");
    other.disk[..512].fill(5);
    other.send(&mut other_link, extent(0, 512)).await.unwrap();
    other.checkpoint(&mut other_link).await;
    running.shutdown().await.unwrap();
}

/// A connection that has sent no write may report a checkpoint, but only of writes that have come.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_writes_that_never_came_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    machine.disk[..512].fill(1);
    machine.send(&mut link, extent(0, 512)).await.unwrap();
    machine.checkpoint(&mut link).await;
    drop(link);
    let mut link = machine.connect().await;
    machine.sent += 1;
    machine.report_checkpoint(&mut link, None).await.unwrap();
    let sealed = machine.sealed.len();
    while machine.hear(&mut link).await.is_some() {}
    assert_eq!(machine.sealed.len(), sealed, "a write is missing from it");
    assert!(matches!(machine.heard.pop(), Some(ServerMessage::Refused(_))));
    machine.sent -= 1;
    let mut link = machine.connect().await;
    machine.checkpoint(&mut link).await;
    drop(link);
    running.shutdown().await.unwrap();
}

/// A verification that another one has replaced holds its checkpoint no longer than until the other reaches its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_was_given_up_pins_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let running = start(data).await;
    let mut machine = Machine::new(data, "web", DISK);
    let mut link = machine.connect().await;
    let mut newest = None;
    for (round, last) in [(1, false), (2, true)] {
        machine.disk[..512].fill(round);
        machine.send(&mut link, extent(0, 512)).await.unwrap();
        newest = Some(machine.checkpoint(&mut link).await);
        let purpose = HashPurpose::Verify { request: machine.sealed.last().unwrap().0, last };
        let report = hashes(&machine.disk, extent(0, 1 << 20), purpose);
        link.sender.send(&AgentMessage::Hashes(report)).await.unwrap();
    }
    // Taken in order, so the hashes have been by now.
    machine.checkpoint(&mut link).await;
    let at = newest.map(|checkpoint| checkpoint.0.to_string());
    let settled = ask(data, Request::Settle { machine: "web".into(), at }).await;
    assert!(matches!(settled, Ok(Reply::Settled(_))), "{settled:?}");
    drop(link);
    running.shutdown().await.unwrap();
}
