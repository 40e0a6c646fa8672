//! A stand-in that really runs: QEMU on a session's disks, through restarts of the server, until its power button is
//! pressed.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use support::{NAME, Stage, boot_sector, run, sh, uri};

const MEMORY: [&str; 2] = ["--memory", "64MiB"];

/// A machine whose disk boots, protected.
fn protected() -> Stage {
    let mut stage = Stage::new(32);
    boot_sector::write(Path::new(stage.disk.device()));
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn boot(stage: &Stage, more: &[&str]) -> Value {
    let fixed = ["recover", NAME, "--boot", "--probe", "console:understudy is up", "--probe-timeout", "60s"];
    stage
        .us(&[&fixed[..], &MEMORY, more].concat())
        .unwrap_or_else(|error| panic!("{error}\n{}", stage.logs()))
}

fn guest_state(stage: &Stage, session: &str) -> String {
    text(&stage.us(&["session", "show", session]).unwrap(), "/guest/state").to_owned()
}

/// How often the guest has written, as the session's export has it now.
fn ticks(stage: &Stage, session: &Value) -> u32 {
    let copy = stage.path("copy.raw");
    sh(&format!("nbdcopy {} {}", uri(session, 0), copy.display()));
    let ticks = boot_sector::ticks(&copy);
    std::fs::remove_file(copy).unwrap();
    ticks
}

#[test]
fn a_stand_in_runs_through_a_crash_of_the_server_and_heeds_its_power_button() {
    let mut stage = protected();
    let session = boot(&stage, &[]);
    let id = text(&session, "/session").to_owned();
    assert_eq!(text(&session, "/guest/state"), "running");
    assert!(session["guest"]["rto_ms"].as_u64().unwrap() > 0);
    let said = std::fs::read_to_string(text(&session, "/guest/console_log")).unwrap();
    assert!(said.contains(boot_sector::UP), "{said}");
    let again = boot(&stage, &[]);
    assert_eq!(
        again["guest"]["started_ms"], session["guest"]["started_ms"],
        "repeated, it is the one that runs"
    );

    stage.wait_until("writes of the guest", 30, |stage| ticks(stage, &session) > 1);
    stage.server.take().unwrap().kill();
    stage.start_server(None);
    let before = ticks(&stage, &session);
    stage.wait_until("writes after the restart", 60, |stage| ticks(stage, &session) > before + 1);
    assert_eq!(guest_state(&stage, &id), "running", "it is found again");

    stage.us(&["session", "pause", &id]).unwrap();
    assert_eq!(guest_state(&stage, &id), "paused");
    let still = ticks(&stage, &session);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(ticks(&stage, &session), still, "a guest that stands still writes nothing");
    stage.us(&["session", "unpause", &id]).unwrap();
    stage.wait_until("writes after the pause", 30, |stage| ticks(stage, &session) > still);

    let picture = stage.path("screen.png");
    stage.us(&["session", "screenshot", &id, "-o", picture.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));

    let down = stage.us(&["session", "shutdown", &id, "--patience", "30s"]).unwrap();
    assert_eq!((text(&down, "/guest/state"), text(&down, "/guest/detail")), ("ended", "it was shut down"));
    let said = std::fs::read_to_string(text(&session, "/guest/console_log")).unwrap();
    assert!(said.contains(boot_sector::DOWN), "{said}");
    assert!(down["disks"][0]["written_bytes"].as_u64().unwrap() >= 512);
    assert_eq!(boot_sector::ticks(Path::new(stage.disk.device())), 0, "the machine's disk is not touched");

    let booted = stage.us(&["session", "boot", &id, "--memory", "64MiB"]).unwrap();
    assert_eq!(text(&booted, "/guest/state"), "running", "a session is booted again");
    let stopped = stage.us(&["session", "stop", &id, "--discard", "--patience", "0s"]).unwrap();
    assert_eq!(text(&stopped, "/guest/state"), "ended");
    assert!(!stage.path("store/stand-ins").join(&id).exists(), "nothing is left");
}

/// The drills of the machine, the oldest first.
fn drills(stage: &Stage) -> Vec<Value> {
    stage.us(&["drills", NAME]).unwrap()["drills"].as_array().unwrap().clone()
}

/// Nothing of a drill is left but its report.
fn is_taken_away(stage: &Stage) -> bool {
    let sessions = stage.us(&["sessions"]).unwrap();
    let left = std::fs::read_dir(stage.path("store/stand-ins")).map_or(0, Iterator::count);
    sessions["sessions"].as_array().unwrap().is_empty() && left == 0
}

const DRILL: [&str; 5] = ["recover", NAME, "--boot", "--drill", "--memory"];

#[test]
fn a_drill_is_measured_and_leaves_its_report_alone() {
    let mut stage = protected();
    // A server that has just started looks for drills that were interrupted: this is none.
    stage.start_server(None);
    let up = ["64MiB", "--probe", "console:understudy is up", "--probe-timeout", "60s"];
    let report =
        stage.us(&[&DRILL[..], &up].concat()).unwrap_or_else(|error| panic!("{error}\n{}", stage.logs()));
    assert_eq!((&report["passed"], text(&report, "/detail")), (&true.into(), ""));
    let ms = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}"));
    assert!(ms("exports_ms") <= ms("first_read_ms") && ms("first_read_ms") <= ms("rto_ms"), "{report}");
    assert!(text(&report, "/console").contains(boot_sector::UP));
    assert!(std::fs::read(text(&report, "/picture")).unwrap().starts_with(b"\x89PNG"));
    assert!(is_taken_away(&stage));
    let before = stage.status("/checkpoints").as_u64().unwrap();
    stage.us(&["checkpoint", NAME]).unwrap();
    assert!(stage.status("/checkpoints").as_u64().unwrap() > before, "the machine stayed in charge");

    // QEMU itself takes the connection; that is not the guest.
    let wrong = ["64MiB", "--probe", "tcp:80", "--probe-timeout", "3s"];
    let error = stage.us(&[&DRILL[..], &wrong].concat()).unwrap_err();
    assert!(error.contains("tcp:80") || error.contains("network"), "{error}");
    let wrong = ["64MiB", "--probe", "console:never", "--probe-timeout", "1s"];
    let error = stage.us(&[&DRILL[..], &wrong].concat()).unwrap_err();
    assert!(error.contains("console:never was not seen within 1s"), "{error}");
    assert!(is_taken_away(&stage));
    let known = drills(&stage);
    assert_eq!(known.first().unwrap()["started_ms"], report["started_ms"]);
    assert_eq!(known.last().unwrap()["passed"], false, "a failure is a report too");
    assert_eq!(text(&stage.status("/alarms/0"), "/alarm"), "drill");
    assert_eq!(stage.status("/drill/last"), *known.last().unwrap());
}

