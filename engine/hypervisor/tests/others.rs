//! Definitions as other people's programs take them: QEMU starts with the command, libvirt's schema holds for the domain.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use blocks::ByteLen;
use hypervisor::{
    Acceleration, Architecture, Definition, Disk, DiskFormat, Firmware, Form, FormOptions, Source,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LEN: ByteLen = ByteLen::new(16 << 20);

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn disk(source: Source, serial: &str) -> Disk {
    Disk { len: LEN, serial: Some(serial.to_owned()), wwn: None, source }
}

fn machine(firmware: Firmware, disks: Vec<Disk>) -> Definition {
    Definition {
        name: "web-1".to_owned(),
        host_name: "a <b> & \"c\"\nd".to_owned(),
        firmware,
        architecture: Architecture::X86_64,
        cpus: 2,
        memory: ByteLen::new(128 << 20),
        nics: vec!["52:54:00:00:00:01".parse().unwrap(), "00:25:90:aa:bb:cc".parse().unwrap()],
        disks,
    }
}

/// Files of two formats in a folder whose name would break out of a careless command.
fn files(folder: &Path) -> Vec<Source> {
    let hostile = folder.join("it's, a \"disk\" $(false); x");
    std::fs::create_dir(&hostile).unwrap();
    [DiskFormat::Qcow2, DiskFormat::Raw]
        .map(|format| {
            let path = hostile.join(format!("disk.{format}"));
            let len = LEN.to_string();
            run(Command::new("qemu-img").args(["create", "-q", "-f", format.of_qemu()]).arg(&path).arg(len));
            Source::File { path: path.to_str().unwrap().to_owned(), format }
        })
        .to_vec()
}

/// A QEMU that waits for orders, and is gone afterwards.
struct Qemu {
    child: Child,
    orders: BufReader<UnixStream>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn start(command: &str, folder: &Path) -> Qemu {
        let socket = folder.join("qmp");
        let line = format!(
            "exec {} -S -display none -qmp unix:{},server=on,wait=off",
            command.trim_end(),
            socket.display()
        );
        let mut child = Command::new("sh").arg("-c").arg(line).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if child.try_wait().unwrap().is_some() {
                let output = child.wait_with_output().unwrap();
                panic!("QEMU ended: {}\n{command}", String::from_utf8_lossy(&output.stderr));
            }
            assert!(started.elapsed() < Duration::from_secs(120), "QEMU does not answer");
            std::thread::sleep(Duration::from_millis(50));
        };
        let mut qemu = Qemu { child, orders: BufReader::new(stream) };
        assert!(qemu.line()["QMP"].is_object());
        qemu.ask("qmp_capabilities");
        qemu
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.orders.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, order: &str) -> Value {
        writeln!(self.orders.get_mut(), "{}", json!({ "execute": order })).unwrap();
        loop {
            let line = self.line();
            assert!(line["error"].is_null(), "{order}: {line}");
            if !line["return"].is_null() {
                return line["return"].clone();
            }
        }
    }

    fn quit(mut self) {
        self.ask("quit");
        assert!(self.child.wait().unwrap().success());
    }
}

fn command(definition: &Definition) -> String {
    let options = FormOptions { acceleration: Acceleration::Tcg, ..FormOptions::default() };
    Form::Qemu.write(definition, &options).unwrap().text
}

#[test]
fn qemu_starts_with_the_command_and_has_the_disks() {
    let long = "A serial number of thirty-six bytes.";
    for (firmware, serial) in [(Firmware::Bios, "it's, \"S\" $1"), (Firmware::Uefi, long)] {
        let folder = tempfile::tempdir().unwrap();
        let mut disks: Vec<_> = files(folder.path()).into_iter().map(|source| disk(source, serial)).collect();
        if firmware == Firmware::Uefi {
            disks[1].wwn = Some("naa.5000c500a1b2c3d4".to_owned());
        }
        let mut qemu = Qemu::start(&command(&machine(firmware, disks)), folder.path());
        let blocks = qemu.ask("query-block");
        let inserted = blocks.as_array().unwrap().iter().map(|block| &block["inserted"]);
        let found: Vec<_> = inserted
            .filter(|inserted| inserted["node-name"].as_str().is_some_and(|name| name.starts_with("disk")))
            .map(|inserted| (inserted["node-name"].as_str().unwrap(), inserted["drv"].as_str().unwrap()))
            .collect();
        assert_eq!(found, [("disk0", "qcow2"), ("disk1", "raw")], "{blocks}");
        qemu.quit();
    }
}

#[test]
fn qemu_reaches_exports_at_a_socket_and_at_a_port() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a, b.sock");
    let mut server = Command::new("nbdkit")
        .args(["-f", "-e", "x,y", "-U"])
        .arg(&socket)
        .args(["memory", "16M"])
        .spawn()
        .unwrap();
    let started = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60), "nbdkit does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let path = socket.to_str().unwrap().replace(' ', "%20").replace(',', "%2C");
    let source: Source = format!("nbd+unix:///x%2Cy?socket={path}").parse().unwrap();
    let mut qemu = Qemu::start(&command(&machine(Firmware::Bios, vec![disk(source, "S1")])), folder.path());
    let blocks = qemu.ask("query-block").to_string();
    assert!(blocks.contains("\"driver\":\"nbd\"") || blocks.contains("nbd+unix"), "{blocks}");
    qemu.quit();
    server.kill().unwrap();
    server.wait().unwrap();
}

fn validate(definition: &Definition, what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domain.xml");
    std::fs::write(&path, Form::Libvirt.write(definition, &FormOptions::default()).unwrap().text).unwrap();
    let output = Command::new("virt-xml-validate").arg(&path).arg("domain").output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{what}: {said}\n{}", std::fs::read_to_string(&path).unwrap());
}

#[test]
fn libvirts_schema_holds_for_every_kind_of_domain() {
    let sources =
        ["/srv/a b.qcow2", "/dev/sdb:raw", "nbd://[::1]:7/x", "nbds://host/y", "nbd+unix:///z?socket=/run/s"];
    let disks: Vec<_> = sources.iter().map(|source| disk(source.parse().unwrap(), "S 1_.+-")).collect();
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        validate(&machine(firmware, disks.clone()), "plain");
    }
    let mut named = machine(Firmware::Bios, disks.clone());
    named.disks[1].wwn = Some("naa.5000c500a1b2c3d4".to_owned());
    validate(&named, "on a SCSI bus");
    validate(&Definition { architecture: Architecture::Aarch64, ..machine(Firmware::Uefi, disks) }, "ARM");
    for hostile in ["</name><evil/>", "a\" 'b' &\n\r\t", "\u{1}\u{202e}ü", ""] {
        let path = format!("/srv/{}", hostile.replace(['\n', '\r'], " "));
        let source = Source::File { path, format: DiskFormat::Raw };
        let machine = machine(Firmware::Bios, vec![disk(source, hostile)]);
        validate(&Definition { host_name: hostile.to_owned(), ..machine }, hostile);
    }
}

#[test]
fn a_schema_that_finds_nothing_wrong_would_prove_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domain.xml");
    std::fs::write(&path, "<domain type='kvm'><name>x</name><memory>many</memory></domain>").unwrap();
    assert!(!Command::new("virt-xml-validate").arg(&path).arg("domain").output().unwrap().status.success());
}
