//! A served disk, and other people's programs run with a time limit.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod certificates;
pub mod guest;
pub mod hooked;
pub mod raw;
pub mod sparse;

use blocks::{ByteLen, MemoryVolume, Volume};
use nbd_server::{
    Export, Exports, Limits, ListenAddress, Listener, NbdServer, NbdUri, ServerOptions, Traffic,
};
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const MIB: u64 = 1 << 20;
const TOOL_TIMEOUT: Duration = Duration::from_secs(120);

/// A server on a TCP port and a unix socket.
pub struct Served {
    pub server: NbdServer,
    pub exports: Exports,
    pub dir: tempfile::TempDir,
    tcp: NbdUri,
    unix: NbdUri,
}

impl Served {
    pub fn with_limits(exports: Exports, limits: Limits) -> Served {
        Served::with_options(exports, ServerOptions { limits, ..ServerOptions::default() })
    }

    pub fn with_options(exports: Exports, options: ServerOptions) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd socket");
        let tcp = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let unix = Listener::bind(&ListenAddress::Unix(socket)).unwrap();
        let (tcp_uri, unix_uri) = (tcp.uri("disk"), unix.uri("disk"));
        let server = NbdServer::start_with(vec![tcp, unix], exports.clone(), options).unwrap();
        Served { server, exports, dir, tcp: tcp_uri, unix: unix_uri }
    }

    /// A server of one export, `disk`.
    pub fn volume(volume: Arc<dyn Volume>) -> Served {
        let exports = Exports::new();
        exports.insert("disk", Export::new(volume).with_description("a disk of the tests")).unwrap();
        Served::with_limits(exports, Limits::default())
    }

    /// A server of one empty disk in memory.
    pub fn memory(len: u64) -> (Served, Arc<MemoryVolume>) {
        let disk = Arc::new(MemoryVolume::new(ByteLen::new(len)));
        (Served::volume(disk.clone()), disk)
    }

    pub fn tcp(&self) -> String {
        self.tcp.to_string()
    }

    pub fn unix(&self) -> String {
        self.unix.to_string()
    }

    /// Both ways to the export.
    pub fn uris(&self) -> [String; 2] {
        [self.tcp(), self.unix()]
    }

    /// What all clients of the export `disk` did, once they have left.
    pub fn traffic(&self) -> Traffic {
        let started = Instant::now();
        loop {
            let export = self.exports.traffic().into_iter().find(|export| export.name == "disk").unwrap();
            if export.clients.is_empty() {
                return export.traffic;
            }
            assert!(started.elapsed() < TOOL_TIMEOUT, "a client does not leave: {:?}", export.clients);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn tcp_port(&self) -> u16 {
        match &self.server.addresses()[0] {
            ListenAddress::Tcp(address) => address.port(),
            ListenAddress::Unix(_) => unreachable!("the first listener is the TCP one"),
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

/// What a program has said.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program; fails with the name of its Debian package where it is missing, and kills it when it takes too long.
pub fn run(program: &str, args: &[&str]) -> Ran {
    // The distribution's programs find the distribution's Python, whatever else is installed.
    let path = format!("/usr/sbin:/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new(program)
        .env("PATH", path)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}; install the Debian package {}", package(program))
        });
    let collect = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = collect(Box::new(child.stdout.take().unwrap()));
    let stderr = collect(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + TOOL_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{program} {args:?} has not ended after {TOOL_TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ran { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// The same, and it must succeed; what it has printed.
pub fn succeed(program: &str, args: &[&str]) -> String {
    let ran = run(program, args);
    assert!(ran.status.success(), "{program} {args:?}: {}\n{}{}", ran.status, ran.stdout, ran.stderr);
    ran.stdout
}

fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" | "nbdfuse" => "libnbd-bin",
        "nbdsh" | "/usr/bin/python3" => "python3-libnbd",
        "qemu-img" | "qemu-io" | "qemu-nbd" => "qemu-utils",
        "fio" => "fio",
        "nbd-client" => "nbd-client",
        "nbdkit" => "nbdkit",
        "fusermount3" => "fuse3",
        _ => "coreutils",
    }
}

/// Shows the export as a file in the folder by nbdfuse while `work` uses it.
pub fn with_nbdfuse(uri: &str, folder: &Path, work: impl FnOnce(&Path)) {
    std::fs::create_dir_all(folder).unwrap();
    let target = folder.join("disk");
    let spawned = Command::new("nbdfuse").arg(&target).arg(uri).spawn();
    let mut nbdfuse =
        spawned.unwrap_or_else(|error| panic!("nbdfuse: {error}; install {}", package("nbdfuse")));
    wait_until(&format!("nbdfuse to show {uri}"), || {
        assert!(nbdfuse.try_wait().unwrap().is_none(), "nbdfuse does not mount {uri}");
        target.exists()
    });
    work(&target);
    succeed("fusermount3", &["-u", folder.to_str().unwrap()]);
    let mut status = None;
    wait_until("nbdfuse to end", || {
        status = nbdfuse.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "nbdfuse: {status:?}");
}

/// Waits until the condition holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TOOL_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {TOOL_TIMEOUT:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A disk image with data, holes and a pattern that differs from sector to sector.
pub fn patterned(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        let number = number as u64;
        if number / 128 % 3 != 1 {
            let value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed).to_le_bytes();
            sector.chunks_mut(8).for_each(|word| word.copy_from_slice(&value[..word.len()]));
        }
    }
    bytes
}
