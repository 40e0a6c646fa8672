//! Writing a volume into a new image file.

use crate::convert_volume;
use crate::image::{ImageKind, NewImage, create_image_with, create_stream, write_stream};
use blocks::{ByteLen, Result, Storage, StorageFile, Volume};

/// Makes `name` an image of that kind with the disk of `from`, with `threads` threads, durably; after an error no file is
/// left behind. Holes and zeroes take no room. `from` must not change meanwhile.
///
/// Where `progress` says `false`, this ends with `Cancelled`. Errors: as [`ImageKind::check_len`], before anything is
/// created; `AlreadyExists`; those of reading and writing.
pub fn export_volume(
    from: &dyn Volume,
    storage: &dyn Storage,
    name: &str,
    kind: ImageKind,
    threads: usize,
    progress: &(dyn Fn(ByteLen, ByteLen) -> bool + Sync),
) -> Result<()> {
    kind.check_len(from.len())?;
    let ImageKind::Image { format, fixed } = kind else {
        create_stream(storage, name, from, threads, progress)?;
        return storage.sync_dir(dir_of(name)).map(drop);
    };
    let new = NewImage { fixed, filled_once: true, ..NewImage::new(format, from.len()) };
    let image = create_image_with(storage, name, new)?;
    let written = convert_volume(from, &*image, threads, progress);
    drop(image);
    let written = written.and_then(|()| storage.sync_dir(dir_of(name)).map(drop));
    if written.is_err() {
        for file in new.files(name) {
            if let Err(error) = storage.remove(&file) {
                tracing::warn!(%error, "half an image is left behind");
            }
        }
    }
    written
}

/// Writes a stream-optimized VMDK of `from` into the empty file, from its start to its end and each byte once, with
/// `threads` threads that compress, and syncs it. `from` must not change meanwhile.
///
/// Where `progress` says `false`, this ends with `Cancelled`. Errors: as [`ImageKind::check_len`], before anything is
/// written; those of reading and writing. Whoever made the file removes it then.
pub fn export_stream(
    from: &dyn Volume,
    file: &dyn StorageFile,
    threads: usize,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    ImageKind::VmdkStream.check_len(from.len())?;
    write_stream(from, file, threads, progress)
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}
