//! Files that hold keys: readable by their owner only, and either wholly there or not at all.

use blocks::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path` by a file of mode 0600 with these bytes. When it returns, file and name are on the medium; after a
/// crash there is the old file or the new one. Two writers of one path at once are the caller's affair.
pub fn write_private_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let context = |what: &str| format!("{what} {}", new.display());
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(context("removing the leftover"), error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(new)
        .map_err(|error| Error::io(context("creating"), error))?;
    file.write_all(bytes).map_err(|error| Error::io(context("writing"), error))?;
    file.sync_all().map_err(|error| Error::io(context("syncing"), error))?;
    std::fs::rename(new, path).map_err(|error| Error::io(format!("publishing {}", path.display()), error))?;
    sync_folder_of(path)
}

/// Removes `path`; when it returns, a crash does not bring it back. `NotFound` where there is none.
pub fn remove_file(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| Error::io(format!("removing {}", path.display()), error))?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(format!("syncing the folder {}", folder.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(folder.path().join("key.new"), b"left by a crash, readable by all").unwrap();
        write_private_file(&path, b"one").unwrap();
        write_private_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        remove_file(&path).unwrap();
        assert_eq!(remove_file(&path).unwrap_err().kind(), blocks::ErrorKind::NotFound);
    }
}
