//! The smallest tree: one volume as one file.

use crate::open_file::Source;
use crate::tree::{Entry, EntryKind, Node, NodeKind, Space, Tree};
use blocks::{Error, ErrorKind, Result, Volume};
use std::sync::Arc;
use std::time::SystemTime;

/// A folder with one file that is this volume.
pub struct SingleFile {
    name: String,
    volume: Arc<dyn Volume>,
    made: SystemTime,
}

impl SingleFile {
    /// The volume as the file `name`, which must have no `/`.
    pub fn new(name: impl Into<String>, volume: Arc<dyn Volume>) -> SingleFile {
        SingleFile { name: name.into(), volume, made: SystemTime::now() }
    }

    fn missing(path: &str) -> Error {
        Error::new(ErrorKind::NotFound, format!("there is no {path:?}"))
    }
}

impl Tree for SingleFile {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        let kind = match path {
            "" => NodeKind::Folder { folders: 0 },
            path if path == self.name => NodeKind::File {
                len: self.volume.len().get(),
                writable: !self.volume.is_read_only(),
                made_anew: false,
            },
            _ => return Ok(None),
        };
        Ok(Some(Node { kind, modified: self.made }))
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        match path {
            "" => Ok(vec![Entry { name: self.name.clone(), kind: EntryKind::File }]),
            other => Err(SingleFile::missing(other)),
        }
    }

    fn target(&self, path: &str) -> Result<String> {
        Err(SingleFile::missing(path))
    }

    fn open(&self, path: &str, writable: bool) -> Result<Source> {
        if path != self.name {
            return Err(SingleFile::missing(path));
        }
        if writable && self.volume.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, "this volume is only read"));
        }
        Ok(Source::Volume(self.volume.clone()))
    }

    fn space(&self) -> Result<Space> {
        Ok(Space { total: self.volume.len().get(), free: 0 })
    }
}
