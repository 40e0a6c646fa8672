//! /proc/PID/mountinfo.

use crate::disk::DeviceNumber;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The superblock's device; anonymous (major 0) for btrfs and for what has no device.
    pub superblock: DeviceNumber,
    /// What of the file system is mounted here; `/` for all of it.
    pub root: PathBuf,
    /// Where, as its namespace sees it.
    pub mount_point: PathBuf,
    /// How to get at it from here, through another namespace's root if need be.
    pub reachable: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What was mounted.
    pub source: String,
    /// Whether the whole superblock is read-only.
    pub read_only: bool,
}

impl MountEntry {
    /// The block device below, also where the superblock's own number is anonymous.
    pub fn device_number(&self) -> Option<DeviceNumber> {
        if self.superblock.major != 0 {
            return Some(self.superblock);
        }
        let metadata =
            fs::metadata(Path::new(&self.source)).ok().filter(|_| self.source.starts_with("/dev/"))?;
        Some(DeviceNumber::from_raw(metadata.rdev())).filter(|number| number.major != 0)
    }
}

/// The mounts of this process' namespace.
pub(crate) fn own_mounts() -> Vec<MountEntry> {
    read_mounts("self", Path::new("/"))
}

/// The mounts of every namespace that a process lives in, this process' own first.
pub(crate) fn all_mounts() -> Vec<MountEntry> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let mut seen: HashSet<PathBuf> = namespace("self").into_iter().collect();
    let mut mounts = own_mounts();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        if namespace(&name).is_some_and(|found| seen.insert(found)) {
            mounts.extend(read_mounts(&name, &PathBuf::from(format!("/proc/{name}/root"))));
        }
    }
    mounts
}

fn read_mounts(process: &str, root: &Path) -> Vec<MountEntry> {
    let text = fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| parse(line, root)).collect()
}

fn parse(line: &[u8], namespace_root: &Path) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let mount_point = path(fields.get(4)?);
    let options = text(fields.get(dash + 3)?);
    Some(MountEntry {
        superblock: DeviceNumber::parse(&text(fields.get(2)?))?,
        root: path(fields.get(3)?),
        reachable: namespace_root.join(mount_point.strip_prefix("/").unwrap_or(&mount_point)),
        mount_point,
        kind: text(fields.get(dash + 1)?),
        source: text(&unescape(fields.get(dash + 2)?)),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_spaces_is_read() {
        let line = br"36 35 98:0 / /mnt\040two rw,noatime master:1 - ext3 /dev/root ro,errors=continue";
        let entry = parse(line, Path::new("/proc/7/root")).unwrap();
        assert_eq!(entry.superblock, DeviceNumber { major: 98, minor: 0 });
        assert_eq!(entry.mount_point, Path::new("/mnt two"));
        assert_eq!(entry.reachable, Path::new("/proc/7/root/mnt two"));
        assert_eq!((entry.kind.as_str(), entry.read_only), ("ext3", true));
        assert!(parse(b"36 35 98:0 / /mnt rw", Path::new("/")).is_none());
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(all_mounts().iter().any(|mount| mount.mount_point == Path::new("/")));
    }
}
