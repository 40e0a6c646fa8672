//! Making an OVA, in one pass over each disk.
//!
//! ```text
//! NAME.ovf          the descriptor, then blanks: its room is set aside before the files' lengths are known
//! NAME.mf           the digests, whose length follows from the names
//! NAME-disk1.vmdk   each disk in its turn, written where it stays
//! ```
//!
//! The descriptor must come first (DSP0243 §5.3), so the archive is finished from its end to its start: until the very
//! last write its first block is zeroes, by which every reader knows that there is nothing.

use super::archive::BLOCK;
use super::digest::{DigestAlgorithm, Hasher};
use super::manifest::Manifest;
use super::member::NewMember;
use crate::DiskFormat;
use crate::definition::Definition;
use crate::ovf::{FileEntry, OvfVersion, write_with_files};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Result, StorageFile, WallClock};
use std::sync::Arc;
use tar::{EntryType, Header};

/// An archive under way.
#[derive(Debug)]
pub struct PackageWriter {
    file: Arc<dyn StorageFile>,
    definition: Definition,
    version: OvfVersion,
    algorithm: DigestAlgorithm,
    time: WallClock,
    descriptor_len: ByteLen,
    manifest_len: ByteLen,
    /// Where the next header goes.
    at: ByteOffset,
    disks: Vec<(ByteLen, String)>,
}

impl PackageWriter {
    /// Begins an archive in the empty file. Where the definition says that its disks are does not matter. Errors: as
    /// [`Definition::check`]; `Unsupported` where OVF has no place for the machine.
    pub fn new(
        file: Arc<dyn StorageFile>,
        definition: Definition,
        version: OvfVersion,
    ) -> Result<PackageWriter> {
        definition.check()?;
        let algorithm = match version {
            OvfVersion::One => DigestAlgorithm::Sha1,
            OvfVersion::Two => DigestAlgorithm::Sha256,
        };
        let longest = vec![u64::MAX; definition.disks.len()];
        let descriptor_len = ByteLen::of(descriptor(&definition, version, &longest)?.as_bytes());
        let digest = "0".repeat(algorithm.digits());
        let mut names: Vec<_> =
            (0..definition.disks.len()).map(|number| disk_name(&definition.name, number)).collect();
        names.push(descriptor_name(&definition.name));
        let manifest: usize = names.iter().map(|name| Manifest::line(name, algorithm, &digest).len()).sum();
        let manifest_len = ByteLen::new(manifest as u64);
        let at = after(after(ByteOffset::ZERO, descriptor_len), manifest_len);
        let (time, disks) = (WallClock::now(), Vec::new());
        Ok(PackageWriter {
            file,
            definition,
            version,
            algorithm,
            time,
            descriptor_len,
            manifest_len,
            at,
            disks,
        })
    }

    /// Writes the next disk by `write`, which is given a file that takes a stream-optimized VMDK from its start to its end.
    pub fn disk(&mut self, write: impl FnOnce(&dyn StorageFile) -> Result<()>) -> Result<()> {
        let number = self.disks.len();
        if number >= self.definition.disks.len() {
            let context = format!("a disk {number} of a machine that has {number}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let name = disk_name(&self.definition.name, number);
        let start = self.at + ByteLen::new(BLOCK as u64);
        let member = NewMember::new(Arc::clone(&self.file), name.clone(), start, self.algorithm);
        write(&member)?;
        let (len, digest) = member.finish();
        self.put_header(self.at, &name, len)?;
        self.at = after(self.at, len);
        self.disks.push((len, digest));
        Ok(())
    }

    /// Writes what every reader begins with, when all disks are written, and syncs. Returns the archive's length.
    pub fn finish(self) -> Result<ByteLen> {
        if self.disks.len() != self.definition.disks.len() {
            let context =
                format!("{} of {} disks were written", self.disks.len(), self.definition.disks.len());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        // Two blocks of zeroes end an archive; tape blocks of 10 KiB are nobody's any more, but some programs warn.
        let end = ByteOffset::new((self.at.get() + 2 * BLOCK as u64).next_multiple_of(20 * BLOCK as u64));
        self.file.set_len(end - ByteOffset::ZERO)?;
        let lens: Vec<u64> = self.disks.iter().map(|(len, _)| len.get()).collect();
        let mut text = descriptor(&self.definition, self.version, &lens)?;
        debug_assert!(
            text.len() as u64 <= self.descriptor_len.get(),
            "room was set aside for longer numbers"
        );
        text.extend(std::iter::repeat_n(' ', self.descriptor_len.as_usize() - text.len() - 1));
        text.push('\n');
        let manifest = self.manifest(&text);
        let manifest_at = after(ByteOffset::ZERO, self.descriptor_len);
        let body = |at: ByteOffset| at + ByteLen::new(BLOCK as u64);
        self.put_header(manifest_at, &format!("{}.mf", self.definition.name), self.manifest_len)?;
        self.file.write_at(body(manifest_at), manifest.as_bytes())?;
        self.file.write_at(body(ByteOffset::ZERO), text.as_bytes())?;
        self.file.sync()?;
        self.put_header(ByteOffset::ZERO, &descriptor_name(&self.definition.name), self.descriptor_len)?;
        self.file.sync()?;
        Ok(end - ByteOffset::ZERO)
    }

    fn manifest(&self, descriptor: &str) -> String {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(descriptor.as_bytes());
        let name = descriptor_name(&self.definition.name);
        let mut manifest = Manifest::line(&name, self.algorithm, &hasher.finish());
        for (number, (_, digest)) in self.disks.iter().enumerate() {
            manifest += &Manifest::line(&disk_name(&self.definition.name, number), self.algorithm, digest);
        }
        manifest
    }

    /// A length above 8 GiB, which ustar's eleven octal digits do not hold, is binary, as GNU tar has it and every reader
    /// of OVAs takes it.
    fn put_header(&self, at: ByteOffset, name: &str, len: ByteLen) -> Result<()> {
        let mut header = Header::new_ustar();
        let set = header.set_path(name);
        set.map_err(|error| Error::with_source(ErrorKind::InvalidInput, format!("the name {name}"), error))?;
        header.set_size(len.get());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time.0 / 1000);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        self.file.write_at(at, header.as_bytes())
    }
}

/// Where the next header is after a file of that length with its header there.
fn after(header: ByteOffset, len: ByteLen) -> ByteOffset {
    (header + ByteLen::new(BLOCK as u64) + len).align_up(BlockShift::SECTOR)
}

fn descriptor_name(machine: &str) -> String {
    format!("{machine}.ovf")
}

fn disk_name(machine: &str, number: usize) -> String {
    format!("{machine}-disk{}.vmdk", number + 1)
}

fn descriptor(definition: &Definition, version: OvfVersion, lens: &[u64]) -> Result<String> {
    let entry = |(number, len): (usize, &u64)| FileEntry {
        name: disk_name(&definition.name, number),
        len: Some(*len),
        format: DiskFormat::Vmdk,
    };
    let files: Vec<_> = lens.iter().enumerate().map(entry).collect();
    write_with_files(definition, version, &files)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
