//! Where the bytes of a device lie on the disk that it is a part of: partitions, and the linear volumes of device-mapper.

use crate::disk::{DeviceNumber, read_text, sysfs_dir};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, SECTOR_BYTES};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A device's bytes on the disk, in pieces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout(Vec<Piece>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    /// On the device.
    from: ByteOffset,
    /// On the disk.
    on_disk: Extent,
}

impl Layout {
    /// The disk itself, or a partition of it.
    pub fn of(on_disk: Extent) -> Layout {
        Layout(vec![Piece { from: ByteOffset::ZERO, on_disk }])
    }

    /// The device's length.
    pub fn len(&self) -> ByteLen {
        self.0.iter().map(|piece| piece.on_disk.len()).sum()
    }

    /// Where these bytes of the device are.
    pub fn place(&self, extent: Extent) -> Vec<Extent> {
        let placed = self.0.iter().filter_map(|piece| {
            let whole = Extent::new(piece.from, piece.on_disk.len()).ok()?;
            let part = whole.intersect(extent)?;
            Extent::new(piece.on_disk.start() + (part.start() - piece.from), part.len()).ok()
        });
        placed.collect()
    }

    /// The whole device.
    pub fn everything(&self) -> Vec<Extent> {
        self.0.iter().map(|piece| piece.on_disk).collect()
    }

    /// A volume of device-mapper that lies on the device with this layout. `Unsupported` where a part of it lies elsewhere, or
    /// its bytes are not where a table could say.
    pub fn volume(&self, below: DeviceNumber, volume: DeviceNumber) -> Result<Layout> {
        let name = read_text(sysfs_dir(volume)?.join("dm/name"));
        let name = name.ok_or_else(|| unsupported(format!("device {volume} on it is no volume of LVM")))?;
        let output = Command::new("dmsetup").args(["table", &name]).output();
        let output = output.map_err(|error| Error::io("dmsetup table", error))?;
        if !output.status.success() {
            return Err(unsupported(format!("dmsetup says nothing about {name}")));
        }
        let table = String::from_utf8_lossy(&output.stdout);
        let rows = table.lines().filter(|line| !line.trim().is_empty());
        let pieces = rows.map(|row| self.row(below, row).ok_or_else(|| not_linear(&name, row)));
        Ok(Layout(pieces.collect::<Result<Vec<_>>>()?.concat()))
    }

    /// `START LENGTH linear DEVICE OFFSET`, and for crypt three words more before the device; in sectors.
    fn row(&self, below: DeviceNumber, row: &str) -> Option<Vec<Piece>> {
        let words: Vec<&str> = row.split_whitespace().collect();
        let (device, offset) = match *words.get(2)? {
            "linear" => (words.get(3)?, words.get(4)?),
            "crypt" => (words.get(6)?, words.get(7)?),
            _ => return None,
        };
        if DeviceNumber::parse(device)? != below {
            return None;
        }
        let bytes = |sectors: &str| sectors.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES);
        let (mut from, len) = (ByteOffset::new(bytes(words[0])?), ByteLen::new(bytes(words[1])?));
        let extent = Extent::new(ByteOffset::new(bytes(offset)?), len).ok()?;
        let mut pieces = Vec::new();
        for on_disk in self.place(extent) {
            pieces.push(Piece { from, on_disk });
            from += on_disk.len();
        }
        Some(pieces)
    }
}

/// The node of a block device.
pub(super) fn node(number: DeviceNumber) -> Result<PathBuf> {
    let uevent = sysfs_dir(number)?.join("uevent");
    let text = read_text(&uevent).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("device {number} has no node")))?;
    Ok(Path::new("/dev").join(name))
}

pub(super) fn unsupported(context: String) -> Error {
    Error::new(ErrorKind::Unsupported, context)
}

fn not_linear(name: &str, row: &str) -> Error {
    let mut kind = row.split_whitespace().skip(2);
    let kind = kind.next().unwrap_or("nothing");
    unsupported(format!("{name} lies on several disks, or is no plain volume ({kind})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn a_volume_in_two_pieces_on_a_partition_is_found_on_the_disk() {
        let below = DeviceNumber { major: 254, minor: 2 };
        let partition = Layout::of(extent(1 << 20, 100 << 20));
        let rows = ["0 16 linear 254:2 2048", "16 8 linear 254:2 8192"];
        let pieces: Vec<Piece> = rows.iter().flat_map(|row| partition.row(below, row).unwrap()).collect();
        let volume = Layout(pieces);
        assert_eq!(volume.len(), ByteLen::new(24 * 512));
        let base = 1 << 20;
        assert_eq!(
            volume.place(extent(4096, 8192)),
            [extent(base + 2048 * 512 + 4096, 4096), extent(base + 8192 * 512, 4096)]
        );
        let encrypted = "0 16 crypt aes-xts-plain64 :64:logon:x 0 254:2 32768 1 allow_discards";
        assert_eq!(partition.row(below, encrypted).unwrap()[0].on_disk, extent(base + 32768 * 512, 8192));
    }

    #[test]
    fn what_lies_elsewhere_or_is_not_linear_has_no_layout() {
        let below = DeviceNumber { major: 254, minor: 2 };
        let partition = Layout::of(extent(0, 100 << 20));
        for row in ["0 16 linear 254:3 0", "0 16 striped 2 128 254:2 0 254:3 0", "0 16 thin 253:0 1", ""] {
            assert_eq!(partition.row(below, row), None, "{row}");
        }
    }
}
