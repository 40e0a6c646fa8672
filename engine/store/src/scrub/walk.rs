//! The walk over all files of one unit.

use super::damage::{Damaged, Touched};
use super::finding::{Finding, Remedy, RepairStep, ScrubReport};
use crate::image::SummedImage;
use crate::index::entry::Entry;
use crate::index::reader::IndexReader;
use crate::journal::check::{LogPart, walk_log};
use crate::journal::location::{Location, LogLocation};
use crate::journal::record::LogIdentity;
use crate::pace::Pace;
use crate::unit::branch::{BranchId, DeltaId, Edition};
use crate::unit::files;
use crate::unit::inventory::Inventory;
use crate::unit::lineage::Span;
use crate::unit::manifest::{Delta, Manifest};
use blocks::{ByteLen, ByteOffset, DiskIndex, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile};
use std::sync::Arc;

const LOST: &str = "its bytes are nowhere else in the store; a checkpoint that is not touched can be recovered, and verify \
                    finds what has to be sent again";
const IMAGE_LOST: &str =
    "nothing tells whether the block or its checksum is right; verify finds what has to be sent again";
const INDEX_LOST: &str = "the log that it would follow from is damaged too";
/// Images are read past the page cache by making the system forget them so often, in bytes of the disk.
const FORGET_EVERY: u64 = 256 << 20;

/// The log of a delta that is still open, up to what is on the medium.
#[derive(Clone, Debug)]
pub(crate) struct OpenLog {
    pub branch: BranchId,
    pub disk: DiskIndex,
    pub delta: DeltaId,
    pub len: ByteOffset,
}

/// One scrub of one unit. Its inventory is its own, so that every file is opened and read anew.
pub(crate) struct Scrubber<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) dir: String,
    pub(super) manifest: Arc<Manifest>,
    pub(super) inventory: Inventory,
    pace: &'a Pace<'a>,
    /// Whether the unit still has that index and, of one delta, its log: what was consolidated, thinned or dropped meanwhile
    /// is no damage.
    still_there: &'a dyn Fn(Span) -> bool,
    progress: &'a dyn Fn(ByteLen, ByteLen),
    total: ByteLen,
    report: ScrubReport,
}

