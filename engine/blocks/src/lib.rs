//! The vocabulary that every other room speaks.
//!
//! Pure: units, extents, extent maps, the [`Volume`] and [`Storage`] traits, errors and the byte codec that
//! every format of ours is written with. No drivers, no sockets, no async; nothing here knows what a journal,
//! an agent or NBD is.

mod aligned_buffer;
mod arrived;
mod byte_access;
mod checksum;
mod codec;
mod compression;
mod crash_point;
mod durable;
mod error;
mod extent;
mod extent_map;
mod identity;
mod memory_volume;
mod planted_bug;
#[cfg(feature = "simulation")]
pub mod simulation;
mod storage;
mod surroundings;
mod turns;
mod units;
mod volume;

pub use aligned_buffer::AlignedBuffer;
pub use arrived::{Arrived, Place};
pub use byte_access::ByteAccess;
pub use checksum::{crc32c, crc32c_append};
pub use codec::{ByteReader, ByteWriter};
pub use compression::{Compression, CompressionGauge};
pub use crash_point::crash_point;
pub use durable::{Durable, Synced};
pub use error::{Error, ErrorKind, Result};
pub use extent::{Extent, ExtentError};
pub use extent_map::{ExtentMap, ExtentSet, Piece, Sliceable};
pub use identity::{CheckpointId, DiskIndex, Id, MachineId, SessionId, StoreId};
pub use memory_volume::MemoryVolume;
pub use planted_bug::PlantedBug;
pub use storage::{OpenMode, Storage, StorageFile};
pub use surroundings::{monotonic_now, random_bytes};
pub use turns::{Turn, Turns};
pub use units::{
    BlockShift, ByteLen, ByteOffset, Generation, Lba, SECTOR_BYTES, SECTOR_SHIFT, Seq, WallClock, WriteTime,
};
pub use volume::{Allocation, ExtentStatus, FileRange, RequestClass, Volume, check_request, is_zero};
