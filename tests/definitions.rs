//! A machine's definition and the archive that carries it with its disks, checked by tools that are not ours.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::disk::Disk;
use support::process::Process;
use support::{NAME, Stage, program, run, sh, uri};

/// A stage with two protected disks that hold something.
fn protected() -> (Stage, Disk) {
    let mut stage = Stage::new(32);
    let second = Disk::new(stage.path("").as_path(), "second", 24);
    for device in [stage.disk.device(), second.device()] {
        sh(&format!(
            "dd if=/dev/urandom of={device} bs=1M count=5 seek=3 oflag=direct conv=notrunc status=none"
        ));
    }
    stage.start_server(None);
    let port = stage.port;
    stage.start_agent_towards(None, port, &["--disk", second.device()]);
    stage.wait_protected();
    (stage, second)
}

fn in_folder(folder: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-ec", script]).current_dir(folder))
}

/// What our own program says about files, in JSON.
fn image(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(program().args(["--json", "image"]).args(arguments))).unwrap()
}

#[test]
fn an_archive_holds_every_disk_for_others_and_for_us() {
    let (stage, second) = protected();
    let devices = [stage.disk.device().to_owned(), second.device().to_owned()];
    for (version, program_of_digests) in [("1", "sha1sum"), ("2", "sha256sum")] {
        let file = stage.path(&format!("v{version}.ova"));
        let archive = file.to_str().unwrap();
        stage.us(&["export", NAME, "--format", "ova", "--ovf-version", version, "-o", archive]).unwrap();
        let error = stage.us(&["export", NAME, "--format", "ova", "-o", archive]).unwrap_err();
        assert!(error.contains("exists already"), "{error}");

        let folder = stage.path(&format!("v{version}"));
        std::fs::create_dir(&folder).unwrap();
        let names = in_folder(&folder, &format!("tar tf {archive} && tar xf {archive}"));
        let expected = ["ovf", "mf", "disk1", "disk2"].map(|part| match part {
            "ovf" | "mf" => format!("{NAME}.{part}"),
            disk => format!("{NAME}-{disk}.vmdk"),
        });
        assert_eq!(names.lines().collect::<Vec<_>>(), expected);
        in_folder(
            &folder,
            &format!("{program_of_digests} --strict -c {NAME}.mf && xmllint --noout {NAME}.ovf"),
        );
        for (number, device) in devices.iter().enumerate() {
            let disk = folder.join(format!("{NAME}-disk{}.vmdk", number + 1));
            let disk = disk.to_str().unwrap();
            let said = run(Command::new("qemu-img").args(["info", "--output=json", "-f", "vmdk", disk]));
            assert!(said.contains("streamOptimized"), "{said}");
            sh(&format!("qemu-img compare -f vmdk -F raw {disk} {device}"));
            let copy = folder.join(format!("{number}.raw"));
            let number = number.to_string();
            image(&["convert", archive, copy.to_str().unwrap(), "--disk", &number, "--to", "raw"]);
            sh(&format!("cmp {} {device}", copy.display()));
        }
        let info = image(&["info", archive]);
        assert_eq!(
            (&info["ovf_version"], info["disks"].as_array().unwrap().len()),
            (&format!("{version}.0").into(), 2)
        );
        for place in [archive, folder.to_str().unwrap()] {
            let checked = image(&["check", place]);
            assert_eq!(
                (&checked["clean"], &checked["manifest_files"]),
                (&true.into(), &3.into()),
                "{checked}"
            );
        }
    }
    for wrong in [["--disk", "0", "--format", "ova"], ["--ovf-version", "2", "--format", "raw"]] {
        let file = stage.path("no");
        stage.us(&[&["export", NAME, "-o", file.to_str().unwrap()][..], &wrong].concat()).unwrap_err();
        assert!(!file.exists());
    }
}

