//! Commands that the story does not use, checked by tools that are not ours.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::process::{Command, Stdio};
use support::disk::Disk;
use support::process::Process;
use support::{NAME, Stage, program, run, sh, uri};

/// A stage with a protected disk that holds something, and a copy of it.
fn protected() -> Stage {
    let mut stage = Stage::new(64);
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/urandom", "bs=1M", "count=9", "seek=4", "oflag=direct", "conv=notrunc"]);
    run(dd.arg(format!("of={}", stage.disk.device())));
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage
}

fn compare(format: &str, image: &str, other_format: &str, other: &str) {
    sh(&format!("qemu-img compare -f {format} -F {other_format} {image} {other}"));
}

#[test]
fn exports_are_the_disk_and_only_new_files_are_written() {
    let stage = protected();
    let device = stage.disk.device().to_owned();
    for (format, theirs) in [("raw", "raw"), ("vhd", "vpc"), ("qcow2", "qcow2"), ("vmdk-stream", "vmdk")] {
        let file = stage.path(&format!("export.{format}"));
        let file = file.to_str().unwrap();
        stage.us(&["export", NAME, "--format", format, "-o", file]).unwrap();
        compare(theirs, file, "raw", &device);
        let error = stage.us(&["export", NAME, "--format", format, "-o", file]).unwrap_err();
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn an_exported_vhd_is_served_and_written_by_others() {
    let mut stage = protected();
    let file = stage.path("served.vhd");
    stage.us(&["export", NAME, "--format", "vhd", "-o", file.to_str().unwrap()]).unwrap();
    let socket = stage.path("serve.sock");
    let serve = |more: &[&str]| {
        let mut command = program();
        command.arg("serve").arg(&file).arg("--nbd").arg(format!("unix:{}", socket.display())).args(more);
        Process::start(command, None, &socket.with_extension("log"))
    };
    let address = format!("nbd+unix:///?socket={}", socket.display());
    let write = ["-f", "raw", "-c", "write -P 9 33M 64k", "-c", "flush", &address];
    let served = serve(&[]);
    stage.wait_until("the socket", 60, |_| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    run(Command::new("qemu-io").args(write));
    run(Command::new("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 9 33M 64k", &address]));
    served.stop();
    run(Command::new("qemu-io").args(["-f", "vpc", "-r", "-c", "read -P 9 33M 64k"]).arg(&file));
    let served = serve(&["--read-only"]);
    stage.wait_until("the socket", 60, |_| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let refused = Command::new("qemu-io").args(write).output().unwrap();
    assert!(!refused.status.success(), "a read-only export took a write");
    served.stop();
}

/// Migrates the session's disk there, pivots, writes, and returns the session's URI.
fn migrate(stage: &mut Stage, to: &str, more: &[&str]) -> (Value, String) {
    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let id = session["session"].as_str().unwrap().to_owned();
    let address = uri(&session, 0);
    run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 5 1M 128k", &address]));
    let arguments = [&["migrate", &id, "--to", to, "--pivot"], more].concat();
    let session = stage.us(&arguments).unwrap();
    assert_eq!(session["disks"][0]["migration"]["state"], "pivoted");
    run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 6 50M 64k", "-c", "flush", &address]));
    (session, address)
}

#[test]
fn sessions_move_to_every_kind_of_target() {
    let mut stage = protected();
    let vhd = stage.path("moved.vhd");
    let (_, address) = migrate(&mut stage, vhd.to_str().unwrap(), &["--format", "vhd"]);
    compare("raw", &address, "vpc", vhd.to_str().unwrap());

    let device = Disk::new(stage.disk.file().parent().unwrap(), "target", 80);
    run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "count=80"])
        .arg(format!("of={}", device.device())));
    let (session, address) = migrate(&mut stage, device.device(), &[]);
    let len = session["disks"][0]["len"].as_u64().unwrap();
    let copy = stage.path("copy.raw");
    sh(&format!("nbdcopy {address} {}", copy.display()));
    run(Command::new("cmp").arg("-n").arg(len.to_string()).arg(&copy).arg(device.device()));

    let socket = stage.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(&socket).args(["memory", "64M"]);
    let _nbdkit = Process::start(nbdkit, None, &stage.path("nbdkit.log"));
    stage.wait_until("nbdkit", 60, |_| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let target = format!("nbd+unix:///?socket={}", socket.display());
    let (_, address) = migrate(&mut stage, &target, &[]);
    compare("raw", &address, "raw", &target);
}

#[test]
fn a_checkpoint_of_a_session_is_one_like_any_other() {
    let stage = protected();
    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let id = session["session"].as_str().unwrap();
    let address = uri(&session, 0);
    run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 5 1M 128k", "-c", "flush", &address]));
    let taken = stage.us(&["checkpoint", id, "--name", "inside"]).unwrap();
    run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 8 1M 128k", "-c", "flush", &address]));
    let number = taken["checkpoint"].to_string();
    let other = stage.us(&["recover", NAME, "--at", &number, "--drill"]).unwrap();
    run(Command::new("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 5 1M 128k", &uri(&other, 0)]));
    run(Command::new("qemu-io").args(["-f", "raw", "-r", "-c", "read -P 8 1M 128k", &address]));
}

