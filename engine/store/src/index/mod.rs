//! Which bytes of a disk a delta, or several neighbours, have: sorted files that are looked up block by block.

pub(crate) mod block_cache;
pub(crate) mod entry;
pub(crate) mod merge;
pub(crate) mod reader;
pub(crate) mod stack;
pub(crate) mod writer;
