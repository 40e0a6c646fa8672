//! An OVA's archive: tar, as POSIX's ustar has it and as GNU and pax extend it.
//!
//! ```text
//! each file    a header of 512 bytes: name, length, kind, a sum of the header's bytes; then the file, up to a whole 512
//! at the end   two blocks of zeroes
//! ```
//!
//! Only files count. What leads elsewhere (links, devices) is refused, and so is a name that is there twice: which of the
//! two is meant would depend on the reader.

use super::member::Member;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Result, StorageFile};
use std::collections::BTreeMap;
use std::sync::Arc;
use tar::{EntryType, Header, PaxExtensions};

/// Files in an archive, and headers of any kind: a package has a handful.
const MEMBERS_MAX: usize = 4096;
const HEADERS_MAX: usize = 4 * MEMBERS_MAX;
/// What a header of pax or GNU may say about the next file.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;
pub(super) const BLOCK: usize = 512;

/// Which file lies where.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<dyn StorageFile>,
    members: BTreeMap<String, (ByteOffset, ByteLen)>,
    /// The names in the archive's order.
    names: Vec<String>,
}

/// What an extension says about the file that comes next.
#[derive(Debug, Default)]
struct Extension {
    name: Option<String>,
    len: Option<u64>,
}

/// Whether it begins like an archive of which the first file is an OVF descriptor.
pub fn looks_like_archive(file: &dyn StorageFile) -> Result<bool> {
    if file.len()? < ByteLen::new(BLOCK as u64) {
        return Ok(false);
    }
    let mut block = [0; BLOCK];
    file.read_at(ByteOffset::ZERO, &mut block)?;
    let header = Header::from_byte_slice(&block);
    Ok(is_whole(header) && &block[257..262] == b"ustar")
}

/// Whether the sum in the header is that of its bytes, where its own place counts as blanks. Old programs added up signed
/// bytes.
fn is_whole(header: &Header) -> bool {
    let Ok(said) = header.cksum() else { return false };
    let bytes = header.as_bytes();
    let counted = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let unsigned: u32 = bytes.iter().enumerate().map(|(at, byte)| u32::from(counted(at, *byte))).sum();
    let signed: i32 =
        bytes.iter().enumerate().map(|(at, byte)| i32::from(counted(at, *byte).cast_signed())).sum();
    said == unsigned || i64::from(said) == i64::from(signed)
}

impl Archive {
    /// Reads all headers and no file. `Corrupt` and `Unsupported` name what is wrong, and where.
    pub(crate) fn read(file: Arc<dyn StorageFile>) -> Result<Archive> {
        let mut archive = Archive { file, members: BTreeMap::new(), names: Vec::new() };
        let end = archive.file.len()?.end();
        let mut at = ByteOffset::ZERO;
        let mut extension = Extension::default();
        for _ in 0..HEADERS_MAX {
            // Whoever cut the archive after its last file lost nothing: the zeroes are for tapes.
            if at == end {
                return archive.finish();
            }
            let place = at;
            let fail = |error: Error| error.context(format_args!("{}, at byte {place}", archive.file.name()));
            let mut block = [0; BLOCK];
            archive.file.read_at(at, &mut block).map_err(|error| fail(error.context("a header")))?;
            if block == [0; BLOCK] {
                return archive.finish();
            }
            let header = Header::from_byte_slice(&block);
            let body = at + ByteLen::new(BLOCK as u64);
            let (kind, len) = entry(header, &extension).map_err(fail)?;
            at = body.checked_add(ByteLen::new(len)).filter(|end_of_file| *end_of_file <= end).ok_or_else(
                || fail(Error::corrupt(format!("a file of {len} bytes, which the archive does not have"))),
            )?;
            match kind {
                Kind::File => {
                    let extended = std::mem::take(&mut extension);
                    let name = extended
                        .name
                        .unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
                    archive.add(&name, body, ByteLen::new(len)).map_err(|error| {
                        error.context(format_args!("{}, at byte {place}", archive.file.name()))
                    })?;
                }
                Kind::Folder => extension = Extension::default(),
                Kind::Other => {}
                Kind::About(about) => {
                    let read = read_extension(&*archive.file, about, body, len).map_err(fail)?;
                    extension.name = read.name.or(extension.name);
                    extension.len = read.len.or(extension.len);
                }
            }
            at = at.align_up(BlockShift::SECTOR).min(end);
        }
        Err(Error::corrupt(format!("{}: an archive of more than {HEADERS_MAX} headers", archive.file.name())))
    }