#[test]
fn drills_are_played_on_schedule_and_one_that_was_interrupted_is_taken_away() {
    let mut stage = protected();
    let failed = stage.us(&["machine", "set", NAME, "--drill-every", "1d"]).unwrap_err();
    assert!(failed.contains("--drill-probe"), "{failed}");
    stage.start_server(Some("boot.started"));
    let up = ["--drill-probe", "console:understudy is up", "--drill-memory", "64MiB"];
    let set = ["machine", "set", NAME, "--drill-every", "1d"];
    stage.us(&[&set[..], &up].concat()).unwrap();
    stage.wait_until("the server's death in a drill", 60, |stage| !stage.server_alive());
    let left = std::fs::read_dir(stage.path("store/stand-ins")).unwrap().count();
    assert_eq!(left, 1, "QEMU outlives its server");
    stage.start_server(None);
    stage.wait_until("a drill", 60, |stage| drills(stage).len() == 1);
    assert_eq!(drills(&stage)[0]["passed"], true);
    stage.wait_until("nothing else to be there", 30, |stage| is_taken_away(stage));
    assert_eq!(stage.status("/drill/every_ms"), 86_400_000);
    stage.us(&["machine", "set", NAME, "--drill-every", "never"]).unwrap();
    assert_eq!(stage.status("/drill/every_ms"), Value::Null);
}

