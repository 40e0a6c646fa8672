//! A session's disk as a file, through a loop device, under programs that look for nothing but errors: fsx on the device and on
//! files, stress-ng's file system stressors in fsstress's place (no Debian package has that).
//!
//! `UNDERSTUDY_EXERCISE_SECONDS` says for how long; 20 for each of three rounds unless it does.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::shown::{Shown, bash};
use support::{run, sh};

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
fn fsx(path: &str, configuration: &str, until: Instant, artifacts: &PathBuf) -> u64 {
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

#[test]
fn exercisers_find_nothing_on_a_sessions_file() {
    let mut shown = Shown::new(400, &[]);
    let (session, folder) = shown.recover();
    let file = folder.join("disk0.raw");
    let device = sh(&format!("losetup --find --show --direct-io=on {}", file.display()));
    let device = Loop(device.trim().to_owned());
    let until = || Instant::now() + Duration::from_secs(seconds());
    let artifacts = shown.stage.path("artifacts");
    let done = fsx(&device.0, ON_A_DEVICE, until(), &artifacts);
    println!("{done} operations on the device");
    let point = shown.stage.path("exercised");
    fs::create_dir(&point).unwrap();
    for (make, check) in [("mkfs.ext4 -q -F", "e2fsck -f -n"), ("mkfs.xfs -q -f", "xfs_repair -n")] {
        bash(&format!("{make} {0} && mount {0} {1} && mkdir {1}/stress", device.0, point.display()));
        let mut stress = Command::new("stress-ng");
        stress.arg("--temp-path").arg(point.join("stress")).args(["--timeout", &format!("{}s", seconds())]);
        stress.args([
            "--verify",
            "--quiet",
            "--hdd",
            "1",
            "--hdd-bytes",
            "16m",
            "--dentry",
            "1",
            "--dir",
            "1",
        ]);
        stress.args([
            "--rename",
            "1",
            "--link",
            "1",
            "--fallocate",
            "1",
            "--fallocate-bytes",
            "16m",
            "--seek",
            "1",
        ]);
        stress.args(["--seek-size", "16m", "--xattr", "1"]);
        let mut stress = stress.spawn().unwrap();
        let file = point.join("fsx").display().to_string();
        let exercised = std::panic::catch_unwind(|| fsx(&file, ON_A_FILE, until(), &artifacts));
        let stressed = stress.wait().unwrap();
        bash(&format!("umount {}", point.display()));
        println!("{make}: {} operations beside stress-ng", exercised.unwrap());
        assert!(stressed.success(), "stress-ng on {make}: {stressed}");
        bash(&format!("{check} {} >&2", device.0));
    }
    drop(device);
    shown.stage.insist(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
}
