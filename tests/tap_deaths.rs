//! The in-line tap without its holder, and without both of its processes.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::process::Command;
use support::disk::Mount;
use support::numbered::open_direct;
use support::process::runs;
use support::tapped::{Tapped, logged};
use support::{Stage, program, run, sh};

/// A tap with a mounted file system that has a file in it.
fn in_use(stage: &mut Stage) -> (Tapped, Mount) {
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(stage, port, &[]);
    stage.wait_protected();
    sh(&format!("mkfs.ext4 -q -F {}", tapped.device()));
    let mount = Mount::new(tapped.device(), &stage.path("mnt"));
    fs::write(mount.path().join("before"), "before").unwrap();
    sh(&format!("sync -f {}", mount.path().display()));
    (tapped, mount)
}

/// The file system as the next tap shows it, and source and stand-in as it is left.
fn begin_again(stage: &mut Stage, files: &[&str]) {
    let port = stage.port;
    let tapped = Tapped::start(stage, port, &[]);
    tapped.wait_in_order(stage);
    let checked = Command::new("e2fsck").args(["-fp", tapped.device()]).status().unwrap();
    // 1: something was put right, as after a power cut.
    assert!(checked.code().is_some_and(|code| code <= 1), "{checked}");
    let mount = Mount::new(tapped.device(), &stage.path("mnt"));
    for file in files {
        assert_eq!(&fs::read_to_string(mount.path().join(file)).unwrap(), file);
    }
    drop(mount);
    run(Command::new("cmp").arg(tapped.device()).arg(stage.disk.device()));
    stage.assert_stand_in_equals_disk("again");
}

#[test]
fn without_its_holder_the_agent_goes_on_until_nothing_uses_the_tap() {
    let mut stage = Stage::new(64);
    let (mut tapped, mount) = in_use(&mut stage);
    let device = tapped.device().to_owned();
    let server = tapped.kill_holder(&mut stage);
    stage.wait_until("the agent's word", 30, |stage| logged(stage).contains("is in use"));
    // Through to the disk, not only into the page cache.
    let mut file = OpenOptions::new().write(true).create_new(true).open(mount.path().join("after")).unwrap();
    file.write_all(b"after").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(runs(server), "it serves while the tap is used");
    drop(mount);
    stage.wait_until("the agent's end", 30, |_| !runs(server));
    let left = sh("losetup -l -n -O NAME,BACK-FILE");
    assert!(
        !left.lines().any(|line| line.starts_with(&format!("{device} ")) && line.contains("understudy/tap"))
    );
    drop(tapped);
    begin_again(&mut stage, &["before", "after"]);
}

#[test]
fn with_both_dead_what_is_mounted_fails_and_the_next_start_takes_over() {
    let mut stage = Stage::new(64);
    let (mut tapped, mount) = in_use(&mut stage);
    let mut device = open_direct(tapped.device());
    tapped.kill_both(&mut stage);
    let mut buffer = blocks::AlignedBuffer::new(4096);
    let error = device.read_exact(&mut buffer).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    drop(device);
    let path = mount.path().join("lost");
    let lost = OpenOptions::new().write(true).create(true).truncate(true).open(path).and_then(|mut file| {
        file.write_all(b"lost")?;
        file.sync_all()
    });
    println!("a write without both: {}", lost.unwrap_err());
    // Not over what is still mounted.
    let mut agent = program();
    agent.args(["agent", "--server", &format!("127.0.0.1:{}", stage.port), "--name", support::NAME]);
    agent.args(["--tracker", "tap", "--disk", stage.disk.device(), "--state"]).arg(stage.path("agent"));
    let refused = agent.output().unwrap();
    let said =
        String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(!refused.status.success() && said.contains("left of a tap that is dead: unmount it"), "{said}");
    drop(mount);
    begin_again(&mut stage, &["before"]);
    drop(tapped);
}
