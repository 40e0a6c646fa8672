//! What tests of this and other rooms need: a storage that fails like hardware, numbers from a seed, random histories
//! of a volume with a model of what it must hold.

mod counting_storage;
mod crash_file;
mod crash_storage;
mod crash_world;
mod history;
mod random;

pub use counting_storage::{CountingStorage, StorageCounts};
pub use crash_storage::CrashStorage;
pub use crash_world::FaultCounts;
pub use history::History;
pub use random::Random;
