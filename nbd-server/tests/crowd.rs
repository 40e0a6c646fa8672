//! More connections with something to do than there are cores: they take turns on a few threads, and none of them is left out,
//! whatever the others do.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, ByteOffset, Error, ErrorKind, MemoryVolume, Result, Volume};
use common::hooked::Hooked;
use common::raw::Raw;
use common::{MIB, Served, wait_until};
use nbd_server::{Export, Exports, Limits};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Clients enough to be a crowd anywhere.
fn crowd() -> usize {
    4 * std::thread::available_parallelism().unwrap().get() + 8
}

/// Whether the calling thread is one of those that a crowd shares.
fn is_of_the_crowd() -> bool {
    std::thread::current().name() == Some("nbd-crowd")
}

fn served(disk: Arc<dyn Volume>) -> Served {
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk)).unwrap();
    Served::with_limits(exports, Limits { drain_timeout: Duration::from_secs(20), ..Limits::default() })
}

/// One client's part of the disk, and what it must hold.
struct Region {
    raw: Raw,
    start: u64,
    bytes: Vec<u8>,
    random: StdRng,
}

/// What a reply must be: nothing for a write, these bytes for a read.
type Expected = HashMap<u64, Option<Vec<u8>>>;

impl Region {
    const BYTES: u64 = 256 << 10;

