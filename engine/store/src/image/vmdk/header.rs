//! The header of a sparse extent ("Hosted Sparse Extents" and "Stream-Optimized" in VMware's note).

use super::super::bytes::{le16, le32, le64, put};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, SECTOR_BYTES, StorageFile};

pub(super) const MAGIC: [u8; 4] = *b"KDMV";
pub(super) const HEADER_BYTES: ByteLen = ByteLen::new(512);
/// Entries of a grain table: one number for every writer there is.
pub(super) const TABLE_ENTRIES: u64 = 512;
/// The bytes of a grain table.
pub(super) const TABLE_BYTES: u64 = TABLE_ENTRIES * 4;
/// Where the byte is that says that the file is being written.
pub(super) const UNCLEAN_AT: ByteOffset = ByteOffset::new(72);
/// In the field of the grain directory's place: the file ends with another header, which knows.
pub(super) const AT_END: u64 = u64::MAX;
/// What a file that went through a transfer for texts no longer has.
const NEWLINES: [u8; 4] = *b"\n \r\n";
/// 4 KiB to 16 MiB.
const GRAIN_SHIFTS: std::ops::RangeInclusive<u32> = 12..=24;
/// Directories in memory: at grains of 4 KiB they lead to the 2 TiB that a file can have.
const DIRECTORY_BYTES_MAX: u64 = 4 << 20;

const FLAG_NEWLINES: u32 = 1;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZEROED: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) capacity: ByteLen,
    pub(super) grain: BlockShift,
    /// Where the descriptor lies, in files that have one.
    pub(super) descriptor: Option<Extent>,
    pub(super) directory_at: ByteOffset,
    /// The second directory, with tables of its own.
    pub(super) redundant_at: Option<ByteOffset>,
    /// Metadata at the file's start; grains begin behind it.
    pub(super) overhead: ByteLen,
    /// Its last writer did not close it.
    pub(super) unclean: bool,
    /// An entry of 1 says that the grain reads as zeroes.
    pub(super) zeroed_entries: bool,
    pub(super) compressed: bool,
}

impl Header {
    /// Reads and checks the header, and the one at the end where the first says that it counts.
    pub(super) fn read(file: &dyn StorageFile) -> Result<Header> {
        let mut bytes = [0; 512];
        file.read_at(ByteOffset::ZERO, &mut bytes)?;
        if le64(&bytes, 56) == AT_END {
            bytes = read_footer(file)?;
        }
        let header = Header::decode(&bytes).map_err(|error| error.context(file.name()))?;
        header.check_places(file)?;
        Ok(header)
    }

    fn decode(bytes: &[u8; 512]) -> Result<Header> {
        let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
        if bytes[..4] != MAGIC {
            return Err(Error::corrupt("not a sparse VMDK: the magic is missing"));
        }
        let (version, flags) = (le32(bytes, 4), le32(bytes, 8));
        if !(1..=3).contains(&version) {
            return unsupported(format!("VMDK version {version} is not known"));
        }
        let known = FLAG_NEWLINES | FLAG_REDUNDANT | FLAG_ZEROED | FLAG_COMPRESSED | FLAG_MARKERS;
        if flags & !known != 0 {
            return unsupported(format!("flags {:#x} are not known", flags & !known));
        }
        if flags & FLAG_NEWLINES != 0 && bytes[73..77] != NEWLINES {
            return Err(Error::corrupt("its line ends were changed, as by a transfer of a text"));
        }
        let (compressed, algorithm) = (flags & FLAG_COMPRESSED != 0, le16(bytes, 77));
        if algorithm != u16::from(compressed) {
            return unsupported(format!("compression {algorithm} with flags {flags:#x} is not known"));
        }
        if compressed && flags & FLAG_MARKERS == 0 {
            return unsupported("compressed grains without markers are not supported".to_owned());
        }
        let grain = grain_of(le64(bytes, 20))?;
        if u64::from(le32(bytes, 44)) != TABLE_ENTRIES {
            return unsupported(format!("grain tables of {} entries are not supported", le32(bytes, 44)));
        }
        let sectors = |at: usize| byte_offset(le64(bytes, at));
        let capacity = ByteLen::new(sectors(12)?.get());
        let header = Header {
            capacity,
            grain,
            descriptor: Extent::new(sectors(28)?, ByteLen::new(sectors(36)?.get())).ok(),
            directory_at: sectors(56)?,
            redundant_at: if flags & FLAG_REDUNDANT != 0 { Some(sectors(48)?) } else { None },
            overhead: ByteLen::new(sectors(64)?.get()),
            unclean: bytes[72] != 0,
            zeroed_entries: flags & FLAG_ZEROED != 0,
            compressed,
        };
        if capacity.is_zero() || header.directory_len().get() > DIRECTORY_BYTES_MAX {
            return unsupported(format!("a capacity of {capacity} bytes in grains of {}", grain.bytes()));
        }
        Ok(header)
    }

