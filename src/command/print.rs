//! Replies in words.

use crate::output::{brief, duration, maybe_duration, size, table};
use server::control::api::{
    BranchList, CheckpointInfo, CheckpointList, DrillInfo, DrillStatus, ExportStatus, FailbackInfo,
    GuestInfo, MachineStatus, Reply, ScrubMachine, ScrubStatus, SessionInfo, Status, VerifyInfo,
};

/// Prints what came of a command.
pub fn reply(reply: &Reply) {
    match reply {
        Reply::Status(status) => self::status(status),
        Reply::Token(token) => {
            println!("{}", token.token);
            eprintln!("good once, for {}", duration(token.expires_in_seconds * 1000));
        }
        Reply::Checkpoint(info) => println!("{}", table(&CHECKPOINT_HEADER, [checkpoint_row(info)])),
        Reply::Checkpoints(list) => checkpoints(list),
        Reply::Branches(list) => branches(list),
        Reply::Thinned(info) => {
            let numbers: Vec<String> = info.deleted.iter().map(ToString::to_string).collect();
            println!("{}: checkpoints {} are gone", info.machine, numbers.join(" "));
            eprintln!(
                "{} are free, {} were written for it",
                size(info.freed_bytes),
                size(info.written_bytes)
            );
        }
        Reply::Settled(settled) => {
            settled.images.iter().for_each(|image| println!("{image}"));
            let (journal, written) = (size(settled.journal_bytes), size(settled.written_bytes));
            eprintln!(
                "hold checkpoint {}; {journal} in the journal became {written} written",
                settled.checkpoint
            );
        }
        Reply::Session(info) => session(info),
        Reply::Sessions { sessions } => print_sessions(sessions),
        Reply::Drill(info) => drilled(info),
        Reply::Drills { machine, drills } => print_drills(machine, drills),
        Reply::Failback(info) => failback(info),
        Reply::Exported { path, bytes } => println!("{path}: {}", size(*bytes)),
        Reply::Definition(info) => {
            print!("{}", info.text);
            info.notes.iter().for_each(|note| eprintln!("note: {note}"));
        }
        Reply::Unmounted { folder, .. } => println!("{folder} is unmounted"),
        Reply::Verified(info) => verified(info),
        Reply::Scrubbed { machines } => machines.iter().for_each(scrubbed),
        Reply::Removed { machine } => println!("{machine} is forgotten"),
    }
}

fn status(status: &Status) {
    if status.machines.is_empty() {
        println!("no machines yet; start `understudy agent --server ADDR --disk DEVICE` on one");
        return;
    }
    let header = [
        "MACHINE",
        "STATE",
        "RPO",
        "DISK",
        "SIZE",
        "TRACKER",
        "CHURN/S",
        "BACKLOG",
        "ETA",
        "CHECKPOINTS",
        "GAPS",
    ];
    println!("{}", table(&header, status.machines.iter().flat_map(machine_rows)));
    for machine in &status.machines {
        let pins = machine.pins.iter().map(|pin| format!("pinned by {pin}"));
        for line in Some(machine.detail.clone()).into_iter().filter(|detail| !detail.is_empty()).chain(pins) {
            println!("{}: {line}", machine.name);
        }
        space(machine);
        if !matches!(machine.on_failure.as_str(), "" | "notify") {
            println!("{}: when it fails: {}", machine.name, machine.on_failure);
        }
        machine.alarms.iter().for_each(|alarm| println!("{}: ALARM {}", machine.name, alarm.words));
        if let Some(drill) = &machine.drill {
            println!("{}: {}", machine.name, drill_status_line(drill));
        }
        if let Some(scrub) = &machine.scrub {
            println!("{}: {}", machine.name, scrub_line(scrub));
            scrub.findings.iter().for_each(|finding| println!("{}: damage: {finding}", machine.name));
        }
    }
    status.nbd.exports.iter().for_each(|export| println!("{}: {}", export.export, traffic_line(export)));
    status.alarms.iter().for_each(|alarm| println!("ALARM {}", alarm.words));
    let free = status.free_bytes.map_or_else(|| "unknown".to_owned(), size);
    println!("store {}, {free} free, server memory {}", status.store, size(status.memory_bytes));
}

fn space(machine: &MachineStatus) {
    let used = &machine.space;
    let quota = used.quota_bytes.map_or_else(String::new, |quota| format!(" of {}", size(quota)));
    let bought =
        used.window_bought_ms.map_or_else(String::new, |ms| format!(", the quota buys {}", duration(ms)));
    println!(
        "{}: {} images and {} history{quota}; goes back {}, keeps {}{bought}",
        machine.name,
        size(used.images_bytes),
        size(used.journal_bytes),
        maybe_duration(machine.window_ms),
        machine.keep
    );
}

