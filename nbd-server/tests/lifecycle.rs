//! Exports and servers that come and go while clients are connected.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{
    ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, MemoryVolume, RequestClass, Result, Volume,
};
use common::hooked::Hooked;
use common::raw::Raw;
use common::{MIB, Served, run, succeed, wait_until};
use nbd_server::{Export, Exports, Limits, Operation, Pass};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

fn slow(delay: Duration) -> (Served, Arc<Hooked>) {
    let disk = Arc::new(Hooked::new(MIB).with_slow_writes(delay));
    (Served::volume(disk.clone()), disk)
}

/// Writes wait until it is opened.
#[derive(Default)]
struct Gate {
    /// Whether a write has come to it, and whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        let (_open, waited) =
            self.changed.wait_timeout_while(state, Duration::from_secs(60), |state| !state.1).unwrap();
        assert!(!waited.timed_out(), "nobody opens");
    }

    fn wait_begun(&self) {
        let state = self.state.lock().unwrap();
        let (_begun, waited) =
            self.changed.wait_timeout_while(state, Duration::from_secs(60), |state| !state.0).unwrap();
        assert!(!waited.timed_out(), "no write comes");
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

fn gated() -> (Arc<Gate>, Arc<Hooked>) {
    let gate = Arc::new(Gate::default());
    let passed = gate.clone();
    let disk = Hooked::new(MIB).before_write(move |_| {
        passed.pass();
        Ok(())
    });
    (gate, Arc::new(disk))
}

#[test]
fn a_removed_export_finishes_what_is_in_flight_and_refuses_the_rest() {
    let (gate, disk) = gated();
    let served = Served::volume(disk.clone());
    let mut raw = Raw::ready(served.tcp_port());
    raw.write(1, 0, &[0xab; 4096]);
    gate.wait_begun();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| served.exports.remove("disk"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!removal.is_finished(), "removing waits for the write");
        gate.open();
        assert!(removal.join().unwrap());
    });
    assert_eq!(disk.disk.snapshot()[..4096], [0xab; 4096]);
    assert_eq!(Arc::strong_count(&disk), 1, "the volume has been let go");
    raw.request(0, 0, 2, 0, 512);
    // In whichever order.
    let mut replies = [raw.simple_reply(), raw.simple_reply()];
    replies.sort_unstable();
    assert_eq!(replies, [(0, 1), (108, 2)]);
    assert!(raw.is_closed());
    assert!(!served.exports.remove("disk"));
    assert!(!Raw::greeted(served.tcp_port()).go("disk"));
}

#[test]
fn a_client_that_goes_on_asking_a_removed_export_is_cut_off() {
    let (served, _disk) = Served::memory(MIB);
    let mut raw = Raw::ready(served.tcp_port());
    served.exports.remove("disk");
    let begun = Instant::now();
    use std::io::Write;
    let head = [&0x2560_9513u32.to_be_bytes()[..], &[0; 24]].concat();
    while raw.0.write_all(&head).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn exports_come_while_it_is_served_and_names_are_unique() {
    let (served, disk) = Served::memory(MIB);
    let error = served.exports.insert("disk", Export::new(disk.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(
        served.exports.insert("x".repeat(4097), Export::new(disk.clone())).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(!Raw::greeted(served.tcp_port()).go("later"));
    served.exports.insert("later", Export::new(disk.clone())).unwrap();
    served.exports.insert("", Export::new(disk)).unwrap();
    assert!(Raw::greeted(served.tcp_port()).go("later"));
    assert!(Raw::greeted(served.tcp_port()).go(""), "the default export");
    let names: Vec<String> = served.exports.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["", "disk", "later"]);
}

#[test]
fn the_hook_hears_of_clients() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let exports = Exports::new();
    let hook = {
        let heard = heard.clone();
        Arc::new(move |clients| heard.lock().unwrap().push(clients))
    };
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(MIB)));
    exports.insert("disk", Export::new(disk).with_client_hook(hook)).unwrap();
    let served = Served::with_limits(exports, Limits::default());
    let (first, second) = (Raw::ready(served.tcp_port()), Raw::ready(served.tcp_port()));
    wait_until("both to be heard of", || heard.lock().unwrap().len() == 2);
    drop((first, second));
    wait_until("both to have gone", || heard.lock().unwrap().len() == 4);
    assert_eq!(*heard.lock().unwrap(), [1, 2, 1, 0]);
}

