//! Nothing stays frozen: whoever dies, whenever.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent_support;
use agent_support::*;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use wire::Consistency;

const MIB: u64 = 1 << 20;

#[test]
fn an_agent_killed_at_any_instant_leaves_nothing_frozen() {
    let disk = Disk::with_ext4(64 * MIB);
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mounted = disk.mount();
    let writer = Writer::start(&mounted.at, Duration::from_millis(1));
    for round in 0..12 {
        let before = server.model().checkpoints.len();
        let mut agent = spawn_agent(&server, &disk, folder.path(), 1, None);
        eventually("checkpoints", || server.model().checkpoints.len() > before + 2);
        std::thread::sleep(Duration::from_millis(round * 7 % 50));
        agent.0.kill().unwrap();
        agent.0.wait().unwrap();
        assert!(writes_go_on(&mounted), "frozen after kill {round}");
    }
    drop(writer);
    assert!(!mounted.is_frozen());
    let notes = std::fs::read_dir(folder.path().join("run")).unwrap().flatten();
    let notes: Vec<_> =
        notes.filter(|note| note.file_name().to_string_lossy().starts_with("frozen-")).collect();
    assert!(notes.is_empty(), "{notes:?}");
    // And what the killed ones had taken is not lost.
    let _agent = spawn_agent(&server, &disk, folder.path(), 3_600_000, None);
    drop(mounted);
    eventually("the agent is back", || server.model().connections > 12);
    server.wait_connected();
    let (_, content) = server.checkpoint(false);
    assert_same("after twelve kills", &content[0], &disk.content());
}

/// A watchdog on its own, spoken to by the test.
struct Watchdog {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    child: Killed,
}

