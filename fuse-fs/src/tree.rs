//! What a mount shows.

use crate::open_file::Source;
use blocks::Result;
use std::time::SystemTime;

/// A tree of folders, links and files. Paths are relative, with `/` between names; the root is the empty path. Called
/// from many threads at once.
pub trait Tree: Send + Sync + 'static {
    /// What is at the path; `None` where there is nothing.
    fn node(&self, path: &str) -> Result<Option<Node>>;

    /// What is in a folder, in an order that stays. `NotFound` where it is none.
    fn list(&self, path: &str) -> Result<Vec<Entry>>;

    /// Where a link leads. `NotFound` where it is none.
    fn target(&self, path: &str) -> Result<String>;

    /// What a file holds. As long as nobody closes it, it is opened once however many use it. `ReadOnly` where `writable`
    /// is asked of what cannot be written; `Busy` where somebody else has it.
    fn open(&self, path: &str, writable: bool) -> Result<Source>;

    /// The room that the tree's files lie in.
    fn space(&self) -> Result<Space>;
}

/// A folder, link or file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Which of them.
    pub kind: NodeKind,
    /// When it last changed.
    pub modified: SystemTime,
}

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A folder with so many folders in it.
    Folder {
        /// How many.
        folders: u32,
    },
    /// A link to a path of so many bytes.
    Link {
        /// How many.
        len: u64,
    },
    /// A file.
    File {
        /// Its bytes.
        len: u64,
        /// Whether it can be written; who tries it with another gets `EROFS`.
        writable: bool,
        /// It is made anew for each who opens it, so its length and its bytes are not to be remembered.
        made_anew: bool,
    },
}

/// A line of a folder's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Without `/`.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum EntryKind {
    Folder,
    Link,
    File,
}

/// Room, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What is left.
    pub free: u64,
}
