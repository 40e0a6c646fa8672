//! The datastore's folders over a catalogue that is made up.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use blocks::{Error, ErrorKind, Result};
use fuse_fs::{Catalogue, Datastore, Member, Moment, Mount, MountOptions, Place, Run, Source, Space};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// As many checkpoints of each machine.
struct MadeUp {
    machines: Vec<(String, String)>,
    checkpoints: u64,
}

impl Catalogue for MadeUp {
    fn machines(&self) -> Result<Vec<(String, String)>> {
        Ok(self.machines.clone())
    }

    fn checkpoints(&self, _: &str) -> Result<Vec<Moment>> {
        let moment = |number| Moment {
            name: format!("2026-11-26T{number:05}"),
            number,
            time: UNIX_EPOCH + Duration::from_secs(1_000_000 + number),
            on_main_line: number % 10 != 9,
        };
        Ok((0..self.checkpoints).map(moment).collect())
    }

    fn sessions(&self, machine: &str) -> Result<Vec<Run>> {
        Ok(vec![Run { name: format!("session-of-{machine}"), time: UNIX_EPOCH }])
    }

    fn members(&self, _: &Place) -> Result<Vec<Member>> {
        Ok(vec![Member { name: "disk0.raw".to_owned(), writable: false }])
    }

    fn len(&self, place: &Place, name: &str) -> Result<u64> {
        self.open(place, name, false).map(|source| match source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Volume(volume) => volume.len().get(),
        })
    }

    fn open(&self, place: &Place, _: &str, _: bool) -> Result<Source> {
        match place {
            Place::Session { .. } => Err(Error::new(ErrorKind::Busy, "a client over NBD has it")),
            Place::Checkpoint { machine, number } => {
                Ok(Source::Bytes(format!("{machine} {number}").into_bytes()))
            }
        }
    }

    fn state(&self) -> Result<String> {
        Ok("{}\n".to_owned())
    }

    fn space(&self) -> Result<Space> {
        Ok(Space { total: 1 << 40, free: 1 << 39 })
    }
}

fn mount(machines: &[(&str, &str)], checkpoints: u64) -> (Mount, tempfile::TempDir) {
    let machines = machines.iter().map(|(id, name)| (id.to_string(), name.to_string())).collect();
    let folder = tempfile::tempdir().unwrap();
    let tree = Datastore::new(MadeUp { machines, checkpoints });
    (Mount::start(tree, folder.path(), MountOptions::default()).unwrap(), folder)
}

#[test]
fn five_thousand_checkpoints_are_listed_at_once() {
    let (_mount, folder) = mount(&[("1", "web")], 5000);
    let checkpoints = folder.path().join("web/checkpoints");
    let began = Instant::now();
    let names: Vec<_> = fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let listed = began.elapsed();
    assert_eq!(names.len(), 5000);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
    let looked_at = names.iter().map(|name| fs::metadata(checkpoints.join(name)).unwrap());
    assert!(
        looked_at.enumerate().all(|(at, seen)| seen.mtime() == 1_000_000 + at as i64 && seen.nlink() == 2)
    );
    let all = began.elapsed();
    assert_eq!(fs::metadata(&checkpoints).unwrap().nlink(), 5002);
    // It takes milliseconds; what grows with the square of the number would take minutes.
    assert!(
        listed < Duration::from_secs(30) && all < Duration::from_secs(60),
        "{listed:?}, {all:?} with attributes"
    );
    println!("5000 checkpoints: {listed:?} listed, {all:?} with attributes");
    assert_eq!(
        fs::read_link(folder.path().join("web/latest")).unwrap().to_str(),
        Some("checkpoints/2026-11-26T04998")
    );
    assert_eq!(fs::read_to_string(folder.path().join("web/latest/disk0.raw")).unwrap(), "1 4998");
}

#[test]
fn names_of_machines_do_not_lead_astray() {
    let names = [
        ("id1", "web"),
        ("id2", "web"),
        ("id3", "../../etc"),
        ("id4", ".understudy"),
        ("id5", "a b\n/c"),
        ("id6", ""),
        ("id7", &"x".repeat(300)),
        ("id8", "nbd:unix:/x"),
        ("id9", "..\0"),
    ];
    let (_mount, folder) = mount(&names, 1);
    let mut found: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let expected = [
        "%2E.%00",
        "%2E.%2F..%2Fetc",
        "%2Eunderstudy",
        ".understudy",
        "a%20b%0A%2Fc",
        "id2",
        "id6",
        "id7",
        "nbd%3Aunix%3A%2Fx",
        "web",
    ];
    assert_eq!(found, expected);
    assert_eq!(fs::metadata(folder.path()).unwrap().nlink(), 11);
    for (folder_name, identity) in [("id2", "id2"), ("%2E.%2F..%2Fetc", "id3"), ("web", "id1")] {
        let file = folder.path().join(folder_name).join("latest/disk0.raw");
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{identity} 0"));
    }
    assert_eq!(fs::read_to_string(folder.path().join(".understudy")).unwrap(), "{}\n");
}

#[test]
fn a_machine_without_checkpoints_has_no_latest_and_what_is_used_is_busy() {
    let (_mount, folder) = mount(&[("1", "new")], 0);
    let machine = folder.path().join("new");
    let names: Vec<_> = fs::read_dir(&machine).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["checkpoints", "sessions"]);
    assert!(fs::symlink_metadata(machine.join("latest")).is_err());
    let error = fs::metadata(machine.join("sessions/session-of-1/disk0.raw")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    let space = rustix::fs::statvfs(folder.path()).unwrap();
    assert_eq!((space.f_blocks * space.f_frsize, space.f_bfree * space.f_frsize), (1 << 40, 1 << 39));
}
