//! `understudy image` on files, without a server, against what QEMU makes of them.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use support::{disk::Disk, sh};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, in the folder.
    fn us(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn well(&self, arguments: &[&str]) -> Value {
        let output = self.us(&[&["--json"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.us(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        error
    }

    fn qemu(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

const FORMATS: [(&str, &str); 5] =
    [("raw", "raw"), ("vhd", "vpc"), ("vhdx", "vhdx"), ("qcow2", "qcow2"), ("vmdk", "vmdk")];
/// Kinds that a disk is converted to, beside the formats' usual ones.
const KINDS: [(&str, &str); 4] =
    [("vhd-fixed", "vpc"), ("vhdx-fixed", "vhdx"), ("vmdk-flat", "vmdk"), ("vmdk-stream", "vmdk")];

#[test]
fn every_pair_of_formats_is_converted_and_compared() {
    let folder = Folder::new();
    folder.qemu("qemu-img", &["create", "-q", "-f", "raw", "disk.raw", "67109376"]);
    let writes = ["-c", "write -P 5 1M 3M", "-c", "write -P 6 64M 512", "-c", "write -P 7 33M 64k"];
    folder.qemu("qemu-io", &[&["-f", "raw"][..], &writes, &["disk.raw"]].concat());
    for (from, _) in FORMATS {
        let source = format!("source.{from}");
        folder.well(&["image", "convert", "disk.raw", &source, "--format", "raw", "--to", from]);
        let info = folder.well(&["image", "info", &source]);
        assert_eq!((info["format"].as_str(), info["bytes"].as_u64()), (Some(from), Some(67_109_376)));
        for (to, theirs) in FORMATS.into_iter().chain(KINDS) {
            let target = format!("{from}-{to}");
            let syncs = if from == "raw" { &[][..] } else { &["--no-sync"] };
            folder.well(&[&["image", "convert", &source, &target, "--to", to], syncs].concat());
            folder.qemu("qemu-img", &["compare", "-f", theirs, "-F", "raw", &target, "disk.raw"]);
            let same = folder.well(&["image", "compare", &target, "disk.raw", "--other-format", "raw"]);
            assert_eq!(same["equal"], true);
            let error = folder.fails(&["image", "convert", &source, &target, "--to", to], 1);
            assert!(error.contains(&target) && error.contains("exist"), "{error}");
        }
    }
    let runs = folder.well(&["image", "map", "source.qcow2"]);
    let data: u64 = runs
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["kind"] == "data")
        .map(|run| run["bytes"].as_u64().unwrap())
        .sum();
    assert!(((3 << 20) + 512..(4 << 20)).contains(&data), "{data}");
    folder.qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 40M 512", "source.qcow2"]);
    let error = folder.fails(&["image", "compare", "source.qcow2", "disk.raw", "--other-format", "raw"], 1);
    assert!(error.contains(&(40 << 20).to_string()), "{error}");
}

/// Bytes of the file system that is mounted there which are taken.
fn taken(at: &std::path::Path) -> u64 {
    sh("sync");
    sh(&format!("df -B1 --output=used {}", at.display())).lines().last().unwrap().trim().parse().unwrap()
}

#[test]
fn where_files_can_share_their_bytes_converting_copies_none() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path(), "xfs", 512);
    sh(&format!("mkfs.xfs -q -m reflink=1 {}", disk.device()));
    let mounted = disk.mount(&folder.path().join("mounted"));
    let inside = Folder(tempfile::tempdir_in(mounted.path()).unwrap());
    sh(&format!(
        "fio --name=data --filename={} --size=48m --rw=write --bs=1m",
        inside.path("disk.raw").display()
    ));
    inside.qemu("qemu-io", &["-f", "raw", "-c", "truncate 100M", "-c", "write -P 6 60M 512", "disk.raw"]);
    for (from, theirs) in FORMATS.into_iter().filter(|(format, _)| !["raw", "vmdk"].contains(format)) {
        inside.well(&["image", "convert", "disk.raw", from, "--format", "raw", "--to", from]);
        let before = taken(mounted.path());
        inside.well(&["image", "convert", from, "shared.raw", "--to", "raw"]);
        let grown = taken(mounted.path()) - before;
        assert!(grown < 8 << 20, "{from}: {grown} bytes of 48 MiB");
        inside.qemu("qemu-img", &["compare", "-f", theirs, "-F", "raw", from, "shared.raw"]);
        // What was shared is each file's own from the first write on.
        inside.qemu("qemu-io", &["-f", "raw", "-c", "write -P 9 1M 1M", "shared.raw"]);
        inside.qemu("qemu-img", &["compare", "-f", theirs, "-F", "raw", from, "disk.raw"]);
        std::fs::remove_file(inside.path("shared.raw")).unwrap();
    }
    drop(inside);
    drop(mounted);
}

#[test]
fn images_are_made_and_wrong_ones_refused_before_a_file_is_there() {
    let folder = Folder::new();
    for (format, _) in FORMATS {
        folder.well(&["image", "create", format, "--format", format, "--size", "1GiB"]);
        assert_eq!(folder.well(&["image", "info", format, "--format", format])["bytes"], 1 << 30);
    }
    let large = ["image", "create", "large", "--format", "vhdx", "--size", "8TiB", "--sector", "4096"];
    folder.well(&large);
    assert_eq!(folder.well(&["image", "info", "large"])["sector_bytes"], 4096);
    for wrong in [
        ["image", "create", "no", "--format", "vhd", "--size", "3TiB"],
        ["image", "create", "no", "--format", "raw", "--size", "1000"],
        ["image", "create", "no", "--format", "qcow2", "--size", "0"],
    ] {
        folder.fails(&wrong, 2);
    }
    folder.fails(&["image", "create", "no", "--format", "qcow2", "--size", "1MiB", "--fixed"], 2);
    folder.fails(&["image", "create", "no", "--format", "vhd"], 2);
    assert!(!folder.path("no").exists());
}

#[test]
fn faults_are_named_and_mended_and_parents_need_leave() {
    let folder = Folder::new();
    folder.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "killed", "64M"]);
    let killed = ["-f", "qcow2", "-c", "write -P 5 3M 1M", "-c", "flush", "-c", "abort", "killed"];
    Command::new("qemu-io").args(killed).current_dir(folder.0.path()).output().unwrap();
    let checked = folder.us(&["--json", "image", "check", "killed"]);
    assert_eq!(checked.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert!(
        report["faults"].as_array().unwrap().iter().any(|fault| fault["place"]["bytes"].is_u64()),
        "{report}"
    );
    assert_eq!(folder.well(&["image", "check", "killed", "--repair"])["clean"], true);
    assert_eq!(folder.well(&["image", "check", "killed"])["faults"], Value::Array(Vec::new()));
    folder.qemu("qemu-img", &["check", "-q", "killed"]);

    folder.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "killed", "-F", "qcow2", "child"]);
    let error = folder.fails(&["image", "info", "child"], 1);
    assert!(error.contains("killed") && error.contains("--parent"), "{error}");
    folder.well(&["image", "convert", "child", "alone", "--to", "vhd", "--parent", "killed"]);
    folder.qemu("qemu-img", &["compare", "-f", "vpc", "-F", "qcow2", "alone", "killed"]);
    folder.fails(&["image", "check", "alone", "--format", "raw"], 1);
}

