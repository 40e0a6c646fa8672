//! The decoders of this room as functions of bytes from anywhere, for the fuzz targets (tests/support/decoders.rs).
//!
//! A target panics where a promise is broken: a decoder refuses with an error, or gives something that others can rely on.

use crate::definition::Disk;
use crate::{
    Architecture, Definition, Descriptor, DiskFormat, Firmware, OvfVersion, Package, PackageWriter, Source,
};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile, Synced};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tar::Header;

const BLOCK: usize = 512;

/// A file in memory that takes what a package writer does.
#[derive(Debug)]
pub(crate) struct MemoryFile(Mutex<Vec<u8>>);

impl MemoryFile {
    pub(crate) fn new(bytes: &[u8]) -> Arc<MemoryFile> {
        Arc::new(MemoryFile(Mutex::new(bytes.to_vec())))
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageFile for MemoryFile {
    fn name(&self) -> &str {
        "memory.ova"
    }

    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::of(&self.bytes()))
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        let bytes = self.bytes();
        let start = usize::try_from(offset.get()).ok();
        let found = start.and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or_else(|| Error::corrupt("the file ends before"))?);
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes();
        let start = ByteLen::new(offset.get()).as_usize();
        let end = start + data.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.bytes().resize(len.as_usize(), 0);
        Ok(())
    }

    fn punch_hole(&self, extent: Extent) -> Result<()> {
        self.write_at(extent.start(), &vec![0; extent.len().as_usize()])
    }

    fn next_data(&self, from: ByteOffset) -> Result<Option<Extent>> {
        Ok(Extent::between(from, self.len()?.end()))
    }

    fn sync(&self) -> Result<Synced> {
        Ok(Synced::after_completed_sync())
    }
}

fn refused<T>(result: Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let expected = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound);
    assert!(expected, "a decoder's error says what is wrong with the bytes: {error:?}");
    assert!(error.to_string().len() < 4096, "a message is not as long as what it is about");
    None
}

fn machine() -> Definition {
    let disk = |serial: &str| Disk {
        len: ByteLen::new(1 << 20),
        serial: Some(serial.to_owned()),
        wwn: None,
        source: Source::File { path: "disk".to_owned(), format: DiskFormat::Vmdk },
    };
    Definition {
        name: "m".to_owned(),
        host_name: "m.example.org".to_owned(),
        firmware: Firmware::Uefi,
        architecture: Architecture::X86_64,
        cpus: 2,
        memory: ByteLen::new(1 << 30),
        nics: "52:54:00:00:00:01".parse().into_iter().collect(),
        disks: vec![disk("one"), disk("two")],
    }
}

/// Small archives of both versions. What is in their disks' files is no disk.
pub fn archives() -> Vec<Vec<u8>> {
    [OvfVersion::One, OvfVersion::Two].map(archive_of).to_vec()
}

fn archive_of(version: OvfVersion) -> Vec<u8> {
    let file = MemoryFile::new(&[]);
    let storage_file: Arc<dyn StorageFile> = Arc::<MemoryFile>::clone(&file);
    let mut writer = PackageWriter::new(storage_file, machine(), version).expect("a small machine");
    for content in [&b"one"[..], &[2; 600]] {
        writer.disk(|disk| disk.write_at(ByteOffset::ZERO, content)).expect("a file in memory");
    }
    writer.finish().expect("a file in memory");
    file.bytes().clone()
}

/// Descriptors of both versions.
pub fn descriptors() -> Vec<Vec<u8>> {
    let text = |version| {
        let written = crate::Form::Ovf(version).write(&machine(), &crate::FormOptions::default());
        written.expect("a small machine").text.into_bytes()
    };
    [OvfVersion::One, OvfVersion::Two].map(text).to_vec()
}

/// An OVF descriptor: what is accepted leads nowhere else.
pub fn descriptor(bytes: &[u8]) {
    let Some(read) = refused(Descriptor::parse(bytes)) else { return };
    let stays = |name: &String| name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    assert!(read.files.iter().all(stays), "{:?}", read.files);
    assert!(read.disks.iter().filter_map(|disk| disk.file.as_ref()).all(|file| read.files.contains(file)));
}

/// An archive: as it is, and with the sums of its headers put right.
pub fn archive(bytes: &[u8]) {
    read_archive(bytes);
    let mut sealed = bytes.to_vec();
    for block in sealed.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        let mut header = Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    read_archive(&sealed);
}

fn read_archive(bytes: &[u8]) {
    let Some(package) = refused(Package::in_archive(MemoryFile::new(bytes))) else { return };
    let verdict = refused(package.verify(&|_, _| true)).expect("a file in memory is read");
    assert_eq!(verdict.manifest_files.is_some(), package.has_manifest());
    for number in 0..package.descriptor().disks.len().min(8) {
        let Some((_, file)) = refused(package.disk(number)) else { continue };
        let len = file.len().expect("a part of a file in memory");
        assert!(len <= ByteLen::of(bytes), "a file in the archive is no longer than it");
        let mut all = vec![0; len.as_usize()];
        file.read_at(ByteOffset::ZERO, &mut all).expect("all of it is there");
    }
}
