//! OVF descriptors: DMTF's DSP0243, versions 1.x (envelope 1) and 2.x (envelope 2).

mod read;
mod units;
mod write;

pub(crate) use read::DESCRIPTOR_BYTES_MAX;
pub use read::{DescribedDisk, Descriptor};
pub(crate) use write::{FileEntry, write_beside_files, write_with_files};

use blocks::{Error, ErrorKind, Result};
use std::str::FromStr;

/// Which envelope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OvfVersion {
    /// 1.0 and 1.1: what VMware reads.
    One,
    /// 2.0 and 2.1.
    Two,
}

impl OvfVersion {
    const fn namespace(self) -> &'static str {
        match self {
            OvfVersion::One => "http://schemas.dmtf.org/ovf/envelope/1",
            OvfVersion::Two => "http://schemas.dmtf.org/ovf/envelope/2",
        }
    }

    /// As the specification numbers itself.
    pub const fn name(self) -> &'static str {
        match self {
            OvfVersion::One => "1.0",
            OvfVersion::Two => "2.0",
        }
    }
}

impl FromStr for OvfVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<OvfVersion> {
        match text {
            "1" => Ok(OvfVersion::One),
            "2" => Ok(OvfVersion::Two),
            other => {
                let context = format!("{other:?} is no version of OVF; there are 1 and 2");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

/// DMTF's class of what an item of hardware is made of.
const CIM: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
/// VMware's extension, which says how a machine boots.
const VMWARE: &str = "http://www.vmware.com/schema/ovf";
/// Ours, for what OVF has no word for: a disk's serial number and world-wide name.
const OWN: &str = "urn:understudy:ovf:1";

/// CIM's numbers of kinds of hardware (CIM_ResourceAllocationSettingData, ResourceType).
mod resource {
    pub(super) const PROCESSOR: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const SCSI: u32 = 6;
    pub(super) const ETHERNET: u32 = 10;
    pub(super) const DISK: u32 = 17;
}
