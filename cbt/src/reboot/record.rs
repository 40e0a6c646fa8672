//! What one disk's tracker knew when everything stood still: docs/formats/shutdown-record.md.

use crate::tracker::{Base, identity};
use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, Error, ErrorKind, Extent, ExtentSet, Id, Result,
};
use std::path::PathBuf;

const MAGIC: u32 = u32::from_le_bytes(*b"USBR");
const FORMAT: u16 = 1;
/// Before the body.
const HEAD_BYTES: usize = 4 + 2 + 8 + 32;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub boot: Id,
    pub device: PathBuf,
    pub serial: String,
    pub len: ByteLen,
    pub base: Base,
    pub witnesses: ExtentSet,
    pub digest: [u8; 32],
    pub suspects: ExtentSet,
    pub shift: BlockShift,
    pub changed: Vec<u64>,
}

impl Record {
    /// How long a record may become for a map of so many words.
    pub fn room(words: usize) -> u64 {
        // Some 4,000 extents and the names.
        (words as u64 * 8 + (128 << 10)).next_multiple_of(4096)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = ByteWriter::new();
        body.id(Some(self.boot)).text(&self.device.to_string_lossy()).text(&self.serial).u64(self.len.get());
        self.base.encode(&mut body);
        put_extents(&mut body, &self.witnesses);
        body.bytes(&self.digest);
        put_extents(&mut body, &self.suspects);
        body.u8(self.shift.get()).u32(self.changed.len() as u32);
        self.changed.iter().for_each(|word| {
            body.u64(*word);
        });
        seal(body.as_bytes())
    }

    /// `NotFound` where there is none, or it was struck out; `Corrupt` where it is not whole.
    pub fn decode(bytes: &[u8]) -> Result<Record> {
        let mut head = ByteReader::new(bytes, "shutdown record");
        match (head.u32()?, head.u16()?) {
            (0, 0) => return Err(Error::new(ErrorKind::NotFound, "no shutdown was recorded")),
            (MAGIC, FORMAT) => {}
            (MAGIC, other) => {
                let context = format!("a shutdown record of format {other}; this is {FORMAT}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            _ => return Err(Error::corrupt("no shutdown record")),
        }
        let len = usize::try_from(head.u64()?).unwrap_or(usize::MAX);
        let hash: [u8; 32] = head.array()?;
        let body = head.bytes(len)?;
        if *blake3::hash(body).as_bytes() != hash {
            return Err(Error::corrupt("a shutdown record that is not whole"));
        }
        let mut from = ByteReader::new(body, "shutdown record");
        let record = Record {
            boot: identity(&mut from)?,
            device: PathBuf::from(from.text()?),
            serial: from.text()?.to_owned(),
            len: ByteLen::new(from.u64()?),
            base: Base::decode(&mut from)?,
            witnesses: take_extents(&mut from)?,
            digest: from.array()?,
            suspects: take_extents(&mut from)?,
            shift: BlockShift::new(from.u8()?).ok_or_else(|| Error::corrupt("shutdown record: grain"))?,
            changed: take_words(&mut from)?,
        };
        from.finish()?;
        Ok(record)
    }

    /// What overwrites the start of a record that must not be read again.
    pub fn struck_out() -> &'static [u8] {
        &[0; HEAD_BYTES]
    }
}

/// For the fuzz targets: whether a record that can be read is the same when it was written and read again.
pub(crate) fn read_record_again(bytes: &[u8]) -> Result<bool> {
    let record = Record::decode(bytes)?;
    Ok(Record::decode(&record.encode())? == record)
}

/// For the fuzz targets: the same bytes after a head that says that they are whole.
pub(crate) fn resealed(bytes: &[u8]) -> Vec<u8> {
    seal(bytes.get(HEAD_BYTES..).unwrap_or_default())
}

fn seal(body: &[u8]) -> Vec<u8> {
    let mut whole = ByteWriter::new();
    whole.u32(MAGIC).u16(FORMAT).u64(body.len() as u64).bytes(blake3::hash(body).as_bytes());
    whole.bytes(body);
    whole.into_bytes()
}

fn put_extents(to: &mut ByteWriter, extents: &ExtentSet) {
    to.u32(extents.extents() as u32);
    for (extent, ()) in extents.iter() {
        to.u64(extent.start().get()).u64(extent.len().get());
    }
}

fn take_extents(from: &mut ByteReader<'_>) -> Result<ExtentSet> {
    let count = from.u32()?;
    (0..count)
        .map(|_| {
            let (start, len) = (ByteOffset::new(from.u64()?), ByteLen::new(from.u64()?));
            Extent::new(start, len).map_err(|_| Error::corrupt("shutdown record: an extent"))
        })
        .collect()
}

fn take_words(from: &mut ByteReader<'_>) -> Result<Vec<u64>> {
    let count = from.u32()?;
    (0..count).map(|_| from.u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{Generation, MachineId, Seq, StoreId};

    fn record() -> Record {
        let id = Id::from_bytes([7; 16]).unwrap();
        let extents = |starts: &[u64]| -> ExtentSet {
            let extent = |at: &u64| Extent::new(ByteOffset::new(*at), ByteLen::new(4096)).unwrap();
            starts.iter().map(extent).collect()
        };
        Record {
            boot: id,
            device: "/dev/vda".into(),
            serial: "s-1".into(),
            len: ByteLen::new(1 << 30),
            base: Base {
                store: StoreId(id),
                acked: Seq(5),
                sent: Seq(6),
                generation: Generation(2),
                machine: MachineId(id),
            },
            witnesses: extents(&[0, 1 << 20]),
            digest: [9; 32],
            suspects: extents(&[1 << 25]),
            shift: BlockShift::KIB_4,
            changed: vec![0, u64::MAX, 5],
        }
    }

    /// The bytes of format 1, made once by that format's code, by `UNDERSTUDY_WRITE_FIXTURES=1`.
    #[test]
    fn a_record_of_format_1_stays_readable() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/shutdown-record");
        if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
            std::fs::write(&path, record().encode()).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Record::decode(&bytes).unwrap(), record());
        assert_eq!(record().encode(), bytes);
    }

    #[test]
    fn one_that_was_struck_out_torn_or_changed_is_none() {
        let whole = record().encode();
        let mut padded = whole.clone();
        padded.resize(8192, 0);
        assert_eq!(Record::decode(&padded).unwrap(), record());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            assert!(Record::decode(&damaged).is_err(), "byte {at}");
        }
        assert!(Record::decode(&whole[..whole.len() - 1]).is_err());
        let mut struck = whole;
        struck[..HEAD_BYTES].copy_from_slice(Record::struck_out());
        assert_eq!(Record::decode(&struck).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
