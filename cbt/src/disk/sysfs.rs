//! What /sys says about block devices.

use blocks::{ByteLen, ByteOffset, Error, Extent, Result, SECTOR_BYTES};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Major and minor number of a block device, or of the anonymous device of a superblock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device.
    pub minor: u32,
}

impl DeviceNumber {
    /// From `st_dev` or `st_rdev`.
    pub fn from_raw(dev: u64) -> DeviceNumber {
        DeviceNumber { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// From `MAJOR:MINOR`.
    pub fn parse(text: &str) -> Option<DeviceNumber> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What `/sys/block/DISK/stat` has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoCounts {
    /// Bytes that were read.
    pub read: ByteLen,
    /// Bytes that were written or discarded.
    pub written: ByteLen,
    /// Writes and discards that completed.
    pub writes: u64,
    /// How long they took, together.
    pub write_time: Duration,
}

impl IoCounts {
    /// Reads the counts of the device at this sysfs folder.
    pub fn read(sysfs: &Path) -> Result<IoCounts> {
        let path = sysfs.join("stat");
        let text = fs::read_to_string(&path).map_err(|error| Error::io(path.display().to_string(), error))?;
        let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        Ok(IoCounts {
            read: ByteLen::new(field(2) * SECTOR_BYTES),
            written: ByteLen::new((field(6) + field(13)) * SECTOR_BYTES),
            writes: field(4) + field(11),
            write_time: Duration::from_millis(field(7) + field(14)),
        })
    }
}

/// The folder of a block device in sysfs, resolved.
pub(crate) fn sysfs_dir(number: DeviceNumber) -> Result<PathBuf> {
    let link = format!("/sys/dev/block/{number}");
    fs::canonicalize(&link).map_err(|error| Error::io(link, error))
}

/// A sysfs attribute without its line end; `None` where there is none or it is empty.
pub(crate) fn read_text(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A sysfs attribute that is a number.
pub(crate) fn read_u64(path: impl AsRef<Path>) -> Option<u64> {
    read_text(path)?.parse().ok()
}

/// A partition of a disk.
#[derive(Clone, Debug)]
pub(crate) struct PartitionFacts {
    pub number: u32,
    pub name: String,
    pub device: DeviceNumber,
    pub extent: Extent,
    pub sysfs: PathBuf,
}

/// The partitions of the disk at this sysfs folder, by number.
pub(crate) fn partitions(sysfs: &Path) -> Vec<PartitionFacts> {
    let mut found: Vec<PartitionFacts> = fs::read_dir(sysfs)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let dir = entry.path();
            let number = u32::try_from(read_u64(dir.join("partition"))?).ok()?;
            let start = ByteOffset::new(read_u64(dir.join("start"))?.checked_mul(SECTOR_BYTES)?);
            let len = ByteLen::new(read_u64(dir.join("size"))?.checked_mul(SECTOR_BYTES)?);
            Some(PartitionFacts {
                number,
                name: entry.file_name().to_string_lossy().into_owned(),
                device: DeviceNumber::parse(&read_text(dir.join("dev"))?)?,
                extent: Extent::new(start, len).ok()?,
                sysfs: dir,
            })
        })
        .collect();
    found.sort_by_key(|partition| partition.number);
    found
}

/// The devices that are stacked right above the one at this sysfs folder (device mapper, MD).
pub(crate) fn holders(sysfs: &Path) -> Vec<DeviceNumber> {
    let entries = fs::read_dir(sysfs.join("holders")).into_iter().flatten().flatten();
    entries.filter_map(|entry| DeviceNumber::parse(&read_text(entry.path().join("dev"))?)).collect()
}
