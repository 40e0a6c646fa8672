//! A whole computer: the machine of scripts/machine in QEMU, without hardware virtualisation.

use super::console::Console;
use super::process::Process;
use super::run;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How a computer starts and what its disk looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// BIOS, partitions, ext4.
    Bios,
    /// UEFI, LVM, XFS.
    Uefi,
    /// The rescue system; the disks that are named come after its own.
    Rescue,
    /// The same on a newer kernel (scripts/prepare), which has ublk.
    RescueNewer,
}

/// A computer that runs. Dropping it is a power cut.
pub struct Computer {
    qemu: Process,
    pub console: Console,
}

/// What a computer is made of.
pub struct Parts {
    pub layout: Layout,
    /// Its disks, raw files, in order; `true` where what is written is thrown away.
    pub disks: Vec<(PathBuf, bool)>,
    /// Where its sockets and logs go.
    pub folder: PathBuf,
}

/// Half an hour of a busy machine's patience for the first of all tests, which makes the disks.
fn image(layout: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/machine/image");
    PathBuf::from(run(Command::new(script).arg(layout)).trim())
}

impl Layout {
    /// A copy of the disk as it was installed.
    pub fn disk(self, to: &Path) {
        let made = image(match self {
            Layout::Bios => "bios",
            Layout::Uefi => "uefi",
            Layout::Rescue | Layout::RescueNewer => {
                panic!("a rescue system has no disk of its own to be copied")
            }
        });
        run(Command::new("cp").arg("--sparse=always").arg(made).arg(to));
    }
}

/// The system that the machine was installed from, as QEMU starts it: disk, kernel, initrd. Not to be written to.
fn rescue_system() -> [PathBuf; 3] {
    let paths = image("rescue");
    let mut paths = paths.to_str().expect("a path").split(' ').map(PathBuf::from);
    [(); 3].map(|()| paths.next().expect("scripts/machine/image prints three paths"))
}

/// Where scripts/prepare unpacks that kernel, and modules of it.
pub fn ublk_kernel() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/ublk-kernel"))
}

/// What finds the rescue system's disk for that kernel.
fn newer_initrd(folder: &Path) -> PathBuf {
    const INIT: &str = "#!/bin/busybox sh\nset -e\nb=/bin/busybox\n$b mount -t devtmpfs dev /dev\n\
        $b insmod /virtio_blk.ko\nuntil [ -b /dev/vda ]; do $b sleep 0.1; done\n\
        $b mount -t ext4 /dev/vda /root\n$b mount -o move /dev /root/dev\n\
        exec $b switch_root /root /sbin/init\n";
    for name in ["bin", "dev", "root"] {
        std::fs::create_dir_all(folder.join(name)).expect("a folder");
    }
    std::fs::write(folder.join("init"), INIT).expect("a file");
    let init = folder.join("init");
    let module = ublk_kernel().join("virtio_blk.ko");
    run(Command::new("chmod").arg("755").arg(&init));
    run(Command::new("cp").arg(module).arg(folder));
    run(Command::new("cp").arg("/usr/bin/busybox").arg(folder.join("bin")));
    let packed = folder.with_extension("cpio");
    let pack =
        format!("cd '{}' && find . | cpio --quiet -o -H newc >'{}'", folder.display(), packed.display());
    run(Command::new("sh").args(["-c", &pack]));
    packed
}

/// A disk of a file system with these files in it.
pub fn disk_of_files(folder: &Path, to: &Path, mib: u64) {
    run(Command::new("truncate").args(["-s", &format!("{mib}M")]).arg(to));
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "files", "-d"]).arg(folder).arg(to));
}

impl Computer {
    /// Switches it on.
    pub fn start(parts: &Parts) -> Computer {
        let at = |name: &str| parts.folder.join(name);
        std::fs::create_dir_all(&parts.folder).expect("a folder");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-machine", "q35"]);
        qemu.args(["-smp", "2", "-m", "1024"]);
        qemu.args(match parts.layout {
            // QEMU 7.2 lets cmpxchg16b go wrong at times, and one processor run what another is just patching: a boot in five
            // of this kernel ends in either.
            Layout::RescueNewer => ["-accel", "tcg,thread=single", "-cpu", "max,-cx16"],
            _ => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        });
        qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:75:73:01"]);
        qemu.arg("-serial").arg(format!("unix:{},server=on,wait=off", at("console.sock").display()));
        qemu.arg("-serial").arg(format!("file:{}", at("told").display()));
        if parts.layout == Layout::Uefi {
            let vars = at("firmware-vars.fd");
            run(Command::new("cp").arg("/usr/share/OVMF/OVMF_VARS_4M.fd").arg(&vars));
            qemu.args([
                "-drive",
                "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
            ]);
            qemu.arg("-drive").arg(format!("if=pflash,unit=1,format=raw,file={}", vars.display()));
        }
        let mut disks = parts.disks.clone();
        if matches!(parts.layout, Layout::Rescue | Layout::RescueNewer) {
            let [disk, mut kernel, mut initrd] = rescue_system();
            if parts.layout == Layout::RescueNewer {
                kernel = ublk_kernel().join("vmlinuz");
                initrd = newer_initrd(&at("initrd"));
            }
            qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
            qemu.args(["-append", "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1"]);
            disks.insert(0, (disk, true));
        }
        for (number, (file, thrown_away)) in disks.iter().enumerate() {
            let snapshot = if *thrown_away { "on" } else { "off" };
            // It stays with the disk, wherever that is plugged in.
            let serial = file.file_stem().expect("a file's name").to_string_lossy();
            let file = file.display();
            qemu.arg("-drive")
                .arg(format!("file={file},format=raw,if=none,id=disk{number},snapshot={snapshot}"));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number},serial={serial}"));
        }
        let qemu = Process::start(qemu, None, &at("qemu.log"));
        Computer { qemu, console: Console::connect(&at("console.sock")) }
    }

    /// The process that is its power supply.
    pub fn id(&self) -> u32 {
        self.qemu.id()
    }

    /// Cuts the power.
    pub fn cut_power(self) {
        self.qemu.kill();
    }

    /// Shuts it down in order.
    pub fn shut_down(mut self) {
        self.console.type_last("systemctl poweroff");
        let started = Instant::now();
        while self.qemu.alive() {
            assert!(started.elapsed() < Duration::from_secs(180), "the computer does not shut down");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
