//! The metadata: the disk's size and sectors, the size of blocks, and whose child the disk is.

use super::super::bytes::{le16, le32, le64, put};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

const SIGNATURE: [u8; 8] = *b"metadata";
const TABLE_BYTES: usize = 64 << 10;
const ENTRIES_MAX: u16 = 2047;
/// The specification's bound for one item.
const ITEM_BYTES_MAX: u32 = 1 << 20;
const REQUIRED: u32 = 4;
const VIRTUAL_DISK: u32 = 2;

const FILE_PARAMETERS: [u8; 16] = uuid::uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b").to_bytes_le();
const DISK_SIZE: [u8; 16] = uuid::uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8").to_bytes_le();
const DISK_ID: [u8; 16] = uuid::uuid!("beca12ab-b2e6-4523-93ef-c309e000c746").to_bytes_le();
const LOGICAL_SECTOR: [u8; 16] = uuid::uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f").to_bytes_le();
const PHYSICAL_SECTOR: [u8; 16] = uuid::uuid!("cda348c7-445d-4471-9cc9-e9885251c556").to_bytes_le();
const PARENT_LOCATOR: [u8; 16] = uuid::uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").to_bytes_le();
const LOCATOR_OF_VHDX: [u8; 16] = uuid::uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913").to_bytes_le();

/// What the disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) len: ByteLen,
    pub(super) block: BlockShift,
    pub(super) logical_sector: BlockShift,
    /// Every block stays allocated: a fixed disk.
    pub(super) fixed: bool,
    pub(super) parent: Option<Parent>,
}

/// Whose child a differencing disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    /// What the parent's content was marked with when the child was made, as text.
    pub(super) linkages: Vec<String>,
    /// Where it is said to be; never followed.
    pub(super) path: String,
}

impl Metadata {
    /// The table and the items of a new disk.
    pub(super) fn encode(&self, disk_id: [u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0; TABLE_BYTES + 64];
        let block = u32::try_from(self.block.bytes()).expect("a block has at most 256 MiB");
        let parameters = [block.to_le_bytes(), u32::from(self.fixed).to_le_bytes()].concat();
        let logical = u32::try_from(self.logical_sector.bytes()).expect("512 or 4096");
        let items: [([u8; 16], u32, Vec<u8>); 5] = [
            (FILE_PARAMETERS, REQUIRED, parameters),
            (DISK_SIZE, REQUIRED | VIRTUAL_DISK, self.len.get().to_le_bytes().to_vec()),
            (DISK_ID, REQUIRED | VIRTUAL_DISK, disk_id.to_vec()),
            (LOGICAL_SECTOR, REQUIRED | VIRTUAL_DISK, logical.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, REQUIRED | VIRTUAL_DISK, 4096_u32.to_le_bytes().to_vec()),
        ];
        put(&mut bytes, 0, &SIGNATURE);
        put(&mut bytes, 10, &5_u16.to_le_bytes());
        let mut item_at = TABLE_BYTES;
        for (index, (id, flags, item)) in items.iter().enumerate() {
            let at = 32 + index * 32;
            put(&mut bytes, at, id);
            put(&mut bytes, at + 16, &(item_at as u32).to_le_bytes());
            put(&mut bytes, at + 20, &(item.len() as u32).to_le_bytes());
            put(&mut bytes, at + 24, &flags.to_le_bytes());
            put(&mut bytes, item_at, item);
            item_at += item.len();
        }
        bytes
    }

    /// Reads and checks the region.
    pub(super) fn read(file: &dyn StorageFile, region: Extent) -> Result<Metadata> {
        let mut table = vec![0; TABLE_BYTES];
        file.read_at(region.start(), &mut table)?;
        let read = |at: u32, len: u32| -> Result<Vec<u8>> {
            let mut item = vec![0; ByteLen::new(u64::from(len)).as_usize()];
            file.read_at(region.start() + ByteLen::new(u64::from(at)), &mut item)?;
            Ok(item)
        };
        decode(&table, region, &read).map_err(|error| error.context(format!("{}: metadata", file.name())))
    }
}

/// Where the disk's size is in the file, of metadata that were read before.
pub(super) fn size_at(file: &dyn StorageFile, region: Extent) -> Result<ByteOffset> {
    let mut table = vec![0; TABLE_BYTES];
    file.read_at(region.start(), &mut table)?;
    let entry = table[32..].chunks_exact(32).take(usize::from(le16(&table, 10)));
    let entry = entry.into_iter().find(|entry| entry[..16] == DISK_SIZE);
    let at = entry.map(|entry| region.start() + ByteLen::new(u64::from(le32(entry, 16))));
    at.ok_or_else(|| Error::corrupt(format!("{}: no size of the disk", file.name())))
}

#[derive(Default)]
struct Items {
    parameters: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    logical: Option<Vec<u8>>,
    locator: Option<Vec<u8>>,
}

