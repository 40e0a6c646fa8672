//! The writes of a sealed log in their order, with what each says of itself.

use super::location::Location;
use super::log::location;
use super::record::{HEADER_BYTES, LogIdentity};
use super::recovery::Window;
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, StorageFile, WriteTime};

/// The writes of a log that is sealed and so long, from the first on, for as long as `wants` them; each with all its pieces
/// and the time of its completion. Reads headers, no payloads. `Corrupt`: damage.
pub(crate) fn read_writes(
    file: &dyn StorageFile,
    identity: LogIdentity,
    len: ByteLen,
    mut wants: impl FnMut(Option<WriteTime>, &[(Extent, Location)]) -> bool,
) -> Result<()> {
    let file_len = ByteOffset::ZERO + len;
    let mut window = Window::new(file, file_len);
    let mut at = ByteOffset::ZERO;
    let mut pieces = Vec::new();
    while at < file_len {
        let Some(header) = window.header(at, identity)? else {
            let context = format!("{}: damaged at offset {at}: no whole record there", file.name());
            return Err(Error::corrupt(context));
        };
        let payload = at + ByteLen::new(HEADER_BYTES as u64);
        pieces.push((header.extent, location(&header, payload)));
        at = payload + header.payload_len();
        if header.last {
            if !wants(header.time, &pieces) {
                return Ok(());
            }
            pieces.clear();
        }
    }
    Ok(())
}
