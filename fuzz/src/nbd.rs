//! What an NBD client can send.

use crate::decoders::Decoder;

/// Handshake and requests.
pub static TARGETS: &[Decoder] = &[
    Decoder {
        name: "nbd-handshake",
        run: |bytes| drop(nbd_server::fuzzing::handshake(bytes)),
        seeds: &[],
        made: Vec::new,
    },
    Decoder {
        name: "nbd-requests",
        run: |bytes| {
            nbd_server::fuzzing::requests(bytes);
        },
        seeds: &[],
        made: Vec::new,
    },
];
