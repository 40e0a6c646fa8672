//! The in-line tap over a real disk: other people's programs on it, kills, a network that is cut.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::disk::Mount;
use support::numbered::{BLOCK, Writer, open_direct, write_of};
use support::proxy::Proxy;
use support::tapped::{Tapped, logged};
use support::{NAME, Stage, run, sh};

const MIB: u64 = 1 << 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn file_systems_and_fio_on_the_tap_leave_source_stand_in_and_tap_equal() {
    let mut stage = Stage::new(320);
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(&mut stage, port, &[]);
    let device = tapped.device().to_owned();
    stage.wait_protected();
    for (make, check) in [("mkfs.ext4 -q -F", "e2fsck -fn"), ("mkfs.xfs -q -f", "xfs_repair -n")] {
        sh(&format!("{make} {device}"));
        let mount = Mount::new(&device, &stage.path("mnt"));
        let file = stage.path("mnt/file");
        // Past the cache and through it, each block checked afterwards by its own checksum.
        for (direct, threads) in [(1, 2), (0, 1)] {
            run(Command::new("fio").arg(format!("--filename={}", file.display())).args([
                "--name=verify",
                "--size=24M",
                "--rw=randwrite",
                "--bsrange=4k-64k",
                "--bs_unaligned=0",
                "--ioengine=libaio",
                "--iodepth=8",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--fsync=64",
                &format!("--direct={direct}"),
                &format!("--verify_async={threads}"),
            ]));
        }
        sh(&format!("fstrim {}", stage.path("mnt").display()));
        // At rest and used: frozen for the instant.
        let name = format!("mounted-{}", &make[5..8]);
        stage.insist(&["checkpoint", NAME, "--name", &name]);
        drop(mount);
        sh(&format!("{check} {device}"));
        run(Command::new("cmp").arg(&device).arg(stage.disk.device()));
        stage.assert_stand_in_equals_disk(&format!("unmounted-{}", &make[5..8]));
    }
    let list = stage.insist(&["checkpoints", NAME]);
    let checkpoints = list["checkpoints"].as_array().unwrap();
    let with = |consistency: &str| {
        checkpoints.iter().filter(|one| one["consistency"].as_str().unwrap().contains(consistency)).count()
    };
    println!("{} checkpoints of flushes, {} of file systems at rest", with("crash"), with("file"));
    assert!(with("file") >= 2 && with("crash") >= 2, "{list}");
    stage.insist(&["verify", NAME]);
    drop(tapped);
    assert!(!sh("losetup -l -n -O NAME,BACK-FILE").contains(&format!("{device} ")), "{device} is left");
}

