//! Every decoder of ours that reads bytes from outside, as a function that panics where a promise is broken, with the
//! files that fuzzing starts from. Played for a fixed number of rounds by tests/fuzz.rs.

/// A decoder, and what it is fed with at first.
pub struct Decoder {
    /// Its name, and that of its folder in tests/corpus.
    pub name: &'static str,
    /// Returns, whatever the bytes are.
    pub run: fn(&[u8]),
    /// Files and folders with good inputs, beside those in its corpus folder.
    pub seeds: &'static [&'static str],
    /// Good inputs that are made when they are needed.
    pub made: fn() -> Vec<Vec<u8>>,
}

macro_rules! unit {
    ($file:literal) => {
        unit!("v1", $file)
    };
    ($version:literal, $file:literal) => {
        concat!(
            "engine/store/tests/fixtures/",
            $version,
            "/store/units/2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a/",
            $file
        )
    };
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder {
        name: "log",
        run: store::fuzzing::log,
        seeds: &[unit!("disk0/3.log"), unit!("disk0/11.log"), unit!("v2", "disk0/11.log")],
        made: Vec::new,
    },
    Decoder {
        name: "index",
        run: store::fuzzing::index,
        seeds: &[unit!("disk0/3.index"), unit!("disk0/2-9.index"), unit!("v2", "disk0/2-9.index")],
        made: Vec::new,
    },
    Decoder { name: "packed", run: store::fuzzing::packed, seeds: &[unit!("disk0/3.index")], made: Vec::new },
    Decoder {
        name: "hashes",
        run: store::fuzzing::hashes,
        seeds: &["engine/store/tests/fixtures/v1/blocks.hashes"],
        made: Vec::new,
    },
    Decoder { name: "manifest", run: store::fuzzing::manifest, seeds: &[unit!("manifest")], made: Vec::new },
    Decoder {
        name: "marker",
        run: store::fuzzing::marker,
        seeds: &["engine/store/tests/fixtures/v1/store/store"],
        made: Vec::new,
    },
    Decoder { name: "sums", run: store::fuzzing::sums, seeds: &[unit!("disk0/image.sums")], made: Vec::new },
    Decoder { name: "delta", run: store::fuzzing::delta, seeds: &[], made: store::fuzzing::deltas },
    Decoder { name: "image", run: store::fuzzing::image, seeds: &[], made: store::fuzzing::images },
    Decoder {
        name: "ovf",
        run: hypervisor::fuzzing::descriptor,
        seeds: &[],
        made: hypervisor::fuzzing::descriptors,
    },
    Decoder {
        name: "ova",
        run: hypervisor::fuzzing::archive,
        seeds: &[],
        made: hypervisor::fuzzing::archives,
    },
    Decoder {
        name: "frame",
        run: wire::fuzzing::frame,
        seeds: &["engine/wire/tests/fixtures/v1", "engine/wire/tests/fixtures/v2"],
        made: Vec::new,
    },
    Decoder { name: "token", run: wire::fuzzing::token, seeds: &[], made: Vec::new },
    Decoder { name: "inventory", run: wire::fuzzing::inventory, seeds: &[], made: Vec::new },
    Decoder {
        name: "dirty-map",
        run: server::fuzzing::dirty_map,
        seeds: &["engine/server/tests/fixtures/v1/dirty.map"],
        made: Vec::new,
    },
    Decoder {
        name: "session-record",
        run: server::fuzzing::session_record,
        seeds: &["engine/server/tests/fixtures/v1/session.json"],
        made: Vec::new,
    },
    Decoder {
        name: "token-file",
        run: server::fuzzing::token_file,
        seeds: &["engine/server/tests/fixtures/v1/token.json"],
        made: Vec::new,
    },
    Decoder {
        name: "machine-file",
        run: server::fuzzing::machine_file,
        seeds: &["engine/server/tests/fixtures/v1/machine.json"],
        made: Vec::new,
    },
    Decoder { name: "signing-request", run: server::fuzzing::signing_request, seeds: &[], made: Vec::new },
    Decoder { name: "control-request", run: server::fuzzing::control_request, seeds: &[], made: Vec::new },
    Decoder {
        name: "activity-slot",
        run: cbt::fuzzing::activity_slot,
        seeds: &["cbt/tests/fixtures/v1/activity-slot"],
        made: Vec::new,
    },
    Decoder {
        name: "ledger",
        run: cbt::fuzzing::ledger,
        seeds: &["cbt/tests/fixtures/v1/ledger"],
        made: Vec::new,
    },
    Decoder {
        name: "shutdown-record",
        run: cbt::fuzzing::shutdown_record,
        seeds: &["cbt/tests/fixtures/v1/shutdown-record"],
        made: Vec::new,
    },
];
