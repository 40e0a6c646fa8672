//! Every message is read as it was written, and every version-1 frame as it was written then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod messages;

use blocks::{ByteLen, DiskIndex, ErrorKind, Extent, Seq};
use messages::{agent_samples, any_agent_message, any_server_message, extent, server_samples};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use wire::*;

proptest! {
    #[test]
    fn agent_messages_round_trip(message in any_agent_message()) {
        let frame = encode_frame(VERSION, &message).unwrap();
        prop_assert!(frame.len() <= FRAME_BYTES_MAX);
        prop_assert_eq!(&decode_frame::<AgentMessage>(&frame).unwrap(), &message);
        let packed = encode_packed_frame(&message).unwrap();
        prop_assert!(packed.len() <= frame.len());
        prop_assert_eq!(decode_frame::<AgentMessage>(&packed).unwrap(), message);
        prop_assert_eq!(decode_frame::<ServerMessage>(&frame).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn server_messages_round_trip(message in any_server_message()) {
        let frame = encode_frame(VERSION, &message).unwrap();
        prop_assert!(frame.len() <= FRAME_BYTES_MAX);
        prop_assert_eq!(decode_frame::<ServerMessage>(&frame).unwrap(), message);
        prop_assert_eq!(decode_frame::<AgentMessage>(&frame).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

/// To add a kind: its sample, then once `UNDERSTUDY_WRITE_FIXTURES=1 cargo test -p understudy-wire --test frames`,
/// which writes the files that are missing and never touches one that is there.
fn check_fixtures<M: Message + PartialEq + Debug>(samples: Vec<(&'static str, M)>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    let mut kinds = BTreeSet::new();
    for (name, message) in samples {
        kinds.insert(message.kind());
        let path = folder.join(format!("{name}.frame"));
        if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
            std::fs::write(&path, encode_frame(1, &message).unwrap()).unwrap();
        }
        let frame = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(decode_frame::<M>(&frame).unwrap(), message, "{name} is read as it was");
        assert_eq!(encode_frame(1, &message).unwrap(), frame, "{name} is written as it was");
        let now = encode_frame(VERSION, &message).unwrap();
        assert_eq!(now[24..], frame[24..], "{name} is the same in this version, but for the version");
    }
    let known: BTreeSet<u16> = (0..=u16::MAX).filter(|kind| M::check_kind(*kind).is_ok()).collect();
    assert_eq!(kinds, known, "each kind has its fixture");
}

/// What packed it is a library that may pack better one day: only reading is for ever.
#[test]
fn packed_frames_of_version_2_stay_readable() {
    let data = Payload::Data((0..4096u32).map(|at| (at / 100) as u8).collect());
    let write = Write { disk: DiskIndex(1), seq: Seq(7), extent: extent(4096, 4096), payload: data };
    let message = AgentMessage::Write(write);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2/write-packed.frame");
    if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, encode_packed_frame(&message).unwrap()).unwrap();
    }
    let frame = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(frame.len() < 1024);
    assert_eq!(decode_frame::<AgentMessage>(&frame).unwrap(), message);
}

#[test]
fn version_1_agent_frames_stay_readable() {
    check_fixtures(agent_samples());
}

#[test]
fn version_1_server_frames_stay_readable() {
    check_fixtures(server_samples());
}

/// Puts the checksums right, so that what was changed is judged by its meaning.
fn reseal(frame: &mut [u8]) {
    let body = blocks::crc32c(&frame[HEADER_BYTES..]);
    frame[16..20].copy_from_slice(&body.to_le_bytes());
    let header = blocks::crc32c(&frame[..20]);
    frame[20..24].copy_from_slice(&header.to_le_bytes());
}

fn refusal(change: impl FnOnce(&mut Vec<u8>), resealed: bool) -> blocks::Error {
    let mut frame = encode_frame(VERSION, &agent_samples()[3].1).unwrap();
    change(&mut frame);
    if resealed {
        reseal(&mut frame);
    }
    decode_frame::<AgentMessage>(&frame).unwrap_err()
}

#[test]
fn frames_that_are_none_say_why() {
    for (error, kind, why) in [
        (refusal(|frame| frame[0] = b'G', true), ErrorKind::Corrupt, "wrong magic"),
        (refusal(|frame| frame[4] = 4, true), ErrorKind::Unsupported, "speaks version 4 of the protocol"),
        (refusal(|frame| frame[4] = 0, true), ErrorKind::Unsupported, "speaks version 0 of the protocol"),
        (
            refusal(|frame| frame[7] |= 0x40, true),
            ErrorKind::Corrupt,
            "a packed payload of 512 bytes announces",
        ),
        (
            refusal(|frame| (frame[4], frame[7]) = (1, 0x40), true),
            ErrorKind::Unsupported,
            "kind 0x4004 is no message",
        ),
        (refusal(|frame| frame[6] = 0xee, true), ErrorKind::Unsupported, "kind 0x00ee is no message"),
        (refusal(|frame| frame[8] ^= 1, false), ErrorKind::Corrupt, "checksum mismatch"),
        (refusal(|frame| frame[30] ^= 1, false), ErrorKind::Corrupt, "checksum mismatch"),
        (refusal(|frame| *frame.last_mut().unwrap() ^= 1, false), ErrorKind::Corrupt, "checksum mismatch"),
        (refusal(|frame| frame.truncate(23), false), ErrorKind::Corrupt, "shorter than its header"),
        (refusal(|frame| frame.truncate(100), false), ErrorKind::Corrupt, "announces"),
        (refusal(|frame| frame.push(0), true), ErrorKind::Corrupt, "announces"),
        (refusal(|frame| frame[10] = 0x81, true), ErrorKind::Corrupt, "bytes of fields; 8388608 are allowed"),
        (
            refusal(|frame| frame[14] = 0x11, true),
            ErrorKind::Corrupt,
            "bytes of payload; 1048576 are allowed",
        ),
    ] {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn messages_that_break_their_rules_are_not_sent() {
    let write = |extent: Extent, payload| {
        encode_frame(
            VERSION,
            &AgentMessage::Write(Write { disk: DiskIndex(0), seq: Seq(1), extent, payload }),
        )
    };
    let hashes = |range, count| {
        encode_frame(
            VERSION,
            &AgentMessage::Hashes(HashReport {
                purpose: HashPurpose::Scan,
                disk: DiskIndex(0),
                range,
                block: blocks::BlockShift::KIB_64,
                hashes: vec![Some([1; 32]); count],
            }),
        )
    };
    let differing = |count| {
        let (disk, range, extents) = (DiskIndex(0), extent(0, 1), vec![extent(0, 1); count]);
        encode_frame(VERSION, &ServerMessage::Differing { disk, range, extents })
    };
    let inventory = |len| {
        let (_, AgentMessage::Hello(hello)) = agent_samples().remove(0) else { panic!("hello comes first") };
        encode_frame(VERSION, &AgentMessage::Hello(Hello { inventory: "x".repeat(len), ..hello }))
    };
    let range = extent(0, 1 << 21);
    for (result, why) in [
        (write(extent(0, 512), Payload::Data(vec![0; 511])), "511 bytes of data"),
        (write(extent(1, 512), Payload::Zero), "whole sectors"),
        (write(extent(0, 513), Payload::Zero), "whole sectors"),
        (write(extent(0, (1 << 20) + 512), Payload::Data(vec![0; (1 << 20) + 512])), "1048576 are allowed"),
        (write(extent(DISK_BYTES_MAX, 512), Payload::Zero), "ends beyond"),
        (write(extent(u64::MAX - 1, 1), Payload::Zero), "ends beyond"),
        (hashes(extent(0, 65537), 1), "1 hashes for"),
        (hashes(extent(512, 65536), 1), "does not start at a block"),
        (hashes(extent(0, (HASHES_MAX as u64 + 1) << 16), HASHES_MAX + 1), "65536 are allowed"),
        (differing(EXTENTS_MAX + 1), "262144 are allowed"),
        (inventory(8 << 20), "8388608 are allowed"),
        (
            encode_frame(VERSION, &ServerMessage::RestoreRead { restore: 1, disk: DiskIndex(0), range }),
            "takes more than",
        ),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    write(extent(0, 1 << 40), Payload::Zero).unwrap();
    hashes(extent(0, (HASHES_MAX as u64) << 16), HASHES_MAX).unwrap();
    differing(EXTENTS_MAX).unwrap();
    assert_eq!(ByteLen::new(DISK_BYTES_MAX).get() >> 50, 4096, "4 EiB is well over a petabyte");
}