impl<'a> Scrubber<'a> {
    pub(crate) fn new(
        storage: &'a dyn Storage,
        (dir, manifest, inventory): (String, Arc<Manifest>, Inventory),
        pace: &'a Pace<'a>,
        still_there: &'a dyn Fn(Span) -> bool,
        progress: &'a dyn Fn(ByteLen, ByteLen),
    ) -> Scrubber<'a> {
        let report = ScrubReport::default();
        Scrubber {
            storage,
            dir,
            manifest,
            inventory,
            pace,
            still_there,
            progress,
            total: ByteLen::ZERO,
            report,
        }
    }

    /// Everything of the unit. Errors: `Cancelled` by the pace; what cannot be read is a finding, not an error.
    pub(crate) fn run(mut self, open_logs: &[OpenLog]) -> Result<ScrubReport> {
        let manifest = Arc::clone(&self.manifest);
        self.total = manifest.deltas.values().map(|delta| delta.log_len).sum::<ByteLen>()
            + open_logs.iter().map(|log| log.len - ByteOffset::ZERO).sum();
        for disk in manifest.disk_indexes() {
            self.total += self.stored_image_len(disk);
        }
        for (id, delta) in &manifest.deltas {
            self.scrub_delta(*id, delta)?;
        }
        for merged in &manifest.merged {
            let span = merged.span();
            self.scrub_index(merged.disk, span, None, Remedy::Exact(RepairStep::DropMerged))?;
        }
        for log in open_logs {
            self.scrub_open_log(log)?;
        }
        for disk in manifest.disk_indexes() {
            self.scrub_image(disk)?;
        }
        Ok(self.report)
    }

    /// The image's name as it is now: it changes while the image is being changed.
    fn image_name(&self, disk: DiskIndex) -> String {
        let format = self.manifest.image_format;
        files::present_image_name(self.storage, &self.dir, disk, format)
            .unwrap_or_else(|_| files::image_name(&self.dir, disk, format))
    }

    /// How much of an image will have to be read, as far as that is cheap to tell: only for the progress.
    fn stored_image_len(&self, disk: DiskIndex) -> ByteLen {
        let name = self.image_name(disk);
        let stored = self.storage.open(&name, OpenMode::Read).and_then(|file| {
            let (mut at, mut stored) = (ByteOffset::ZERO, ByteLen::ZERO);
            while let Some(data) = file.next_data(at)? {
                stored += data.len();
                at = data.end();
            }
            Ok(stored)
        });
        stored.unwrap_or(ByteLen::ZERO)
    }

    fn scrub_delta(&mut self, id: DeltaId, delta: &Delta) -> Result<()> {
        let span = own_span(self.manifest.edition(id));
        let before = self.report.count();
        let mut entries = Vec::new();
        // Whether it could be made again from the log is known only after the log was read.
        let remedy = Remedy::None(INDEX_LOST);
        self.scrub_index(delta.disk, span, Some((delta, &mut entries)), remedy)?;
        let index_findings = before..self.report.count();
        let log_findings = self.report.count();
        self.scrub_log(self.manifest.edition(id), delta.disk, delta.log_len.end(), &entries)?;
        if self.report.count() == log_findings {
            for number in index_findings {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                if let Some(finding) = self.report.findings.get_mut(number) {
                    finding.remedy = Remedy::Exact(RepairStep::RebuildIndex);
                }
            }
        }
        Ok(())
    }

    /// Reads an index through; what it says about a single delta's log goes to `of.1`.
    fn scrub_index(
        &mut self,
        disk: DiskIndex,
        span: Span,
        mut of: Option<(&Delta, &mut Vec<Entry>)>,
        remedy: Remedy,
    ) -> Result<()> {
        let name = files::index_name(&self.dir, disk, span);
        let damaged = Damaged::Index(span.first, span.last);
        self.forget(&name);
        let manifest = Arc::clone(&self.manifest);
        let reader = match self.inventory.reader(manifest.salt, disk, &span) {
            Ok(reader) => reader,
            Err(_) if !(self.still_there)(span) => return Ok(()),
            Err(error) => {
                self.found(disk, name, None, None, error.to_string(), damaged, remedy);
                return Ok(());
            }
        };
        let (mut count, mut covered) = (0, ByteLen::ZERO);
        let mut bad = 0;
        for number in 0..reader.blocks() {
            self.read(ByteLen::new(4096))?;
            match reader.entries_of(number) {
                Ok(block) => {
                    count += block.len() as u64;
                    covered += block.iter().map(|entry| entry.extent.len()).sum();
                    if let Some(stray) =
                        block.iter().find(|entry| !(span.first..=span.last).contains(&entry.delta))
                    {
                        let what = format!("an entry names delta {}, which is none of its own", stray.delta);
                        self.found(
                            disk,
                            name.clone(),
                            None,
                            Some(stray.extent),
                            what,
                            damaged,
                            remedy.clone(),
                        );
                        bad += 1;
                    }
                    if let Some((_, entries)) = &mut of {
                        entries.extend(block);
                    }
                }
                Err(_) if !(self.still_there)(span) => return Ok(()),
                Err(error) => {
                    let at = ByteOffset::new((number as u64 + 1) * 4096);
                    let range = reader.range_of(number);
                    self.found(
                        disk,
                        name.clone(),
                        Some(at),
                        range,
                        error.to_string(),
                        damaged,
                        remedy.clone(),
                    );
                    bad += 1;
                }
            }
        }
        if bad == 0 && !says_so(&reader, count, covered, of.as_ref().map(|(delta, _)| *delta)) {
            let what = format!(
                "{name}: its {count} entries are not those that its first block or the manifest says"
            );
            self.found(disk, name, None, None, what, damaged, remedy);
        }
        Ok(())
    }

    /// Reads a log through: every payload against its record's checksum and against those of the entries that need it.
    fn scrub_log(
        &mut self,
        edition: Edition,
        disk: DiskIndex,
        len: ByteOffset,
        entries: &[Entry],
    ) -> Result<()> {
        let delta = edition.delta;
        let name = files::log_name(&self.dir, disk, edition);
        let log = self.inventory.log(disk, edition);
        let mut needed: Vec<(Extent, LogLocation)> = entries
            .iter()
            .filter_map(|entry| match entry.location {
                Location::Log(location) => Some((entry.extent, location)),
                Location::Empty(_) => None,
            })
            .collect();
        needed.sort_unstable_by_key(|(_, location)| location.payload);
        let mut seen = Vec::new();
        let mut bad: Vec<(ByteOffset, Option<Extent>, String)> = Vec::new();
        let identity = LogIdentity { salt: self.manifest.salt, delta };
        let (pace, report) = (self.pace, &mut self.report);
        let (progress, total) = (self.progress, self.total);
        let mut about_to_read = |len: ByteLen| {
            pace.take(len)?;
            report.read += len;
            progress(report.read, total.max(report.read));
            Ok(())
        };
        let walked = log.open().and_then(|file| {
            file.drop_cached();
            walk_log(&*file, identity, len, &mut about_to_read, &mut |part| {
                match part {
                    LogPart::NoRecord { at, until } => {
                        bad.push((at, None, format!("{name}: no record from offset {at} up to {until}")));
                    }
                    LogPart::Payload { at, bytes, header } => {
                        seen.push(at);
                        check_payload(
                            &name,
                            at,
                            blocks::crc32c(bytes),
                            header.payload_crc,
                            &needed,
                            &mut bad,
                        );
                    }
                }
                Ok(())
            })
        });
        if let Err(error) = walked {
            if error.kind() == ErrorKind::Cancelled {
                return Err(error);
            }
            if (self.still_there)(own_span(edition)) {
                let what = error.to_string();
                self.found(disk, name, None, None, what, Damaged::Log(delta), Remedy::None(LOST));
            }
            return Ok(());
        }
        // What a lost header leads to can still be read by those who have it from the index.
        for (extent, location) in
            needed.iter().filter(|(_, location)| seen.binary_search(&location.payload).is_err())
        {
            if let Err(what) = read_alone(&log, location) {
                bad.push((location.payload, Some(*extent), format!("{name}: {what}")));
            }
        }
        for (at, extent, what) in bad {
            self.found(
                disk,
                name.clone(),
                Some(at),
                extent,
                what,
                Damaged::Payload(delta, at),
                Remedy::None(LOST),
            );
        }
        Ok(())
    }

    /// An open delta has no index on the medium yet, but all of it belongs to the newest state of its branch.
    fn scrub_open_log(&mut self, log: &OpenLog) -> Result<()> {
        let before = self.report.findings.len();
        self.scrub_log(Edition::first(log.delta), log.disk, log.len, &[])?;
        for finding in self.report.findings.iter_mut().skip(before) {
            finding.branches = vec![log.branch];
        }
        Ok(())
    }

    fn scrub_image(&mut self, disk: DiskIndex) -> Result<()> {
        let image: Arc<SummedImage> = Arc::clone(self.inventory.image(disk));
        let name = self.image_name(disk);
        let len = blocks::Volume::len(&*image);
        let mut forgotten = None;
        for region in Extent::whole(len).into_iter().flat_map(|whole| whole.split(SummedImage::SCRUB_STEP)) {
            if forgotten != Some(region.start().get() / FORGET_EVERY) {
                forgotten = Some(region.start().get() / FORGET_EVERY);
                self.forget(&name);
                image.drop_cached();
            }
            self.pace.take(ByteLen::ZERO)?;
            let (read, bad) = match image.scrub(region) {
                Ok(scrubbed) => scrubbed,
                Err(error) => (ByteLen::ZERO, vec![(region, error.to_string())]),
            };
            self.read(read)?;
            for (block, what) in bad {
                let what = format!("{name}: {what}");
                let remedy = Remedy::None(IMAGE_LOST);
                self.found(disk, name.clone(), None, Some(block), what, Damaged::Image, remedy);
            }
        }
        Ok(())
    }

    fn read(&mut self, len: ByteLen) -> Result<()> {
        self.pace.take(len)?;
        self.report.read += len;
        (self.progress)(self.report.read, self.total.max(self.report.read));
        Ok(())
    }

    fn forget(&self, name: &str) {
        if let Ok(file) = self.storage.open(name, OpenMode::Read) {
            file.drop_cached();
        }
    }

    #[allow(clippy::too_many_arguments, reason = "each is one field of what is reported")]
    fn found(
        &mut self,
        disk: DiskIndex,
        file: String,
        offset: Option<ByteOffset>,
        extent: Option<Extent>,
        what: String,
        damaged: Damaged,
        remedy: Remedy,
    ) {
        if self.report.is_full() {
            self.report.more += 1;
            return;
        }
        let Touched { checkpoints, branches } = self.touched(disk, extent, damaged);
        let (unit, disk) = (self.manifest.name.clone(), Some(disk));
        self.report.add(Finding { unit, disk, file, offset, extent, what, checkpoints, branches, remedy });
    }
}

