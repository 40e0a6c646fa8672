//! Whatever breaks the map of changes is shown, leads to a scan, and the stand-in equals the disk again afterwards.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::os::unix::fs::FileExt;
use support::Stage;

fn tracker(stage: &Stage) -> String {
    stage.status("/disks/0/tracker").as_str().unwrap_or_default().to_owned()
}

/// Waits until a scan for that reason is over.
fn wait_scanned(stage: &mut Stage, reason: &str) {
    stage.wait_until("the reason in the log", 60, |stage| {
        let log = std::fs::read_to_string(stage.path("agent.log")).unwrap_or_default();
        log.contains(reason) && log.contains("going through the whole disk (Compare)")
    });
    stage.wait_until("an end of the scan", 60, |stage| {
        stage.status("/state") == "protected" && !tracker(stage).contains("not trusted")
    });
}

#[test]
fn a_device_that_was_attached_again_under_its_number_is_scanned() {
    let mut stage = Stage::new(64);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage.agent.take().unwrap().stop();
    stage.disk.attach_again(|| {
        // Nobody sees this write.
        let image = std::fs::OpenOptions::new().write(true).open(stage.disk.file()).unwrap();
        image.write_all_at(&[7; 4096], 33 << 20).unwrap();
    });
    stage.start_agent(None);
    wait_scanned(&mut stage, "another medium is attached");
    let gaps = stage.status("/gaps").as_u64().unwrap();
    assert!(gaps > 0, "the time until the scan was through is a gap");
    stage.assert_stand_in_equals_disk("attached-again");
}

#[test]
fn a_tracker_that_is_attached_late_scans_what_it_did_not_see() {
    let mut stage = Stage::new(64);
    stage.start_server(None);
    stage.start_agent(None);
    stage.wait_protected();
    stage.agent.take().unwrap().stop();
    // As after a restart of the machine: no map is left, and the disk was written to before there is one again.
    let name = stage.disk.device().trim_start_matches("/dev/").to_owned();
    std::fs::remove_dir_all(format!("/sys/fs/bpf/understudy/{name}")).unwrap();
    let device = std::fs::OpenOptions::new().write(true).open(stage.disk.device()).unwrap();
    device.write_all_at(&[9; 8192], 11 << 20).unwrap();
    device.sync_all().unwrap();
    stage.start_agent(None);
    wait_scanned(&mut stage, "tracking began on a disk that was already in use");
    stage.assert_stand_in_equals_disk("attached-late");
}
