use super::*;
use crate::fuzzing::MemoryFile;

fn header(name: &str, kind: EntryType, size: u64) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, EntryType::Regular, content.len() as u64);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn about(kind: EntryType, content: &[u8]) -> Vec<u8> {
    let mut bytes = header("about", kind, content.len() as u64);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn read(parts: &[Vec<u8>]) -> Result<Archive> {
    Archive::read(MemoryFile::new(&parts.concat()))
}

fn refusal(parts: &[Vec<u8>]) -> (ErrorKind, String) {
    let error = read(parts).expect_err("a bad archive is refused");
    (error.kind(), error.to_string())
}

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[test]
fn files_are_found_whoever_wrote_the_archive() {
    let long = format!("{}.vmdk", "n".repeat(150));
    let archive = read(&[
        header("folder/", EntryType::Directory, 0),
        file("./a.ovf", b"one"),
        about(EntryType::GNULongName, format!("{long}\0").as_bytes()),
        file("cut", &[2; 600]),
        about(EntryType::XGlobalHeader, b"20 comment=something\n"),
        about(EntryType::XHeader, b"17 path=pax.vmdk\n10 size=3\n"),
        file("other", b"xyz"),
        END.to_vec(),
    ])
    .unwrap();
    assert_eq!(archive.names(), ["a.ovf", &long, "pax.vmdk"]);
    let found = archive.open(&long).unwrap();
    let mut bytes = [0; 600];
    found.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    assert_eq!((found.len().unwrap().get(), bytes), (600, [2; 600]));
    assert!(found.read_at(ByteOffset::new(1), &mut bytes).is_err(), "nothing beyond its end");
    assert!(found.write_at(ByteOffset::ZERO, b"x").is_err());
    assert_eq!(archive.open("b").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(read(&[file("a", b"x")]).is_ok(), "the zeroes at the end are for tapes");
}

#[test]
fn names_that_lead_out_and_names_that_are_there_twice_are_refused() {
    for name in ["../a", "/etc/passwd", "a/../../b", "a//b", "..", "a\\..\\b"] {
        assert_eq!(refusal(&[file(name, b"x")]).0, ErrorKind::Unsupported, "{name}");
    }
    let twice = refusal(&[file("a", b"x"), file("./a", b"y")]);
    assert!(twice.1.contains("twice") && twice.1.contains("1024"), "{}", twice.1);
    for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo, EntryType::GNUSparse]
    {
        assert_eq!(refusal(&[header("a", kind, 0)]).0, ErrorKind::Unsupported);
    }
    assert_eq!(
        refusal(&[about(EntryType::XHeader, b"15 path=../../a\n"), file("a", b"")]).0,
        ErrorKind::Corrupt
    );
    assert_eq!(
        refusal(&[about(EntryType::XHeader, b"16 path=../../a\n"), file("a", b"")]).0,
        ErrorKind::Unsupported
    );
}

#[test]
fn lengths_that_the_archive_does_not_have_are_refused() {
    for size in [1, BLOCK as u64, 1 << 40, u64::MAX, u64::MAX - 511] {
        let (kind, message) = refusal(&[header("a", EntryType::Regular, size)]);
        assert!(kind == ErrorKind::Corrupt && message.contains(&size.to_string()), "{message}");
    }
    let huge = refusal(&[header("a", EntryType::GNULongName, 1 << 50)]);
    assert!(huge.1.contains("about one file"), "{}", huge.1);
    let pax = refusal(&[about(EntryType::XHeader, b"29 size=18446744073709551615\n"), file("a", b"x")]);
    assert_eq!(pax.0, ErrorKind::Corrupt);
    assert!(refusal(&[file("a", b"x"), b"half a header".to_vec()]).1.contains("header"));
}

#[test]
fn headers_are_judged_by_their_sums() {
    let mut bad = file("a", b"x");
    bad[0] = b'b';
    assert!(refusal(&[bad]).1.contains("sum"));
    assert!(refusal(&[END.to_vec()]).1.contains("without a file"));
    assert!(!looks_like_archive(&*MemoryFile::new(&[0; 1024])).unwrap());
    assert!(looks_like_archive(&*MemoryFile::new(&file("a", b"x"))).unwrap());
    assert!(!looks_like_archive(&*MemoryFile::new(b"short")).unwrap());
}

#[test]
fn counts_are_bounded() {
    let many: Vec<_> = (0..=MEMBERS_MAX).map(|number| file(&number.to_string(), b"")).collect();
    assert!(refusal(&many).1.contains("more than"));
    let many = vec![header("x/", EntryType::Directory, 0); HEADERS_MAX + 1];
    assert!(refusal(&many).1.contains("more than"));
}