#[test]
fn status_and_metrics_count_what_a_client_did() {
    const SCRIPT: &str = "
for i in range(5): h.pread(4096, 4096 * i)
for i in range(3): h.pwrite(b'x' * 1000, 512 * i)
h.flush()
try: h.trim(512, 1 << 40)
except nbd.Error: pass
print('done', flush=True)
import sys
sys.stdin.read()
";
    let mut stage = protected();
    let session = stage.us(&["recover", NAME, "--drill"]).unwrap();
    let connect = format!("h.set_strict_mode(0); h.connect_uri('{}')", uri(&session, 0));
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap());
    let mut client = Command::new("nbdsh")
        .env("PATH", path)
        .args(["-c", &connect, "-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let export = |stage: &Stage| stage.us(&["status", NAME]).unwrap()["nbd"]["exports"][0].clone();
    // A reply may be with the client before it is counted.
    stage.wait_until("four kinds of requests", 60, |stage| {
        export(stage).pointer("/traffic/operations/3/requests").is_some()
    });
    let seen = export(&stage);
    assert_eq!(seen["clients"].as_array().unwrap().len(), 1);
    assert!(seen["clients"][0]["address"].as_str().unwrap().starts_with("unix:pid="), "{seen}");
    for (at, [name, requests, bytes, errors]) in [
        ["read", "5", "20480", "0"],
        ["write", "3", "3000", "0"],
        ["flush", "1", "0", "0"],
        ["trim", "1", "0", "1"],
    ]
    .into_iter()
    .enumerate()
    {
        for whose in ["/traffic", "/clients/0/traffic"] {
            let found = seen.pointer(&format!("{whose}/operations/{at}")).unwrap();
            assert_eq!(found["operation"], name, "{seen}");
            let counted = ["requests", "bytes", "errors"].map(|what| found[what].to_string());
            assert_eq!(counted, [requests, bytes, errors], "{seen}");
            let buckets = found["latency"].as_array().unwrap().iter();
            let sum: u64 = buckets.map(|bucket| bucket["requests"].as_u64().unwrap()).sum();
            assert_eq!(sum.to_string(), requests);
        }
    }
    let ours = |arguments: &[&str]| {
        let socket = stage.path("store").join("control.sock");
        run(program().arg("--control").arg(socket).args(arguments))
    };
    let name = seen["export"].as_str().unwrap();
    let metrics = ours(&["metrics"]);
    for line in [
        format!("understudy_nbd_bytes_total{{export=\"{name}\",operation=\"write\"}} 3000"),
        format!("understudy_nbd_request_seconds_count{{export=\"{name}\",operation=\"read\"}} 5"),
        format!("understudy_nbd_clients{{export=\"{name}\"}} 1"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "no '{line}' in\n{metrics}");
    }
    let words = ours(&["status"]);
    assert!(words.contains(&format!("{name}: 1 clients, 0 in flight; 5 read (20.0 KiB, ")), "{words}");
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    stage.wait_until("the client's end", 60, |stage| export(stage)["clients"] == Value::Array(Vec::new()));
    assert_eq!(export(&stage)["traffic"], seen["traffic"], "what it did stays");
}

#[test]
fn a_machine_is_forgotten_when_nothing_holds_it() {
    let mut stage = protected();
    let error = stage.us(&["machine", "remove", NAME]).unwrap_err();
    assert!(error.contains(NAME), "{error}");
    stage.agent.take().unwrap().stop();
    stage.wait_until("the goodbye", 60, |stage| stage.status("/state") == "stopped");
    stage.us(&["machine", "remove", NAME]).unwrap();
    assert_eq!(stage.us(&["status"]).unwrap()["machines"].as_array().unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(stage.path("store/units")).unwrap().count(), 0);
    stage.start_agent(None);
    stage.wait_protected();
}

#[test]
fn a_scrub_names_what_is_damaged_and_status_remembers_it() {
    let stage = protected();
    stage.us(&["checkpoint", NAME]).unwrap();
    let clean = stage.us(&["scrub", NAME, "--rate", "500MB"]).unwrap();
    assert_eq!(clean["machines"][0]["damage"], 0, "{clean}");
    assert!(clean["machines"][0]["read_bytes"].as_u64().unwrap() >= 9 << 20, "{clean}");
    assert_eq!(stage.status("/scrub/damage"), 0);
    // Bytes of the middle of the longest log: some payload that the first checkpoint needs.
    let logs = glob(&stage.path("store/units"));
    let log = logs.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(log).unwrap();
    let middle = file.metadata().unwrap().len() / 2 + 1000;
    std::os::unix::fs::FileExt::write_all_at(&file, b"rotten", middle).unwrap();
    let error = stage.us(&["scrub"]).unwrap_err();
    assert!(error.contains("findings of damage"), "{error}");
    let name = log.file_name().unwrap().to_str().unwrap();
    let lines = stage.status("/scrub/findings");
    let line = lines[0].as_str().unwrap();
    assert!(line.contains(name) && line.contains("touches"), "{lines}");
    let error = stage.us(&["store", "check", stage.path("store").to_str().unwrap()]).unwrap_err();
    assert!(error.contains("in use"), "{error}");
}

/// The logs below a folder.
fn glob(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let below = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    below
        .flat_map(|path| match path.is_dir() {
            true => glob(&path),
            false => Some(path)
                .filter(|path| path.extension().is_some_and(|end| end == "log"))
                .into_iter()
                .collect(),
        })
        .collect()
}

#[test]
fn the_doctor_says_what_a_disk_gets_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path(), "disk", 64);
    let name = disk.device().trim_start_matches("/dev/").to_owned();
    let examine = |tracker: &str| {
        let arguments = ["--json", "agent", "doctor", "--disk", disk.device(), "--tracker", tracker];
        let output = program().args(arguments).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        let bad = findings.iter().any(|finding| finding["verdict"] == "bad");
        assert_eq!(output.status.code(), Some(i32::from(bad)), "{report}");
        findings.into_iter().find(|finding| finding["about"] == disk.device()).unwrap()
    };
    let found = examine("auto");
    assert_eq!(found["verdict"], "fine", "{found}");
    assert!(found["what"].as_str().unwrap().contains("eBPF"), "{found}");
    let pinned = std::path::Path::new("/sys/fs/bpf/understudy").join(name);
    assert!(!pinned.exists(), "what was attached to try it is still there");
    let found = examine("scan");
    assert_eq!(found["verdict"], "doubtful", "{found}");
    let partition = program().args(["agent", "doctor", "--disk", "/dev/null"]).output().unwrap();
    assert_eq!(partition.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&partition.stdout).contains("not a block device"));
}

#[test]
fn completions_and_man_pages_come_from_the_program() {
    let stage = Stage::new(8);
    let bash = run(program().args(["completions", "bash"]));
    assert!(bash.contains("failback"));
    run(program().arg("man").arg(stage.path("")));
    assert!(stage.path("understudy-recover.1").exists());
}