/// Who uses an export, and how it goes: the kinds of requests by what half of them and all but one of a hundred took.
fn traffic_line(export: &ExportStatus) -> String {
    let traffic = &export.traffic;
    let mut line = format!("{} clients, {} in flight", export.clients.len(), traffic.in_flight);
    for seen in &traffic.operations {
        let errors = if seen.errors == 0 { String::new() } else { format!(", {} ERRORS", seen.errors) };
        line.push_str(&format!(
            "; {} {} ({}, {}, p99 {}{errors})",
            seen.requests,
            seen.operation,
            size(seen.bytes),
            brief(seen.p50_ns),
            brief(seen.p99_ns)
        ));
    }
    line
}

fn scrub_line(scrub: &ScrubStatus) -> String {
    let (at, read) = (time_of(scrub.finished_ms), size(scrub.read_bytes));
    match scrub.damage {
        0 => format!("last scrub {at}: {read} read, all as it was stored"),
        damage => format!("last scrub {at}: {read} read, {damage} findings of damage"),
    }
}

fn scrubbed(machine: &ScrubMachine) {
    machine.findings.iter().for_each(|finding| println!("damage: {}; {}", finding.text, finding.remedy));
    let described = machine.findings.len() as u64;
    if machine.damage > described {
        println!("damage: {} more findings", machine.damage - described);
    }
    if !machine.name.is_empty() {
        println!("{}: {} read, {} findings", machine.name, size(machine.read_bytes), machine.damage);
    }
}

fn machine_rows(machine: &MachineStatus) -> Vec<Vec<String>> {
    let rows = machine.disks.iter().enumerate().map(|(position, disk)| {
        let mut row = match position {
            0 => vec![machine.name.clone(), machine.state.clone(), maybe_duration(machine.rpo_ms)],
            _ => vec![String::new(); 3],
        };
        row.extend([
            format!("{} {}", disk.index, disk.device),
            size(disk.len),
            disk.tracker.clone(),
            size(disk.churn_bytes_per_second),
            size(disk.backlog_bytes),
            maybe_duration(disk.eta_ms),
        ]);
        if position == 0 {
            row.extend([machine.checkpoints.to_string(), machine.gaps.to_string()]);
        }
        row
    });
    rows.collect()
}

const CHECKPOINT_HEADER: [&str; 8] =
    ["CHECKPOINT", "TIME", "CONSISTENCY", "CHANGED", "FROZEN", "BRANCH", "NAME", "PROTECTED"];

fn checkpoint_row(info: &CheckpointInfo) -> Vec<String> {
    vec![
        info.checkpoint.to_string(),
        info.time.clone(),
        info.consistency.clone(),
        size(info.changed_bytes),
        duration(info.frozen_ms),
        info.branch.clone(),
        info.name.clone(),
        info.protected_until.clone().unwrap_or_default(),
    ]
}

fn checkpoints(list: &CheckpointList) {
    match list.checkpoints.is_empty() {
        true => println!("{} has no checkpoint yet", list.machine),
        false => println!("{}", table(&CHECKPOINT_HEADER, list.checkpoints.iter().map(checkpoint_row))),
    }
    for gap in &list.gaps {
        let length = match gap.until_ms {
            0 => "still open".to_owned(),
            until => duration(until.saturating_sub(gap.from_ms)),
        };
        println!("gap from {} ({length}): {}", time_of(gap.from_ms), gap.cause);
    }
}

fn branches(list: &BranchList) {
    let rows = list.branches.iter().map(|branch| {
        let numbers: Vec<String> = branch.checkpoints.iter().map(ToString::to_string).collect();
        let base = branch.base.map_or_else(|| "-".to_owned(), |base| base.to_string());
        vec![branch.branch.to_string(), branch.kind.clone(), branch.name.clone(), base, numbers.join(" ")]
    });
    println!("{}", table(&["BRANCH", "KIND", "NAME", "BASE", "CHECKPOINTS"], rows));
}

