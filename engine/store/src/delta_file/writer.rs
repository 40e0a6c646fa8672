//! Writing a delta file, extent by extent in the order of the disk.

use super::record::{DeltaHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX, RECORD_BYTES, Record};
use crate::image::ReplayContent;
use crate::journal::location::RecordKind;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile, Synced};
use std::sync::Arc;

/// A delta file in the making. Until it is finished it has no end, and no reader takes it for whole.
#[derive(Debug)]
pub(crate) struct DeltaWriter {
    file: Arc<dyn StorageFile>,
    header: DeltaHeader,
    at: ByteOffset,
    /// Where the last extent ended.
    after: ByteOffset,
    records: u64,
    covered: ByteLen,
}

impl DeltaWriter {
    /// Writes into `file`, which is empty.
    pub(crate) fn new(file: Arc<dyn StorageFile>, header: DeltaHeader) -> Result<DeltaWriter> {
        file.write_at(ByteOffset::ZERO, &header.encode())?;
        let (at, after) = (ByteOffset::new(HEADER_BYTES), ByteOffset::ZERO);
        Ok(DeltaWriter { file, header, at, after, records: 0, covered: ByteLen::ZERO })
    }

    /// The next extent; it starts at or behind the end of the one before and lies on the disk.
    pub(crate) fn push(&mut self, extent: Extent, content: &ReplayContent) -> Result<()> {
        if extent.start() < self.after || extent.end() > self.header.len.end() {
            let context = format!("{}: {extent} is out of order or not on the disk", self.file.name());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        self.after = extent.end();
        match content {
            ReplayContent::Zero => self.record(extent, RecordKind::Zero, &[]),
            ReplayContent::Discard => self.record(extent, RecordKind::Discard, &[]),
            ReplayContent::Data(bytes) => {
                for part in extent.split(ByteLen::new(PAYLOAD_BYTES_MAX)) {
                    let from = (part.start() - extent.start()).as_usize();
                    self.record(part, RecordKind::Data, &bytes[from..from + part.len().as_usize()])?;
                }
                Ok(())
            }
        }
    }

    /// Ends the file and syncs it; how long it is. Its folder is not synced.
    pub(crate) fn finish(mut self) -> Result<(ByteLen, Synced)> {
        let end = Record::End { records: self.records, covered: self.covered };
        self.file.write_at(self.at, &end.encode(self.at))?;
        self.at += ByteLen::new(RECORD_BYTES);
        Ok((self.at - ByteOffset::ZERO, self.file.sync()?))
    }

    fn record(&mut self, extent: Extent, kind: RecordKind, payload: &[u8]) -> Result<()> {
        let crc = if payload.is_empty() { 0 } else { blocks::crc32c(payload) };
        let header = Record::Extent(extent, kind, crc).encode(self.at);
        self.file.write_vectored_at(self.at, &[&header, payload])?;
        self.at += ByteLen::new(RECORD_BYTES) + ByteLen::of(payload);
        self.records += 1;
        self.covered += extent.len();
        Ok(())
    }
}
