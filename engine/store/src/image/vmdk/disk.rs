//! A VMDK as a disk: its extents one after the other, over a parent where it has one.

use super::super::beyond::read_parent;
use super::super::disk::Disk;
use super::super::status::Runs;
use super::Opened;
use super::descriptor::{Access, ExtentType};
use super::identity::ContentId;
use super::sparse::Sparse;
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, FileRange, Result, StorageFile, Volume,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Grain tables in memory, of all extents together: at grains of 64 KiB they lead to 128 GiB.
const CACHE_BYTES: u64 = 32 << 20;

/// A VMDK, open.
pub(in super::super) struct VmdkDisk {
    name: String,
    len: ByteLen,
    parts: Vec<Part>,
    parent: Option<Arc<dyn Volume>>,
    /// The file with the descriptor, and whether it says by now that the content is another.
    identity: ContentId,
    begun: Mutex<bool>,
}

/// One extent.
struct Part {
    /// On the disk.
    disk: Extent,
    kind: Kind,
}

enum Kind {
    Flat { file: Arc<dyn StorageFile>, at: ByteOffset },
    Sparse(Box<Sparse>),
    Zero,
}

impl VmdkDisk {
    /// The disk of a checked descriptor. `files` are those of its extents, in order, without those that have none.
    ///
    /// Errors: `Corrupt` where a file is not what the descriptor says; `Unsupported` for writing to what is compressed,
    /// read-only, or stands on a parent.
    pub(in super::super) fn new(
        opened: Opened,
        files: Vec<Arc<dyn StorageFile>>,
        parent: Option<Arc<dyn Volume>>,
        writable: bool,
    ) -> Result<VmdkDisk> {
        let Opened { file, identity, descriptor, header } = opened;
        let name = file.name().to_owned();
        let refuse = |what: &str| {
            Err(Error::new(ErrorKind::Unsupported, format!("{name}: {what} is read, not written")))
        };
        if writable && descriptor.parent.is_some() {
            return refuse("a VMDK that stands on a parent");
        }
        let memory = ByteLen::new(CACHE_BYTES / descriptor.extents.len() as u64);
        let mut own_header = header;
        let (mut parts, mut at) = (Vec::new(), ByteOffset::ZERO);
        let mut files = files.into_iter();
        let mut next_file = || files.next().expect("every extent but those of zeroes has a file");
        for line in &descriptor.extents {
            let disk = Extent::new(at, line.len)?;
            let kind = match line.kind {
                ExtentType::Zero => Kind::Zero,
                ExtentType::Flat { at } => Kind::flat(next_file(), at.end(), line.len)?,
                ExtentType::Sparse => Kind::sparse(next_file(), own_header.take(), line.len, memory)?,
            };
            if writable {
                match &kind {
                    Kind::Zero => return refuse("an extent of zeroes"),
                    Kind::Sparse(sparse) => sparse.check_writable()?,
                    Kind::Flat { .. } => {}
                }
                if line.access == Access::ReadOnly {
                    return refuse("an extent that is marked so");
                }
            }
            parts.push(Part { disk, kind });
            at = disk.end();
        }
        Ok(VmdkDisk { name, len: descriptor.len(), parts, parent, identity, begun: Mutex::new(false) })
    }

    /// The parts that the extent touches, each with what it has of it.
    fn touched(&self, extent: Extent) -> impl Iterator<Item = (&Part, Extent)> {
        let first = self.parts.partition_point(|part| part.disk.end() <= extent.start());
        self.parts[first..].iter().map_while(move |part| Some((part, part.disk.intersect(extent)?)))
    }

    /// What comes before the first change after opening: whoever remembers the content sees that it is another now.
    fn begin(&self) -> Result<()> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !*begun {
            self.identity.replace()?;
            *begun = true;
        }
        Ok(())
    }
}

impl Kind {
    fn flat(file: Arc<dyn StorageFile>, at: ByteOffset, len: ByteLen) -> Result<Kind> {
        if at.checked_add(len).is_none_or(|end| end > file.len().map_or(ByteOffset::ZERO, ByteLen::end)) {
            let context = format!("{}: shorter than its extent of {len} bytes at {at}", file.name());
            return Err(Error::corrupt(context));
        }
        Ok(Kind::Flat { file, at })
    }

