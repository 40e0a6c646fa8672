//! A protected disk: a whole block device, read past the page cache.

mod device;
mod lock;
mod sysfs;

pub use device::Disk;
pub(crate) use lock::DiskLock;
pub use sysfs::{DeviceNumber, IoCounts};
pub(crate) use sysfs::{PartitionFacts, holders, partitions, read_text, read_u64, sysfs_dir};
