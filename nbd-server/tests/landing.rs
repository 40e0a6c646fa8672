//! Payloads that are received where they belong, from clients that keep their word and from others.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{
    Arrived, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, MemoryVolume, Place, RequestClass,
    Result, Volume,
};
use common::raw::{ACK, Raw};
use common::{MIB, Served, succeed};
use nbd_server::{Export, Exports, Limits};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DISK: u64 = 8 * MIB;
const EIO: u32 = 5;
const ESHUTDOWN: u32 = 108;

/// A disk that takes payloads from the socket, as often as it is told to.
struct Taking {
    disk: MemoryVolume,
    /// Pieces that it takes before it says no to one, and then yes again.
    takes: AtomicU64,
    /// Pieces that it takes before it fails.
    works: AtomicU64,
    landed: AtomicU64,
    /// Milliseconds that it takes for each piece.
    delay: AtomicU64,
    /// Bytes that came the usual way.
    written: AtomicU64,
    pieces: Mutex<Vec<Extent>>,
}

impl Taking {
    fn new() -> Arc<Taking> {
        let (never, zero) = (|| AtomicU64::new(u64::MAX), || AtomicU64::new(0));
        Arc::new(Taking {
            disk: MemoryVolume::new(ByteLen::new(DISK)),
            takes: never(),
            works: never(),
            landed: zero(),
            delay: zero(),
            written: zero(),
            pieces: Mutex::default(),
        })
    }

    fn landed(&self) -> u64 {
        self.landed.load(Ordering::SeqCst)
    }
}

impl Volume for Taking {
    fn len(&self) -> ByteLen {
        self.disk.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        self.disk.read_at(offset, buffer, class)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        self.written.fetch_add(data.len() as u64, Ordering::SeqCst);
        self.disk.write_at(offset, data, fua, class)
    }
    fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, class: RequestClass) -> Result<()> {
        self.disk.write_zeroes(extent, keep, fua, class)
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.disk.discard(extent, fua, class)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.disk.status(extent)
    }
    fn arrived_len_min(&self) -> Option<ByteLen> {
        Some(ByteLen::new(4096))
    }
    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        if self.works.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Io, "as told"));
        }
        if self.takes.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.takes.store(u64::MAX, Ordering::SeqCst);
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst)));
        let mut bytes = vec![0; extent.len().as_usize()];
        assert_eq!(from.put(Place::over(&mut bytes)).unwrap(), bytes.len(), "all of it has arrived");
        self.landed.fetch_add(extent.len().get(), Ordering::SeqCst);
        self.pieces.lock().unwrap().push(extent);
        self.disk.write_at(extent.start(), &bytes, false, class)?;
        Ok(true)
    }
}

fn served(disk: &Arc<Taking>, limits: Limits) -> Served {
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk.clone())).unwrap();
    Served::with_limits(exports, limits)
}

fn impatient() -> Limits {
    Limits { stall_timeout: Duration::from_millis(800), ..Limits::default() }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(31) ^ (at >> 9) ^ seed) as u8 | 1).collect()
}

/// A client of `disk` whose writes land: with the first the server learns what comes.
fn landing(served: &Served, disk: &Taking) -> Raw {
    let mut raw = Raw::ready(served.tcp_port());
    for round in 0..2 {
        raw.write(round, 0, &[0; 4096]);
        assert_eq!(raw.simple_reply(), (0, round));
    }
    assert!(disk.landed() > 0, "nothing lands");
    raw
}

