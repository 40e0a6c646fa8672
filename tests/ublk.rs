//! The in-line tap through the kernel's ublk driver, in a Debian guest whose kernel has it: agents that are killed, and with them
//! whoever keeps them, under a file system that is written to; then the stand-in is what the disk is.
//!
//! The kernel here has no ublk, so QEMU emulates a machine that does: minutes. `cargo test --features ublk --test ublk`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::process::Command;
use support::computer::{Computer, Layout, Parts, disk_of_files, ublk_kernel};
use support::console::Console;
use support::host::Host;
use support::{program, run, sh, uri};

const NAME: &str = "tapped";
const DISK_MIB: u64 = 192;
/// The protected disk, as the guest sees it, and what is used in its place.
const DISK: &str = "/dev/vdc";
const TAP: &str = "/dev/ublkb0";
/// In the order in which they need each other.
const DRIVERS: [&str; 4] = ["failover", "net_failover", "virtio_net", "ublk_drv"];

/// Boots the computer with our program, the drivers and an empty disk.
fn boot(host: &Host) -> Computer {
    let tools = host.at("tools");
    std::fs::create_dir(&tools).unwrap();
    let ours = program().get_program().to_owned();
    run(Command::new("strip").args(["-s", "-o"]).arg(tools.join("understudy")).arg(ours));
    for module in DRIVERS {
        run(Command::new("cp").arg(ublk_kernel().join(format!("{module}.ko"))).arg(&tools));
    }
    disk_of_files(&tools, &host.at("tools.raw"), 64);
    sh(&format!("truncate -s {DISK_MIB}M {}", host.at("disk.raw").display()));
    let disks = vec![(host.at("tools.raw"), true), (host.at("disk.raw"), false)];
    let parts = Parts { layout: Layout::RescueNewer, disks, folder: host.at("computer") };
    let mut computer = Computer::start(&parts);
    let console = &mut computer.console;
    console.wait_login(300);
    console.run("mkdir -p /tools && mount -o ro /dev/vdb /tools && cp /tools/understudy /usr/bin/");
    DRIVERS.iter().for_each(|module| drop(console.run(&format!("insmod /tools/{module}.ko"))));
    console.run("ls -l /dev/ublk-control");
    computer
}

/// Starts an agent in the computer, which taps the disk, and waits until writes are sent in order. It has a log of its own.
fn tap(host: &Host, console: &mut Console) {
    let token = host.well(&["enroll", "--name", NAME])["token"].as_str().unwrap().to_owned();
    console.run("touch /run/agent.log; cat /run/agent.log >>/run/earlier.log; rm /run/agent.log");
    console.run(&format!(
        "understudy agent --server {}:{} --name {NAME} --token {token} --disk {DISK} \
         --tracker tap --tap-checkpoint-every 500ms --checkpoint-every 1h --heartbeat 2s --state /var/lib/agent \
         >>/run/agent.log 2>&1 </dev/null & echo $! >/run/holder",
        Host::ADDRESS, host.port
    ));
    console.wait(&format!("grep -q 'tracker tap.*use {TAP} in its place' /run/agent.log"), 90);
    console.wait("grep -q 'the tap sends writes in order' /run/agent.log", 90);
}