fn decode(table: &[u8], region: Extent, read: &dyn Fn(u32, u32) -> Result<Vec<u8>>) -> Result<Metadata> {
    if table[..8] != SIGNATURE {
        return Err(Error::corrupt("its signature is missing"));
    }
    let count = le16(table, 10);
    if count > ENTRIES_MAX {
        return Err(Error::corrupt(format!("{count} items")));
    }
    let (mut items, mut places) = (Items::default(), Vec::new());
    for entry in table[32..].chunks_exact(32).take(usize::from(count)) {
        let (at, len, flags) = (le32(entry, 16), le32(entry, 20), le32(entry, 24));
        let inside = u64::from(at) + u64::from(len) <= region.len().get();
        if len > ITEM_BYTES_MAX || !inside || (len > 0 && u64::from(at) < TABLE_BYTES as u64) {
            return Err(Error::corrupt(format!("an item of {len} bytes at {at}")));
        }
        places.push(at..at + len);
        let known = match &entry[..16] {
            id if *id == FILE_PARAMETERS => &mut items.parameters,
            id if *id == DISK_SIZE => &mut items.size,
            id if *id == LOGICAL_SECTOR => &mut items.logical,
            id if *id == PARENT_LOCATOR => &mut items.locator,
            id if *id == DISK_ID || *id == PHYSICAL_SECTOR || flags & REQUIRED == 0 => continue,
            id => {
                let context = format!("an item that must be known and is not: {id:02x?}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        };
        if known.replace(read(at, len)?).is_some() {
            return Err(Error::corrupt("it holds an item twice"));
        }
    }
    // Changing one of two would change the other.
    places.retain(|place| !place.is_empty());
    places.sort_unstable_by_key(|place| place.start);
    match places.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => {
            Err(Error::corrupt(format!("an item at {} lies on the one at {}", pair[1].start, pair[0].start)))
        }
        None => items.decode(),
    }
}

impl Items {
    fn decode(self) -> Result<Metadata> {
        let sized = |item: Option<Vec<u8>>, len: usize, what: &str| {
            item.filter(|item| item.len() == len).ok_or_else(|| Error::corrupt(format!("no {what}")))
        };
        let parameters = sized(self.parameters, 8, "file parameters")?;
        let (block_bytes, flags) = (le32(&parameters, 0), le32(&parameters, 4));
        let shift = u8::try_from(block_bytes.trailing_zeros()).ok().and_then(BlockShift::new);
        let block = shift.filter(|block| block_bytes.is_power_of_two() && (20..=28).contains(&block.get()));
        let block = block.ok_or_else(|| Error::corrupt(format!("blocks of {block_bytes} bytes")))?;
        let logical = le32(&sized(self.logical, 4, "logical sector size")?, 0);
        let logical_sector = match logical {
            512 => BlockShift::SECTOR,
            4096 => BlockShift::KIB_4,
            _ => return Err(Error::corrupt(format!("sectors of {logical} bytes"))),
        };
        let len = ByteLen::new(le64(&sized(self.size, 8, "size of the disk")?, 0));
        if len.is_zero() || !len.is_aligned(logical_sector) || len > super::LEN_MAX {
            let context = format!("a disk of {len} bytes: not whole sectors up to {}", super::LEN_MAX);
            return Err(Error::corrupt(context));
        }
        let parent = match (flags & 2 != 0, self.locator) {
            (false, _) => None,
            (true, Some(locator)) => Some(parent(&locator)?),
            (true, None) => return Err(Error::corrupt("a differencing disk without a parent locator")),
        };
        Ok(Metadata { len, block, logical_sector, fixed: flags & 1 != 0, parent })
    }
}

/// Decodes a parent locator: keys and values in UTF-16.
fn parent(locator: &[u8]) -> Result<Parent> {
    let corrupt = || Error::corrupt("a parent locator that makes no sense");
    if locator.len() < 20 {
        return Err(corrupt());
    }
    if locator[..16] != LOCATOR_OF_VHDX {
        let context = "a parent that is no VHDX";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let text = |at: u32, len: u16| -> Result<String> {
        let start = ByteLen::new(u64::from(at)).as_usize();
        let bytes = locator.get(start..start + usize::from(len)).ok_or_else(corrupt)?;
        let units = bytes.chunks_exact(2).map(|unit| le16(unit, 0));
        char::decode_utf16(units).collect::<std::result::Result<String, _>>().map_err(|_| corrupt())
    };
    let (mut linkages, mut path) = (Vec::new(), None);
    let entries = locator[20..].chunks_exact(12);
    for entry in entries.take(usize::from(le16(locator, 18))) {
        let key = text(le32(entry, 0), le16(entry, 8))?;
        let value = text(le32(entry, 4), le16(entry, 10))?;
        match key.as_str() {
            "parent_linkage" | "parent_linkage2" => linkages.push(value.to_lowercase()),
            "relative_path" => path = Some(value),
            "volume_path" | "absolute_win32_path" if path.is_none() => path = Some(value),
            _ => {}
        }
    }
    match path {
        Some(path) if !linkages.is_empty() => Ok(Parent { linkages, path }),
        _ => Err(corrupt()),
    }
}
