//! The in-line tap through the kernel's ublk driver, in a Debian guest whose kernel has it: agents that are killed, and with them
//! whoever keeps them, under a file system that is written to; then the stand-in is what the disk is.
//!
//! The kernel here has no ublk, so QEMU emulates a machine that does: minutes. `cargo test --features ublk --test ublk`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::computer::{Computer, Layout, Parts, disk_of_files, ublk_kernel};
use support::console::Console;
use support::process::Process;
use support::{ask, free_port, program, run, sh, uri};

const NAME: &str = "tapped";
/// Where the agent of the guest finds the server.
const HOST: &str = "10.0.2.2";
const DISK_MIB: u64 = 192;
/// The protected disk, as the guest sees it, and what is used in its place.
const DISK: &str = "/dev/vdc";
const TAP: &str = "/dev/ublkb0";

/// A server here, and a computer with a disk of its own.
struct Scene {
    folder: tempfile::TempDir,
    port: u16,
    _server: Process,
}

impl Scene {
    fn begin() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let (port, at) = (free_port(), |name: &str| folder.path().join(name));
        let mut command = program();
        command.args(["server", "--listen", &format!("0.0.0.0:{port}"), "--heartbeat-deadline", "60s"]);
        command.arg("--data").arg(at("store"));
        command.arg("--nbd").arg(format!("unix:{}", at("nbd.sock").display()));
        let _server = Process::start(command, None, &at("server.log"));
        let scene = Scene { folder, port, _server };
        scene.wait("the server", 60, || ask(&scene.at("store"), &["status"]).is_ok());
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn well(&self, arguments: &[&str]) -> Value {
        ask(&self.at("store"), arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn wait(&self, what: &str, seconds: u64, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            let log = || std::fs::read_to_string(self.at("server.log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(seconds), "waited for {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Boots the computer with our program, the drivers and an empty disk.
    fn computer(&self) -> Computer {
        let tools = self.at("tools");
        std::fs::create_dir(&tools).unwrap();
        let ours = program().get_program().to_owned();
        run(Command::new("strip").args(["-s", "-o"]).arg(tools.join("understudy")).arg(ours));
        for module in ["failover", "net_failover", "virtio_net", "loop", "ublk_drv"] {
            run(Command::new("cp").arg(ublk_kernel().join(format!("{module}.ko"))).arg(&tools));
        }
        disk_of_files(&tools, &self.at("tools.raw"), 64);
        sh(&format!("truncate -s {DISK_MIB}M {}", self.at("disk.raw").display()));
        let disks = vec![(self.at("tools.raw"), true), (self.at("disk.raw"), false)];
        let parts = Parts { layout: Layout::RescueNewer, disks, folder: self.at("computer") };
        let mut computer = Computer::start(&parts);
        let console = &mut computer.console;
        console.wait_login(300);
        console.run("mkdir -p /tools /mnt; mount -o ro /dev/vdb /tools; cp /tools/understudy /usr/bin/");
        console.run(
            "for m in failover net_failover virtio_net loop ublk_drv; do insmod /tools/$m.ko || exit 1; done",
        );
        console.run("uname -r; ls -l /dev/ublk-control");
        computer
    }

    /// Starts an agent in the computer, which taps the disk, and waits until writes are sent in order. It has a log of its own.
    fn tap(&self, console: &mut Console) {
        let token = self.well(&["enroll", "--name", NAME])["token"].as_str().unwrap().to_owned();
        console.run("touch /run/agent.log; cat /run/agent.log >>/run/earlier.log; rm /run/agent.log");
        console.run(&format!(
            "understudy agent --server {HOST}:{} --name {NAME} --token {token} --disk {DISK} \
             --tracker tap --tap-checkpoint-every 500ms --checkpoint-every 1h --heartbeat 2s --state /var/lib/agent \
             >>/run/agent.log 2>&1 </dev/null & echo $! >/run/holder",
            self.port
        ));
        wait_for(
            console,
            "the tap",
            90,
            &format!("grep -q 'tracker tap.*use {TAP} in its place' /run/agent.log"),
        );
        wait_for(console, "order", 90, "grep -q 'the tap sends writes in order' /run/agent.log");
    }

    /// The newest state that a checkpoint of now has is what the computer's disk has.
    fn stand_in_is_equal(&self, name: &str) {
        self.well(&["checkpoint", NAME, "--name", name]);
        let session = self.well(&["recover", NAME, "--at", name, "--drill"]);
        let copy = self.at("copy.raw");
        sh(&format!("nbdcopy {} {}", uri(&session, 0), copy.display()));
        run(Command::new("cmp").arg(&copy).arg(self.at("disk.raw")));
        self.well(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
    }
}

/// Asks again and again until the line succeeds.
fn wait_for(console: &mut Console, what: &str, seconds: u64, line: &str) {
    let started = Instant::now();
    while console.ask(line).0 != 0 {
        if started.elapsed() > Duration::from_secs(seconds) {
            // With what waits for a disk, and where in the kernel.
            let (_, log) = console.ask(
                "tail -n 20 /run/agent.log; dmesg | tail -n 5; for t in /proc/[0-9]*/task/*; do grep -q 'State:.D' $t/status && \
                 echo $t $(cat $t/comm) && cat $t/stack; done",
            );
            panic!("waited {seconds} s for {what}: {line}\n{log}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The writer's rounds go on.
fn goes_on(console: &mut Console) {
    let before = console.run("cat /run/rounds").trim().to_owned();
    wait_for(console, "writes that go on", 90, &format!("[ $(cat /run/rounds) -gt $(({before} + 2)) ]"));
}

#[test]
fn a_disk_that_ublk_shows_outlives_its_agents_and_is_what_the_stand_in_is() {
    let scene = Scene::begin();
    let mut computer = scene.computer();
    let console = &mut computer.console;
    scene.tap(console);
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
        wait_for(console, "the agent's successor", 90, &taken_over);
        goes_on(console);
        let compared = format!("[ $(grep -c 'of which' /run/agent.log) -ge {round} ]");
        wait_for(console, "what may be missing to be compared", 90, &compared);
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
    scene.tap(console);
    goes_on(console);
    console.run("[ -e /run/waited ]");
    println!("agent and holder were killed, and the writer went on");

    console.run("touch /run/over");
    wait_for(console, "the writer's end", 60, "! kill -0 $(cat /run/writer)");
    let rounds = console.run("cat /run/rounds");
    let (failed, said) = console.ask("cat /run/failed");
    assert_ne!(failed, 0, "no round failed: {said}");
    console.run(&format!("fstrim /mnt; dd if={TAP} of=/dev/null bs=1M count=4 status=none"));
    // Asked to end while it is used, it goes on.
    console.run("kill -TERM $(cat /run/holder)");
    wait_for(console, "that it is said", 30, "grep -q 'not stopping yet.*is in use' /run/agent.log");
    console.run("dd if=/dev/urandom of=/mnt/last bs=64k count=4 conv=fsync status=none");
    console.run("sync; umount /mnt");
    wait_for(console, "the tap's end", 60, &format!("! kill -0 $(cat /run/holder) && [ ! -e {TAP} ]"));
    console.run(&format!("e2fsck -fn {DISK}; mount -o ro {DISK} /mnt; ls -l /mnt/last; umount /mnt"));
    // What was written to it last is on the server; a further tap finds nothing to send.
    scene.tap(console);
    scene.stand_in_is_equal("end");
    scene.well(&["verify", NAME]);
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
