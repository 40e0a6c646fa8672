//! The agent's half of a failback.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent_support;
use agent_support::*;
use blocks::{BlockShift, ByteLen, CheckpointId, DiskIndex, Extent, ExtentSet, Generation, Seq};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use wire::{AgentMessage, BlockHash, Continuity, HashPurpose, Payload, ServerMessage, TargetKnowledge};

const MIB: u64 = 1 << 20;

/// Replicates the disk, then has the server promote: the agent comes back as a standby.
fn promoted(server: &Server, disk: &Disk, folder: &std::path::Path) -> RunningAgent {
    let agent = RunningAgent::start(config(server, &[disk], folder));
    server.checkpoint(false);
    server.model().rules.standby = true;
    server.model().rules.generation = 2;
    let before = server.model().connections;
    server.cut();
    eventually("the agent comes back", || server.model().connections > before);
    server.wait_connected();
    agent
}

fn ready(server: &Server, restore: u64) -> TargetKnowledge {
    server.restore_answer("the target is ready", |answer| match answer {
        AgentMessage::RestoreReady(ready) if ready.restore == restore => Some(ready.disks[0].clone()),
        AgentMessage::RestoreFailed { restore: failed, reason } if *failed == restore => panic!("{reason}"),
        _ => None,
    })
}

fn failure(server: &Server, restore: u64) -> String {
    server.restore_answer("the failure", |answer| match answer {
        AgentMessage::RestoreFailed { restore: failed, reason } if *failed == restore => Some(reason.clone()),
        _ => None,
    })
}

fn write(server: &Server, restore: u64, at: u64, bytes: Vec<u8>) {
    let extent = extent(at, bytes.len() as u64);
    let payload = Payload::Data(bytes);
    server.order(ServerMessage::RestoreWrite { restore, disk: DiskIndex(0), extent, payload });
}

fn sync(server: &Server, restore: u64, number: u64) {
    server.order(ServerMessage::RestoreSync { restore, sync: number });
    server.restore_answer("the sync", |answer| match answer {
        AgentMessage::RestoreSynced { restore: of, sync } if *of == restore && *sync == number => Some(()),
        _ => None,
    });
}

fn finish(server: &Server, restore: u64) {
    let seqs = vec![(DiskIndex(0), Seq(5000))];
    server.model().durable = vec![Seq(5000)];
    let (generation, checkpoint) = (Generation(3), CheckpointId(9));
    server.model().restarted();
    server.order(ServerMessage::RestoreFinish { restore, generation, checkpoint, seqs });
    server.restore_answer("the end", |answer| match answer {
        AgentMessage::RestoreFinished { restore: of } if *of == restore => Some(()),
        AgentMessage::RestoreFailed { reason, .. } => panic!("{reason}"),
        _ => None,
    });
}

