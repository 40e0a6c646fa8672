//! Clients that we did not write, over TCP and over a unix socket.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, ByteOffset, MemoryVolume, RequestClass, Volume};
use common::{MIB, Served, patterned, succeed, with_nbdfuse};
use nbd_server::{Export, Operation};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

fn fill(disk: &MemoryVolume, seed: u64) -> Vec<u8> {
    let bytes = patterned(disk.len().get(), seed);
    disk.write_at(ByteOffset::ZERO, &bytes, false, RequestClass::Guest).unwrap();
    bytes
}

#[test]
fn nbdinfo_sees_size_list_description_and_map() {
    let len = 3 * MIB + 512;
    let (served, disk) = Served::memory(len);
    disk.write_at(ByteOffset::new(MIB), &vec![7; MIB as usize], false, RequestClass::Guest).unwrap();
    served.exports.insert("other one", Export::new(disk.clone()).read_only()).unwrap();
    for uri in served.uris() {
        assert_eq!(succeed("nbdinfo", &["--size", &uri]).trim(), len.to_string());
        let info = succeed("nbdinfo", &[&uri]);
        for line in [
            "protocol: newstyle-fixed without TLS, using structured packets",
            "description: a disk of the tests",
            "base:allocation",
            "is_read_only: false",
            "can_flush: true",
            "can_fua: true",
            "can_trim: true",
            "can_zero: true",
            "can_df: true",
            "can_multi_conn: true",
            "qemu:allocation-depth",
            "can_cache: true",
            "can_fast_zero: true",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(info.contains(line), "no '{line}' in\n{info}");
        }
        let list = succeed("nbdinfo", &["--list", &uri]);
        assert!(list.contains("export=\"disk\"") && list.contains("export=\"other one\""), "{list}");
        let map = succeed("nbdinfo", &["--map", &uri]);
        let runs: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(runs.len(), 3, "{map}");
        assert_eq!(runs[0][..3], ["0", "1048576", "3"]);
        assert_eq!(runs[1][..3], ["1048576", "1048576", "0"]);
        assert_eq!(runs[2][..3], ["2097152", "1049088", "3"]);
        succeed("nbdinfo", &["--can", "df", &uri]);
        succeed("nbdinfo", &["--can", "multi-conn", &uri]);
    }
    let read_only = served.tcp().replace("/disk", "/other%20one");
    succeed("nbdinfo", &["--is", "read-only", &read_only]);
}

#[test]
fn nbdcopy_copies_both_ways() {
    let len = 24 * MIB + 512;
    for way in 0..2 {
        let (served, disk) = Served::memory(len);
        let uri = &served.uris()[way];
        let (source, back) = (served.path("source"), served.path("back"));
        fs::write(&source, patterned(len, way as u64)).unwrap();
        succeed("nbdcopy", &["--flush", &source, uri]);
        assert!(disk.snapshot() == fs::read(&source).unwrap(), "what nbdcopy has written is there");
        succeed("nbdcopy", &[uri, &back]);
        succeed("cmp", &[&source, &back]);
        fs::remove_file(&back).unwrap();
        succeed("nbdcopy", &["--synchronous", "--no-extents", uri, &back]);
        succeed("cmp", &[&source, &back]);
    }
}

#[test]
fn nbdfuse_shows_the_disk_as_a_file() {
    let (served, disk) = Served::memory(8 * MIB);
    for (way, uri) in served.uris().iter().enumerate() {
        let bytes = fill(&disk, way as u64);
        with_nbdfuse(uri, &served.dir.path().join("mounted"), |file| {
            assert!(fs::read(file).unwrap() == bytes, "what nbdfuse reads");
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            file.write_all_at(&[0xab; 5000], 777).unwrap();
            file.sync_all().unwrap();
        });
        assert!(disk.snapshot()[777..5777].iter().all(|byte| *byte == 0xab), "what it has written");
        assert!(disk.snapshot()[5777..] == bytes[5777..]);
    }
}

