//! Bytes that have arrived in the kernel, on their way into a file without a stop in this process.
//!
//! Whoever has them (a socket) and whoever knows where they belong (a file that is mapped) meet here: a [`Place`] is an
//! address that only system calls may touch, and [`Arrived`] makes the one call that fills it.

use std::io;
use std::marker::PhantomData;

/// Memory for a system call to write into. Where it is a file's and the file has become shorter, or its medium fails or
/// is full, the call gets `EFAULT`; whoever wrote there himself would be killed, so there is no way to do it.
#[derive(Debug)]
pub struct Place<'a> {
    address: *mut u8,
    len: usize,
    lives: PhantomData<&'a mut [u8]>,
}

impl<'a> Place<'a> {
    /// Plain memory.
    pub fn over(memory: &'a mut [u8]) -> Place<'a> {
        Place { address: memory.as_mut_ptr(), len: memory.len(), lives: PhantomData }
    }

    /// Memory that stands for a part of a file.
    ///
    /// # Safety
    ///
    /// The `len` bytes from `address` on stay mapped for `'a` and are memory of nothing else in this process. What is
    /// below them may be missing.
    pub unsafe fn mapped(address: *mut u8, len: usize) -> Place<'a> {
        Place { address, len, lives: PhantomData }
    }

    /// Where it starts.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A run of bytes that are there already: to have them put somewhere takes no waiting.
pub trait Arrived {
    /// Puts the next bytes into the place and returns how many: all that fit, or fewer where the rest of the place could
    /// not be written. Not more than there are may be asked for. `EFAULT` where nothing could be written; then nothing is
    /// consumed, and the bytes may be put elsewhere.
    fn put(&mut self, place: Place<'_>) -> io::Result<usize>;
}
