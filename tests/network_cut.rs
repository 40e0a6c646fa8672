//! A network that is cut under write load costs no full copy, no memory and no slower disk; one that is slow carries less.
//!
//! `UNDERSTUDY_CUT_SECONDS` says how long it is cut: 8 here, 60 in scripts/soak.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::{NAME, Stage, run};

const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 512;

/// Overwrites the first 32 MiB of the device again and again for that long; bytes a second.
fn write_load(device: &str, seconds: u64) -> f64 {
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/urandom", "bs=1M", "count=32", "conv=notrunc", "oflag=direct"])
            .arg(format!("of={device}"));
        run(&mut dd);
        bytes += 32 * MIB;
    }
    bytes as f64 / started.elapsed().as_secs_f64()
}

#[test]
fn a_cut_network_costs_nothing_but_time() {
    let seconds =
        std::env::var("UNDERSTUDY_CUT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let mut stage = Stage::new(DISK_MIB);
    let device = stage.disk.device().to_owned();
    let mut fill = Command::new("dd");
    run(fill.args(["if=/dev/urandom", "bs=1M", "count=256", "oflag=direct"]).arg(format!("of={device}")));
    stage.start_server(None);
    let proxy = Proxy::new(stage.port);
    stage.start_agent_towards(None, proxy.port(), &[]);
    stage.wait_protected();
    let initial = proxy.upstream_bytes();
    assert!(initial >= 256 * MIB, "the first copy sends what is there: {initial}");

    let connected = write_load(&device, seconds);
    let memory_before = stage.agent.as_ref().unwrap().resident_kib();
    proxy.cut();
    let alone = write_load(&device, seconds);
    let memory_after = stage.agent.as_ref().unwrap().resident_kib();
    let before = proxy.upstream_bytes();
    proxy.mend();
    stage.insist(&["checkpoint", NAME, "--name", "after-cut"]);
    let resent = proxy.upstream_bytes() - before;

    println!("written alone {:.0} MB/s, connected {:.0} MB/s", alone / 1e6, connected / 1e6);
    println!(
        "agent {memory_before} KiB before, {memory_after} KiB after; first copy {initial} B, resent {resent} B"
    );
    assert!(resent < 128 * MIB, "32 MiB changed and {resent} bytes were sent");
    assert!(memory_after < memory_before + 16 * 1024, "{memory_before} KiB grew to {memory_after} KiB");
    let session = stage.insist(&["recover", NAME, "--at", "after-cut", "--drill"]);
    let copy = stage.path("copy.raw");
    support::sh(&format!("nbdcopy {} {}", support::uri(&session, 0), copy.display()));
    run(Command::new("cmp").arg(&copy).arg(&device));
}

#[test]
fn what_shrinks_travels_packed_and_arrives_as_it_was() {
    let mut stage = Stage::new(96);
    let device = stage.disk.device().to_owned();
    let text = "understudy ".repeat(64 * MIB as usize / 11 + 1);
    std::fs::write(stage.path("text"), &text.as_bytes()[..64 * MIB as usize]).unwrap();
    support::sh(&format!(
        "dd if={} of={device} bs=1M oflag=direct status=none",
        stage.path("text").display()
    ));
    stage.start_server(None);
    let proxy = Proxy::new(stage.port);
    stage.start_agent_towards(None, proxy.port(), &["--compress", "always"]);
    stage.wait_protected();
    let sent = proxy.upstream_bytes();
    println!("64 MiB travelled as {sent} B");
    assert!(sent < 8 * MIB, "{sent}");
    stage.assert_stand_in_equals_disk("packed");
}
