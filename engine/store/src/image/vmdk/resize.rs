//! Another length for a VMDK: a line of the descriptor, and of a sparse extent the header and the directories.
//!
//! The descriptor's line changes in one sector, and it is what counts. Whatever a longer disk needs is made before, what a
//! shorter one leaves is cut off afterwards.

use super::super::bytes::{le64, put};
use super::super::resize::only_by_converting;
use super::Opened;
use super::descriptor::Descriptor;
use super::directory::{Directories, Directory};
use super::header::{AT_END, Header, TABLE_BYTES};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, SECTOR_BYTES, StorageFile};
use std::sync::Arc;

/// Sectors have numbers of 32 bits.
const FILE_END_MAX: u64 = 1 << 41;

/// Gives the disk another length; see [`super::super::resize_image_with`]. `extents` are the files of its data. What is cut
/// off was found to be zero.
pub(in super::super) fn resize(
    file: &Arc<dyn StorageFile>,
    extents: Vec<Arc<dyn StorageFile>>,
    len: ByteLen,
) -> Result<()> {
    let opened = Opened::read(Arc::clone(file))?;
    let create_type = opened.descriptor.create_type.to_ascii_lowercase();
    let line = DescriptorText::read(&opened)?.resized(len)?;
    match (create_type.as_str(), &opened.header, &*extents) {
        ("monolithicsparse", Some(header), _) => {
            let old_len = opened.descriptor.len();
            super::super::ImageFormat::Vmdk.check_len(len)?;
            if len < old_len {
                return Err(only_by_converting(file.name(), "a sparse VMDK that is longer"));
            }
            grow_sparse(&**file, header, len)?;
            line.write(&**file)
        }
        ("monolithicflat", None, [flat]) => resize_flat(&**file, &**flat, &opened, (len, &line)),
        _ => {
            let what = format!("a VMDK of type '{}'", opened.descriptor.create_type);
            Err(only_by_converting(file.name(), &what))
        }
    }
}

fn resize_flat(
    file: &dyn StorageFile,
    flat: &dyn StorageFile,
    opened: &Opened,
    (len, line): (ByteLen, &ChangedSector),
) -> Result<()> {
    let super::descriptor::ExtentType::Flat { at } = opened.descriptor.extents[0].kind else {
        return Err(Error::corrupt(format!("{}: a flat disk without a flat extent", file.name())));
    };
    let (old_end, new_end) = ((at + opened.descriptor.len()).end(), (at + len).end());
    if new_end > old_end {
        check_empty(flat, old_end)?;
        flat.set_len(ByteLen::new(new_end.get()).max(flat.len()?))?;
        flat.sync()?;
    }
    line.write(file)?;
    if flat.len()?.end() > new_end {
        flat.set_len(ByteLen::new(new_end.get()))?;
        flat.sync()?;
    }
    Ok(())
}

/// What comes to be the disk's must be nothing yet.
fn check_empty(flat: &dyn StorageFile, from: ByteOffset) -> Result<()> {
    let mut at = from;
    while let Some(data) = flat.next_data(at)? {
        for piece in data.split(BlockShift::KIB_64.len()) {
            let mut bytes = vec![0; piece.len().as_usize()];
            flat.read_at(piece.start(), &mut bytes)?;
            if !blocks::is_zero(&bytes) {
                return Err(Error::corrupt(format!("{}: what follows its extent is not empty", flat.name())));
            }
        }
        at = data.end();
    }
    Ok(())
}

/// Makes header and directories those of a longer disk. Grain tables are made for all of it, empty, since not everybody
/// makes one that is missing. Both directories move to the file's end with them unless their last sector has room.
fn grow_sparse(file: &dyn StorageFile, header: &Header, len: ByteLen) -> Result<()> {
    let mut bytes = [0; 512];
    file.read_at(ByteOffset::ZERO, &mut bytes)?;
    if header.compressed || le64(&bytes, 56) == AT_END {
        return Err(only_by_converting(file.name(), "a compressed VMDK"));
    }
    let mut grown = header.clone();
    // What an interrupted growth has made room for is kept.
    grown.capacity = len.max(header.capacity);
    if grown.tables() > header.tables() {
        make_tables(file, header, &mut grown)?;
    }
    grown.put_places(&mut bytes);
    file.write_at(ByteOffset::ZERO, &bytes)?;
    file.sync().map(drop)
}

