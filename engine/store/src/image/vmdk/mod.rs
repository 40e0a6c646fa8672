//! VMDK, after VMware's "Virtual Disk Format 5.0".
//!
//! A descriptor, which is a text, names the extents that make up the disk. It is a file of its own beside flat extents
//! (`monolithicFlat`, `twoGbMaxExtentFlat`, `vmfs`) and beside several sparse ones (`twoGbMaxExtentSparse`), or lies in
//! the one sparse extent that there is (`monolithicSparse`, `streamOptimized`):
//!
//! ```text
//! sector 0   header
//! 1          descriptor, 20 sectors
//! 21         redundant grain directory, 4 bytes for each grain table; then the grain tables that it leads to
//! then       grain directory and its grain tables: 4 bytes for each grain of 64 KiB
//! then       grains, on multiples of their size, in the order of allocation
//! ```
//!
//! Everything is little-endian. docs/formats/images.md says what we write and why.

mod check;
mod compressed;
mod descriptor;
mod directory;
mod disk;
mod header;
mod identity;
mod resize;
mod shown;
mod sparse;
mod stream;

use super::bytes::put;
use super::opening::last_part;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, SECTOR_BYTES, StorageFile};
use descriptor::{DESCRIPTOR_BYTES_MAX, Descriptor, ExtentType, FIRST_LINE};
use header::{Header, TABLE_BYTES};
use identity::ContentId;
use std::sync::Arc;

pub(super) use check::check;
pub(super) use disk::VmdkDisk;
pub(super) use resize::resize;
pub(super) use shown::{show, shown_flat_descriptor};
pub(crate) use stream::write as write_stream;

/// The largest sparse disk of which every grain, and the tables twice, lie below the 2 TiB that a sector's number reaches.
pub(super) const LEN_MAX: ByteLen = ByteLen::new(2047 << 30);
/// The largest flat disk: the one that ESXi takes.
pub(super) const FLAT_LEN_MAX: ByteLen = ByteLen::new(62 << 40);
/// The largest disk that fits a stream even where nothing of it can be compressed.
pub(super) const STREAM_LEN_MAX: ByteLen = ByteLen::new(2030 << 30);
/// The grain of every common writer, and ours.
const GRAIN: BlockShift = BlockShift::KIB_64;
/// Room for the descriptor, as every writer leaves it.
const DESCRIPTOR_PLACE: (u64, u64) = (SECTOR_BYTES, 20 * SECTOR_BYTES);

/// The bytes that others read and write of a descriptor that is a file of its own.
pub(super) const DESCRIPTOR_BYTES: ByteLen = ByteLen::new(DESCRIPTOR_PLACE.1);

/// What the files say of themselves before any table is read.
pub(super) struct Opened {
    file: Arc<dyn StorageFile>,
    identity: ContentId,
    descriptor: Descriptor,
    /// The header, where descriptor and extent share a file.
    header: Option<Header>,
}

/// Whether it begins like a sparse extent, or like a descriptor.
pub(super) fn looks_like(file: &dyn StorageFile) -> Result<bool> {
    let mut start = [0; FIRST_LINE.len()];
    if file.len()? < ByteLen::of(&start) {
        return Ok(false);
    }
    file.read_at(ByteOffset::ZERO, &mut start)?;
    Ok(start.starts_with(&header::MAGIC) || start.eq_ignore_ascii_case(FIRST_LINE.as_bytes()))
}

