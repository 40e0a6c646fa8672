//! What a client can send, as functions over bytes: for libFuzzer (fuzz/) and for the random tests below.
//!
//! They run the server's own code from the first byte to the reply, over a disk in memory. A panic is a find; so is an
//! export that was not offered, or a reply out of proportion.

use crate::dispatch::{self, Agreed};
use crate::export::{Export, Exports};
use crate::handshake::{self, Host};
use crate::limits::Limits;
use crate::memory_stream::MemoryStream;
use crate::metadata::Selected;
use crate::outbox::Outbox;
use crate::patience::Patience;
use crate::protocol::{ALLOCATION_DEPTH, BASE_ALLOCATION, PAYLOAD_BYTES_MAX};
use crate::receiver::{NextHeader, Receiver};
use crate::reply::Reply;
use crate::request::{Command, Headers, Request};
use crate::security::Access;
use crate::socket::Socket;
use crate::traffic::{Counters, Operation};
use blocks::{ByteLen, MemoryVolume};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// One whole handshake: greeting flags, then options. The name of the export that the client got, if any.
pub fn handshake(bytes: &[u8]) -> Option<String> {
    let exports = Exports::new();
    let disk = || Export::new(Arc::new(MemoryVolume::new(ByteLen::new(DISK_BYTES))));
    for (name, export) in [("disk", disk()), ("", disk().read_only()), ("hidden", disk().hidden())] {
        exports.insert(name, export).expect("the names differ");
    }
    let socket = Socket::memory(MemoryStream::new(bytes));
    let host = Host { exports: &exports, tls: None, access: &Access::default(), timeout: PATIENCE };
    let chosen = handshake::negotiate(&socket, &host, || false).ok().flatten()?;
    let name = exports
        .list()
        .into_iter()
        .map(|info| info.name)
        .find(|name| exports.get(name).is_some_and(|export| Arc::ptr_eq(&export, &chosen.export)));
    assert!(name.is_some(), "an export that was never offered");
    name
}

/// Counts so many requests as a connection does, clock included, for benches/counting.rs. How many were counted.
pub fn count(requests: u64) -> u64 {
    let counters = Counters::default();
    for number in 0..requests {
        let begun = Instant::now();
        counters.begin();
        let took = begun.elapsed() + Duration::from_nanos(number & 0xffff);
        counters.end(Operation::Read, Some(4096), took);
    }
    counters.look().requests()
}

