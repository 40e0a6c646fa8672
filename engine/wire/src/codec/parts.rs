//! What messages of both directions are made of, and the limits that keep a small frame from taking much memory.

use crate::{Payload, frame::FIELDS_BYTES_MAX, frame::PAYLOAD_BYTES_MAX};
use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, DiskIndex, Error, ErrorKind, Extent, Generation,
    Id, MachineId, Result, Seq, SessionId, StoreId, WallClock,
};

/// The most disks of one machine.
pub const DISKS_MAX: usize = 256;
/// The most extents in one message, over all its lists. Whoever has more joins neighbours that are near each other,
/// which only makes more be sent than needed.
pub const EXTENTS_MAX: usize = 1 << 18;
/// The most hashes in one message: 4 GiB of disk in blocks of 64 KiB.
pub const HASHES_MAX: usize = 1 << 16;
/// No extent ends beyond this (4 EiB), so that rounding to a block never overflows.
pub const DISK_BYTES_MAX: u64 = 1 << 62;

const EXTENT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

const _: () = assert!(2 * EXTENTS_MAX * EXTENT_BYTES <= FIELDS_BYTES_MAX as usize);
const _: () = assert!(2 * HASHES_MAX * HASH_BYTES <= FIELDS_BYTES_MAX as usize);

const PAYLOAD_DATA: u8 = 1;
const PAYLOAD_ZERO: u8 = 2;

pub(super) fn broken(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, context)
}

pub(super) fn unknown(what: &str, value: u8) -> Error {
    Error::corrupt(format!("{value} is no {what}"))
}

pub(super) fn disk(reader: &mut ByteReader<'_>) -> Result<DiskIndex> {
    reader.u16().map(DiskIndex)
}

pub(super) fn seq(reader: &mut ByteReader<'_>) -> Result<Seq> {
    reader.u64().map(Seq)
}

pub(super) fn generation(reader: &mut ByteReader<'_>) -> Result<Generation> {
    reader.u64().map(Generation)
}

pub(super) fn clock(reader: &mut ByteReader<'_>) -> Result<WallClock> {
    reader.u64().map(WallClock)
}

pub(super) fn len(reader: &mut ByteReader<'_>) -> Result<ByteLen> {
    reader.u64().map(ByteLen::new)
}

pub(super) fn text(reader: &mut ByteReader<'_>) -> Result<String> {
    reader.text().map(str::to_owned)
}

pub(super) fn identity(reader: &mut ByteReader<'_>) -> Result<Id> {
    reader.id()?.ok_or_else(|| Error::corrupt("an identity is missing"))
}

pub(super) fn store(reader: &mut ByteReader<'_>) -> Result<StoreId> {
    identity(reader).map(StoreId)
}

pub(super) fn session(reader: &mut ByteReader<'_>) -> Result<SessionId> {
    identity(reader).map(SessionId)
}

pub(super) fn machine(reader: &mut ByteReader<'_>) -> Result<MachineId> {
    identity(reader).map(MachineId)
}

pub(super) fn block(reader: &mut ByteReader<'_>) -> Result<BlockShift> {
    let shift = reader.u8()?;
    BlockShift::new(shift).ok_or_else(|| unknown("block size", shift))
}

pub(super) fn write_extent(writer: &mut ByteWriter, extent: Extent) {
    writer.u64(extent.start().get()).u64(extent.len().get());
}

pub(super) fn extent(reader: &mut ByteReader<'_>) -> Result<Extent> {
    let (start, len) = (ByteOffset::new(reader.u64()?), ByteLen::new(reader.u64()?));
    Ok(Extent::new(start, len)?)
}

/// Appends the items behind their `u32` count.
pub(super) fn write_list<T>(writer: &mut ByteWriter, items: &[T], each: impl Fn(&mut ByteWriter, &T)) {
    writer.u32(u32::try_from(items.len()).expect("lists are checked to be short before they are written"));
    items.iter().for_each(|item| each(writer, item));
}

/// Reads the items behind a `u32` count of at most `max`. An item takes at least `bytes_min` bytes, so memory is
/// taken only for items that can be there.
pub(super) fn list<'a, T>(
    reader: &mut ByteReader<'a>,
    max: usize,
    bytes_min: usize,
    mut each: impl FnMut(&mut ByteReader<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = reader.u32()? as usize;
    if count > max {
        return Err(Error::corrupt(format!("a list of {count}; {max} are allowed")));
    }
    if count > reader.remaining() / bytes_min {
        return Err(Error::corrupt(format!("a list of {count} in {} bytes", reader.remaining())));
    }
    (0..count).map(|_| each(reader)).collect()
}

pub(super) fn write_extents(writer: &mut ByteWriter, extents: &[Extent]) {
    write_list(writer, extents, |writer, extent| write_extent(writer, *extent));
}

pub(super) fn extents(reader: &mut ByteReader<'_>) -> Result<Vec<Extent>> {
    list(reader, EXTENTS_MAX, EXTENT_BYTES, extent)
}

pub(super) fn check_extent(extent: Extent) -> Result<()> {
    match extent.end().get() <= DISK_BYTES_MAX {
        true => Ok(()),
        false => Err(broken(format!("{extent} ends beyond {DISK_BYTES_MAX}"))),
    }
}

/// For all the lists of one message together.
pub(super) fn check_extents<'a>(lists: impl IntoIterator<Item = &'a [Extent]>) -> Result<()> {
    let mut count = 0;
    for list in lists {
        count += list.len();
        list.iter().try_for_each(|extent| check_extent(*extent))?;
    }
    check_count("extents", count, EXTENTS_MAX)
}

pub(super) fn check_count(what: &str, count: usize, max: usize) -> Result<()> {
    match count <= max {
        true => Ok(()),
        false => Err(broken(format!("{count} {what} in one message; {max} are allowed"))),
    }
}

pub(super) fn write_payload(writer: &mut ByteWriter, payload: &Payload) {
    writer.u8(match payload {
        Payload::Data(_) => PAYLOAD_DATA,
        Payload::Zero => PAYLOAD_ZERO,
    });
}

pub(super) fn payload(reader: &mut ByteReader<'_>, data: &mut Vec<u8>) -> Result<Payload> {
    match reader.u8()? {
        PAYLOAD_DATA => Ok(Payload::Data(std::mem::take(data))),
        PAYLOAD_ZERO => Ok(Payload::Zero),
        other => Err(unknown("payload", other)),
    }
}

pub(super) fn payload_bytes(payload: &Payload) -> &[u8] {
    match payload {
        Payload::Data(data) => data,
        Payload::Zero => &[],
    }
}

/// Sectors, and as much data as the extent is long.
pub(super) fn check_payload(extent: Extent, payload: &Payload) -> Result<()> {
    check_extent(extent)?;
    if !extent.is_aligned(BlockShift::SECTOR) {
        return Err(broken(format!("{extent} does not consist of whole sectors")));
    }
    match payload {
        Payload::Zero => Ok(()),
        Payload::Data(data) if ByteLen::of(data) != extent.len() => {
            Err(broken(format!("{} bytes of data for {extent}", data.len())))
        }
        Payload::Data(data) => check_count("bytes of data", data.len(), PAYLOAD_BYTES_MAX as usize),
    }
}
