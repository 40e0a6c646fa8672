//! An image of one format: everything that is done with the files of strangers is done with it, and what is accepted must
//! keep its promises.
//!
//! Any error that says what is wrong with the bytes is fine. A panic, an overflow, a hang, memory without bound is a
//! finding; so is, where `check` has found no damage: a write that is not read back, a disk that does not open again
//! after it was written, repaired or resized, and one that holds something else then.

use super::{Input, MemoryStorage};
use blocks::{
    Allocation, ByteLen, ByteOffset, ErrorKind, Extent, OpenMode, RequestClass, Result, Storage, StorageFile,
    Volume,
};
use std::path::Path;
use std::sync::Arc;
use store::{
    CheckReport, ImageFormat, ImageOptions, check_image_with, merge_image, open_image_with, probe_image,
    resize_image_with,
};

const CLASS: RequestClass = RequestClass::Background;
const QUESTIONS_MAX: usize = 64;
const READ_BYTES_MAX: u64 = 1 << 20;
const STEP: ByteLen = ByteLen::new(64 << 10);
/// Larger disks are not merged: it takes a look at each of their blocks.
const MERGED_MAX: ByteLen = ByteLen::new(64 << 20);

/// How images of a format are fuzzed.
pub struct Target {
    pub name: &'static str,
    pub format: ImageFormat,
    /// The image, then what it may stand on or have its data in.
    pub files: &'static [&'static str],
    /// Puts the sums of a file right.
    pub mend: fn(&dyn StorageFile),
}

/// What was read of a disk: where, and what (`None`: an error).
type Found = Vec<(Extent, Option<Vec<u8>>)>;

impl Target {
    /// Plays one input.
    pub fn play(&self, data: &[u8]) {
        let input = Input::decode(data);
        let storage = input.files(self.files);
        if !input.keeps_sums() {
            self.files
                .iter()
                .filter(|name| has(&storage, name))
                .for_each(|name| (self.mend)(&*storage.file(name)));
        }
        if let Some(folder) = std::env::var_os("UNDERSTUDY_FUZZ_FILES") {
            self.save(&storage, Path::new(&folder));
        }
        let image = storage.file(self.files[0]);
        let _ = refused(probe_image(&*image));
        let report = refused(self.check(&storage, false));
        let sound = report.as_ref().is_some_and(|report| report.damaged() == 0);
        let found = match refused(self.open(&storage, false)) {
            Some(volume) => {
                let mut found = explore(&*volume);
                for place in places(&*volume, input.script()) {
                    found.push((place, read(&*volume, place)));
                }
                Some((volume.len(), found))
            }
            None => None,
        };
        self.repair(&storage, sound, found.as_ref());
        let Some((len, found)) = found else { return };
        self.write(&storage, sound, input.script());
        self.resize(&storage, sound, input.script(), (len, &found));
        if self.format == ImageFormat::Vhd && len <= MERGED_MAX && has(&storage, self.files[1]) {
            self.merge(&storage, sound, &found);
        }
    }

