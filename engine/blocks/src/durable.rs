//! What may be acknowledged.

/// Proof that a sync of a file or folder has completed.
///
/// Only [`crate::StorageFile::sync`] and [`crate::Storage::sync_dir`] give one out; whoever writes another
/// storage makes it with [`Synced::after_completed_sync`].
#[derive(Debug, Clone, Copy)]
pub struct Synced(());

impl Synced {
    /// For implementations of [`crate::Storage`] alone: must not be called unless the medium has confirmed
    /// everything that was written before the call to sync began.
    pub const fn after_completed_sync() -> Synced {
        Synced(())
    }
}

/// A value that is on the medium. The only thing that may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// `value`, which the sync that gave `_proof` has covered.
    pub fn new(value: T, _proof: Synced) -> Durable<T> {
        Durable(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The value itself.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// A weaker fact about the same durable thing, such as an earlier sequence number.
    pub fn map<U>(self, weaken: impl FnOnce(T) -> U) -> Durable<U> {
        Durable(weaken(self.0))
    }
}
