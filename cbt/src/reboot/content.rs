//! What a device holds, told by its first bytes.

use blocks::{AlignedBuffer, ByteLen, ByteOffset, Extent};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// How many bytes are looked at.
const HEAD: usize = 64 << 10;
/// Every head that is compared as such: a superblock and what is around it.
const SUPERBLOCK: ByteLen = ByteLen::new(4096);
/// Where LVM keeps its labels and metadata, unless it was told otherwise.
const LVM_HEAD: ByteLen = ByteLen::new(1 << 20);
/// Both headers of LUKS 2 and the key slots.
const LUKS_HEAD: ByteLen = ByteLen::new(16 << 20);

/// What a device holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// A file system of that type, as mount takes it; whoever mounts it for writing changes one of these bytes of the device
    /// before anything else.
    FileSystem(&'static str, Vec<Extent>),
    /// Swap.
    Swap,
    /// Other devices are made of it, by what is written in this.
    Container(Extent),
    /// Something else, or nothing.
    Unknown,
}

impl Content {
    /// Of the device at this node.
    pub fn of(node: &Path) -> io::Result<Content> {
        let device = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(node)?;
        let mut head = AlignedBuffer::new(HEAD);
        let mut filled = 0;
        while filled < HEAD {
            match device.read_at(&mut head[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(Content::of_head(&head))
    }

    fn of_head(head: &[u8]) -> Content {
        let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
        let superblock = || Extent::whole(SUPERBLOCK);
        // Documentation/filesystems/ext4/super.rst: s_magic at 0x38 of the superblock, which is at 1024.
        if has(1024 + 0x38, &[0x53, 0xef]) {
            return Content::FileSystem("ext4", superblock().into_iter().collect());
        }
        if has(0, b"XFSB") {
            let log = log_of_xfs(head);
            // With its log elsewhere nothing here would show a mount that ended in a crash.
            return log.map_or(Content::Unknown, |log| {
                Content::FileSystem("xfs", superblock().into_iter().chain([log]).collect())
            });
        }
        if has(4086, b"SWAPSPACE2") {
            return Content::Swap;
        }
        let container = |len| Extent::whole(len).map_or(Content::Unknown, Content::Container);
        if (0..4).any(|sector| has(sector * 512, b"LABELONE")) {
            return container(LVM_HEAD);
        }
        if has(0, b"LUKS\xba\xbe") {
            return container(LUKS_HEAD);
        }
        Content::Unknown
    }
}

/// Where an XFS has its log: XFS Filesystem Structure, "Superblocks"; numbers are big-endian.
fn log_of_xfs(head: &[u8]) -> Option<Extent> {
    let u64_at = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u64::from(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?)));
    let (log_start, group_blocks, log_blocks) = (u64_at(48)?, u32_at(84)?, u32_at(96)?);
    let (block_log, group_log) = (u32::from(*head.get(120)?), u32::from(*head.get(124)?));
    if log_start == 0 || group_log >= 32 || !(9..=16).contains(&block_log) {
        return None;
    }
    let group = log_start >> group_log;
    let block = group.checked_mul(group_blocks)?.checked_add(log_start & ((1 << group_log) - 1))?;
    let bytes = |blocks: u64| blocks.checked_mul(1 << block_log);
    Extent::new(ByteOffset::new(bytes(block)?), ByteLen::new(bytes(log_blocks)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn made_by(command: &str, arguments: &[&str], mib: u64) -> (Content, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        let done = Command::new(command).args(arguments).arg(&path).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        let head = std::fs::read(&path).unwrap();
        (Content::of_head(&head[..HEAD]), folder)
    }

    #[test]
    fn what_others_made_is_known_by_its_first_bytes() {
        let superblock = Extent::whole(SUPERBLOCK).unwrap();
        assert_eq!(made_by("mkfs.ext4", &["-q"], 16).0, Content::FileSystem("ext4", vec![superblock]));
        assert_eq!(made_by("mkswap", &[], 16).0, Content::Swap);
        assert_eq!(Content::of_head(&[0; HEAD]), Content::Unknown);
    }

    #[test]
    fn the_log_of_an_xfs_is_where_its_records_are() {
        let (content, folder) = made_by("mkfs.xfs", &["-q"], 400);
        let Content::FileSystem("xfs", extents) = content else { panic!("{content:?}") };
        let bytes = std::fs::read(folder.path().join("device")).unwrap();
        let log = &bytes[extents[1].start().get() as usize..extents[1].end().get() as usize];
        // A record's header, which mkfs writes: XLOG_HEADER_MAGIC_NUM.
        assert_eq!(log[..4], 0xfeed_babe_u32.to_be_bytes());
        assert!(log.len() >= 8 << 20);
    }
}