#[test]
fn a_known_disk_takes_only_what_differs_and_replication_goes_on() {
    let disk = Disk::new(64 * MIB);
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 64 * MIB, 3);
    drop(file);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = promoted(&server, &disk, folder.path());
    // The old primary wrote something that it never sent.
    let sent_before = server.model().bytes_received;
    disk.write(10 * MIB, &[0xAA; 65536]);
    let read_before = cbt::Disk::open(&disk.device).unwrap().io_counts().unwrap();
    server.order(begin(1, "", disk.len));
    let TargetKnowledge::Known { store, acked, changed } = ready(&server, 1) else { panic!("not known") };
    assert_eq!((store, acked), (store_id(), server.model().seq(0)));
    assert_eq!(changed, vec![extent(10 * MIB, 65536)]);
    // It is kept before it is overwritten: read back what was never sent.
    server.order(ServerMessage::RestoreRead { restore: 1, disk: DiskIndex(0), range: changed[0] });
    let kept = server.restore_answer("what was never sent", |answer| match answer {
        AgentMessage::RestoreData { extent, payload: Payload::Data(bytes), .. } => {
            Some((*extent, bytes.clone()))
        }
        _ => None,
    });
    assert_eq!(kept, (changed[0], vec![0xAA; 65536]));
    let original = server.model().disks[0][10 * MIB as usize..10 * MIB as usize + 65536].to_vec();
    write(&server, 1, 10 * MIB, original);
    write(&server, 1, 30 * MIB, vec![0xBB; 4096]);
    server.order(ServerMessage::RestoreWrite {
        restore: 1,
        disk: DiskIndex(0),
        extent: extent(40 * MIB, 128 << 10),
        payload: Payload::Zero,
    });
    sync(&server, 1, 1);
    {
        let mut model = server.model();
        model.disks[0][30 * MIB as usize..30 * MIB as usize + 4096].fill(0xBB);
        model.disks[0][40 * MIB as usize..40 * MIB as usize + (128 << 10)].fill(0);
    }
    let after = cbt::Disk::open(&disk.device).unwrap().io_counts().unwrap();
    let (read, written) = (after.read - read_before.read, after.written - read_before.written);
    assert!(read.get() <= 256 << 10, "{read} bytes were read of a disk of 64 MiB");
    assert!(written.get() <= 256 << 10, "{written} bytes were written");
    assert_same("the disk after the restore", &server.model().disks[0], &disk.content());
    finish(&server, 1);
    // Replication goes on in the first direction: only what changes now is sent.
    disk.write(50 * MIB, &[0xCC; 4096]);
    let (report, content) = server.checkpoint(false);
    assert!(report.disks[0].seq > Seq(5000));
    assert_same("after the failback", &content[0], &disk.content());
    let sent = server.model().bytes_received - sent_before;
    assert!(sent <= 128 << 10, "{sent} bytes were sent after the failback");
    server.model().rules.standby = false;
    agent.stop().unwrap();
    // The new generation and the base outlive the agent.
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    server.checkpoint(false);
    let hello = server.model().hellos.last().unwrap().clone();
    assert_eq!(hello.generation, Generation(3));
    assert!(matches!(hello.disks[0].continuity, Continuity::Tracked { .. }), "{hello:?}");
    agent.stop().unwrap();
}

#[test]
fn another_disk_is_unknown_and_is_protected_afterwards() {
    let (disk, other) = (Disk::new(32 * MIB), Disk::new(32 * MIB));
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 8 * MIB, 3);
    other.write(20 * MIB, &[1; 4096]);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = promoted(&server, &disk, folder.path());
    server.order(begin(1, other.path(), disk.len));
    assert!(matches!(ready(&server, 1), TargetKnowledge::Unknown { .. }));
    let whole = Extent::whole(disk.len).unwrap();
    server.order(ServerMessage::RestoreHash { restore: 1, disk: DiskIndex(0), range: whole });
    let report = server.restore_answer("the hashes", |answer| match answer {
        AgentMessage::Hashes(report) => Some(report.clone()),
        _ => None,
    });
    assert_eq!((report.purpose, report.range), (HashPurpose::Restore { restore: 1 }, whole));
    let content = server.model().disks[0].clone();
    let mut sent = 0;
    for (block, hash) in whole.split(BlockShift::KIB_64.len()).zip(&report.hashes) {
        let bytes = &content[block.start().get() as usize..block.end().get() as usize];
        if *hash != Some(<BlockHash>::from(blake3::hash(bytes))) {
            sent += block.len().get();
            write(&server, 1, block.start().get(), bytes.to_vec());
        }
    }
    assert_eq!(sent, 8 * MIB + 65536);
    sync(&server, 1, 1);
    assert_same("the other disk", &content, &other.content()[..32 * MIB as usize]);
    assert!(exclusive(&other).is_err(), "held as long as the restore lasts");
    server.order(ServerMessage::RestoreAbort { restore: 1, reason: "tested".into() });
    eventually("the target is released", || exclusive(&other).is_ok());
    server.order(begin(2, other.path(), disk.len));
    ready(&server, 2);
    finish(&server, 2);
    let before = server.model().bytes_received;
    disk.write(MIB, &[7; 4096]);
    other.write(2 * MIB, &[8; 4096]);
    let (_, content) = server.checkpoint(false);
    assert_same("the other disk is the protected one", &content[0], &other.content());
    assert!(server.model().bytes_received - before <= 65536);
    agent.stop().unwrap();
}