#[test]
fn qemu_img_reads_compares_converts_and_maps() {
    let (served, disk) = Served::memory(16 * MIB);
    let bytes = fill(&disk, 3);
    let raw = served.path("raw");
    fs::write(&raw, &bytes).unwrap();
    for uri in served.uris() {
        let info = succeed("qemu-img", &["info", "--output=json", &uri]);
        assert!(info.contains("\"virtual-size\": 16777216"), "{info}");
        succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri]);
        let (qcow, back) = (served.path("qcow2"), served.path("back"));
        succeed("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow]);
        succeed("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, &qcow]);
        succeed("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &qcow, &back]);
        succeed("cmp", &[&raw, &back]);
        let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert!(
            map.contains(
                "\"start\": 65536, \"length\": 65536, \"depth\": 0, \"present\": true, \"zero\": true"
            ),
            "{map}"
        );
        let holes = map.matches("\"zero\": true").count();
        assert_eq!(
            holes,
            bytes.chunks(64 << 10).filter(|chunk| chunk.iter().all(|byte| *byte == 0)).count(),
            "{map}"
        );
    }
    let (target, disk) = Served::memory(16 * MIB);
    for uri in target.uris() {
        disk.write_at(ByteOffset::ZERO, &vec![0xee; 16 << 20], false, RequestClass::Guest).unwrap();
        succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &raw, &uri]);
        assert!(disk.snapshot() == bytes, "holes of the source have overwritten what was there");
    }
}

#[test]
fn qemu_io_patterns_hold() {
    let (served, disk) = Served::memory(8 * MIB);
    for uri in served.uris() {
        let commands = [
            "write -P 0x11 0 1M",
            "write -P 0x22 -f 1M 64k",
            "write -P 0x33 4097 3",
            "write -z 128k 64k",
            "write -z -u 256k 64k",
            "aio_write -P 0x44 2M 1M",
            "aio_write -P 0x55 3M 1M",
            "aio_flush",
            "flush",
            "discard 512k 128k",
            "read -P 0x11 0 4096",
            "read -P 0x11 4096 1",
            "read -P 0x33 4097 3",
            "read -P 0x11 4100 1000",
            "read -P 0 128k 64k",
            "read -P 0 256k 64k",
            "read -P 0 512k 128k",
            "read -P 0x22 1M 64k",
            "read -P 0x44 2M 1M",
            "read -P 0x55 3M 1M",
            "read -P 0 7M 1M",
        ];
        let mut args = vec!["-f", "raw"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&uri);
        let said = succeed("qemu-io", &args);
        assert!(!said.contains("failed") && !said.contains("error"), "{said}");
        let bytes = disk.snapshot();
        assert_eq!(&bytes[4095..4101], [0x11, 0x11, 0x33, 0x33, 0x33, 0x11]);
    }
}

#[test]
fn fio_verifies_random_writes_with_many_in_flight() {
    let (served, _disk) = Served::memory(32 * MIB);
    for uri in served.uris() {
        // fio's URI must not be cut at a colon.
        let uri = format!("--uri={uri}");
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned=0",
            "--size=32m",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=64",
            "--randrepeat=0",
        ];
        let said = succeed("fio", &args);
        assert!(said.contains("err= 0"), "{said}");
    }
}

#[test]
fn fio_verifies_over_several_connections_at_once() {
    let (served, _disk) = Served::memory(32 * MIB);
    let uri = format!("--uri={}", served.unix());
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bs=4k",
        "--size=8m",
        "--offset_increment=8m",
        "--numjobs=4",
        "--iodepth=16",
        "--verify=md5",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--group_reporting",
    ];
    let said = succeed("fio", &args);
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn nbd_client_lists_the_exports() {
    let (served, disk) = Served::memory(MIB);
    served.exports.insert("second", Export::new(disk)).unwrap();
    let port = served.tcp_port().to_string();
    let list = succeed("nbd-client", &["-l", "127.0.0.1", &port]);
    assert!(list.contains("disk") && list.contains("second"), "{list}");
}

