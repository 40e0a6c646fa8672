//! `understudy store check` on a store at rest: the one of version 1 that the store's tests keep.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const UNIT: &str = "units/2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a";

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn store() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    copy_dir(
        &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("engine/store/tests/fixtures/v1/store"),
        work.path(),
    );
    work
}

fn damage(store: &tempfile::TempDir, name: &str, at: u64) {
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(store.path().join(UNIT).join(name)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn check(store: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
    command.args(["store", "check"]).arg(store).args(more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_whole_store_passes_and_is_left_as_it_was() {
    let store = store();
    let output = check(store.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let json: Value = serde_json::from_slice(&check(store.path(), &["--json"]).stdout).unwrap();
    assert_eq!(json["damage"], 0);
    assert!(json["read_bytes"].as_u64().unwrap() > 100_000, "{json}");
    let mut diff = Command::new("diff");
    diff.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-r", "engine/store/tests/fixtures/v1/store"]);
    assert!(diff.arg(store.path()).status().unwrap().success(), "checking changes nothing");
}

#[test]
fn what_can_be_made_again_is_and_what_cannot_is_named() {
    let store = store();
    damage(&store, "disk0/5.index", 4096 + 30);
    damage(&store, "disk0/2-9.index", 4096 + 30);
    let output = check(store.path(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("5.index") && text(&output).contains("can be repaired"),
        "{}",
        text(&output)
    );
    let output = check(store.path(), &["--repair"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("repaired: "), "{}", text(&output));
    assert_eq!(check(store.path(), &[]).status.code(), Some(0));

    damage(&store, "disk0/10.log", 70);
    let output = check(store.path(), &["--repair"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in ["disk 0", "10.log", "touches", "cannot be repaired"] {
        assert!(text(&output).contains(part), "no '{part}' in {}", text(&output));
    }
}

#[test]
fn a_folder_that_is_no_store_is_refused_and_stays_as_it_is() {
    let work = tempfile::tempdir().unwrap();
    for folder in [work.path().to_owned(), work.path().join("missing")] {
        let output = check(&folder, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(folder.to_str().unwrap()), "{}", text(&output));
    }
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0, "nothing was made");
}
