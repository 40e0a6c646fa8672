//! Extended headers, 64-bit lengths, filtered block status, and metadata contexts beyond base:allocation.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, MemoryVolume, RequestClass, Result, Volume};
use common::raw::{ACK, ERR_EXT_HEADER_REQD, ERR_INVALID, Raw, blob};
use common::sparse::SparseVolume;
use common::{MIB, Served, run, succeed};
use nbd_server::{Export, Metadata, MetadataRun};
use std::sync::Arc;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;
const PAYLOAD: u16 = 32;
const EINVAL: u32 = 22;
const ENOTSUP: u32 = 95;
const EOVERFLOW: u32 = 75;

/// In the transmission phase of `disk` with extended headers and these contexts.
fn extended(served: &Served, contexts: &[&str]) -> Raw {
    let mut raw = Raw::greeted(served.tcp_port());
    assert_eq!(raw.option(11, b"").0, ACK);
    let mut data = [blob(b"disk"), (contexts.len() as u32).to_be_bytes().to_vec()].concat();
    contexts.iter().for_each(|context| data.extend(blob(context.as_bytes())));
    assert_eq!(raw.option(10, &data).1.len(), contexts.len());
    assert!(raw.go("disk"));
    raw
}

fn filter(len: u64, ids: &[u32]) -> Vec<u8> {
    let mut payload = len.to_be_bytes().to_vec();
    ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
    payload
}

#[test]
fn every_command_works_with_extended_headers_and_every_reply_repeats_cookie_and_offset() {
    let (served, disk) = Served::memory(MIB);
    let mut raw = extended(&served, &["base:allocation"]);
    raw.extended_request(PAYLOAD | FUA, WRITE, 1, 4096, 8192, &[0xaa; 8192]);
    assert_eq!(raw.extended_done(1, 4096), 0);
    raw.extended_request(0, READ, 2, 4096, 8192, &[]);
    let chunk = raw.extended_chunk(2, 4096);
    assert_eq!((chunk.kind, chunk.last, &chunk.data[..8]), (1, true, &4096u64.to_be_bytes()[..]));
    assert_eq!(chunk.data[8..], [0xaa; 8192]);
    raw.extended_request(DF, READ, 3, 0, 65536, &[]);
    assert_eq!(raw.extended_chunk(3, 0).data.len(), 8 + 65536);
    for (command, flags, cookie) in
        [(FLUSH, 0, 4), (TRIM, FUA, 5), (CACHE, 0, 6), (ZEROES, NO_HOLE | FAST | FUA, 7), (READ, 0, 8)]
    {
        raw.extended_request(flags, command, cookie, 0, 0, &[]);
        assert_eq!(raw.extended_done(cookie, 0), 0, "command {command} of no bytes");
    }
    raw.extended_request(0, STATUS, 9, 0, MIB, &[]);
    let chunk = raw.extended_chunk(9, 0);
    assert_eq!((chunk.kind, chunk.last), (6, true));
    assert_eq!(chunk.runs(), (1, vec![(4096, 3), (8192, 0), (MIB - 12288, 3)]));
    raw.extended_request(0, ZEROES, 10, 4096, 8192, &[]);
    assert_eq!(raw.extended_done(10, 4096), 0);
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
}

#[test]
fn lengths_beyond_32_bits_are_trimmed_zeroed_and_described_at_once() {
    let len = 1 << 50;
    let disk = Arc::new(SparseVolume::new(len, true));
    let served = Served::volume(disk.clone());
    let mut raw = extended(&served, &["base:allocation"]);
    disk.write_at(ByteOffset::new(5 << 40), &[1; 512], false, RequestClass::Guest).unwrap();
    raw.extended_request(0, STATUS, 1, 0, len, &[]);
    let (_, runs) = raw.extended_chunk(1, 0).runs();
    assert_eq!(runs[..2], [(5 << 40, 3), (65536, 0)]);
    assert_eq!(runs.iter().map(|run| run.0).sum::<u64>(), len);
    raw.extended_request(FAST, ZEROES, 2, 1 << 40, 6 << 40, &[]);
    assert_eq!(raw.extended_done(2, 1 << 40), 0);
    raw.extended_request(0, TRIM, 3, 0, len, &[]);
    assert_eq!(raw.extended_done(3, 0), 0);
    raw.extended_request(0, CACHE, 4, 0, len, &[]);
    assert_eq!(raw.extended_done(4, 0), 0);
    raw.extended_request(0, STATUS, 5, 0, len, &[]);
    assert_eq!(raw.extended_chunk(5, 0).runs().1, [(len, 3)]);
    raw.extended_request(0, READ, 6, 0, 1 << 40, &[]);
    assert_eq!(raw.extended_done(6, 0), EOVERFLOW);
    raw.extended_request(0, TRIM, 7, 1, len, &[]);
    assert_eq!(raw.extended_done(7, 1), EINVAL);
}