/// From a rescue system: an agent that stood by from its first hello, on a disk that it has never read.
#[test]
fn an_agent_that_only_ever_stood_by_hashes_its_disk_and_protects_it_afterwards() {
    let disk = Disk::new(32 * MIB);
    disk.write(4 * MIB, &[1; 65536]);
    let server = Server::start();
    server.model().rules.standby = true;
    server.model().rules.generation = 2;
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    server.wait_connected();
    server.order(begin(1, "", disk.len));
    match ready(&server, 1) {
        TargetKnowledge::Unknown { reason } => assert!(reason.contains("already in use"), "{reason}"),
        known => panic!("{known:?}"),
    }
    write(&server, 1, 4 * MIB, vec![2; 65536]);
    sync(&server, 1, 1);
    server.model().disks = vec![disk.content()];
    finish(&server, 1);
    let before = server.model().bytes_received;
    disk.write(8 * MIB, &[3; 4096]);
    let (_, content) = server.checkpoint(false);
    assert_same("the disk is protected", &content[0], &disk.content());
    assert!(server.model().bytes_received - before <= 65536, "without a new copy");
    agent.stop().unwrap();
}

#[test]
fn an_agent_that_only_restores_ends_with_the_failback_and_sends_nothing_of_its_own() {
    let disk = Disk::new(32 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut config = config(&server, &[&disk], folder.path());
        config.restore_only = true;
        RunningAgent::start(config)
    };
    let error = start().wait().unwrap_err();
    assert!(error.to_string().contains("no session is in charge"), "{error}");
    server.model().rules.standby = true;
    server.model().rules.generation = 2;
    let agent = start();
    server.wait_connected();
    server.order(begin(1, "", disk.len));
    ready(&server, 1);
    write(&server, 1, 4 * MIB, vec![2; 65536]);
    sync(&server, 1, 1);
    finish(&server, 1);
    agent.wait().unwrap();
    assert_eq!(server.model().bytes_received, 0);
    assert!(disk.content()[4 * MIB as usize..][..65536].iter().all(|byte| *byte == 2));
}

#[test]
fn targets_that_must_not_be_written_are_refused_by_name() {
    let (disk, mounted_disk, small) = (Disk::new(32 * MIB), Disk::with_ext4(32 * MIB), Disk::new(16 * MIB));
    let mounted = mounted_disk.mount();
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = promoted(&server, &disk, folder.path());
    server.order(begin(1, mounted_disk.path(), disk.len));
    let reason = failure(&server, 1);
    assert!(reason.contains(mounted_disk.path()) && reason.contains("mounted at"), "{reason}");
    server.order(begin(2, small.path(), disk.len));
    let reason = failure(&server, 2);
    assert!(reason.contains(small.path()) && reason.contains("33554432"), "{reason}");
    server.order(begin(3, "/dev/no-such-disk", disk.len));
    assert!(failure(&server, 3).contains("/dev/no-such-disk"));
    server.order(begin(4, disk.backing.to_str().unwrap(), disk.len));
    let reason = failure(&server, 4);
    assert!(reason.contains("is attached to it") && reason.contains(disk.path()), "{reason}");
    server.order(begin(5, "/dev/null", disk.len));
    assert!(failure(&server, 5).contains("neither a block device nor a regular file"));
    // One that somebody else holds: a second restore of the same device by the kernel's own means.
    let held = exclusive(&small).unwrap();
    server.order(begin(6, small.path(), ByteLen::new(MIB)));
    assert!(failure(&server, 6).contains("in use"));
    drop(held);
    drop(mounted);
    server.order(begin(7, mounted_disk.path(), disk.len));
    assert!(matches!(ready(&server, 7), TargetKnowledge::Unknown { .. }));
    // Held: nobody can mount it under the restore.
    let mount = std::process::Command::new("mount").arg(mounted_disk.path()).arg("/mnt").output().unwrap();
    assert!(!mount.status.success());
    agent.stop().unwrap();
}

