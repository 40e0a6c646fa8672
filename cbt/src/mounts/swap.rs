//! Where a machine swaps to: pages that come and go under a frozen file system and mean nothing to a stand-in.

use super::members;
use crate::disk::{DeviceNumber, Disk};
use blocks::{ByteLen, Extent};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The header of a swap area is its first page; it is never left out.
const SWAP_HEADER: ByteLen = ByteLen::new(4096);
/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
/// `FIEMAP_EXTENT_LAST`.
const EXTENT_LAST: u32 = 1;
/// Unknown, delayed, encoded or inline extents have no address on the disk.
const EXTENT_WITHOUT_ADDRESS: u32 = 0x2 | 0x4 | 0x8 | 0x200;
/// How many extents one call asks for.
const EXTENTS_AT_ONCE: usize = 64;

/// Block devices that are swapped to.
pub(crate) fn swap_devices() -> Vec<DeviceNumber> {
    let device = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
        Some(DeviceNumber::from_raw(metadata.rdev()))
    };
    swap_paths().iter().filter_map(device).collect()
}

/// What of the disk is swap: partitions, and files by their extents, without the headers.
pub(crate) fn swap_extents(disk: &Disk) -> Vec<Extent> {
    swap_paths().iter().flat_map(|path| extents_of(path, disk)).collect()
}

fn swap_paths() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let first =
        |line: &str| line.split_whitespace().next().map(|path| PathBuf::from(path.replace("\\040", " ")));
    text.lines().skip(1).filter_map(first).collect()
}

fn extents_of(path: &Path, disk: &Disk) -> Vec<Extent> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    if metadata.file_type().is_block_device() {
        let area = place(DeviceNumber::from_raw(metadata.rdev()), disk);
        let after_header = |area: Extent| Extent::between(area.start() + SWAP_HEADER, area.end());
        return area.and_then(after_header).into_iter().collect();
    }
    match place(DeviceNumber::from_raw(metadata.dev()), disk) {
        Some(area) => file_extents(path, area, SWAP_HEADER).unwrap_or_default(),
        None => Vec::new(),
    }
}

/// Where the device lies on the disk, if it is the disk itself or a partition of it. What is stacked higher has no
/// place that could be told from here.
fn place(number: DeviceNumber, disk: &Disk) -> Option<Extent> {
    if number == disk.number() {
        return Extent::whole(disk.len());
    }
    members(disk.number()).get(&number)?;
    disk.partitions()
        .into_iter()
        .find(|partition| partition.device == number)
        .map(|partition| partition.extent)
}

/// Where a file's bytes from `skip` on lie on the disk; its file system lies at `area`.
pub(crate) fn file_extents(path: &Path, area: Extent, skip: ByteLen) -> std::io::Result<Vec<Extent>> {
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct FiemapExtent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [FiemapExtent; EXTENTS_AT_ONCE],
    }
    let file = File::open(path)?;
    let mut found = Vec::new();
    let mut start = skip.get();
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS_AT_ONCE as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); EXTENTS_AT_ONCE],
        };
        // SAFETY: `map` is laid out as the kernel's struct fiemap with room for `extent_count` extents.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &mut map) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mapped = &map.extents[..(map.mapped_extents as usize).min(EXTENTS_AT_ONCE)];
        for extent in mapped {
            // The first extent may begin before `start`: only its rest is asked for.
            let ahead = start.saturating_sub(extent.logical).min(extent.length);
            let (at, len) = (extent.physical + ahead, extent.length - ahead);
            let on_disk = Extent::new(area.start() + ByteLen::new(at), ByteLen::new(len)).ok();
            if extent.flags & EXTENT_WITHOUT_ADDRESS == 0 {
                found.extend(on_disk.and_then(|extent| extent.intersect(area)));
            }
        }
        match mapped.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 => start = last.logical + last.length,
            _ => return Ok(found),
        }
    }
}
