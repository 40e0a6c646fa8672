//! Files in an archive as files of their own.

use super::digest::{DigestAlgorithm, Hasher};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile, Synced};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file that lies in another one as it is, for reading.
#[derive(Debug)]
pub(super) struct Member {
    archive: Arc<dyn StorageFile>,
    name: String,
    start: ByteOffset,
    len: ByteLen,
}

impl Member {
    /// The part of the archive, which has it all.
    pub(super) fn new(
        archive: Arc<dyn StorageFile>,
        name: String,
        start: ByteOffset,
        len: ByteLen,
    ) -> Member {
        Member { archive, name, start, len }
    }

    fn refuse(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, format!("{}: a file in an archive is not written", self.name))
    }
}

impl StorageFile for Member {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(self.len)
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        match offset.checked_add(ByteLen::of(buffer)) {
            Some(end) if end <= self.len.end() => {
                self.archive.read_at(self.start + (offset - ByteOffset::ZERO), buffer)
            }
            _ => {
                let wanted = buffer.len();
                Err(Error::corrupt(format!(
                    "{} ends before the {wanted} bytes wanted at {offset}",
                    self.name
                )))
            }
        }
    }

    fn write_at(&self, _: ByteOffset, _: &[u8]) -> Result<()> {
        Err(self.refuse())
    }

    fn set_len(&self, _: ByteLen) -> Result<()> {
        Err(self.refuse())
    }

    fn punch_hole(&self, _: Extent) -> Result<()> {
        Err(self.refuse())
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        Ok(Extent::between(from, self.len.end()))
    }

    fn sync(&self) -> Result<Synced> {
        Err(self.refuse())
    }
}

/// A file that is written into another one once, from its start to its end, and digested on the way.
#[derive(Debug)]
pub(super) struct NewMember {
    archive: Arc<dyn StorageFile>,
    name: String,
    start: ByteOffset,
    state: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len: ByteLen,
    hasher: Hasher,
}

static ZEROES: [u8; 4096] = [0; 4096];

impl NewMember {
    /// A file that begins there, where the archive has nothing yet.
    pub(super) fn new(
        archive: Arc<dyn StorageFile>,
        name: String,
        start: ByteOffset,
        algorithm: DigestAlgorithm,
    ) -> NewMember {
        let state = Mutex::new(Written { len: ByteLen::ZERO, hasher: Hasher::new(algorithm) });
        NewMember { archive, name, start, state }
    }

    /// Its length and its digest.
    pub(super) fn finish(self) -> (ByteLen, String) {
        let written = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (written.len, written.hasher.finish())
    }

    fn state(&self) -> MutexGuard<'_, Written> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{}: a file in an archive is not {what}", self.name))
    }
}

impl StorageFile for NewMember {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(self.state().len)
    }

    fn read_at(&self, _: ByteOffset, _: &mut [u8]) -> Result<()> {
        Err(self.refuse("read while it is written"))
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let mut state = self.state();
        if offset != state.len.end() {
            return Err(self.refuse("written but from its start to its end"));
        }
        self.archive.write_at(self.start + state.len, data)?;
        state.hasher.update(data);
        state.len += ByteLen::of(data);
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        let mut state = self.state();
        let Some(mut rest) = len.get().checked_sub(state.len.get()) else {
            return Err(self.refuse("cut"));
        };
        while rest > 0 {
            let piece = ByteLen::new(rest.min(ZEROES.len() as u64));
            self.archive.write_at(self.start + state.len, &ZEROES[..piece.as_usize()])?;
            state.hasher.update(&ZEROES[..piece.as_usize()]);
            state.len += piece;
            rest -= piece.get();
        }
        Ok(())
    }

    fn punch_hole(&self, _: Extent) -> Result<()> {
        Err(self.refuse("punched"))
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        Ok(Extent::between(from, self.state().len.end()))
    }

    fn sync(&self) -> Result<Synced> {
        self.archive.sync()
    }
}