#[test]
fn shutdown_answers_what_is_in_flight() {
    let (served, disk) = slow(Duration::from_millis(300));
    let mut raw = Raw::ready(served.tcp_port());
    let idle = Raw::greeted(served.tcp_port());
    for cookie in 0..4 {
        raw.request(0, 1, cookie, cookie * 4096, 4096);
        raw.send(&[0xcd; 4096]);
    }
    std::thread::sleep(Duration::from_millis(100));
    served.server.shutdown().unwrap();
    let mut answered: Vec<u64> = (0..4)
        .map(|_| raw.simple_reply())
        .map(|(error, cookie)| {
            assert_eq!(error, 0);
            cookie
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2, 3]);
    assert!(raw.is_closed());
    assert_eq!(disk.disk.snapshot()[..16384], [0xcd; 16384]);
    drop(idle);
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", served.tcp_port())).is_err(),
        "nobody listens any more"
    );
    assert!(!served.dir.path().join("nbd socket").exists());
    served.server.shutdown().unwrap();
}

#[test]
fn shutdown_cuts_what_does_not_end_and_says_so() {
    let disk = Arc::new(Hooked::new(MIB).with_slow_writes(Duration::from_secs(3)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk)).unwrap();
    let limits = Limits { drain_timeout: Duration::from_millis(200), ..Limits::default() };
    let served = Served::with_limits(exports, limits);
    let mut raw = Raw::ready(served.tcp_port());
    raw.request(0, 1, 1, 0, 512);
    raw.send(&[1; 512]);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(served.server.shutdown().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_slow_request_does_not_hold_up_the_next_one_on_the_same_connection() {
    let (gate, disk) = gated();
    let served = Served::volume(disk);
    let mut raw = Raw::ready(served.tcp_port());
    raw.write(1, 0, &[1; 512]);
    raw.request(0, 0, 2, 4096, 512);
    assert_eq!(raw.simple_reply(), (0, 2), "the read overtakes the write");
    raw.take(512);
    gate.open();
    assert_eq!(raw.simple_reply(), (0, 1));
}

#[test]
fn a_goodbye_waits_for_what_is_in_flight() {
    let (served, disk) = slow(Duration::from_millis(200));
    let mut raw = Raw::ready(served.tcp_port());
    raw.request(0, 1, 1, 0, 512);
    raw.send(&[9; 512]);
    raw.request(0, 2, 0, 0, 0);
    assert_eq!(raw.simple_reply(), (0, 1));
    assert!(raw.is_closed());
    assert_eq!(disk.disk.snapshot()[..512], [9; 512]);
}

#[test]
fn a_panicking_volume_costs_its_client_only() {
    let (served, _disk) = slow(Duration::ZERO);
    let mut other = Raw::ready(served.tcp_port());
    let mut raw = Raw::ready(served.tcp_port());
    raw.request(0, 4, 1, 0, 512);
    assert!(raw.is_closed());
    other.request(0, 0, 3, 0, 512);
    assert_eq!(other.simple_reply(), (0, 3));
}

#[test]
fn neighbours_within_a_sector_on_many_connections_lose_nothing() {
    let (served, disk) = Served::memory(MIB);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (served, done) = (&served, &done);
            scope.spawn(move || {
                let mut raw = Raw::ready(served.tcp_port());
                for round in 0..200u64 {
                    for at in (thread * 32..512 * 4).step_by(256) {
                        raw.request(0, 1, round, at, 32);
                        raw.send(&[(round as u8) ^ (thread as u8); 32]);
                        assert_eq!(raw.simple_reply(), (0, round));
                    }
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), 8);
    for (number, piece) in disk.snapshot()[..2048].chunks(32).enumerate() {
        assert_eq!(piece, [199 ^ (number % 8) as u8; 32], "piece {number}");
    }
}

#[test]
fn a_client_is_seen_with_what_it_has_in_flight_and_how_long_things_took() {
    let delay = Duration::from_millis(200);
    let (served, _disk) = slow(delay);
    let mut raw = Raw::ready(served.tcp_port());
    let look = || served.exports.traffic().remove(0);
    raw.request(0, 1, 1, 0, 512);
    raw.send(&[1; 512]);
    let started = Instant::now();
    while look().traffic.in_flight == 0 && look().traffic.requests() == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "the request is not seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(raw.simple_reply(), (0, 1));
    drop(raw);
    let traffic = served.traffic();
    let writes = traffic.of(Operation::Write);
    assert_eq!((traffic.in_flight, writes.requests(), writes.bytes), (0, 1, 512));
    assert!(writes.latency.longest() >= delay, "{:?}", writes.latency.longest());
    assert!(writes.latency.permille(500).unwrap() >= delay);
    assert_eq!(writes.latency.sum(), writes.latency.longest());

    let other = Raw::ready(served.tcp_port());
    let started = Instant::now();
    while look().clients.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "the client is not seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    let clients = look().clients;
    assert!(clients[0].address.starts_with("127.0.0.1:") && !clients[0].encrypted);
    assert_eq!((clients[0].traffic.requests(), look().traffic.requests()), (0, 1), "its own, and all");
    drop(other);
}

/// A disk that knows how many bytes were being written at once.
struct Counting {
    slow: Hooked,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Volume for Counting {
    fn len(&self) -> ByteLen {
        self.slow.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        self.slow.read_at(offset, buffer, class)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        let now = self.now.fetch_add(data.len(), Ordering::SeqCst) + data.len();
        self.most.fetch_max(now, Ordering::SeqCst);
        let written = self.slow.write_at(offset, data, fua, class);
        self.now.fetch_sub(data.len(), Ordering::SeqCst);
        written
    }
    fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, class: RequestClass) -> Result<()> {
        self.slow.write_zeroes(extent, keep, fua, class)
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.slow.discard(extent, fua, class)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.slow.status(extent)
    }
}

#[test]
fn small_requests_hold_no_more_than_their_budget_and_all_are_done() {
    const EACH: usize = 64 << 10;
    let slow = Hooked::new(MIB).with_slow_writes(Duration::from_millis(15));
    let disk = Arc::new(Counting { slow, now: AtomicUsize::new(0), most: AtomicUsize::new(0) });
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk.clone())).unwrap();
    let limits = Limits { small_request_bytes_max: ByteLen::new(256 << 10), ..Limits::default() };
    let served = Served::with_limits(exports, limits);
    let mut clients: Vec<Raw> = (0..4).map(|_| Raw::ready(served.tcp_port())).collect();
    std::thread::scope(|scope| {
        for raw in &mut clients {
            scope.spawn(|| {
                for cookie in 0..24 {
                    raw.request(0, 1, cookie, 0, EACH as u32);
                    raw.send(&[1; EACH]);
                }
                let mut done: Vec<u64> = (0..24).map(|_| raw.simple_reply().1).collect();
                done.sort_unstable();
                assert_eq!(done, (0..24).collect::<Vec<u64>>());
            });
        }
    });
    let most = disk.most.load(Ordering::SeqCst);
    // What all share, and each connection's own place.
    assert!(most <= (256 << 10) + 4 * EACH, "{most} bytes at once");
    assert!(most > 4 * EACH, "{most} bytes at once: they were done side by side");
}

#[test]
fn sixteen_connections_under_load_all_get_on() {
    const EACH: usize = 100;
    let (served, _disk) = Served::memory(8 * MIB);
    let done: Vec<AtomicUsize> = (0..16).map(|_| AtomicUsize::new(0)).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let all_got_on = || done.iter().all(|count| count.load(Ordering::SeqCst) >= EACH);
    std::thread::scope(|scope| {
        for (client, count) in done.iter().enumerate() {
            let mut raw = Raw::ready(served.tcp_port());
            // Four of them ask for much at a time. All keep four requests under way until the last has got on.
            let len: u32 = if client % 4 == 0 { 256 << 10 } else { 4096 };
            scope.spawn(move || {
                (0..4).for_each(|cookie| raw.request(0, 0, cookie, 0, len));
                while !all_got_on() && Instant::now() < deadline {
                    let (error, cookie) = raw.simple_reply();
                    assert_eq!(error, 0);
                    raw.take(len as usize);
                    count.fetch_add(1, Ordering::SeqCst);
                    raw.request(0, 0, cookie, 0, len);
                }
            });
        }
    });
    assert!(all_got_on(), "{done:?} requests of each connection within a minute");
}

#[test]
fn a_gate_turns_clients_away_with_its_words_and_hears_when_they_leave() {
    let (served, disk) = Served::memory(MIB);
    let inside = Arc::new(AtomicUsize::new(0));
    struct Inside(Arc<AtomicUsize>);
    impl Drop for Inside {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let counted = inside.clone();
    let gate = move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Box::new(Inside(counted.clone())) as Pass),
        _ => {
            counted.fetch_sub(1, Ordering::SeqCst);
            Err(Error::new(ErrorKind::Busy, "it is open as /mnt/disk0.raw"))
        }
    };
    served.exports.insert("gated", Export::new(disk).with_gate(Arc::new(gate))).unwrap();
    let mut first = Raw::greeted(served.tcp_port());
    assert!(first.go("gated"));
    let uri = served.tcp().replace("/disk", "/gated");
    let said = run("qemu-img", &["info", "-f", "raw", &uri]);
    assert!(
        !said.status.success() && said.stderr.contains("it is open as /mnt/disk0.raw"),
        "{}",
        said.stderr
    );
    assert!(Raw::greeted(served.tcp_port()).go("disk"), "other exports are not concerned");
    drop(first);
    wait_until("the first client has left", || inside.load(Ordering::SeqCst) == 0);
    succeed("nbdinfo", &["--size", &uri]);
    wait_until("the second client has left", || inside.load(Ordering::SeqCst) == 0);
}
