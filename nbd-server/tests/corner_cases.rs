//! What the specification says about odd requests, asked through libnbd's Python shell with its own checks off.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{
    ByteLen, ByteOffset, ErrorKind, Extent, ExtentStatus, FileRange, MemoryVolume, RequestClass, Result,
    Volume,
};
use common::raw::Raw;
use common::{MIB, Served, patterned, succeed};
use nbd_server::Export;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Connects with base:allocation and without libnbd's checks, and has `fails(code, call)`.
const PRELUDE: &str = "
import errno
h.set_strict_mode(0)
h.add_meta_context('base:allocation')
def fails(code, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, (error.string, error.errno, code)
        return
    assert False, 'it was expected to fail with %d' % code
def runs(length, offset, flags=0):
    found = []
    h.block_status(length, offset, lambda name, at, entries, error: found.extend(entries) or 0, flags)
    return list(zip(found[0::2], found[1::2]))
h.connect_uri(uri)
size = h.get_size()
";

fn nbdsh(uri: &str, script: &str) {
    succeed("nbdsh", &["-c", &format!("uri = '{uri}'"), "-c", PRELUDE, "-c", script]);
}

fn both(script: &str) {
    for way in 0..2 {
        let (served, _disk) = Served::memory(4 * MIB);
        nbdsh(&served.uris()[way], script);
    }
}

#[test]
fn unaligned_reads_and_writes_lose_nothing() {
    both(
        "
model = bytearray(size)
import random
seed = random.randrange(1 << 32)
print('seed', seed)
random.seed(seed)
for _ in range(300):
    at = random.randrange(size - 9000)
    length = random.randrange(1, 9000)
    kind = random.randrange(3)
    if kind == 0:
        data = random.randbytes(length)
        h.pwrite(data, at, nbd.CMD_FLAG_FUA if length % 2 else 0)
        model[at:at+length] = data
    elif kind == 1:
        h.zero(length, at, nbd.CMD_FLAG_NO_HOLE if length % 2 else 0)
        model[at:at+length] = bytes(length)
    else:
        assert h.pread(length, at) == model[at:at+length]
assert h.pread(size, 0) == model
",
    );
}

#[test]
fn out_of_range_is_enospc_for_writes_and_einval_otherwise_and_the_connection_lives() {
    both(
        "
h.pwrite(b'x' * 512, size - 512)
for at in (size, size - 511, 1 << 62, (1 << 64) - 512):
    fails(errno.EINVAL, lambda: h.pread(512, at))
    fails(errno.ENOSPC, lambda: h.pwrite(b'y' * 512, at))
    fails(errno.ENOSPC, lambda: h.zero(512, at))
    fails(errno.EINVAL, lambda: h.trim(512, at))
    fails(errno.EINVAL, lambda: runs(512, at))
assert h.pread(512, size - 512) == b'x' * 512
",
    );
}

#[test]
fn zero_length_requests_do_not_disconnect() {
    both(
        "
assert h.pread(0, 0) == b''
h.pwrite(b'', 0)
h.trim(0, 0)
h.zero(0, 0)
fails(errno.EINVAL, lambda: runs(0, 0))
assert h.pread(512, 0) == bytes(512)
",
    );
}

#[test]
fn too_long_a_payload_is_refused_and_skipped() {
    both(
        "
big = 32 * 1024 * 1024
fails(errno.EINVAL, lambda: h.pwrite(bytes(big + 1), 0))
assert h.pread(512, 0) == bytes(512)
fails(errno.EOVERFLOW, lambda: h.pread(big + 1, 0))
fails(errno.ENOSPC, lambda: h.pwrite(bytes(big), 0))
assert h.pread(512, 0) == bytes(512)
",
    );
}

#[test]
fn unknown_flags_and_what_was_not_offered_are_einval() {
    both(
        "
for flag in (nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_DF):
    fails(errno.EINVAL, lambda: h.pwrite(b'z' * 512, 0, flag))
    if flag != nbd.CMD_FLAG_DF:
        fails(errno.EINVAL, lambda: h.pread(512, 0, flag))
    if flag != nbd.CMD_FLAG_FAST_ZERO:
        fails(errno.EINVAL, lambda: h.zero(512, 0, flag))
    fails(errno.EINVAL, lambda: h.cache(512, 0, flag))
h.cache(512, 0)
h.cache(size, 0)
fails(errno.EINVAL, lambda: h.cache(512, size))
h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_DF))
assert h.pread(512, 0, nbd.CMD_FLAG_DF) == bytes(512)
assert h.pread(512, 0, nbd.CMD_FLAG_FUA) == bytes(512)
h.flush(nbd.CMD_FLAG_FUA)
",
    );
}