impl Opened {
    /// Reads and checks descriptor and header.
    pub(super) fn read(file: Arc<dyn StorageFile>) -> Result<Opened> {
        let mut magic = [0; 4];
        file.read_at(ByteOffset::ZERO, &mut magic)?;
        let (place, header) = match magic {
            header::MAGIC => {
                let header = Header::read(&*file)?;
                let place = header.descriptor.ok_or_else(|| {
                    let context =
                        format!("{}: one extent of a disk; its descriptor is another file", file.name());
                    Error::new(ErrorKind::Unsupported, context)
                })?;
                (place, Some(header))
            }
            _ if magic == *b"COWD" => {
                let context = format!("{}: ESX's own sparse extents are not supported", file.name());
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            _ => {
                let whole = Extent::whole(file.len()?).ok_or_else(|| Error::corrupt(file.name()))?;
                (whole, None)
            }
        };
        if place.len() > DESCRIPTOR_BYTES_MAX {
            let context = format!("{}: {} bytes are too many for a descriptor", file.name(), place.len());
            return Err(Error::corrupt(context));
        }
        let mut bytes = vec![0; place.len().as_usize()];
        file.read_at(place.start(), &mut bytes)?;
        let descriptor = Descriptor::parse(&bytes).map_err(|error| error.context(file.name()))?;
        if header.is_some()
            && (descriptor.extents.len() != 1 || descriptor.extents[0].kind != ExtentType::Sparse)
        {
            let context = format!("{}: its descriptor is not that of one sparse extent", file.name());
            return Err(Error::corrupt(context));
        }
        let digits = descriptor.content_id_at.clone();
        let identity = ContentId::new(Arc::clone(&file), place.start(), digits);
        Ok(Opened { file, identity, descriptor, header })
    }

    /// The file's name, for messages.
    pub(super) fn name(&self) -> &str {
        self.file.name()
    }

    /// The parent's path as it is written in the file.
    pub(super) fn parent_path(&self) -> Option<&str> {
        self.descriptor.parent.as_ref().map(|(_, path)| path.as_str())
    }

    /// `Corrupt` unless `parent` is the file that this disk was made a child of, as it was then.
    pub(super) fn check_parent(&self, parent: &Arc<dyn StorageFile>) -> Result<()> {
        let Some((wanted, _)) = self.descriptor.parent else { return Ok(()) };
        if Opened::read(Arc::clone(parent))?.descriptor.content_id == wanted {
            return Ok(());
        }
        let context = format!("{}: {} is not its parent, or was changed since", self.name(), parent.name());
        Err(Error::corrupt(context))
    }

    /// The files of the extents, in order: this one, or those that `open` gives for their names.
    pub(super) fn files(
        &self,
        mut open: impl FnMut(&str) -> Result<Arc<dyn StorageFile>>,
    ) -> Result<Vec<Arc<dyn StorageFile>>> {
        if self.header.is_some() {
            return Ok(vec![Arc::clone(&self.file)]);
        }
        let named = self.descriptor.extents.iter().filter(|extent| extent.kind != ExtentType::Zero);
        named.map(|extent| open(&extent.name)).collect()
    }
}

/// The name of the flat extent that belongs to a descriptor of this name.
pub(super) fn flat_name(name: &str) -> String {
    let stem = name.strip_suffix(".vmdk").unwrap_or(name);
    format!("{stem}-flat.vmdk")
}

/// Where everything of a new sparse file is.
struct SparsePlan {
    header: Header,
    /// How many grain tables each directory leads to.
    tables: u64,
    directory_bytes: u64,
}

impl SparsePlan {
    /// The caller has checked the length.
    fn of(len: ByteLen) -> SparsePlan {
        let tables = len.get().div_ceil(GRAIN.bytes() * header::TABLE_ENTRIES);
        let directory_bytes = (tables * 4).next_multiple_of(SECTOR_BYTES);
        let redundant_at = DESCRIPTOR_PLACE.0 + DESCRIPTOR_PLACE.1;
        let directory_at = redundant_at + directory_bytes + tables * TABLE_BYTES;
        let tables_end = directory_at + directory_bytes + tables * TABLE_BYTES;
        let header = Header {
            capacity: len,
            grain: GRAIN,
            descriptor: Extent::new(ByteOffset::new(DESCRIPTOR_PLACE.0), ByteLen::new(DESCRIPTOR_PLACE.1))
                .ok(),
            directory_at: ByteOffset::new(directory_at),
            redundant_at: Some(ByteOffset::new(redundant_at)),
            overhead: ByteOffset::new(tables_end).align_up(GRAIN) - ByteOffset::ZERO,
            unclean: false,
            zeroed_entries: false,
            compressed: false,
        };
        SparsePlan { header, tables, directory_bytes }
    }

