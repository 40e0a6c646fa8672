//! Looking at every structure of a VHDX, and putting right what needs no guess: a log that waits to be replayed, a header or
//! region table of which the other copy is good, room at the end that nothing uses.

use super::super::check::CheckReport;
use super::header::{HEADER_STARTS, Headers};
use super::region::{Regions, TABLE_BYTES, TABLE_STARTS};
use super::{Opened, log};
use blocks::{ByteLen, ByteOffset, Extent, Result, StorageFile};
use std::sync::Arc;

/// Checks the file; with `repair`, which wants it writable, mends what can be mended without guessing and syncs.
///
/// Errors: those of reading and writing; `Corrupt` and `Unsupported` where the file cannot be looked at at all.
pub(in super::super) fn check(file: &Arc<dyn StorageFile>, repair: bool) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    check_log(file, repair, &mut report)?;
    let mut opened = Opened::read(Arc::clone(file), false)?;
    check_copies(&*opened.file, &mut opened.headers, repair, &mut report)?;
    check_room(file, &opened, repair, &mut report)?;
    if repair && report.repaired() > 0 {
        file.sync()?;
    }
    Ok(report)
}

fn check_log(file: &Arc<dyn StorageFile>, repair: bool, report: &mut CheckReport) -> Result<()> {
    let mut headers = Headers::read(&**file)?;
    if !headers.current.has_log() {
        return Ok(());
    }
    let replay = log::read(&**file, headers.current.log, headers.current.log_id)?;
    if repair {
        replay.apply(&**file)?;
        headers.replace(&**file, |header| header.log_id = [0; 16])?;
    }
    let changes = replay.pages.len() + replay.zeroes.len();
    report.pending(
        Some(headers.current.log),
        repair,
        format!("a log of {changes} changes waits to be replayed"),
    );
    Ok(())
}

fn check_copies(
    file: &dyn StorageFile,
    headers: &mut Headers,
    repair: bool,
    report: &mut CheckReport,
) -> Result<()> {
    if !headers.both_valid {
        if repair {
            headers.replace(file, |_| {})?;
        }
        let place = Extent::between(HEADER_STARTS[0], TABLE_STARTS[0]);
        report.pending(place, repair, "one of the two headers is not valid");
    }
    let tables = TABLE_STARTS.map(|start| (start, Regions::read_at(file, start)));
    if let [(_, Ok(_)), (bad, Err(_))] | [(bad, Err(_)), (_, Ok(_))] = &tables {
        let good = if *bad == TABLE_STARTS[0] { TABLE_STARTS[1] } else { TABLE_STARTS[0] };
        if repair {
            let mut bytes = vec![0; TABLE_BYTES];
            file.read_at(good, &mut bytes)?;
            file.write_at(*bad, &bytes)?;
        }
        let place = Extent::new(*bad, ByteLen::new(TABLE_BYTES as u64)).ok();
        report.damage(place, repair, "one of the two region tables is not valid");
    }
    if let [(_, Ok(one)), (start, Ok(other))] = &tables
        && one != other
    {
        let place = Extent::new(*start, ByteLen::new(TABLE_BYTES as u64)).ok();
        report.damage(place, false, "the two region tables differ");
    }
    Ok(())
}

/// Room between blocks is named; room at the end is cut off.
fn check_room(
    file: &Arc<dyn StorageFile>,
    opened: &Opened,
    repair: bool,
    report: &mut CheckReport,
) -> Result<()> {
    let place = |at: u32, len: u32| {
        let (start, len) = (ByteOffset::new(u64::from(at) << 20), ByteLen::new(u64::from(len) << 20));
        Extent::new(start, len).ok()
    };
    let structures = [opened.parts.regions.bat, opened.parts.regions.metadata, opened.headers.current.log];
    let mut used: Vec<Extent> = opened.used.places.iter().filter_map(|(at, len)| place(*at, *len)).collect();
    used.extend(structures);
    used.sort_unstable();
    let mut at = ByteOffset::new(1 << 20);
    for extent in used {
        if let Some(gap) = Extent::between(at, extent.start()) {
            report.leak(gap, false, "nothing leads there");
        }
        at = at.max(extent.end());
    }
    if let Some(behind) = Extent::between(at, opened.file.len()?.end()) {
        if repair {
            file.set_len(ByteLen::new(at.get()))?;
        }
        report.leak(behind, repair, "nothing leads there, at the file's end");
    }
    Ok(())
}
