//! A machine that never stops writing still gets checkpoints, and they are exact.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent_support;
use agent_support::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::Consistency;

const MIB: u64 = 1 << 20;
const SLOTS: u64 = 40 * MIB / 4096;

/// Overwrites 4 KiB slots of a file of 40 MiB at random, without a pause; syncs after each sixteenth.
struct Rewriter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Rewriter {
    fn start(at: &Path) -> Rewriter {
        let mut file = std::fs::File::create(at.join("slots")).unwrap();
        fill(&mut file, 0, SLOTS * 4096, 1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut random, mut written) = (1_u64, 0);
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let slot: Vec<u8> = random.to_le_bytes().repeat(512);
                    file.write_all_at(&slot, random % SLOTS * 4096).unwrap();
                    written += 1;
                }
                file.sync_data().unwrap();
            }
            written
        });
        Rewriter { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_file_rewritten_without_pause_does_not_keep_checkpoints_away() {
    let disk = Disk::with_ext4(192 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mounted = disk.mount();
    let writer = Rewriter::start(&mounted.at);
    let mut config = config(&server, &[&disk], folder.path());
    // No room at all: whatever is read under the freeze must go out under the freeze.
    config.barrier.held_bytes_max = 0;
    let agent = RunningAgent::start(config);
    for round in 0..3 {
        let (report, content) = server.checkpoint(true);
        assert_eq!(report.consistency, Consistency::FileSystem);
        assert!(report.frozen_ms < 2000, "{report:?}");
        eventually("the verification", || server.model().verify_done(report.request));
        let (wrong, known) = server.model().verified(report.request, &content);
        assert_eq!(wrong, 0, "of {known}");
        let image = folder.path().join(format!("checkpoint-{round}.img"));
        std::fs::write(&image, &content[0]).unwrap();
        run("e2fsck", &["-fn", image.to_str().unwrap()]);
        std::fs::remove_file(&image).unwrap();
    }
    assert!(writer.finish() > 1000);
    drop(mounted);
    let (_, content) = server.checkpoint(false);
    assert_same("at rest", &content[0], &disk.content());
    agent.stop().unwrap();
}

/// The network stands still from the moment at which the applications rest, and what the freeze writes out has to be sent.
#[test]
fn a_network_that_takes_nothing_never_keeps_a_disk_frozen() {
    use std::os::unix::fs::PermissionsExt;
    let disk = Disk::with_ext4(96 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mounted = disk.mount();
    let mut config = config(&server, &[&disk], folder.path());
    config.barrier.held_bytes_max = 0;
    config.barrier.budget = Duration::from_millis(500);
    std::fs::create_dir(&config.hooks_dir).unwrap();
    let hook = config.hooks_dir.join("gate");
    let text = format!(
        "#!/bin/sh\ntouch {0}/$1\n[ $1 = thaw ] || until [ -e {0}/go ]; do sleep 0.05; done\n",
        folder.path().display()
    );
    std::fs::write(&hook, text).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let agent = RunningAgent::start(config);
    let request = (1 << 63) | 7;
    server.wait_connected();
    server.order(wire::ServerMessage::TakeCheckpoint { request, name: "slow".into(), verify: false });
    eventually("the applications rest", || at("freeze").exists());
    server.model().rules.stalled = true;
    std::fs::write(mounted.at.join("written"), vec![7; 32 * MIB as usize]).unwrap();
    std::fs::write(at("go"), "").unwrap();
    let began = Instant::now();
    eventually("the thaw", || at("thaw").exists());
    // The link itself gives up after 30 s: that is not what ended it.
    assert!(began.elapsed() < Duration::from_secs(20), "frozen for {:?}", began.elapsed());
    assert!(writes_go_on(&mounted));
    assert!(server.model().checkpoints.iter().all(|(report, _)| report.request != request));
    server.model().rules.stalled = false;
    drop(mounted);
    let (_, content) = server.checkpoint(false);
    assert_same("at rest", &content[0], &disk.content());
    agent.stop().unwrap();
}

/// For docs/design/0004-barrier.md; run it alone, in a release build, with nothing else on the machine.
#[test]
#[ignore = "a measurement"]
fn checkpoints_under_random_writes_measured() {
    for (what, span, rate) in [
        ("32 MiB file, no limit", "32m", "0"),
        ("512 MiB file, 20 MB/s", "512m", "20m"),
        ("512 MiB file, 60 MB/s", "512m", "60m"),
    ] {
        let disk = Disk::with_ext4(768 * MIB);
        let server = Server::start();
        let folder = tempfile::tempdir().unwrap();
        let mounted = disk.mount();
        let file = format!("--filename={}", mounted.at.join("fio").display());
        let common = ["--name=load", "--bs=4k", "--ioengine=psync", &file, &format!("--size={span}")];
        run("fio", &[&common[..], &["--rw=write", "--end_fsync=1"]].concat());
        let mut load = Command::new("fio");
        load.args(common).args(["--rw=randwrite", "--direct=1", "--time_based", "--runtime=120", "--thread"]);
        let load = Killed(load.arg(format!("--rate={rate}")).stdout(Stdio::null()).spawn().unwrap());
        let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
        eventually("the first", || !server.model().checkpoints.is_empty() || !server.model().gaps.is_empty());
        let mut frozen = Vec::new();
        for number in 0..5_u64 {
            let request = (1 << 63) | (50 + number);
            let began = Instant::now();
            server.order(wire::ServerMessage::TakeCheckpoint { request, name: String::new(), verify: false });
            let mut answer = None;
            eventually("an answer", || {
                let model = server.model();
                let taken = model.checkpoints.iter().find(|(report, _)| report.request == request);
                let failed = model.failed_checkpoints.iter().find(|(failed, _)| *failed == request);
                answer = taken
                    .map(|(report, _)| format!("{} ms", report.frozen_ms))
                    .or(failed.map(|(_, reason)| reason.clone()));
                answer.is_some()
            });
            frozen.push(format!("{} (took {} ms)", answer.unwrap(), began.elapsed().as_millis()));
            server.model().checkpoints.clear();
            std::thread::sleep(Duration::from_millis(500));
        }
        println!("{what}: frozen for {frozen:?}");
        drop(load);
        drop(mounted);
        agent.stop().unwrap();
    }
}
