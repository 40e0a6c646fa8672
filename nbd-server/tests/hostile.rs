//! Clients that are broken or mean no good: the server keeps its memory, its other clients and its disks.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, MemoryVolume};
use common::raw::{ACK, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, Raw, blob};
use common::{MIB, Served, succeed};
use nbd_server::{Export, Exports, Limits};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whoever stalls in the middle of a message is soon cut off.
fn impatient() -> (Served, Arc<MemoryVolume>) {
    impatient_with(Limits::default().handshake_timeout)
}

/// The same with so long for a handshake.
fn impatient_with(handshake_timeout: Duration) -> (Served, Arc<MemoryVolume>) {
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(MIB)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk.clone())).unwrap();
    let limits = Limits { handshake_timeout, stall_timeout: Duration::from_millis(800), ..Limits::default() };
    (Served::with_limits(exports, limits), disk)
}

fn still_serves(served: &Served) {
    assert_eq!(succeed("nbdinfo", &["--size", &served.tcp()]).trim(), MIB.to_string());
}

/// Tests that look at the memory of this process take turns.
static MEMORY: Mutex<()> = Mutex::new(());

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn options_are_answered_one_by_one_as_specified() {
    let (served, _disk) = Served::memory(MIB);
    let mut raw = Raw::greeted(served.tcp_port());
    let meta = |name: &[u8], queries: &[&[u8]]| {
        let mut data = [blob(name), (queries.len() as u32).to_be_bytes().to_vec()].concat();
        queries.iter().for_each(|query| data.extend(blob(query)));
        data
    };
    assert_eq!(raw.option(99, b"data of an unknown option").0, ERR_UNSUP);
    assert_eq!(raw.option(12, b"").0, ERR_UNSUP, "not assigned");
    assert_eq!(raw.option(4, b"").0, ERR_UNSUP, "the withdrawn peek");
    assert_eq!(raw.option(5, b"").0, ERR_POLICY, "STARTTLS");
    assert_eq!(raw.option(5, b"x").0, ERR_INVALID);
    assert_eq!(raw.option(3, b"x").0, ERR_INVALID, "LIST has no data");
    let (kind, listed) = raw.option(3, b"");
    assert_eq!((kind, listed.len()), (ACK, 1));
    assert_eq!(listed[0].data, [blob(b"disk"), b"a disk of the tests".to_vec()].concat());
    assert_eq!(
        raw.option(10, &meta(b"disk", &[b"base:allocation"])).0,
        ERR_INVALID,
        "structured replies first"
    );
    assert_eq!(raw.option(8, b"x").0, ERR_INVALID);
    assert_eq!(raw.option(8, b"").0, ACK);
    assert_eq!(raw.option(9, &meta(b"disk", &[])).1.len(), 2);
    assert_eq!(raw.option(9, &meta(b"disk", &[b"base:"])).1.len(), 1);
    assert_eq!(raw.option(9, &meta(b"disk", &[b"x-none:", b"base:else"])).1.len(), 0);
    assert_eq!(raw.option(9, &meta(b"none", &[])).0, ERR_UNKNOWN);
    assert_eq!(raw.option(10, &meta(b"disk", &[b"base:"])).1.len(), 0, "a wildcard selects nothing");
    assert_eq!(raw.option(10, &meta(b"disk", &[b"x:y", b"base:allocation"])).1.len(), 1);
    assert_eq!(raw.option(9, &meta(b"disk", &[b"base:"])[..13]).0, ERR_INVALID, "cut short");
    assert_eq!(raw.option(7, &[blob(b"disk"), vec![0, 1]].concat()).0, ERR_INVALID);
    assert_eq!(raw.option(6, &blob(b"disk")).0, ERR_INVALID);
    assert_eq!(raw.option(7, &[blob(b"none"), vec![0, 0]].concat()).0, ERR_UNKNOWN);
    assert_eq!(raw.option(77, &vec![0; 100_000]).0, ERR_TOO_BIG);
    // Without a request for it, and with requests that do not exist, the size comes all the same.
    let (kind, infos) = raw.option(6, &[blob(b"disk"), vec![0, 2, 0, 99, 0, 3]].concat());
    assert_eq!((kind, infos.len()), (ACK, 2));
    assert_eq!(infos[0].data[..10], [&[0, 0][..], &MIB.to_be_bytes()].concat());
    assert_eq!(infos[1].data[..6], [0, 3, 0, 0, 0, 1]);
    assert_eq!(raw.option(2, b"ignored data").0, ACK);
    assert!(raw.is_closed());
    let mut hasty = Raw::greeted(served.tcp_port());
    hasty.send_option(2, &[]);
    drop(hasty);
    still_serves(&served);
}

