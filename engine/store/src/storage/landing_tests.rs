use crate::image::{ImageFormat, ImageOptions};
use crate::storage::HostFile;
use crate::storage::host_file::Syncs;
use blocks::{
    Arrived, ByteLen, ByteOffset, ErrorKind, Extent, OpenMode, Place, RequestClass, StorageFile, Volume,
};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const MIB: u64 = 1 << 20;

/// A file system of its own, gone with the test however that ends.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(mib: u64) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Mounted(folder);
        mounted.mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]);
        mounted
    }

    /// `image` is put beside the folder that it is mounted on.
    fn ext4(mib: u64) -> Mounted {
        let mounted = Mounted(tempfile::tempdir().unwrap());
        let image = mounted.0.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg("-m0").arg(&image));
        mounted.mount(&["-o", "loop", image.to_str().unwrap()]);
        mounted
    }

    fn mount(&self, what: &[&str]) {
        std::fs::create_dir(self.root()).unwrap();
        run(Command::new("mount").args(what).arg(self.root()));
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    /// A file of that length, and its path; full of ones where it is `filled`.
    fn file(&self, len: u64, filled: bool) -> (Arc<dyn StorageFile>, PathBuf) {
        let path = self.root().join("disk");
        let file = HostFile::open(&path, OpenMode::CreateNew).unwrap();
        file.set_len(ByteLen::new(len)).unwrap();
        if filled {
            file.write_at(ByteOffset::ZERO, &vec![1; len as usize]).unwrap();
        }
        (file, path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.root()).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes in a socket.
struct Queue {
    reader: UnixStream,
    _writer: UnixStream,
}

impl Queue {
    fn of(bytes: &[u8]) -> Queue {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        writer.write_all(bytes).unwrap();
        Queue { reader, _writer: writer }
    }
}

impl Arrived for Queue {
    fn put(&mut self, place: Place<'_>) -> io::Result<usize> {
        // SAFETY: the place is for that.
        let count = unsafe {
            libc::recv(self.reader.as_raw_fd(), place.address().cast(), place.len(), libc::MSG_DONTWAIT)
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn bytes_of(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

#[test]
fn on_tmpfs_what_is_in_memory_is_written_in_place() {
    let mounted = Mounted::tmpfs(8);
    let (file, path) = mounted.file(MIB, true);
    assert_eq!(file.arrived_len_min(), Some(ByteLen::new(64 << 10)));
    // Not a multiple of pages, on purpose.
    assert!(file.write_arrived(extent(4608, 65536), &mut Queue::of(&[7; 65536])).unwrap());
    let bytes = bytes_of(&path, 4607, 65538);
    assert_eq!((bytes[0], bytes[65537]), (1, 1));
    assert!(bytes[1..65537].iter().all(|byte| *byte == 7));
    file.punch_hole(extent(0, 131_072)).unwrap();
    let mut queue = Queue::of(&[9; 65536]);
    assert!(!file.write_arrived(extent(0, 65536), &mut queue).unwrap(), "a hole is not in memory");
    assert_eq!(queue.put(Place::over(&mut [0; 65536])).unwrap(), 65536, "nothing was consumed");
    assert!(bytes_of(&path, 0, 65536).iter().all(|byte| *byte == 0));
}

#[test]
fn on_a_disk_only_what_is_dirty_is_written_in_place_and_a_sync_covers_it() {
    let mounted = Mounted::ext4(32);
    let (file, path) = mounted.file(4 * MIB, true);
    assert_eq!(file.arrived_len_min(), Some(ByteLen::new(4096)));
    assert!(file.write_arrived(extent(8192, 4096), &mut Queue::of(&[5; 4096])).unwrap());
    file.sync().unwrap();
    let clean = !file.write_arrived(extent(8192, 4096), &mut Queue::of(&[6; 4096])).unwrap();
    assert!(clean, "what is on the medium is written the usual way");
    file.write_at(ByteOffset::new(8192), &[6; 4096]).unwrap();
    assert!(file.write_arrived(extent(8192, 4096), &mut Queue::of(&[8; 4096])).unwrap(), "dirty again");
    file.sync().unwrap();
    // From the medium, past what is in memory.
    run(Command::new("dd")
        .args(["iflag=direct", "bs=4096", "skip=2", "count=1", "status=none"])
        .arg(format!("if={}", path.display()))
        .arg(format!("of={}", mounted.root().join("copy").display())));
    assert_eq!(bytes_of(&mounted.root().join("copy"), 0, 4096), vec![8; 4096]);
    let mut past_the_end = Queue::of(&[5; 4096]);
    assert!(!file.write_arrived(extent(4 * MIB, 4096), &mut past_the_end).unwrap());
}

/// Says yes to whatever the file system thinks of the pages: they may change between the question and the call.
fn write_unasked(file: &std::fs::File, extent: Extent, queue: &mut Queue) -> usize {
    let landing = super::Landing::default();
    landing.write_if(file, extent, queue, |_, _, _| true).unwrap().unwrap()
}

#[test]
fn a_file_that_was_cut_is_an_error_code_and_no_signal() {
    let mounted = Mounted::tmpfs(8);
    let (file, path) = mounted.file(MIB, true);
    let host = file.host_file().unwrap();
    let landing = super::Landing::default();
    let all = |_: &std::fs::File, _: Extent, _: super::Kind| true;
    let put = landing.write_if(host, extent(0, 65536), &mut Queue::of(&[2; 65536]), all);
    assert_eq!(put.unwrap().unwrap(), 65536);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let mut queue = Queue::of(&[3; 65536]);
    let put = landing.write_if(host, extent(65536, 65536), &mut queue, all).unwrap().unwrap();
    assert_eq!(put, 0, "nothing of it is there any more");
    assert_eq!(queue.put(Place::over(&mut [0; 65536])).unwrap(), 65536, "and nothing was lost");
}

#[test]
fn no_room_is_said_as_such() {
    let mounted = Mounted::tmpfs(1);
    let (file, _) = mounted.file(4 * MIB, false);
    let fill = vec![1; 1 << 20];
    let filled = file.write_at(ByteOffset::new(2 * MIB), &fill);
    assert!(filled.is_ok() || filled.unwrap_err().kind() == ErrorKind::NoSpace);
    let mut queue = Queue::of(&[4; 65536]);
    let put = write_unasked(file.host_file().unwrap(), extent(0, 65536), &mut queue);
    assert_eq!(put, 0, "there is no page for it");
    // What the store does then: the usual way has the reason.
    let mut rest = vec![0; 65536];
    assert_eq!(queue.put(Place::over(&mut rest)).unwrap(), 65536);
    assert_eq!(file.write_at(ByteOffset::ZERO, &rest).unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn a_mapping_with_too_many_tables_is_made_anew() {
    let mounted = Mounted::tmpfs(64);
    let (file, path) = mounted.file(8 * MIB, true);
    let host = file.host_file().unwrap();
    let landing = super::Landing::default();
    for round in 0..64u8 {
        let at = u64::from(round % 4) * 2 * MIB;
        let put = landing.write_if(host, extent(at, 4096), &mut Queue::of(&[round; 4096]), |_, _, _| true);
        assert_eq!(put.unwrap().unwrap(), 4096);
        assert_eq!(bytes_of(&path, at, 4096), vec![round; 4096]);
        // In tests three regions are too many.
        assert_eq!(landing.is_mapped(), round % 4 != 3, "round {round}");
    }
}

/// How many pages this thread has had to be given so far.
fn faults() -> i64 {
    // SAFETY: numbers, for which zeroes are as good as any; the call fills them.
    let (status, usage) = unsafe {
        let mut usage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), usage)
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    usage.ru_minflt
}

/// What arrives costs no fault, because the pages were made ready before.
struct Faultless(Queue);

impl Arrived for Faultless {
    fn put(&mut self, place: Place<'_>) -> io::Result<usize> {
        let before = faults();
        let put = self.0.put(place);
        assert_eq!(faults(), before, "pages that were not made ready");
        put
    }
}

#[test]
fn pages_are_made_ready_once_until_they_are_found_otherwise() {
    // The end of a file need not be that of a page.
    const LEN: u64 = 4 * MIB - 512;
    let at = extent(LEN - 131_072, 131_072);
    for mounted in [Mounted::tmpfs(8), Mounted::ext4(32)] {
        let (file, path) = mounted.file(LEN, true);
        let host = file.host_file().unwrap();
        let landing = super::Landing::default();
        let ready = |_: &std::fs::File, _: Extent, _: super::Kind| true;
        for value in [2, 3] {
            let mut queue = Faultless(Queue::of(&[value; 131_072]));
            assert_eq!(landing.write_if(host, at, &mut queue, ready).unwrap().unwrap(), 131_072);
            assert!(landing.has_made_ready(at) && landing.has_made_ready(extent(LEN - 131_072 - 3072, 512)));
            assert!(!landing.has_made_ready(extent(LEN - 131_072 - 4096, 512)));
            assert_eq!(bytes_of(&path, at.start().get(), 131_072), vec![value; 131_072]);
        }
        let refused = |at| landing.write_if(host, at, &mut Queue::of(&[4; 512]), |_, _, _| false).is_none();
        assert!(refused(extent(LEN + 512, 512)) && landing.has_made_ready(at), "past the end");
        assert!(refused(extent(LEN - 512, 512)) && !landing.has_made_ready(extent(LEN - 512, 512)));
        assert!(landing.has_made_ready(extent(LEN - 131_072, 65_536)), "what was not refused is as it was");
        landing.has_been_synced(host);
        let stays_ready = landing.kind(host) == Some(super::Kind::Present);
        assert_eq!(landing.has_made_ready(extent(LEN - 131_072, 65_536)), stays_ready);
    }
}

#[test]
fn what_did_not_land_is_written_the_usual_way() {
    let mounted = Mounted::tmpfs(8);
    let (_, path) = mounted.file(MIB, true);
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let file = HostFile::from_file(opened, "disk".to_owned(), Syncs::Kept).unwrap();
    let mut queue = Queue::of(&[6; 65536]);
    assert_eq!(queue.put(Place::over(&mut [0; 5000])).unwrap(), 5000);
    file.write_what_did_not_land(extent(4096, 65536), 5000, &mut queue).unwrap();
    let bytes = bytes_of(&path, 4096 + 4999, 65536 - 4999 + 1);
    assert_eq!((bytes[0], bytes[bytes.len() - 1]), (1, 1));
    assert!(bytes[1..bytes.len() - 1].iter().all(|byte| *byte == 6));
    let gone = file.write_what_did_not_land(extent(0, 4096), 0, &mut queue).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Io, "bytes that were promised are not there: {gone}");
}

/// Three that change the same sectors at once.
fn change_at_once(image: &dyn Volume, landed: &AtomicU32) {
    std::thread::scope(|scope| {
        for value in [2u8, 3, 4] {
            scope.spawn(move || {
                let data = vec![value; 65536];
                for round in 0..4 {
                    let extent = extent(u64::from(value) * 1024 + round % 3 * 512, 65536);
                    let mut queue = Queue::of(&data);
                    if image.write_arrived(extent, &mut queue, RequestClass::Guest).unwrap() {
                        landed.fetch_add(1, Ordering::SeqCst);
                    } else {
                        image.write_at(extent.start(), &data, false, RequestClass::Guest).unwrap();
                    }
                    if value == 4 {
                        image.discard(self::extent(8192 + 512, 8192), false, RequestClass::Guest).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn changes_of_an_image_that_overlap_leave_whole_sectors() {
    let mounted = Mounted::tmpfs(8);
    let (file, path) = mounted.file(MIB, true);
    let options = ImageOptions { format: Some(ImageFormat::Raw), writable: true, ..ImageOptions::default() };
    let image = crate::open_image_with(file, options).unwrap();
    let landed = AtomicU32::new(0);
    for round in 0..100 {
        change_at_once(&*image, &landed);
        for (number, sector) in bytes_of(&path, 0, 128 << 10).chunks(512).enumerate() {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "round {round}, sector {number}");
        }
    }
    assert!(landed.load(Ordering::SeqCst) > 0, "nothing was written in place");
}

#[test]
fn an_image_takes_nothing_that_it_was_not_opened_for() {
    let mounted = Mounted::tmpfs(8);
    let (_, path) = mounted.file(MIB, true);
    let file = HostFile::open(&path, OpenMode::Read).unwrap();
    let options = ImageOptions { format: Some(ImageFormat::Raw), writable: false, ..ImageOptions::default() };
    let image = crate::open_image_with(file, options).unwrap();
    assert_eq!(image.arrived_len_min(), None);
    let mut queue = Queue::of(&[9; 65536]);
    let refused = image.write_arrived(extent(0, 65536), &mut queue, RequestClass::Guest).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert!(bytes_of(&path, 0, 65536).iter().all(|byte| *byte == 1));
}
