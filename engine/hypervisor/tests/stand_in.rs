//! QEMU itself, on a disk with nothing on it: what its firmware says is enough.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use blocks::{ByteLen, ErrorKind};
use hypervisor::{
    Acceleration, Architecture, Definition, Disk, DiskFormat, Firmware, GuestState, Hypervisor, Network,
    Places, Probe, ProbePlace, Qemu, Source, StandIn,
};
use std::path::Path;
use std::time::{Duration, Instant};

const IDENTITY: &str = "0b5c2f60-5d0f-4f0e-9d1c-2f6f4b1f7a01";
const PATIENCE: Duration = Duration::from_secs(120);

/// A stand-in's folder; what runs in it ends with the test.
struct Stage {
    qemu: Qemu,
    places: Places,
    folder: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.qemu.kill(IDENTITY, &self.places);
    }
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let disk = std::fs::File::create(folder.path().join("disk")).unwrap();
        disk.set_len(1 << 20).unwrap();
        Stage { qemu: Qemu::default(), places: Places::new(folder.path().join("guest")), folder }
    }

    fn stand_in(&self, firmware: Firmware) -> StandIn {
        let path = self.folder.path().join("disk").to_str().unwrap().to_owned();
        let disk = Disk {
            len: ByteLen::new(1 << 20),
            serial: None,
            wwn: None,
            source: Source::File { path, format: DiskFormat::Raw },
        };
        StandIn {
            definition: Definition {
                name: "empty".to_owned(),
                host_name: String::new(),
                firmware,
                architecture: Architecture::X86_64,
                cpus: 1,
                memory: ByteLen::new(128 << 20),
                nics: vec!["52:54:00:00:00:01".parse().unwrap()],
                disks: vec![disk],
            },
            identity: IDENTITY.to_owned(),
            mark: "understudy-session-00112233445566778899aabbccddeeff".to_owned(),
            network: Network::default().isolated(),
            acceleration: Acceleration::Tcg,
            firmware_code: None,
            firmware_vars: None,
            kernel: None,
        }
    }

    fn state(&self) -> GuestState {
        self.qemu.state(IDENTITY, &self.places)
    }

    fn looks(&self, probe: &str, host_port: Option<u16>) -> blocks::Result<bool> {
        let place =
            ProbePlace { hypervisor: &self.qemu, identity: IDENTITY, places: &self.places, host_port };
        probe.parse::<Probe>().unwrap().look(&place)
    }

    fn wait_for(&self, probe: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.looks(probe, None).unwrap() {
            assert!(Instant::now() < deadline, "{probe} is not seen; it is {:?}", self.state());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn uefi_starts_with_variables_of_its_own() {
    let stage = Stage::new();
    stage.qemu.start(&stage.stand_in(Firmware::Uefi), &stage.places).unwrap();
    stage.wait_for("console:BdsDxe");
    let vars = stage.places.folder().join("firmware-vars.fd");
    let template = ["/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS.fd"];
    let template = template.iter().find(|path| Path::new(path).exists()).unwrap();
    assert_eq!(std::fs::metadata(&vars).unwrap().len(), std::fs::metadata(template).unwrap().len());
    stage.qemu.kill(IDENTITY, &stage.places).unwrap();
    let kept = std::fs::read(&vars).unwrap();
    assert_ne!(kept, std::fs::read(template).unwrap(), "the firmware has written to its own copy");
    stage.places.prepare().unwrap();
    assert_eq!(std::fs::read(&vars).unwrap(), kept, "the next start finds them again");
    assert_eq!(std::fs::read_dir(stage.places.folder()).unwrap().count(), 1);
}

#[test]
fn a_guest_is_paused_pictured_and_ended() {
    let stage = Stage::new();
    stage.qemu.start(&stage.stand_in(Firmware::Bios), &stage.places).unwrap();
    assert_eq!(stage.state(), GuestState::Running);
    stage.qemu.pause(IDENTITY, &stage.places).unwrap();
    assert_eq!(stage.state(), GuestState::Paused);
    stage.qemu.resume(IDENTITY, &stage.places).unwrap();
    assert_eq!(stage.state(), GuestState::Running);
    let picture = stage.folder.path().join("screen.png");
    stage.qemu.screenshot(IDENTITY, &stage.places, &picture).unwrap();
    assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG"));
    assert!(
        !stage.qemu.power_down(IDENTITY, &stage.places, Duration::from_secs(1)).unwrap(),
        "nobody hears it"
    );
    stage.qemu.kill(IDENTITY, &stage.places).unwrap();
    assert!(matches!(stage.state(), GuestState::Gone(_)));
    stage.qemu.kill(IDENTITY, &stage.places).unwrap();
    assert!(stage.qemu.pause(IDENTITY, &stage.places).is_err());
}

#[test]
fn another_stand_in_in_the_same_place_is_not_taken_for_it() {
    let stage = Stage::new();
    stage.qemu.start(&stage.stand_in(Firmware::Bios), &stage.places).unwrap();
    let other = "11111111-5d0f-4f0e-9d1c-2f6f4b1f7a01";
    assert!(matches!(stage.qemu.state(other, &stage.places), GuestState::Gone(_)));
    assert!(stage.qemu.pause(other, &stage.places).is_err());
    stage.qemu.kill(other, &stage.places).unwrap();
    assert_eq!(stage.state(), GuestState::Running, "it was not touched");
    // A process that has the number now, and is another.
    let pid = stage.places.folder().join("qemu.pid");
    let kept = std::fs::read(&pid).unwrap();
    std::fs::write(&pid, std::process::id().to_string()).unwrap();
    std::fs::rename(stage.places.control(), stage.folder.path().join("hidden")).unwrap();
    assert!(matches!(stage.state(), GuestState::Gone(_)));
    stage.qemu.kill(IDENTITY, &stage.places).unwrap();
    std::fs::write(&pid, kept).unwrap();
    assert!(matches!(stage.state(), GuestState::Silent(_)), "a process that cannot be asked is there");
    stage.qemu.kill(IDENTITY, &stage.places).unwrap();
    assert!(matches!(stage.state(), GuestState::Gone(_)));
}

#[test]
fn a_connection_that_only_qemu_has_taken_is_no_success() {
    let stage = Stage::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut stand_in = stage.stand_in(Firmware::Bios);
    stand_in.network =
        format!("user,hostfwd=tcp:127.0.0.1:{port}-:80").parse::<Network>().unwrap().isolated();
    stage.qemu.start(&stand_in, &stage.places).unwrap();
    std::net::TcpStream::connect(("127.0.0.1", port)).expect("QEMU takes it");
    assert!(!stage.looks("tcp:80", Some(port)).unwrap());
    assert_eq!(stage.looks("tcp:80", None).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!stage.looks("agent", None).unwrap(), "there is no agent in it");
}

#[test]
fn what_keeps_qemu_from_starting_is_said_and_nothing_runs() {
    let stage = Stage::new();
    let mut stand_in = stage.stand_in(Firmware::Bios);
    stand_in.definition.disks[0].source = "/nowhere/disk.raw".parse().unwrap();
    let error = stage.qemu.start(&stand_in, &stage.places).unwrap_err();
    assert!(error.to_string().contains("/nowhere/disk.raw"), "{error}");
    assert!(matches!(stage.state(), GuestState::Gone(_)));
    let mut stand_in = stage.stand_in(Firmware::Uefi);
    stand_in.firmware_code = Some("/nowhere/code.fd".to_owned());
    stand_in.firmware_vars = Some("/nowhere/vars.fd".to_owned());
    let error = stage.qemu.start(&stand_in, &stage.places).unwrap_err();
    assert!(error.to_string().contains("/nowhere/vars.fd"), "{error}");
    let long = Places::new(stage.folder.path().join("x".repeat(120)));
    let error = stage.qemu.start(&stage.stand_in(Firmware::Bios), &long).unwrap_err();
    assert!(error.to_string().contains("bytes shorter"), "{error}");
}
