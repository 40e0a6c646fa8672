//! `understudy agent doctor`.

use crate::configuration::AgentSection;
use crate::output;
use anyhow::bail;
use cbt::{Finding, TrackerWish, Verdict};
use serde_json::json;
use std::path::PathBuf;

/// Looks at the machine and prints what was found; an error if a stand-in would not boot or a disk cannot be protected.
pub fn run(
    disks: Vec<PathBuf>,
    tracker: Option<String>,
    file: AgentSection,
    as_json: bool,
) -> anyhow::Result<()> {
    let wish = match tracker.or(file.tracker) {
        Some(text) => text.parse()?,
        None => TrackerWish::default(),
    };
    let disks = if disks.is_empty() { file.disks } else { disks };
    let findings = cbt::examine(&disks, wish);
    match as_json {
        true => {
            println!("{}", json!({ "findings": findings.iter().map(finding_as_json).collect::<Vec<_>>() }))
        }
        false => print(&findings),
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    match (count(Verdict::Bad), count(Verdict::Doubtful)) {
        (0, 0) if !as_json => println!("\nthis machine can be protected, and its stand-in should boot"),
        (0, doubtful) if !as_json => println!("\nnothing stands in the way; {doubtful} in doubt"),
        (0, _) => {}
        (bad, _) => bail!("{bad} of {} would go wrong", findings.len()),
    }
    Ok(())
}

fn finding_as_json(finding: &Finding) -> serde_json::Value {
    let Finding { about, verdict, what, advice } = finding;
    json!({ "about": about, "verdict": verdict.to_string(), "what": what, "advice": advice })
}

fn print(findings: &[Finding]) {
    let rows = findings.iter().map(|finding| {
        let text = match &finding.advice {
            Some(advice) => format!("{}\n-> {advice}", finding.what),
            None => finding.what.clone(),
        };
        vec![finding.verdict.to_string(), finding.about.clone(), text]
    });
    println!("{}", output::table(&["VERDICT", "ABOUT", "FOUND"], rows));
}
