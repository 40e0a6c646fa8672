//! What every format that is written in place must pass, over a storage that fails like hardware.

use super::{CheckReport, ImageFormat, check_image, create_image, open_image};
use crate::testing::{CrashStorage, History, Random};
use blocks::{ByteLen, ByteOffset, ErrorKind, Extent, OpenMode, RequestClass, Storage, StorageFile, Volume};
use std::sync::Arc;

pub(super) const CLASS: RequestClass = RequestClass::Guest;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const NAME: &str = "image.file";

pub(super) fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

pub(super) fn create(storage: &CrashStorage, format: ImageFormat, len: u64) -> Arc<dyn Volume> {
    let image = create_image(storage, NAME, format, ByteLen::new(len)).unwrap();
    storage.sync_dir("").unwrap();
    image
}

pub(super) fn reopen(storage: &CrashStorage, format: ImageFormat) -> blocks::Result<Arc<dyn Volume>> {
    open_image(storage.open(NAME, OpenMode::ReadWrite)?, Some(format), true)
}

pub(super) fn file(storage: &CrashStorage) -> Arc<dyn StorageFile> {
    storage.open(NAME, OpenMode::ReadWrite).unwrap()
}

pub(super) fn check(storage: &CrashStorage, format: ImageFormat, repair: bool) -> CheckReport {
    check_image(&file(storage), Some(format), repair).unwrap()
}

/// Windows at the start, over a boundary of blocks of `block` bytes, over one of what a table covers, and at the end.
pub(super) fn windows(len: u64, block: u64, table: u64) -> Vec<Extent> {
    let mut windows = vec![extent(0, len.min(64 << 10))];
    for boundary in [block, table] {
        if len > boundary + 4 * MIB {
            windows.push(extent(boundary - (64 << 10), 128 << 10));
            windows.push(extent(boundary, 2 * MIB + 512));
        }
    }
    let tail = len.min(256 << 10);
    windows.push(extent(len - tail, tail));
    windows
}

/// What a format's blocks and tables are, for choosing places.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) format: ImageFormat,
    /// Bytes of a block.
    pub(super) block: u64,
    /// Bytes of disk that one table covers.
    pub(super) table: u64,
}

impl Shape {
    fn windows(self, len: u64) -> Vec<Extent> {
        windows(len, self.block, self.table)
    }

