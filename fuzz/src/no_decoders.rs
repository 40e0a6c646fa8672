//! Stands in for tests/support/decoders.rs where this is built without the rooms that its rows belong to.

pub struct Decoder {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static str],
    pub made: fn() -> Vec<Vec<u8>>,
}

pub const DECODERS: &[Decoder] = &[];
