//! Makes a store of many machines that have been quiet for long: one disk each, a little written, one checkpoint.
//!
//! `cargo run --release -p understudy-store --example idle_units -- FOLDER [COUNT]`: 1,000 unless said otherwise. What a server that
//! opens it costs is measured by scripts/bench size.

use blocks::{ByteLen, ByteOffset, DiskIndex, Error, ErrorKind, Id, MachineId, RequestClass, Result, Volume};
use std::sync::Arc;
use store::{CheckpointSpec, DiskSpec, HostStorage, ImageFormat, Store, StoreOptions, UnitSpec};

const DISK: ByteLen = ByteLen::new(64 << 30);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let wrong = |what: &str| Error::new(ErrorKind::InvalidInput, what.to_owned());
    let folder = arguments.next().ok_or_else(|| wrong("name a folder"))?;
    let count = arguments.next().map_or(Ok(1000), |count| count.parse::<u64>());
    let count = count.map_err(|_| wrong("COUNT is a number"))?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .map_err(|error| Error::io("the limit of open files", error.into()))?;
    let store = Store::open(Arc::new(HostStorage::new(&folder)?), StoreOptions::default())?;
    for number in 1..=count {
        let id =
            Id::from_bytes(u128::from(number).to_be_bytes()).ok_or_else(|| wrong("an identity of zero"))?;
        let unit = store.create_unit(UnitSpec {
            machine: MachineId(id),
            name: format!("idle-{number}"),
            definition: Vec::new(),
            disks: vec![DiskSpec { len: DISK, serial: String::new(), device: "/dev/sda".into() }],
            image_format: ImageFormat::Vhd,
        })?;
        let disk = unit.disk(unit.main_branch(), DiskIndex(0))?;
        disk.write_at(ByteOffset::ZERO, &[number as u8 | 1; 4096], false, RequestClass::Guest)?;
        unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now())?;
    }
    println!("{count} idle machines in {folder}");
    Ok(())
}