#[test]
fn block_status_tells_holes_from_data() {
    both(
        "
h.pwrite(b'd' * 65536, 65536)
assert runs(size, 0) == [(65536, 3), (65536, 0), (size - 131072, 3)], runs(size, 0)
assert runs(size, 0, nbd.CMD_FLAG_REQ_ONE) == [(65536, 3)]
assert runs(1000, 0, nbd.CMD_FLAG_REQ_ONE) == [(1000, 3)]
assert runs(100, 65530) == [(6, 3), (94, 0)]
assert runs(1, size - 1) == [(1, 3)]
h.trim(32768, 65536)
assert runs(131072, 0) == [(98304, 3), (32768, 0)]
h.trim(1000, 98304 + 1)
assert h.pread(512, 98304) == b'd' * 512
",
    );
}

#[test]
fn reads_of_holes_come_as_holes_and_in_one_piece_where_asked() {
    both(
        "
h.pwrite(b'd' * 65536, 65536)
def chunks(flags=0):
    buf = bytearray(size)
    found = []
    def chunk(data, at, status, error):
        found.append((at, len(data), status))
        return 0
    out = h.pread_structured(size, 0, chunk, flags)
    assert out == bytes(65536) + b'd' * 65536 + bytes(size - 131072)
    return found
found = chunks()
assert (0, 65536, nbd.READ_HOLE) in found, found
assert (65536, 65536, nbd.READ_DATA) in found, found
assert all(status == nbd.READ_HOLE for at, _, status in found if at != 65536), found
assert sum(length for _, length, _ in found) == size
assert chunks(nbd.CMD_FLAG_DF) == [(0, size, nbd.READ_DATA)]
",
    );
}

#[test]
fn without_a_metadata_context_block_status_is_einval() {
    let (served, _disk) = Served::memory(MIB);
    let script = "
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
try:
    h.block_status(512, 0, lambda *a: 0)
    assert False
except nbd.Error as error:
    assert error.errnum in (errno.EINVAL, errno.ENOTSUP), error.string
assert h.pread(512, 0) == bytes(512)
";
    succeed("nbdsh", &["-c", &format!("uri = '{}'", served.unix()), "-c", script]);
}

#[test]
fn a_read_only_export_says_eperm() {
    let (served, disk) = Served::memory(MIB);
    served.exports.insert("fixed", Export::new(disk.clone()).read_only()).unwrap();
    served.exports.insert("rom", Export::new(Arc::new(MemoryVolume::read_only(vec![7; 1 << 20])))).unwrap();
    for name in ["fixed", "rom"] {
        for uri in served.uris() {
            let script = "
assert h.is_read_only()
fails(errno.EPERM, lambda: h.pwrite(b'x' * 512, 0))
fails(errno.EPERM, lambda: h.zero(512, 0))
fails(errno.EPERM, lambda: h.trim(512, 0))
h.flush()
assert len(h.pread(size, 0)) == size
";
            nbdsh(&uri.replace("/disk", &format!("/{name}")), script);
        }
    }
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    let (served, _disk) = Served::memory(MIB);
    for uri in served.uris() {
        let ran = common::run("nbdinfo", &[&uri.replace("/disk", "/nothing")]);
        assert!(!ran.status.success());
        assert!(ran.stderr.contains("nothing"), "{}", ran.stderr);
    }
}

