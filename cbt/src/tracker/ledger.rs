//! What user space remembers beside the bitmaps, pinned with them: whose map it is, whether it is trusted, and what it is
//! relative to. One value of a BPF array, replaced as a whole by one system call, so a killed agent leaves the old
//! or the new one.
//!
//! | bytes | field |
//! | --- | --- |
//! | 4 | length of what follows, with the checksum |
//! | 4 | magic `USTK` |
//! | 2 | format: 1; covers the layout of every pinned map and what the programs do |
//! | 1 | grain, log2 bytes |
//! | 1 | plumbing: 0 requests, 1 bios |
//! | 4, 4, 8, 8, 16 | the disk: major, minor, diskseq, bytes, boot id |
//! | 1, 4 + n | trusted; if not, why |
//! | 1, 16, 8, 8, 8, 16 | base: present, store, acked, sent, generation, machine |
//! | 1, 8, 8, 8 | reference counts: present, queued, completed, kernel |
//! | 8 | the kernel's count when tracking began |
//! | 4 | CRC32C |

use super::base::identity;
use super::disk::{DiskIdentity, Plumbing};
use super::{Base, Trust};
use blocks::{BlockShift, ByteLen, ByteReader, ByteWriter, Error, ErrorKind, Result};

/// The size of the array's value.
pub(crate) const LEDGER_BYTES: usize = 512;
const MAGIC: u32 = u32::from_le_bytes(*b"USTK");
/// Raised whenever pinned maps or programs of the older kind cannot be taken over.
const FORMAT: u16 = 1;
const REASON_BYTES_MAX: usize = 200;

/// The counts at an instant with nothing in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reference {
    pub queued: u64,
    pub completed: u64,
    pub kernel: u64,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ledger {
    pub shift: BlockShift,
    pub plumbing: Plumbing,
    pub identity: DiskIdentity,
    pub trust: Trust,
    pub base: Option<Base>,
    pub reference: Option<Reference>,
    pub kernel_at_attach: u64,
}

impl Ledger {
    pub fn encode(&self) -> [u8; LEDGER_BYTES] {
        let mut body = ByteWriter::new();
        body.u32(MAGIC).u16(FORMAT).u8(self.shift.get());
        body.u8(match self.plumbing {
            Plumbing::Requests => 0,
            Plumbing::Bios => 1,
        });
        let disk = &self.identity;
        body.u32(disk.major).u32(disk.minor).u64(disk.diskseq).u64(disk.len.get()).id(Some(disk.boot));
        body.bool(self.trust.is_trusted());
        if let Trust::Untrusted { reason } = &self.trust {
            body.text(shorten(reason, REASON_BYTES_MAX));
        }
        body.bool(self.base.is_some());
        if let Some(base) = &self.base {
            base.encode(&mut body);
        }
        body.bool(self.reference.is_some());
        if let Some(reference) = &self.reference {
            body.u64(reference.queued).u64(reference.completed).u64(reference.kernel);
        }
        body.u64(self.kernel_at_attach).checksum();
        let mut framed = ByteWriter::new();
        framed.blob(body.as_bytes());
        let mut value = [0; LEDGER_BYTES];
        // Fixed fields are under 200 bytes and the reason is cut to as many.
        value[..framed.as_bytes().len()].copy_from_slice(framed.as_bytes());
        value
    }

    /// `Corrupt` for anything that another version or a half-made tracker may have left.
    pub fn decode(value: &[u8]) -> Result<Ledger> {
        let body = ByteReader::new(value, "tracker ledger").blob()?;
        let mut from = ByteReader::checksummed(body, "tracker ledger")?;
        if from.u32()? != MAGIC {
            return Err(Error::corrupt("not a tracker's ledger"));
        }
        match from.u16()? {
            FORMAT => {}
            other => {
                let context = format!("a tracker of format {other}; this agent has format {FORMAT}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        }
        let shift = BlockShift::new(from.u8()?).ok_or_else(|| Error::corrupt("tracker ledger: grain"))?;
        let plumbing = if from.bool()? { Plumbing::Bios } else { Plumbing::Requests };
        let identity = DiskIdentity {
            major: from.u32()?,
            minor: from.u32()?,
            diskseq: from.u64()?,
            len: ByteLen::new(from.u64()?),
            boot: identity(&mut from)?,
        };
        let trust = match from.bool()? {
            true => Trust::Trusted,
            false => Trust::Untrusted { reason: from.text()?.to_owned() },
        };
        let base = if from.bool()? { Some(Base::decode(&mut from)?) } else { None };
        let reference = match from.bool()? {
            true => Some(Reference { queued: from.u64()?, completed: from.u64()?, kernel: from.u64()? }),
            false => None,
        };
        let kernel_at_attach = from.u64()?;
        from.finish()?;
        Ok(Ledger { shift, plumbing, identity, trust, base, reference, kernel_at_attach })
    }
}

/// As much of the text as fits into so many bytes, whole characters.
pub(crate) fn shorten(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{Generation, Id, MachineId, Seq, StoreId};

    fn ledger(trust: Trust) -> Ledger {
        let id = Id::from_bytes([7; 16]).unwrap();
        Ledger {
            shift: BlockShift::KIB_4,
            plumbing: Plumbing::Bios,
            identity: DiskIdentity { major: 7, minor: 3, diskseq: 99, len: ByteLen::new(1 << 40), boot: id },
            trust,
            base: Some(Base {
                store: StoreId(id),
                acked: Seq(u64::MAX),
                sent: Seq(6),
                generation: Generation(2),
                machine: MachineId(id),
            }),
            reference: Some(Reference { queued: 1, completed: 2, kernel: u64::MAX }),
            kernel_at_attach: 512,
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        for trust in [Trust::Trusted, Trust::Untrusted { reason: "because".into() }] {
            let ledger = ledger(trust);
            assert_eq!(Ledger::decode(&ledger.encode()).unwrap(), ledger);
        }
    }

    /// The bytes of format 1, kept so that they stay readable; made once by that format's code, by
    /// `UNDERSTUDY_WRITE_FIXTURES=1`, which never touches what is there.
    #[test]
    fn a_ledger_of_format_1_stays_readable() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/ledger");
        let ledger = ledger(Trust::Untrusted { reason: "because".into() });
        if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, ledger.encode()).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Ledger::decode(&bytes).unwrap(), ledger);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let long = ledger(Trust::Untrusted { reason: format!("x{}", "ü".repeat(500)) });
        let read = Ledger::decode(&long.encode()).unwrap();
        assert_eq!(read.trust, Trust::Untrusted { reason: format!("x{}", "ü".repeat(99)) });
    }

    #[test]
    fn refuses_every_flipped_byte_and_an_empty_value() {
        let whole = ledger(Trust::Trusted).encode();
        let used = 4 + usize::try_from(u32::from_le_bytes(whole[..4].try_into().unwrap())).unwrap();
        for at in 0..used {
            let mut damaged = whole;
            damaged[at] ^= 0x40;
            assert!(Ledger::decode(&damaged).is_err(), "byte {at}");
        }
        assert!(Ledger::decode(&[0; LEDGER_BYTES]).is_err());
    }
}
