//! What marks are relative to, and how every file and map of the agent says so.

use blocks::{ByteReader, ByteWriter, Error, Generation, Id, MachineId, Result, Seq, StoreId};

/// What the marks are relative to: outside of what is changed, the disk equals what this store acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// The store that gave the acknowledgements.
    pub store: StoreId,
    /// The highest number that it acknowledged.
    pub acked: Seq,
    /// The highest number that was ever sent.
    pub sent: Seq,
    /// The machine's generation then.
    pub generation: Generation,
    /// The machine, as that store knows it.
    pub machine: MachineId,
}

impl Base {
    /// 56 bytes: store, acked, sent, generation, machine.
    pub(crate) fn encode(&self, to: &mut ByteWriter) {
        to.id(Some(self.store.0)).u64(self.acked.0).u64(self.sent.0).u64(self.generation.0);
        to.id(Some(self.machine.0));
    }

    /// `Corrupt` where an identity is missing, or bytes are.
    pub(crate) fn decode(from: &mut ByteReader<'_>) -> Result<Base> {
        Ok(Base {
            store: StoreId(identity(from)?),
            acked: Seq(from.u64()?),
            sent: Seq(from.u64()?),
            generation: Generation(from.u64()?),
            machine: MachineId(identity(from)?),
        })
    }
}

/// An identity that must be there.
pub(crate) fn identity(from: &mut ByteReader<'_>) -> Result<Id> {
    from.id()?.ok_or_else(|| Error::corrupt("an identity is missing"))
}
