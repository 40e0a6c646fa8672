//! Several indexes read as one, in order; where they overlap the newest wins.

use super::entry::Entry;
use super::reader::{IndexCursor, IndexReader};
use crate::unit::branch::DeltaId;
use blocks::{ByteOffset, Extent, PlantedBug, Result};
use std::sync::Arc;

/// How many neighbours of one size become one of the next.
pub(crate) const MERGE_FAN_IN: usize = 8;

/// A merge in progress; holds one block of each index.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The newest first.
    sources: Vec<Source>,
    at: ByteOffset,
    floor: DeltaId,
}

#[derive(Debug)]
struct Source {
    cursor: IndexCursor,
    current: Option<Entry>,
}

impl Merge {
    /// Merges `readers`, the newest first. Leaves out what deltas up to `floor` wrote: the image has it.
    pub(crate) fn new(readers: &[Arc<IndexReader>], floor: DeltaId) -> Result<Merge> {
        let mut sources = Vec::with_capacity(readers.len());
        for reader in readers {
            let mut source = Source { cursor: reader.cursor(), current: None };
            source.advance(floor)?;
            sources.push(source);
        }
        if PlantedBug::MergePrefersOlder.is_planted() {
            sources.reverse();
        }
        Ok(Merge { sources, at: ByteOffset::ZERO, floor })
    }

    /// The next entry: disjoint from those before, and behind them.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            for source in &mut self.sources {
                while source.current.is_some_and(|entry| entry.extent.end() <= self.at) {
                    source.advance(self.floor)?;
                }
            }
            // Where the newest index that has the byte stops having it, or a newer one begins.
            let mut until = None;
            for source in &self.sources {
                let Some(entry) = source.current else { continue };
                let limit = until.unwrap_or(entry.extent.end());
                if entry.extent.start() <= self.at {
                    let part = Extent::between(self.at, entry.extent.end().min(limit));
                    self.at = part.map_or(self.at, Extent::end);
                    return Ok(part.and_then(|part| entry.intersect(part)));
                }
                until = Some(
                    until.map_or(entry.extent.start(), |until: ByteOffset| until.min(entry.extent.start())),
                );
            }
            match until {
                Some(start) => self.at = start,
                None => return Ok(None),
            }
        }
    }
}

impl Source {
    fn advance(&mut self, floor: DeltaId) -> Result<()> {
        loop {
            self.current = self.cursor.next()?;
            if self.current.is_none_or(|entry| entry.delta > floor) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