    /// Where the two directories are, in the file's order.
    fn directories(&self) -> [u64; 2] {
        [DESCRIPTOR_PLACE.0 + DESCRIPTOR_PLACE.1, self.header.directory_at.get()]
    }

    /// Where the first grain table of the directory at `at` is; the others follow it.
    fn first_table(&self, at: u64) -> u64 {
        at + self.directory_bytes
    }
}

/// Writes an empty sparse VMDK into an empty file and syncs it. The caller has checked the length.
pub(super) fn create_sparse(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let plan = SparsePlan::of(len);
    let text = sparse_text(file.name(), identity::new_id(), len)?;
    file.set_len(plan.header.overhead)?;
    for at in plan.directories() {
        let first = plan.first_table(at) / SECTOR_BYTES;
        let entries = (0..plan.tables).map(|table| first + table * (TABLE_BYTES / SECTOR_BYTES));
        let bytes: Vec<u8> = entries
            .flat_map(|sector| u32::try_from(sector).expect("tables lie below 2 TiB").to_le_bytes())
            .collect();
        file.write_at(ByteOffset::new(at), &bytes)?;
    }
    file.write_at(ByteOffset::new(DESCRIPTOR_PLACE.0), text.as_bytes())?;
    file.write_at(ByteOffset::ZERO, &plan.header.encode(false))?;
    file.sync().map(drop)
}

/// Writes an empty flat VMDK into two empty files and syncs both.
pub(super) fn create_flat(file: &dyn StorageFile, flat: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let text = flat_text(file.name(), flat.name(), identity::new_id(), len)?;
    flat.set_len(len)?;
    flat.sync()?;
    file.write_at(ByteOffset::ZERO, text.as_bytes())?;
    file.sync().map(drop)
}

/// The descriptor in the sparse file of that name.
fn sparse_text(name: &str, content_id: u32, len: ByteLen) -> Result<String> {
    let extent = format!("RW {} SPARSE \"{}\"", len.get() / SECTOR_BYTES, last_part(name));
    descriptor_text(name, "monolithicSparse", content_id, len, &extent)
}

/// The descriptor that is the file of that name, beside the one with the disk.
fn flat_text(name: &str, flat: &str, content_id: u32, len: ByteLen) -> Result<String> {
    let extent = format!("RW {} FLAT \"{}\" 0", len.get() / SECTOR_BYTES, last_part(flat));
    descriptor_text(name, "monolithicFlat", content_id, len, &extent)
}

/// The text of a new disk's descriptor, once read again: a name can be one that no descriptor can hold.
fn descriptor_text(
    name: &str,
    create_type: &str,
    content_id: u32,
    len: ByteLen,
    extent: &str,
) -> Result<String> {
    let text = Descriptor::text(create_type, content_id, len, extent);
    let fits = Descriptor::parse(text.as_bytes()).is_ok_and(|read| read.len() == len);
    if !fits || text.len() as u64 > DESCRIPTOR_PLACE.1 {
        let context = format!("{name}: not a name that a VMDK can hold");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    Ok(text)
}

/// A descriptor in as many bytes as there is room for.
fn descriptor_bytes(text: &str) -> Vec<u8> {
    let mut bytes = vec![0; ByteLen::new(DESCRIPTOR_PLACE.1).as_usize()];
    put(&mut bytes, 0, text.as_bytes());
    bytes
}

#[cfg(test)]
#[path = "vmdk_tests.rs"]
mod tests;
