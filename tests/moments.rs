//! `--at TIME` between two checkpoints of tapped disks: what they were right after one write, on all of them alike.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use rand::Rng;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use support::disk::Disk;
use support::numbered::{BLOCK, Writer, write_of};
use support::tapped::Tapped;
use support::{NAME, Stage};

const SLOTS: u64 = 512;

/// A moment while a writer runs, and between which writes it lies.
struct Sample {
    at: String,
    before: u64,
    after: u64,
}

fn sample(writer: &Writer) -> Sample {
    let before = writer.written.load(Ordering::SeqCst);
    let at = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    // The next one may be under way, and complete on one of the disks.
    let after = writer.written.load(Ordering::SeqCst) + 1;
    Sample { at, before, after }
}

#[test]
fn every_write_between_two_checkpoints_can_be_asked_for_by_its_time() {
    let seed = std::env::var("UNDERSTUDY_SEED")
        .map_or_else(|_| rand::rng().random_range(0..1 << 32), |text| text.parse().unwrap());
    println!("UNDERSTUDY_SEED={seed}");
    let mut stage = Stage::new(16);
    let second = Disk::new(&stage.path(""), "second", 16);
    stage.start_server(None);
    let (first, port) = (stage.disk.device().to_owned(), stage.port);
    let rarely = ["--tap-checkpoint-every", "1h"];
    let tapped = Tapped::start_on(&mut stage, &[&first, second.device()], port, &rarely);
    stage.wait_protected();
    tapped.wait_in_order(&mut stage);
    tapped.zero(SLOTS as usize * BLOCK);
    let begin = stage.insist(&["checkpoint", NAME, "--name", "begin"])["checkpoint"].as_u64().unwrap();
    let writer = Writer::start(&tapped.devices(), seed, SLOTS);
    let mut samples = Vec::new();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(150));
        samples.push(sample(&writer));
    }
    // While writes go on, what is not sealed yet can be asked for as well.
    let open = state(&mut stage, &samples[3].at, seed);
    let written = writer.end();
    // All of it has arrived by then, and nothing is written until the next checkpoint.
    stage.wait_until("the last writes", 30, |stage| state(stage, "now", seed) == (written, written));
    let idle = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let end = stage.insist(&["checkpoint", NAME, "--name", "end"])["checkpoint"].as_u64().unwrap();
    assert_eq!(end, begin + 1, "no other checkpoint between them");
    let mut last = 0;
    for (index, Sample { at, before, after }) in samples.iter().enumerate() {
        let (first, second) = state(&mut stage, at, seed);
        println!("{at}, between writes {before} and {after} of {written}: {first} and {second}");
        // Each number is written to the first disk, and when that is complete, to the second.
        assert!(first == second || first == second + 1, "no state that the machine had");
        assert!(first <= *after && first >= last, "later than asked for");
        if index == 3 {
            assert_eq!((first, second), open, "sealed it is the same");
        }
        last = first;
    }
    assert!(last >= samples[0].before, "more than half a second older than asked for");
    let at = &samples[4].at;
    let session = stage.insist(&["recover", NAME, "--at", at, "--drill"]);
    assert_eq!(session["checkpoint"].as_u64(), Some(begin), "{session}");
    let moment = &session["moment"];
    let (time, writes) = (moment["time"].as_str().unwrap(), moment["writes"].as_u64().unwrap());
    let parsed = |text: &str| humantime::parse_rfc3339(text).unwrap();
    assert!(parsed(time) <= parsed(at) && writes > 0, "{session}");
    stage.insist(&["session", "stop", session["session"].as_str().unwrap(), "--discard"]);
    let again = state(&mut stage, time, seed);
    assert_eq!(again, state(&mut stage, at, seed), "what is printed is understood");
    assert_eq!(state(&mut stage, &idle, seed), (written, written), "not the checkpoint before it");
    // A checkpoint of another line is no newer state of this one.
    stage.insist(&["branch", "clone", NAME, "--at", "begin", "--name", "old"]);
    assert_eq!(state(&mut stage, "now", seed), (written, written));
    assert_eq!(state(&mut stage, "old", seed), (0, 0));
    let recover = ["recover", NAME, "--at", &samples[2].at[..]];
    let session = stage.insist(&recover);
    assert_eq!(stage.insist(&recover)["session"], session["session"], "asked for again, it is the same");
    let other = stage.us(&["recover", NAME, "--at", "begin"]).unwrap_err();
    assert!(other.contains("is in charge"), "{other}");
}

/// The last write on each of the disks at that time.
fn state(stage: &mut Stage, at: &str, seed: u64) -> (u64, u64) {
    let disks = stage.disks_at(at, 2);
    (write_of(&disks[0], seed, SLOTS), write_of(&disks[1], seed, SLOTS))
}
