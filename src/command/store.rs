//! `understudy store check`: a store that no server has open.

use crate::output;
use anyhow::{Context, bail};
use blocks::{ByteLen, Storage};
use server::control::api::{FindingInfo, Progress};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use store::{HostStorage, Pace, ScrubReport};

/// Checks the store in that folder, and repairs what needs no guess. An error where damage is left.
pub fn check(dir: &Path, repair: bool, json: bool) -> anyhow::Result<()> {
    // A storage makes its folder where it does not exist; a check must not.
    if !dir.is_dir() {
        bail!("{}: there is no such folder", dir.display());
    }
    let storage: Arc<dyn Storage> = Arc::new(HostStorage::new(dir)?);
    let view = RefCell::new(output::progress(json));
    let progress = |unit: &str, done: ByteLen, total: ByteLen| {
        let step = format!("checking {unit}");
        view.borrow_mut().show(&Progress { step, done: done.get(), total: total.get() });
    };
    let pace = Pace::unlimited();
    let context = || dir.display().to_string();
    let outcome = match repair {
        false => store::check(&storage, &pace, &progress).map(|report| (Vec::new(), report)),
        true => store::repair(&storage, &pace, &progress),
    };
    view.borrow_mut().end();
    let (done, report) = outcome.with_context(context)?;
    match json {
        true => println!("{}", as_json(&done, &report)),
        false => print(&done, &report),
    }
    match report.count() {
        0 => Ok(()),
        1 => bail!("{}: 1 finding", dir.display()),
        count => bail!("{}: {count} findings", dir.display()),
    }
}

fn print(done: &[String], report: &ScrubReport) {
    done.iter().for_each(|line| println!("repaired: {line}"));
    report.notes.iter().for_each(|note| println!("note: {note}"));
    for finding in &report.findings {
        println!("damage: {finding}; {}", finding.remedy);
    }
    if report.more > 0 {
        println!("damage: {} more findings", report.more);
    }
    println!("{} read and checked", output::size(report.read.get()));
}

fn as_json(done: &[String], report: &ScrubReport) -> serde_json::Value {
    let findings: Vec<FindingInfo> = report.findings.iter().map(FindingInfo::from).collect();
    serde_json::json!({
        "repaired": done,
        "notes": report.notes,
        "damage": report.count(),
        "findings": findings,
        "read_bytes": report.read.get(),
    })
}