/// The newest state that a checkpoint of now has is what the computer's disk has.
fn stand_in_is_equal(host: &Host, name: &str) {
    host.well(&["checkpoint", NAME, "--name", name]);
    let session = host.well(&["recover", NAME, "--at", name, "--drill"]);
    let copy = host.at("copy.raw");
    sh(&format!("nbdcopy {} {}", uri(&session, 0), copy.display()));
    run(Command::new("cmp").arg(&copy).arg(host.at("disk.raw")));
    host.well(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
}

/// The writer's rounds go on.
fn goes_on(console: &mut Console) {
    let before = console.run("cat /run/rounds").trim().to_owned();
    console.wait(&format!("[ $(cat /run/rounds) -gt $(({before} + 2)) ]"), 90);
}

#[test]
fn a_disk_that_ublk_shows_outlives_its_agents_and_is_what_the_stand_in_is() {
    let host = Host::start("60s");
    let mut computer = boot(&host);
    let console = &mut computer.console;
    tap(&host, console);
    // Nothing is touched but what is used: all that was touched lately is compared after a death.
    console.run(&format!("mkfs.ext4 -q -E nodiscard {TAP} && mount {TAP} /mnt"));
    // Whole files, each on the medium before the next; what went wrong is remembered.
    console.run(
        "echo 0 >/run/rounds; (n=0; while [ ! -e /run/over ]; do n=$((n + 1)); \
         dd if=/dev/urandom of=/mnt/file$((n % 24)) bs=37k count=5 conv=fsync status=none || echo round $n >>/run/failed; \
         echo $n >/run/rounds.new; mv /run/rounds.new /run/rounds; done) >/run/writer.log 2>&1 </dev/null & echo $! >/run/writer",
    );
    goes_on(console);
    for round in 1..=3 {
        let taken_over = format!("[ $(grep -c 'use {TAP} in its place' /run/agent.log) -gt {round} ]");
        console.run("kill -9 $(pgrep -P $(cat /run/holder))");
        console.wait(&taken_over, 90);
        goes_on(console);
        let compared = format!("[ $(grep -c 'of which' /run/agent.log) -ge {round} ]");
        console.wait(&compared, 90);
        println!("agent {round} was killed, and the writer went on");
    }
    // Nobody is left to start another: what is written waits, and the next start takes the device over.
    console.run(
        "kill -STOP $(cat /run/holder); kill -9 $(pgrep -P $(cat /run/holder)) $(cat /run/holder); sleep 1",
    );
    console.run(
        "(dd if=/dev/zero of=/mnt/waits bs=4k count=1 conv=fsync status=none && touch /run/waited) & \
         sleep 3; [ ! -e /run/waited ]",
    );
    tap(&host, console);
    goes_on(console);
    console.run("[ -e /run/waited ]");
    println!("agent and holder were killed, and the writer went on");

    console.run("touch /run/over");
    console.wait("! kill -0 $(cat /run/writer)", 60);
    let rounds = console.run("cat /run/rounds");
    let (failed, said) = console.ask("cat /run/failed");
    assert_ne!(failed, 0, "no round failed: {said}");
    console.run(&format!("fstrim /mnt && dd if={TAP} of=/dev/null bs=1M count=4 status=none"));
    // Asked to end while it is used, it goes on.
    console.run("kill -TERM $(cat /run/holder)");
    console.wait("grep -q 'not stopping yet.*is in use' /run/agent.log", 30);
    console.run("dd if=/dev/urandom of=/mnt/last bs=64k count=4 conv=fsync status=none");
    console.run("umount /mnt");
    console.wait(&format!("! kill -0 $(cat /run/holder) && [ ! -e {TAP} ]"), 60);
    console.run(&format!("e2fsck -fn {DISK} && mount -o ro {DISK} /mnt && ls -l /mnt/last && umount /mnt"));
    // What was written to it last is on the server; a further tap finds nothing to send.
    tap(&host, console);
    stand_in_is_equal(&host, "end");
    host.well(&["verify", NAME]);
    let log = console.run("cat /run/earlier.log /run/agent.log");
    assert!(!log.contains("may have to wait for its own writes"), "PR_SET_IO_FLUSHER was allowed: {log}");
    let compared =
        log.lines().filter_map(|line| line.split_once("compared ")?.1.split_once(" bytes, of which"));
    let compared: Vec<u64> = compared.map(|(bytes, _)| bytes.parse().unwrap()).collect();
    println!("bytes compared: {compared:?}");
    assert!(compared.len() > 3 && compared.iter().all(|bytes| *bytes < (DISK_MIB << 20) / 2), "{log}");
    let complaints = console.run("dmesg | grep -E 'I/O error|EXT4-fs error|Buffer' || true");
    assert!(complaints.trim().is_empty(), "{complaints}");
    println!("{} rounds of the writer, none failed", rounds.trim());
    console.run("kill -TERM $(cat /run/holder)");
    computer.shut_down();
}
