//! The host's files behind [`blocks::Storage`].

mod counted_file;
mod host;
mod host_file;
mod landing;
mod marks;
mod past_cache;
mod sharing;

pub(crate) use counted_file::{CountedFile, FileCounts};
pub use host::HostStorage;
pub use host_file::HostFile;
