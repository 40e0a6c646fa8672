//! Appending to a log.

use super::location::{Location, LogLocation, RecordKind};
use super::pack;
use super::packer::Packer;
use super::record::{EXTENT_BYTES_MAX, HEADER_BYTES, LogIdentity, PAYLOAD_BYTES_MAX, RecordHeader};
use super::straight::Straight;
use blocks::{ByteLen, ByteOffset, Extent, Result, SECTOR_BYTES, Seq, StorageFile, WriteTime};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A write, cut into what becomes one record each, with the checksums already taken.
#[derive(Debug)]
pub(crate) struct PreparedWrite<'a> {
    pieces: Vec<PreparedPiece<'a>>,
    time: Option<WriteTime>,
}

#[derive(Debug)]
struct PreparedPiece<'a> {
    kind: RecordKind,
    extent: Extent,
    /// As it is stored.
    payload: Cow<'a, [u8]>,
    packed: u8,
    crc: u32,
}

/// The end of a log that is being appended to.
#[derive(Debug)]
pub(crate) struct LogWriter {
    file: Arc<dyn StorageFile>,
    identity: LogIdentity,
    len: ByteOffset,
    straight: Straight,
    /// How much of the last append went straight to the medium, and how long that took.
    went_straight: Option<(ByteLen, Duration)>,
}

impl<'a> PreparedWrite<'a> {
    /// `extent` gets `data`, which is as long; compressed where the packer says so.
    pub(crate) fn data(extent: Extent, data: &'a [u8], packer: &Packer) -> PreparedWrite<'a> {
        let piece = |part: Extent| {
            let from = (part.start() - extent.start()).as_usize();
            let payload = &data[from..from + part.len().as_usize()];
            let (payload, packed) = match packer.pack(payload) {
                Some(stored) => {
                    let units = pack::units(&stored);
                    (Cow::Owned(stored), units)
                }
                None => (Cow::Borrowed(payload), 0),
            };
            let crc = blocks::crc32c(&payload);
            PreparedPiece { kind: RecordKind::Data, extent: part, payload, packed, crc }
        };
        let pieces = extent.split(ByteLen::new(PAYLOAD_BYTES_MAX)).map(piece).collect();
        PreparedWrite { pieces, time: None }
    }

    /// `extent` gets no bytes.
    pub(crate) fn empty(extent: Extent, kind: RecordKind) -> PreparedWrite<'a> {
        let piece = |extent| PreparedPiece { kind, extent, payload: Cow::Borrowed(&[]), packed: 0, crc: 0 };
        PreparedWrite { pieces: extent.split(EXTENT_BYTES_MAX).map(piece).collect(), time: None }
    }

    /// The same, completed at that time.
    pub(crate) fn at(self, time: Option<WriteTime>) -> PreparedWrite<'a> {
        PreparedWrite { time, ..self }
    }

    /// How much longer it makes a log.
    pub(crate) fn log_len(&self) -> ByteLen {
        self.pieces.iter().map(|piece| ByteLen::new((HEADER_BYTES + piece.payload.len()) as u64)).sum()
    }
}

impl LogWriter {
    /// Appends to `file` from `len` on.
    pub(crate) fn new(file: Arc<dyn StorageFile>, identity: LogIdentity, len: ByteOffset) -> LogWriter {
        LogWriter { file, identity, len, straight: Straight::new(None), went_straight: None }
    }

    /// Has appends of at least `long` bytes go straight to the medium once they come in a row.
    pub(crate) fn with_straight(mut self, long: ByteLen) -> LogWriter {
        self.straight = Straight::new(Some(long));
        self
    }

    /// The length of the last append and how long it took, if it went straight to the medium.
    pub(crate) fn went_straight(&self) -> Option<(ByteLen, Duration)> {
        self.went_straight
    }

    /// To be told at each sync: gives back memory that is not needed.
    pub(crate) fn rest(&mut self) {
        self.straight.rest();
    }

    /// Makes the file as long as the log, before it is published. Not synced.
    pub(crate) fn trim(&mut self) -> Result<()> {
        self.straight.trim(&*self.file, self.len)
    }

    pub(crate) fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    pub(crate) fn len(&self) -> ByteOffset {
        self.len
    }

    /// Appends all records of one write in one go; returns where its pieces are. Not synced. After an error the log
    /// must not be appended to any more.
    pub(crate) fn append(
        &mut self,
        seq: Seq,
        write: &PreparedWrite<'_>,
        synced_to: ByteOffset,
    ) -> Result<Vec<(Extent, Location)>> {
        let mut headers = Vec::with_capacity(write.pieces.len());
        let mut locations = Vec::with_capacity(write.pieces.len());
        let mut at = self.len;
        for (index, piece) in write.pieces.iter().enumerate() {
            let header = RecordHeader {
                kind: piece.kind,
                last: index + 1 == write.pieces.len(),
                seq,
                extent: piece.extent,
                synced_to,
                payload_crc: piece.crc,
                packed: piece.packed,
                time: write.time,
            };
            headers.push(header.encode(self.identity, at));
            let payload = at + ByteLen::new(HEADER_BYTES as u64);
            locations.push((piece.extent, location(&header, payload)));
            at = payload + header.payload_len();
        }
        let parts: Vec<&[u8]> = headers
            .iter()
            .zip(&write.pieces)
            .flat_map(|(header, piece)| [&header[..], &piece.payload])
            .collect();
        self.went_straight = None;
        if self.straight.takes(&*self.file, self.len, at - self.len) {
            let begun = Instant::now();
            self.straight.append(&*self.file, &parts)?;
            self.went_straight = Some((at - self.len, begun.elapsed()));
        } else {
            self.straight.append_usually(&*self.file, self.len, &parts)?;
        }
        self.len = at;
        Ok(locations)
    }
}

/// Where the bytes are that a record at hand describes.
pub(crate) fn location(header: &RecordHeader, payload: ByteOffset) -> Location {
    match header.kind {
        RecordKind::Data => Location::Log(LogLocation {
            payload,
            crc: header.payload_crc,
            sectors: u8::try_from(header.extent.len().get() / SECTOR_BYTES)
                .expect("a payload has at most 128 sectors"),
            skip: 0,
            packed: header.packed,
        }),
        kind => Location::Empty(kind),
    }
}