#[test]
fn a_payload_is_taken_only_where_it_belongs_and_the_stream_stays_in_step() {
    let (served, disk) = Served::memory(MIB);
    let mut raw = extended(&served, &["base:allocation", "qemu:allocation-depth"]);
    raw.extended_request(0, WRITE, 1, 0, 512, &[0; 512]);
    assert_eq!(raw.extended_done(1, 0), 0, "QEMU does not announce a write's payload");
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, 99] {
        raw.extended_request(PAYLOAD, command, 2, 0, 512, &[0xee; 512]);
        assert_eq!(raw.extended_done(2, 0), EINVAL, "command {command} has no payload");
    }
    for wrong in [
        filter(512, &[1, 1]),
        filter(512, &[7]),
        filter(0, &[1]),
        filter(MIB + 1, &[1]),
        filter(512, &[]),
        vec![0; 9],
        vec![0; 4096],
    ] {
        raw.extended_request(PAYLOAD, STATUS, 3, 0, wrong.len() as u64, &wrong);
        assert_eq!(raw.extended_done(3, 0), EINVAL, "{wrong:?}");
    }
    let payload = filter(4096, &[2]);
    raw.extended_request(PAYLOAD | REQ_ONE, STATUS, 4, 512, payload.len() as u64, &payload);
    let chunk = raw.extended_chunk(4, 512);
    assert!(chunk.last, "one context, one chunk");
    assert_eq!(chunk.runs(), (2, vec![(4096, 0)]));
    raw.extended_request(0, STATUS, 5, 0, MIB, &[]);
    let (first, second) = (raw.extended_chunk(5, 0), raw.extended_chunk(5, 0));
    assert_eq!((first.last, second.last), (false, true));
    assert_eq!((first.runs().0, second.runs().0), (1, 2));
    assert!(disk.snapshot().iter().all(|byte| *byte == 0));
    raw.extended_request(PAYLOAD, WRITE, 6, 0, 65 << 20, &[]);
    assert!(raw.is_closed(), "more than can be skipped is an attack");
    let mut raw = extended(&served, &["base:allocation"]);
    raw.request(0, READ, 1, 0, 512);
    raw.send(&[0; 4]);
    assert!(raw.is_closed(), "a compact request is out of step");
}

#[test]
fn the_handshake_knows_which_headers_come_first() {
    let (served, _disk) = Served::memory(MIB);
    let flags = |raw: &mut Raw| {
        let infos = raw.option(6, &[blob(b"disk"), vec![0, 0]].concat()).1;
        u16::from_be_bytes(infos[0].data[10..12].try_into().unwrap())
    };
    let (df_flag, payload_flag) = (1 << 7, 1 << 12);
    let mut raw = Raw::greeted(served.tcp_port());
    assert_eq!(flags(&mut raw) & (df_flag | payload_flag), 0, "no chunks, no DF");
    assert_eq!(raw.option(11, b"x").0, ERR_INVALID);
    assert_eq!(raw.option(8, b"").0, ACK);
    assert_eq!(raw.option(11, b"").0, ACK);
    assert_eq!(raw.option(8, b"").0, ERR_EXT_HEADER_REQD);
    assert_eq!(flags(&mut raw) & (df_flag | payload_flag), df_flag, "no context, no filter");
    raw.option(10, &[blob(b"disk"), vec![0, 0, 0, 1], blob(b"base:allocation")].concat());
    assert_eq!(flags(&mut raw) & (df_flag | payload_flag), df_flag | payload_flag);
    raw.send_option(1, b"disk");
    assert!(raw.is_closed(), "the old way to choose is not for extended headers");
    let mut raw = Raw::greeted(served.tcp_port());
    raw.option(8, b"");
    let many: Vec<u8> = (0..65).flat_map(|_| blob(b"base:allocation")).collect();
    let (kind, found) = raw.option(10, &[blob(b"disk"), vec![0, 0, 0, 65], many].concat());
    assert_eq!((kind, found.len()), (ACK, 1), "asked often, selected once");
}

#[test]
fn fast_zero_is_refused_where_it_would_not_be_fast_and_changes_nothing() {
    let disk = Arc::new(SparseVolume::new(MIB, false));
    let served = Served::volume(disk.clone());
    disk.write_at(ByteOffset::ZERO, &[7; 8192], false, RequestClass::Guest).unwrap();
    let mut raw = extended(&served, &[]);
    raw.extended_request(FAST, ZEROES, 1, 0, 4096, &[]);
    assert_eq!(raw.extended_done(1, 0), ENOTSUP);
    raw.extended_request(0, ZEROES, 2, 4096, 4096, &[]);
    assert_eq!(raw.extended_done(2, 4096), 0);
    let mut bytes = [0; 8192];
    disk.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 7) && bytes[4096..].iter().all(|byte| *byte == 0));
    // An edge within a sector has to be read first: that is not fast.
    let (served, _disk) = Served::memory(MIB);
    let mut raw = extended(&served, &[]);
    raw.extended_request(FAST, ZEROES, 1, 1, 4096, &[]);
    assert_eq!(raw.extended_done(1, 1), ENOTSUP);
}