    fn sparse(
        file: Arc<dyn StorageFile>,
        header: Option<super::header::Header>,
        len: ByteLen,
        memory: ByteLen,
    ) -> Result<Kind> {
        let header = match header {
            Some(header) => header,
            None => super::header::Header::read(&*file)?,
        };
        if !header.holds(len) {
            let context = format!("{}: it has {} bytes where {len} are said", file.name(), header.capacity);
            return Err(Error::corrupt(context));
        }
        Ok(Kind::Sparse(Box::new(Sparse::open(file, header, memory)?)))
    }
}

impl Part {
    /// Where the bytes lie within the extent.
    fn inside(&self, extent: Extent) -> Extent {
        let start = ByteOffset::ZERO + (extent.start() - self.disk.start());
        Extent::new(start, extent.len()).expect("a part of an extent is one")
    }
}

/// Where the bytes of a flat extent are.
fn flat_place(at: ByteOffset, inside: Extent) -> Result<Extent> {
    Ok(Extent::new(at + (inside.start() - ByteOffset::ZERO), inside.len())?)
}

impl Disk for VmdkDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for (part, extent) in self.touched(extent) {
            let (bytes, after) = rest.split_at_mut(extent.len().as_usize());
            rest = after;
            let inside = part.inside(extent);
            match &part.kind {
                Kind::Zero => bytes.fill(0),
                Kind::Flat { file, at } => file.read_at(flat_place(*at, inside)?.start(), bytes)?,
                Kind::Sparse(sparse) => {
                    let skip = part.disk.start() - ByteOffset::ZERO;
                    let below = |run: Extent, bytes: &mut [u8]| {
                        read_parent(self.parent.as_ref(), Extent::new(run.start() + skip, run.len())?, bytes)
                    };
                    sparse.read(inside, bytes, &below)?;
                }
            }
        }
        Ok(())
    }

    fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        self.begin()?;
        let mut rest = data;
        for (part, extent) in self.touched(extent) {
            let (bytes, after) = rest.split_at(extent.len().as_usize());
            rest = after;
            let inside = part.inside(extent);
            match &part.kind {
                Kind::Zero => {}
                Kind::Flat { file, at } => file.write_at(flat_place(*at, inside)?.start(), bytes)?,
                Kind::Sparse(sparse) => sparse.write(inside, bytes)?,
            }
        }
        Ok(())
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        self.begin()?;
        self.touched(extent).try_for_each(|(part, extent)| {
            let inside = part.inside(extent);
            match &part.kind {
                Kind::Zero => Ok(()),
                Kind::Flat { file, at } => file.punch_hole(flat_place(*at, inside)?),
                Kind::Sparse(sparse) => sparse.punch(inside),
            }
        })
    }

    fn sync(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| match &part.kind {
            Kind::Zero => Ok(()),
            Kind::Flat { file, .. } => file.sync().map(drop),
            Kind::Sparse(sparse) => sparse.sync(),
        })
    }

    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()> {
        for (part, extent) in self.touched(extent) {
            if runs.is_full() {
                return Ok(());
            }
            let inside = part.inside(extent);
            match &part.kind {
                Kind::Zero => runs.push(extent, Allocation::Hole),
                Kind::Flat { file, at } => {
                    runs.push_stored(&**file, extent, flat_place(*at, inside)?.start())?;
                }
                Kind::Sparse(sparse) => {
                    let skip = part.disk.start() - ByteOffset::ZERO;
                    sparse.status(inside, skip, self.parent.as_deref(), runs)?;
                }
            }
        }
        Ok(())
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let (part, within) = self.touched(extent).next()?;
        let Kind::Flat { file, at } = &part.kind else { return None };
        let file = Arc::clone(file.host_file().filter(|_| within == extent)?);
        Some(FileRange { file, offset: flat_place(*at, part.inside(extent)).ok()?.start() })
    }

    fn close(&mut self) -> Result<()> {
        self.parts.iter().try_for_each(|part| match &part.kind {
            Kind::Sparse(sparse) => sparse.close(),
            Kind::Zero | Kind::Flat { .. } => Ok(()),
        })
    }
}

impl std::fmt::Debug for VmdkDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmdkDisk").field("file", &self.name).finish_non_exhaustive()
    }
}