/// The index of one delta as it is stored now.
pub(crate) fn own_span(edition: Edition) -> Span {
    Span { first: edition.delta, last: edition.delta, tier: 0, revision: edition.revision }
}

/// Whether an index has as many entries as its first block and the manifest say.
fn says_so(reader: &IndexReader, count: u64, covered: ByteLen, delta: Option<&Delta>) -> bool {
    let header = reader.header();
    (header.entries, header.covered) == (count, covered)
        && delta.is_none_or(|delta| (delta.entries, delta.covered) == (count, covered))
}

/// Reports a payload that does not match its own record, and each extent whose entry it does not match.
fn check_payload(
    name: &str,
    at: ByteOffset,
    found: u32,
    expected: u32,
    needed: &[(Extent, LogLocation)],
    bad: &mut Vec<(ByteOffset, Option<Extent>, String)>,
) {
    let first = needed.partition_point(|(_, location)| location.payload < at);
    let users = needed[first..].iter().take_while(|(_, location)| location.payload == at);
    let before = bad.len();
    for (extent, _) in users.clone().filter(|(_, location)| location.crc != found) {
        bad.push((at, Some(*extent), format!("{name}: payload at offset {at}: checksum mismatch")));
    }
    if found != expected && bad.len() == before {
        let users = users.count();
        let what = match users {
            0 => "checksum mismatch, in bytes that were overwritten later in the same delta",
            _ => "its record's checksum is damaged",
        };
        bad.push((at, None, format!("{name}: payload at offset {at}: {what}")));
    }
}

/// Reads and checks one payload without its record.
fn read_alone(
    log: &crate::stored_file::StoredFile,
    location: &LogLocation,
) -> std::result::Result<(), String> {
    let mut bytes = vec![0; location.stored_len().as_usize()];
    let file: Arc<dyn StorageFile> = log.open().map_err(|error| error.to_string())?;
    file.read_at(location.payload, &mut bytes).map_err(|error| error.to_string())?;
    match blocks::crc32c(&bytes) == location.crc {
        true => Ok(()),
        false => Err(format!("payload at offset {}: checksum mismatch", location.payload)),
    }
}