fn time_of(ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn session(info: &SessionInfo) {
    println!("session   {}", info.session);
    println!("machine   {} at checkpoint {}", info.machine_name, info.checkpoint);
    if let Some(moment) = &info.moment {
        println!("          and the {} writes behind it up to {}", moment.writes, moment.time);
    }
    println!(
        "state     {}{}",
        info.state,
        if info.drill { " (drill: the machine stays in charge)" } else { "" }
    );
    if !info.detail.is_empty() {
        println!("          {}", info.detail);
    }
    println!("achieved  RTO {} to the exports, RPO {}", duration(info.rto_ms), duration(info.rpo_ms));
    for disk in &info.disks {
        let (len, written) = (size(disk.len), size(disk.written_bytes));
        println!("disk {}    {len}, {written} written by the guest, {} clients", disk.index, disk.clients);
        disk.uris.iter().for_each(|uri| println!("          {uri}"));
        if let Some(migration) = &disk.migration {
            let (copied, left) = (size(migration.copied_bytes), size(migration.left_bytes));
            println!(
                "          migration to {} ({}): {}, {copied} copied, {left} left {}",
                migration.to, migration.format, migration.state, migration.detail
            );
        }
    }
    info.guest.iter().for_each(|stand_in| guest(stand_in));
}

fn drill_status_line(drill: &DrillStatus) -> String {
    let every = drill.every_ms.map_or_else(String::new, |ms| format!(" every {}", duration(ms)));
    match &drill.last {
        Some(last) => format!("drilled{every}, last {}: {}", time_of(last.started_ms), drill_line(last)),
        None => format!("drilled{every}, not yet"),
    }
}

fn drill_line(info: &DrillInfo) -> String {
    match info.rto_ms.filter(|_| info.passed) {
        Some(ms) => format!("{} after {}", info.probe, duration(ms)),
        None => format!("FAILED: {}", info.detail),
    }
}

fn drilled(info: &DrillInfo) {
    println!("{} at checkpoint {}: {}", info.machine, info.checkpoint, drill_line(info));
    let (exports, read) = (duration(info.exports_ms), maybe_duration(info.first_read_ms));
    println!("exports   served after {exports}, first read after {read}; RPO {}", duration(info.rpo_ms));
    info.picture.iter().for_each(|picture| println!("picture   {picture}"));
    info.notes.iter().for_each(|note| println!("          {note}"));
}

fn print_drills(machine: &str, drills: &[DrillInfo]) {
    if drills.is_empty() {
        println!("{machine} was never drilled; see `understudy recover --help`");
        return;
    }
    let rows = drills.iter().map(|info| {
        vec![
            time_of(info.started_ms),
            info.checkpoint.to_string(),
            maybe_duration(info.first_read_ms),
            drill_line(info),
            info.picture.clone().unwrap_or_default(),
        ]
    });
    println!("{}", table(&["STARTED", "CHECKPOINT", "FIRST READ", "RESULT", "PICTURE"], rows));
}

fn guest(guest: &GuestInfo) {
    let rto = guest.rto_ms.map_or_else(String::new, |ms| format!(", did its work after {}", duration(ms)));
    println!("stand-in  {}{rto}", guest.state);
    if !guest.detail.is_empty() {
        println!("          {}", guest.detail);
    }
    guest.notes.iter().for_each(|note| println!("          {note}"));
    if guest.state == "ended" {
        return;
    }
    let places =
        [("network", &guest.network), ("console", &guest.console), ("qmp", &guest.qmp), ("vnc", &guest.vnc)];
    places.iter().for_each(|(what, place)| println!("{what:<9} {place}"));
}

fn print_sessions(sessions: &[SessionInfo]) {
    if sessions.is_empty() {
        println!("no sessions");
        return;
    }
    let rows = sessions.iter().map(|info| {
        let written = info.disks.iter().map(|disk| disk.written_bytes).sum();
        let state = if info.drill { format!("{} (drill)", info.state) } else { info.state.clone() };
        let uris: Vec<_> = info.disks.iter().filter_map(|disk| disk.uris.first().cloned()).collect();
        vec![
            info.session.chars().take(8).collect(),
            info.machine_name.clone(),
            info.checkpoint.to_string(),
            state,
            size(written),
            uris.join(" "),
        ]
    });
    println!("{}", table(&["SESSION", "MACHINE", "CHECKPOINT", "STATE", "WRITTEN", "DISKS"], rows));
}

fn failback(info: &FailbackInfo) {
    let header = ["DISK", "CONTENT", "CHANGED", "HASHED", "READ", "SENT", "ZEROED", "VERIFIED"];
    let rows = info.disks.iter().map(|disk| {
        vec![
            disk.index.to_string(),
            if disk.known { "known".to_owned() } else { format!("unknown: {}", disk.reason) },
            size(disk.changed_bytes),
            size(disk.hashed_bytes),
            size(disk.read_bytes),
            size(disk.sent_bytes),
            size(disk.zeroed_bytes),
            size(disk.verified_bytes),
        ]
    });
    if !info.disks.is_empty() {
        println!("{}", table(&header, rows));
    }
    match info.checkpoint {
        Some(checkpoint) if info.disks.is_empty() => {
            println!("{} was home already, in charge since checkpoint {checkpoint}", info.machine);
        }
        Some(checkpoint) => println!(
            "{} is home and in charge at checkpoint {checkpoint}; downtime {}",
            info.machine,
            duration(info.downtime_ms)
        ),
        None => println!("in step; shut the guest down and repeat with --cutover"),
    }
}

fn verified(info: &VerifyInfo) {
    let rows = info.disks.iter().map(|disk| {
        let differing = disk.differing.iter().map(|(_, len)| len).sum();
        vec![disk.index.to_string(), size(disk.equal_bytes), size(disk.skipped_bytes), size(differing)]
    });
    println!("{} at checkpoint {}", info.machine, info.checkpoint);
    println!("{}", table(&["DISK", "EQUAL", "SKIPPED", "DIFFERING"], rows));
    for disk in &info.disks {
        for (start, len) in &disk.differing {
            println!("disk {}: bytes {start}..{} differ", disk.index, start + len);
        }
    }
}
