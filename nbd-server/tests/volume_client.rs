//! Our client, against our server and against servers that we did not write.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{Allocation, ByteLen, ByteOffset, ErrorKind, Extent, MemoryVolume, RequestClass, Volume};
use common::{MIB, Served, patterned, succeed};
use nbd_server::{Export, NbdUri, NbdVolume};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CLASS: RequestClass = RequestClass::Background;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// Another server, killed when dropped.
struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreign(program: &str, args: &[&str], socket: &Path) -> Foreign {
    let package = if program == "nbdkit" { "nbdkit" } else { "qemu-utils" };
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the Debian package {package}"));
    let foreign = Foreign(child);
    let deadline = Instant::now() + Duration::from_secs(60);
    // The name is there before anybody listens.
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "{program} does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    foreign
}

/// Random changes of the volume and of bytes in memory; both must stay the same.
fn behaves_like_memory(volume: &NbdVolume) {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let len = volume.len();
    let model = MemoryVolume::new(len);
    for round in 0..300 {
        let start = random.random_range(0..len.get() / 512) * 512;
        let bytes = (random.random_range(1..400) * 512).min(len.get() - start);
        let (fua, range) = (random.random_bool(0.2), extent(start, bytes));
        match round % 5 {
            0 => {
                model.write_zeroes(range, false, false, CLASS).unwrap();
                volume.write_zeroes(range, random.random_bool(0.5), fua, CLASS).unwrap();
            }
            1 => {
                model.discard(range, false, CLASS).unwrap();
                volume.discard(range, fua, CLASS).unwrap();
            }
            _ => {
                let data = patterned(bytes, round);
                model.write_at(range.start(), &data, false, CLASS).unwrap();
                volume.write_at(range.start(), &data, fua, CLASS).unwrap();
            }
        }
    }
    volume.flush().unwrap();
    let mut bytes = vec![0; len.as_usize()];
    volume.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert!(bytes == model.snapshot());
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, len.end()) {
        let runs = volume.status(rest).unwrap();
        for run in &runs {
            assert_eq!(run.extent.start(), at);
            at = run.extent.end();
            let range = run.extent.start().get() as usize..at.get() as usize;
            assert!(!run.allocation.reads_as_zero() || bytes[range].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn our_server_over_tcp_and_unix() {
    let (served, disk) = Served::memory(4 * MIB);
    for uri in served.uris() {
        disk.write_zeroes(extent(0, 4 * MIB), false, false, CLASS).unwrap();
        let volume = NbdVolume::connect(&uri.parse().unwrap()).unwrap();
        assert_eq!((volume.len(), volume.is_read_only()), (ByteLen::new(4 * MIB), false));
        behaves_like_memory(&volume);
        let runs = volume.status(extent(0, 4 * MIB)).unwrap();
        assert_eq!(runs, disk.status(extent(0, 4 * MIB)).unwrap());
    }
}

#[test]
fn nbdkit_with_and_without_what_it_can_do() {
    let dir = tempfile::tempdir().unwrap();
    for (number, filters) in [
        &[][..],
        &["--filter=multi-conn", "multi-conn-mode=disable"],
        &["--filter=nozero"],
        &["--filter=fua", "fuamode=emulate"],
        &["--no-sr"],
    ]
    .into_iter()
    .enumerate()
    {
        let socket = dir.path().join(format!("socket{number}"));
        let path = socket.to_str().unwrap();
        let options: Vec<&str> = filters.iter().copied().filter(|arg| arg.starts_with('-')).collect();
        let parameters: Vec<&str> = filters.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
        let args = [&["-f", "--exit-with-parent", "-U", path][..], &options, &["memory", "4M"], &parameters]
            .concat();
        let _server = foreign("nbdkit", &args, &socket);
        let volume = NbdVolume::connect(&NbdUri::unix(&socket, "")).unwrap();
        behaves_like_memory(&volume);
    }
}

#[test]
fn a_server_of_larger_blocks_sets_the_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let args = [
        "-f",
        "--exit-with-parent",
        "-U",
        socket.to_str().unwrap(),
        "--filter=blocksize-policy",
        "memory",
        "4M",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64k",
        "blocksize-error-policy=error",
    ];
    let _server = foreign("nbdkit", &args, &socket);
    let volume = NbdVolume::connect(&NbdUri::unix(&socket, "")).unwrap();
    assert_eq!(volume.alignment().bytes(), 4096);
    let data = patterned(MIB, 1);
    volume.write_at(ByteOffset::new(4096), &data, true, CLASS).unwrap();
    let mut back = vec![0; data.len()];
    volume.read_at(ByteOffset::new(4096), &mut back, CLASS).unwrap();
    assert!(back == data);
    let error = volume.write_at(ByteOffset::new(512), &data[..512], false, CLASS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn qemu_nbd_with_a_qcow2_file() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, image) = (dir.path().join("socket"), dir.path().join("disk.qcow2"));
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "4M"]);
    let args = [
        "-f",
        "qcow2",
        "-t",
        "-e",
        "8",
        "-x",
        "a name",
        "-k",
        socket.to_str().unwrap(),
        image.to_str().unwrap(),
    ];
    let server = foreign("qemu-nbd", &args, &socket);
    let volume = NbdVolume::connect(&NbdUri::unix(&socket, "a name")).unwrap();
    behaves_like_memory(&volume);
    drop(volume);
    drop(server);
    succeed("qemu-img", &["check", "-q", image.to_str().unwrap()]);
}