#[test]
fn kills_of_the_agent_stall_the_machine_and_lose_no_flush() {
    const SLOTS: u64 = 2048;
    const DISK_MIB: u64 = 64;
    let seed = number("UNDERSTUDY_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    println!("UNDERSTUDY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(DISK_MIB);
    // What is not written to must not be compared.
    sh(&format!(
        "dd if=/dev/urandom of={} bs=1M oflag=direct status=none seek=16 count=32",
        stage.disk.device()
    ));
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(&mut stage, port, &[]);
    stage.wait_protected();
    tapped.wait_in_order(&mut stage);
    tapped.zero(SLOTS as usize * BLOCK);
    let writer = Writer::start(&[tapped.device()], seed, SLOTS);
    let rounds = number("UNDERSTUDY_STORIES").unwrap_or(4);
    let mut flushed = Vec::new();
    for round in 1..=rounds {
        std::thread::sleep(Duration::from_millis(random.random_range(200..1500)));
        let server = tapped.server().expect("it runs");
        flushed.push(writer.flushed.load(Ordering::SeqCst));
        sh(&format!("kill -9 {server}"));
        stage.wait_until("the agent's successor", 60, |stage| {
            logged(stage).matches("of which").count() as u64 >= round
        });
        tapped.wait_in_order(&mut stage);
        let before = writer.written.load(Ordering::SeqCst);
        stage.wait_until("writes that go on", 30, |_| writer.written.load(Ordering::SeqCst) > before);
    }
    let written = writer.end();
    let log = logged(&stage);
    for line in log.lines().filter(|line| line.contains("of which")) {
        println!("{}", &line[line.find("compared").unwrap_or(0)..]);
        let bytes: u64 = line.split("compared ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(bytes <= 12 * MIB, "{bytes} bytes were compared, and 8 MiB are written to");
    }
    stage.assert_stand_in_equals_disk("end");
    run(Command::new("cmp").arg(tapped.device()).arg(stage.disk.device()));
    let list = stage.insist(&["checkpoints", NAME]);
    let mut all = list["checkpoints"].as_array().unwrap().clone();
    all.sort_by_key(|one| one["checkpoint"].as_u64());
    let looked_at: Vec<_> =
        (0..8).map(|_| random.random_range(1..all.len() - 1)).chain([all.len() - 1]).collect();
    let mut last = 0;
    for index in looked_at {
        let id = all[index]["checkpoint"].to_string();
        let at = write_of(&stage.disks_at(&id, 1)[0], seed, SLOTS);
        println!("checkpoint {id} is the disk right after write {at}");
        last = last.max(at);
    }
    println!("{written} writes, {} checkpoints, flushed at the kills: {flushed:?}", all.len());
    assert_eq!(last, written, "the newest checkpoint holds every flush");
}

/// A checkpoint brings what is mounted on the tap to rest, which writes it out through the tap. The agent must not wait for that
/// itself: killed just then, it could not end, and nobody could take its place.
#[test]
fn an_agent_that_dies_while_it_brings_file_systems_to_rest_is_replaced() {
    let seed = number("UNDERSTUDY_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    println!("UNDERSTUDY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(256);
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(&mut stage, port, &[]);
    stage.wait_protected();
    let device = tapped.device().to_owned();
    sh(&format!("mkfs.ext4 -q -F -E nodiscard {device}"));
    let mount = Mount::new(&device, &stage.path("mnt"));
    let hanging = tapped.errors_on_panic();
    for round in 1..=5u64 {
        tapped.wait_in_order(&mut stage);
        // Some tenths of a second of writing out.
        std::fs::write(stage.path("mnt/much"), vec![round as u8; 96 << 20]).unwrap();
        let store = stage.path("store");
        let asked = std::thread::spawn(move || support::ask(&store, &["checkpoint", NAME]).is_ok());
        std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
        let server = tapped.server().expect("it runs");
        sh(&format!("kill -9 {server}"));
        stage.wait_until("the agent's successor", 60, |stage| {
            logged(stage).matches("of which").count() as u64 >= round
        });
        // Whatever was frozen is not any more.
        std::fs::write(stage.path("mnt/after"), vec![round as u8; 1 << 20]).unwrap();
        sh(&format!("sync -f {}", stage.path("mnt/after").display()));
        println!("round {round}: killed, and the checkpoint was taken: {}", asked.join().unwrap());
    }
    tapped.wait_in_order(&mut stage);
    stage.insist(&["checkpoint", NAME, "--name", "mounted"]);
    drop((hanging, mount));
    sh(&format!("e2fsck -fn {device}"));
    run(Command::new("cmp").arg(&device).arg(stage.disk.device()));
    stage.assert_stand_in_equals_disk("end");
}

#[test]
fn a_cut_network_is_a_gap_once_the_queue_is_full_and_nothing_before() {
    const SLOTS: u64 = 2048;
    let mut stage = Stage::new(64);
    stage.start_server(None);
    let proxy = Proxy::new(stage.port);
    let flags = ["--tap-queue", "4MiB"];
    let tapped = Tapped::start(&mut stage, proxy.port(), &flags);
    stage.wait_protected();
    tapped.wait_in_order(&mut stage);
    let file = open_direct(tapped.device());
    let buffer = blocks::AlignedBuffer::new(BLOCK);
    let write = |from: u64, count: u64| {
        (from..from + count).for_each(|at| {
            let mut block = blocks::AlignedBuffer::new(BLOCK);
            block.copy_from_slice(&buffer);
            block[..8].copy_from_slice(&(at + 1).to_le_bytes());
            file.write_all_at(&block, at % SLOTS * BLOCK as u64).unwrap();
        });
        file.sync_data().unwrap();
    };
    // Short: the order is kept.
    proxy.cut();
    write(0, 64);
    proxy.mend();
    stage.assert_stand_in_equals_disk("short");
    assert!(!logged(&stage).contains("only marks"), "{}", stage.logs());
    // Longer than the queue: the disk goes on, the order does not.
    proxy.cut();
    write(64, 1500);
    let resident = |tapped: &Tapped| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", tapped.server().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident(&tapped);
    write(1564, 4000);
    let after = resident(&tapped);
    println!("{before} KiB with a full queue, {after} KiB after 16 MB more");
    assert!(after < before + 8 * 1024, "the queue is bounded");
    proxy.mend();
    tapped.wait_in_order(&mut stage);
    stage.assert_stand_in_equals_disk("long");
    assert!(
        logged(&stage).contains("only marks what is written: no connection to the server"),
        "{}",
        stage.logs()
    );
    let list = stage.insist(&["checkpoints", NAME]);
    let gaps = list["gaps"].as_array().unwrap();
    let told = gaps.iter().find(|gap| gap["cause"].as_str().unwrap().contains("the tap's queue is full"));
    let told = told.unwrap_or_else(|| panic!("no gap says it: {list}"));
    println!("{told}");
    assert!(told["until_ms"] != 0, "the next checkpoint has ended it: {told}");
}
