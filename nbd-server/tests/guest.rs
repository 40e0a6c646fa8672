//! A Linux guest in QEMU whose disks are ours: over TCP, a unix socket and TLS, through restarts of the server and QEMU's
//! block jobs, and with its kernel's own NBD client.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, ByteOffset, MemoryVolume, RequestClass, Volume};
use common::certificates::Authority;
use common::guest::Guest;
use common::{MIB, succeed};
use nbd_server::{
    Export, Exports, ListenAddress, Listener, NbdServer, Operation, ServerOptions, ServerTls, TlsFiles,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const DISK_BYTES: u64 = 24 * MIB;
/// The guest's three disks, what jobs copy to, and what the guest's kernel connects to.
const EXPORTS: [&str; 6] = ["unix", "tcp", "tls", "backup", "copy", "kernel"];

/// A server that can be restarted, and its disks.
struct Host {
    dir: tempfile::TempDir,
    exports: Exports,
    disks: BTreeMap<&'static str, Arc<MemoryVolume>>,
    tls: ServerTls,
    port: u16,
    server: Option<NbdServer>,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let pki = authority.write(&dir.path().join("server"), "server", "localhost");
        authority.write(&dir.path().join("client"), "client", "hypervisor");
        let files = TlsFiles {
            certificate: pki.join("server-cert.pem"),
            key: pki.join("server-key.pem"),
            client_authorities: None,
        };
        let (exports, mut disks) = (Exports::new(), BTreeMap::new());
        for name in EXPORTS {
            let disk = Arc::new(MemoryVolume::new(ByteLen::new(DISK_BYTES)));
            exports.insert(name, Export::new(disk.clone())).unwrap();
            disks.insert(name, disk);
        }
        let tls = ServerTls::load(&files, false).unwrap();
        let mut host = Host { dir, exports, disks, tls, port: 0, server: None };
        host.start();
        host
    }

    fn start(&mut self) {
        let tcp = Listener::bind(&format!("127.0.0.1:{}", self.port).parse().unwrap()).unwrap();
        if let ListenAddress::Tcp(address) = tcp.address() {
            self.port = address.port();
        }
        let unix = Listener::bind(&ListenAddress::Unix(self.dir.path().join("nbd.sock"))).unwrap();
        let options = ServerOptions { tls: Some(self.tls.clone()), ..ServerOptions::default() };
        self.server = Some(NbdServer::start_with(vec![tcp, unix], self.exports.clone(), options).unwrap());
    }

    fn restart(&mut self) {
        self.server.take().unwrap().shutdown().unwrap();
        self.start();
    }

    /// An export as QEMU reaches it: over what it is called after, or TCP.
    fn node(&self, export: &str) -> Value {
        let server = match export {
            "unix" => json!({ "type": "unix", "path": self.dir.path().join("nbd.sock") }),
            _ => json!({ "type": "inet", "host": "127.0.0.1", "port": self.port.to_string() }),
        };
        let mut node = json!({
            "driver": "nbd", "node-name": export, "server": server, "export": export,
            "reconnect-delay": 60, "discard": "unmap", "detect-zeroes": "unmap",
        });
        if export == "tls" {
            node["tls-creds"] = "tls0".into();
            node["tls-hostname"] = "localhost".into();
        }
        node
    }

    fn boot(&self) -> Guest {
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            self.dir.path().join("client").display()
        );
        let disks = ["unix", "tcp", "tls"].map(|export| self.node(export));
        Guest::boot(self.dir.path(), &disks, &["-object".to_owned(), credentials])
    }

    fn bytes(&self, export: &str) -> Vec<u8> {
        self.disks[export].snapshot()
    }

    /// What the guest wrote there with [`write`].
    fn assert_written(&self, export: &str, word: &str, at_mib: u64, mib: u64) {
        let range = (at_mib * MIB) as usize..((at_mib + mib) * MIB) as usize;
        let line = format!("{word}\n");
        let expected: Vec<u8> = line.bytes().cycle().take(range.len()).collect();
        assert!(self.bytes(export)[range] == expected, "{export} holds what the guest wrote at {at_mib} MiB");
    }

    fn written(&self, export: &str) -> u64 {
        let traffic = self.exports.traffic();
        let export = traffic.iter().find(|found| found.name == export).unwrap();
        export.traffic.of(Operation::Write).bytes
    }
}

/// A line for the guest's shell that fills a range past its page cache.
fn write(device: &str, word: &str, at_mib: u64, mib: u64) -> String {
    format!(
        "yes {word} | head -c {} | dd of={device} bs=64k iflag=fullblock oflag=direct seek={} 2>/dev/null",
        mib * MIB,
        at_mib * 16
    )
}

fn format(disk: &MemoryVolume, dir: &Path) {
    let file = dir.join("ext4");
    fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
    succeed("mkfs.ext4", &["-q", "-F", file.to_str().unwrap()]);
    disk.write_at(ByteOffset::ZERO, &fs::read(&file).unwrap(), false, RequestClass::Guest).unwrap();
}

fn check(bytes: &[u8], dir: &Path) -> String {
    let file = dir.join("after");
    fs::write(&file, bytes).unwrap();
    let file = file.to_str().unwrap();
    succeed("e2fsck", &["-f", "-n", file]);
    succeed("debugfs", &["-R", "cat /words", file])
}