    /// Writes the files of an input to a folder, for other people's tools to look at.
    fn save(&self, storage: &MemoryStorage, folder: &Path) {
        for name in self.files.iter().filter(|name| has(storage, name)) {
            let file = storage.file(name);
            let mut bytes = vec![0; file.len().map_or(0, ByteLen::as_usize)];
            file.read_at(ByteOffset::ZERO, &mut bytes).expect("a file in memory");
            let path = folder.join(name);
            std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    fn options(&self, storage: &MemoryStorage, writable: bool) -> ImageOptions {
        let others = self.files[1..].iter().filter(|name| has(storage, name));
        let parents = others.map(|name| storage.file(name)).collect();
        ImageOptions { format: Some(self.format), writable, parents, folder: None }
    }

    fn open(&self, storage: &MemoryStorage, writable: bool) -> Result<Arc<dyn Volume>> {
        open_image_with(storage.file(self.files[0]), self.options(storage, writable))
    }

    fn check(&self, storage: &MemoryStorage, repair: bool) -> Result<CheckReport> {
        check_image_with(&storage.file(self.files[0]), self.options(storage, repair))
    }

    /// Repairs a copy. What was sound holds what it held.
    fn repair(&self, storage: &MemoryStorage, sound: bool, before: Option<&(ByteLen, Found)>) {
        let storage = storage.clone();
        let Some(repaired) = refused(self.check(&storage, true)) else { return };
        let again = refused(self.check(&storage, false));
        if repaired.damaged() == 0 {
            let again = again.expect("what was repaired can be looked at");
            assert_eq!(again.damaged(), 0, "a repaired image is not damaged: {:?}", again.faults());
        }
        let opened = refused(self.open(&storage, false));
        if let Some((len, before)) = before.filter(|_| sound) {
            let opened = opened.expect("a sound image opens after its repair");
            assert_eq!(opened.len(), *len);
            holds(&*opened, before, *len, "repaired");
        }
    }

    /// Writes to a copy where the script says, and opens it again.
    fn write(&self, storage: &MemoryStorage, sound: bool, script: [u8; 16]) {
        let storage = storage.clone();
        let Some(volume) = refused(self.open(&storage, true)) else { return };
        let mut done = true;
        let mut last = None;
        for (number, place) in places(&*volume, script).into_iter().enumerate() {
            let fill = script[8 + number] | 1;
            let (outcome, wanted) = match script[8 + number] & 6 {
                0 | 2 => (
                    volume.write_at(place.start(), &vec![fill; place.len().as_usize()], fill & 8 != 0, CLASS),
                    fill,
                ),
                4 => (volume.discard(place, fill & 8 != 0, CLASS), 0),
                _ => (volume.write_zeroes(place, true, fill & 8 != 0, CLASS), 0),
            };
            let Some(()) = refused(outcome) else {
                done = false;
                break;
            };
            if sound {
                let bytes = read(&*volume, place).expect("what was just written can be read");
                assert!(bytes.iter().all(|byte| *byte == wanted), "{place} reads as what was written");
            }
            last = Some((place, wanted));
        }
        let flushed = refused(volume.flush()).is_some();
        let len = volume.len();
        drop(volume);
        let opened = refused(self.open(&storage, false));
        if !sound || !done || !flushed {
            return;
        }
        let opened = opened.expect("what was written and flushed opens again");
        assert_eq!(opened.len(), len);
        if let Some((place, wanted)) = last {
            let bytes = read(&*opened, place).expect("what was flushed can be read");
            assert!(bytes.iter().all(|byte| *byte == wanted), "{place} reads as what was flushed");
        }
        let report = self.check(&storage, false).expect("what was sound and written can be looked at");
        assert_eq!(report.damaged(), 0, "writing does no damage: {:?}", report.faults());
    }

    /// Gives a copy another length.
    fn resize(
        &self,
        storage: &MemoryStorage,
        sound: bool,
        script: [u8; 16],
        (len, found): (ByteLen, &Found),
    ) {
        let by = u64::from(u32::from_le_bytes([script[12], script[13], script[14], 0])) << 9;
        let new_len = match script[15] % 3 {
            0 => len.get().saturating_add(by),
            1 => len.get().saturating_sub(by),
            _ => by << 4,
        };
        let storage = storage.clone();
        let file = storage.file(self.files[0]);
        let options = self.options(&storage, true);
        let resized = refused(resize_image_with(&file, options, ByteLen::new(new_len))).is_some();
        let opened = refused(self.open(&storage, false));
        if !sound {
            return;
        }
        let opened = opened.expect("a sound image opens after it was resized");
        if resized {
            assert_eq!(opened.len(), ByteLen::new(new_len));
        }
        holds(&*opened, found, opened.len(), "resized");
        let report = self.check(&storage, false).expect("what was sound and resized can be looked at");
        assert_eq!(report.damaged(), 0, "another length is no damage: {:?}", report.faults());
    }

    /// Merges a copy of a child into a copy of its parent.
    fn merge(&self, storage: &MemoryStorage, sound: bool, found: &Found) {
        let storage = storage.clone();
        let parent = storage.file(self.files[1]);
        let mut options = self.options(&storage, false);
        options.parents.clear();
        let parent_sound =
            refused(check_image_with(&parent, options.clone())).is_some_and(|it| it.damaged() == 0);
        let merged = refused(merge_image(storage.file(self.files[0]), Arc::clone(&parent), &|_, _| true));
        if sound && parent_sound && merged.is_some() {
            let opened = open_image_with(parent, options).expect("a merged parent opens");
            holds(&*opened, found, opened.len(), "merged");
        }
    }
}

fn has(storage: &MemoryStorage, name: &str) -> bool {
    storage.open(name, OpenMode::Read).is_ok()
}

/// What there is where it was not refused, and that a refusal says what is wrong with the bytes.
fn refused<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let expected = matches!(
                error.kind(),
                ErrorKind::Corrupt
                    | ErrorKind::Unsupported
                    | ErrorKind::InvalidInput
                    | ErrorKind::OutOfRange
                    | ErrorKind::NoSpace
                    | ErrorKind::NotFound
                    | ErrorKind::Poisoned
            );
            assert!(expected, "an error that does not say what is wrong with the bytes: {error:?}");
            None
        }
    }
}