/// A file system of two MiB, gone afterwards.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: std::path::PathBuf) -> Small {
        std::fs::create_dir(&path).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&path));
        Small(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn no_half_archive_is_left_where_the_medium_is_full() {
    let (stage, _second) = protected();
    let small = Small::mount(stage.path("small"));
    let file = small.0.join("a.ova");
    let error = stage.us(&["export", NAME, "--format", "ova", "-o", file.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("a.ova") && error.contains("space"), "{error}");
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0);
}

#[test]
fn a_disk_of_an_archive_is_served() {
    let (mut stage, second) = protected();
    let (file, socket) = (stage.path("a.ova"), stage.path("serve.sock"));
    stage.us(&["export", NAME, "--format", "ova", "-o", file.to_str().unwrap()]).unwrap();
    let mut serve = program();
    serve.arg("serve").arg(&file).args(["--disk", "1", "--read-only", "--nbd"]);
    serve.arg(format!("unix:{}", socket.display()));
    let served = Process::start(serve, None, &stage.path("serve.log"));
    stage.wait_until("the socket", 60, |_| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let address = format!("nbd+unix:///?socket={}", socket.display());
    sh(&format!("qemu-img compare -f raw -F raw {address} {}", second.device()));
    served.stop();
    for wrong in [&["--disk", "1"][..], &["--read-only"], &[]] {
        let output = program().arg("serve").arg(&file).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "a disk of an archive is chosen, and only read: {wrong:?}");
    }
}

#[test]
fn a_definition_says_what_the_machine_is_and_where_its_disks_are() {
    let (stage, _second) = protected();
    let error = stage.us(&["definition", NAME, "--as", "qemu"]).unwrap_err();
    assert!(error.contains("--disk-file") && error.contains("recover"), "{error}");
    let error = stage.us(&["definition", NAME, "--as", "qemu", "--disk-file", "/a.raw"]).unwrap_err();
    assert!(error.contains("2 disks"), "{error}");
    let files = ["--disk-file", "/srv/a.vmdk", "--disk-file", "/srv/b:vmdk"];
    for (form, sign) in [
        ("libvirt", "<domain"),
        ("vmx", "scsi0:1.fileName = \"/srv/b\""),
        ("ovf", "envelope/1"),
        ("qemu", "tcg"),
    ] {
        let written = stage.us(&[&["definition", NAME, "--as", form][..], &files].concat()).unwrap();
        assert!(written["text"].as_str().unwrap().contains(sign), "{written}");
        assert_eq!((&written["machine"], &written["as"]), (&NAME.into(), &form.into()));
        assert!(!written["notes"].as_array().unwrap().is_empty());
    }
    let written =
        stage.us(&[&["definition", NAME, "--as", "ovf", "--ovf-version", "2"][..], &files].concat());
    assert!(written.unwrap()["text"].as_str().unwrap().contains("StorageItem"));

    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let id = session["session"].as_str().unwrap();
    let domain = stage.us(&["definition", id, "--as", "libvirt"]).unwrap();
    let path = stage.path("domain.xml");
    std::fs::write(&path, domain["text"].as_str().unwrap()).unwrap();
    run(Command::new("virt-xml-validate").arg(&path).arg("domain"));
    let error = stage.us(&["definition", id, "--as", "ovf"]).unwrap_err();
    assert!(error.contains("--disk-file"), "{error}");
    let error = stage.us(&["definition", id, "--as", "qemu", "--at", "1"]).unwrap_err();
    assert!(error.contains("--at"), "{error}");
}

/// The machine's own memory may be more than a test can have.
fn smaller(command: &str) -> String {
    let (before, after) = command.split_once(" -m ").unwrap();
    let (_, rest) = after.split_once('M').unwrap();
    format!("{before} -m 128M{rest}")
}

#[test]
fn qemu_starts_on_a_sessions_disks_with_the_printed_command() {
    let (stage, _second) = protected();
    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let id = session["session"].as_str().unwrap();
    let written = stage.us(&["definition", id, "--as", "qemu", "--accel", "tcg"]).unwrap();
    let command = smaller(written["text"].as_str().unwrap());
    let orders = r#"{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}"#;
    let script = format!("echo '{orders}' | timeout 120 {} -S -display none -qmp stdio", command.trim_end());
    let said = run(Command::new("sh").args(["-c", &script]));
    let blocks = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let blocks = blocks.into_iter().find(|line| line["return"].is_array()).unwrap();
    let of = |number: usize| {
        let node = format!("disk{number}");
        let found = blocks["return"].as_array().unwrap().iter();
        let mut sizes = found.filter(|block| block["inserted"]["node-name"] == node.as_str());
        sizes.next().unwrap()["inserted"]["image"]["virtual-size"].clone()
    };
    let lens = [32_u64 << 20, 24 << 20].map(Value::from);
    assert_eq!([of(0), of(1)], lens, "{}", uri(&session, 0));
}