#[test]
fn a_server_without_flush_cannot_promise_durability() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let args = [
        "-f",
        "--exit-with-parent",
        "-U",
        socket.to_str().unwrap(),
        "eval",
        "get_size=echo 1048576",
        "pread=head -c $3 /dev/zero",
        "can_write=exit 0",
        "pwrite=cat > /dev/null",
    ];
    let _server = foreign("nbdkit", &args, &socket);
    let volume = NbdVolume::connect(&NbdUri::unix(&socket, "")).unwrap();
    volume.write_at(ByteOffset::ZERO, &[1; 512], false, CLASS).unwrap();
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Unsupported);
    let error = volume.write_at(ByteOffset::ZERO, &[1; 512], true, CLASS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn several_threads_share_a_volume() {
    let (served, disk) = Served::memory(8 * MIB);
    let volume = NbdVolume::connect(&served.tcp().parse().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let volume = &volume;
            scope.spawn(move || {
                let data = patterned(64 << 10, thread);
                for round in 0..16 {
                    let at = ByteOffset::new((thread * 16 + round) * (64 << 10));
                    volume.write_at(at, &data, false, CLASS).unwrap();
                    let mut back = vec![0; data.len()];
                    volume.read_at(at, &mut back, CLASS).unwrap();
                    assert!(back == data);
                }
                volume.flush().unwrap();
            });
        }
    });
    for thread in 0..8u64 {
        let start = (thread * MIB) as usize;
        assert!(disk.snapshot()[start..start + (64 << 10)] == patterned(64 << 10, thread)[..]);
    }
}

#[test]
fn errors_name_the_uri() {
    let (served, disk) = Served::memory(MIB);
    let missing: NbdUri = served.tcp().replace("/disk", "/missing").parse().unwrap();
    let error = NbdVolume::connect(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&missing.to_string()), "{error}");
    let nobody = NbdUri::unix(&served.dir.path().join("nobody"), "disk");
    let error = NbdVolume::connect(&nobody).unwrap_err();
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");

    served.exports.insert("fixed", Export::new(disk).read_only()).unwrap();
    let fixed: NbdUri = served.tcp().replace("/disk", "/fixed").parse().unwrap();
    let volume = NbdVolume::connect(&fixed).unwrap();
    assert!(volume.is_read_only());
    let error = volume.write_at(ByteOffset::ZERO, &[0; 512], false, CLASS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert!(error.to_string().contains(&fixed.to_string()), "{error}");
    volume.flush().unwrap();
}

#[test]
fn a_lost_server_poisons_and_stays_lost() {
    let (served, _disk) = Served::memory(MIB);
    let uri: NbdUri = served.unix().parse().unwrap();
    let volume = NbdVolume::connect(&uri).unwrap();
    volume.write_at(ByteOffset::ZERO, &[1; 512], false, CLASS).unwrap();
    served.server.shutdown().unwrap();
    let error = volume.flush().unwrap_err();
    assert!(error.to_string().contains(&uri.to_string()), "{error}");
    let kind = volume.write_at(ByteOffset::ZERO, &[2; 512], false, CLASS).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::Poisoned);
    for _ in 0..5 {
        let mut buffer = [0; 512];
        assert!(volume.read_at(ByteOffset::ZERO, &mut buffer, CLASS).is_err());
    }
}

#[test]
fn holes_of_a_sparse_disk_are_seen_from_afar() {
    let (served, disk) = Served::memory(4 * MIB);
    disk.write_at(ByteOffset::new(MIB), &vec![5; 65536], false, CLASS).unwrap();
    let volume = NbdVolume::connect(&served.unix().parse().unwrap()).unwrap();
    let runs: Vec<_> = volume
        .status(extent(0, 4 * MIB))
        .unwrap()
        .iter()
        .map(|run| (run.extent.len().get(), run.allocation))
        .collect();
    let expected = [(MIB, Allocation::Hole), (65536, Allocation::Data), (3 * MIB - 65536, Allocation::Hole)];
    assert_eq!(runs, expected);
}
