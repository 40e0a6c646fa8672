//! A few hundred simulations, the planted bugs that they must find, and that one seed is one run.
//!
//! `scripts/simulate` plays more; scripts/test runs this with the feature `simulation`.

use blocks::PlantedBug;
use server::simulation::{Counts, Options, play};

/// How many seeds a planted bug may survive.
const SEEDS_FOR_A_BUG: u64 = 400;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(300),
    }
}

/// What must happen in a few hundred simulations: a kind that never comes proves nothing.
const MUST_HAPPEN: [&str; 30] = [
    "acknowledgements",
    "checkpoints",
    "checkpoints of sessions",
    "consolidations",
    "disks that grew",
    "fault: a bit rots",
    "fault: a bit turns under way",
    "fault: a read fails",
    "fault: a sync fails",
    "fault: a sync of a folder fails",
    "fault: a write fails",
    "fault: an agent writes out of order",
    "fault: the agent is killed",
    "fault: the connection is cut, bytes are lost",
    "fault: the machine loses power",
    "fault: the network stalls",
    "fault: the server ends while it starts",
    "fault: the server is killed",
    "fault: the server's host loses power",
    "fault: the storage fills up",
    "fault: the storage is slow",
    "hash reports compared",
    "machines held",
    "machines in step at the end",
    "merged indexes seen",
    "network: partial deliveries",
    "pivots",
    "rot found",
    "sessions held after a power loss",
    "torn tails cut",
];

/// What must happen in some thousand.
const MUST_HAPPEN_IN_THOUSANDS: [&str; 1] = ["fault: a write finds no room"];

#[test]
fn every_promise_holds_whatever_breaks() {
    let mut counts = Counts::default();
    for seed in seeds() {
        let (counted, _, result) = play(seed, &Options::default());
        counts.sum(&counted);
        if let Err(failure) = result {
            panic!("seed {seed}: {failure}\nto see how: scripts/simulate --seeds 1 --from {seed} --trace");
        }
    }
    println!("{counts}");
    if std::env::var("SIMULATION_SEED").is_err() {
        let rare = MUST_HAPPEN_IN_THOUSANDS.iter().filter(|_| seeds().count() >= 5000);
        for kind in MUST_HAPPEN.iter().chain(rare) {
            assert!(counts.of(kind) > 0, "in none of these simulations: {kind}\n{counts}");
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..20 {
        let options = Options::default();
        let (first, second) = (play(seed, &options), play(seed, &options));
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Plays with a planted bug until it is found.
fn is_found(bug: PlantedBug) {
    let options = Options { planted: Some(bug), ..Options::default() };
    for seed in 0..SEEDS_FOR_A_BUG {
        // A panic of the product is a find as well.
        let found = match std::panic::catch_unwind(|| play(seed, &options)) {
            Ok((_, _, Ok(()))) => continue,
            Ok((_, _, Err(failure))) => failure.to_string(),
            Err(_) => "a panic".to_owned(),
        };
        println!("{}: found by seed {seed}: {found}", bug.name());
        return;
    }
    panic!("{} was not found by {SEEDS_FOR_A_BUG} seeds", bug.name());
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found(PlantedBug::AcknowledgementBeforeSync);
}

#[test]
fn an_index_published_before_its_data_is_found() {
    is_found(PlantedBug::IndexBeforeData);
}

#[test]
fn a_horizon_that_passes_a_pin_is_found() {
    is_found(PlantedBug::HorizonPassesPin);
}

#[test]
fn a_merge_that_prefers_the_older_write_is_found() {
    is_found(PlantedBug::MergePrefersOlder);
}

#[test]
fn a_merge_that_crosses_a_pin_is_found() {
    is_found(PlantedBug::MergeCrossesPin);
}

#[test]
fn a_torn_record_taken_as_valid_is_found() {
    is_found(PlantedBug::TornRecordTaken);
}
