//! Writes that carry their numbers, so that a disk shows which was its last.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

pub const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// A writer past the page cache: write `n` puts `n` into each sector of a block that `n` and the seed choose, on one device after
/// the other. Each 16th is flushed on a device before the next device gets it.
pub struct Writer {
    /// The last write that was completed on all devices.
    pub written: Arc<AtomicU64>,
    /// The last one that was flushed on all.
    pub flushed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The slot of a write.
pub fn slot_of(seed: u64, number: u64, slots: u64) -> u64 {
    StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).random_range(0..slots)
}

/// Opens a device past the page cache.
pub fn open_direct(device: &str) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(0o40000).open(device).expect("a device")
}

impl Writer {
    /// Starts it on the first `slots` blocks of the devices.
    pub fn start(devices: &[&str], seed: u64, slots: u64) -> Writer {
        let files: Vec<File> = devices.iter().map(|device| open_direct(device)).collect();
        let written = Arc::new(AtomicU64::new(0));
        let (flushed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (write, flush, ending) = (written.clone(), flushed.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = blocks::AlignedBuffer::new(BLOCK);
            for number in 1.. {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                buffer
                    .chunks_mut(SECTOR)
                    .for_each(|sector| sector[..8].copy_from_slice(&u64::to_le_bytes(number)));
                let at = slot_of(seed, number, slots) * BLOCK as u64;
                for file in &files {
                    file.write_all_at(&buffer, at).expect("it is written");
                    if number % 16 == 0 {
                        file.sync_data().expect("it is flushed");
                    }
                }
                write.store(number, Ordering::SeqCst);
                if number % 16 == 0 {
                    flush.store(number, Ordering::SeqCst);
                }
            }
            files.iter().for_each(|file| file.sync_data().expect("it is flushed"));
        });
        Writer { written, flushed, stop, thread: Some(thread) }
    }

    /// Lets it flush and end; its last write.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it runs").join().expect("it found no error");
        self.written.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Which write a disk was at: every block must hold what it held right after that one, and nothing newer. A write that was
/// under way at the instant may be there in some sectors.
pub fn write_of(disk: &[u8], seed: u64, slots: u64) -> u64 {
    let sectors = |slot: u64| {
        let from = slot as usize * BLOCK;
        let at = move |sector: usize| &disk[from + sector * SECTOR..][..8];
        (0..BLOCK / SECTOR).map(move |sector| u64::from_le_bytes(at(sector).try_into().expect("eight bytes")))
    };
    let whole = |slot: u64| (sectors(slot).min().expect("some"), sectors(slot).max().expect("some"));
    let newest = (0..slots).map(|slot| whole(slot).1).max().expect("some");
    let torn = (0..slots).any(|slot| whole(slot).1 == newest && whole(slot).0 != newest);
    let at = if torn { newest - 1 } else { newest };
    let mut expected = vec![0; slots as usize];
    (1..=at).for_each(|number| expected[slot_of(seed, number, slots) as usize] = number);
    for slot in 0..slots {
        let (least, most) = whole(slot);
        let under_way = torn && most == newest;
        assert!(
            least == expected[slot as usize] && (most == least || under_way),
            "slot {slot} at write {at}"
        );
    }
    at
}
