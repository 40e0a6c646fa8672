//! Reading a log back after a restart.
//!
//! Records are read from the start. The first one that is not whole ends the log: it was being written when the end
//! came, unless a record further on says that the log was already on the medium past that point. Then it is damage,
//! which is never skipped. Payloads below the highest `synced_to` are left to their readers to check, so that
//! opening does not read data.

use super::location::Location;
use super::log::location;
use super::record::{HEADER_BYTES, LogIdentity, RecordHeader};
use blocks::{
    ByteLen, ByteOffset, Error, Extent, ExtentMap, PlantedBug, Result, Seq, StorageFile, WriteTime,
};

/// What a log holds.
#[derive(Debug)]
pub(crate) struct RecoveredLog {
    pub map: ExtentMap<Location>,
    /// Where the last whole write ends; what lies behind is to be cut.
    pub len: ByteOffset,
    /// Up to here a completed sync has put it on the medium, as far as records tell.
    pub synced_to: ByteOffset,
    /// The number of the last whole write; 0 where there is none.
    pub last_seq: Seq,
    /// The highest time of a whole write.
    pub last_time: Option<WriteTime>,
    /// How many bytes lie behind `len`.
    pub torn: ByteLen,
}

/// What is read of a log at a time.
pub(super) struct Window<'a> {
    file: &'a dyn StorageFile,
    file_len: ByteOffset,
    start: ByteOffset,
    bytes: Vec<u8>,
    /// How much is read ahead at a time.
    ahead: u64,
}

/// Reads the log of a delta that was open. Does not change the file. `Corrupt`: damage in the middle.
pub(crate) fn recover(file: &dyn StorageFile, identity: LogIdentity) -> Result<RecoveredLog> {
    let file_len = file.len()?.end();
    let mut window = Window::new(file, file_len);
    let mut log = RecoveredLog {
        map: ExtentMap::new(),
        len: ByteOffset::ZERO,
        synced_to: ByteOffset::ZERO,
        last_seq: Seq(0),
        last_time: None,
        torn: ByteLen::ZERO,
    };
    let mut synced_to = synced_high_mark(&mut window, file_len, identity)?;
    let mut at = ByteOffset::ZERO;
    let mut pending: Vec<(Extent, Location)> = Vec::new();
    while let Some(header) = window.header(at, identity)? {
        let payload = at + ByteLen::new(HEADER_BYTES as u64);
        if payload.checked_add(header.payload_len()).is_none_or(|end| end > file_len) {
            break;
        }
        if at >= synced_to && !payload_is_whole(file, payload, &header)? {
            break;
        }
        pending.push((header.extent, location(&header, payload)));
        at = payload + header.payload_len();
        if header.last {
            pending.drain(..).for_each(|(extent, location)| log.map.insert(extent, location));
            (log.len, log.last_seq) = (at, header.seq);
            log.last_time = log.last_time.max(header.time);
        }
    }
    if at < file_len {
        synced_to = synced_to.max(synced_behind(&mut window, at, identity)?);
    }
    if log.len < synced_to {
        let name = file.name();
        let context = format!(
            "{name}: damaged at offset {at}: no whole record there, although the log was on the medium up to \
             {synced_to}"
        );
        return Err(Error::corrupt(context));
    }
    log.synced_to = synced_to;
    log.torn = file_len - log.len;
    if !log.torn.is_zero() {
        check_before_cutting(&mut window, &log, identity)?;
    }
    Ok(log)
}

/// The tail that is about to be cut may hold the only header that tells how far the log was synced. The next recovery
/// would then take rot in a payload before that for a torn tail, so such payloads are read now.
fn check_before_cutting(window: &mut Window<'_>, log: &RecoveredLog, identity: LogIdentity) -> Result<()> {
    let known = synced_high_mark(window, log.len, identity)?;
    let mut at = ByteOffset::ZERO;
    while at < log.synced_to
        && let Some(header) = window.header(at, identity)?
    {
        let payload = at + ByteLen::new(HEADER_BYTES as u64);
        if at >= known && !payload_is_whole(window.file, payload, &header)? {
            let name = window.file.name();
            let context =
                format!("{name}: damaged at offset {at}: the payload of a record that was on the medium");
            return Err(Error::corrupt(context));
        }
        at = payload + header.payload_len();
    }
    Ok(())
}

/// How far the whole headers from the start up to `end` say that the log was synced.
fn synced_high_mark(window: &mut Window<'_>, end: ByteOffset, identity: LogIdentity) -> Result<ByteOffset> {
    let mut at = ByteOffset::ZERO;
    let mut high = ByteOffset::ZERO;
    while at < end
        && let Some(header) = window.header(at, identity)?
    {
        high = high.max(header.synced_to);
        match at.checked_add(ByteLen::new(HEADER_BYTES as u64) + header.payload_len()) {
            Some(next) => at = next,
            None => break,
        }
    }
    Ok(high)
}

/// The same for headers anywhere behind `from`, where a bad record has made the chain of records end.
fn synced_behind(window: &mut Window<'_>, from: ByteOffset, identity: LogIdentity) -> Result<ByteOffset> {
    window.ahead = 1 << 20;
    let step = ByteLen::new(HEADER_BYTES as u64);
    let mut high = ByteOffset::ZERO;
    let mut at = from + step;
    while at < window.file_len {
        if let Some(header) = window.header(at, identity)? {
            high = high.max(header.synced_to);
        }
        at += step;
    }
    Ok(high)
}

fn payload_is_whole(file: &dyn StorageFile, at: ByteOffset, header: &RecordHeader) -> Result<bool> {
    let mut payload = vec![0; header.payload_len().as_usize()];
    file.read_at(at, &mut payload)?;
    Ok(payload.is_empty()
        || PlantedBug::TornRecordTaken.is_planted()
        || blocks::crc32c(&payload) == header.payload_crc)
}

impl<'a> Window<'a> {
    /// One that looks for headers: payloads between them are passed over.
    pub(super) fn new(file: &'a dyn StorageFile, file_len: ByteOffset) -> Window<'a> {
        Window { file, file_len, start: ByteOffset::ZERO, bytes: Vec::new(), ahead: 4 << 10 }
    }

    /// The header at `at`; `None` where there is none.
    pub(super) fn header(&mut self, at: ByteOffset, identity: LogIdentity) -> Result<Option<RecordHeader>> {
        let Some(end) = at.checked_add(ByteLen::new(HEADER_BYTES as u64)).filter(|end| *end <= self.file_len)
        else {
            return Ok(None);
        };
        if at < self.start || end > self.start + ByteLen::of(&self.bytes) {
            let len = (self.file_len - at).get().min(self.ahead);
            self.bytes.resize(ByteLen::new(len).as_usize(), 0);
            self.file.read_at(at, &mut self.bytes)?;
            self.start = at;
        }
        let from = (at - self.start).as_usize();
        let Some(bytes) = self.bytes.get(from..).and_then(|rest| rest.first_chunk::<HEADER_BYTES>()) else {
            return Ok(None);
        };
        Ok(RecordHeader::decode(bytes, identity, at))
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