#[test]
fn the_handshake_keeps_state_as_the_specification_says() {
    let (served, disk) = Served::memory(MIB);
    served.exports.insert("second", Export::new(disk)).unwrap();
    let script = "
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append((name, description)) or 0)
assert names == [('disk', 'a disk of the tests'), ('second', '')], names
h.opt_info()
assert h.get_size() == 1 << 20
h.set_export_name('none')
try:
    h.opt_info()
    assert False
except nbd.Error:
    pass
h.set_export_name('second')
contexts = []
h.add_meta_context('base:')
h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
assert contexts == ['base:allocation'], contexts
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.set_full_info(True)
h.opt_go()
assert h.can_meta_context('base:allocation')
assert h.get_canonical_export_name() == 'second'
h.shutdown()
";
    succeed("nbdsh", &["-c", &format!("uri = '{}'", served.tcp()), "-c", script]);
    let abort = "h.set_opt_mode(True)\nh.connect_uri(uri)\nh.opt_abort()\n";
    succeed("nbdsh", &["-c", &format!("uri = '{}'", served.tcp()), "-c", abort]);
    let tls = "
h.set_tls(nbd.TLS_REQUIRE)
try:
    h.connect_uri(uri)
    assert False
except nbd.Error as error:
    assert 'TLS' in error.string, error.string
";
    succeed("nbdsh", &["-c", &format!("uri = '{}'", served.tcp()), "-c", tls]);
}

/// Counts what reaches the volume, and fails where it is told to.
struct Watched {
    disk: MemoryVolume,
    changes: Mutex<Vec<(&'static str, bool)>>,
    flushes: AtomicUsize,
    fail_with: Mutex<Option<ErrorKind>>,
}

impl Watched {
    fn new() -> Arc<Watched> {
        Arc::new(Watched {
            disk: MemoryVolume::new(ByteLen::new(MIB)),
            changes: Mutex::default(),
            flushes: AtomicUsize::new(0),
            fail_with: Mutex::new(None),
        })
    }

    fn note(&self, change: &'static str, flag: bool) -> Result<()> {
        self.changes.lock().unwrap().push((change, flag));
        self.check()
    }

    fn check(&self) -> Result<()> {
        self.fail_with.lock().unwrap().map_or(Ok(()), |kind| Err(blocks::Error::new(kind, "as told")))
    }
}

impl Volume for Watched {
    fn len(&self) -> ByteLen {
        self.disk.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        self.check()?;
        self.disk.read_at(offset, buffer, class)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        self.note("write fua", fua)?;
        self.disk.write_at(offset, data, fua, class)
    }
    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        self.note("zero fua", fua)?;
        self.note("zero keep", keep_allocated)?;
        self.disk.write_zeroes(extent, keep_allocated, fua, class)
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.note("trim fua", fua)?;
        self.disk.discard(extent, fua, class)
    }
    fn flush(&self) -> Result<()> {
        self.check()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check()?;
        self.disk.status(extent)
    }
}

