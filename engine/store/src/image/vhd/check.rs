//! Looking at every structure of a VHD: both footers, and each entry of the table. Room between blocks that no entry
//! leads to is named; at the end it is cut off, and a lost footer is written anew from the other one.

use super::super::check::CheckReport;
use super::bat::walk_blocks;
use super::block::BlockLayout;
use super::footer::{DiskType, FOOTER_BYTES, Footer};
use super::header::{DynamicHeader, HEADER_BYTES};
use super::read_footers;
use super::slots::Slots;
use blocks::{ByteLen, ByteOffset, Extent, Result, StorageFile};

/// Checks the file; with `repair`, which wants it writable, mends what can be mended without guessing and syncs.
///
/// Errors: those of reading and writing; `Corrupt` and `Unsupported` where the file cannot be looked at at all.
pub(in super::super) fn check(file: &dyn StorageFile, repair: bool) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let (footer, agree) = read_footers(file)?;
    if footer.disk_type == DiskType::Fixed {
        check_fixed(file, &footer, repair, &mut report)?;
        return Ok(report);
    }
    let header = DynamicHeader::read(file, &footer)?;
    let used_end = check_blocks(file, &footer, &header, &mut report)?;
    let clean = report.damaged() == 0;
    check_end(file, &footer, used_end, (agree, repair && clean), &mut report)?;
    if repair && report.repaired() > 0 {
        file.sync()?;
    }
    Ok(report)
}

fn check_fixed(
    file: &dyn StorageFile,
    footer: &Footer,
    repair: bool,
    report: &mut CheckReport,
) -> Result<()> {
    let (found, wanted) = (file.len()?, footer.current_size + FOOTER_BYTES);
    if found < wanted {
        report.damage(None, false, format!("a fixed disk whose file has {found} bytes, not {wanted}"));
    } else if found > wanted {
        // As a crash leaves it while the disk gets another length.
        if repair {
            file.write_at(footer.current_size.end(), &footer.encode())?;
            file.sync()?;
            file.set_len(wanted)?;
            file.sync()?;
        }
        let behind = Extent::between(wanted.end(), found.end());
        report.pending(behind, repair, "a fixed disk whose file goes on behind it");
    }
    Ok(())
}

/// Each block must lie in the file and apart from all else; the end of what is used.
fn check_blocks(
    file: &dyn StorageFile,
    footer: &Footer,
    header: &DynamicHeader,
    report: &mut CheckReport,
) -> Result<ByteOffset> {
    let layout = BlockLayout { block: header.block };
    let file_end = file.len()?.end();
    let table = Extent::new(header.table_offset, header.bat_end() - header.table_offset)?;
    let header_place = Extent::new(footer.data_offset, HEADER_BYTES)?;
    let mut used = vec![Extent::new(ByteOffset::ZERO, FOOTER_BYTES)?, header_place, table];
    for place in header.parent.locators.iter().map(|locator| locator.place) {
        match place.end() <= file_end {
            true => used.push(place),
            // The file would grow over it.
            false => report.damage(Some(place), false, "a path of its parent lies past the file's end"),
        }
    }
    if table.end() > file_end {
        report.damage(Some(table), false, "the table ends past the file");
        return Ok(file_end);
    }
    walk_blocks(file, header, |number, at| {
        let block = Extent::new(at, layout.len())?;
        match block.end() > file_end {
            true => report.damage(Some(block), false, format!("block {number} lies past the file's end")),
            false => used.push(block),
        }
        Ok(())
    })?;
    used.sort_unstable();
    let mut at = ByteOffset::ZERO;
    for place in used {
        if place.start() < at {
            report.damage(Some(place), false, "a block on another one, or on a structure");
        }
        // Less than a block is what aligning one has left; behind the table, where it has grown over a block that was
        // moved away, what no block fits into.
        let behind_table = at == table.end();
        let holds = |gap: &Extent| match behind_table {
            true => Slots::new(layout, at, 0).next_bitmap(at) + layout.len() <= gap.end(),
            false => gap.len() >= layout.len(),
        };
        if let Some(gap) = Extent::between(at, place.start()).filter(holds) {
            report.leak(gap, false, "no entry of the table leads there");
        }
        at = at.max(place.end());
    }
    Ok(at)
}

/// The footer at the end, and what lies before it.
fn check_end(
    file: &dyn StorageFile,
    footer: &Footer,
    used_end: ByteOffset,
    (agree, repair): (bool, bool),
    report: &mut CheckReport,
) -> Result<()> {
    let end = file.len()?.end();
    let behind = Extent::between(used_end, ByteOffset::new(end.get().saturating_sub(FOOTER_BYTES.get())));
    if repair && (!agree || behind.is_some()) {
        file.write_at(ByteOffset::ZERO, &footer.encode())?;
        file.write_at(used_end, &footer.encode())?;
        file.sync()?;
        file.set_len(ByteLen::new((used_end + FOOTER_BYTES).get()))?;
    }
    if !agree {
        report.pending(None, repair, "one of the two footers is lost");
    }
    if let Some(behind) = behind.filter(|_| agree) {
        report.leak(behind, repair, "no entry of the table leads there, at the file's end");
    }
    Ok(())
}