impl Watchdog {
    fn start(folder: &Path) -> Watchdog {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(example("watchdog"))
            .arg(folder)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let reader = BufReader::new(ours.try_clone().unwrap());
        let mut this = Watchdog { stream: ours, reader, child: Killed(child) };
        assert_eq!(this.answer(), "ready");
        this
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stream, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

#[test]
fn a_late_agent_is_thawed_over_its_head() {
    let disk = Disk::with_ext4(32 * MIB);
    let mounted = disk.mount();
    let folder = tempfile::tempdir().unwrap();
    let mut watchdog = Watchdog::start(folder.path());
    let open = std::fs::File::open(&mounted.at).unwrap();
    watchdog.say(&format!("arm 5000 {}", open.as_raw_fd()));
    assert_eq!(watchdog.answer(), "armed");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the note is there while it is armed");
    watchdog.say("freeze 0");
    assert_eq!(watchdog.answer(), "frozen 0");
    assert!(mounted.is_frozen());
    assert!(writes_go_on(&mounted));
    watchdog.say("release");
    assert_eq!(watchdog.answer(), "late");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // In time: nothing is touched.
    watchdog.say(&format!("arm 20000 {}", open.as_raw_fd()));
    assert_eq!(watchdog.answer(), "armed");
    for (order, answer) in [("freeze 0", "frozen 0"), ("thaw 0", "thawed 0"), ("release", "released")] {
        watchdog.say(order);
        assert_eq!(watchdog.answer(), answer);
    }
    assert!(!mounted.is_frozen());
}

/// A file system whose writes wait as long as the one below it is frozen, and so does whoever freezes it.
fn inner_of(below: &Mounted, at: PathBuf) -> (Mounted, Attached) {
    let file = below.at.join("inner");
    std::fs::File::create(&file).unwrap().set_len(32 * MIB).unwrap();
    let attached = run("losetup", &["-f", "--show", file.to_str().unwrap()]).stdout;
    let device = Attached(String::from_utf8(attached).unwrap().trim().to_owned());
    run("mkfs.ext4", &["-q", "-F", &device.0]);
    (Mounted::new(device.0.as_ref(), at), device)
}

#[test]
fn a_freeze_that_comes_after_the_deadline_is_undone() {
    let disk = Disk::with_ext4(128 * MIB);
    let below = disk.mount();
    let (mounted, _device) = inner_of(&below, disk.folder.path().join("above"));
    let folder = tempfile::tempdir().unwrap();
    let mut watchdog = Watchdog::start(folder.path());
    let open = std::fs::File::open(&mounted.at).unwrap();
    // There is something to be written out, which takes until the other one is thawed.
    std::fs::write(mounted.at.join("new"), vec![7; 1 << 20]).unwrap();
    run("fsfreeze", &["-f", below.at.to_str().unwrap()]);
    watchdog.say(&format!("arm 50 {}", open.as_raw_fd()));
    assert_eq!(watchdog.answer(), "armed");
    watchdog.say("freeze 0");
    std::thread::sleep(Duration::from_millis(500));
    // What the agent asks for after it has given up is not kept waiting, and nothing is done.
    watchdog.say("thaw 0");
    assert_eq!(watchdog.answer(), format!("thawed 0 {}", libc::EAGAIN));
    run("fsfreeze", &["-u", below.at.to_str().unwrap()]);
    assert_eq!(watchdog.answer(), "frozen 0");
    assert!(writes_go_on(&mounted));
    watchdog.say("release");
    assert_eq!(watchdog.answer(), "late");
}

#[test]
fn what_a_killed_watchdog_left_frozen_is_thawed_by_the_next() {
    let disk = Disk::with_ext4(32 * MIB);
    let mounted = disk.mount();
    let folder = tempfile::tempdir().unwrap();
    let mut watchdog = Watchdog::start(folder.path());
    let open = std::fs::File::open(&mounted.at).unwrap();
    watchdog.say(&format!("arm 60000 {}", open.as_raw_fd()));
    assert_eq!(watchdog.answer(), "armed");
    run("fsfreeze", &["-f", mounted.at.to_str().unwrap()]);
    watchdog.child.0.kill().unwrap();
    watchdog.child.0.wait().unwrap();
    assert!(mounted.is_frozen());
    let _next = Watchdog::start(folder.path());
    assert!(!mounted.is_frozen());
}

#[test]
fn without_a_watchdog_nothing_is_frozen_and_a_gap_says_so() {
    let disk = Disk::with_ext4(32 * MIB);
    let mounted = disk.mount();
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server, &[&disk], folder.path());
    config.watchdog = vec!["/bin/false".into()];
    let agent = RunningAgent::start(config);
    eventually("the gap", || !server.model().gaps.is_empty());
    assert!(server.model().gaps[0].cause.contains("no watchdog"), "{:?}", server.model().gaps);
    assert!(server.model().checkpoints.is_empty());
    assert!(writes_go_on(&mounted));
    agent.stop().unwrap();
}

#[test]
fn a_file_system_in_a_file_of_the_frozen_one_is_frozen_first_and_thawed_last() {
    let disk = Disk::with_ext4(128 * MIB);
    let below = disk.mount();
    let (above, inner) = inner_of(&below, disk.folder.path().join("above"));
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server, &[&disk], folder.path());
    config.barrier.budget = Duration::from_secs(10);
    let agent = RunningAgent::start(config);
    for round in 0..3 {
        std::fs::write(above.at.join("held-back"), vec![round; 1 << 20]).unwrap();
        let (report, _) = server.checkpoint(false);
        assert_eq!(report.consistency, Consistency::FileSystem, "both stood still");
        assert!(writes_go_on(&above) && writes_go_on(&below));
    }
    agent.stop().unwrap();
    drop(above);
    drop(inner);
    drop(below);
}

/// A loop device, detached on drop.
struct Attached(String);

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_budget_that_cannot_be_kept_is_a_gap_and_never_a_checkpoint() {
    let disk = Disk::with_ext4(64 * MIB);
    let mounted = disk.mount();
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&server, &[&disk], folder.path());
    config.barrier.budget = Duration::from_micros(1);
    let agent = RunningAgent::start(config);
    eventually("the gap", || !server.model().gaps.is_empty());
    assert!(server.model().checkpoints.is_empty());
    assert!(writes_go_on(&mounted) && !mounted.is_frozen());
    agent.stop().unwrap();
}

