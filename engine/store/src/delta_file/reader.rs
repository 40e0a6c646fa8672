//! Reading a delta file back, and believing none of it.

use super::record::{DeltaHeader, HEADER_BYTES, RECORD_BYTES, Record};
use crate::image::ReplayContent;
use crate::journal::location::RecordKind;
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, StorageFile};
use std::sync::Arc;

/// A whole delta file: its records were looked at from the first to the end, their payloads are checked when they are read.
#[derive(Clone, Debug)]
pub struct DeltaFile {
    file: Arc<dyn StorageFile>,
    header: DeltaHeader,
    records: u64,
    covered: ByteLen,
}

/// Its records, one after the other.
#[derive(Debug)]
pub(super) struct DeltaRecords<'a> {
    of: &'a DeltaFile,
    at: ByteOffset,
    left: u64,
    after: ByteOffset,
}

/// An extent of a file, and where its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub extent: Extent,
    pub kind: RecordKind,
    pub payload: ByteOffset,
    crc: u32,
}

impl DeltaFile {
    /// Opens a delta file. `Corrupt`, naming the file and the place, where it is damaged or cut off.
    pub fn open(file: Arc<dyn StorageFile>) -> Result<DeltaFile> {
        let mut header = vec![0; HEADER_BYTES as usize];
        file.read_at(ByteOffset::ZERO, &mut header)?;
        let header = DeltaHeader::decode(&header, file.name())?;
        let mut opened = DeltaFile { file, header, records: u64::MAX, covered: ByteLen::ZERO };
        let mut records = opened.records();
        let (mut count, mut covered) = (0, ByteLen::ZERO);
        let end = loop {
            match records.next_record()? {
                Record::Extent(extent, ..) => {
                    count += 1;
                    covered += extent.len();
                }
                Record::End { records: expected, covered: bytes } => break (expected, bytes),
            }
        };
        if end != (count, covered) {
            let context = format!("{}: {count} records where {} were written", opened.file.name(), end.0);
            return Err(Error::corrupt(context));
        }
        (opened.records, opened.covered) = (count, covered);
        Ok(opened)
    }

    /// What it is about.
    pub fn header(&self) -> &DeltaHeader {
        &self.header
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        self.file.name()
    }

    /// How many records it has.
    pub fn record_count(&self) -> u64 {
        self.records
    }

    /// How many bytes of the disk it says something about.
    pub fn covered(&self) -> ByteLen {
        self.covered
    }

    /// Its records in the order of the disk.
    pub(super) fn records(&self) -> DeltaRecords<'_> {
        DeltaRecords {
            of: self,
            at: ByteOffset::new(HEADER_BYTES),
            left: self.records,
            after: ByteOffset::ZERO,
        }
    }

    /// The content of a record, checked.
    pub(super) fn content(&self, stored: &Stored) -> Result<ReplayContent> {
        let bytes = match stored.kind {
            RecordKind::Zero => return Ok(ReplayContent::Zero),
            RecordKind::Discard => return Ok(ReplayContent::Discard),
            RecordKind::Data => {
                let mut bytes = vec![0; stored.extent.len().as_usize()];
                self.file.read_at(stored.payload, &mut bytes)?;
                bytes
            }
        };
        if blocks::crc32c(&bytes) != stored.crc {
            let (name, at, extent) = (self.file.name(), stored.payload, stored.extent);
            let context = format!("{name}: payload at offset {at}, {extent} of the disk: checksum mismatch");
            return Err(Error::corrupt(context));
        }
        Ok(ReplayContent::Data(bytes))
    }
}

impl DeltaRecords<'_> {
    fn next_record(&mut self) -> Result<Record> {
        let (at, name) = (self.at, self.of.file.name());
        let mut bytes = [0; RECORD_BYTES as usize];
        self.of.file.read_at(at, &mut bytes)?;
        let wrong = || Error::corrupt(format!("{name}: no whole record at offset {at}"));
        let record = Record::decode(&bytes, at).ok_or_else(wrong)?;
        if let Record::Extent(extent, ..) = record {
            if extent.start() < self.after || extent.end() > self.of.header.len.end() {
                return Err(Error::corrupt(format!(
                    "{name}: record at offset {at}: {extent} is out of order"
                )));
            }
            self.after = extent.end();
        }
        let len = ByteLen::new(RECORD_BYTES) + record.payload_len();
        self.at = at.checked_add(len).ok_or_else(wrong)?;
        Ok(record)
    }
}

impl Iterator for DeltaRecords<'_> {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Result<Stored>> {
        self.left = self.left.checked_sub(1)?;
        let payload = self.at.checked_add(ByteLen::new(RECORD_BYTES))?;
        match self.next_record() {
            Ok(Record::Extent(extent, kind, crc)) => Some(Ok(Stored { extent, kind, payload, crc })),
            Ok(Record::End { .. }) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