#[test]
fn what_clients_did_is_counted() {
    const SCRIPT: &str = "
for i in range(7): h.pread(4096, 4096 * i)
for i in range(3): h.pwrite(b'x' * 1000, 512 * i)
h.trim(1 << 16, 1 << 20); h.zero(1 << 17, 1 << 20); h.cache(1 << 18, 0); h.flush(); h.flush()
h.block_status(1 << 20, 0, lambda *_: 0)
h.set_strict_mode(0)
for call in (lambda: h.pread(512, 8 << 20), lambda: h.pwrite(b'y' * 512, 8 << 20)):
    try: call()
    except nbd.Error: pass
    else: raise SystemExit('past the end')
";
    let expected = [
        (Operation::Read, 8, 7 * 4096, 1),
        (Operation::Write, 4, 3000, 1),
        (Operation::Flush, 2, 0, 0),
        (Operation::Trim, 1, 1 << 16, 0),
        (Operation::WriteZeroes, 1, 1 << 17, 0),
        (Operation::Cache, 1, 1 << 18, 0),
        (Operation::BlockStatus, 1, 1 << 20, 0),
    ];
    let (served, _disk) = Served::memory(8 * MIB);
    for (times, uri) in (1..).zip(served.uris()) {
        let connect = format!("h.add_meta_context('base:allocation'); h.connect_uri('{uri}')");
        succeed("nbdsh", &["-c", &connect, "-c", SCRIPT]);
        let traffic = served.traffic();
        let seen: Vec<_> = traffic
            .seen()
            .map(|(operation, seen)| (operation, seen.requests(), seen.bytes, seen.errors))
            .collect();
        let expected = expected.map(|(operation, requests, bytes, errors)| {
            (operation, times * requests, times * bytes, times * errors)
        });
        assert_eq!(seen, expected);
        assert_eq!((traffic.in_flight, traffic.requests()), (0, times * 18));
    }
}

#[test]
fn an_export_without_structured_replies_reads_the_same() {
    let (served, disk) = Served::memory(8 * MIB);
    let bytes = fill(&disk, 9);
    let expected = served.path("expected");
    fs::write(&expected, &bytes).unwrap();
    for uri in served.uris() {
        let script = format!(
            "h.set_request_structured_replies(False)\nh.connect_uri('{uri}')\n\
             assert not h.get_structured_replies_negotiated()\n\
             data = open('{expected}', 'rb').read()\n\
             assert h.pread(8 << 20, 0) == data\nassert h.pread(1001, 77) == data[77:1078]\n"
        );
        succeed("nbdsh", &["-c", &script]);
    }
}

#[test]
fn a_volume_of_larger_blocks_is_served_byte_by_byte() {
    struct Coarse(MemoryVolume);
    impl Volume for Coarse {
        fn len(&self) -> ByteLen {
            self.0.len()
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn alignment(&self) -> blocks::BlockShift {
            blocks::BlockShift::KIB_64
        }
        fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> blocks::Result<()> {
            blocks::check_request(self.len(), self.alignment(), offset, ByteLen::of(buffer))?;
            self.0.read_at(offset, buffer, class)
        }
        fn write_at(
            &self,
            offset: ByteOffset,
            data: &[u8],
            fua: bool,
            class: RequestClass,
        ) -> blocks::Result<()> {
            blocks::check_request(self.len(), self.alignment(), offset, ByteLen::of(data))?;
            self.0.write_at(offset, data, fua, class)
        }
        fn write_zeroes(
            &self,
            at: blocks::Extent,
            keep: bool,
            fua: bool,
            class: RequestClass,
        ) -> blocks::Result<()> {
            blocks::check_request(self.len(), self.alignment(), at.start(), at.len())?;
            self.0.write_zeroes(at, keep, fua, class)
        }
        fn discard(&self, at: blocks::Extent, fua: bool, class: RequestClass) -> blocks::Result<()> {
            self.write_zeroes(at, false, fua, class)
        }
        fn flush(&self) -> blocks::Result<()> {
            Ok(())
        }
        fn status(&self, extent: blocks::Extent) -> blocks::Result<Vec<blocks::ExtentStatus>> {
            blocks::check_request(self.len(), self.alignment(), extent.start(), extent.len())?;
            self.0.status(extent)
        }
    }
    let served = Served::volume(Arc::new(Coarse(MemoryVolume::new(ByteLen::new(4 * MIB)))));
    let info = succeed("nbdinfo", &[&served.tcp()]);
    assert!(info.contains("block_size_preferred: 65536"), "{info}");
    let (source, back) = (served.path("source"), served.path("back"));
    fs::write(&source, patterned(4 * MIB, 5)).unwrap();
    succeed("nbdcopy", &["--request-size=4096", "--requests=64", &source, &served.tcp()]);
    succeed("nbdcopy", &[&served.unix(), &back]);
    succeed("cmp", &[&source, &back]);
}

#[test]
fn the_crate_nbd_reads_and_writes() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let (served, disk) = Served::memory(8 * MIB);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", served.tcp_port())).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(export.size, 8 * MIB);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let bytes = patterned(MIB, 4);
    client.seek(SeekFrom::Start(4096)).unwrap();
    client.write_all(&bytes).unwrap();
    client.seek(SeekFrom::Start(4096)).unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == bytes);
    assert!(disk.snapshot()[4096..4096 + bytes.len()] == bytes);
}
