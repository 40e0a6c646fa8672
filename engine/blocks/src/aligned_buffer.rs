//! Memory that O_DIRECT accepts.

use std::ops::{Deref, DerefMut};

/// Bytes that start at a multiple of [`AlignedBuffer::ALIGNMENT`] in memory, zero at first.
#[derive(Debug)]
pub struct AlignedBuffer {
    /// Never grows, so that it stays where it is.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// What every device's O_DIRECT is content with, in bytes.
    pub const ALIGNMENT: usize = 4096;

    /// A buffer of `len` bytes.
    pub fn new(len: usize) -> AlignedBuffer {
        let memory = vec![0; len + AlignedBuffer::ALIGNMENT];
        let start = memory.as_ptr().addr().wrapping_neg() % AlignedBuffer::ALIGNMENT;
        AlignedBuffer { memory, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_where_it_should_and_is_as_long_as_wanted() {
        for len in [0, 1, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % AlignedBuffer::ALIGNMENT), (len, 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}
