//! Long appends in a row, straight to the medium.
//!
//! What a guest writes at length (a restore, an installation) is read again much later or never, and is put on the medium
//! when the part is sealed at the latest. The page cache takes a copy of it into fresh pages, which can cost more than the medium
//! does, and lets a seal wait for half a gigabyte at once. So after a while of nothing but long writes their records go past it.
//!
//! Records end anywhere, what goes past the cache ends with a block. So the last block is kept here, written filled up with
//! zeroes, and written again with what follows. Zeroes are no record: whoever opens the log cuts them off like a torn tail.
//!
//! ```text
//!   the log            ...record|record.......|
//!   on the medium      ...record|record.......|000|     up to a block's end
//!   the next append              |.......record....|00| from that block's start
//! ```

use blocks::{AlignedBuffer, ByteLen, ByteOffset, Result, StorageFile, is_zero};

/// So many times the length of a long append has to come in a row.
const STREAK: u64 = 16;
/// What goes to the medium at once: a guest's longest usual write, 1 MiB, with its headers and the block before it.
const PIECE_BYTES: usize = 2 << 20;
const BLOCK_BYTES: usize = AlignedBuffer::ALIGNMENT;

/// What a log has come to in that respect.
#[derive(Debug)]
pub(crate) struct Straight {
    /// From where on an append is long; `None` where all go through the cache.
    long: Option<ByteLen>,
    /// Bytes of long appends since the last short one.
    streak: u64,
    /// What is written next is put together here; only while long appends come.
    buffer: Option<AlignedBuffer>,
    /// Whether one came since the last [`Straight::rest`].
    used: bool,
    /// Where the last append went straight.
    tail: Option<Tail>,
    /// Whether the file may end with zeroes that are not the log's.
    padded: bool,
}

/// The log's last block, as far as it is there.
#[derive(Debug)]
struct Tail {
    /// Where in the file it starts.
    at: ByteOffset,
    bytes: Vec<u8>,
}

impl Straight {
    pub(crate) fn new(long: Option<ByteLen>) -> Straight {
        Straight { long, streak: 0, buffer: None, used: false, tail: None, padded: false }
    }

    /// Whether an append of `len` bytes at `end`, the log's, goes straight. It must be made that way then.
    pub(crate) fn takes(&mut self, file: &dyn StorageFile, end: ByteOffset, len: ByteLen) -> bool {
        let Some(long) = self.long else { return false };
        if len < long {
            self.streak = 0;
            return false;
        }
        if self.streak < STREAK * long.get() {
            self.streak += len.get();
            return false;
        }
        if file.write_past_cache() {
            // A block that cannot be read is its readers' affair, and keeps nobody from appending.
            self.tail = self.tail.take().or_else(|| Tail::read(file, end).ok());
            if self.tail.is_some() {
                return true;
            }
        }
        self.long = None;
        false
    }

    /// Writes the parts one after the other at the log's end, straight to the medium. After an error the log must not be
    /// appended to any more, here and below.
    pub(crate) fn append(&mut self, file: &dyn StorageFile, parts: &[&[u8]]) -> Result<()> {
        let Tail { mut at, bytes } = self.tail.take().expect("it takes the append");
        self.used = true;
        let buffer = self.buffer.get_or_insert_with(|| AlignedBuffer::new(PIECE_BYTES));
        buffer[..bytes.len()].copy_from_slice(&bytes);
        let mut filled = bytes.len();
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let (taken, after) = rest.split_at(rest.len().min(PIECE_BYTES - filled));
                buffer[filled..filled + taken.len()].copy_from_slice(taken);
                (filled, rest) = (filled + taken.len(), after);
                if filled == PIECE_BYTES {
                    file.write_at(at, buffer)?;
                    (at, filled) = (at + ByteLen::new(PIECE_BYTES as u64), 0);
                }
            }
        }
        let (whole, end) = (filled / BLOCK_BYTES * BLOCK_BYTES, filled.next_multiple_of(BLOCK_BYTES));
        buffer[filled..end].fill(0);
        if end > 0 {
            file.write_at(at, &buffer[..end])?;
        }
        self.padded |= filled < end;
        self.tail = Some(Tail { at: at + ByteLen::new(whole as u64), bytes: buffer[whole..filled].to_vec() });
        Ok(())
    }

    /// The same through the cache, at `end`. What the last block has is written with it, so that it does not count whether the
    /// kernel holds that block as it is on the medium.
    pub(crate) fn append_usually(
        &mut self,
        file: &dyn StorageFile,
        end: ByteOffset,
        parts: &[&[u8]],
    ) -> Result<()> {
        match self.tail.take() {
            Some(tail) => {
                let mut all = vec![tail.bytes.as_slice()];
                all.extend_from_slice(parts);
                file.write_vectored_at(tail.at, &all)
            }
            None => file.write_vectored_at(end, parts),
        }
    }

    /// To be told now and then: gives back memory where no long append came since the last time.
    pub(crate) fn rest(&mut self) {
        if !std::mem::take(&mut self.used) {
            self.buffer = None;
        }
    }

    /// Cuts off what is behind the log's end, before that is published as the file's.
    pub(crate) fn trim(&mut self, file: &dyn StorageFile, end: ByteOffset) -> Result<()> {
        (self.buffer, self.tail) = (None, None);
        if std::mem::take(&mut self.padded) {
            file.set_len(end - ByteOffset::ZERO)?;
        }
        Ok(())
    }
}

impl Tail {
    fn read(file: &dyn StorageFile, end: ByteOffset) -> Result<Tail> {
        let len = ByteLen::new(end.get() % BLOCK_BYTES as u64);
        let at = ByteOffset::new(end.get() - len.get());
        let mut bytes = vec![0; len.as_usize()];
        file.read_at(at, &mut bytes)?;
        Ok(Tail { at, bytes })
    }
}

/// Whether what lies behind a log is what fills up its last block where appends went straight.
pub(crate) fn is_padding(file: &dyn StorageFile, end: ByteOffset, behind: ByteLen) -> Result<bool> {
    if behind.as_usize() >= BLOCK_BYTES {
        return Ok(false);
    }
    let mut bytes = vec![0; behind.as_usize()];
    file.read_at(end, &mut bytes)?;
    Ok(is_zero(&bytes))
}

#[cfg(test)]
#[path = "straight_tests.rs"]
mod tests;