fn exclusive(disk: &Disk) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&disk.device)
}

#[test]
fn a_regular_file_is_restored_too() {
    let disk = Disk::new(16 * MIB);
    disk.write(0, &[1; 4096]);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = promoted(&server, &disk, folder.path());
    let file = folder.path().join("target");
    let target = std::fs::File::create_new(&file).unwrap();
    target.set_len(16 * MIB).unwrap();
    target.write_all_at(&[9; 8192], MIB).unwrap();
    server.order(begin(1, file.to_str().unwrap(), disk.len));
    assert!(matches!(ready(&server, 1), TargetKnowledge::Unknown { .. }));
    write(&server, 1, 0, vec![1; 4096]);
    server.order(ServerMessage::RestoreWrite {
        restore: 1,
        disk: DiskIndex(0),
        extent: extent(MIB, 8192),
        payload: Payload::Zero,
    });
    sync(&server, 1, 1);
    assert_same("the file", &std::fs::read(&file).unwrap(), &disk.content());
    finish(&server, 1);
    let ended = agent.wait().unwrap_err();
    assert!(ended.to_string().contains("attach it"), "{ended}");
}

/// What a server sends for a restore: what the agent says has changed, and what the session changed.
fn send_what_is_needed(
    server: &Server,
    restore: u64,
    changed: &[Extent],
    session: &[Extent],
    wanted: &[u8],
) -> u64 {
    let needed: ExtentSet = changed.iter().chain(session).copied().collect();
    let mut sent = 0;
    for part in needed.iter().flat_map(|(extent, ())| extent.split(ByteLen::new(MIB))) {
        let bytes = wanted[part.start().get() as usize..part.end().get() as usize].to_vec();
        sent += bytes.len() as u64;
        write(server, restore, part.start().get(), bytes);
    }
    sent
}

fn known(server: &Server, restore: u64) -> Vec<Extent> {
    match ready(server, restore) {
        TargetKnowledge::Known { changed, .. } => changed,
        TargetKnowledge::Unknown { reason } => panic!("not known: {reason}"),
    }
}

