//! Compressed clusters: read, never written.

use super::header::{Compression, Header};
use blocks::{ByteLen, Error, Extent, Result, StorageFile};
use std::io::Read;

/// The content of the cluster whose compressed bytes are in `extent`, which may run past what was really written: its
/// length counts whole sectors.
pub(super) fn read(file: &dyn StorageFile, header: &Header, extent: Extent) -> Result<Vec<u8>> {
    let damaged = |error: &dyn std::fmt::Display| {
        Error::corrupt(format!("{}: the compressed cluster at {extent}: {error}", file.name()))
    };
    let inside = Extent::whole(file.len()?).and_then(|whole| whole.intersect(extent));
    let inside = inside.ok_or_else(|| damaged(&"it lies past the file's end"))?;
    let mut packed = vec![0; inside.len().as_usize()];
    file.read_at(inside.start(), &mut packed)?;
    let mut cluster = vec![0; ByteLen::new(header.cluster.bytes()).as_usize()];
    match header.compression {
        Compression::Deflate => flate2::read::DeflateDecoder::new(&*packed).read_exact(&mut cluster),
        Compression::Zstd => match ruzstd::decoding::StreamingDecoder::new(&*packed) {
            Ok(mut decoder) => decoder.read_exact(&mut cluster),
            Err(error) => return Err(damaged(&error)),
        },
    }
    .map_err(|error| damaged(&error))?;
    Ok(cluster)
}
