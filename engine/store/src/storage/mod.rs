//! The host's files behind [`blocks::Storage`].

mod host;
mod host_file;

pub use host::HostStorage;
pub use host_file::HostFile;
