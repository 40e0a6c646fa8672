use super::*;
use crate::testing::{CrashStorage, Random};
use crate::{ImageFormat, create_image};
use blocks::{MemoryVolume, Storage};
use std::cell::Cell;

const CLASS: RequestClass = RequestClass::Background;

fn disk(seed: u64, len: u64) -> MemoryVolume {
    let disk = MemoryVolume::new(ByteLen::new(len));
    let mut random = Random::new(seed);
    for _ in 0..20 {
        let start = random.below(len / 512) * 512;
        let mut bytes = vec![0; (512 + random.below(300) * 512).min(len - start) as usize];
        random.fill(&mut bytes);
        disk.write_at(ByteOffset::new(start), &bytes, false, CLASS).unwrap();
    }
    disk
}

#[test]
fn the_copy_is_equal_whatever_the_target_held() {
    for seed in 0..20 {
        let len = (5 << 20) + 512 * seed;
        let from = disk(seed, len);
        let to = disk(seed + 1000, len + 4096);
        let behind = to.snapshot().split_off(len as usize);
        let seen = Cell::new(ByteLen::ZERO);
        let progress = |done: ByteLen, total: ByteLen| {
            assert!(seen.get() < done && total.get() == len);
            seen.set(done);
            true
        };
        copy_volume(&from, &to, &progress).unwrap();
        assert_eq!(seen.get().get(), len);
        let copied = to.snapshot();
        assert!(copied[..len as usize] == from.snapshot() && copied[len as usize..] == behind, "seed {seed}");
    }
}

#[test]
fn zeroes_are_not_stored() {
    /// Says of everything that it is data.
    struct Opaque(MemoryVolume);
    impl Volume for Opaque {
        fn len(&self) -> ByteLen {
            self.0.len()
        }
        fn is_read_only(&self) -> bool {
            true
        }
        fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
            self.0.read_at(offset, buffer, class)
        }
        fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
            Err(Error::new(ErrorKind::ReadOnly, "read-only"))
        }
        fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
            Err(Error::new(ErrorKind::ReadOnly, "read-only"))
        }
        fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
            Err(Error::new(ErrorKind::ReadOnly, "read-only"))
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn status(&self, extent: Extent) -> Result<Vec<blocks::ExtentStatus>> {
            Ok(vec![blocks::ExtentStatus { extent, allocation: Allocation::Data }])
        }
    }
    let from = Opaque(MemoryVolume::new(ByteLen::new(64 << 20)));
    from.0.write_at(ByteOffset::new(20 << 20), &[1; 512], false, CLASS).unwrap();
    let storage = CrashStorage::new();
    let to = create_image(&storage, "image", ImageFormat::Vhd, from.len()).unwrap();
    copy_volume(&from, &to, &|_, _| true).unwrap();
    let runs = to.status(Extent::whole(to.len()).unwrap()).unwrap();
    let data: ByteLen =
        runs.iter().filter(|run| run.allocation == Allocation::Data).map(|run| run.extent.len()).sum();
    assert_eq!(data, ZERO_GRAIN.len(), "one grain holds data");
    assert!(storage.list("").unwrap().contains(&"image".to_owned()));
}

#[test]
fn what_is_too_small_or_called_off_says_so() {
    let from = disk(1, 4 << 20);
    let small = MemoryVolume::new(ByteLen::new((4 << 20) - 512));
    assert_eq!(copy_volume(&from, &small, &|_, _| true).unwrap_err().kind(), ErrorKind::InvalidInput);
    let to = MemoryVolume::new(from.len());
    assert_eq!(copy_volume(&from, &to, &|_, _| false).unwrap_err().kind(), ErrorKind::Cancelled);
}
