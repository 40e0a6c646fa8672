//! Every fuzz target in one program; `UNDERSTUDY_FUZZ_TARGET` names the one that is played. scripts/fuzz runs it.
//!
//! The images of each format are targets of their own (tests/support/images), and so, with the feature
//! `decoders`, is each decoder of tests/support/decoders.rs, and what an NBD client can send.
//! With `UNDERSTUDY_FUZZ_SEEDS` the program writes what the target starts from into that folder, and ends. With
//! `UNDERSTUDY_FUZZ_LIST` it prints the names of all targets. With `UNDERSTUDY_FUZZ_FILES` the files of an image that is
//! played are written into that folder too.

#![no_main]
#![allow(missing_docs, reason = "a program")]

#[cfg(feature = "decoders")]
#[path = "../../tests/support/decoders.rs"]
mod decoders;
#[cfg(not(feature = "decoders"))]
#[path = "no_decoders.rs"]
mod decoders;
#[path = "../../tests/support/images/mod.rs"]
mod images;
#[cfg(feature = "decoders")]
mod nbd;
mod seeds;

use decoders::{DECODERS, Decoder};
use images::{Input, TARGETS, Target};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use store::testing::Random;

enum Chosen {
    Image(&'static Target),
    Decoder(&'static Decoder),
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |data: &[u8]| {
    match CHOSEN.get() {
        Some(Chosen::Image(target)) => target.play(data),
        Some(Chosen::Decoder(decoder)) => (decoder.run)(data),
        None => unreachable!("chosen before anything is played"),
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if !matches!(CHOSEN.get(), Some(Chosen::Image(_))) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mut input = Input::decode(&data[..size]);
    input.mutate(&mut Random::new(u64::from(seed)), |bytes, max| {
        let len = bytes.len();
        bytes.resize(max.max(len), 0);
        let len = libfuzzer_sys::fuzzer_mutate(bytes, len, max);
        bytes.truncate(len);
    });
    let changed = input.encode();
    let len = changed.len().min(max_size);
    data[..len].copy_from_slice(&changed[..len]);
    len
});

fn decoders() -> impl Iterator<Item = &'static Decoder> {
    #[cfg(feature = "decoders")]
    return DECODERS.iter().chain(nbd::TARGETS);
    #[cfg(not(feature = "decoders"))]
    DECODERS.iter()
}

fn choose() {
    if std::env::var_os("UNDERSTUDY_FUZZ_LIST").is_some() {
        let names = TARGETS.iter().map(|target| target.name).chain(decoders().map(|decoder| decoder.name));
        names.for_each(|name| println!("{name}"));
        std::process::exit(0);
    }
    let name = std::env::var("UNDERSTUDY_FUZZ_TARGET").unwrap_or_default();
    let image = TARGETS.iter().find(|target| target.name == name).map(Chosen::Image);
    let chosen = image.or_else(|| decoders().find(|decoder| decoder.name == name).map(Chosen::Decoder));
    let Some(chosen) = chosen else {
        eprintln!("UNDERSTUDY_FUZZ_TARGET={name}: there is no such target");
        std::process::exit(2);
    };
    if let Some(folder) = std::env::var_os("UNDERSTUDY_FUZZ_SEEDS") {
        write_seeds(&chosen, Path::new(&folder));
        std::process::exit(0);
    }
    assert!(CHOSEN.set(chosen).is_ok(), "chosen once");
}

fn write_seeds(chosen: &Chosen, folder: &Path) {
    let seeds = match chosen {
        Chosen::Image(target) => seeds::seeds(target, folder),
        Chosen::Decoder(decoder) => decoder_seeds(decoder),
    };
    for (name, bytes) in seeds {
        std::fs::write(folder.join(&name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// As tests/fuzz.rs has them: files of the repository, and what is made.
fn decoder_seeds(decoder: &Decoder) -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut seeds = Vec::new();
    for source in decoder.seeds.iter().map(|name| root.join(name)) {
        let paths = match source.is_dir() {
            true => std::fs::read_dir(&source)
                .expect("a folder of seeds")
                .map(|it| it.expect("a seed").path())
                .collect(),
            false => vec![source],
        };
        for path in paths {
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            seeds.push((format!("file-{}", seeds.len()), bytes));
        }
    }
    seeds.extend((decoder.made)().into_iter().enumerate().map(|(number, it)| (format!("made-{number}"), it)));
    seeds
}
