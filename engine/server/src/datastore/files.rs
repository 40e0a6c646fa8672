//! The files of a disk in a checkpoint's or session's folder.

use super::catalogue::{State, Subject};
use crate::session::VisitedDisk;
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, MemoryVolume, Result, Volume};
use fuse_fs::Place;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use store::{ImageFormat, ShownImage, ShownKind};

/// How many lengths are remembered.
const LENGTHS_MAX: usize = 4096;

/// A file of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct DiskFile {
    disk: DiskIndex,
    kind: FileKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum FileKind {
    Image(ImageFormat),
    /// The extent that the VMDK of a session names.
    Flat,
}

impl fmt::Display for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FileKind::Image(format) => write!(f, "disk{}.{format}", self.disk),
            FileKind::Flat => write!(f, "disk{}-flat.vmdk", self.disk),
        }
    }
}

impl FromStr for DiskFile {
    type Err = Error;

    fn from_str(name: &str) -> Result<DiskFile> {
        let other = || Error::new(ErrorKind::NotFound, format!("{name:?} is no disk's file"));
        let (stem, ending) = name.split_once('.').ok_or_else(other)?;
        let number = stem.strip_prefix("disk").ok_or_else(other)?;
        let (number, kind) = match (number.strip_suffix("-flat"), ending) {
            (Some(number), "vmdk") => (number, FileKind::Flat),
            _ => (number, FileKind::Image(ending.parse().map_err(|_| other())?)),
        };
        let file = DiskFile { disk: DiskIndex(number.parse().map_err(|_| other())?), kind };
        // One name for each: no leading zeroes or signs.
        if file.to_string() == name { Ok(file) } else { Err(other()) }
    }
}

/// The files of disks of these lengths: of a checkpoint every format that holds the disk; of a session those in which
/// every byte of data has one fixed place.
pub(super) fn disk_files(lens: &[ByteLen], of_session: bool) -> Vec<DiskFile> {
    let mut files = Vec::new();
    for (number, len) in (0..).zip(lens) {
        let disk = DiskIndex(number);
        let file = |kind| DiskFile { disk, kind };
        for format in ImageFormat::ALL {
            let kind = shown_kind(format, of_session);
            if kind.is_some_and(|kind| kind.check_len(*len).is_ok()) {
                files.push(file(FileKind::Image(format)));
                if of_session && format == ImageFormat::Vmdk {
                    files.push(file(FileKind::Flat));
                }
            }
        }
    }
    files
}

fn shown_kind(format: ImageFormat, of_session: bool) -> Option<ShownKind> {
    match (format, of_session) {
        (ImageFormat::Raw, _) => Some(ShownKind::Raw),
        (ImageFormat::Vhd, true) => Some(ShownKind::FixedVhd),
        (ImageFormat::Vmdk, true) => Some(ShownKind::FlatVmdk),
        (ImageFormat::Vhdx | ImageFormat::Qcow2, true) => None,
        (format, false) => Some(ShownKind::Sparse(format)),
    }
}

/// Descriptors of sessions' VMDKs: written by who opens them, kept as long as the mount.
#[derive(Default)]
pub(super) struct Scratch(Mutex<HashMap<(String, DiskIndex), Arc<MemoryVolume>>>);

/// Lengths of files that never change, of which finding out takes a look at all of a disk's extents.
#[derive(Default)]
pub(super) struct Lengths(Mutex<HashMap<(Place, DiskFile), u64>>);

impl Lengths {
    /// The length of a file.
    pub(super) fn get(&self, place: &Place, subject: &Subject, file: DiskFile) -> Result<u64> {
        let disk_len = len_of(subject, file.disk)?;
        let of_session = matches!(subject.state, State::Session(_));
        let kind = match file.kind {
            FileKind::Flat => ShownKind::Raw,
            FileKind::Image(format) => shown_kind(format, of_session).ok_or_else(|| none(file))?,
        };
        if let Some(len) = kind.len_over(disk_len) {
            return Ok(len.get());
        }
        let key = (place.clone(), file);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(len) = known().get(&key) {
            return Ok(*len);
        }
        let len = show(subject, file, kind, disk_of(subject, file)?)?.len().get();
        let mut known = known();
        if known.len() >= LENGTHS_MAX {
            known.clear();
        }
        known.insert(key, len);
        Ok(len)
    }
}

