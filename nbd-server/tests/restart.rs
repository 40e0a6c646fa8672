//! A server that is killed and comes back: clients that reconnect see no error, and nothing that was answered is lost.
//! The server is this program again, started on the ignored test below.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{
    Allocation, ByteLen, ByteOffset, Error, Extent, ExtentStatus, RequestClass, Result, Volume, check_request,
};
use common::{MIB, succeed};
use nbd_server::{Export, Exports, Limits, ListenAddress, Listener, NbdServer};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file in the page cache, which outlives the process.
struct FileVolume(File);

impl Volume for FileVolume {
    fn len(&self) -> ByteLen {
        ByteLen::new(self.0.metadata().unwrap().len())
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        check_request(self.len(), self.alignment(), offset, ByteLen::of(buffer))?;
        self.0.read_exact_at(buffer, offset.get()).map_err(|error| Error::io("reading", error))
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], _: bool, _: RequestClass) -> Result<()> {
        check_request(self.len(), self.alignment(), offset, ByteLen::of(data))?;
        self.0.write_all_at(data, offset.get()).map_err(|error| Error::io("writing", error))
    }
    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, class: RequestClass) -> Result<()> {
        self.write_at(extent.start(), &vec![0; extent.len().as_usize()], fua, class)
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }
    fn flush(&self) -> Result<()> {
        self.0.sync_data().map_err(|error| Error::io("syncing", error))
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }])
    }
}

#[test]
#[ignore = "the server of the other tests, not a test"]
fn serve_until_killed() {
    let Some(file) = std::env::var_os("RESTART_FILE") else { return };
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let exports = Exports::new();
    exports.insert("", Export::new(Arc::new(FileVolume(file)))).unwrap();
    let mut listeners = Listener::inherited().unwrap();
    if let Some(socket) = std::env::var_os("RESTART_SOCKET") {
        listeners.push(Listener::bind(&ListenAddress::Unix(PathBuf::from(socket))).unwrap());
    }
    let _server = NbdServer::start(listeners, exports, Limits::default()).unwrap();
    loop {
        std::thread::park();
    }
}

const SERVE: [&str; 4] = ["--exact", "serve_until_killed", "--ignored", "--nocapture"];

/// A child that dies with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(file: &Path, socket: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(SERVE).env("RESTART_FILE", file).env("RESTART_SOCKET", socket);
    Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often the server is killed; more in scripts/soak.
fn kills() -> u32 {
    std::env::var("NBD_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10)
}

fn disk(dir: &Path, mib: u64) -> PathBuf {
    let path = dir.join("disk");
    File::create(&path).unwrap().set_len(mib * MIB).unwrap();
    path
}

#[test]
fn fio_verifies_through_a_client_that_reconnects_while_the_server_is_killed_ten_times() {
    // Long enough for all the kills, at fio's rate.
    let mib = u64::from(3 * kills() + 2);
    let dir = tempfile::tempdir().unwrap();
    let (file, socket, front) =
        (disk(dir.path(), mib), dir.path().join("back.sock"), dir.path().join("front.sock"));
    let mut server = serve(&file, &socket);
    wait_for("the server", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(&front).args(["--filter=retry", "nbd"]);
    nbdkit.arg(format!("socket={}", socket.display())).args([
        "retry-delay=1",
        "retry-exponential=no",
        "retries=60",
    ]);
    let _nbdkit = Killed(nbdkit.spawn().unwrap());
    wait_for("nbdkit", || std::os::unix::net::UnixStream::connect(&front).is_ok());
    let uri = format!("--uri=nbd+unix:///?socket={}", front.display());
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8"]);
    fio.args([
        &format!("--size={mib}m"),
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
    ]);
    fio.args(["--fsync=32", "--rate=3m", "--randrepeat=0", "--norandommap=0", "--output-format=terse"]);
    let mut fio = Killed(fio.stdout(Stdio::piped()).spawn().unwrap());
    // Only what is connected can reconnect.
    wait_for("fio's first write", || std::fs::metadata(&file).unwrap().blocks() > 0);
    let mut killed = 0;
    while killed < kills() && fio.0.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(500));
        drop(server);
        server = serve(&file, &socket);
        killed += 1;
    }
    assert_eq!(killed, kills(), "fio has ended too early");
    wait_for("fio", || fio.0.try_wait().unwrap().is_some());
    assert!(fio.0.wait().unwrap().success(), "an error has reached the client, or a write was lost");
    drop(server);
}

#[test]
fn a_qemu_with_reconnect_delay_sees_no_error_while_the_server_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (disk(dir.path(), 32), dir.path().join("nbd.sock"));
    let mut server = serve(&file, &socket);
    wait_for("the server", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let options = format!("driver=nbd,server.type=unix,server.path={},reconnect-delay=60", socket.display());
    let mut qemu = Command::new("qemu-io");
    qemu.args(["--image-opts", &options]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = Killed(qemu.spawn().unwrap());
    let mut ask = qemu.0.stdin.take().unwrap();
    let said = BufReader::new(qemu.0.stdout.take().unwrap());
    let (send, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        said.lines().map_while(std::result::Result::ok).for_each(|line| drop(send.send(line)));
    });
    for round in 0..kills() {
        let (pattern, at) = (round % 200 + 1, u64::from(round % 31) * MIB);
        writeln!(ask, "write -P {pattern} {at} 256k\nflush").unwrap();
        let wrote = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(wrote.contains("wrote 262144/262144"), "round {round}: {wrote}");
        let _ops = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        drop(server);
        server = serve(&file, &socket);
        writeln!(ask, "read -P {pattern} {at} 256k").unwrap();
        let read = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(read.contains("read 262144/262144"), "round {round}: {read}");
        let _ops = heard.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    writeln!(ask, "quit").unwrap();
    assert!(qemu.0.wait().unwrap().success());
    reader.join().unwrap();
    drop(server);
}

#[test]
fn a_service_managers_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = disk(dir.path(), 32);
    // libnbd opens a socket and passes it the way systemd does.
    let exe = std::env::current_exe().unwrap();
    let mut args = vec!["--size", "--", "[", exe.to_str().unwrap()];
    args.extend(SERVE);
    args.push("]");
    let file_variable = format!("RESTART_FILE={}", file.display());
    let mut all = vec![file_variable.as_str(), "nbdinfo"];
    all.extend(args);
    let said = succeed("env", &all);
    assert!(said.lines().any(|line| line.trim() == (32 * MIB).to_string()), "{said}");
}