/// QEMU's own word for how the guest is, by the socket that is there for people; none where it hangs up.
fn said_by_qemu(session: &Value) -> Option<String> {
    let mut stream = UnixStream::connect(text(session, "/guest/qmp")).unwrap();
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-status\"}").ok()?;
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut said = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    said.find_map(|line| line["return"]["status"].as_str().map(str::to_owned))
}

#[test]
fn a_server_that_is_away_for_long_costs_the_guest_time_and_no_write() {
    let mut stage = protected();
    let session = boot(&stage, &["--network", "none"]);
    stage.wait_until("writes of the guest", 30, |stage| ticks(stage, &session) > 1);
    stage.server.take().unwrap().kill();
    stage.wait_until("the guest to stand still", 90, |_| {
        said_by_qemu(&session).as_deref() == Some("io-error")
    });
    stage.start_server(None);
    let before = ticks(&stage, &session);
    stage.wait_until("writes afterwards", 90, |stage| ticks(stage, &session) > before + 1);
    let said = std::fs::read_to_string(text(&session, "/guest/console_log")).unwrap();
    assert!(!said.contains("cannot write"), "{said}");
}

/// What another hardware needs to start lies beside the disk, so that none of it can travel home.
#[test]
fn a_kernel_of_the_hosts_starts_a_disk_that_would_not_and_changes_nothing_on_it() {
    let mut stage = Stage::new(32);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    let session = stage.us(&["recover", NAME]).unwrap();
    let id = text(&session, "/session").to_owned();
    let root = stage.path("root");
    std::fs::create_dir(&root).unwrap();
    let init = "#!/busybox sh\n/busybox mknod /tty c 4 64; exec >/tty 2>&1; echo another kernel is up; \
                while :; do /busybox sleep 9; done\n";
    std::fs::write(root.join("init"), init).unwrap();
    let initrd = stage.path("initrd");
    let (root, shown) = (root.display(), initrd.display());
    let pack = format!(
        "cp /usr/bin/busybox {root}/ && chmod +x {root}/init && cd {root} && find . | cpio --quiet -o -H newc > {shown}"
    );
    run(std::process::Command::new("sh").args(["-c", &pack]));
    let kernel = concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest-kernel/vmlinuz");
    let boot = |initrd: &str| {
        let own = ["--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet panic=-1"];
        let up = ["--memory", "256MiB", "--probe", "console:another kernel is up", "--probe-timeout", "120s"];
        stage.us(&[&["session", "boot", &id][..], &own, &up].concat())
    };
    let error = boot("/nowhere/initrd").unwrap_err();
    assert!(error.contains("/nowhere/initrd"), "{error}");
    let booted = boot(initrd.to_str().unwrap()).unwrap_or_else(|error| panic!("{error}\n{}", stage.logs()));
    assert_eq!(booted["disks"][0]["written_bytes"], 0, "{booted}");
    stage.us(&["session", "stop", &id, "--discard", "--patience", "1s"]).unwrap();
}

#[test]
fn a_server_that_dies_before_it_starts_qemu_leaves_a_session_that_can_be_booted() {
    let mut stage = protected();
    stage.start_server(Some("boot.recorded"));
    let error = stage.us(&[&["recover", NAME, "--boot"][..], &MEMORY].concat()).unwrap_err();
    assert!(error.contains("went away"), "{error}");
    stage.start_server(None);
    let sessions = stage.us(&["sessions"]).unwrap();
    let id = text(&sessions, "/sessions/0/session").to_owned();
    stage.wait_until("the end to be noted", 30, |stage| guest_state(stage, &id) == "ended");
    let again = boot(&stage, &[]);
    assert_eq!(
        (text(&again, "/session"), text(&again, "/guest/state")),
        (&*id, "running"),
        "repeated, it goes on"
    );
    let stopped = stage.us(&["session", "stop", &id, "--patience", "30s"]).unwrap();
    assert_eq!(text(&stopped, "/guest/detail"), "it was shut down");
}