#[test]
fn a_failed_or_later_selection_replaces_the_earlier_one() {
    let (served, disk) = Served::memory(MIB);
    served.exports.insert("second", Export::new(disk)).unwrap();
    let selected = [blob(b"disk"), vec![0, 0, 0, 1], blob(b"base:allocation")].concat();
    let none = [blob(b"disk"), vec![0, 0, 0, 0]].concat();
    for (then, name) in [(&none, "disk"), (&vec![1], "disk"), (&selected, "second")] {
        let mut raw = Raw::greeted(served.tcp_port());
        raw.option(8, b"");
        assert_eq!(raw.option(10, &selected).1.len(), 1);
        raw.option(10, then);
        assert!(raw.go(name));
        raw.request(0, 7, 1, 0, 4096);
        assert_eq!(raw.u32(), 0x668e_33ef);
        assert_eq!(raw.take(4), [0, 1, 0x80, 1], "an error is the last chunk");
    }
}

#[test]
fn the_old_way_to_choose_an_export_works_with_and_without_padding() {
    let (served, _disk) = Served::memory(MIB);
    for (flags, padding) in [(3u32, 0), (1, 124), (0, 124)] {
        let mut raw = Raw::connect(served.tcp_port());
        raw.take(18);
        raw.send(&flags.to_be_bytes());
        raw.send_option(1, b"disk");
        assert_eq!(raw.take(8), MIB.to_be_bytes());
        let transmission_flags = u16::from_be_bytes(raw.take(2).try_into().unwrap());
        assert_eq!(transmission_flags, 0b1101_0110_1101);
        assert!(raw.take(padding).iter().all(|byte| *byte == 0));
        raw.request(0, 0, 42, 0, 512);
        assert_eq!(raw.simple_reply(), (0, 42));
        raw.take(512);
        raw.request(0, 2, 0, 0, 0);
        assert!(raw.is_closed());
    }
    let mut raw = Raw::greeted(served.tcp_port());
    raw.send_option(1, b"none");
    assert!(raw.is_closed());
}

#[test]
fn flags_that_were_not_offered_end_the_connection() {
    let (served, _disk) = Served::memory(MIB);
    let mut raw = Raw::connect(served.tcp_port());
    raw.take(18);
    raw.send(&7u32.to_be_bytes());
    assert!(raw.is_closed());
}

#[test]
fn half_a_handshake_and_dripping_bytes_run_into_the_deadline() {
    let (served, _disk) = impatient_with(Duration::from_millis(800));
    let mut silent = Raw::connect(served.tcp_port());
    let mut half = Raw::greeted(served.tcp_port());
    half.send(b"IHAVE");
    let begun = Instant::now();
    let mut dripping = Raw::greeted(served.tcp_port());
    while begun.elapsed() < Duration::from_secs(60) && dripping.0.write_all(b"I").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "a byte now and then does not buy time");
    assert!(silent.is_closed() && half.is_closed());
    still_serves(&served);
}

#[test]
fn endless_options_and_huge_lengths_end_the_connection() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let (served, _disk) = Served::memory(MIB);
    let mut raw = Raw::greeted(served.tcp_port());
    for _ in 0..1000 {
        if raw.0.write_all(&[&b"IHAVEOPT"[..], &[0, 0, 0, 99, 0, 0, 0, 0]].concat()).is_err() {
            break;
        }
    }
    assert!(raw.is_closed());
    let before = resident_bytes();
    let mut raw = Raw::greeted(served.tcp_port());
    raw.send(&[&b"IHAVEOPT"[..], &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat());
    assert!(raw.is_closed());
    let mut raw = Raw::greeted(served.tcp_port());
    raw.send(b"GET / HTTP/1.1\r\n\r\n");
    assert!(raw.is_closed());
    assert!(resident_bytes() < before + 64 * MIB);
    still_serves(&served);
}

#[test]
fn a_wrong_magic_or_an_absurd_write_ends_the_connection_and_nothing_is_written() {
    let (served, disk) = Served::memory(MIB);
    let mut raw = Raw::ready(served.tcp_port());
    raw.send(&[0xaa; 28]);
    assert!(raw.is_closed());
    let mut raw = Raw::ready(served.tcp_port());
    raw.request(0, 1, 1, 0, u32::MAX);
    assert!(raw.is_closed());
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
    still_serves(&served);
}

#[test]
fn a_write_that_is_cut_off_writes_nothing() {
    let (served, disk) = impatient();
    let mut dropped = Raw::ready(served.tcp_port());
    dropped.request(0, 1, 1, 0, 8192);
    dropped.send(&[0xee; 5000]);
    drop(dropped);
    let mut stalled = Raw::ready(served.tcp_port());
    stalled.request(0, 1, 1, 0, 8192);
    stalled.send(&[0xee; 5000]);
    assert!(stalled.is_closed(), "a stalled payload runs into its timeout");
    let mut half = Raw::ready(served.tcp_port());
    half.send(&[0x25, 0x60]);
    assert!(half.is_closed(), "so does half a header");
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
    still_serves(&served);
}

#[test]
fn an_idle_client_is_left_alone() {
    let (served, _disk) = impatient();
    let mut raw = Raw::ready(served.tcp_port());
    std::thread::sleep(Duration::from_millis(2000));
    raw.request(0, 0, 9, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 9));
}