#[test]
fn writes_of_all_kinds_land_or_do_not_and_are_read_back() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut model = vec![0; DISK as usize];
    let mut raw = landing(&served, &disk);
    let lens = [4096, 8192, 512, 1 << 20, 65536, 4608, 700, 131_072, 4096, 4096 + 3, 1 << 19];
    for (round, len) in lens.into_iter().cycle().take(200).enumerate() {
        let round = round as u64;
        let at = (round * 77_824 + if len % 512 == 0 { 0 } else { 5 }) % (DISK - (1 << 20));
        let data = pattern(round, len);
        // FUA goes the usual way.
        raw.request(u16::from(round.is_multiple_of(7)), 1, round, at, len as u32);
        raw.send(&data);
        model[at as usize..at as usize + len].copy_from_slice(&data);
        // Several under way at once.
        if round % 4 == 3 {
            for cookie in round - 3..=round {
                assert_eq!(raw.simple_reply(), (0, cookie));
            }
            raw.request(0, 0, 999, at, len as u32);
            assert_eq!(raw.simple_reply(), (0, 999));
            assert!(raw.take(len) == data, "round {round}");
        }
    }
    assert!(disk.disk.snapshot() == model);
    assert!(disk.landed() > MIB, "{} bytes have landed", disk.landed());
}

#[test]
fn payloads_between_reads_land_too() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut raw = landing(&served, &disk);
    let before = disk.landed();
    for round in 0..50 {
        raw.request(0, 0, 1000 + round, 0, 512);
        raw.write(round, MIB, &pattern(round, 4096));
        assert_eq!(raw.simple_reply(), (0, 1000 + round));
        raw.take(512);
        assert_eq!(raw.simple_reply(), (0, round));
    }
    assert!(disk.landed() - before > 5 * 4096, "{} bytes have landed", disk.landed() - before);
}

#[test]
fn others_programs_write_by_landing_too() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let source = served.path("source");
    std::fs::write(&source, pattern(3, DISK as usize)).unwrap();
    for uri in served.uris() {
        let before = disk.landed();
        succeed("nbdcopy", &["--", &source, &uri]);
        assert!(disk.disk.snapshot() == std::fs::read(&source).unwrap());
        assert!(disk.landed() > before + MIB, "{uri}: {} bytes have landed", disk.landed() - before);
        disk.disk.discard(Extent::whole(ByteLen::new(DISK)).unwrap(), false, RequestClass::Guest).unwrap();
    }
    succeed(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 65536 1M", "-c", "read -P 7 65536 1M", &served.unix()],
    );
}

#[test]
fn with_extended_headers_they_land_as_well() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut raw = Raw::greeted(served.tcp_port());
    assert_eq!(raw.option(11, b"").0, ACK);
    assert!(raw.go("disk"));
    for round in 0..64u64 {
        let data = pattern(round, 65536);
        raw.extended_request(32, 1, round, round * 65536, 65536, &data);
    }
    for round in 0..64u64 {
        assert_eq!(raw.extended_done(round, round * 65536), 0);
    }
    let found = disk.disk.snapshot();
    for round in 0..64u64 {
        assert!(found[round as usize * 65536..][..65536] == pattern(round, 65536), "write {round}");
    }
    assert!(disk.landed() > MIB, "{} bytes have landed", disk.landed());
}

#[test]
fn a_client_that_dies_in_a_payload_leaves_whole_sectors() {
    let disk = Taking::new();
    let served = served(&disk, impatient());
    for (sent, stalls) in [(100_000, false), (70_001, true), (511, false), (1, true)] {
        let mut raw = landing(&served, &disk);
        raw.request(0, 1, 1, MIB, 1 << 20);
        raw.send(&vec![0xee; sent]);
        if stalls {
            assert!(raw.is_closed(), "a stalled payload runs into its timeout");
        }
        drop(raw);
        served.traffic();
        let found = disk.disk.snapshot();
        let sectors = found[MIB as usize..2 * MIB as usize].chunks(512);
        let whole = sectors.clone().take_while(|sector| sector.iter().all(|byte| *byte == 0xee)).count();
        assert!(whole <= sent / 512, "no more than was sent");
        assert!(sectors.skip(whole).flatten().all(|byte| *byte == 0), "sector {whole} is torn");
        disk.disk.discard(Extent::whole(ByteLen::new(DISK)).unwrap(), false, RequestClass::Guest).unwrap();
    }
    let mut raw = landing(&served, &disk);
    raw.request(0, 0, 9, MIB, 512);
    assert_eq!(raw.simple_reply(), (0, 9));
}

