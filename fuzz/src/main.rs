//! One libFuzzer program for all decoders; `UNDERSTUDY_FUZZ_DECODER` says which one it plays.

#![no_main]

#[path = "../../tests/support/decoders.rs"]
mod decoders;

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let names = || decoders::DECODERS.iter().map(|decoder| decoder.name).collect::<Vec<_>>().join(", ");
    let name = std::env::var("UNDERSTUDY_FUZZ_DECODER").unwrap_or_default();
    match decoders::DECODERS.iter().find(|decoder| decoder.name == name) {
        Some(decoder) => decoder.run,
        None => {
            eprintln!("UNDERSTUDY_FUZZ_DECODER={name}: wants one of {}", names());
            std::process::exit(2)
        }
    }
}

fuzz_target!(|bytes: &[u8]| CHOSEN.get_or_init(chosen)(bytes));