#[test]
fn a_guest_lives_on_our_disks_through_restarts_and_block_jobs() {
    let mut host = Host::new();
    format(&host.disks["unix"], host.dir.path());
    let mut guest = host.boot();
    writes_over_every_transport(&mut guest, &host);
    files_outlive_restarts(&mut guest, &mut host);
    block_jobs_copy_what_changed(&mut guest, &host);
    the_kernels_own_client_connects(&mut guest, &host);
    guest.power_off();
}

fn writes_over_every_transport(guest: &mut Guest, host: &Host) {
    for (device, export) in [("/dev/nvme1n1", "tcp"), ("/dev/nvme2n1", "tls")] {
        guest.run(&write(device, export, 2, 2));
        host.assert_written(export, export, 2, 2);
        guest.run(&format!(
            "yes {export} | head -c {} > /expected && dd if={device} iflag=direct bs=64k skip=32 count=32 2>/dev/null | \
             cmp - /expected",
            2 * MIB
        ));
        guest.run(&format!("blkdiscard -o {} -l {MIB} {device}", 3 * MIB));
        assert!(host.bytes(export)[3 << 20..4 << 20].iter().all(|byte| *byte == 0), "{export}: discarded");
    }
}

/// A file system is written while the server is restarted again and again; nobody notices, and it is whole.
fn files_outlive_restarts(guest: &mut Guest, host: &mut Host) {
    guest.run("mount /dev/nvme0n1 /mnt");
    let files = "for n in $(seq 30); do echo word $n >> /mnt/words && sync -d /mnt/words || exit 1; done";
    let raw = "for n in 1 2 3 4 5; do for d in 1 2; do dd if=/expected of=/dev/nvme${d}n1 bs=64k seek=$((n * 64)) \
               oflag=direct conv=fsync 2>/dev/null || exit 1; done; done";
    let both = format!("({raw}) & {files}; wait $!");
    guest.begin(&both);
    for _ in 0..3 {
        let before = host.written("unix");
        common::wait_until("the guest to write on", || host.written("unix") > before);
        host.restart();
    }
    guest.end(&both);
    guest.run("fstrim /mnt; umount /mnt && sync");
    let words: String = (1..=30).map(|number| format!("word {number}\n")).collect();
    assert_eq!(check(&host.bytes("unix"), host.dir.path()), words);
    for export in ["tcp", "tls"] {
        for at_mib in [4, 8, 12, 16, 20] {
            host.assert_written(export, "tls", at_mib, 2);
        }
    }
}

/// A full backup, then an increment by a dirty bitmap, then a mirror that the guest goes on with.
fn block_jobs_copy_what_changed(guest: &mut Guest, host: &Host) {
    for export in ["backup", "copy"] {
        guest.qmp("blockdev-add", host.node(export));
    }
    guest.qmp("block-dirty-bitmap-add", json!({ "node": "tcp", "name": "since" }));
    let job = json!({ "job-id": "full", "device": "tcp", "target": "backup", "sync": "full" });
    guest.qmp("blockdev-backup", job);
    let done = guest.job_event("BLOCK_JOB_COMPLETED", "full");
    assert!(done["data"]["error"].is_null(), "{done}");
    assert!(host.bytes("backup") == host.bytes("tcp"), "a full backup");

    let before = host.written("backup");
    guest.run(&write("/dev/nvme1n1", "increment", 9, 1));
    let job = json!({
        "job-id": "increment", "device": "tcp", "target": "backup", "sync": "incremental", "bitmap": "since",
    });
    guest.qmp("blockdev-backup", job);
    let done = guest.job_event("BLOCK_JOB_COMPLETED", "increment");
    assert!(done["data"]["error"].is_null(), "{done}");
    host.assert_written("backup", "increment", 9, 1);
    assert!(host.bytes("backup") == host.bytes("tcp"), "an increment");
    assert_eq!(host.written("backup") - before, MIB, "and no more than what changed");

    let job = json!({ "job-id": "mirror", "device": "tcp", "target": "copy", "sync": "full" });
    guest.qmp("blockdev-mirror", job);
    guest.run(&write("/dev/nvme1n1", "meanwhile", 14, 1));
    guest.job_event("BLOCK_JOB_READY", "mirror");
    guest.qmp("block-job-complete", json!({ "device": "mirror" }));
    let done = guest.job_event("BLOCK_JOB_COMPLETED", "mirror");
    assert!(done["data"]["error"].is_null(), "{done}");
    assert!(host.bytes("copy") == host.bytes("tcp"), "a mirror");
    guest.run(&write("/dev/nvme1n1", "afterwards", 16, 1));
    host.assert_written("copy", "afterwards", 16, 1);
}

/// Linux's client, with two connections.
fn the_kernels_own_client_connects(guest: &mut Guest, host: &Host) {
    guest.connect();
    guest.run(&format!("nbd-client 10.0.2.2 {} -N kernel -C 2 /dev/nbd0", host.port));
    guest.run(&write("/dev/nbd0", "kernel", 3, 1));
    host.assert_written("kernel", "kernel", 3, 1);
    guest.run(&format!(
        "yes kernel | head -c {} > /expected && dd if=/dev/nbd0 iflag=direct bs=64k skip=48 count=16 2>/dev/null | cmp - \
         /expected",
        MIB
    ));
    let traffic = host.exports.traffic();
    let kernel = traffic.iter().find(|export| export.name == "kernel").unwrap();
    assert_eq!(kernel.clients.len(), 2);
    guest.run("mke2fs -q /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt && echo in the kernel > /mnt/words && umount /mnt");
    guest.run("nbd-client -d /dev/nbd0");
    assert_eq!(check(&host.bytes("kernel"), host.dir.path()), "in the kernel\n");
}
