//! Metadata contexts: what a client can ask about ranges besides their bytes.
//!
//! Every export has `base:allocation` and `qemu:allocation-depth`; a [`Metadata`] that comes with it may add more, such
//! as `qemu:dirty-bitmap:NAME`. Names are opaque here but for two rules of matching: a query that ends with `:` lists
//! all that begin with it and selects nothing, any other stands for itself.

use crate::protocol::{ALLOCATION_DEPTH, BASE_ALLOCATION, STRING_BYTES_MAX, allocation_state};
use blocks::{Allocation, ByteAccess, ByteOffset, Error, ErrorKind, Extent, Result};
use std::sync::Arc;

/// How many contexts one client can select.
pub const SELECTED_MAX: usize = 64;

/// A range and what holds for all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetadataRun {
    /// Where.
    pub extent: Extent,
    /// What, in the context's own terms. In a dirty bitmap, bit 0 is set where the range was changed.
    pub flags: u32,
}

/// More that can be asked about the ranges of an export. Called from many threads at once.
pub trait Metadata: Send + Sync {
    /// The contexts that can be selected now, by their full names (`NAMESPACE:LEAF`, up to 4096 bytes): not
    /// `base:allocation`, which every export has.
    fn contexts(&self) -> Vec<String>;

    /// What holds for the range: runs from its start on, in order and without gaps, at least one, the last of which may
    /// end before the extent does. A run may say more than is the case but never less: a range that changed must not
    /// be called unchanged. Covers every write that was answered before the call. Errors: `NotFound` where there is no
    /// such context any more.
    fn runs(&self, context: &str, extent: Extent) -> Result<Vec<MetadataRun>>;
}

/// A context that a client has selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// What it is called in replies.
    pub id: u32,
    /// What it is.
    pub name: String,
}

/// The names of all contexts of an export.
pub fn names(metadata: Option<&Arc<dyn Metadata>>) -> Vec<String> {
    let mut names = vec![BASE_ALLOCATION.to_owned()];
    let more = metadata.map(|metadata| metadata.contexts()).unwrap_or_default();
    if !more.iter().any(|name| name == ALLOCATION_DEPTH) {
        names.push(ALLOCATION_DEPTH.to_owned());
    }
    let valid = |name: &String| name.contains(':') && name.len() <= STRING_BYTES_MAX && !name.contains('\0');
    names.extend(more.into_iter().filter(valid));
    names
}

/// Those of `names` that the queries list; all where there is no query.
pub fn listed(names: Vec<String>, queries: &[&str]) -> Vec<String> {
    let matches = |name: &String, query: &str| match query.ends_with(':') {
        true => name.starts_with(query),
        false => name == query,
    };
    let wanted = |name: &String| queries.is_empty() || queries.iter().any(|query| matches(name, query));
    names.into_iter().filter(wanted).collect()
}

/// Those of `names` that the queries select, with the identifiers that they get.
pub fn selected(names: Vec<String>, queries: &[&str]) -> Vec<Selected> {
    let chosen = names.into_iter().filter(|name| queries.contains(&name.as_str()));
    (1..).zip(chosen).map(|(id, name)| Selected { id, name }).collect()
}

/// What one context says about the range, from its start on and never past its end; neighbours differ.
pub fn runs(
    name: &str,
    extent: Extent,
    disk: &ByteAccess,
    metadata: Option<&Arc<dyn Metadata>>,
) -> Result<Vec<MetadataRun>> {
    let by_allocation = |flags: fn(Allocation) -> u32| -> Result<Vec<MetadataRun>> {
        let runs = disk.status(extent)?.into_iter();
        Ok(runs.map(|run| MetadataRun { extent: run.extent, flags: flags(run.allocation) }).collect())
    };
    let found = match (name, metadata) {
        (BASE_ALLOCATION, _) => by_allocation(state)?,
        (_, Some(metadata)) if metadata.contexts().iter().any(|known| known == name) => {
            metadata.runs(name, extent)?
        }
        (ALLOCATION_DEPTH, _) => by_allocation(|allocation| u32::from(allocation != Allocation::Hole))?,
        _ => return Err(Error::new(ErrorKind::NotFound, format!("there is no '{name}' any more"))),
    };
    let tidy = tidied(&found, extent);
    if tidy.is_empty() {
        return Err(Error::new(ErrorKind::Io, format!("'{name}' says nothing about {extent}")));
    }
    Ok(tidy)
}

/// The flags of `base:allocation`.
fn state(allocation: Allocation) -> u32 {
    match allocation {
        Allocation::Data => 0,
        Allocation::Zero => allocation_state::ZERO,
        Allocation::Hole => allocation_state::HOLE | allocation_state::ZERO,
    }
}

/// The runs cut to the extent and joined where they say the same; ends at the first gap.
fn tidied(found: &[MetadataRun], extent: Extent) -> Vec<MetadataRun> {
    let mut tidy: Vec<MetadataRun> = Vec::new();
    let mut at: ByteOffset = extent.start();
    for run in found {
        let Some(inside) = run.extent.intersect(extent) else { continue };
        if inside.start() != at {
            break;
        }
        at = inside.end();
        match tidy.last_mut() {
            Some(last) if last.flags == run.flags => {
                // Neighbours always make one range.
                last.extent = Extent::between(last.extent.start(), at).unwrap_or(last.extent);
            }
            _ => tidy.push(MetadataRun { extent: inside, flags: run.flags }),
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64) -> Extent {
        Extent::between(ByteOffset::new(start), ByteOffset::new(end)).unwrap()
    }

    #[test]
    fn wildcards_list_and_do_not_select() {
        let names = || {
            ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:a"].map(str::to_owned).to_vec()
        };
        assert_eq!(listed(names(), &[]).len(), 3);
        assert_eq!(listed(names(), &["qemu:"]).len(), 2);
        assert_eq!(listed(names(), &["qemu:dirty-bitmap:", "base:allocation", "x:"]).len(), 2);
        assert!(selected(names(), &["base:", "qemu:", "qemu:dirty-bitmap:", "x:y", "nonsense"]).is_empty());
        let chosen = selected(names(), &["qemu:dirty-bitmap:a", "base:allocation", "base:allocation"]);
        let chosen: Vec<_> = chosen.iter().map(|one| (one.id, one.name.as_str())).collect();
        assert_eq!(chosen, [(1, "base:allocation"), (2, "qemu:dirty-bitmap:a")]);
    }

    #[test]
    fn runs_are_cut_to_what_was_asked_joined_and_end_at_a_gap() {
        let run = |start, end, flags| MetadataRun { extent: extent(start, end), flags };
        let found = [run(0, 10, 1), run(10, 20, 1), run(20, 30, 0), run(31, 40, 0)];
        assert_eq!(tidied(&found, extent(5, 40)), [run(5, 20, 1), run(20, 30, 0)]);
        assert_eq!(tidied(&found, extent(30, 40)), []);
    }
}
