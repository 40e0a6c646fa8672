//! The two headers: which of them counts, whether the log has to be replayed, and how they are replaced.

use super::super::bytes::{le16, le32, le64, put};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

pub(super) const HEADER_STARTS: [ByteOffset; 2] = [ByteOffset::new(64 << 10), ByteOffset::new(128 << 10)];
const HEADER_BYTES: usize = 4096;
const CHECKSUM_AT: usize = 4;
const SIGNATURE: [u8; 4] = *b"head";
const MIB: BlockShift = BlockShift::new(20).expect("1 MiB is a block size");
/// Everybody's log has 1 MiB. More is read into memory up to this bound.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// A header that was found valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    /// Changes whenever somebody opens the file and writes.
    pub(super) file_write: [u8; 16],
    /// Changes whenever the disk's content may; a child remembers it.
    pub(super) data_write: [u8; 16],
    /// Which entries of the log count; all zero: none.
    pub(super) log_id: [u8; 16],
    pub(super) log: Extent,
}

impl Header {
    /// Whether what the log holds comes before what the file holds.
    pub(super) fn has_log(&self) -> bool {
        self.log_id != [0; 16]
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &SIGNATURE);
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write);
        put(&mut bytes, 32, &self.data_write);
        put(&mut bytes, 48, &self.log_id);
        put(&mut bytes, 66, &1_u16.to_le_bytes());
        let log_bytes = u32::try_from(self.log.len().get()).expect("a log has at most 16 MiB");
        put(&mut bytes, 68, &log_bytes.to_le_bytes());
        put(&mut bytes, 72, &self.log.start().get().to_le_bytes());
        let sum = checksum(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header> {
        if bytes[..4] != SIGNATURE {
            return Err(Error::corrupt("its signature is missing"));
        }
        if le32(bytes, CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) {
            return Err(Error::corrupt("checksum mismatch"));
        }
        let (log_version, version) = (le16(bytes, 64), le16(bytes, 66));
        if log_version != 0 || version != 1 {
            let context = format!("version {version} with a log of version {log_version} is not known");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let log_len = ByteLen::new(u64::from(le32(bytes, 68)));
        let log = Extent::new(ByteOffset::new(le64(bytes, 72)), log_len);
        let log = log.ok().filter(|log| log.is_aligned(MIB) && log.start().get() >= MIB.bytes());
        let Some(log) = log.filter(|log| log.len().get() <= LOG_BYTES_MAX) else {
            return Err(Error::corrupt(format!("a log of {log_len} bytes at {}", le64(bytes, 72))));
        };
        let id = |at: usize| bytes[at..at + 16].try_into().expect("16 bytes");
        let sequence = le64(bytes, 8);
        Ok(Header { sequence, file_write: id(16), data_write: id(32), log_id: id(48), log })
    }
}

/// The header that counts, and its place.
#[derive(Debug, Clone)]
pub(super) struct Headers {
    pub(super) current: Header,
    /// 0 or 1.
    slot: usize,
    /// The other one is valid too.
    pub(super) both_valid: bool,
}

impl Headers {
    /// The headers of a new file, of which only the first is written.
    pub(super) fn new(current: Header) -> Headers {
        Headers { current, slot: 0, both_valid: false }
    }

    /// Reads both and takes the newer one. `Corrupt` where neither is valid; a header that the medium does not give is
    /// an error, since it may be the newer one.
    pub(super) fn read(file: &dyn StorageFile) -> Result<Headers> {
        let mut found = Vec::new();
        let mut first_error = None;
        for (slot, start) in HEADER_STARTS.into_iter().enumerate() {
            let mut bytes = [0; HEADER_BYTES];
            if file.len()? < ByteLen::new(start.get() + HEADER_BYTES as u64) {
                return Err(Error::corrupt(format!("{}: too short for a VHDX", file.name())));
            }
            file.read_at(start, &mut bytes)?;
            match Header::decode(&bytes) {
                Ok(header) => found.push((header, slot)),
                Err(error) => {
                    let error = error.context(format!("{}: header at {start}", file.name()));
                    first_error.get_or_insert(error);
                }
            }
        }
        let both_valid = found.len() == 2;
        let newest = found.into_iter().max_by_key(|(header, _)| header.sequence);
        match (newest, first_error) {
            (Some((current, slot)), _) => Ok(Headers { current, slot, both_valid }),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::corrupt(format!("{}: no header", file.name()))),
        }
    }

    /// Replaces the header: the other slot gets the next one, and is on the medium when this returns. The current one is
    /// not touched, so that a valid header exists at any moment.
    pub(super) fn replace(&mut self, file: &dyn StorageFile, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut next = self.current.clone();
        change(&mut next);
        next.sequence = next.sequence.checked_add(1).ok_or_else(|| {
            Error::corrupt(format!("{}: the number of its header cannot rise any more", file.name()))
        })?;
        let slot = 1 - self.slot;
        file.write_at(HEADER_STARTS[slot], &next.encode())?;
        file.sync()?;
        (self.current, self.slot, self.both_valid) = (next, slot, true);
        Ok(())
    }
}

/// CRC32C with the checksum's own four bytes taken as zero.
pub(super) fn checksum(bytes: &[u8], checksum_at: usize) -> u32 {
    let before = blocks::crc32c(&bytes[..checksum_at]);
    let zeroes = blocks::crc32c_append(before, &[0; 4]);
    blocks::crc32c_append(zeroes, &bytes[checksum_at + 4..])
}