#[test]
fn a_volume_that_refuses_in_the_middle_gets_the_rest_the_usual_way() {
    for taken in 0..3 {
        let disk = Taking::new();
        let served = served(&disk, Limits::default());
        let mut raw = landing(&served, &disk);
        disk.takes.store(taken, Ordering::SeqCst);
        let (before, data) = (disk.written.load(Ordering::SeqCst), pattern(taken, 1 << 20));
        raw.request(0, 1, 1, MIB, 1 << 20);
        for part in data.chunks(200_000) {
            raw.send(part);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(raw.simple_reply(), (0, 1));
        assert!(disk.disk.snapshot()[MIB as usize..][..1 << 20] == data, "after {taken} pieces");
        assert!(disk.written.load(Ordering::SeqCst) > before, "something went the usual way");
        raw.request(0, 0, 2, MIB, 4096);
        assert_eq!(raw.simple_reply(), (0, 2));
        assert!(raw.take(4096) == data[..4096]);
    }
}

#[test]
fn a_volume_that_fails_in_the_middle_is_told_and_the_stream_stays_in_step() {
    for worked in 0..3 {
        let disk = Taking::new();
        let served = served(&disk, Limits::default());
        let mut raw = landing(&served, &disk);
        disk.works.store(worked, Ordering::SeqCst);
        raw.request(0, 1, 1, MIB, 1 << 20);
        for part in pattern(worked, 1 << 20).chunks(200_000) {
            raw.send(part);
            std::thread::sleep(Duration::from_millis(20));
        }
        let answer = raw.simple_reply();
        // How many pieces there are is the network's affair; the first is always one.
        let has_failed = disk.works.load(Ordering::SeqCst) > 3;
        assert!(has_failed || worked > 0);
        assert_eq!(answer, (if has_failed { EIO } else { 0 }, 1), "after {worked} pieces");
        disk.works.store(u64::MAX, Ordering::SeqCst);
        raw.request(0, 1, 2, 0, 4096);
        raw.send(&[7; 4096]);
        assert_eq!(raw.simple_reply(), (0, 2));
        assert!(disk.disk.snapshot()[..4096].iter().all(|byte| *byte == 7));
    }
}

#[test]
fn the_time_that_a_volume_takes_is_counted_where_payloads_land() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut raw = landing(&served, &disk);
    disk.delay.store(30, Ordering::SeqCst);
    let before = disk.landed();
    raw.write(1, 0, &[1; 4096]);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert_eq!(disk.landed() - before, 4096);
    drop(raw);
    let traffic = served.traffic();
    let longest = traffic.seen().map(|(_, traffic)| traffic.latency.longest()).max().unwrap();
    assert!(longest >= Duration::from_millis(30), "{longest:?}");
}

#[test]
fn a_payload_past_the_end_is_skipped_and_nothing_lands() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut raw = landing(&served, &disk);
    let before = disk.pieces.lock().unwrap().len();
    for (at, len) in [(DISK, 4096), (DISK - 4096, 8192), (u64::MAX - 100, 65536)] {
        raw.request(0, 1, 3, at, len);
        raw.send(&vec![0xdd; len as usize]);
        assert_eq!(raw.simple_reply(), (28, 3), "{len} bytes at {at}");
    }
    assert_eq!(disk.pieces.lock().unwrap().len(), before);
    assert!(disk.disk.snapshot().iter().all(|byte| *byte == 0));
}

#[test]
fn an_export_that_is_removed_under_a_payload_says_so() {
    let disk = Taking::new();
    let served = served(&disk, Limits::default());
    let mut raw = landing(&served, &disk);
    raw.request(0, 1, 1, MIB, 1 << 20);
    raw.send(&vec![0xcc; 300_000]);
    let begun = disk.landed();
    wait_until("the payload does not begin to land", || disk.landed() > begun || disk.landed() > 100_000);
    assert!(served.exports.remove("disk"));
    let landed = disk.landed();
    raw.send(&vec![0xcc; (1 << 20) - 300_000]);
    assert_eq!(raw.simple_reply(), (ESHUTDOWN, 1));
    assert_eq!(disk.landed(), landed, "nothing lands in a removed export");
}
