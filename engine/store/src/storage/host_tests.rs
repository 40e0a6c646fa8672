use super::*;
use blocks::{AlignedBuffer, ByteOffset, Extent};

fn storage() -> (tempfile::TempDir, HostStorage) {
    let folder = tempfile::tempdir().unwrap();
    let storage = HostStorage::new(folder.path().join("data")).unwrap();
    (folder, storage)
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

#[test]
fn files_are_made_renamed_listed_and_removed() {
    let (_folder, storage) = storage();
    storage.make_dir("a/b").unwrap();
    storage.make_dir("a/b").unwrap();
    let file = storage.open("a/b/new", OpenMode::CreateNew).unwrap();
    file.write_vectored_at(ByteOffset::new(3), &[b"one", b"", b"two"]).unwrap();
    file.sync().unwrap();
    assert_eq!(storage.open("a/b/new", OpenMode::CreateNew).unwrap_err().kind(), ErrorKind::AlreadyExists);
    storage.rename("a/b/new", "a/b/old").unwrap();
    storage.sync_dir("a/b").unwrap();
    storage.sync_dir("").unwrap();
    assert_eq!(storage.list("a/b").unwrap(), ["old"]);
    let mut bytes = [0; 9];
    let again = storage.open("a/b/old", OpenMode::Read).unwrap();
    again.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0onetwo");
    assert_eq!(again.read_at(ByteOffset::new(1), &mut bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    let missing = storage.open("a/none", OpenMode::ReadWrite).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("a/none"), "{missing}");
    std::os::unix::fs::symlink("/", storage.path().join("a/root")).unwrap();
    storage.remove_dir("a").unwrap();
    storage.remove_dir("a").unwrap();
    assert!(storage.list("").unwrap().is_empty());
    assert_eq!(storage.remove("a").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(storage.free_space().unwrap().unwrap() > ByteLen::ZERO);
}

#[test]
fn a_new_folder_is_synced_into_the_one_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let synced = std::cell::RefCell::new(Vec::new());
    let sync = |path: &Path| {
        synced.borrow_mut().push(path.to_path_buf());
        Ok(())
    };
    let path = folder.path().join("var/lib/data");
    make_durable_dir(&path, &sync).unwrap();
    assert!(path.is_dir());
    let expected = ["", "var", "var/lib"].map(|above| folder.path().join(above));
    assert!(synced.borrow().iter().eq(expected.iter()), "{synced:?}");
    make_durable_dir(&path, &sync).unwrap();
    assert_eq!(synced.borrow().len(), 3, "nothing new, nothing to sync");
    std::fs::write(folder.path().join("file"), b"").unwrap();
    assert!(HostStorage::new(folder.path().join("file")).is_err());
    assert!(HostStorage::new(folder.path().join("file/data")).is_err());
}

#[test]
fn names_cannot_lead_out_of_the_root() {
    let (_folder, storage) = storage();
    for name in ["../x", "/etc/passwd", "a//b", ".", "", "a/../../x"] {
        let error = storage.open(name, OpenMode::CreateNew).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(storage.remove_dir("").unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn only_one_holds_the_lock() {
    let (_folder, storage) = storage();
    storage.lock().unwrap();
    let other = HostStorage::new(storage.path()).unwrap();
    assert_eq!(other.lock().unwrap_err().kind(), ErrorKind::Busy);
    drop(storage);
    other.lock().unwrap();
}

#[test]
fn holes_read_as_zero_and_are_found() {
    let (_folder, storage) = storage();
    let file = storage.open("image", OpenMode::CreateNew).unwrap();
    file.set_len(ByteLen::new(8 << 20)).unwrap();
    file.write_at(ByteOffset::new(2 << 20), &[7; 2 << 20]).unwrap();
    file.punch_hole(extent(3 << 20, 512)).unwrap();
    file.punch_hole(extent(7 << 20, 9 << 20)).unwrap();
    assert_eq!(file.len().unwrap(), ByteLen::new(8 << 20));
    let mut sector = [1; 513];
    file.read_at(ByteOffset::new(3 << 20), &mut sector).unwrap();
    assert_eq!((sector[0], sector[511], sector[512]), (0, 0, 7));
    let data = file.next_data(ByteOffset::ZERO).unwrap().unwrap();
    assert!(data.contains(extent(2 << 20, 1)), "{data:?}");
    file.punch_hole(extent(0, 8 << 20)).unwrap();
    file.set_len(ByteLen::new(1 << 20)).unwrap();
    assert_eq!(file.next_data(ByteOffset::new(1 << 20)).unwrap(), None);
}

#[test]
fn a_folder_is_not_a_file() {
    let (_folder, storage) = storage();
    storage.make_dir("dir").unwrap();
    assert_eq!(storage.open("dir", OpenMode::Read).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// A loop device, detached when the test ends however it ends.
struct LoopDevice(String);

impl LoopDevice {
    fn over(path: &Path) -> LoopDevice {
        let output =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        LoopDevice(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_has_its_size_and_takes_holes() {
    let (_folder, storage) = storage();
    let backing = storage.open("backing", OpenMode::CreateNew).unwrap();
    backing.set_len(ByteLen::new(4 << 20)).unwrap();
    let device = LoopDevice::over(&storage.path().join("backing"));
    let file = HostFile::open_exclusive(&device.0, OpenMode::ReadWrite).unwrap();
    assert_eq!(HostFile::open_exclusive(&device.0, OpenMode::ReadWrite).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(file.len().unwrap(), ByteLen::new(4 << 20));
    file.write_at(ByteOffset::new(1 << 20), &[9; 8192]).unwrap();
    file.punch_hole(extent((1 << 20) + 512, 512)).unwrap();
    file.sync().unwrap();
    let mut bytes = [1; 1536];
    file.read_at(ByteOffset::new(1 << 20), &mut bytes).unwrap();
    assert!(bytes[..512].iter().chain(&bytes[1024..]).all(|byte| *byte == 9));
    assert!(bytes[512..1024].iter().all(|byte| *byte == 0));
    file.set_len(ByteLen::new(4 << 20)).unwrap();
    assert_eq!(file.set_len(ByteLen::new(5 << 20)).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(file.write_at(ByteOffset::new(4 << 20), &[1; 512]).unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn long_writes_past_the_cache_and_short_ones_through_it_make_one_file() {
    let (_folder, storage) = storage();
    let file = storage.open("file", OpenMode::CreateNew).unwrap();
    file.set_len(ByteLen::new(4 << 20)).unwrap();
    file.write_past_cache();
    let mut expected = vec![0; 4 << 20];
    let mut source = AlignedBuffer::new(1 << 20);
    // Long and aligned; short; long and not aligned in the file, in memory, and in length; over what was written before.
    let writes = [(0, 0, 1 << 20), (2 << 20, 0, 512), ((1 << 20) + 512, 0, 1 << 19), (3 << 20, 512, 1 << 18)];
    let again = [(2 << 20, 0, (1 << 17) + 512), (0, 0, 1 << 16), (4096, 0, 100), (2 << 20, 0, 1 << 20)];
    for (number, (at, skip, len)) in writes.into_iter().chain(again).enumerate() {
        source.fill(number as u8 + 1);
        let data = &source[skip..skip + len];
        file.write_at(ByteOffset::new(at as u64), data).unwrap();
        expected[at..at + len].copy_from_slice(data);
    }
    file.sync().unwrap();
    let mut bytes = vec![0; 4 << 20];
    file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    assert!(bytes == expected);
}