#[test]
fn children_are_made_written_and_merged() {
    let folder = Folder::new();
    folder.well(&["image", "create", "base.vhd", "--format", "vhd", "--size", "16MiB"]);
    folder.qemu("qemu-io", &["-f", "vpc", "-c", "write -P 5 1M 64k", "base.vhd"]);
    let made = folder.well(&["image", "create", "child.vhd", "--format", "vhd", "--parent", "base.vhd"]);
    assert_eq!(made["bytes"], 16 << 20);
    let error = folder.fails(&["image", "info", "child.vhd"], 1);
    assert!(error.contains("--parent"), "{error}");
    folder.well(&["image", "convert", "child.vhd", "one.raw", "--to", "raw", "--parent", "base.vhd"]);
    folder.qemu("qemu-img", &["compare", "-f", "vpc", "-F", "raw", "base.vhd", "one.raw"]);
    folder.well(&["image", "merge", "child.vhd", "--into", "base.vhd"]);
    folder.qemu("qemu-img", &["compare", "-f", "vpc", "-F", "raw", "base.vhd", "one.raw"]);
    folder.fails(&["image", "merge", "base.vhd", "--into", "child.vhd"], 1);
    folder.fails(&["image", "create", "no", "--format", "qcow2", "--parent", "base.vhd"], 2);
}

