use super::*;
use crate::image::{ImageOptions, check_image, open_image_with};
use crate::testing::CrashStorage;
use blocks::{BlockShift, ByteOffset, Extent, MemoryVolume, OpenMode, RequestClass, Storage};
use proptest::prelude::*;

const CLASS: RequestClass = RequestClass::Guest;

fn image(kind: ShownKind) -> ShownImage {
    let (file_name, identity) = ("disk0.x".to_owned(), "a disk".to_owned());
    ShownImage { kind, file_name, identity, made: WallClock(1_795_000_000_000) }
}

fn read(volume: &dyn Volume, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    volume.read_at(ByteOffset::new(at), &mut bytes, CLASS).unwrap();
    bytes
}

/// Puts the file into a storage, and has our own reader check it and read the disk.
fn through_our_reader(shown: &dyn Volume, format: ImageFormat) -> Vec<u8> {
    let storage = CrashStorage::new();
    let file = storage.open("file", OpenMode::CreateNew).unwrap();
    file.set_len(shown.len()).unwrap();
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, shown.len().end()) {
        let run = shown.status(rest).unwrap()[0];
        if !run.allocation.reads_as_zero() {
            let bytes = read(shown, at.get(), run.extent.len().as_usize());
            file.write_at(at, &bytes).unwrap();
        }
        at = run.extent.end();
    }
    let report = check_image(&file, Some(format), false).unwrap();
    assert!(report.faults().is_empty(), "{format}: {:?}", report.faults());
    let options = ImageOptions { format: Some(format), ..ImageOptions::default() };
    let disk = open_image_with(file, options).unwrap();
    read(&*disk, 0, disk.len().as_usize())
}

fn sparse() -> impl Iterator<Item = ImageFormat> {
    ImageFormat::ALL.into_iter().filter(|format| *format != ImageFormat::Raw)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn our_readers_find_the_disk_in_every_format(
        sectors in 1..40_000_u64,
        writes in prop::collection::vec((0..40_000_u64, 1..3000_u64, 1u8..), 0..6),
        cuts in prop::collection::vec((0..60_000_u64, 1..500_usize), 4),
    ) {
        let disk = Arc::new(MemoryVolume::new(ByteLen::new(sectors * 512)));
        for (start, len, byte) in writes {
            let (start, end) = (start.min(sectors), (start + len).min(sectors));
            disk.write_at(ByteOffset::new(start * 512), &vec![byte; ((end - start) * 512) as usize], false, CLASS).unwrap();
        }
        for format in sparse() {
            let shown = show_image(disk.clone(), &image(ShownKind::Sparse(format))).unwrap();
            prop_assert!(through_our_reader(&*shown, format) == disk.snapshot(), "{}", format);
            let again = show_image(disk.clone(), &image(ShownKind::Sparse(format))).unwrap();
            for (at, count) in &cuts {
                let all = shown.len().get() / 512;
                let (at, count) = (at % all, *count as u64);
                let count = count.min(all - at);
                let whole = read(&*shown, at * 512, (count * 512) as usize);
                let pieces: Vec<u8> = (at..at + count).flat_map(|sector| read(&*again, sector * 512, 512)).collect();
                prop_assert!(whole == pieces, "{} at {}", format, at);
            }
        }
    }
}

#[test]
fn a_fixed_vhd_is_the_disk_and_a_footer_that_stays() {
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(1 << 20)));
    let shown = show_image(disk.clone(), &image(ShownKind::FixedVhd)).unwrap();
    assert_eq!(Some(shown.len()), ShownKind::FixedVhd.len_over(disk.len()));
    let end = (1 << 20) - 512;
    let mut last = read(&*shown, end, 1024);
    assert_eq!(&last[512..520], b"conectix");
    last[..512].fill(7);
    shown.write_at(ByteOffset::new(end), &last, false, CLASS).unwrap();
    assert_eq!(disk.snapshot()[(1 << 20) - 1], 7);
    last[600] ^= 1;
    assert!(shown.write_at(ByteOffset::new(end), &last, false, CLASS).is_err());
    let footer = Extent::new(ByteOffset::new(end), ByteLen::new(1024)).unwrap();
    assert!(shown.write_zeroes(footer, false, false, CLASS).is_err());
    let before = Extent::new(ByteOffset::new(end), ByteLen::new(512)).unwrap();
    shown.write_zeroes(before, false, false, CLASS).unwrap();
    assert_eq!(read(&*shown, end, 1024)[..520], [&[0; 512][..], b"conectix"].concat());
    assert!(through_our_reader(&*shown, ImageFormat::Vhd) == disk.snapshot());
}

/// A disk of a size that no machine here has, with data in a few places.
struct Huge(ByteLen);

impl Huge {
    const DATA: u64 = 1 << 20;
    const EVERY: u64 = 1 << 38;

    fn is_data(at: u64) -> bool {
        at % Huge::EVERY < Huge::DATA
    }
}

impl Volume for Huge {
    fn len(&self) -> ByteLen {
        self.0
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        for (at, sector) in (0..).zip(buffer.chunks_mut(512)) {
            let at = offset.get() + at * 512;
            sector.fill(0);
            if Huge::is_data(at) {
                sector[..8].copy_from_slice(&(at + 1).to_le_bytes());
            }
        }
        Ok(())
    }
    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
        unreachable!("it is only read")
    }
    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        unreachable!("it is only read")
    }
    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        unreachable!("it is only read")
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<blocks::ExtentStatus>> {
        let at = extent.start().get();
        let (allocation, end) = match Huge::is_data(at) {
            true => (blocks::Allocation::Data, at / Huge::EVERY * Huge::EVERY + Huge::DATA),
            false => (blocks::Allocation::Hole, (at / Huge::EVERY + 1) * Huge::EVERY),
        };
        let extent = Extent::between(extent.start(), ByteOffset::new(end).min(extent.end())).unwrap();
        Ok(vec![blocks::ExtentStatus { extent, allocation }])
    }
}

#[test]
fn the_largest_disks_are_shown_and_their_last_block_is_found() {
    for format in sparse() {
        let len = format.len_max().unwrap();
        let shown = show_image(Arc::new(Huge(len)), &image(ShownKind::Sparse(format))).unwrap();
        let blocks = len.get().div_ceil(Huge::EVERY);
        // What the data takes at most, in the largest blocks that there are, and tables for all of the disk.
        assert!(
            shown.len().get() < (blocks + 1) * (64 << 20) + len.get() / 4000,
            "{format}: {}",
            shown.len()
        );
        let last = (blocks - 1) * Huge::EVERY;
        let block = BlockShift::new(if format == ImageFormat::Vhd { 21 } else { 16 }).unwrap();
        let data_at = match format {
            ImageFormat::Vhd => shown.len().get() - 512 - block.bytes(),
            ImageFormat::Vhdx => shown.len().get() - (32 << 20),
            _ => shown.len().get() - Huge::DATA,
        };
        assert_eq!(read(&*shown, data_at, 512)[..8], (last + 1).to_le_bytes(), "{format}");
    }
}