    fn check_places(&self, file: &dyn StorageFile) -> Result<()> {
        let end = file.len()?.end();
        let astray = |what: &str, extent: Extent| {
            let context =
                format!("{}: its {what} at {extent} lies on its header or past the end", file.name());
            Err(Error::corrupt(context))
        };
        let named = [("descriptor", self.descriptor), ("grain directory", Some(self.directory()?))];
        for (what, extent) in named {
            if let Some(extent) = extent.filter(|it| it.start() < HEADER_BYTES.end() || it.end() > end) {
                return astray(what, extent);
            }
        }
        if self.overhead.end() > end {
            let context = format!("{}: shorter than its metadata of {} bytes", file.name(), self.overhead);
            return Err(Error::corrupt(context));
        }
        Ok(())
    }

    /// Whether this can be the header of an extent of `len` bytes: it may have more, since some writers fill up the last
    /// grain, and since a disk that grows grows here first.
    pub(super) fn holds(&self, len: ByteLen) -> bool {
        self.capacity >= len
    }

    /// Whether it has more grains than an extent of `len` bytes.
    pub(super) fn exceeds(&self, len: ByteLen) -> bool {
        self.capacity.blocks(self.grain) > len.blocks(self.grain)
    }

    /// How many grain tables there are.
    pub(super) fn tables(&self) -> u64 {
        self.capacity.get().div_ceil(self.grain.bytes() * TABLE_ENTRIES)
    }

    fn directory_len(&self) -> ByteLen {
        ByteLen::new(self.tables().saturating_mul(4))
    }

    /// Where the directory lies.
    pub(super) fn directory(&self) -> Result<Extent> {
        Ok(Extent::new(self.directory_at, self.directory_len())?)
    }

    /// Where the redundant directory lies.
    pub(super) fn redundant(&self) -> Result<Option<Extent>> {
        self.redundant_at.map(|at| Ok(Extent::new(at, self.directory_len())?)).transpose()
    }

    /// Changes capacity and places in a header's bytes; whatever else they say stays.
    pub(super) fn put_places(&self, bytes: &mut [u8; 512]) {
        put(bytes, 12, &(self.capacity.get() / SECTOR_BYTES).to_le_bytes());
        if let Some(redundant_at) = self.redundant_at {
            put(bytes, 48, &(redundant_at.get() / SECTOR_BYTES).to_le_bytes());
        }
        put(bytes, 56, &(self.directory_at.get() / SECTOR_BYTES).to_le_bytes());
    }

    /// The bytes of a header that we write. `at_end`: what counts is the copy at the file's end.
    pub(super) fn encode(&self, at_end: bool) -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut flags = FLAG_NEWLINES;
        if self.redundant_at.is_some() {
            flags |= FLAG_REDUNDANT;
        }
        if self.compressed {
            flags |= FLAG_COMPRESSED | FLAG_MARKERS;
        }
        let version: u32 = if self.compressed { 3 } else { 1 };
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &version.to_le_bytes());
        put(&mut bytes, 8, &flags.to_le_bytes());
        put(&mut bytes, 44, &(TABLE_ENTRIES as u32).to_le_bytes());
        let descriptor = self.descriptor.map_or((0, 0), |at| (at.start().get(), at.len().get()));
        let fields = [
            (12, self.capacity.get()),
            (20, self.grain.bytes()),
            (28, descriptor.0),
            (36, descriptor.1),
            (48, self.redundant_at.map_or(0, ByteOffset::get)),
            (56, self.directory_at.get()),
            (64, self.overhead.get()),
        ];
        for (at, value) in fields {
            put(&mut bytes, at, &(value / SECTOR_BYTES).to_le_bytes());
        }
        if at_end {
            put(&mut bytes, 56, &AT_END.to_le_bytes());
        }
        put(&mut bytes, 73, &NEWLINES);
        put(&mut bytes, 77, &u16::from(self.compressed).to_le_bytes());
        bytes
    }
}

/// The header at the end: a marker of its own before it, an empty one behind.
fn read_footer(file: &dyn StorageFile) -> Result<[u8; 512]> {
    let corrupt =
        || Error::corrupt(format!("{}: it ends without the header that it needs there", file.name()));
    let start = file.len()?.get().checked_sub(1536).ok_or_else(corrupt)?;
    let mut bytes = [0; 1536];
    file.read_at(ByteOffset::new(start), &mut bytes)?;
    let marker = (le64(&bytes, 0), le32(&bytes, 8), le32(&bytes, 12));
    if marker != (1, 0, 3) || !blocks::is_zero(&bytes[1024..1040]) {
        return Err(corrupt());
    }
    let mut footer = [0; 512];
    footer.copy_from_slice(&bytes[512..1024]);
    if le64(&footer, 56) == AT_END { Err(corrupt()) } else { Ok(footer) }
}

fn grain_of(sectors: u64) -> Result<BlockShift> {
    let shift = sectors.trailing_zeros().saturating_add(SECTOR_BYTES.trailing_zeros());
    let fits = sectors.is_power_of_two() && GRAIN_SHIFTS.contains(&shift);
    let shift = u8::try_from(shift).ok().filter(|_| fits).and_then(BlockShift::new);
    shift.ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("grains of {sectors} sectors are not supported"))
    })
}

/// The byte at which a sector starts. `Corrupt` beyond what a file can have.
pub(super) fn byte_offset(sector: u64) -> Result<ByteOffset> {
    match sector.checked_mul(SECTOR_BYTES) {
        Some(bytes) if bytes <= i64::MAX as u64 => Ok(ByteOffset::new(bytes)),
        _ => Err(Error::corrupt(format!("sector {sector} lies past the end of any file"))),
    }
}
