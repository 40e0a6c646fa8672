//! A writer that keeps a ledger of what it was promised.
//!
//! `ledger write FILE LEDGER` overwrites 4 KiB slots of FILE at random, fsyncs, and only then appends to LEDGER (which
//! lies on another disk) which record each slot was promised to hold, and when. `ledger check FILE LEDGER [UNTIL_MS]` reads
//! FILE from a recovered disk: each slot must hold a whole record, and one at least as new as the last that was promised
//! before UNTIL_MS. It prints the number of promises checked, and fails naming the first that was broken.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SLOT_BYTES: usize = 4096;
const SLOTS: u64 = 8192;
const BATCH: usize = 16;
/// A busy database on two cores, not a benchmark of them: about 10 MB of random 4 KiB writes a second.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write", file, ledger] => write(file, ledger),
        ["check", file, ledger] => check(file, ledger, u64::MAX),
        ["check", file, ledger, until] => check(file, ledger, until.parse()?),
        _ => anyhow::bail!("usage: ledger write FILE LEDGER | ledger check FILE LEDGER [UNTIL_MS]"),
    }
}

fn write(file: &str, ledger: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)?;
    let mut number = promises(ledger)?.into_iter().map(|promise| promise.number).max().unwrap_or(0);
    let mut ledger = OpenOptions::new().append(true).create(true).open(ledger)?;
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    loop {
        let mut lines = String::new();
        let mut written = Vec::new();
        for _ in 0..BATCH {
            number += 1;
            random = xorshift(random);
            let slot = random % SLOTS;
            file.write_all_at(&record(number, slot), slot * SLOT_BYTES as u64)?;
            written.push((number, slot));
        }
        file.sync_data()?;
        let now = now_ms()?;
        written.iter().for_each(|(number, slot)| lines.push_str(&format!("{number} {slot} {now}\n")));
        ledger.write_all(lines.as_bytes())?;
        std::thread::sleep(PAUSE);
    }
}

struct Promise {
    number: u64,
    slot: u64,
    at_ms: u64,
}

fn promises(ledger: &str) -> anyhow::Result<Vec<Promise>> {
    let mut text = String::new();
    match File::open(ledger) {
        Ok(mut file) => file.read_to_string(&mut text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    // The writer may have been killed in the middle of its last line, which then promised nothing.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            let fields: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            match fields[..] {
                [number, slot, at_ms] => Ok(Promise { number, slot, at_ms }),
                _ => anyhow::bail!("'{line}' is not a line of a ledger"),
            }
        })
        .collect()
}

fn check(file: &str, ledger: &str, until_ms: u64) -> anyhow::Result<()> {
    let file = File::open(file)?;
    let mut newest = HashMap::new();
    let mut checked = 0;
    for promise in promises(ledger)?.into_iter().filter(|promise| promise.at_ms < until_ms) {
        newest.insert(promise.slot, promise.number);
        checked += 1;
    }
    for (slot, promised) in newest {
        let mut bytes = [0; SLOT_BYTES];
        file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64)?;
        let found = u64::from_le_bytes(bytes[..8].try_into()?);
        anyhow::ensure!(bytes == record(found, slot), "slot {slot} does not hold a whole record");
        anyhow::ensure!(found >= promised, "slot {slot} holds record {found}, but {promised} was promised");
    }
    println!("{checked}");
    Ok(())
}

fn record(number: u64, slot: u64) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    let mut state = number ^ (slot << 40) | 1;
    for word in bytes.as_chunks_mut::<8>().0 {
        state = xorshift(state);
        *word = state.to_le_bytes();
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn xorshift(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}

fn now_ms() -> anyhow::Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