#[test]
fn hooks_bring_applications_to_rest_while_file_systems_can_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let disk = Disk::with_ext4(64 * MIB);
    let mounted = disk.mount();
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let config = config(&server, &[&disk], folder.path());
    std::fs::create_dir(&config.hooks_dir).unwrap();
    let hook = config.hooks_dir.join("ledger");
    let write = |then: &str| {
        let ledger = mounted.at.join("ledger");
        let text = format!("#!/bin/sh\necho $1 >> {}\nsync {0}\n{then}\n", ledger.display());
        std::fs::write(&hook, text).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("");
    let agent = RunningAgent::start(config);
    let (report, content) = server.checkpoint(false);
    assert_eq!(report.consistency, Consistency::Application);
    let ledger = || std::fs::read_to_string(mounted.at.join("ledger")).unwrap();
    assert_eq!(ledger(), "freeze\nthaw\n");
    let holds = |text: &[u8]| content[0].windows(text.len()).any(|bytes| bytes == text);
    assert!(holds(b"freeze\n") && !holds(b"freeze\nthaw\n"), "the checkpoint lies between the two");
    write("[ $1 = thaw ]");
    let (report, _) = server.checkpoint(false);
    assert_eq!(report.consistency, Consistency::FileSystem);
    assert_eq!(ledger(), "freeze\nthaw\nfreeze\nthaw\n");
    agent.stop().unwrap();
}

#[test]
fn swap_is_excluded_and_its_header_is_not() {
    let disk = Disk::new(64 * MIB);
    run("mkswap", &[disk.path()]);
    run("swapon", &[disk.path()]);
    let off = SwapOff(disk.path().to_owned());
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    let (report, content) = server.checkpoint(false);
    assert_eq!(report.disks[0].excluded, vec![extent(4096, 64 * MIB - 4096)]);
    assert_eq!(report.consistency, Consistency::Crash);
    assert_same("the header", &content[0][..4096], &disk.content()[..4096]);
    agent.stop().unwrap();
    drop(off);
}

struct SwapOff(String);

impl Drop for SwapOff {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).output();
    }
}

#[test]
fn a_swap_file_is_excluded_by_its_extents() {
    let disk = Disk::with_ext4(128 * MIB);
    let mounted = disk.mount();
    let path = mounted.at.join("swap");
    let mut file = std::fs::File::create(&path).unwrap();
    fill(&mut file, 0, 16 * MIB, 5);
    run("chmod", &["600", path.to_str().unwrap()]);
    run("mkswap", &[path.to_str().unwrap()]);
    run("swapon", &[path.to_str().unwrap()]);
    let off = SwapOff(path.to_str().unwrap().to_owned());
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let agent = RunningAgent::start(config(&server, &[&disk], folder.path()));
    let (report, content) = server.checkpoint(false);
    let excluded: u64 = report.disks[0].excluded.iter().map(|extent| extent.len().get()).sum();
    assert_eq!(excluded, 16 * MIB - 4096);
    // They are the file's: its random content is there on the disk, and its header outside.
    let first = report.disks[0].excluded[0];
    let header = first.start().get() as usize - 4096;
    assert_eq!(&content[0][header + 4086..header + 4096], b"SWAPSPACE2");
    agent.stop().unwrap();
    drop(off);
}

#[test]
fn memory_stays_bounded_while_a_lot_is_pushed() {
    let disk = Disk::new(512 * MIB);
    let server = Server::start();
    {
        let mut model = server.model();
        model.rules.slow = Duration::from_millis(2);
    }
    let folder = tempfile::tempdir().unwrap();
    let agent = spawn_agent(&server, &disk, folder.path(), 3_600_000, None);
    server.wait_connected();
    let mut file = std::fs::OpenOptions::new().write(true).open(&disk.device).unwrap();
    // Each round changes every byte, so each is sent at least once between the end of the one before and its own.
    for round in 1..=2 {
        fill(&mut file, 0, 512 * MIB, 2 * round);
        eventually("the data", || server.model().bytes_received >= round * 512 * MIB);
    }
    let (_, content) = server.checkpoint(false);
    assert_same("after the push", &content[0], &disk.content());
    let resident = resident(agent.0.id());
    assert!(resident < 100 * MIB, "{} MiB", resident / MIB);
}
