use super::*;
use crate::Package;
use crate::definition::testing::definition;
use crate::fuzzing::MemoryFile;
use blocks::Error;

fn written(version: OvfVersion) -> Arc<MemoryFile> {
    let file = MemoryFile::new(&[]);
    let storage_file: Arc<dyn StorageFile> = Arc::<MemoryFile>::clone(&file);
    let mut writer = PackageWriter::new(storage_file, definition(), version).unwrap();
    writer.disk(|disk| disk.write_at(ByteOffset::ZERO, b"one")).unwrap();
    let second = |disk: &dyn StorageFile| {
        disk.write_at(ByteOffset::ZERO, &[1; 512])?;
        disk.set_len(ByteLen::new(70_000))?;
        disk.write_at(ByteOffset::new(70_000), b"end")
    };
    writer.disk(second).unwrap();
    assert_eq!(file.bytes()[..BLOCK], [0; BLOCK], "what is not finished is nothing");
    let len = writer.finish().unwrap();
    assert_eq!(len, file.len().unwrap());
    file
}

#[test]
fn what_is_written_is_read_and_verified() {
    for (version, algorithm) in [(OvfVersion::One, "SHA1("), (OvfVersion::Two, "SHA256(")] {
        let file = written(version);
        assert!(String::from_utf8_lossy(&file.bytes()).contains(algorithm));
        let package = Package::in_archive(file).unwrap();
        assert_eq!(package.descriptor_name(), "web-1.ovf");
        let verdict = package.verify(&|_, _| true).unwrap();
        assert_eq!((verdict.manifest_files, verdict.faults), (Some(3), Vec::new()));
        let (disk, file) = package.disk(1).unwrap();
        assert_eq!((disk.file_len, disk.serial.as_deref()), (Some(70_003), Some("S2")));
        let mut bytes = vec![0; 70_003];
        file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
        assert!(bytes[..512] == [1; 512] && bytes[512..70_000].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[70_000..], b"end");
        assert!(package.disk(2).is_err());
    }
}

#[test]
fn every_changed_byte_of_a_file_is_found_by_its_name() {
    let file = written(OvfVersion::Two);
    let whole = file.bytes().clone();
    let at = whole.windows(3).position(|window| window == b"one").unwrap();
    file.bytes()[at] ^= 1;
    let verdict = Package::in_archive(Arc::<MemoryFile>::clone(&file)).unwrap().verify(&|_, _| true).unwrap();
    assert!(verdict.faults[0].contains("'web-1-disk1.vmdk'"), "{:?}", verdict.faults);
    assert_eq!(verdict.faults.len(), 1);
    let cancelled = Package::in_archive(file).unwrap().verify(&|_, _| false);
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn missing_and_unknown_files_are_named() {
    let file = written(OvfVersion::One);
    let text = String::from_utf8_lossy(&file.bytes()).into_owned();
    let line = text.lines().find(|line| line.contains("SHA1(web-1-disk2.vmdk)")).unwrap().to_owned();
    let at = text.find("SHA1(web-1-disk2.vmdk)").unwrap();
    assert_eq!(text.len(), file.bytes().len(), "all of it is text");
    let other = line.replace("disk2", "diskX");
    file.write_at(ByteOffset::new(at as u64), other.as_bytes()).unwrap();
    let faults = Package::in_archive(file).unwrap().verify(&|_, _| true).unwrap().faults.join("\n");
    assert!(faults.contains("'web-1-disk2.vmdk' is not in the manifest"), "{faults}");
    assert!(faults.contains("no file 'web-1-diskX.vmdk'"), "{faults}");
}

#[test]
fn files_above_8_gib_have_their_length() {
    let file = MemoryFile::new(&[]);
    let storage_file: Arc<dyn StorageFile> = Arc::<MemoryFile>::clone(&file);
    let writer = PackageWriter::new(storage_file, definition(), OvfVersion::One).unwrap();
    for len in [(8 << 30) - 1, 8 << 30, 64 << 40_u64] {
        writer.put_header(ByteOffset::ZERO, "a.vmdk", ByteLen::new(len)).unwrap();
        let bytes = file.bytes().clone();
        assert_eq!(Header::from_byte_slice(&bytes).entry_size().unwrap(), len);
        // GNU tar's reading, beside the library's: octal digits, or the first bit and a number of eleven bytes.
        let field = &bytes[124..136];
        let read = match field[0] {
            0x80 => field[1..].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)),
            _ => u64::from_str_radix(std::str::from_utf8(&field[..11]).unwrap(), 8).unwrap(),
        };
        assert_eq!(read, len);
    }
}

#[test]
fn gnu_tar_and_python_know_the_length_of_what_is_above_8_gib() {
    let file = MemoryFile::new(&[]);
    let storage_file: Arc<dyn StorageFile> = Arc::<MemoryFile>::clone(&file);
    let writer = PackageWriter::new(storage_file, definition(), OvfVersion::One).unwrap();
    writer.put_header(ByteOffset::ZERO, "a.vmdk", ByteLen::new(9 << 30)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ova");
    std::fs::write(&path, &file.bytes()[..BLOCK]).unwrap();
    let sparse = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    sparse.set_len((9 << 30) + 3 * BLOCK as u64).unwrap();
    let script = "import sys, tarfile; print([(m.name, m.size) for m in tarfile.open(sys.argv[1])])";
    for (program, arguments) in [("tar", ["-tv", "-f"]), ("python3", ["-c", script])] {
        let output = std::process::Command::new(program).args(arguments).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(&(9_u64 << 30).to_string()), "{program}: {said}");
    }
}

#[test]
fn only_whole_packages_are_finished() {
    let new = || PackageWriter::new(MemoryFile::new(&[]), definition(), OvfVersion::One).unwrap();
    let mut writer = new();
    let failed = writer.disk(|_| Err(Error::new(ErrorKind::Cancelled, "called off")));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(writer.finish().is_err());
    let mut writer = new();
    for _ in 0..2 {
        writer.disk(|disk| disk.write_at(ByteOffset::ZERO, b"x")).unwrap();
    }
    assert!(writer.disk(|_| Ok(())).is_err());
    let mut writer = new();
    assert!(writer.disk(|disk| disk.write_at(ByteOffset::new(1), b"x")).is_err(), "from the start");
}
