//! A slot of the activity log: what its file holds twice, the newest valid one counts. docs/formats/activity-log.md has its bytes.

use crate::tracker::{Base, Trust, shorten};
use blocks::{BlockShift, ByteLen, ByteReader, ByteWriter, Error, ErrorKind, Result};

/// The size of a slot.
pub(super) const SLOT_BYTES: usize = 8 << 10;
/// The most regions of a disk.
pub(super) const REGIONS_MAX: u64 = 32_768;
const _: () = assert!(REGIONS_MAX as usize / 8 + 1024 <= SLOT_BYTES);
/// The smallest region, log2 bytes.
const REGION_SHIFT_MIN: u8 = 20;
const MAGIC: u32 = u32::from_le_bytes(*b"USTA");
const FORMAT: u16 = 1;
const TEXT_BYTES_MAX: usize = 200;

/// What a slot says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub number: u64,
    pub disk: String,
    pub len: ByteLen,
    pub region: BlockShift,
    pub trust: Trust,
    pub base: Option<Base>,
    pub on: Bits,
}

/// One bit for each region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bits(Vec<u8>);

impl Bits {
    /// None set.
    pub fn none(regions: u64) -> Bits {
        Bits(vec![0; usize::try_from(regions.div_ceil(8)).expect("few regions")])
    }

    pub fn is_on(&self, region: u64) -> bool {
        let (at, bit) = place(region);
        self.0.get(at).is_some_and(|byte| byte & bit != 0)
    }

    pub fn set(&mut self, region: u64, on: bool) {
        let (at, bit) = place(region);
        match on {
            true => self.0[at] |= bit,
            false => self.0[at] &= !bit,
        }
    }

    /// Only what is on in both.
    pub fn intersect(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(byte, other)| *byte &= other);
    }

    /// Those that are on.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        (0..self.0.len() as u64 * 8).filter(|region| self.is_on(*region))
    }
}

fn place(region: u64) -> (usize, u8) {
    (usize::try_from(region / 8).unwrap_or(usize::MAX), 1 << (region % 8))
}

/// The region of a disk of that size: the smallest that keeps their number in bounds; `Unsupported` past 32 TiB.
pub(super) fn region_of(len: ByteLen) -> Result<BlockShift> {
    let shifts = (REGION_SHIFT_MIN..=30).filter_map(BlockShift::new);
    let mut fitting = shifts.filter(|shift| len.blocks(*shift) <= REGIONS_MAX);
    fitting.next().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("a tap of {len} bytes: the activity log ends at 32 TiB"))
    })
}

impl Slot {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = ByteWriter::new();
        body.u32(MAGIC).u16(FORMAT).u64(self.number);
        body.text(shorten(&self.disk, TEXT_BYTES_MAX)).u64(self.len.get()).u8(self.region.get());
        body.bool(self.trust.is_trusted());
        if let Trust::Untrusted { reason } = &self.trust {
            body.text(shorten(reason, TEXT_BYTES_MAX));
        }
        body.bool(self.base.is_some());
        if let Some(base) = &self.base {
            base.encode(&mut body);
        }
        body.blob(&self.on.0).checksum();
        let mut framed = ByteWriter::new();
        framed.blob(body.as_bytes());
        let mut bytes = framed.into_bytes();
        bytes.resize(SLOT_BYTES, 0);
        bytes
    }

    /// `Corrupt` for what is torn or no slot, `Unsupported` for another format.
    pub fn decode(bytes: &[u8]) -> Result<Slot> {
        let body = ByteReader::new(bytes, "activity log").blob()?;
        let mut from = ByteReader::checksummed(body, "activity log")?;
        if from.u32()? != MAGIC {
            return Err(Error::corrupt("not an activity log"));
        }
        match from.u16()? {
            FORMAT => {}
            other => {
                let context = format!("an activity log of format {other}; this agent has format {FORMAT}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        }
        let number = from.u64()?;
        let disk = from.text()?.to_owned();
        let len = ByteLen::new(from.u64()?);
        let region = BlockShift::new(from.u8()?).ok_or_else(|| Error::corrupt("activity log: region"))?;
        let trust = match from.bool()? {
            true => Trust::Trusted,
            false => Trust::Untrusted { reason: from.text()?.to_owned() },
        };
        let base = if from.bool()? { Some(Base::decode(&mut from)?) } else { None };
        let on = Bits(from.blob()?.to_vec());
        from.finish()?;
        let regions = len.blocks(region);
        if on.0.len() as u64 != regions.div_ceil(8) || regions > REGIONS_MAX {
            return Err(Error::corrupt("activity log: regions"));
        }
        let reason = if let Trust::Untrusted { reason } = &trust { reason.len() } else { 0 };
        if disk.len().max(reason) > TEXT_BYTES_MAX {
            return Err(Error::corrupt("activity log: a text"));
        }
        Ok(Slot { number, disk, len, region, trust, base, on })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{Generation, Id, MachineId, Seq, StoreId};

    fn slot() -> Slot {
        let id = Id::from_bytes([7; 16]).unwrap();
        let len = ByteLen::new(100 << 20);
        let region = BlockShift::new(REGION_SHIFT_MIN).unwrap();
        let mut on = Bits::none(len.blocks(region));
        [0, 8, 9, 99].iter().for_each(|region| on.set(*region, true));
        let base = Base {
            store: StoreId(id),
            acked: Seq(5),
            sent: Seq(u64::MAX),
            generation: Generation(2),
            machine: MachineId(id),
        };
        let disk = "WD-123".to_owned();
        let trust = Trust::Untrusted { reason: "because".into() };
        Slot { number: 3, disk, len, region, trust, base: Some(base), on }
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_every_flipped_byte() {
        for slot in [slot(), Slot { trust: Trust::Trusted, base: None, ..slot() }] {
            let bytes = slot.encode();
            assert_eq!(bytes.len(), SLOT_BYTES);
            assert_eq!(Slot::decode(&bytes).unwrap(), slot);
            let used = 4 + usize::try_from(u32::from_le_bytes(bytes[..4].try_into().unwrap())).unwrap();
            for at in 0..used {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x40;
                assert!(Slot::decode(&damaged).is_err(), "byte {at}");
            }
        }
        assert!(Slot::decode(&[0; SLOT_BYTES]).is_err());
    }

    /// The bytes of format 1, kept so that they stay readable; made once by that format's code, by
    /// `UNDERSTUDY_WRITE_FIXTURES=1`, which never touches what is there.
    #[test]
    fn a_slot_of_format_1_stays_readable() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/activity-slot");
        if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
            std::fs::write(&path, slot().encode()).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Slot::decode(&bytes).unwrap(), slot());
    }

    #[test]
    fn regions_grow_with_the_disk_and_the_longest_slot_fits() {
        let shift = |len: u64| region_of(ByteLen::new(len)).unwrap().get();
        assert_eq!((shift(512), shift(32 << 30), shift((32 << 30) + 512)), (20, 20, 21));
        assert_eq!((shift(1 << 40), shift(32 << 40)), (25, 30));
        assert_eq!(region_of(ByteLen::new((32 << 40) + 512)).unwrap_err().kind(), ErrorKind::Unsupported);
        let len = ByteLen::new(32 << 40);
        let (region, long) = (region_of(len).unwrap(), "ü".repeat(500));
        let on = Bits::none(REGIONS_MAX);
        let trust = Trust::Untrusted { reason: long.clone() };
        let longest = Slot { len, region, on, disk: long, trust, ..slot() };
        assert_eq!(longest.encode().len(), SLOT_BYTES);
        assert!(Slot::decode(&longest.encode()).is_ok());
    }
}
