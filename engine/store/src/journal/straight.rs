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

use blocks::{AlignedBuffer, ByteLen, ByteOffset, Result, StorageFile};

/// So many times the length of a long append has to come in a row.
const STREAK: u64 = 16;
/// What goes to the medium at once: a guest's longest usual write, 1 MiB, with its headers and the block before it.
const PIECE_BYTES: usize = 2 << 20;
const BLOCK_BYTES: usize = AlignedBuffer::ALIGNMENT;
/// What goes straight to the medium ends with a block of this length, filled up with fewer zeroes than that.
pub(crate) const BLOCK: ByteLen = ByteLen::new(BLOCK_BYTES as u64);

/// What a log has come to in that respect.
#[derive(Debug)]
pub(crate) struct Straight {
    /// From where on an append is long; `None` where all go through the cache.
    long: Option<ByteLen>,
    /// Bytes of long appends since the last short one.
    streak: u64,
    piece: Option<Piece>,
    /// Whether the file ends with zeroes that are not the log's.
    padded: bool,
}

/// What is to be written next: the log's last block, as far as it is there, and what follows.
#[derive(Debug)]
struct Piece {
    bytes: AlignedBuffer,
    filled: usize,
    /// Where in the file it starts, at a block.
    at: ByteOffset,
}

impl Straight {
    pub(crate) fn new(long: Option<ByteLen>) -> Straight {
        Straight { long, streak: 0, piece: None, padded: false }
    }

    /// Whether an append of `len` bytes at `end`, the log's, goes straight. It must be made that way then.
    pub(crate) fn takes(&mut self, file: &dyn StorageFile, end: ByteOffset, len: ByteLen) -> Result<bool> {
        let Some(long) = self.long else { return Ok(false) };
        if len < long {
            (self.streak, self.piece) = (0, None);
            return Ok(false);
        }
        if self.streak < STREAK * long.get() {
            self.streak += len.get();
            return Ok(false);
        }
        if self.piece.is_none() {
            if !file.write_past_cache() {
                self.long = None;
                return Ok(false);
            }
            self.piece = Some(Piece::begin(file, end)?);
        }
        Ok(true)
    }

    /// Writes the parts one after the other at the log's end. After an error the log must not be appended to any more.
    pub(crate) fn append(&mut self, file: &dyn StorageFile, parts: &[&[u8]]) -> Result<()> {
        let piece = self.piece.as_mut().expect("it takes the append");
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                rest = piece.fill(rest);
                if piece.filled == PIECE_BYTES {
                    piece.write(file)?;
                }
            }
        }
        if piece.filled > 0 {
            self.padded |= piece.pad_and_write(file)?;
        }
        Ok(())
    }

    /// Cuts off what is behind the log's end, before that is published as the file's.
    pub(crate) fn trim(&mut self, file: &dyn StorageFile, end: ByteOffset) -> Result<()> {
        self.piece = None;
        if std::mem::take(&mut self.padded) {
            file.set_len(end - ByteOffset::ZERO)?;
        }
        Ok(())
    }
}

impl Piece {
    fn begin(file: &dyn StorageFile, end: ByteOffset) -> Result<Piece> {
        let filled = ByteLen::new(end.get() % BLOCK_BYTES as u64);
        let mut piece = Piece {
            bytes: AlignedBuffer::new(PIECE_BYTES),
            filled: filled.as_usize(),
            at: ByteOffset::new(end.get() - filled.get()),
        };
        file.read_at(piece.at, &mut piece.bytes[..filled.as_usize()])?;
        Ok(piece)
    }

    /// Takes what fits; the rest is returned.
    fn fill<'a>(&mut self, part: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = part.split_at(part.len().min(PIECE_BYTES - self.filled));
        self.bytes[self.filled..self.filled + taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        rest
    }

    fn write(&mut self, file: &dyn StorageFile) -> Result<()> {
        file.write_at(self.at, &self.bytes[..self.filled])?;
        self.at += ByteLen::new(self.filled as u64);
        self.filled = 0;
        Ok(())
    }

    /// Writes whole blocks, and keeps the last one where the log ends within it; whether it does.
    fn pad_and_write(&mut self, file: &dyn StorageFile) -> Result<bool> {
        let end = self.filled.next_multiple_of(BLOCK_BYTES);
        self.bytes[self.filled..end].fill(0);
        file.write_at(self.at, &self.bytes[..end])?;
        let whole = self.filled / BLOCK_BYTES * BLOCK_BYTES;
        self.bytes.copy_within(whole..self.filled, 0);
        self.at += ByteLen::new(whole as u64);
        self.filled -= whole;
        Ok(self.filled > 0)
    }
}

#[cfg(test)]
#[path = "straight_tests.rs"]
mod tests;