#[test]
fn qemu_zeroes_trims_and_maps_terabytes_in_one_request() {
    let disk = Arc::new(SparseVolume::new(1 << 42, true));
    let served = Served::volume(disk.clone());
    disk.write_at(ByteOffset::new(1 << 41), &[1; 65536], false, RequestClass::Guest).unwrap();
    for uri in served.uris() {
        let commands = ["write -P 9 3T 64k", "write -z -u -n 3T 64G", "discard 3T 1G", "read -P 0 3T 64k"];
        let mut args = vec!["-f", "raw"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&uri);
        let said = succeed("qemu-io", &args);
        assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
        let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert!(map.contains("\"start\": 2199023255552, \"length\": 65536"), "{map}");
        assert_eq!(map.lines().count(), 3, "{map}");
    }
}

/// A bitmap whose every second MiB is dirty, and one that fails.
struct Striped;

impl Metadata for Striped {
    fn contexts(&self) -> Vec<String> {
        ["qemu:dirty-bitmap:stripes", "qemu:dirty-bitmap:broken", "no colon"].map(str::to_owned).to_vec()
    }

    fn runs(&self, context: &str, extent: Extent) -> Result<Vec<MetadataRun>> {
        if context.ends_with("broken") {
            return Err(Error::new(ErrorKind::Corrupt, "the bitmap is damaged"));
        }
        let stripe = |extent: Extent| MetadataRun { extent, flags: (extent.start().get() / MIB % 2) as u32 };
        let first = extent.start().get() / MIB;
        let last = extent.end().get().div_ceil(MIB);
        let stripes = (first..last)
            .map(|number| Extent::new(ByteOffset::new(number * MIB), ByteLen::new(MIB)).unwrap());
        Ok(stripes.map(stripe).collect())
    }
}

#[test]
fn contexts_that_come_with_an_export_are_listed_selected_and_answered() {
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(4 * MIB)));
    let (served, _other) = Served::memory(MIB);
    served.exports.insert("striped", Export::new(disk).with_metadata(Arc::new(Striped))).unwrap();
    let uri = served.unix().replace("/disk", "/striped");
    let map = succeed("nbdinfo", &["--map=qemu:dirty-bitmap:stripes", &uri]);
    let flags: Vec<&str> = map.lines().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(flags, ["0", "1", "0", "1"], "{map}");
    let list = succeed("nbdinfo", &["--list", &uri]);
    for name in
        ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:stripes", "qemu:dirty-bitmap:broken"]
    {
        assert!(list.contains(name), "{list}");
    }
    assert!(!list.contains("no colon"));
    let depth = succeed("nbdinfo", &["--map=qemu:allocation-depth", &served.unix()]);
    assert_eq!(depth.split_whitespace().collect::<Vec<_>>()[..3], ["0", "1048576", "0"], "{depth}");
    let broken = run("nbdinfo", &["--map=qemu:dirty-bitmap:broken", &uri]);
    assert!(!broken.status.success() && !broken.stderr.is_empty());
    let script = format!(
        "
h.add_meta_context('base:allocation')
h.add_meta_context('qemu:dirty-bitmap:stripes')
h.connect_uri('{uri}')
seen = {{}}
h.block_status(4 << 20, 0, lambda name, at, entries, error: seen.update({{name: entries[:]}}) or 0)
assert seen['base:allocation'] == [4 << 20, 3], seen
assert seen['qemu:dirty-bitmap:stripes'] == [1 << 20, 0, 1 << 20, 1] * 2, seen
seen = {{}}
h.block_status(3, (1 << 20) - 1, lambda name, at, entries, error: seen.update({{name: entries[:]}}) or 0)
assert seen['qemu:dirty-bitmap:stripes'] == [1, 0, 2, 1], seen
"
    );
    succeed("nbdsh", &["-c", &script]);
}

#[test]
fn hidden_exports_are_opened_by_name_and_not_listed() {
    let (served, disk) = Served::memory(MIB);
    served.exports.insert("secret", Export::new(disk).hidden()).unwrap();
    let list = succeed("nbdinfo", &["--list", &served.tcp()]);
    assert!(list.contains("disk") && !list.contains("secret"), "{list}");
    succeed("nbdinfo", &[&served.tcp().replace("/disk", "/secret")]);
}
