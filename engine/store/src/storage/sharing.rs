//! Making bytes of one file those of another without copying them.

use blocks::{AlignedBuffer, ByteLen, ByteOffset, FileRange};
use rustix::fs::{copy_file_range, fstatfs};
use std::fs::File;

/// File systems whose files can share room on the medium: XFS, btrfs, bcachefs, OCFS2, and over the network NFS and CIFS,
/// whose servers may. Elsewhere the kernel would copy, which we do faster ourselves.
const MAGICS: [u64; 7] =
    [0x5846_5342, 0x9123_683e, 0xca45_1a4e, 0x7461_636f, 0x6969, 0xff53_4d42, 0xfe53_4d42];

/// Whether the file's file system can share.
fn shares(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| MAGICS.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

/// As `StorageFile::share`. What was begun and not ended is `false` too: the caller writes all of it again.
pub(super) fn share(to: &File, at: ByteOffset, from: &FileRange, len: ByteLen) -> bool {
    let unit = AlignedBuffer::ALIGNMENT as u64;
    let aligned = [at.get(), from.offset.get(), len.get()].iter().all(|number| number.is_multiple_of(unit));
    if !aligned || !shares(to) {
        return false;
    }
    let (mut source, mut target, mut left) = (from.offset.get(), at.get(), len.get());
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        match copy_file_range(&*from.file, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) | Err(_) => return false,
            Ok(done) => left -= done as u64,
        }
    }
    true
}
