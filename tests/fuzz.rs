//! Every decoder of ours takes mutated inputs, a fixed number of rounds each, and keeps its promises: no panic, no
//! endless work, refusal by an error, and what is accepted can be relied on.
//!
//! `UNDERSTUDY_FUZZ_SEED` repeats what a failure printed, `UNDERSTUDY_FUZZ_ROUNDS` plays longer, as `scripts/soak`
//! does. What was ever found stays in tests/corpus under a name that says what it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/decoders.rs"]
mod decoders;
#[allow(dead_code, reason = "what changes inputs is used by fuzz/")]
#[path = "support/images/mod.rs"]
mod images;

use decoders::{DECODERS, Decoder};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use store::testing::Random;

/// How many mutated inputs each decoder gets.
const ROUNDS: u64 = 5000;
/// Longer inputs are cut: they find nothing more and take longer.
const INPUT_BYTES_MAX: usize = 64 << 10;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// The decoder's inputs by name, sorted.
fn inputs(decoder: &Decoder) -> Vec<(PathBuf, Vec<u8>)> {
    let corpus = format!("tests/corpus/{}", decoder.name);
    let mut paths = Vec::new();
    for source in decoder.seeds.iter().copied().chain([corpus.as_str()]).map(|name| root().join(name)) {
        if source.is_dir() {
            paths.extend(std::fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path()));
        } else if source.exists() || !source.ends_with(decoder.name) {
            paths.push(source);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, bytes)
    };
    let made = (decoder.made)().into_iter().enumerate();
    let made = made.map(|(number, bytes)| (format!("made input {number}").into(), bytes));
    paths.into_iter().map(read).chain(made).collect()
}

fn play(decoder: &Decoder, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (decoder.run)(input))).is_err() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-found");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}-{:08x}", decoder.name, crc32_of(input)));
        std::fs::write(&path, input).unwrap();
        panic!("decoder '{}', {what}: the input is in {}", decoder.name, path.display());
    }
}

fn crc32_of(input: &[u8]) -> u32 {
    input.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff_ffff, 1 << 62, u64::MAX / 512, u64::MAX];
    for _ in 0..1 + random.below(5) {
        if input.is_empty() {
            input.push(0);
        }
        let at = index(random, input.len());
        match random.below(9) {
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = byte(random),
            2 => input.truncate(at),
            3 => input.insert(at, byte(random)),
            4 => {
                let value = NUMBERS[index(random, NUMBERS.len())].to_le_bytes();
                let len = [1, 2, 4, 8][index(random, 4)].min(input.len() - at);
                input[at..at + len].copy_from_slice(&value[..len]);
            }
            5 => {
                // Fields of our formats mostly lie on multiples of eight.
                let at = at / 8 * 8;
                let len = 8.min(input.len() - at);
                let near = u64::from(byte(random)).to_le_bytes();
                input[at..at + len].copy_from_slice(&near[..len]);
            }
            6 => {
                let end = (at + index(random, 200)).min(input.len());
                let part = input[at..end].to_vec();
                let to = index(random, input.len());
                input.splice(to..to, part);
            }
            7 => drop(input.drain(at..(at + index(random, 200)).min(input.len()))),
            _ if other.is_empty() => {}
            _ => {
                let from = index(random, other.len());
                let end = (from + index(random, 400)).min(other.len());
                let cut = (at + (end - from)).min(input.len());
                input.splice(at..cut, other[from..end].iter().copied());
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn index(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound.max(1) as u64)).unwrap()
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap()
}

#[test]
fn what_is_kept_is_taken_as_it_is() {
    for decoder in DECODERS {
        let inputs = inputs(decoder);
        assert!(!inputs.is_empty(), "decoder '{}' has nothing to start from", decoder.name);
        for (path, bytes) in inputs {
            play(decoder, &bytes, &path.display().to_string());
        }
        play(decoder, &[], "no bytes at all");
    }
}

#[test]
fn mutated_inputs_are_refused_or_can_be_relied_on() {
    let seed = number("UNDERSTUDY_FUZZ_SEED").unwrap_or_else(rand::random::<u64>);
    let rounds = number("UNDERSTUDY_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    println!("UNDERSTUDY_FUZZ_SEED={seed}");
    for decoder in DECODERS {
        let inputs = inputs(decoder);
        let begun = std::time::Instant::now();
        for round in 0..rounds {
            let mut random = Random::new(seed ^ (round << 20));
            let other = inputs[index(&mut random, inputs.len())].1.clone();
            let mut input = inputs[index(&mut random, inputs.len())].1.clone();
            mutate(&mut input, &other, &mut random);
            play(decoder, &input, &format!("UNDERSTUDY_FUZZ_SEED={seed}, round {round}"));
        }
        println!("{}: {rounds} rounds in {:?}", decoder.name, begun.elapsed());
    }
}

/// What scripts/fuzz found in the image formats, by what it was.
#[test]
fn what_was_found_in_images_stays_mended() {
    for target in &images::TARGETS {
        let folder = root().join("tests/corpus").join(target.name);
        let mut paths: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}: nothing is kept", folder.display());
        for path in paths {
            println!("{}", path.display());
            target.play(&std::fs::read(&path).unwrap());
        }
    }
}