    /// Sends a burst of requests, some of them cut in the middle for a moment, and takes the replies as they come.
    fn burst(&mut self) {
        let mut expected = Expected::new();
        let mut out = Vec::new();
        let count = self.random.random_range(1..48);
        // What is on its way at once must not overlap.
        let slot = Region::BYTES / 64 / 512 * 512;
        let mut slots: Vec<u64> = (0..64).collect();
        for cookie in 0..count {
            let at = slots.swap_remove(self.random.random_range(0..slots.len())) * slot;
            let len = self.random.random_range(1..=slot / 512) * 512;
            let range = at as usize..(at + len) as usize;
            let write = self.random.random_bool(0.5);
            for field in [
                &0x2560_9513u32.to_be_bytes()[..],
                &[0, 0, 0, u8::from(write)],
                &u64::to_be_bytes(cookie),
                &(self.start + at).to_be_bytes(),
                &(len as u32).to_be_bytes(),
            ] {
                out.extend_from_slice(field);
            }
            if write {
                self.random.fill(&mut self.bytes[range.clone()]);
                out.extend_from_slice(&self.bytes[range]);
                expected.insert(cookie, None);
            } else {
                expected.insert(cookie, Some(self.bytes[range].to_vec()));
            }
        }
        let cut = self.random.random_range(0..out.len());
        self.raw.send(&out[..cut]);
        if self.random.random_bool(0.2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.raw.send(&out[cut..]);
        while !expected.is_empty() {
            let (error, cookie) = self.raw.simple_reply();
            assert_eq!(error, 0);
            if let Some(bytes) = expected.remove(&cookie).expect("one reply a request") {
                assert!(self.raw.take(bytes.len()) == bytes, "a read of the part at {}", self.start);
            }
        }
    }
}

#[test]
fn a_crowd_reads_what_it_wrote_and_a_shutdown_answers_what_has_arrived() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let clients = crowd() as u64;
    let (own, crowds) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = [own.clone(), crowds.clone()];
    let disk = Arc::new(Hooked::new(clients * Region::BYTES).before_read(move |_| {
        counts[usize::from(is_of_the_crowd())].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    let served = served(disk.clone());
    let regions: Vec<Region> = (0..clients)
        .map(|number| Region {
            raw: Raw::ready(served.tcp_port()),
            start: number * Region::BYTES,
            bytes: vec![0; Region::BYTES as usize],
            random: StdRng::seed_from_u64(seed ^ number),
        })
        .collect();
    let mut regions: Vec<Region> = std::thread::scope(|scope| {
        let play = |mut region: Region| {
            (0..60).for_each(|_| region.burst());
            region
        };
        let playing: Vec<_> = regions.into_iter().map(|region| scope.spawn(move || play(region))).collect();
        playing.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (own, crowds) = (own.load(Ordering::SeqCst), crowds.load(Ordering::SeqCst));
    assert!(
        own > 0 && crowds > 0,
        "both ways were gone: {own} reads by threads of their own, {crowds} by the crowd's"
    );
    let held: Vec<u8> = regions.iter().flat_map(|region| region.bytes.clone()).collect();
    assert!(disk.disk.snapshot() == held, "the disk holds what was written");
    // Some of them are parked still when their last request arrives.
    for region in &mut regions {
        region.raw.request(0, 0, 77, region.start, 4096);
    }
    served.server.shutdown().unwrap();
    for region in &mut regions {
        assert_eq!(region.raw.simple_reply(), (0, 77));
        region.raw.take(4096);
        assert!(region.raw.is_closed());
    }
}

#[test]
fn whoever_asks_for_much_at_once_gets_a_turn_of_it_at_a_time() {
    const DEPTH: usize = 2000;
    const READS: usize = 10 * DEPTH;
    let reads: Arc<Mutex<HashMap<ThreadId, Vec<ByteOffset>>>> = Arc::default();
    let noted = reads.clone();
    let served = served(Arc::new(Hooked::new(MIB).before_read(move |offset| {
        if is_of_the_crowd() {
            noted.lock().unwrap().entry(std::thread::current().id()).or_default().push(offset);
        }
        Ok(())
    })));
    std::thread::scope(|scope| {
        for client in 0..crowd() as u64 {
            let mut sending = Raw::ready(served.tcp_port()).0;
            let mut receiving = sending.try_clone().unwrap();
            scope.spawn(move || {
                let request = [
                    &0x2560_9513u32.to_be_bytes()[..],
                    &[0; 12],
                    &(client * 512).to_be_bytes(),
                    &512u32.to_be_bytes(),
                ]
                .concat();
                sending.write_all(&request.repeat(DEPTH)).unwrap();
                let mut reply = vec![0; 16 + 512];
                for read in 0..READS {
                    receiving.read_exact(&mut reply).unwrap();
                    if read + DEPTH < READS {
                        sending.write_all(&request).unwrap();
                    }
                }
            });
        }
    });
    let reads = reads.lock().unwrap();
    let total: usize = reads.values().map(Vec::len).sum();
    assert!(total > READS, "a crowd's threads have done {total} reads");
    // Whoever is alone in line, because all others are still sending, has several turns in a row. Without an end to turns nearly
    // all would be long.
    let turns =
        reads.values().flat_map(|reads| reads.chunk_by(|one, next| one == next)).map(<[ByteOffset]>::len);
    let short: usize = turns.filter(|turn| *turn <= 32).sum();
    assert!(short > total / 10, "{short} of {total} reads were done in turns of 32 at most");
}

#[test]
fn clients_that_stop_in_the_middle_hold_up_nobody_in_a_crowd() {
    let served = served(Arc::new(MemoryVolume::new(ByteLen::new(MIB))));
    let read = |raw: &mut Raw, count: u64| {
        for cookie in 0..count {
            raw.request(0, 0, cookie, 0, 16 << 10);
            assert_eq!(raw.simple_reply(), (0, cookie));
            raw.take(16 << 10);
        }
    };
    let clients: Vec<Raw> = std::thread::scope(|scope| {
        let modest: Vec<_> = (0..crowd())
            .map(|_| {
                let mut raw = Raw::ready(served.tcp_port());
                scope.spawn(move || {
                    let begun = Instant::now();
                    read(&mut raw, 6000);
                    begun.elapsed()
                })
            })
            .collect();
        // They belong to the crowd before they stop: with half a header, with half a payload, with much asked for and never
        // taken, and the same with a farewell. More of them of each kind than the crowd has threads.
        let hostile: Vec<_> = (0..4 * crowd())
            .map(|number| {
                let mut raw = Raw::ready(served.tcp_port());
                scope.spawn(move || {
                    read(&mut raw, 100);
                    match number % 4 {
                        0 => raw.send(&[0x25, 0x60, 0x95]),
                        1 => {
                            raw.request(0, 1, 9, 0, 8192);
                            raw.send(&[7; 5000]);
                        }
                        2 => (0..64).for_each(|cookie| raw.request(0, 0, cookie, 0, 256 << 10)),
                        _ => {
                            (0..600).for_each(|cookie| raw.request(0, 0, cookie, 0, 16 << 10));
                            raw.request(0, 2, 9, 0, 0);
                        }
                    }
                    raw
                })
            })
            .collect();
        let clients = hostile.into_iter().map(|client| client.join().unwrap()).collect();
        for client in modest {
            // A client may stand still for 60 s before it is cut off, and without the crowd's threads everybody waits for a
            // tenth of a second before a thread of their own sees to them. Usually they take two.
            let took = client.join().unwrap();
            assert!(took < Duration::from_secs(55), "one that reads was held up for {took:?}");
        }
        clients
    });
    drop(clients);
    served.server.shutdown().unwrap();
}

/// Reads behind the first sector wait until so many are under way at once.
fn meeting(wanted: usize) -> impl Fn(ByteOffset) -> Result<()> + Send + Sync {
    let (state, arrived) = (Mutex::new(0), Condvar::new());
    move |offset| {
        if offset.get() == 0 {
            return Ok(());
        }
        let mut under_way = state.lock().unwrap();
        *under_way += 1;
        arrived.notify_all();
        let (under_way, waited) = arrived
            .wait_timeout_while(under_way, Duration::from_secs(20), |under_way| *under_way < wanted)
            .unwrap();
        let context = format!("{} of {wanted} reads were under way at once", *under_way);
        if waited.timed_out() { Err(Error::new(ErrorKind::Cancelled, context)) } else { Ok(()) }
    }
}

#[test]
fn a_slow_disk_has_a_request_of_everybody_at_once() {
    let wanted = 2 * crowd();
    let served = served(Arc::new(Hooked::new(MIB).before_read(meeting(wanted))));
    std::thread::scope(|scope| {
        for _ in 0..wanted {
            let mut raw = Raw::ready(served.tcp_port());
            scope.spawn(move || {
                let mut read = |cookie, offset| {
                    raw.request(0, 0, cookie, offset, 512);
                    assert_eq!(raw.simple_reply(), (0, cookie));
                    raw.take(512);
                };
                (0..300).for_each(|cookie| read(cookie, 0));
                read(300, 512);
            });
        }
    });
}

#[test]
fn panics_in_turns_cost_their_clients_only() {
    let served = served(Arc::new(Hooked::new(MIB)));
    std::thread::scope(|scope| {
        // More of them than the crowd has threads.
        for number in 0..4 * crowd() {
            let mut raw = Raw::ready(served.tcp_port());
            scope.spawn(move || {
                for cookie in 0..400 {
                    raw.request(0, 0, cookie, 0, 512);
                    assert_eq!(raw.simple_reply(), (0, cookie));
                    raw.take(512);
                }
                if number % 2 == 0 {
                    raw.request(0, 4, 1, 0, 512);
                    assert!(raw.is_closed());
                } else {
                    (0..400).for_each(|cookie| {
                        raw.request(0, 0, cookie, 0, 512);
                        assert_eq!(raw.simple_reply(), (0, cookie));
                        raw.take(512);
                    });
                }
            });
        }
    });
}

#[test]
fn a_removed_export_is_let_go_of_by_a_crowd_that_waits() {
    let (served, _disk) = Served::memory(MIB);
    let mut clients: Vec<Raw> = (0..crowd()).map(|_| Raw::ready(served.tcp_port())).collect();
    std::thread::scope(|scope| {
        for raw in &mut clients {
            scope.spawn(move || {
                for cookie in 0..500 {
                    raw.request(0, 0, cookie, 0, 4096);
                    assert_eq!(raw.simple_reply(), (0, cookie));
                    raw.take(4096);
                }
            });
        }
    });
    assert!(served.exports.remove("disk"));
    assert!(clients.iter_mut().all(Raw::is_closed));
    wait_until("all of them to be gone", || served.server.connections() == 0);
}