/// Four places of the disk that the script names, aligned: near its start, near its end, or anywhere.
fn places(volume: &dyn Volume, script: [u8; 16]) -> Vec<Extent> {
    let shift = volume.alignment();
    let units = volume.len().blocks(shift);
    let mut places = Vec::new();
    for number in 0..4 {
        let place = u64::from(u16::from_le_bytes([script[number * 2], script[number * 2 + 1]]));
        let unit = match place >> 14 {
            0 => place % units,
            1 => units - 1 - (place & 0x3fff) % units,
            _ => ((u128::from(units) * u128::from(place & 0x7fff)) >> 15) as u64,
        };
        let count = if script[8 + number] & 2 == 0 { 1 } else { 1 + u64::from(script[8 + number] >> 3) };
        let len = ByteLen::new(count.min(units - unit) * shift.bytes());
        places.extend(Extent::new(shift.start_of(unit), len));
    }
    places
}

fn read(volume: &dyn Volume, extent: Extent) -> Option<Vec<u8>> {
    let mut bytes = vec![0xee; extent.len().as_usize()];
    refused(volume.read_at(extent.start(), &mut bytes, CLASS)).map(|()| bytes)
}

/// Asks what there is and reads it, as far as that is not too much.
fn explore(volume: &dyn Volume) -> Found {
    let mut found = Vec::new();
    let mut left = READ_BYTES_MAX;
    let mut at = ByteOffset::ZERO;
    for _ in 0..QUESTIONS_MAX {
        let Some(rest) = Extent::between(at, volume.len().end()) else { break };
        let Some(runs) = refused(volume.status(rest)) else { break };
        assert!(!runs.is_empty(), "a status says something");
        for run in runs {
            assert_eq!(run.extent.start(), at, "runs follow one another");
            assert!(run.extent.end() <= rest.end(), "runs lie on the disk");
            at = run.extent.end();
            if run.allocation != Allocation::Data {
                continue;
            }
            for piece in run.extent.split(STEP) {
                match left.checked_sub(piece.len().get()) {
                    Some(less) => left = less,
                    None => return found,
                }
                found.push((piece, read(volume, piece)));
            }
        }
    }
    found
}

/// That the disk holds what was found on it, up to `len`.
fn holds(volume: &dyn Volume, found: &Found, len: ByteLen, what: &str) {
    for (extent, bytes) in found {
        let Some(bytes) = bytes.as_ref().filter(|_| extent.end() <= len.end()) else { continue };
        let now = read(volume, *extent).unwrap_or_else(|| panic!("{what}: {extent} can be read no more"));
        assert!(now == *bytes, "{what}: {extent} holds something else");
    }
}