#[test]
fn bad_requests_are_answered_and_the_stream_stays_in_step() {
    let (served, _disk) = Served::memory(MIB);
    let mut raw = Raw::ready(served.tcp_port());
    for (flags, command, offset, len, error) in [
        (0, 99, 0, 0, 22),
        (4, 5, 0, 512, 22),
        (1 << 7, 0, 0, 512, 22),
        (0, 0, MIB, 1, 22),
        (0, 4, MIB, 1, 22),
        (0, 6, MIB, 1, 28),
        (0, 3, 1, 0, 22),
        (0, 7, 0, 512, 22),
        (0, 0, 0, u32::MAX, 22),
        (0, 6, 0, u32::MAX, 28),
    ] {
        raw.request(flags, command, 5, offset, len);
        assert_eq!(raw.simple_reply(), (error, 5), "command {command} at {offset}, {len} bytes");
    }
    raw.request(0, 1, 6, MIB, 1000);
    raw.send(&[1; 1000]);
    assert_eq!(raw.simple_reply(), (28, 6), "the payload of a refused write is skipped");
    raw.request(0, 0, 7, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 7));
    assert_eq!(raw.take(512), vec![0; 512]);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let _alone = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(32 * MIB)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk)).unwrap();
    let limits = Limits { large_request_bytes_max: ByteLen::new(32 * MIB), ..Limits::default() };
    let served = Served::with_limits(exports, limits);
    let mut greedy: Vec<Raw> = (0..4).map(|_| Raw::ready(served.tcp_port())).collect();
    let before = resident_bytes();
    for raw in &mut greedy {
        (0..64).for_each(|cookie| raw.request(0, 0, cookie, 0, 32 << 20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut modest = Raw::ready(served.tcp_port());
    for cookie in 0..100 {
        modest.request(0, 0, cookie, 0, 64 << 10);
        assert_eq!(modest.simple_reply(), (0, cookie));
        modest.take(64 << 10);
    }
    assert!(resident_bytes() < before + 200 * MIB, "256 reads of 32 MiB do not take 8 GiB");
}

#[test]
fn whoever_drips_is_cut_off_in_either_direction() {
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(32 * MIB)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk.clone())).unwrap();
    let limits = Limits {
        stall_timeout: Duration::from_millis(800),
        bytes_per_second_min: ByteLen::new(32 * MIB),
        ..Limits::default()
    };
    let served = Served::with_limits(exports, limits);
    let mut writer = Raw::ready(served.tcp_port());
    writer.request(0, 1, 1, 0, 1 << 20);
    let begun = Instant::now();
    // Never still for as long as a client may be.
    while writer.0.write_all(&[7; 100]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60), "a payload may drip");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut reader = Raw::ready(served.tcp_port());
    reader.request(0, 0, 1, 0, 32 << 20);
    let begun = Instant::now();
    let (mut some, mut taken) = ([0; 64 << 10], 0);
    while let Ok(count @ 1..) = reader.0.read(&mut some) {
        taken += count;
        assert!(begun.elapsed() < Duration::from_secs(60), "a reply may drip");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(taken < 32 << 20, "all of it was sent, however slowly it was taken");
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
    assert_eq!(succeed("nbdinfo", &["--size", &served.tcp()]).trim(), (32 * MIB).to_string());
}

#[test]
fn a_thousand_connections_are_served_and_the_one_over_is_turned_away() {
    // Both sides of each are in this process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(MIB)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk)).unwrap();
    let served = Served::with_limits(exports, Limits { connections_max: 1000, ..Limits::default() });
    let mut all: Vec<Raw> = (0..1000).map(|_| Raw::ready(served.tcp_port())).collect();
    assert_eq!(served.server.connections(), 1000);
    assert!(Raw::connect(served.tcp_port()).is_closed());
    for (cookie, raw) in all.iter_mut().enumerate() {
        raw.request(0, 0, cookie as u64, 0, 4096);
    }
    for (cookie, raw) in all.iter_mut().enumerate() {
        assert_eq!(raw.simple_reply(), (0, cookie as u64));
        raw.take(4096);
    }
    // Half of them go in the middle of a message, the others say nothing further.
    for raw in &mut all[..500] {
        raw.send(&[0x25, 0x60, 0x95]);
    }
    drop(all);
    let deadline = Instant::now() + Duration::from_secs(60);
    while served.server.connections() > 0 {
        assert!(Instant::now() < deadline, "{} connections are left", served.server.connections());
        std::thread::sleep(Duration::from_millis(10));
    }
    still_serves(&served);
}

#[test]
fn random_bytes_in_either_phase_harm_nobody() {
    let (served, _disk) = impatient();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..150 {
        let mut raw =
            if round % 2 == 0 { Raw::greeted(served.tcp_port()) } else { Raw::ready(served.tcp_port()) };
        let mut noise = vec![0u8; random.random_range(1..3000)];
        random.fill(&mut noise[..]);
        let start: &[u8] =
            if round % 2 == 0 { b"IHAVEOPT\0\0\0" } else { &[0x25, 0x60, 0x95, 0x13, 0, 0, 0] };
        if random.random_bool(0.8) {
            let len = start.len().min(noise.len());
            noise[..len].copy_from_slice(&start[..len]);
        }
        // The server may hang up in the middle of it.
        let _ = raw.0.write_all(&noise);
    }
    still_serves(&served);
}
