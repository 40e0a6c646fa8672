//! Which value holds for which bytes: disjoint, sorted, the newest insertion wins.

use crate::{ByteLen, ByteOffset, Extent};
use std::collections::BTreeMap;
use std::ops::Bound;

/// What an [`ExtentMap`] can hold: something that means a different but derivable thing a few bytes further on, such
/// as a file offset.
pub trait Sliceable: Clone {
    /// The value for the bytes from `skip` on.
    #[must_use]
    fn skip(&self, skip: ByteLen) -> Self;

    /// Whether `next`, which starts `len` bytes after `self` does, is what `self.skip(len)` would be, so that the two
    /// can be held as one.
    fn continues(&self, len: ByteLen, next: &Self) -> bool;
}

impl Sliceable for () {
    fn skip(&self, _: ByteLen) {}
    fn continues(&self, _: ByteLen, (): &()) -> bool {
        true
    }
}

/// A set of bytes, kept as the fewest extents.
pub type ExtentSet = ExtentMap<()>;

/// Disjoint extents, each with a value; newest wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentMap<V> {
    /// start -> (length, value)
    entries: BTreeMap<ByteOffset, (ByteLen, V)>,
    covered: ByteLen,
}

/// One piece of a lookup: pieces tile the range asked for exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<V> {
    /// The map has a value for these bytes: the value as of the extent's start.
    Data(Extent, V),
    /// The map has nothing for these bytes.
    Hole(Extent),
}

impl<V> Default for ExtentMap<V> {
    fn default() -> ExtentMap<V> {
        ExtentMap { entries: BTreeMap::new(), covered: ByteLen::ZERO }
    }
}

impl<V> Piece<V> {
    /// The bytes that the piece is about.
    pub fn extent(&self) -> Extent {
        match self {
            Piece::Data(extent, _) | Piece::Hole(extent) => *extent,
        }
    }
}

impl<V: Sliceable> ExtentMap<V> {
    /// A map of nothing.
    pub fn new() -> ExtentMap<V> {
        ExtentMap::default()
    }

    /// Gives the bytes of `extent` this value; what they had before is forgotten. Joins neighbours that continue each
    /// other.
    pub fn insert(&mut self, extent: Extent, value: V) {
        // Most insertions touch nothing: that is one look, and not the four of what follows.
        let last = self.entries.range(..=extent.end()).next_back();
        if last.is_none_or(|(start, (len, _))| *start + *len < extent.start()) {
            self.covered += extent.len();
            self.entries.insert(extent.start(), (extent.len(), value));
            return;
        }
        self.remove(extent);
        self.covered += extent.len();
        let (mut start, mut len, mut value) = (extent.start(), extent.len(), value);
        if let Some((&before, (before_len, before_value))) = self.entries.range(..start).next_back()
            && before + *before_len == start
            && before_value.continues(*before_len, &value)
        {
            (start, len, value) = (before, *before_len + len, before_value.clone());
            self.entries.remove(&before);
        }
        if let Some((next_len, next_value)) = self.entries.get(&(start + len))
            && value.continues(len, next_value)
        {
            let joined = len + *next_len;
            self.entries.remove(&(start + len));
            len = joined;
        }
        self.entries.insert(start, (len, value));
    }

    /// Forgets the bytes of `extent`.
    pub fn remove(&mut self, extent: Extent) {
        if let Some((&before, (before_len, value))) = self.entries.range(..extent.start()).next_back()
            && before + *before_len > extent.start()
        {
            let (end, value) = (before + *before_len, value.clone());
            self.covered = self.covered - (end - before);
            self.put(before, extent.start(), value.clone());
            if end > extent.end() {
                self.put(extent.end(), end, value.skip(extent.end() - before));
            }
        }
        while let Some((&start, (len, value))) = self.entries.range(extent.start()..extent.end()).next() {
            let (end, value) = (start + *len, value.clone());
            self.covered = self.covered - *len;
            self.entries.remove(&start);
            if end > extent.end() {
                self.put(extent.end(), end, value.skip(extent.end() - start));
            }
        }
    }

    fn put(&mut self, start: ByteOffset, end: ByteOffset, value: V) {
        self.covered += end - start;
        self.entries.insert(start, (end - start, value));
    }

    /// What the map knows about `range`: pieces that tile it exactly, in order.
    pub fn lookup(&self, range: Extent) -> Lookup<'_, V> {
        Lookup { map: self, at: range.start(), end: range.end() }
    }

    /// The value at one byte, and the rest of the extent that it holds for.
    pub fn get(&self, at: ByteOffset) -> Option<(Extent, V)> {
        let (&start, (len, value)) = self.entries.range(..=at).next_back()?;
        let rest = Extent::between(at, start + *len)?;
        Some((rest, value.skip(at - start)))
    }

    /// The first extent that has a byte at or after `at`, whole, with its value.
    pub fn next_at_or_after(&self, at: ByteOffset) -> Option<(Extent, &V)> {
        let before = self.entries.range(..at).next_back().filter(|(start, (len, _))| **start + *len > at);
        let (start, (len, value)) = before.or_else(|| self.entries.range(at..).next())?;
        Some((Extent::between(*start, *start + *len)?, value))
    }

    /// All extents with their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Extent, &V)> {
        self.entries.iter().filter_map(|(start, (len, value))| {
            Extent::between(*start, *start + *len).map(|extent| (extent, value))
        })
    }

    /// How many extents there are.
    pub fn extents(&self) -> usize {
        self.entries.len()
    }

    /// How many bytes have a value.
    pub fn covered(&self) -> ByteLen {
        self.covered
    }

    /// Whether no byte has a value.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl ExtentSet {
    /// Whether every byte of `extent` is in the set.
    pub fn contains(&self, extent: Extent) -> bool {
        self.get(extent.start()).is_some_and(|(rest, ())| rest.contains(extent))
    }

    /// Whether a byte of `extent` is in the set.
    pub fn overlaps(&self, extent: Extent) -> bool {
        self.next_at_or_after(extent.start()).is_some_and(|(found, ())| found.overlaps(extent))
    }

    /// Adds every byte of `other`.
    pub fn union(&mut self, other: &ExtentSet) {
        for (extent, ()) in other.iter() {
            self.insert(extent, ());
        }
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> ExtentSet {
        let mut set = ExtentSet::new();
        extents.into_iter().for_each(|extent| set.insert(extent, ()));
        set
    }
}

/// The pieces of a lookup, in order.
#[derive(Debug)]
pub struct Lookup<'a, V> {
    map: &'a ExtentMap<V>,
    at: ByteOffset,
    end: ByteOffset,
}

impl<V: Sliceable> Iterator for Lookup<'_, V> {
    type Item = Piece<V>;

    fn next(&mut self) -> Option<Piece<V>> {
        let rest = Extent::between(self.at, self.end)?;
        let piece = match self.map.get(self.at) {
            Some((known, value)) => Piece::Data(known.intersect(rest)?, value),
            None => {
                let after = (Bound::Excluded(self.at), Bound::Excluded(self.end));
                let next = self.map.entries.range(after).next().map_or(self.end, |(start, _)| *start);
                Piece::Hole(Extent::between(self.at, next)?)
            }
        };
        self.at = piece.extent().end();
        Some(piece)
    }
}

#[cfg(test)]
#[path = "extent_map_tests.rs"]
mod tests;
