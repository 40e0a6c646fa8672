//! Reading a whole log through and checking every record of it, also behind a damaged one.

use super::location::RecordKind;
use super::record::{HEADER_BYTES, LogIdentity, PAYLOAD_BYTES_MAX, RecordHeader};
use blocks::{ByteLen, ByteOffset, Result, StorageFile};

/// How much is read at a time.
const STEP_BYTES: u64 = 1 << 20;

/// What one look at a log comes to, in the order of the file.
pub(crate) enum LogPart<'a> {
    /// A record's payload, whatever it is worth.
    Payload { at: ByteOffset, bytes: &'a [u8], header: RecordHeader },
    /// No record is found from here up to there: the header of the first one is damaged.
    NoRecord { at: ByteOffset, until: ByteOffset },
}

/// Calls `found` with every part of the log up to `len`. `about_to_read` is told of each piece before it is read, and ends
/// the work by an error.
pub(crate) fn walk_log(
    file: &dyn StorageFile,
    identity: LogIdentity,
    len: ByteOffset,
    about_to_read: &mut dyn FnMut(ByteLen) -> Result<()>,
    found: &mut dyn FnMut(LogPart<'_>) -> Result<()>,
) -> Result<()> {
    let mut window = Window { file, end: len, start: ByteOffset::ZERO, bytes: Vec::new() };
    let mut at = ByteOffset::ZERO;
    let mut lost: Option<ByteOffset> = None;
    while at < len {
        let record = match window.get(at, HEADER_BYTES as u64, about_to_read)? {
            Some(bytes) => bytes.first_chunk().and_then(|header| RecordHeader::decode(header, identity, at)),
            None => None,
        };
        let payload_at = at + ByteLen::new(HEADER_BYTES as u64);
        let Some(header) = record
            .filter(|header| payload_at.checked_add(header.payload_len()).is_some_and(|end| end <= len))
        else {
            lost = lost.or(Some(at));
            at = payload_at;
            continue;
        };
        if let Some(lost) = lost.take() {
            found(LogPart::NoRecord { at: lost, until: at })?;
        }
        at = payload_at + header.payload_len();
        if header.kind == RecordKind::Data
            && let Some(bytes) = window.get(payload_at, header.payload_len().get(), about_to_read)?
        {
            found(LogPart::Payload { at: payload_at, bytes, header })?;
        }
    }
    match lost {
        Some(lost) => found(LogPart::NoRecord { at: lost, until: len }),
        None => Ok(()),
    }
}

struct Window<'a> {
    file: &'a dyn StorageFile,
    end: ByteOffset,
    start: ByteOffset,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes from `at` on; `None` where the log ends before. `len` is at most a payload's.
    fn get(
        &mut self,
        at: ByteOffset,
        len: u64,
        about_to_read: &mut dyn FnMut(ByteLen) -> Result<()>,
    ) -> Result<Option<&[u8]>> {
        debug_assert!(len <= PAYLOAD_BYTES_MAX);
        let Some(end) = at.checked_add(ByteLen::new(len)).filter(|end| *end <= self.end) else {
            return Ok(None);
        };
        if at < self.start || end > self.start + ByteLen::of(&self.bytes) {
            let ahead = ByteLen::new((self.end - at).get().min(STEP_BYTES));
            about_to_read(ahead)?;
            self.bytes.resize(ahead.as_usize(), 0);
            self.file.read_at(at, &mut self.bytes)?;
            self.start = at;
        }
        let from = (at - self.start).as_usize();
        Ok(self.bytes.get(from..from + ByteLen::new(len).as_usize()))
    }
}
