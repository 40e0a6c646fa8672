//! What tests of this and other rooms need: a storage that fails like hardware, and numbers from a seed.

mod crash_file;
mod crash_storage;
mod random;

pub use crash_storage::CrashStorage;
pub use random::Random;
