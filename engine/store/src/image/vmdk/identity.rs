//! The content's identity: a number in the descriptor's text. A child remembers that of its parent.

use blocks::{ByteLen, ByteOffset, Result, StorageFile};
use std::ops::Range;
use std::sync::Arc;

/// Where the identity stands.
#[derive(Debug, Clone)]
pub(super) struct ContentId {
    file: Arc<dyn StorageFile>,
    at: ByteOffset,
    digits: usize,
}

impl ContentId {
    /// At these bytes of the descriptor, which starts at `start` of the file.
    pub(super) fn new(file: Arc<dyn StorageFile>, start: ByteOffset, digits: Range<usize>) -> ContentId {
        ContentId { file, at: start + ByteLen::new(digits.start as u64), digits: digits.len() }
    }

    /// Puts another identity there and on the medium. It has as many digits, so nothing else of the text moves.
    pub(super) fn replace(&self) -> Result<()> {
        let text = format!("{:08x}", new_id());
        self.file.write_at(self.at, &text.as_bytes()[text.len() - self.digits.min(text.len())..])?;
        self.file.sync().map(drop)
    }
}

/// A random identity, other than that of "no parent" and than the one that some writers take for "not yet written".
pub(super) fn new_id() -> u32 {
    loop {
        let id = uuid::Uuid::new_v4().as_fields().0;
        if id < u32::MAX - 1 {
            return id;
        }
    }
}
