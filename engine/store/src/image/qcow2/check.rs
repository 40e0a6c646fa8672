//! Looking at every table of a QCOW2, and putting right what needs no guess.
//!
//! Whatever a table leads to is counted, and the counts compared with those in the file. A count that is too low is
//! raised and a flag that contradicts it is set right; clusters that nothing leads to are given back only where every
//! table could be read, since a broken entry may be the one that led there.

use super::super::check::CheckReport;
use super::entry::{COPIED, Cluster, L1Entry};
use super::header::{self, Header};
use super::structures::{Structures, read_l1};
use crate::image::bytes::be64;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};
use std::collections::BTreeMap;
use std::ops::Range;

/// Counts are kept in groups, so that a file of a few scattered clusters takes little memory.
const GROUP: u64 = 256;
/// Autoclear bit 0: persistent bitmaps, whose clusters are led to from a header extension.
const BITMAPS: u64 = 1;

/// How often each cluster of the file is led to.
#[derive(Default)]
struct Found(BTreeMap<u64, Vec<u16>>);

impl Found {
    fn add(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            let group = self.0.entry(cluster / GROUP).or_insert_with(|| vec![0; GROUP as usize]);
            let count = &mut group[(cluster % GROUP) as usize];
            *count = count.saturating_add(1);
        }
    }

    fn get(&self, cluster: u64) -> u64 {
        self.0.get(&(cluster / GROUP)).map_or(0, |group| u64::from(group[(cluster % GROUP) as usize]))
    }
}

/// Checks the file; with `repair`, which wants it writable, mends what can be mended without guessing and syncs.
///
/// Errors: those of reading and writing; `Corrupt` and `Unsupported` where the file cannot be looked at at all.
pub(in super::super) fn check(file: &dyn StorageFile, repair: bool) -> Result<CheckReport> {
    let header = Header::read(file)?;
    if header.autoclear & BITMAPS != 0 {
        let context = format!("{}: checking a QCOW2 with persistent bitmaps is not supported", file.name());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let structures = Structures::read(file, &header)?;
    let mut walk = Walk {
        file,
        header: &header,
        structures: &structures,
        file_end: file.len()?.end().align_up(header.cluster),
        found: Found::default(),
        report: CheckReport::default(),
        repair,
    };
    walk.count_structures()?;
    walk.count_tables(&structures.l1, "the disk")?;
    for (number, (at, entries)) in header::read_snapshots(file, &header)?.into_iter().enumerate() {
        walk.count_tables(&read_l1(file, at, entries)?, &format!("snapshot {number}"))?;
    }
    walk.check_flags()?;
    walk.compare_counts()?;
    walk.end()
}

struct Walk<'a> {
    file: &'a dyn StorageFile,
    header: &'a Header,
    structures: &'a Structures,
    file_end: ByteOffset,
    found: Found,
    report: CheckReport,
    repair: bool,
}

