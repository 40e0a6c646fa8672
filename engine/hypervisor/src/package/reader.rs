//! Reading a package.

use super::digest::Hasher;
use super::manifest::MANIFEST_BYTES_MAX;
use super::{Archive, DigestAlgorithm, Manifest};
use crate::ovf::{DESCRIPTOR_BYTES_MAX, DescribedDisk, Descriptor};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile};
use std::fmt;
use std::sync::Arc;

/// How much is read at a time to be digested.
const STEP: ByteLen = ByteLen::new(1 << 20);

/// A descriptor and the files beside it. Nothing of them is trusted, and no file outside is opened.
pub struct Package {
    /// Its path, for messages.
    name: String,
    place: Place,
    descriptor_name: String,
    descriptor: Descriptor,
    /// Its name, and what is in it.
    manifest: Option<(String, Manifest)>,
}

enum Place {
    Archive(Archive),
    Folder(Arc<dyn Storage>),
}

impl Place {
    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>> {
        match self {
            Place::Archive(archive) => archive.open(name),
            Place::Folder(folder) => folder.open(name, OpenMode::Read),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        match self {
            Place::Archive(archive) => Ok(archive.names().to_vec()),
            Place::Folder(folder) => folder.list(""),
        }
    }
}

/// What a look at every file of a package has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// How many files the manifest names; `None` without a manifest.
    pub manifest_files: Option<usize>,
    /// What is wrong, each naming its file.
    pub faults: Vec<String>,
}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Package").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Package {
    /// The package in an archive. Errors name the archive: `Corrupt`, `Unsupported`, those of reading.
    pub fn in_archive(file: Arc<dyn StorageFile>) -> Result<Package> {
        let name = file.name().to_owned();
        let archive = Archive::read(file)?;
        let descriptor = only(archive.names(), ".ovf").map_err(|error| error.context(&name))?;
        Package::open(name, Place::Archive(archive), descriptor)
    }

    /// The package of this descriptor in a folder; `name` is for messages.
    pub fn in_folder(name: String, folder: Arc<dyn Storage>, descriptor: &str) -> Result<Package> {
        Package::open(name, Place::Folder(folder), descriptor.to_owned())
    }

    /// The same of the only descriptor that the folder has.
    pub fn of_folder(name: String, folder: Arc<dyn Storage>) -> Result<Package> {
        let descriptor = only(&folder.list("")?, ".ovf").map_err(|error| error.context(&name))?;
        Package::open(name, Place::Folder(folder), descriptor)
    }

    fn open(name: String, place: Place, descriptor_name: String) -> Result<Package> {
        let named = |error: Error| error.context(&name);
        let bytes =
            read_all(&*place.open(&descriptor_name).map_err(named)?, DESCRIPTOR_BYTES_MAX).map_err(named)?;
        let descriptor = Descriptor::parse(&bytes).map_err(named)?;
        let stem = descriptor_name.rsplit_once('.').map_or(descriptor_name.as_str(), |(stem, _)| stem);
        let wanted = format!("{stem}.mf");
        let manifest = match place.names().map_err(named)?.contains(&wanted) {
            false => None,
            true => {
                let file = place.open(&wanted).map_err(named)?;
                let bytes = read_all(&*file, MANIFEST_BYTES_MAX).map_err(named)?;
                Some((wanted, Manifest::parse(&bytes).map_err(named)?))
            }
        };
        Ok(Package { name, place, descriptor_name, descriptor, manifest })
    }

    /// What is said of the machine.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The name of the descriptor.
    pub fn descriptor_name(&self) -> &str {
        &self.descriptor_name
    }

    /// Whether there are digests of its files.
    pub fn has_manifest(&self) -> bool {
        self.manifest.is_some()
    }

    /// A disk of it and its file. Errors name the package: `NotFound` where there is no such disk or file,
    /// `Unsupported` where it has no file.
    pub fn disk(&self, number: usize) -> Result<(&DescribedDisk, Arc<dyn StorageFile>)> {
        let disks = &self.descriptor.disks;
        let disk = disks.get(number).ok_or_else(|| {
            let context = format!("{} has no disk {number}; it has {}", self.name, disks.len());
            Error::new(ErrorKind::NotFound, context)
        })?;
        let file = disk.file.as_deref().ok_or_else(|| {
            let context = format!("{}: disk {number} is empty and has no file", self.name);
            Error::new(ErrorKind::Unsupported, context)
        })?;
        let named = |error: Error| error.context(format_args!("{}: disk {number}", self.name));
        Ok((disk, self.place.open(file).map_err(named)?))
    }

    /// Digests every file that the manifest names, and looks whether all is there that is referred to. What a certificate
    /// says is not looked at.
    ///
    /// `progress` is called with the bytes done and the bytes in all; where it says `false`, this ends with `Cancelled`.
    pub fn verify(&self, progress: &dyn Fn(ByteLen, ByteLen) -> bool) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        self.check_references(&mut verdict);
        let Some((_, manifest)) = &self.manifest else { return Ok(verdict) };
        verdict.manifest_files = Some(manifest.files.len());
        let wanted = self.descriptor.files.iter().chain([&self.descriptor_name]);
        for name in wanted.filter(|name| !manifest.files.contains_key(*name)) {
            verdict.faults.push(format!("'{}' is not in the manifest", name.escape_debug()));
        }
        let mut found = Vec::new();
        for (name, (algorithm, digest)) in &manifest.files {
            match self.place.open(name).and_then(|file| file.len()) {
                Ok(len) => found.push((name, *algorithm, digest, len)),
                Err(error) => {
                    verdict.faults.push(format!("the manifest names a file that cannot be opened: {error}"))
                }
            }
        }
        let total = found.iter().fold(0_u64, |total, (.., len)| total.saturating_add(len.get()));
        let mut before = ByteLen::ZERO;
        for (name, algorithm, digest, len) in found {
            let report = |done: ByteLen| progress(before + done, ByteLen::new(total));
            let is = digest_of(&*self.place.open(name)?, len, algorithm, &report)?;
            if is != *digest {
                let name = name.escape_debug();
                verdict.faults.push(format!(
                    "'{name}' is not what the manifest says: its {algorithm} is {is}, not {digest}"
                ));
            }
            before += len;
        }
        Ok(verdict)
    }

    fn check_references(&self, verdict: &mut Verdict) {
        for name in &self.descriptor.files {
            if let Err(error) = self.place.open(name) {
                verdict.faults.push(format!("a file that is referred to cannot be opened: {error}"));
            }
        }
        for (number, disk) in self.descriptor.disks.iter().enumerate() {
            let len = disk.file.as_deref().and_then(|file| self.place.open(file).ok()?.len().ok());
            if let (Some(said), Some(len)) = (disk.file_len, len)
                && said != len.get()
            {
                verdict.faults.push(format!(
                    "the file of disk {number} has {len} bytes, and the descriptor says {said}"
                ));
            }
        }
    }
}

