//! Random and mutated frames: never a panic, never more memory than the limits say. The only test of its process,
//! because it counts every allocation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod messages;

use blocks::{DiskIndex, Seq};
use rand_free::Random;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use wire::*;

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every request on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small generator of our own: reproducible from one printed number.
mod rand_free {
    pub struct Random(pub u64);

    impl Random {
        pub fn next(&mut self) -> u64 {
            // splitmix64
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        pub fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }
    }
}

const FRAMES: usize = 200_000;
/// What a frame may cost beyond its own bytes: the largest list of hashes, mostly absent ones that take one bit each.
const MEMORY_MAX: usize = HASHES_MAX * 40 + (64 << 10);

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(frame.len());
        match random.below(6) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.next() as u8,
            2 => frame[at] = 0xff,
            3 => frame.truncate(at.max(HEADER_BYTES)),
            4 => frame.insert(at, random.next() as u8),
            _ => {
                let end = (at + 8).min(frame.len());
                frame[at..end].copy_from_slice(&random.next().to_le_bytes()[..end - at]);
            }
        }
    }
}

/// Makes lengths and checksums right again, so that the mutation gets past them to the decoders.
fn reseal(frame: &mut [u8], kind: u16, payload: usize) {
    let body = frame.len() - HEADER_BYTES;
    let payload = payload.min(body);
    frame[..4].copy_from_slice(b"UNDY");
    frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
    frame[6..8].copy_from_slice(&kind.to_le_bytes());
    frame[8..12].copy_from_slice(&((body - payload) as u32).to_le_bytes());
    frame[12..16].copy_from_slice(&(payload as u32).to_le_bytes());
    let crc = blocks::crc32c(&frame[HEADER_BYTES..]);
    frame[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = blocks::crc32c(&frame[..20]);
    frame[20..24].copy_from_slice(&crc.to_le_bytes());
}

fn decode(frame: &[u8]) -> bool {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let agent = decode_frame::<AgentMessage>(frame);
    let server = decode_frame::<ServerMessage>(frame);
    let taken = PEAK.load(Ordering::Relaxed) - before;
    assert!(taken <= MEMORY_MAX + 8 * frame.len(), "{taken} bytes were taken for {} bytes", frame.len());
    // Whatever is accepted can be said again, and is the same then.
    if let Ok(message) = &agent {
        assert_eq!(decode_frame::<AgentMessage>(&encode_frame(VERSION, message).unwrap()).unwrap(), *message);
    }
    if let Ok(message) = &server {
        assert_eq!(
            decode_frame::<ServerMessage>(&encode_frame(VERSION, message).unwrap()).unwrap(),
            *message
        );
    }
    agent.is_ok() || server.is_ok()
}

#[test]
fn no_bytes_panic_or_take_memory() {
    let seed = match std::env::var("UNDERSTUDY_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    println!("UNDERSTUDY_SEED={seed}, {FRAMES} frames");
    let mut random = Random(seed);
    let mut frames: Vec<(u16, Vec<u8>)> = Vec::new();
    for (_, message) in messages::agent_samples() {
        frames.push((message.kind(), encode_frame(VERSION, &message).unwrap()));
    }
    for (_, message) in messages::server_samples() {
        frames.push((message.kind(), encode_frame(VERSION, &message).unwrap()));
    }
    let data = Payload::Data((0..4096u32).map(|at| (at / 100) as u8).collect());
    let write =
        Write { disk: DiskIndex(1), seq: Seq(7), extent: messages::extent(4096, 4096), payload: data };
    let packed = encode_packed_frame(&AgentMessage::Write(write)).unwrap();
    frames.push((u16::from_le_bytes([packed[6], packed[7]]), packed));
    let mut accepted = 0;
    for round in 0..FRAMES {
        let (kind, frame) = &frames[random.below(frames.len())];
        let mut frame = frame.clone();
        match round % 4 {
            // Any bytes at all; a frame's header in front of any bytes; any kind; a message slightly changed.
            0 => frame = (0..random.below(200)).map(|_| random.next() as u8).collect(),
            1 => {
                frame = (0..HEADER_BYTES + random.below(200)).map(|_| random.next() as u8).collect();
                reseal(&mut frame, *kind, 0);
            }
            2 => mutate(&mut frame, &mut random),
            _ => {
                let payload = u32::from_le_bytes(frame[12..16].try_into().unwrap()) as usize;
                mutate(&mut frame, &mut random);
                reseal(&mut frame, *kind, payload);
            }
        }
        accepted += usize::from(decode(&frame));
    }
    println!("{accepted} were messages");
    assert!(accepted > FRAMES / 100, "mutations that mean something are among them");
    assert!(accepted < FRAMES / 2, "most are refused");
}