#[test]
fn a_restore_that_was_cut_or_called_off_is_begun_again_and_sends_only_what_is_needed() {
    let disk = Disk::new(64 * MIB);
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 64 * MIB, 3);
    drop(file);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = promoted(&server, &disk, folder.path());
    // What the session changed, and what the old primary wrote and never sent.
    let session: Vec<Extent> = (0..8).map(|at| extent(at * 4 * MIB, 256 << 10)).collect();
    let mut wanted = server.model().disks[0].clone();
    for part in &session {
        wanted[part.start().get() as usize..part.end().get() as usize].fill(0x5E);
    }
    disk.write(50 * MIB, &[0xAA; 65536]);

    // Cut in the middle: half is written, nothing synced, and something that the next attempt shall not want any more.
    server.order(begin(1, "", disk.len));
    assert_eq!(known(&server, 1), [extent(50 * MIB, 65536)]);
    send_what_is_needed(&server, 1, &[], &session[..4], &wanted);
    write(&server, 1, 60 * MIB, vec![0xDD; 65536]);
    server.order(ServerMessage::RestoreRead { restore: 1, disk: DiskIndex(0), range: extent(0, 4096) });
    server.restore_answer("the writes before it", |answer| match answer {
        AgentMessage::RestoreData { restore: 1, .. } => Some(()),
        _ => None,
    });
    let before = server.model().connections;
    server.cut();
    eventually("the agent comes back", || server.model().connections > before);
    server.wait_connected();

    // Called off in the middle.
    server.order(begin(2, "", disk.len));
    let changed = known(&server, 2);
    let marked: ExtentSet = changed.iter().copied().collect();
    for part in session[..4].iter().chain(&[extent(50 * MIB, 65536), extent(60 * MIB, 65536)]) {
        assert!(marked.contains(*part), "{part} was written and is not in {changed:?}");
    }
    assert!(marked.covered().get() <= 4 * (256 << 10) + 2 * 65536, "{changed:?}");
    write(&server, 2, 61 * MIB, vec![0xEE; 65536]);
    sync(&server, 2, 1);
    server.order(ServerMessage::RestoreAbort { restore: 2, reason: "tested".into() });
    eventually("the target is released", || exclusive(&disk).is_ok());

    server.order(begin(3, "", disk.len));
    let changed = known(&server, 3);
    let sent = send_what_is_needed(&server, 3, &changed, &session, &wanted);
    assert_eq!(sent, 8 * (256 << 10) + 3 * 65536, "no more than was changed on either side");
    sync(&server, 3, 1);
    assert_same("the disk after the third attempt", &wanted, &disk.content());
    server.model().disks[0] = wanted;
    finish(&server, 3);
    let received = server.model().bytes_received;
    disk.write(5 * MIB, &[0xCC; 4096]);
    let (_, content) = server.checkpoint(false);
    assert_same("replication goes on", &content[0], &disk.content());
    assert!(server.model().bytes_received - received <= 65536);
    agent.stop().unwrap();
}

#[test]
fn an_agent_that_dies_at_any_step_of_a_restore_knows_its_disk_afterwards() {
    let disk = Disk::new(32 * MIB);
    let mut file = OpenOptions::new().write(true).open(&disk.device).unwrap();
    fill(&mut file, 0, 32 * MIB, 3);
    drop(file);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    promoted(&server, &disk, folder.path()).stop().unwrap();
    let part = extent(8 * MIB, MIB);
    let mut wanted = server.model().disks[0].clone();
    wanted[8 * MIB as usize..9 * MIB as usize].fill(0x5E);
    let mut restore = 0;
    for step in ["restore.ready", "restore.synced", "restore.reset"] {
        restore += 1;
        let before = server.model().connections;
        let mut agent = spawn_agent(&server, &disk, folder.path(), 3_600_000, Some(step));
        eventually("the agent connects", || server.model().connections > before);
        server.wait_connected();
        server.order(begin(restore, "", disk.len));
        if step != "restore.ready" {
            let changed = known(&server, restore);
            send_what_is_needed(&server, restore, &changed, &[part], &wanted);
            server.order(ServerMessage::RestoreSync { restore, sync: 1 });
        }
        if step == "restore.reset" {
            let seqs = vec![(DiskIndex(0), Seq(5000))];
            let (generation, checkpoint) = (Generation(3), CheckpointId(9));
            server.order(ServerMessage::RestoreFinish { restore, generation, checkpoint, seqs });
        }
        wait_dead_at(step, &mut agent, folder.path());
    }
    // The last one had adopted the state: it is the source again, and says so with its base.
    assert_same("the disk", &wanted, &disk.content());
    {
        let mut model = server.model();
        model.disks[0] = wanted;
        model.durable = vec![Seq(5000)];
        (model.rules.standby, model.rules.generation) = (false, 3);
    }
    let received = server.model().bytes_received;
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    let (_, content) = server.checkpoint(false);
    let hello = server.model().hellos.last().unwrap().clone();
    let Continuity::Tracked { acked, .. } = hello.disks[0].continuity else { panic!("{hello:?}") };
    assert_eq!((acked, hello.generation), (Seq(5000), Generation(3)));
    assert_same("after the last death", &content[0], &disk.content());
    assert_eq!(server.model().bytes_received, received, "nothing had changed");
    agent.stop().unwrap();
}
