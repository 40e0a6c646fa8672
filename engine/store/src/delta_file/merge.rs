//! Several delta files become one that holds the newest of each byte.
//!
//! Along a line, where each file starts from the checkpoint at which the one before ends, the later one is the newer one.
//! Files that do not follow on one another come from different branches: nobody can say which is newer, so bytes that both
//! have and that differ are named and nothing is written, unless it was said which one counts.

use super::reader::{DeltaFile, Stored};
use super::record::DeltaHeader;
use super::writer::DeltaWriter;
use crate::image::ReplayContent;
use blocks::{
    ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentMap, ExtentSet, Piece, Result, Sliceable,
    StorageFile,
};
use std::sync::Arc;

/// Which file counts where files of different branches differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// None: then they are not merged.
    Neither,
    /// The one that was named first.
    First,
    /// The one that was named last.
    Last,
}

/// What a merge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaMerge {
    /// Bytes of the disk that the merged file says something about.
    pub covered: ByteLen,
    /// How long it is.
    pub len: ByteLen,
    /// Bytes in which files of different branches differ, decided by [`Prefer`].
    pub decided: ByteLen,
}

/// This many places are named.
const PLACES_MAX: usize = 8;

/// A part of a record of one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    file: usize,
    stored: Stored,
    /// How much of the record comes before it.
    skip: ByteLen,
}

impl Sliceable for Part {
    fn skip(&self, skip: ByteLen) -> Part {
        Part { skip: self.skip + skip, ..*self }
    }

    fn continues(&self, len: ByteLen, next: &Part) -> bool {
        self.file == next.file && self.stored == next.stored && self.skip + len == next.skip
    }
}

/// Merges `files`, the oldest first, into `output`, which is empty. `InvalidInput` where they are not of one disk; `Busy`,
/// naming the places, where branches differ and nothing says which counts: then nothing was written. Memory goes with the
/// number of records, about 150 bytes each.
pub fn merge_deltas(files: &[DeltaFile], output: Arc<dyn StorageFile>, prefer: Prefer) -> Result<DeltaMerge> {
    let header = merged_header(files)?;
    let mut merged: ExtentMap<Part> = ExtentMap::new();
    let (mut decided, mut places) = (ExtentSet::new(), Vec::new());
    for line in lines(files) {
        let mut newest = ExtentMap::new();
        for file in line {
            for stored in files[file].records() {
                let stored = stored?;
                newest.insert(stored.extent, Part { file, stored, skip: ByteLen::ZERO });
            }
        }
        for (extent, part) in newest.iter() {
            for piece in merged.lookup(extent).collect::<Vec<_>>() {
                let (place, other) = match piece {
                    Piece::Hole(place) => {
                        merged.insert(place, part.skip(place.start() - extent.start()));
                        continue;
                    }
                    Piece::Data(place, other) => (place, other),
                };
                let part = part.skip(place.start() - extent.start());
                if read(files, place, &part)? == read(files, place, &other)? {
                    continue;
                }
                places.push((place, part.file, other.file));
                decided.insert(place, ());
                if prefer == Prefer::Last {
                    merged.insert(place, part);
                }
            }
        }
    }
    if prefer == Prefer::Neither && !places.is_empty() {
        return Err(conflict(files, &places, decided.covered()));
    }
    let mut writer = DeltaWriter::new(output, header)?;
    for (extent, part) in merged.iter() {
        writer.push(extent, &content(files, extent, part)?)?;
    }
    let (len, _) = writer.finish()?;
    Ok(DeltaMerge { covered: merged.covered(), len, decided: decided.covered() })
}

/// What the merged file says of itself.
fn merged_header(files: &[DeltaFile]) -> Result<DeltaHeader> {
    let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return wrong("there is nothing to merge".to_owned());
    };
    let of = |file: &DeltaFile| {
        let header = file.header();
        (header.store, header.machine, header.disk, header.len)
    };
    if let Some(other) = files.iter().find(|file| of(file) != of(first)) {
        return wrong(format!("{} and {} are not of one disk", first.name(), other.name()));
    }
    Ok(DeltaHeader { from: first.header().from, ..last.header().clone() })
}

/// The files, cut where one does not start where the one before it ends.
fn lines(files: &[DeltaFile]) -> Vec<std::ops::Range<usize>> {
    let mut lines = Vec::new();
    let mut begin = 0;
    for at in 1..=files.len() {
        let goes_on = files.get(at).is_some_and(|next| next.header().from == files[at - 1].header().to);
        if !goes_on {
            lines.push(begin..at);
            begin = at;
        }
    }
    lines
}

/// The content of a part, of which `extent` is a piece.
fn content(files: &[DeltaFile], extent: Extent, part: &Part) -> Result<ReplayContent> {
    let file = files.get(part.file).ok_or_else(|| Error::corrupt("a part of no file"))?;
    match file.content(&part.stored)? {
        ReplayContent::Data(bytes) => {
            let skip = part.skip.as_usize();
            let wanted = bytes.get(skip..skip + extent.len().as_usize());
            let outside = || Error::corrupt(format!("{}: {extent} is not within its record", file.name()));
            Ok(ReplayContent::Data(wanted.ok_or_else(outside)?.to_vec()))
        }
        empty => Ok(empty),
    }
}

/// What a reader of the disk would see; `None` for zeroes.
fn read(files: &[DeltaFile], extent: Extent, part: &Part) -> Result<Option<Vec<u8>>> {
    match content(files, extent, part)? {
        ReplayContent::Data(bytes) if !blocks::is_zero(&bytes) => Ok(Some(bytes)),
        _ => Ok(None),
    }
}

fn conflict(files: &[DeltaFile], places: &[(Extent, usize, usize)], differing: ByteLen) -> Error {
    let name = |file: usize| files.get(file).map_or("", DeltaFile::name);
    let named: Vec<String> = places
        .iter()
        .take(PLACES_MAX)
        .map(|(extent, a, b)| {
            let start: ByteOffset = extent.start();
            format!("{} bytes at {start} ({} and {})", extent.len(), name(*b), name(*a))
        })
        .collect();
    let more = if places.len() > PLACES_MAX { ", ..." } else { "" };
    let context = format!(
        "these deltas come from different branches and differ in {differing} bytes: {}{more}; say which counts",
        named.join(", ")
    );
    Error::new(ErrorKind::Busy, context)
}
