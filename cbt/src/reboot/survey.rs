//! Which bytes of a disk would show that somebody else wrote to it, and which may change without us.

use super::content::Content;
use super::layout::{Layout, node, unsupported};
use crate::disk::{DeviceNumber, Disk, holders, partitions, sysfs_dir};
use crate::mounts::file_extents;
use blocks::{ByteLen, ByteOffset, Error, Extent, ExtentSet, Result};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// GRUB writes its environment block itself, before any kernel runs.
const WRITTEN_BY_BOOT_LOADERS: [&str; 2] = ["/boot/grub/grubenv", "/boot/grub2/grubenv"];
/// More than a GPT takes, at either end.
const TABLE: ByteLen = ByteLen::new(64 << 10);
/// With more to send at each boot, a scan is the better way.
const SUSPECTS_MAX: ByteLen = ByteLen::new(1 << 30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Whoever mounts or changes something without us changes some of this.
    pub witnesses: ExtentSet,
    /// Firmware and boot loaders may change this.
    pub suspects: ExtentSet,
    /// Says how the disk is divided; while it is the same, so is what follows from it.
    pub structure: ExtentSet,
    layouts: BTreeMap<DeviceNumber, Layout>,
}

impl Survey {
    /// Of a disk all of whose volumes are there. `Unsupported` where it cannot be told who wrote.
    pub fn of(disk: &Disk) -> Result<Survey> {
        let mut survey = Survey::default();
        let whole = Extent::whole(disk.len()).expect("a disk has bytes");
        survey.look(disk.number(), Layout::of(whole))?;
        for path in WRITTEN_BY_BOOT_LOADERS.map(Path::new).into_iter().filter(|path| path.exists()) {
            survey.suspect_file(path)?;
        }
        let much = survey.suspects.covered();
        if much > SUSPECTS_MAX {
            let context = format!("{much} bytes of it hold nothing that would show who wrote to them");
            return Err(unsupported(context));
        }
        Ok(survey)
    }

    /// The file's blocks, if they are on this disk, may change without us.
    pub fn suspect_file(&mut self, path: &Path) -> Result<()> {
        let failed = |error| Error::io(path.display().to_string(), error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let Some(layout) = self.layouts.get(&DeviceNumber::from_raw(metadata.dev())) else { return Ok(()) };
        let Some(device) = Extent::whole(layout.len()) else { return Ok(()) };
        let extents = file_extents(path, device, ByteLen::ZERO).map_err(failed)?;
        let placed: Vec<Extent> = extents.into_iter().flat_map(|extent| layout.place(extent)).collect();
        placed.into_iter().for_each(|extent| self.suspects.insert(extent, ()));
        Ok(())
    }

    fn look(&mut self, number: DeviceNumber, layout: Layout) -> Result<()> {
        let sysfs = sysfs_dir(number)?;
        let parts = partitions(&sysfs);
        if !parts.is_empty() {
            let mut gaps: ExtentSet = layout.everything().into_iter().collect();
            for part in parts {
                gaps.remove(part.extent);
                self.look(part.device, Layout::of(part.extent))?;
            }
            gaps.iter().for_each(|(gap, ())| both_ends(gap, &mut self.structure));
            self.suspects.union(&gaps);
            return Ok(());
        }
        let node = node(number)?;
        let content = Content::of(&node).map_err(|error| Error::io(node.display().to_string(), error))?;
        let above = holders(&sysfs);
        match content {
            Content::FileSystem(_, shown_by) => {
                for extent in shown_by {
                    layout.place(extent).into_iter().for_each(|extent| self.witnesses.insert(extent, ()));
                }
            }
            Content::Container(head) => {
                for extent in layout.place(head) {
                    self.witnesses.insert(extent, ());
                    self.structure.insert(extent, ());
                }
                for volume in above {
                    self.look(volume, layout.volume(number, volume)?)?;
                }
            }
            Content::Unknown if !above.is_empty() => {
                let context = format!("{} is part of something that is no LVM and no LUKS", node.display());
                return Err(unsupported(context));
            }
            Content::Unknown => {
                layout.everything().into_iter().for_each(|extent| self.suspects.insert(extent, ()));
            }
            Content::Swap => {}
        }
        self.layouts.insert(number, layout);
        Ok(())
    }
}

/// Where partition tables are: at the start or the end of what is in no partition.
fn both_ends(gap: Extent, structure: &mut ExtentSet) {
    let len = TABLE.min(gap.len());
    let ends =
        [Extent::new(gap.start(), len), Extent::new(ByteOffset::new(gap.end().get() - len.get()), len)];
    ends.into_iter().flatten().for_each(|extent| structure.insert(extent, ()));
}

/// The bytes of a device, as they are on it, hashed together.
pub(super) fn digest(disk: &Disk, extents: &ExtentSet) -> Result<[u8; 32]> {
    const STEP: ByteLen = ByteLen::new(1 << 20);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = blocks::AlignedBuffer::new(STEP.as_usize());
    for (extent, ()) in extents.iter() {
        let (start, end) = (extent.start().get(), extent.end().get().min(disk.len().get()));
        hasher.update(&start.to_le_bytes()).update(&end.to_le_bytes());
        let part = Extent::between(ByteOffset::new(start), ByteOffset::new(end));
        for part in part.into_iter().flat_map(|part| part.split(STEP)) {
            hasher.update(disk.read(part, &mut buffer)?);
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sh(script: &str) -> String {
        let output = Command::new("bash").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    struct Loop(String);

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("delpart").args([&self.0, "1"]).output();
            let _ = Command::new("losetup").args(["-d", &self.0]).output();
        }
    }

    fn extents(of: &[(u64, u64)]) -> ExtentSet {
        let extent =
            |(start, end): &(u64, u64)| Extent::between(ByteOffset::new(*start), ByteOffset::new(*end));
        of.iter().filter_map(extent).collect()
    }

    #[test]
    fn a_divided_disk_is_watched_where_it_is_mounted_and_suspected_where_nothing_is() {
        const MIB: u64 = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk").display().to_string();
        let made = format!("truncate -s 64M {file}; losetup --find --show {file}");
        let device = Loop(sh(&made));
        let divided = format!(
            "addpart {0} 1 16384 65536; udevadm settle 2>&- || sleep 0.2; mkfs.ext4 -q {0}p1",
            device.0
        );
        sh(&divided);
        let disk = Disk::open(Path::new(&device.0)).unwrap();
        let survey = Survey::of(&disk).unwrap();
        assert_eq!(survey.witnesses, extents(&[(8 * MIB, 8 * MIB + 4096)]));
        assert_eq!(survey.suspects, extents(&[(0, 8 * MIB), (40 * MIB, 64 * MIB)]));
        let before = digest(&disk, &survey.structure).unwrap();
        assert_eq!(digest(&disk, &survey.structure).unwrap(), before);
        // As a mount does.
        let shown = digest(&disk, &survey.witnesses).unwrap();
        sh(&format!("mkdir {0}/m; mount {1}p1 {0}/m; umount {0}/m", folder.path().display(), device.0));
        assert_ne!(digest(&disk, &survey.witnesses).unwrap(), shown);
        assert_eq!(digest(&disk, &survey.structure).unwrap(), before);
        // Where the header of a GPT is.
        sh(&format!("echo 'EFI PART' | dd of={} bs=512 seek=1 conv=sync,fsync status=none", device.0));
        assert_ne!(digest(&disk, &survey.structure).unwrap(), before, "a partition was made");
    }
}