#[test]
fn a_resized_image_has_its_new_size_for_others_too() {
    let folder = Folder::new();
    for (kind, theirs) in [
        ("raw", "raw"),
        ("qcow2", "qcow2"),
        ("vhdx", "vhdx"),
        ("vhd", "vpc"),
        ("vhd fixed", "vpc"),
        ("vmdk", "vmdk"),
        ("vmdk fixed", "vmdk"),
    ] {
        let (format, fixed) = kind.split_once(' ').unwrap_or((kind, ""));
        let name = kind.replace(' ', "-");
        let create = ["image", "create", &name, "--format", format, "--size", "20MiB", "--fixed"];
        folder.well(&create[..if fixed.is_empty() { 7 } else { 8 }]);
        let qemu = |commands: &[&str]| {
            let commands = commands.iter().flat_map(|command| ["-c", command]);
            let arguments: Vec<_> = ["-f", theirs].into_iter().chain(commands).chain([&*name]).collect();
            folder.qemu("qemu-io", &arguments);
        };
        let resize =
            |size| ["image", "resize", &*name, "--format", format, "--size", size].map(str::to_owned);
        let well = |size| folder.well(&resize(size).each_ref().map(String::as_str));
        qemu(&["write -P 5 19M 1M"]);
        well("100MiB");
        qemu(&["read -P 5 19M 1M", "read -P 0 20M 80M", "write -P 6 99M 1M"]);
        let error = folder.fails(&resize("40MiB").each_ref().map(String::as_str), 1);
        assert!(error.contains("not zero"), "{error}");
        // Beyond what the tables were made for, and exact to the sector.
        well("9663677440");
        qemu(&[
            "read -P 5 19M 1M",
            "read -P 6 99M 1M",
            "read -P 0 100M 1000M",
            "read -P 0 9200M 16M",
            "write -P 7 9663676928 512",
        ]);
        let info = folder.qemu("qemu-img", &["info", "--output=json", "-f", theirs, &name]);
        assert!(info.contains("\"virtual-size\": 9663677440"), "{kind}: {info}");
        // The same disk as a raw one that was resized alike.
        folder.qemu("qemu-img", &["create", "-q", "-f", "raw", "alike.raw", "20M"]);
        folder.qemu("qemu-img", &["resize", "-q", "-f", "raw", "alike.raw", "9663677440"]);
        let writes =
            ["-c", "write -P 5 19M 1M", "-c", "write -P 6 99M 1M", "-c", "write -P 7 9663676928 512"];
        folder.qemu("qemu-io", &[&["-f", "raw"][..], &writes, &["alike.raw"]].concat());
        folder.qemu("qemu-img", &["compare", "-q", "-f", theirs, "-F", "raw", &name, "alike.raw"]);
        if matches!(format, "qcow2" | "vhdx" | "vmdk") {
            folder.qemu("qemu-img", &["check", "-q", "-f", theirs, &name]);
        }
        if format != "raw" {
            folder.well(&["image", "check", &name, "--format", format]);
        }
    }
}

#[test]
fn images_of_others_get_another_length_too() {
    let folder = Folder::new();
    for (name, options) in [
        ("dynamic.vhd", &["-f", "vpc"][..]),
        ("fixed.vhd", &["-f", "vpc", "-o", "subformat=fixed"]),
        ("sparse.vmdk", &["-f", "vmdk"]),
        ("flat.vmdk", &["-f", "vmdk", "-o", "subformat=monolithicFlat"]),
    ] {
        let theirs = options[1];
        folder.qemu("qemu-img", &[&["create", "-q"][..], options, &[name, "20M"]].concat());
        folder.qemu("qemu-io", &["-f", theirs, "-c", "write -P 5 19M 64k", name]);
        let format = if theirs == "vpc" { "vhd" } else { "vmdk" };
        folder.well(&["image", "resize", name, "--format", format, "--size", "5GiB"]);
        let info = folder.qemu("qemu-img", &["info", "--output=json", "-f", theirs, name]);
        assert!(info.contains("\"virtual-size\": 5368709120"), "{name}: {info}");
        let checks = ["-c", "read -P 5 19M 64k", "-c", "read -P 0 21M 1000M", "-c", "write -P 6 5119M 1M"];
        folder.qemu("qemu-io", &[&["-f", theirs][..], &checks, &[name]].concat());
        folder.well(&["image", "check", name, "--format", format]);
    }
    for what in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let (name, subformat) = (format!("{what}.vmdk"), format!("subformat={what}"));
        folder.qemu("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &subformat, &name, "20M"]);
        let error = folder.fails(&["image", "resize", &name, "--size", "30MiB"], 1);
        assert!(error.contains(what), "{error}");
    }
}
