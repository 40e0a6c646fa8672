//! A machine that is shut down in order needs no scan at its next start, and every other one does. A restart is played on a
//! loop device: what the kernel knew of it is gone, its counts begin at zero, and the boot has another name.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use support::disk::Mount;
use support::process::Process;
use support::{NAME, Stage, program, run, sh};

/// There is one place where root is looked into.
static TURN: Mutex<()> = Mutex::new(());

/// A protected machine whose only disk holds its root file system, with the agent's state on it.
struct Machine {
    stage: Stage,
    root: Option<Mount>,
    boots: u32,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    fn new(file_system: &str) -> Machine {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stage = Stage::new(400);
        sh(&format!("mkfs.{file_system} -q {}", stage.disk.device()));
        stage.start_server(None);
        let mut machine = Machine { stage, root: None, boots: 0, _turn: turn };
        machine.start();
        machine.stage.wait_protected();
        machine.work("first");
        machine
    }

    fn mount_point(&self) -> PathBuf {
        self.stage.path("root")
    }

    fn device(&self) -> String {
        self.stage.disk.device().to_owned()
    }

    /// Runs it as in the boot of this machine.
    fn in_boot(&self, command: &Command) -> Command {
        let id = self.stage.path("boot-id");
        std::fs::write(&id, format!("00000000-0000-4000-8000-{:012}\n", self.boots)).unwrap();
        let mut inside = Command::new("unshare");
        let bind = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", id.display());
        inside.args(["-m", "--propagation", "slave", "sh", "-c", &bind, "sh"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// Root is mounted and the agent starts.
    fn start(&mut self) {
        self.root = Some(self.stage.disk.mount(&self.mount_point()));
        let _ = std::fs::remove_file(self.stage.path("agent.log"));
        let mut command = program();
        command.args(["agent", "--server", &format!("127.0.0.1:{}", self.stage.port), "--name", NAME]);
        command.args(["--heartbeat", "500ms", "--checkpoint-every", "1h", "--disk", &self.device()]);
        command.arg("--state").arg(self.mount_point().join("state"));
        self.stage.agent = Some(Process::start(self.in_boot(&command), None, &self.stage.path("agent.log")));
    }

    /// Something is written.
    fn work(&self, name: &str) {
        let data: Vec<u8> = name.bytes().cycle().take(3 << 20).collect();
        std::fs::write(self.mount_point().join(name), data).unwrap();
        sh(&format!("sync -f {}", self.mount_point().display()));
    }

    /// The agent is stopped, and after it others still write.
    fn stop_agent(&mut self) {
        self.stage.agent.take().unwrap().stop();
        self.work("after the agent");
    }

    /// Everything else of a shutdown: what it says of the disk.
    fn shut_down(&mut self) -> Value {
        self.stop_agent();
        sh(&format!("mount -o remount,ro {}", self.mount_point().display()));
        let mut command = program();
        command.args(["--json", "agent", "at-shutdown", "--state"]).arg(self.mount_point().join("state"));
        let said = self.said(&command);
        // The power goes while root is still mounted; an XFS would write when it is unmounted, though it is read-only.
        let left = self.stage.path("left");
        copy(self.stage.disk.file(), &left);
        self.root = None;
        copy(&left, self.stage.disk.file());
        said
    }

    /// What a command of this boot says of the disk; or its error.
    fn said(&self, command: &Command) -> Value {
        let output = self.in_boot(command).output().unwrap();
        let said = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        match said["disks"].get(0) {
            Some(disk) => disk.clone(),
            None => Value::String(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The kernel forgets everything about the disk.
    fn switch_off_and_on(&mut self) {
        let device = self.device();
        let number = device.trim_start_matches("/dev/loop");
        let _ = std::fs::remove_dir_all(format!("/sys/fs/bpf/understudy/loop{number}"));
        // LOOP_CTL_REMOVE, LOOP_CTL_ADD of linux/loop.h.
        let anew = format!(
            "import fcntl, os\ncontrol = os.open('/dev/loop-control', os.O_RDWR)\n\
             fcntl.ioctl(control, 0x4C81, {number})\nfcntl.ioctl(control, 0x4C80, {number})"
        );
        self.stage.disk.attach_again(|| drop(run(Command::new("python3").args(["-c", &anew]))));
        self.boots += 1;
    }

    /// What the initramfs does: what it says of the disk.
    fn boot(&self) -> Value {
        self.said(&self.at_boot())
    }

    fn at_boot(&self) -> Command {
        let mut command = program();
        command.args(["--json", "agent", "at-boot", "--root", &self.device(), "--disk", &self.device()]);
        command.args(["--state", "/state"]);
        command
    }

    /// Starts the agent, and waits until it protects; whether it went through the whole disk for that.
    fn protects(&mut self) -> bool {
        self.start();
        self.stage.wait_until("the agent", 60, |stage| {
            let tracker = stage.status("/disks/0/tracker").as_str().unwrap_or_default().to_owned();
            stage.status("/state") == "protected" && !tracker.contains("not trusted")
        });
        let log = std::fs::read_to_string(self.stage.path("agent.log")).unwrap();
        log.contains("going through the whole disk")
    }

    /// What the server has ever received of the disk, in bytes.
    fn received(&self) -> u64 {
        self.stage.status("/disks/0/received_bytes").as_u64().unwrap()
    }

    /// The stand-in equals the disk, by hashes that the server compares and by cmp.
    fn assert_equal(&mut self, name: &str) {
        self.work(name);
        let verified = self.stage.insist(&["verify", NAME]);
        assert_eq!(verified["disks"][0]["differing"], serde_json::json!([]), "{verified}");
        let root = self.mount_point().display().to_string();
        sh(&format!("mount -o remount,ro {root}"));
        self.stage.assert_stand_in_equals_disk(name);
        sh(&format!("mount -o remount,rw {root}"));
    }
}

const WELL: Value = Value::Null;

fn survives_an_orderly_restart(file_system: &str) {
    let mut machine = Machine::new(file_system);
    for round in ["one", "two"] {
        let recorded = machine.shut_down();
        assert_eq!((&recorded["carried"], &recorded["why_not"]), (&true.into(), &WELL), "{recorded}");
        machine.switch_off_and_on();
        let taken_over = machine.boot();
        assert_eq!((&taken_over["carried"], &taken_over["why_not"]), (&true.into(), &WELL), "{taken_over}");
        let again = machine.boot().to_string();
        assert!(again.contains("no shutdown was recorded"), "a record is good for once: {again}");
        let received = machine.received();
        assert!(!machine.protects(), "nothing had to be scanned\n{}", machine.stage.logs());
        machine.assert_equal(round);
        let sent = machine.received() - received;
        assert!(sent < 40 << 20, "{sent} bytes were sent");
    }
}

#[test]
fn an_orderly_restart_needs_no_scan_on_ext4() {
    survives_an_orderly_restart("ext4");
}

#[test]
fn an_orderly_restart_needs_no_scan_on_xfs() {
    survives_an_orderly_restart("xfs");
}

/// Switches the machine off after a shutdown in order, lets `meanwhile` happen, and boots it: at-boot refuses with those words, the
/// disk is scanned, and the stand-in equals it.
fn is_scanned_after(meanwhile: impl FnOnce(&mut Machine), words: &str) {
    let mut machine = Machine::new("ext4");
    assert_eq!(machine.shut_down()["carried"], true);
    machine.switch_off_and_on();
    meanwhile(&mut machine);
    let said = machine.boot().to_string();
    assert!(said.contains(words), "{said}");
    assert!(machine.protects(), "it had to be scanned\n{}", machine.stage.logs());
    machine.assert_equal("scanned");
}

#[test]
fn a_disk_that_somebody_mounted_meanwhile_is_scanned() {
    let mounts_it = |machine: &mut Machine| {
        let elsewhere = Mount::new(&machine.device(), &machine.stage.path("rescue"));
        std::fs::write(elsewhere.path().join("note"), "left by a rescue system").unwrap();
        drop(elsewhere);
        // On another machine: this one's kernel has counted none of it.
        machine.switch_off_and_on();
    };
    is_scanned_after(mounts_it, "somebody has written to it");
}

#[test]
fn a_disk_that_was_written_in_this_boot_before_us_is_scanned() {
    let writes = |machine: &mut Machine| {
        let device = std::fs::OpenOptions::new().write(true).open(machine.device()).unwrap();
        device.write_all_at(&[5; 4096], 200 << 20).unwrap();
        device.sync_all().unwrap();
    };
    is_scanned_after(writes, "bytes were written to it before it was tracked");
}

#[test]
fn a_disk_that_grew_while_the_machine_was_off_is_scanned_and_followed() {
    is_scanned_after(|machine| machine.stage.disk.resize(440), "no such disk is there any more");
}

#[test]
fn a_boot_that_dies_after_it_struck_out_the_record_leads_to_a_scan() {
    let dies = |machine: &mut Machine| {
        let mut command = machine.in_boot(&machine.at_boot());
        let output = command.env("UNDERSTUDY_CRASH_AT", "reboot.struck").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("dying at reboot.struck"), "{output:?}");
        let _ = Command::new("umount").arg("/run/understudy/root").output();
        machine.switch_off_and_on();
    };
    is_scanned_after(dies, "no shutdown was recorded");
}

#[test]
fn a_power_cut_leaves_no_record() {
    let mut machine = Machine::new("ext4");
    machine.stop_agent();
    machine.root = None;
    machine.switch_off_and_on();
    let said = machine.boot().to_string();
    assert!(said.contains("no shutdown was recorded"), "{said}");
    assert!(machine.protects(), "it had to be scanned");
    machine.assert_equal("cut");
}

#[test]
fn a_file_system_that_is_still_mounted_for_writing_forbids_the_record() {
    let mut machine = Machine::new("ext4");
    machine.stop_agent();
    let mut command = program();
    command.args(["--json", "agent", "at-shutdown", "--state"]).arg(machine.mount_point().join("state"));
    let said = machine.said(&command);
    assert!(said["why_not"].as_str().unwrap().contains("still mounted for writing"), "{said}");
}

/// A virtual machine is set back to a snapshot from between two runs: its disk and all that it remembers are consistent, and
/// older than what the server has.
#[test]
fn a_disk_that_was_set_back_to_an_earlier_record_is_scanned() {
    let mut machine = Machine::new("ext4");
    assert_eq!(machine.shut_down()["carried"], true);
    let snapshot = machine.stage.path("snapshot");
    copy(machine.stage.disk.file(), &snapshot);
    machine.switch_off_and_on();
    assert_eq!(machine.boot()["carried"], true);
    assert!(!machine.protects());
    machine.work("later");
    machine.stage.insist(&["checkpoint", NAME]);
    assert_eq!(machine.shut_down()["carried"], true);
    copy(&snapshot, machine.stage.disk.file());
    machine.switch_off_and_on();
    assert_eq!(machine.boot()["carried"], true, "by itself the record is sound");
    assert!(machine.protects(), "the server knows that it is old\n{}", machine.stage.logs());
    machine.assert_equal("set back");
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to]));
}
