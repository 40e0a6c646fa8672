//! A small Linux in QEMU: a shell on its serial console, and QEMU's own control socket.
//!
//! The kernel is what scripts/prepare has unpacked; the rest is busybox, and nbd-client with its libraries. No hardware
//! virtualisation is needed: the guest is up within seconds without.

use super::{TOOL_TIMEOUT, succeed};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Where scripts/prepare unpacks a kernel and its modules.
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest-kernel");
const READY: &str = "understudy-ready";
const ENDED: &str = "understudy-ended";
/// Echoes nothing, says how each line ended.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
echo understudy-ready
while read -r line; do (eval \"$line\"); echo \"understudy-ended $?\"; done
";

/// A guest that runs. It is gone with the test.
pub struct Guest {
    qemu: Child,
    serial: Receiver<String>,
    keys: std::process::ChildStdin,
    control: BufReader<UnixStream>,
    /// Of QEMU, that nobody has waited for yet.
    events: Vec<Value>,
}

impl Guest {
    /// Boots it with these `-blockdev` nodes as its NVMe disks, in that order, and other arguments for QEMU.
    pub fn boot(dir: &Path, disks: &[Value], more: &[String]) -> Guest {
        let kernel = Path::new(KERNEL);
        assert!(kernel.join("vmlinuz").exists(), "{KERNEL} has no kernel: scripts/prepare unpacks one");
        let (initrd, control) = (initrd(dir, kernel), dir.join("qmp.sock"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-reboot", "-display", "none", "-accel", "tcg", "-m", "256"]);
        command.args(["-serial", "stdio", "-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
        command.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(initrd);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(more);
        for (number, disk) in disks.iter().enumerate() {
            let node = disk["node-name"].as_str().unwrap();
            command.arg("-blockdev").arg(disk.to_string());
            command.arg("-device").arg(format!("nvme,id={node},drive={node},serial=disk{number}"));
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut qemu =
            spawned.unwrap_or_else(|error| panic!("qemu-system-x86_64: {error}; run scripts/prepare"));
        let (keys, screen) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
        let (lines, serial) = channel();
        std::thread::spawn(move || {
            let said = BufReader::new(screen).split(b'\n').map_while(Result::ok);
            said.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
                .try_for_each(|line| lines.send(line))
        });
        let control = BufReader::new(connect(&control));
        let mut guest = Guest { qemu, serial, keys, control, events: Vec::new() };
        guest.message();
        guest.qmp("qmp_capabilities", json!({}));
        guest.until(READY);
        guest
    }

    /// What the guest says until a line that starts so, and the rest of that line.
    fn until(&mut self, mark: &str) -> (String, String) {
        let mut said = String::new();
        loop {
            let Ok(line) = self.serial.recv_timeout(TOOL_TIMEOUT) else {
                panic!("the guest does not say '{mark}', only:\n{said}");
            };
            if let Some(rest) = line.strip_prefix(mark) {
                return (said, rest.trim().to_owned());
            }
            said.push_str(&line);
            said.push('\n');
        }
    }

    /// Types a line for its shell.
    pub fn begin(&mut self, line: &str) {
        writeln!(self.keys, "{line}").unwrap();
    }

    /// Waits for the end of the line that was typed, which must succeed; what it has printed.
    pub fn end(&mut self, line: &str) -> String {
        let (said, status) = self.until(ENDED);
        assert_eq!(status, "0", "{line}: {said}");
        said
    }

    /// Both.
    pub fn run(&mut self, line: &str) -> String {
        self.begin(line);
        self.end(line)
    }

    /// Has QEMU execute a command; what it returns.
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.control.get_mut(), "{request}").unwrap();
        loop {
            let mut message = self.message();
            if !message["event"].is_null() {
                self.events.push(message);
                continue;
            }
            assert!(message["error"].is_null(), "{request}: {message}");
            return message["return"].take();
        }
    }

    /// Gives it a network, 10.0.2.2 being the host, and its kernel's NBD client.
    pub fn connect(&mut self) {
        // Each needs some of the others, which ones depends on the version.
        self.run("for m in /modules/*.ko /modules/*.ko /modules/*.ko /modules/*.ko; do insmod $m; done 2>/dev/null; \
             test -e /sys/module/nbd && ifconfig eth0 10.0.2.15 up");
    }

    /// Waits for an event about a job.
    pub fn job_event(&mut self, name: &str, job: &str) -> Value {
        loop {
            let wanted = |event: &Value| event["event"] == name && event["data"]["device"] == job;
            if let Some(at) = self.events.iter().position(wanted) {
                return self.events.remove(at);
            }
            let message = self.message();
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU says '{line}': {error}"))
    }

    /// Switches it off.
    pub fn power_off(mut self) {
        self.begin("poweroff -f");
        let deadline = Instant::now() + TOOL_TIMEOUT;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the guest does not power off");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + TOOL_TIMEOUT;
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            stream.set_read_timeout(Some(TOOL_TIMEOUT)).unwrap();
            return stream;
        }
        assert!(Instant::now() < deadline, "QEMU does not listen on {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The guest's files: busybox, modules, nbd-client and its libraries.
fn initrd(dir: &Path, kernel: &Path) -> PathBuf {
    let (root, initrd) = (dir.join("root"), dir.join("initrd"));
    for folder in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("init"), INIT).unwrap();
    succeed("chmod", &["+x", root.join("init").to_str().unwrap()]);
    for file in fs::read_dir(kernel).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "ko") {
            fs::copy(&file, root.join("modules").join(file.file_name().unwrap())).unwrap();
        }
    }
    let client = ["/usr/bin/busybox", "/usr/sbin/nbd-client"].map(PathBuf::from);
    let libraries = succeed("ldd", &["/usr/sbin/nbd-client"]);
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in client.into_iter().chain(libraries) {
        // Programs where busybox has its own, libraries where the loader looks.
        let target =
            match file.parent().is_some_and(|parent| parent.ends_with("bin") || parent.ends_with("sbin")) {
                true => root.join("bin").join(file.file_name().unwrap()),
                false => root.join(file.strip_prefix("/").unwrap()),
            };
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target)
            .unwrap_or_else(|error| panic!("{}: {error}; run scripts/prepare", file.display()));
    }
    let pack =
        format!("cd '{}' && find . | cpio --quiet -o -H newc > '{}'", root.display(), initrd.display());
    succeed("sh", &["-c", &pack]);
    initrd
}