fn digest_of(
    file: &dyn StorageFile,
    len: ByteLen,
    algorithm: DigestAlgorithm,
    report: &dyn Fn(ByteLen) -> bool,
) -> Result<String> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; STEP.as_usize()];
    for piece in Extent::whole(len).into_iter().flat_map(|whole| whole.split(STEP)) {
        let bytes = &mut buffer[..piece.len().as_usize()];
        file.read_at(piece.start(), bytes)?;
        hasher.update(bytes);
        if !report(piece.end() - ByteOffset::ZERO) {
            return Err(Error::new(ErrorKind::Cancelled, "the check was called off"));
        }
    }
    Ok(hasher.finish())
}

fn read_all(file: &dyn StorageFile, max: u64) -> Result<Vec<u8>> {
    let len = file.len()?;
    if len.get() > max {
        return Err(Error::corrupt(format!("{} has {len} bytes; at most {max} are read", file.name())));
    }
    let mut bytes = vec![0; len.as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes)?;
    Ok(bytes)
}

/// The only name with that ending.
fn only(names: &[String], ending: &str) -> Result<String> {
    let mut fitting = names.iter().filter(|name| name.to_ascii_lowercase().ends_with(ending));
    match (fitting.next(), fitting.next()) {
        (Some(name), None) => Ok(name.clone()),
        (None, _) => Err(Error::corrupt(format!("there is no {ending} file in it"))),
        (Some(one), Some(two)) => {
            Err(Error::corrupt(format!("'{one}' and '{two}': which {ending} file counts?")))
        }
    }
}
