//! Packages: an OVF descriptor with the files that it refers to, in an archive (OVA) or in a folder.

mod archive;
mod digest;
mod manifest;
mod member;
mod reader;
mod writer;

pub(crate) use archive::Archive;
pub use archive::looks_like_archive;
pub use digest::DigestAlgorithm;
pub(crate) use manifest::Manifest;
pub use reader::{Package, Verdict};
pub use writer::PackageWriter;