#[test]
fn fua_and_no_hole_reach_the_volume() {
    let disk = Watched::new();
    let served = Served::volume(disk.clone());
    nbdsh(
        &served.unix(),
        "
h.pwrite(b'a' * 512, 0)
h.pwrite(b'a' * 512, 0, nbd.CMD_FLAG_FUA)
h.pwrite(b'a' * 5, 3, nbd.CMD_FLAG_FUA)
h.trim(512, 0, nbd.CMD_FLAG_FUA)
h.zero(512, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(512, 0)
h.flush()
",
    );
    let expected = [
        ("write fua", false),
        ("write fua", true),
        ("write fua", true),
        ("trim fua", true),
        ("zero fua", true),
        ("zero keep", true),
        ("zero fua", false),
        ("zero keep", false),
    ];
    assert_eq!(*disk.changes.lock().unwrap(), expected);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_flush_on_one_connection_covers_all() {
    let disk = Watched::new();
    let served = Served::volume(disk.clone());
    nbdsh(
        &served.tcp(),
        "
assert h.can_multi_conn()
other = nbd.NBD()
other.connect_uri(uri)
h.pwrite(b'm' * 4096, 4096)
other.flush()
assert other.pread(4096, 4096) == b'm' * 4096
other.pwrite(b'n' * 4096, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == b'n' * 4096
",
    );
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn each_kind_of_error_arrives_as_its_nbd_error() {
    let disk = Watched::new();
    let served = Served::volume(disk.clone());
    for (kind, name) in [
        (ErrorKind::NoSpace, "ENOSPC"),
        (ErrorKind::ReadOnly, "EPERM"),
        (ErrorKind::Corrupt, "EIO"),
        (ErrorKind::Poisoned, "EIO"),
        (ErrorKind::Io, "EIO"),
        (ErrorKind::Fenced, "ESHUTDOWN"),
    ] {
        *disk.fail_with.lock().unwrap() = Some(kind);
        let calls = [
            "h.pread(512, 0)",
            "h.pread(65536, 0)",
            "h.pwrite(bytes(512), 0)",
            "h.flush()",
            "h.zero(512, 0)",
        ];
        let lines: Vec<String> =
            calls.iter().map(|call| format!("fails(errno.{name}, lambda: {call})")).collect();
        nbdsh(&served.unix(), &lines.join("\n"));
    }
}

/// A disk that says its bytes are in a file: at once, or only of those that it has read.
struct InFile {
    disk: Arc<Watched>,
    file: Arc<std::fs::File>,
    is_read_first: bool,
}

impl Volume for InFile {
    fn len(&self) -> ByteLen {
        self.disk.len()
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> blocks::Result<()> {
        self.disk.read_at(offset, buffer, class)
    }
    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> blocks::Result<Option<FileRange>> {
        self.disk.read_at(offset, buffer, class)?;
        Ok(self.is_read_first.then(|| FileRange { file: self.file.clone(), offset }))
    }
    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> blocks::Result<()> {
        unreachable!("it is read-only")
    }
    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> blocks::Result<()> {
        unreachable!("it is read-only")
    }
    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> blocks::Result<()> {
        unreachable!("it is read-only")
    }
    fn flush(&self) -> blocks::Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> blocks::Result<Vec<ExtentStatus>> {
        Ok(vec![ExtentStatus { extent, allocation: blocks::Allocation::Data }])
    }
    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        (!self.is_read_first).then(|| FileRange { file: self.file.clone(), offset: extent.start() })
    }
}

#[test]
fn a_read_that_fails_behind_its_head_ends_the_connection() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB / 2).unwrap();
    let disk = InFile { disk: Watched::new(), file: Arc::new(file), is_read_first: false };
    let served = Served::volume(Arc::new(disk));
    let mut raw = Raw::ready(served.tcp_port());
    raw.request(0, 0, 1, 0, 512 << 10);
    assert_eq!(raw.simple_reply(), (0, 1));
    raw.take(512 << 10);
    raw.request(0, 0, 2, MIB / 4, 512 << 10);
    assert_eq!(raw.simple_reply(), (0, 2));
    raw.take(256 << 10);
    assert!(raw.is_closed(), "rather than bytes that are not the disk's");
}

#[test]
fn a_long_read_that_was_located_is_sent_from_its_file_and_a_failed_one_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    let bytes = patterned(MIB, 3);
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    let disk = Watched::new();
    let in_file = InFile { disk: disk.clone(), file: Arc::new(file), is_read_first: true };
    let served = Served::volume(Arc::new(in_file));
    std::fs::write(served.path("bytes"), &bytes).unwrap();
    for uri in served.uris() {
        // The disk is all zeroes: what is not, came from the file.
        let from_file = format!("assert h.pread({MIB}, 0) == open('{}', 'rb').read()", served.path("bytes"));
        nbdsh(&uri, &from_file);
        nbdsh(&uri, "assert h.pread(4096, 8192) == bytes(4096), 'a short read comes from the disk'");
        *disk.fail_with.lock().unwrap() = Some(ErrorKind::Corrupt);
        nbdsh(&uri, &format!("fails(errno.EIO, lambda: h.pread({MIB}, 0))"));
        *disk.fail_with.lock().unwrap() = None;
    }
}