/// One transmission phase: the first byte chooses the headers, the rest are requests. How many were answered.
pub fn requests(bytes: &[u8]) -> u64 {
    let Some((choice, bytes)) = bytes.split_first() else { return 0 };
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(*choice % 3)];
    let names = [BASE_ALLOCATION, ALLOCATION_DEPTH, "x:none"];
    let selected = (1..).zip(names).map(|(id, name)| Selected { id, name: name.to_owned() });
    let agreed = Agreed { headers, contexts: selected.collect() };
    let export = Export::new(Arc::new(MemoryVolume::new(ByteLen::new(DISK_BYTES))));
    let read_only = choice & 0x80 != 0;
    let socket = Socket::memory(MemoryStream::new(bytes));
    let outbox = Outbox::default();
    let mut receiver = Receiver::new(Patience::of(&Limits::default()), headers);
    let mut answered = 0;
    while let Ok(NextHeader::Here(header)) = receiver.header(&socket, headers, false, || false) {
        let Some(request) = Request::decode(headers, &header) else { break };
        if request.command == Command::Disconnect {
            break;
        }
        let payload_len = request.payload_len(headers);
        let reply = Reply {
            socket: &socket,
            outbox: &outbox,
            more: receiver.holds_request(&socket, headers),
            cookie: request.cookie,
            offset: request.offset,
            headers,
            failed: Cell::new(false),
            sending: Cell::default(),
        };
        let outcome = match dispatch::check(&request, &agreed, export.len(), read_only) {
            Ok(action) => {
                let wanted = payload_len.as_usize().max(dispatch::reply_bytes(&action, &agreed));
                assert!(wanted <= PAYLOAD_BYTES_MAX as usize, "{wanted} bytes for one request");
                let mut buffer = vec![0; wanted];
                match receiver.exact(&socket, &mut buffer[..payload_len.as_usize()]) {
                    Ok(()) => dispatch::serve(action, &agreed, &export, &mut buffer, &reply),
                    Err(error) => Err(error),
                }
            }
            Err(refusal) => receiver
                .skip(&socket, payload_len.get())
                .and_then(|()| reply.error(refusal.error, refusal.reason)),
        };
        if outcome.is_err() {
            break;
        }
        answered += 1;
    }
    let bound = (answered + 1) * (DISK_BYTES * 4 + 4096);
    assert!(socket.sent() <= bound, "{} bytes for {answered} answers", socket.sent());
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{EXTENDED_REQUEST_MAGIC, OPTION_MAGIC, REQUEST_MAGIC};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const ROUNDS: u32 = 1000;

    fn rounds() -> u32 {
        std::env::var("NBD_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
    }

    fn seeded() -> StdRng {
        let seed = std::env::var("NBD_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        println!("seed {seed} (NBD_FUZZ_SEED)");
        StdRng::seed_from_u64(seed)
    }

    /// Changes some bytes, cuts some off.
    fn spoil(bytes: &mut Vec<u8>, random: &mut StdRng) {
        for _ in 0..random.random_range(0..3) {
            if !bytes.is_empty() {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
        }
        if random.random_bool(0.2) {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
    }

    fn blob(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn option(random: &mut StdRng) -> Vec<u8> {
        let code: u32 = random.random_range(0..13);
        let name: &[u8] = [&b"disk"[..], b"", b"hidden", b"none"][random.random_range(0..4)];
        let data = match code {
            1 => name.to_vec(),
            6 | 7 => [blob(name), vec![0, 2, 0, 3, 0, random.random_range(0..5)]].concat(),
            9 | 10 => {
                let query: &[u8] =
                    [&b"base:allocation"[..], b"base:", b"qemu:", b"x"][random.random_range(0..4)];
                [blob(name), vec![0, 0, 0, 1], blob(query)].concat()
            }
            _ => vec![0; random.random_range(0..3)],
        };
        [&OPTION_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &blob(&data)].concat()
    }

    #[test]
    fn no_handshake_panics_or_opens_what_is_not_there() {
        let mut random = seeded();
        let mut opened = 0;
        for _ in 0..rounds() {
            let mut bytes = random.random_range(0u32..5).to_be_bytes().to_vec();
            for _ in 0..random.random_range(0..8) {
                bytes.extend(option(&mut random));
            }
            spoil(&mut bytes, &mut random);
            opened += u32::from(handshake(&bytes).is_some());
        }
        assert!(opened > rounds() / 100, "only {opened} handshakes got anywhere: the inputs test little");
    }

    fn request(headers: u8, random: &mut StdRng) -> Vec<u8> {
        let extended = headers % 3 == 2;
        let command: u16 = random.random_range(0..9);
        let payload = command == 1 || extended && random.random_bool(0.2);
        let flags: u16 = match random.random_bool(0.7) {
            true => u16::from(extended && payload) << 5,
            false => random.random_range(0..64),
        };
        let len: u64 = match random.random_range(0..6) {
            0 => 0,
            1 => random.random_range(0..4 * DISK_BYTES),
            2 if extended && !payload => random.random(),
            _ => 4 * random.random_range(1u64..2000),
        };
        let offset: u64 =
            if random.random_bool(0.9) { random.random_range(0..DISK_BYTES) } else { random.random() };
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut bytes = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        bytes.extend(random.random::<u64>().to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        match extended {
            true => bytes.extend(len.to_be_bytes()),
            false => bytes.extend((len as u32).to_be_bytes()),
        }
        if payload {
            bytes.extend(std::iter::repeat_n(random.random_range(0u8..4), len.min(4096) as usize));
        }
        bytes
    }

    #[test]
    fn no_request_panics_or_gets_more_than_its_share() {
        let mut random = seeded();
        let mut answered = 0;
        for _ in 0..rounds() {
            let headers: u8 = random.random();
            let mut bytes = vec![headers];
            for _ in 0..random.random_range(0..6) {
                bytes.extend(request(headers, &mut random));
            }
            spoil(&mut bytes, &mut random);
            answered += requests(&bytes);
        }
        assert!(answered > u64::from(rounds()) / 10, "only {answered} answers: the inputs test little");
    }

    #[test]
    fn bytes_without_sense_are_survived() {
        let mut random = seeded();
        for _ in 0..rounds() {
            let mut bytes = vec![0u8; random.random_range(0..200)];
            random.fill(&mut bytes[..]);
            handshake(&bytes);
            requests(&bytes);
        }
    }
}