    fn finish(self) -> Result<Archive> {
        match self.names.is_empty() {
            true => Err(Error::corrupt(format!("{}: an archive without a file", self.file.name()))),
            false => Ok(self),
        }
    }

    fn add(&mut self, name: &str, start: ByteOffset, len: ByteLen) -> Result<()> {
        let name = checked_name(name)?;
        if self.names.len() >= MEMBERS_MAX {
            return Err(Error::corrupt(format!("more than {MEMBERS_MAX} files")));
        }
        if self.members.insert(name.clone(), (start, len)).is_some() {
            return Err(Error::corrupt(format!("'{}' is there twice", name.escape_debug())));
        }
        self.names.push(name);
        Ok(())
    }

    /// The names of its files, in its order.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The file of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>> {
        let (start, len) = self.members.get(name).ok_or_else(|| {
            let context = format!("{} has no file '{}'", self.file.name(), name.escape_debug());
            Error::new(ErrorKind::NotFound, context)
        })?;
        let shown = format!("{}/{name}", self.file.name());
        Ok(Arc::new(Member::new(Arc::clone(&self.file), shown, *start, *len)))
    }
}

/// What comes behind a header.
#[derive(Clone, Copy)]
enum Kind {
    File,
    Folder,
    /// Something about the next file.
    About(EntryType),
    /// Something about all files, which says nothing about names and lengths here.
    Other,
}

/// What a header says, and how many bytes follow it.
fn entry(header: &Header, extension: &Extension) -> Result<(Kind, u64)> {
    if !is_whole(header) {
        return Err(Error::corrupt("a header of which the sum is wrong"));
    }
    let size =
        header.entry_size().map_err(|_| Error::corrupt("a header of which the length is no number"))?;
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Folder,
        about @ (EntryType::XHeader | EntryType::GNULongName) => Kind::About(about),
        EntryType::XGlobalHeader => Kind::Other,
        other => {
            let context = format!(
                "'{}' is no plain file (tar's kind {:?})",
                String::from_utf8_lossy(&header.path_bytes()).escape_debug(),
                char::from(other.as_byte())
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    };
    match kind {
        Kind::File => Ok((kind, extension.len.unwrap_or(size))),
        // Some programs give folders a length, and nothing follows.
        Kind::Folder => Ok((kind, 0)),
        Kind::About(_) | Kind::Other if size > EXTENSION_BYTES_MAX => Err(Error::corrupt(format!(
            "{size} bytes about one file; at most {EXTENSION_BYTES_MAX} are read"
        ))),
        kind => Ok((kind, size)),
    }
}

fn read_extension(file: &dyn StorageFile, kind: EntryType, at: ByteOffset, len: u64) -> Result<Extension> {
    let mut bytes = vec![0; ByteLen::new(len).as_usize()];
    file.read_at(at, &mut bytes)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if kind == EntryType::GNULongName {
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        return Ok(Extension { name: Some(text(name)), len: None });
    }
    let mut extension = Extension::default();
    for record in PaxExtensions::new(&bytes) {
        let record = record.map_err(|_| Error::corrupt("a header of pax that is none"))?;
        match record.key_bytes() {
            b"path" => extension.name = Some(text(record.value_bytes())),
            b"size" => {
                let size = text(record.value_bytes()).parse();
                extension.len = Some(size.map_err(|_| Error::corrupt("a length of pax that is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "a file with holes that the archive leaves out",
                ));
            }
            _ => {}
        }
    }
    Ok(extension)
}

/// A name that stays within the package.
fn checked_name(name: &str) -> Result<String> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\\', '\n', '\r']);
    match name.split('/').all(is_good) {
        true => Ok(name.to_owned()),
        false => {
            let context = format!("the name '{}' leads out of the package", name.escape_debug());
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