/// Opens a file. A session's disk is claimed for it as long as the volume lives.
pub(super) fn open(subject: &Subject, file: DiskFile, scratch: &Scratch) -> Result<Arc<dyn Volume>> {
    let of_session = matches!(subject.state, State::Session(_));
    let kind = match file.kind {
        FileKind::Flat => ShownKind::Raw,
        FileKind::Image(format) => shown_kind(format, of_session).ok_or_else(|| none(file))?,
    };
    if kind == ShownKind::FlatVmdk {
        let text = store::flat_descriptor(
            &file.to_string(),
            len_of(subject, file.disk)?,
            &subject.identity(file.disk),
        )?;
        let key = (subject.identity(file.disk), file.disk);
        let mut known = scratch.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || -> Arc<MemoryVolume> {
            let volume = MemoryVolume::new(ByteLen::of(&text));
            let written =
                volume.write_at(blocks::ByteOffset::ZERO, &text, false, blocks::RequestClass::Guest);
            written.expect("a volume in memory takes its own length");
            Arc::new(volume)
        };
        return Ok(known.entry(key).or_insert_with(made).clone());
    }
    show(subject, file, kind, disk_of(subject, file)?)
}

fn show(
    subject: &Subject,
    file: DiskFile,
    kind: ShownKind,
    disk: Arc<dyn Volume>,
) -> Result<Arc<dyn Volume>> {
    let shown = ShownImage {
        kind,
        file_name: file.to_string(),
        identity: subject.identity(file.disk),
        made: subject.time,
    };
    store::show_image(disk, &shown)
}

/// The disk itself.
fn disk_of(subject: &Subject, file: DiskFile) -> Result<Arc<dyn Volume>> {
    match &subject.state {
        State::Checkpoint(checkpoint) => Ok(Arc::new(subject.unit.view(*checkpoint, file.disk)?)),
        State::Session(session) => {
            let disk = session.disk(Some(file.disk))?;
            let path = subject.folder.join(file.to_string());
            let visit = disk.door.enter_from_mount(&path.to_string_lossy())?;
            Ok(Arc::new(VisitedDisk::new(disk.len(), visit)))
        }
    }
}

fn len_of(subject: &Subject, disk: DiskIndex) -> Result<ByteLen> {
    let found = subject.lens.get(usize::from(disk.0)).copied();
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no disk {disk}")))
}

fn none(file: DiskFile) -> Error {
    Error::new(ErrorKind::NotFound, format!("{file} is not shown of a session"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_again_and_no_other_is_taken() {
        let lens = [ByteLen::new(1 << 20), ByteLen::new(3 << 40)];
        for of_session in [false, true] {
            let files = disk_files(&lens, of_session);
            for file in &files {
                assert_eq!(file.to_string().parse::<DiskFile>().unwrap(), *file);
            }
            let names: Vec<_> = files.iter().map(ToString::to_string).collect();
            assert!(
                !names.contains(&"disk1.vhd".to_owned()),
                "what a format cannot hold is not shown: {names:?}"
            );
            let flat = names.contains(&"disk0-flat.vmdk".to_owned());
            assert_eq!((flat, names.contains(&"disk0.qcow2".to_owned())), (of_session, !of_session));
        }
        for name in
            ["disk00.raw", "disk+0.raw", "disk.raw", "disk0.iso", "disk0-flat.raw", "disk0", "disk70000.raw"]
        {
            assert!(name.parse::<DiskFile>().is_err(), "{name}");
        }
    }
}
