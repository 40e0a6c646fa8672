//! A session's disk as a file, and a tapped disk, through a loop device, under programs that look for nothing but errors: fsx on the
//! device and on files, fsstress beside it. What the tap let through must be on the disk and on the server, too.
//!
//! `UNDERSTUDY_EXERCISE_SECONDS` says for how long; 20 for each of three rounds unless it does.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::disk::Mount;
use support::shown::Shown;
use support::tapped::{Tapped, logged};
use support::{NAME, Stage, run, sh};

/// Every operation but those that need a length of their own.
const ON_A_DEVICE: &str = "blockmode = true\nflen = 67108864\n[opsize]\nmax = 262144\nalign = 512\n\
    [weights]\nread = 10\nwrite = 10\nmapread = 3\nmapwrite = 3\nfsync = 1\nfdatasync = 1\ninvalidate = 1\n\
    punch_hole = 2\ntruncate = 0\n";
const ON_A_FILE: &str = "flen = 8388608\n[opsize]\nmax = 262144\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n\
    mapread = 3\nmapwrite = 3\ntruncate = 2\nfsync = 1\nfdatasync = 1\ninvalidate = 1\npunch_hole = 2\n\
    sendfile = 1\nposix_fallocate = 1\n";

struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn seconds() -> u64 {
    std::env::var("UNDERSTUDY_EXERCISE_SECONDS").map_or(20, |text| text.parse().unwrap())
}

/// fsx with one seed after the other until the time is over; how many operations it did.
fn fsx(path: &str, configuration: &str, until: Instant, artifacts: &Path) -> u64 {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/fsx");
    let settings = artifacts.join("fsx.toml");
    fs::create_dir_all(artifacts).unwrap();
    fs::write(&settings, configuration).unwrap();
    let mut done = 0;
    while Instant::now() < until || done == 0 {
        let seed = rand::random::<u32>().to_string();
        println!("fsx {path}: seed {seed}");
        let mut command = Command::new(program);
        command
            .args(["-q", "-N", "2000", "-S", &seed, "-P"])
            .arg(artifacts)
            .arg("-f")
            .arg(&settings)
            .arg(path);
        run(&mut command);
        done += 2000;
    }
    done
}

/// fsstress in that folder with one seed after the other until the time is over, each leaving nothing behind; how many operations
/// it did. What three of its processes write in one go fills a tenth of the disks here.
fn fsstress(folder: &Path, until: Instant) -> u64 {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/fsstress");
    let mut done = 0;
    while Instant::now() < until || done == 0 {
        let seed = rand::random_range(0..1u32 << 31).to_string();
        println!("fsstress {}: seed {seed}", folder.display());
        let mut command = Command::new(program);
        command.args(["-s", &seed, "-p", "3", "-n", "1000", "-c", "-d"]).arg(folder);
        run(&mut command);
        done += 3000;
    }
    done
}

/// fsx on the device, then on a file of each file system beside fsstress; `at_rest`, with a word for what was before, whenever
/// nothing uses the device.
fn exercise(stage: &mut Stage, device: &str, mut at_rest: impl FnMut(&mut Stage, &str)) {
    let until = || Instant::now() + Duration::from_secs(seconds());
    let artifacts = stage.path("artifacts");
    let done = fsx(device, ON_A_DEVICE, until(), &artifacts);
    println!("{done} operations on {device}");
    at_rest(stage, "device");
    for (system, make, check) in
        [("ext4", "mkfs.ext4 -q -F", "e2fsck -f -n"), ("xfs", "mkfs.xfs -q -f", "xfs_repair -n")]
    {
        sh(&format!("{make} {device}"));
        let mount = Mount::new(device, &stage.path("exercised"));
        let folder = mount.path().join("stress");
        fs::create_dir(&folder).unwrap();
        let stress = std::thread::spawn(move || fsstress(&folder, until()));
        let file = mount.path().join("fsx").display().to_string();
        let exercised = std::panic::catch_unwind(|| fsx(&file, ON_A_FILE, until(), &artifacts));
        let stressed = stress.join();
        drop(mount);
        let (exercised, stressed) = (exercised.unwrap(), stressed.unwrap());
        println!("{system} on {device}: {exercised} operations of fsx beside {stressed} of fsstress");
        sh(&format!("{check} {device}"));
        at_rest(stage, system);
    }
}

#[test]
fn exercisers_find_nothing_on_a_sessions_file() {
    let mut shown = Shown::new(400, &[]);
    let (session, folder) = shown.recover();
    let file = folder.join("disk0.raw");
    let device = sh(&format!("losetup --find --show --direct-io=on {}", file.display()));
    let device = Loop(device.trim().to_owned());
    exercise(&mut shown.stage, &device.0, |_, _| ());
    drop(device);
    shown.stage.insist(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
}

#[test]
fn exercisers_find_nothing_on_the_tap_and_leave_source_stand_in_and_tap_equal() {
    let mut stage = Stage::new(400);
    stage.start_server(None);
    let port = stage.port;
    let tapped = Tapped::start(&mut stage, port, &[]);
    let device = tapped.device().to_owned();
    stage.wait_protected();
    exercise(&mut stage, &device, |stage, what| {
        run(Command::new("cmp").arg(&device).arg(stage.disk.device()));
        stage.assert_stand_in_equals_disk(what);
        println!("after {what}: source, stand-in and tap are equal");
    });
    stage.insist(&["verify", NAME]);
    // An order that was lost is no error of the data; that it was is worth a line.
    let falls = logged(&stage).matches("only marks what is written").count();
    println!("the order was lost {falls} times");
}
