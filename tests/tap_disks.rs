//! The in-line tap over more than a whole disk of its own: two disks that share one order, and a partition.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::disk::{Disk, Mount};
use support::numbered::{BLOCK, Writer, write_of};
use support::tapped::{Tapped, logged};
use support::{NAME, Stage, run, sh};

#[test]
fn two_disks_have_one_order_also_over_a_kill() {
    const SLOTS: u64 = 512;
    let seed = std::env::var("UNDERSTUDY_SEED")
        .map_or_else(|_| rand::rng().random_range(0..1 << 32), |text| text.parse().unwrap());
    println!("UNDERSTUDY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(16);
    let second = Disk::new(&stage.path(""), "second", 16);
    stage.start_server(None);
    let (first, port) = (stage.disk.device().to_owned(), stage.port);
    let tapped = Tapped::start_on(&mut stage, &[&first, second.device()], port, &[]);
    stage.wait_protected();
    tapped.wait_in_order(&mut stage);
    tapped.zero(SLOTS as usize * BLOCK);
    let writer = Writer::start(&tapped.devices(), seed, SLOTS);
    std::thread::sleep(Duration::from_millis(random.random_range(800..1500)));
    sh(&format!("kill -9 {}", tapped.server().unwrap()));
    stage.wait_until("the agent's successor", 60, |stage| {
        logged(stage).matches("the tap sends writes in order").count() >= 2
    });
    let before = writer.written.load(Ordering::SeqCst);
    stage.wait_until("writes that go on", 30, |_| writer.written.load(Ordering::SeqCst) > before);
    std::thread::sleep(Duration::from_millis(random.random_range(800..1500)));
    // Fewer checkpoints than these would be too few to choose from.
    let count = |stage: &Stage| stage.status("/checkpoints").as_u64().unwrap_or(0);
    stage.wait_until("checkpoints of flushes", 30, |stage| count(stage) >= 15);
    let written = writer.end();
    stage.insist(&["checkpoint", NAME, "--name", "end"]);
    let list = stage.insist(&["checkpoints", NAME]);
    let mut all = list["checkpoints"].as_array().unwrap().clone();
    all.sort_by_key(|one| one["checkpoint"].as_u64());
    let (mut between, mut last) = (0, (0, 0));
    let chosen: Vec<_> =
        (0..11).map(|_| random.random_range(1..all.len() - 1)).chain([all.len() - 1]).collect();
    for index in chosen {
        let id = all[index]["checkpoint"].to_string();
        let disks = stage.disks_at(&id, 2);
        last = (write_of(&disks[0], seed, SLOTS), write_of(&disks[1], seed, SLOTS));
        println!("checkpoint {id}: the first disk right after write {}, the second after {}", last.0, last.1);
        // Each number is written to the first disk, and when that is complete, to the second.
        assert!(last.0 == last.1 || last.0 == last.1 + 1, "checkpoint {id} of {}: {last:?}", all.len());
        between += u32::from(last.0 != last.1);
    }
    println!(
        "{written} writes on each, {} checkpoints, {between} of those seen lie between two disks",
        all.len()
    );
    assert_eq!(last, (written, written), "the newest checkpoint holds every flush");
}

/// A partition that the kernel is told of, as it does not look for them here.
struct Partition(String);

impl Partition {
    fn new(disk: &str, start_mib: u64, mib: u64) -> Partition {
        sh(&format!("addpart {disk} 1 {} {}", start_mib * 2048, mib * 2048));
        let partition = Partition(disk.to_owned());
        let began = Instant::now();
        while !Path::new(&partition.device()).exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "{} does not come", partition.device());
            std::thread::sleep(Duration::from_millis(20));
        }
        partition
    }

    fn device(&self) -> String {
        format!("{}p1", self.0)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let _ = Command::new("delpart").args([&self.0, "1"]).output();
    }
}

#[test]
fn a_partition_is_tapped_and_what_is_beside_it_stays() {
    const MIB: usize = 1 << 20;
    let mut stage = Stage::new(64);
    let disk = stage.disk.device().to_owned();
    sh(&format!("dd if=/dev/urandom of={disk} bs=1M count=64 oflag=direct status=none"));
    let before = std::fs::read(stage.disk.file()).unwrap();
    let partition = Partition::new(&disk, 8, 40);
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start_on(&mut stage, &[&partition.device()], port, &[]);
    stage.wait_protected();
    let point = stage.path("bare");
    std::fs::create_dir(&point).unwrap();
    let refused = Command::new("mount").arg(partition.device()).arg(&point).output().unwrap();
    assert!(!refused.status.success(), "the bare partition is claimed");
    sh(&format!("mkfs.ext4 -q -F {}", tapped.device()));
    let mount = Mount::new(tapped.device(), &stage.path("mnt"));
    run(Command::new("fio").arg(format!("--filename={}", stage.path("mnt/file").display())).args([
        "--name=verify",
        "--size=16M",
        "--rw=randwrite",
        "--bs=4k",
        "--ioengine=libaio",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--direct=1",
    ]));
    drop(mount);
    sh(&format!("e2fsck -fn {}", tapped.device()));
    run(Command::new("cmp").arg(tapped.device()).arg(partition.device()));
    stage.insist(&["checkpoint", NAME, "--name", "end"]);
    let stood_in = stage.disks_at("end", 1).remove(0);
    drop(tapped);
    sh(&format!("blockdev --flushbufs {}", partition.device()));
    sh(&format!("blockdev --flushbufs {disk}"));
    let after = std::fs::read(stage.disk.file()).unwrap();
    assert!(stood_in == after[8 * MIB..48 * MIB], "the stand-in is the partition");
    assert!(
        before[..8 * MIB] == after[..8 * MIB] && before[48 * MIB..] == after[48 * MIB..],
        "nothing beside it"
    );
}