fn make_tables(file: &dyn StorageFile, header: &Header, grown: &mut Header) -> Result<()> {
    let directories = Directories::read(file, header)?;
    let redundant = directories.redundant.as_ref().and_then(|read| read.as_ref().ok());
    let mut kept = vec![(&directories.main, Placed::default())];
    kept.extend(redundant.map(|redundant| (redundant, Placed::default())));
    let added = grown.tables() - header.tables();
    let stay = kept.iter().map(|(one, _)| has_room(file, one, added)).collect::<Result<Vec<bool>>>()?;
    let stay = stay.into_iter().all(|stays| stays);
    let directory_bytes = (grown.tables() * 4).next_multiple_of(SECTOR_BYTES);
    let start = file.len()?.end().max(header.overhead.end()).align_up(header.grain).get();
    let mut end = start;
    for (directory, placed) in &mut kept {
        placed.directory_at = if stay { directory.place.start().get() } else { end };
        end += if stay { 0 } else { directory_bytes };
        placed.tables_at = end;
        end += added * TABLE_BYTES;
    }
    let end = ByteOffset::new(end).align_up(header.grain);
    if end.get() > FILE_END_MAX {
        let context = format!("{}: a VMDK file cannot grow past 2 TiB", file.name());
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    file.set_len(ByteLen::new(end.get()))?;
    for (directory, placed) in &kept {
        placed.write(file, directory, (header.tables(), added), stay)?;
    }
    file.sync()?;
    grown.directory_at = ByteOffset::new(kept[0].1.directory_at);
    if let Some((_, placed)) = kept.get(1) {
        grown.redundant_at = Some(ByteOffset::new(placed.directory_at));
    }
    Ok(())
}

/// Whether a directory's last sector has room for so many entries, and nothing in it.
fn has_room(file: &dyn StorageFile, directory: &Directory, added: u64) -> Result<bool> {
    let end = directory.place.end();
    let sector_end = ByteOffset::new(end.get().next_multiple_of(SECTOR_BYTES));
    let Some(room) = Extent::between(end, end + ByteLen::new(added * 4)) else { return Ok(true) };
    if room.end() > sector_end || !directory.place.start().get().is_multiple_of(SECTOR_BYTES) {
        return Ok(false);
    }
    let mut bytes = vec![0; room.len().as_usize()];
    file.read_at(room.start(), &mut bytes)?;
    Ok(blocks::is_zero(&bytes))
}

/// Where a grown directory and its new tables are, in bytes of the file.
#[derive(Default)]
struct Placed {
    directory_at: u64,
    tables_at: u64,
}

impl Placed {
    /// Writes the entries: what is new, and where the directory does not stay all of them.
    fn write(
        &self,
        file: &dyn StorageFile,
        old: &Directory,
        (tables, added): (u64, u64),
        stay: bool,
    ) -> Result<()> {
        let sector = |at: u64| u32::try_from(at / SECTOR_BYTES).expect("tables lie below 2 TiB");
        let known = (0..tables).map(|table| old.get(table).map_or(0, |at| sector(at.get())));
        let new = (0..added).map(|table| sector(self.tables_at + table * TABLE_BYTES));
        let first = if stay { tables } else { 0 };
        let entries = known.chain(new).skip(ByteLen::new(first).as_usize());
        let bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
        file.write_at(ByteOffset::new(self.directory_at + first * 4), &bytes)
    }
}

/// A descriptor's bytes, as they lie in a file.
struct DescriptorText {
    name: String,
    start: ByteOffset,
    /// Up to the end of the room that it has; a file of its own can be made longer.
    bytes: Vec<u8>,
    alone: bool,
}

/// One sector that changes the length.
struct ChangedSector {
    at: ByteOffset,
    bytes: Vec<u8>,
    /// How long the file must be before; it is made so with ends of lines.
    file_len: ByteLen,
}

impl DescriptorText {
    fn read(opened: &Opened) -> Result<DescriptorText> {
        let file = &opened.file;
        let place = match opened.header.as_ref().and_then(|header| header.descriptor) {
            Some(place) => place,
            None => Extent::whole(file.len()?).ok_or_else(|| Error::corrupt(file.name()))?,
        };
        let mut bytes = vec![0; place.len().as_usize()];
        file.read_at(place.start(), &mut bytes)?;
        let alone = opened.header.is_none();
        Ok(DescriptorText { name: file.name().to_owned(), start: place.start(), bytes, alone })
    }

    /// What has to be written. Nothing is changed by this.
    fn resized(&self, len: ByteLen) -> Result<ChangedSector> {
        let no_room = || {
            let what = "a VMDK whose descriptor has no room for another number in one sector";
            only_by_converting(&self.name, what)
        };
        let end = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(self.bytes.len());
        let text = std::str::from_utf8(&self.bytes[..end]).map_err(|_| no_room())?;
        let whole = Descriptor::with_len(text, len, true).filter(|text| text.len() <= 512);
        let changed = whole.or_else(|| in_place(text, len)).ok_or_else(no_room)?;
        let mut bytes = self.bytes.clone();
        let (room, fill) = (bytes.len().max(changed.len()), if self.alone { b'\n' } else { 0 });
        if room > bytes.len() && !self.alone {
            return Err(no_room());
        }
        bytes.resize(room, fill);
        let before = bytes.clone();
        bytes[..end.max(changed.len())].fill(fill);
        put(&mut bytes, 0, changed.as_bytes());
        let read = Descriptor::parse(&bytes).map_err(|error| error.context(&self.name))?;
        let differs = |at: &usize| before[*at] != bytes[*at];
        let first = (0..room).find(differs).ok_or_else(no_room)? / 512 * 512;
        let last = (0..room).rfind(differs).unwrap_or(first) / 512 * 512;
        if read.len() != len || first != last {
            return Err(no_room());
        }
        let bytes = bytes[first..(first + 512).min(room)].to_vec();
        let at = self.start + ByteLen::new(first as u64);
        let file_len = if self.alone { ByteLen::new(room as u64) } else { ByteLen::ZERO };
        Ok(ChangedSector { at, bytes, file_len })
    }
}

impl ChangedSector {
    fn write(&self, file: &dyn StorageFile) -> Result<()> {
        let len = file.len()?;
        if let Some(added) = Extent::between(len.end(), self.file_len.end()) {
            file.write_at(added.start(), &vec![b'\n'; added.len().as_usize()])?;
            file.sync()?;
        }
        file.write_at(self.at, &self.bytes)?;
        file.sync().map(drop)
    }
}

/// The text with another length of its extent and everything else where it was: a comment before or behind the line
/// becomes as much shorter, or longer.
fn in_place(text: &str, len: ByteLen) -> Option<String> {
    let changed = Descriptor::with_len(text, len, false)?;
    let lines: Vec<&str> = text.split('\n').collect();
    let new_lines: Vec<&str> = changed.split('\n').collect();
    let line = lines.iter().zip(&new_lines).position(|(old, new)| old != new)?;
    let (old_bytes, new_bytes) = (lines[line].len(), new_lines[line].len());
    let is_comment = |at: &usize| *at > 0 && lines.get(*at).is_some_and(|text| text.starts_with('#'));
    let near = [line + 1, line.wrapping_sub(1), line + 2, line.wrapping_sub(2)];
    near.into_iter().filter(is_comment).find_map(|comment| {
        let wanted = (lines[comment].len() + old_bytes).checked_sub(new_bytes).filter(|len| *len > 0)?;
        let mut new_lines: Vec<String> = new_lines.iter().map(|line| (*line).to_owned()).collect();
        let mut padded = lines[comment].as_bytes().to_vec();
        padded.resize(wanted, b' ');
        new_lines[comment] = String::from_utf8(padded).ok()?;
        Some(new_lines.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: ByteLen = ByteLen::new(64 << 20);
    const LONG: ByteLen = ByteLen::new(1 << 40);

    fn changed(text: &str, len: ByteLen) -> Result<String> {
        let (name, start) = ("disk.vmdk".to_owned(), ByteOffset::ZERO);
        let bytes = text.as_bytes().to_vec();
        let read = DescriptorText { name, start, bytes: bytes.clone(), alone: true };
        let sector = read.resized(len)?;
        let mut bytes = bytes;
        bytes.resize(sector.file_len.as_usize(), b'\n');
        put(&mut bytes, (sector.at - ByteOffset::ZERO).as_usize(), &sector.bytes);
        Ok(String::from_utf8(bytes).unwrap())
    }

    fn text() -> String {
        Descriptor::text("monolithicFlat", 7, SHORT, "RW 131072 FLAT \"disk-flat.vmdk\" 0")
    }

    #[test]
    fn a_text_of_one_sector_is_written_anew() {
        let long = changed(&text(), LONG).unwrap();
        assert_eq!(Descriptor::parse(long.as_bytes()).unwrap().len(), LONG);
        assert!(long.contains("cylinders = \"1048576\""), "{long}");
        let short = changed(&long, SHORT).unwrap();
        assert_eq!(short.trim_end(), text().trim_end());
    }

    #[test]
    fn in_a_longer_text_a_comment_gives_the_room() {
        let more = format!("{}ddb.comment = \"{}\"\n", text(), "x".repeat(400));
        let long = changed(&more, LONG).unwrap();
        assert_eq!((Descriptor::parse(long.as_bytes()).unwrap().len(), long.len()), (LONG, more.len()));
        let short = changed(&long, SHORT).unwrap();
        assert_eq!(Descriptor::parse(short.as_bytes()).unwrap().len(), SHORT);
        let bare: String =
            more.lines().skip(1).filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let bare = format!("# Disk DescriptorFile\n{bare}\n");
        assert_eq!(changed(&bare, LONG).unwrap_err().kind(), ErrorKind::Unsupported, "no comment");
        let moved = more.replace("\nRW", &format!("\n{}\nRW", "#".repeat(520)));
        assert_eq!(Descriptor::parse(changed(&moved, LONG).unwrap().as_bytes()).unwrap().len(), LONG);
    }
}