impl Walk<'_> {
    fn add(&mut self, extent: Extent) {
        self.found.add(extent.blocks(self.header.cluster));
    }

    fn count_structures(&mut self) -> Result<()> {
        for (_, extent) in self.header.structures()? {
            self.add(extent);
        }
        let blocks: Vec<u64> = self.structures.counts.table.iter().copied().filter(|at| *at != 0).collect();
        for at in blocks {
            self.add(Extent::new(ByteOffset::new(at), self.header.cluster.len())?);
        }
        if let Some(table) = header::snapshot_table(self.file, self.header)? {
            self.add(table);
        }
        for (at, entries) in header::read_snapshots(self.file, self.header)? {
            if let Ok(extent) = Extent::new(at, ByteLen::new(u64::from(entries) * 8)) {
                self.add(extent);
            }
        }
        Ok(())
    }

    /// Counts an L1 table's L2 tables and what they lead to.
    fn count_tables(&mut self, l1: &[u64], whose: &str) -> Result<()> {
        for (index, entry) in l1.iter().enumerate() {
            let decoded = L1Entry::decode(*entry, self.header).and_then(|found| {
                found.as_ref().map_or(Ok(()), |found| self.structures.check_l2(found.l2_at))?;
                Ok(found)
            });
            let found = match decoded {
                Ok(None) => continue,
                Ok(Some(found)) if found.l2_at < self.file_end => found,
                Ok(Some(found)) => {
                    let what = format!("{whose}: L2 table {index} at {} is past the file's end", found.l2_at);
                    self.report.damage(None, false, what);
                    continue;
                }
                Err(error) => {
                    self.report.damage(None, false, format!("{whose}: {error}"));
                    continue;
                }
            };
            let table = Extent::new(found.l2_at, self.header.cluster.len())?;
            self.add(table);
            self.count_entries(&self.read_table(found.l2_at)?, table, whose);
        }
        Ok(())
    }

    fn read_table(&self, at: ByteOffset) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.header.cluster.len().as_usize()];
        self.file.read_at(at, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
    }

    fn count_entries(&mut self, entries: &[u64], table: Extent, whose: &str) {
        for (index, entry) in entries.iter().enumerate() {
            let checked = Cluster::decode(*entry, self.header).and_then(|cluster| {
                let place = cluster.place(self.header);
                if let Some(place) = place {
                    self.structures.check_place(place, self.file_end)?;
                }
                Ok(place)
            });
            match checked {
                Ok(Some(place)) => self.add(place),
                Ok(None) => {}
                Err(error) => {
                    let at = table.start() + ByteLen::new(index as u64 * 8);
                    let what = format!("{whose}: {error}");
                    self.report.damage(Extent::new(at, ByteLen::new(8)).ok(), false, what);
                }
            }
        }
    }

    /// The flags that allow writing in place must say what the counts say.
    fn check_flags(&mut self) -> Result<()> {
        for (index, entry) in self.structures.l1.iter().enumerate() {
            let Ok(Some(found)) = L1Entry::decode(*entry, self.header) else { continue };
            let entry_at = self.header.l1_at + ByteLen::new(index as u64 * 8);
            self.check_flag(*entry, found.l2_at, entry_at, "L2 table")?;
            for (index, entry) in self.read_table(found.l2_at)?.iter().enumerate() {
                let entry_at = found.l2_at + ByteLen::new(index as u64 * 8);
                match Cluster::decode(*entry, self.header) {
                    Ok(Cluster::Data { at, .. } | Cluster::ZeroAt { at, .. }) if at < self.file_end => {
                        self.check_flag(*entry, at, entry_at, "cluster")?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check_flag(&mut self, entry: u64, at: ByteOffset, entry_at: ByteOffset, what: &str) -> Result<()> {
        let count = self.found.get(self.header.cluster.block_of(at));
        let (copied, alone) = (entry & COPIED != 0, count == 1);
        if copied == alone {
            return Ok(());
        }
        if self.repair {
            let right = if alone { entry | COPIED } else { entry & !COPIED };
            self.file.write_at(entry_at, &right.to_be_bytes())?;
        }
        let said = if copied { "led to once" } else { "shared" };
        let what = format!("the {what} at {at} is led to {count} times, and marked as {said}");
        self.report.damage(Extent::new(entry_at, ByteLen::new(8)).ok(), self.repair, what);
        Ok(())
    }

    /// Raises what is too low, then gives back what is too high.
    fn compare_counts(&mut self) -> Result<()> {
        let mut leaks: Vec<(Range<u64>, u64)> = Vec::new();
        let counts = &self.structures.counts;
        let file_clusters = self.header.cluster.block_of(self.file_end);
        let blocks = (counts.table.len() as u64).min(file_clusters.div_ceil(counts.per_block()).max(1));
        for block in 0..counts.table.len() as u64 {
            let base = block * counts.per_block();
            let Some(block_at) = counts.block_at(block) else {
                if block < blocks {
                    self.check_uncounted(base..(base + counts.per_block()).min(file_clusters));
                }
                continue;
            };
            for (index, stored) in counts.read_block(self.file, block_at)?.into_iter().enumerate() {
                let cluster = base + index as u64;
                let expected = self.found.get(cluster);
                if stored < expected {
                    self.raise(cluster, stored, expected)?;
                } else if stored > expected {
                    match leaks.last_mut() {
                        Some((last, count)) if last.end == cluster && *count == expected => last.end += 1,
                        _ => leaks.push((cluster..cluster + 1, expected)),
                    }
                }
            }
        }
        let reach = counts.table.len() as u64 * counts.per_block();
        self.check_uncounted(reach..file_clusters.max(reach));
        let mend = self.repair && self.report.damaged() == 0;
        if mend && !leaks.is_empty() {
            self.file.sync()?;
        }
        for (clusters, expected) in leaks {
            if mend {
                counts.set(self.file, clusters.clone(), expected)?;
            }
            let shift = self.header.cluster;
            if let Some(place) = Extent::between(shift.start_of(clusters.start), shift.start_of(clusters.end))
            {
                self.report.leak(place, mend, "counted, but nothing leads there");
            }
        }
        Ok(())
    }

    fn check_uncounted(&mut self, clusters: Range<u64>) {
        let groups = self.found.0.range(clusters.start / GROUP..clusters.end.div_ceil(GROUP));
        let used = groups.flat_map(|(group, counts)| {
            let numbered = (group * GROUP..).zip(counts);
            numbered.filter(|(_, count)| **count > 0).map(|(cluster, _)| cluster)
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for cluster in used.filter(|cluster| clusters.contains(cluster)) {
            match runs.last_mut() {
                Some(last) if last.end == cluster => last.end += 1,
                _ => runs.push(cluster..cluster + 1),
            }
        }
        for run in runs {
            self.report.damage(self.clusters(run), false, "led to, and without a block of counts");
        }
    }

    fn raise(&mut self, cluster: u64, stored: u64, expected: u64) -> Result<()> {
        let counts = &self.structures.counts;
        let mend = self.repair && expected <= counts.max();
        if mend {
            counts.set(self.file, cluster..cluster + 1, expected)?;
        }
        let what = format!("counted {stored} times, and led to {expected} times");
        self.report.damage(self.clusters(cluster..cluster + 1), mend, what);
        Ok(())
    }

    fn clusters(&self, clusters: Range<u64>) -> Option<Extent> {
        let shift = self.header.cluster;
        Extent::between(shift.start_of(clusters.start), shift.start_of(clusters.end))
    }

    /// Takes the marks off that say "not to be trusted", where everything was put right.
    fn end(mut self) -> Result<CheckReport> {
        if self.header.dirty || self.header.corrupt {
            let mend = self.repair && self.report.is_clean();
            if mend {
                self.file.sync()?;
                header::clear_marks(self.file)?;
            }
            let what = match self.header.corrupt {
                true => "marked as damaged",
                false => "not closed by its last writer: its counts are not to be trusted",
            };
            self.report.damage(None, mend, what);
        }
        if self.repair && self.report.repaired() > 0 {
            self.file.sync()?;
        }
        Ok(self.report)
    }
}
