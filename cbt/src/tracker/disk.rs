//! A whole disk as sysfs describes it: who it is, what the kernel counted, and whether its writes can be seen at all.

use blocks::{ByteLen, Error, ErrorKind, Id, Lba, Result};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Who a disk is, as long as this boot lasts. A path or a device number alone is not enough: a loop device keeps its
/// number when another file is put under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskIdentity {
    pub major: u32,
    pub minor: u32,
    /// Counts every disk that was ever attached in this boot; newer medium, newer number.
    pub diskseq: u64,
    pub len: ByteLen,
    pub boot: Id,
}

/// How a disk takes its writes, which decides where they can be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plumbing {
    /// Through blk-mq requests.
    Requests,
    /// The driver takes bios as they are (device-mapper, md).
    Bios,
}

/// A whole disk. Keeps what it reads often open, so that asking costs no path lookup.
pub(crate) struct WholeDisk {
    name: String,
    sysfs: PathBuf,
    stat: File,
    inflight: File,
}

impl WholeDisk {
    /// The disk whose node is at `device`. `InvalidInput` for anything but a whole block device.
    pub fn open(device: &Path) -> Result<WholeDisk> {
        let shown = device.display();
        let metadata = fs::metadata(device).map_err(|error| Error::io(format!("{shown}"), error))?;
        if !metadata.file_type().is_block_device() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{shown} is not a block device")));
        }
        let number = metadata.rdev();
        let link = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        let sysfs = fs::canonicalize(&link).map_err(|error| Error::io(format!("{shown} ({link})"), error))?;
        let name = last_component(&sysfs)?;
        if sysfs.join("partition").exists() {
            let disk = sysfs.parent().map_or(Ok(String::new()), last_component)?;
            let context = format!("{shown} is a partition; name the whole disk, /dev/{disk}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let file = |name: &str| {
            let path = sysfs.join(name);
            File::open(&path).map_err(|error| Error::io(path.display().to_string(), error))
        };
        let (stat, inflight) = (file("stat")?, file("inflight")?);
        Ok(WholeDisk { name, sysfs, stat, inflight })
    }

    /// The kernel's name for it, such as `sda`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who the disk is now.
    pub fn identity(&self) -> Result<DiskIdentity> {
        let dev = self.attribute("dev")?;
        let (major, minor) =
            dev.split_once(':').ok_or_else(|| Error::corrupt(format!("{}: dev is '{dev}'", self.name)))?;
        let number = |text: &str, what: &str| -> Result<u64> {
            text.parse().map_err(|error| {
                Error::with_source(ErrorKind::Corrupt, format!("{}: {what} is '{text}'", self.name), error)
            })
        };
        let minor_or_major = |text: &str| -> Result<u32> {
            u32::try_from(number(text, "dev")?)
                .map_err(|error| Error::with_source(ErrorKind::Corrupt, format!("{}: dev", self.name), error))
        };
        let sectors = Lba::new(number(&self.attribute("size")?, "size")?);
        let end = sectors.offset().ok_or_else(|| Error::corrupt(format!("{}: size", self.name)))?;
        Ok(DiskIdentity {
            major: minor_or_major(major)?,
            minor: minor_or_major(minor)?,
            diskseq: number(&self.attribute("diskseq")?, "diskseq")?,
            len: ByteLen::new(end.get()),
            boot: boot_id()?,
        })
    }

    /// Bytes written and discarded since the disk appeared, as the kernel counts them at completion.
    pub fn kernel_written(&self) -> Result<ByteLen> {
        let fields = numbers(&self.stat, &self.name, "stat")?;
        // Documentation/block/stat.rst: 7th is sectors written, 14th is sectors discarded.
        let sectors = fields.get(6).zip(fields.get(13)).map(|(written, discarded)| written + discarded);
        let end = sectors.and_then(|sectors| Lba::new(sectors).offset());
        end.map(|end| ByteLen::new(end.get()))
            .ok_or_else(|| Error::corrupt(format!("{}: stat has {} fields", self.name, fields.len())))
    }

    /// Write requests that the device has now.
    pub fn in_flight(&self) -> Result<u64> {
        numbers(&self.inflight, &self.name, "inflight")?
            .get(1)
            .copied()
            .ok_or_else(|| Error::corrupt(format!("{}: inflight", self.name)))
    }

    /// How its writes arrive.
    pub fn plumbing(&self) -> Plumbing {
        if self.sysfs.join("mq").exists() { Plumbing::Requests } else { Plumbing::Bios }
    }

    /// Why writes to this disk cannot be tracked here; `None` where they can.
    pub fn untrackable(&self) -> Option<String> {
        let queue = |name: &str| self.attribute(&format!("queue/{name}")).unwrap_or_default();
        let name = &self.name;
        if name.starts_with("zram") || name.starts_with("ram") {
            return Some(format!("{name} is a memory disk: the kernel does not count all of its writes"));
        }
        if queue("dax") == "1" {
            return Some(format!("{name} has DAX: programs write to it past the block layer"));
        }
        if !matches!(queue("zoned").as_str(), "" | "none") {
            return Some(format!("{name} is zoned: a zone reset changes content without a write"));
        }
        if let Some(multipath) = self.multipath_holder() {
            return Some(format!(
                "{name} is one path of {multipath}: writes by the others are not seen here"
            ));
        }
        None
    }

    /// Why the kernel's own counter proves nothing now; `None` where it does.
    pub fn uncounted(&self) -> Option<String> {
        let iostats = self.attribute("queue/iostats").unwrap_or_default();
        (iostats == "0")
            .then(|| format!("/sys/block/{}/queue/iostats is off: nothing to compare with", self.name))
    }

    fn multipath_holder(&self) -> Option<String> {
        let holders = fs::read_dir(self.sysfs.join("holders")).ok()?;
        holders.flatten().find_map(|holder| {
            let uuid = fs::read_to_string(holder.path().join("dm/uuid")).ok()?;
            uuid.starts_with("mpath-").then(|| holder.file_name().to_string_lossy().into_owned())
        })
    }

    fn attribute(&self, name: &str) -> Result<String> {
        let path = self.sysfs.join(name);
        let text = fs::read_to_string(&path).map_err(|error| Error::io(path.display().to_string(), error))?;
        Ok(text.trim().to_owned())
    }
}

/// Differs after every start of the machine.
fn boot_id() -> Result<Id> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).map_err(|error| Error::io(path, error))?.trim().parse()
}

fn last_component(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| Error::corrupt(format!("{} has no name", path.display())))
}

/// The numbers in a sysfs file that is kept open.
fn numbers(file: &File, disk: &str, what: &str) -> Result<Vec<u64>> {
    let mut buffer = [0; 512];
    let len = file.read_at(&mut buffer, 0).map_err(|error| Error::io(format!("{disk}: {what}"), error))?;
    let text = std::str::from_utf8(&buffer[..len])
        .map_err(|error| Error::io(format!("{disk}: {what}"), io::Error::other(error)))?;
    text.split_whitespace()
        .map(|field| {
            field.parse().map_err(|error| {
                Error::with_source(ErrorKind::Corrupt, format!("{disk}: {what}: '{field}'"), error)
            })
        })
        .collect()
}
