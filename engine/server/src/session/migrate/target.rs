//! Where a session's disk may be copied to: a file, a block device, an NBD export.

use blocks::{BlockShift, ByteLen, Error, ErrorKind, OpenMode, Result, Storage, StorageFile, Volume};
use nbd_server::{NbdUri, NbdVolume};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{HostFile, HostStorage, ImageFormat};

/// A target that was named and looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Nbd(NbdUri),
    Device(PathBuf),
    File(PathBuf, ImageFormat),
}

impl Target {
    /// What `to` and `format` mean. Changes nothing.
    pub fn parse(to: &str, format: Option<&str>) -> Result<Target> {
        let format: ImageFormat = format.unwrap_or("raw").parse()?;
        let raw_only = |target, what: &str| match format {
            ImageFormat::Raw => Ok(target),
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{to}: {what} takes format raw only"))),
        };
        if to.contains("://") {
            return raw_only(Target::Nbd(to.parse()?), "an NBD export");
        }
        let path = Path::new(to);
        if !path.is_absolute() {
            let context = format!("'{to}' is neither an absolute path nor an NBD URI");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => {
                raw_only(Target::Device(path.to_owned()), "a block device")
            }
            Ok(found) if !found.is_file() => {
                let context = format!("{to} is neither a regular file nor a block device");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
            Ok(_) => Ok(Target::File(path.to_owned(), format)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Target::File(path.to_owned(), format))
            }
            Err(error) => Err(Error::io(to, error)),
        }
    }

    /// What is written there.
    pub fn format(&self) -> ImageFormat {
        match self {
            Target::Nbd(_) | Target::Device(_) => ImageFormat::Raw,
            Target::File(_, format) => *format,
        }
    }

    /// Whether what was never written reads as zeroes, because the migration makes the file.
    pub fn begins_empty(&self) -> bool {
        matches!(self, Target::File(..))
    }

    /// Refuses a target that cannot take a disk of `len` bytes, or holds something. Changes nothing.
    pub fn check_new(&self, len: ByteLen) -> Result<()> {
        match self {
            Target::Nbd(_) | Target::Device(_) => self.open(len).map(drop),
            Target::File(path, format) => {
                format.check_len(len)?;
                let folder = path.parent().unwrap_or(Path::new("/"));
                if !folder.is_dir() {
                    let context = format!("there is no folder {}", folder.display());
                    return Err(Error::new(ErrorKind::NotFound, context));
                }
                match std::fs::metadata(path) {
                    Ok(found) if found.len() > 0 => {
                        let context = format!("{} exists and is not empty", path.display());
                        Err(Error::new(ErrorKind::AlreadyExists, context))
                    }
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(Error::io(path.display().to_string(), error))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The target at the beginning of a migration: a file is made anew.
    pub fn begin(&self, len: ByteLen) -> Result<Arc<dyn Volume>> {
        let Target::File(path, format) = self else { return self.open(len) };
        let (folder, name) = file_of(path)?;
        match folder.remove(name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let image = store::create_image(&*folder, name, *format, len)?;
        // Marks and the pivot rely on the file, so its name has to be on the medium as well.
        folder.sync_dir("")?;
        Ok(image)
    }

    /// The target as this migration left it. Errors: too small, read-only, in use by others.
    pub fn open(&self, len: ByteLen) -> Result<Arc<dyn Volume>> {
        let volume: Arc<dyn Volume> = match self {
            Target::Nbd(uri) => Arc::new(NbdVolume::connect(uri)?),
            Target::Device(path) => {
                let file = HostFile::open_exclusive(path, OpenMode::ReadWrite)?;
                store::open_image(file, Some(ImageFormat::Raw), true)?
            }
            Target::File(path, format) => store::open_image(open_file(path)?, Some(*format), true)?,
        };
        if volume.len() < len {
            let context = format!("{self} has {} bytes; the disk has {len}", volume.len());
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if volume.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, format!("{self} is read-only")));
        }
        if volume.alignment() > BlockShift::SECTOR {
            let context =
                format!("{self} takes requests of {} bytes only; disks need 512", volume.alignment().bytes());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(volume)
    }
}

/// The folder of a file that is a target, and the file's name in it.
fn file_of(path: &Path) -> Result<(Arc<dyn Storage>, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(name)) = (path.parent(), name) else {
        let context = format!("{} does not name a file", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    #[cfg(feature = "simulation")]
    if let Some(simulated) = crate::simulation::targets() {
        return Ok((simulated, name));
    }
    Ok((Arc::new(HostStorage::new(folder)?), name))
}

/// The file of a target that is there; its folder is not made where it is missing.
fn open_file(path: &Path) -> Result<Arc<dyn StorageFile>> {
    #[cfg(feature = "simulation")]
    if crate::simulation::targets().is_some() {
        let (folder, name) = file_of(path)?;
        return folder.open(name, OpenMode::ReadWrite);
    }
    HostFile::open(path, OpenMode::ReadWrite)
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Nbd(uri) => uri.fmt(f),
            Target::Device(path) | Target::File(path, _) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_a_target_before_anything_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("full"), "precious").unwrap();
        std::fs::write(path("empty"), "").unwrap();
        let len = ByteLen::new(1 << 20);
        let check = |to: String, format: Option<&str>, len| {
            Target::parse(&to, format).and_then(|to| to.check_new(len))
        };
        let kind = |result: Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(check("disk.raw".into(), None, len)), ErrorKind::InvalidInput);
        assert_eq!(kind(check(path("full"), None, len)), ErrorKind::AlreadyExists);
        assert_eq!(kind(check(path("none/disk.raw"), None, len)), ErrorKind::NotFound);
        assert_eq!(kind(check(dir.path().display().to_string(), None, len)), ErrorKind::InvalidInput);
        let too_large = ByteLen::new((2040 << 30) + 512);
        assert_eq!(kind(check(path("disk.vhd"), Some("vhd"), too_large)), ErrorKind::Unsupported);
        assert_eq!(kind(check("nbd://localhost/x".into(), Some("vhd"), len)), ErrorKind::Unsupported);
        assert_eq!(kind(check(path("disk"), Some("floppy"), len)), ErrorKind::InvalidInput);
        check(path("empty"), None, len).unwrap();
        check(path("disk.raw"), None, too_large).unwrap();
        assert_eq!(std::fs::read(path("full")).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "checking makes no file");
    }
}