    /// Random histories at each length, closed and opened in between; in the end nothing is leaked.
    pub(super) fn survives_reopening(self, lens: &[u64]) {
        for (seed, len) in lens.iter().copied().enumerate() {
            let storage = CrashStorage::new();
            let mut image = create(&storage, self.format, len);
            let mut history = History::new(seed as u64, self.windows(len));
            for round in 0..4 {
                assert_eq!(image.len(), ByteLen::new(len));
                for _ in 0..40 {
                    history.step(&*image).unwrap();
                }
                let context = format!("seed {seed}, {len} bytes, round {round}");
                history.check(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
                drop(image);
                let report = check(&storage, self.format, false);
                assert!(report.is_clean(), "{context}: {:?}", report.faults());
                image = reopen(&storage, self.format).unwrap();
            }
        }
    }

    /// Power cuts at random moments of random histories.
    pub(super) fn survives_crashes(self, lens: &[u64], seeds: u64) {
        for seed in 0..seeds {
            let mut random = Random::new(seed);
            let len = lens[random.below(lens.len() as u64) as usize];
            let mut storage = CrashStorage::new();
            let mut image = create(&storage, self.format, len);
            let mut history = History::new(seed, self.windows(len));
            for round in 0..4 {
                storage.power_off_after(random.below(60));
                while history.step(&*image).is_ok() {}
                drop(image);
                storage = storage.crash(random.number());
                let context = format!("seed {seed}, round {round}");
                image = self.open_crashed(&storage, &mut history, &context);
                history.adopt(&*image).unwrap();
                // What was read after a crash must not change by itself later: it counts as flushed.
                image.flush().unwrap();
            }
        }
    }

    /// A power cut at every single change of one history, closing included, with several outcomes each.
    pub(super) fn survives_a_crash_at_every_change(self, len: u64) {
        for stop in 0.. {
            let storage = CrashStorage::new();
            let image = create(&storage, self.format, len);
            let mut history = History::new(7, self.windows(len));
            storage.power_off_after(stop);
            let died = (0..60).any(|_| history.step(&*image).is_err());
            drop(image);
            for seed in 0..4 {
                let after = storage.crash(stop * 10 + seed);
                self.open_crashed(&after, &mut history, &format!("stop {stop}, seed {seed}"));
            }
            if !died {
                assert!(stop > 60, "the history has that many changes");
                return;
            }
        }
    }

    fn open_crashed(self, storage: &CrashStorage, history: &mut History, context: &str) -> Arc<dyn Volume> {
        let image = reopen(storage, self.format);
        let image = image.unwrap_or_else(|error| panic!("{context}: does not open: {error}"));
        history.check_crashed(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
        let report = check(storage, self.format, false);
        assert_eq!(report.damaged(), 0, "{context}: {:?}", report.faults());
        image
    }

    /// After a failed write nothing is taken before it is opened again.
    pub(super) fn is_poisoned_by_a_failed_write(self) {
        let storage = CrashStorage::new();
        let image = create(&storage, self.format, 8 * MIB);
        storage.fail_write(1);
        let write = |image: &dyn Volume, fua| image.write_at(ByteOffset::ZERO, &[1; 512], fua, CLASS);
        assert_eq!(write(&*image, false).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(write(&*image, false).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
        drop(image);
        write(&*reopen(&storage, self.format).unwrap(), true).unwrap();
        assert_eq!(check(&storage, self.format, false).damaged(), 0);
    }

    /// After a failed sync and a new opening, what is flushed then is on the medium with all that leads to it.
    pub(super) fn forgets_nothing_after_a_failed_sync(self) {
        for nth in 1..6 {
            let mut storage = CrashStorage::new();
            let image = create(&storage, self.format, 64 * MIB);
            image.write_at(ByteOffset::new(9 * MIB), &[1; 4096], true, CLASS).unwrap();
            storage.fail_sync(nth);
            for at in 0..12 {
                let at = ByteOffset::new(at * 3 * MIB);
                if image.write_at(at, &[2; 4096], true, CLASS).is_err() {
                    break;
                }
            }
            drop(image);
            let image = reopen(&storage, self.format).unwrap();
            for at in 0..20 {
                image.write_at(ByteOffset::new(at * 3 * MIB), &[3; 4096], false, CLASS).unwrap();
            }
            image.flush().unwrap();
            drop(image);
            for seed in 0..6 {
                storage = storage.crash(seed);
                let image = reopen(&storage, self.format).unwrap();
                for at in 0..20 {
                    let mut bytes = [0; 4096];
                    image.read_at(ByteOffset::new(at * 3 * MIB), &mut bytes, CLASS).unwrap();
                    assert!(bytes == [3; 4096], "sync {nth}, seed {seed}, write {at}");
                }
                let report = check(&storage, self.format, false);
                assert_eq!(report.damaged(), 0, "sync {nth}, seed {seed}: {:?}", report.faults());
            }
        }
    }

    /// A full medium is an error, and nothing that was flushed is lost.
    pub(super) fn loses_nothing_on_a_full_storage(self) {
        let storage = CrashStorage::new();
        let image = create(&storage, self.format, 64 * MIB);
        image.write_at(ByteOffset::ZERO, &[1; 4096], true, CLASS).unwrap();
        storage.set_capacity(Some(ByteLen::new(MIB)));
        let full = (0..32).find_map(|at| {
            image.write_at(ByteOffset::new(at * 2 * MIB + 8192), &[2; 256 << 10], false, CLASS).err()
        });
        assert_eq!(full.unwrap().kind(), ErrorKind::NoSpace);
        drop(image);
        storage.set_capacity(None);
        let mut bytes = [0; 4096];
        let image = reopen(&storage, self.format).unwrap();
        image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
        assert_eq!(bytes, [1; 4096]);
        image.write_at(ByteOffset::new(40 * MIB), &[3; 4096], true, CLASS).unwrap();
        drop(image);
        assert_eq!(check(&storage, self.format, false).damaged(), 0);
    }

    /// Bytes of an image are changed at random; nothing may panic, hang, or take memory without bound. `mend` puts
    /// checksums right, so that what lies behind them is reached too; `places` are where the structures are.
    /// `IMAGE_FUZZ_TIMES` makes it as many times as long.
    pub(super) fn takes_damaged_bytes(
        self,
        pristine: &CrashStorage,
        count: u64,
        places: &[Extent],
        mend: impl Fn(&dyn StorageFile),
    ) {
        let first: u64 =
            std::env::var("UNDERSTUDY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let times = std::env::var("IMAGE_FUZZ_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
        let count = count * times;
        println!("UNDERSTUDY_SEED={first}");
        let mut opened = 0;
        for seed in first..first + count {
            let mut random = Random::new(seed);
            let storage = pristine.crash(0);
            let file = file(&storage);
            let len = file.len().unwrap().get();
            for _ in 0..1 + random.below(4) {
                let place = places[random.below(places.len() as u64) as usize];
                let at = match random.below(8) {
                    0 => random.below(len),
                    _ => place.start().get() + random.below(place.len().get()),
                };
                // Single bits, bytes, and numbers just inside and outside of a range.
                let bytes = match random.below(4) {
                    0 => vec![random.number() as u8],
                    1 => vec![0xff; 1 + random.below(8) as usize],
                    2 => vec![0; 1 + random.below(8) as usize],
                    _ => {
                        let mut byte = [0];
                        file.read_at(ByteOffset::new(at.min(len - 1)), &mut byte).unwrap();
                        vec![byte[0] ^ (1 << random.below(8))]
                    }
                };
                file.write_at(ByteOffset::new(at), &bytes).unwrap();
            }
            if random.chance(10) {
                file.set_len(ByteLen::new(random.below(len))).unwrap();
            } else if random.chance(80) {
                mend(&*file);
            }
            let _ = check_image(&file, Some(self.format), false);
            let Ok(image) = reopen(&storage, self.format) else { continue };
            opened += 1;
            use_all_over(&*image);
            drop(image);
            let _ = check_image(&file, Some(self.format), true);
        }
        assert!(count / 30 < opened && opened < count, "both outcomes are tried: {opened} of {count} opened");
    }
}

/// Reads, asks and writes at the start, the end, and what lies between.
fn use_all_over(image: &dyn Volume) {
    let len = image.len().get();
    let mut buffer = vec![0; (4 * MIB).min(len) as usize];
    let _ = image.read_at(ByteOffset::ZERO, &mut buffer, CLASS);
    let _ = image.status(Extent::whole(image.len()).unwrap());
    let tail = len.min(4096);
    let _ = image.read_at(ByteOffset::new(len - tail), &mut buffer[..tail as usize], CLASS);
    let _ = image.write_at(ByteOffset::new(len - 512), &[1; 512], true, CLASS);
    let _ = image.discard(extent(0, len.min(2 * MIB)), false, CLASS);
    let _ = image.write_at(ByteOffset::ZERO, &vec![7; (2 * MIB).min(len) as usize], false, CLASS);
    let _ = image.flush();
}
