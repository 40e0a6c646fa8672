use super::*;
use crate::agent::Charge;
use crate::session::manager::Sessions;
use crate::session::testing::*;
use crate::session::volume::lock;
use blocks::{ByteLen, ErrorKind, Extent, RequestClass, Result, Volume};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use store::testing::{CrashStorage, Random};
use store::{BranchKind, Store, StoreOptions};
use wire::TargetKnowledge;

fn cutover() -> FailbackOptions {
    FailbackOptions { cutover: true, ..FailbackOptions::onto(machine_id()) }
}

fn targets(world: &World) -> Vec<Arc<dyn Volume>> {
    world.machine.iter().map(|disk| Arc::clone(disk) as Arc<dyn Volume>).collect()
}

fn unknown() -> TargetKnowledge {
    TargetKnowledge::Unknown { reason: "a power cut".into() }
}

/// Everything that a finished failback promises.
fn assert_home(world: &World, sessions: &Sessions, id: &str, expected: &[Arc<dyn Volume>]) {
    assert_eq!(sessions.get(id).unwrap().state, "home");
    assert_eq!(sessions.session_in_charge(machine_id()), None);
    for (disk, expected) in expected.iter().enumerate() {
        assert_equal(&*world.machine[disk], &**expected, "machine and session");
        let main = world.unit.disk(world.unit.main_branch(), index(disk)).unwrap();
        assert_equal(&*main, &**expected, "main branch and session");
    }
}

/// A copy of a volume as it is now.
fn copy_of(volume: &dyn Volume) -> Arc<dyn Volume> {
    let copy = Arc::new(SparseVolume::new(volume.len()));
    store::copy_volume(volume, &*copy, &|_, _| true).unwrap();
    copy
}

#[test]
fn a_known_disk_gets_and_hashes_only_what_changed_on_64_gib() {
    let mut world = World::new(&[64 << 30], 1);
    let mut random = Random::new(2);
    // After the checkpoint the machine wrote on: some arrived, some did not.
    (0..50).for_each(|_| world.replicate(0, &mut random));
    let changed: Vec<Extent> = (0..20).map(|_| world.write_unsent(0, &mut random)).collect();
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let volume = sessions.volume(&session.session, None).unwrap();
    guest_writes(&*volume, 500, &mut random);
    let expected = copy_of(&*volume);
    let unsent = copy_of(&*world.machine[0]);

    let (link, played) = agent(targets(&world), vec![world.known(0, changed)], Fault::None);
    let info = sessions.failback(&session.session, || Ok(link), &cutover(), &|_| true).unwrap();
    let done = played.join().unwrap();
    assert_home(&world, &sessions, &session.session, &[expected]);
    let disk = &info.disks[0];
    assert!(disk.known && disk.changed_bytes > 0);
    let allowed = disk.changed_bytes + disk.changed_bytes / 10;
    for (what, bytes) in [("read", disk.read_bytes), ("sent", disk.sent_bytes), ("hashed", disk.hashed_bytes)]
    {
        assert!(bytes <= allowed, "{what}: {bytes} of {} changed", disk.changed_bytes);
    }
    assert_eq!(
        (done.written, done.zeroed, done.hashed),
        (disk.sent_bytes, disk.zeroed_bytes, disk.hashed_bytes)
    );
    assert_eq!(disk.verified_bytes, disk.changed_bytes, "every changed block was compared at the end");
    assert_eq!(done.finished, Some((world.unit.generation().0, info.checkpoint.unwrap())));
    let main = world.unit.disk(world.unit.main_branch(), index(0)).unwrap();
    assert_eq!(done.seqs, [(index(0), main.last_seq())]);

    // What the machine wrote and never sent can still be looked at.
    let kept = world.unit.checkpoints().into_iter().find(|kept| kept.name.starts_with("unsent-")).unwrap();
    let branch = world.unit.branches().into_iter().find(|branch| branch.id == kept.branch).unwrap();
    assert_eq!(branch.kind, BranchKind::Superseded);
    assert_equal(&world.unit.view(kept.id, index(0)).unwrap(), &*unsent, "the kept writes");
    // And protection goes on from there.
    world.seqs[0] = main.last_seq();
    world.replicate(0, &mut random);
    assert_equal(&*main, &*world.machine[0], "replication goes on");
}

#[test]
fn an_unknown_disk_is_hashed_and_gets_what_differs() {
    let mut world = World::new(&[48 << 20, (8 << 20) + 512], 3);
    let mut random = Random::new(4);
    (0..2).for_each(|disk| drop((0..10).map(|_| world.write_unsent(disk, &mut random)).collect::<Vec<_>>()));
    let before: Vec<_> = world.machine.iter().map(|disk| copy_of(&**disk)).collect();
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let mut expected = Vec::new();
    for disk in 0..2 {
        let volume = sessions.volume(&session.session, Some(index(disk))).unwrap();
        guest_writes(&*volume, 50, &mut random);
        expected.push(copy_of(&*volume));
    }
    let (link, played) = agent(targets(&world), vec![unknown(), unknown()], Fault::None);
    let info = sessions.failback(&session.session, || Ok(link), &cutover(), &|_| true).unwrap();
    drop(played.join().unwrap());
    assert_home(&world, &sessions, &session.session, &expected);
    for disk in &info.disks {
        assert!(!disk.known && disk.reason == "a power cut");
        assert!(disk.hashed_bytes >= disk.changed_bytes && disk.sent_bytes < disk.changed_bytes);
    }
    let kept = world.unit.checkpoints().into_iter().find(|kept| kept.name.starts_with("unsent-")).unwrap();
    for (disk, before) in before.iter().enumerate() {
        // Blocks that the session did not change are not overwritten, so they need not be kept; all others are.
        let view = world.unit.view(kept.id, index(disk)).unwrap();
        for extent in Extent::whole(before.len()).unwrap().split(ByteLen::new(64 << 10)) {
            let read = |volume: &dyn Volume| {
                let mut bytes = vec![0; extent.len().as_usize()];
                volume.read_at(extent.start(), &mut bytes, RequestClass::Background).unwrap();
                bytes
            };
            let old = read(&**before);
            assert!(old == read(&view) || old == read(&*expected[disk]), "disk {disk} {extent}");
        }
    }
}

#[test]
fn a_foreign_or_newer_target_counts_as_unknown() {
    let world = World::new(&[8 << 20], 5);
    for (store, acked) in [(foreign_store(), world.seqs[0]), (world.store.id(), blocks::Seq(1 << 40))] {
        let sessions = world.sessions();
        let session = sessions.recover(&world.unit, world.base, false).unwrap();
        let said = TargetKnowledge::Known { store, acked, changed: Vec::new() };
        let (link, played) = agent(targets(&world), vec![said], Fault::None);
        let info = sessions.failback(&session.session, || Ok(link), &rounds(), &|_| true).unwrap();
        assert_eq!((info.state.as_str(), info.disks[0].known), ("in-step", false));
        drop(sessions);
        assert!(played.join().unwrap().aborted, "the target is let go");
    }
}

fn rounds() -> FailbackOptions {
    FailbackOptions { cutover: false, ..cutover() }
}

#[test]
fn an_old_line_that_holds_nothing_is_dropped_and_one_with_a_write_or_a_checkpoint_is_kept() {
    for (writes, seals) in [(0, 0), (1, 0), (0, 1)] {
        let mut world = World::new(&[8 << 20, 1 << 20], 50);
        (0..writes).for_each(|_| world.replicate(1, &mut Random::new(51)));
        let base = world.base;
        (0..seals).for_each(|_| _ = world.seal("later"));
        let sessions = world.sessions();
        let session = sessions.recover(&world.unit, base, false).unwrap();
        guest_writes(&*sessions.volume(&session.session, Some(index(0))).unwrap(), 10, &mut Random::new(52));
        let known = vec![world.known(0, Vec::new()), world.known(1, Vec::new())];
        let (link, played) = agent(targets(&world), known, Fault::None);
        sessions.failback(&session.session, || Ok(link), &cutover(), &|_| true).unwrap();
        drop(played.join().unwrap());
        let superseded = |branch: &store::BranchInfo| branch.kind == BranchKind::Superseded;
        let kept = world.unit.branches().iter().any(superseded);
        assert_eq!(kept, writes + seals > 0, "{writes} writes, {seals} checkpoints");
        assert_eq!(world.unit.pins().is_empty(), !kept, "{:?}", world.unit.pins());
    }
}

#[test]
fn the_amount_that_is_kept_is_said_beforehand() {
    let world = World::new(&[8 << 20], 53);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    // A new, empty disk in the usual place: all that the session holds differs.
    let empty: Arc<dyn Volume> = Arc::new(SparseVolume::new(world.machine[0].len()));
    let (link, played) = agent(vec![empty], vec![unknown()], Fault::None);
    let told = Mutex::new(Vec::new());
    let report = |progress: crate::control::api::Progress| {
        lock(&told).push((progress.step, progress.done, progress.total));
        true
    };
    sessions.failback(&session.session, || Ok(link), &cutover(), &report).unwrap();
    drop(played.join().unwrap());
    let told = told.into_inner().unwrap();
    let first = told.iter().find(|(step, ..)| step.starts_with("keeping")).unwrap();
    let mib = format!("keeping {:.1} MiB that", first.2 as f64 / 1048576.0);
    assert!(first.0.starts_with(&mib) && first.1 == 0 && first.2 > 1 << 20, "{first:?}");
}

fn no_link() -> Result<crate::agent::RestoreLink> {
    Err(blocks::Error::new(ErrorKind::NotFound, "a failback that waits needs no other way to the agent"))
}

#[test]
fn two_calls_cost_no_more_than_one_on_64_gib() {
    let mut world = World::new(&[64 << 30], 40);
    let mut random = Random::new(41);
    (0..50).for_each(|_| world.replicate(0, &mut random));
    let changed: Vec<Extent> = (0..20).map(|_| world.write_unsent(0, &mut random)).collect();
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    guest_writes(&*volume, 500, &mut random);
    let (link, played) = agent(targets(&world), vec![world.known(0, changed)], Fault::None);
    let first = std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest_writes(&*volume, 20, &mut Random::new(42)));
        let first = sessions.failback(id, || Ok(link), &rounds(), &|_| true).unwrap();
        guest.join().unwrap();
        first
    });
    assert_eq!(first.state, "in-step");
    let shown = sessions.get(id).unwrap();
    assert_eq!(shown.state, "running", "the guest goes on");
    assert!(shown.detail.starts_with("in step with web1, "), "{shown:?}");
    // The same blocks again, and others.
    guest_writes(&*volume, 20, &mut Random::new(42));
    guest_writes(&*volume, 20, &mut random);
    let shown = sessions.parked_failback(machine_id()).unwrap();
    assert!(shown.ends_with(" MiB since") && !shown.contains(" 0.0 MiB"), "{shown}");
    let expected = copy_of(&*volume);

    let info = sessions.failback(id, no_link, &cutover(), &|_| true).unwrap();
    let done = played.join().unwrap();
    assert_home(&world, &sessions, id, &[expected]);
    assert_eq!(sessions.parked_failback(machine_id()), None);
    let (before, disk) = (&first.disks[0], &info.disks[0]);
    assert!(disk.known && disk.changed_bytes > before.changed_bytes && disk.sent_bytes > before.sent_bytes);
    let allowed = disk.changed_bytes + disk.changed_bytes / 10;
    for (what, bytes) in [("read", disk.read_bytes), ("sent", disk.sent_bytes), ("hashed", disk.hashed_bytes)]
    {
        assert!(bytes <= allowed, "{what}: {bytes} of {} changed", disk.changed_bytes);
    }
    assert_eq!(
        (done.written, done.zeroed, done.hashed),
        (disk.sent_bytes, disk.zeroed_bytes, disk.hashed_bytes),
        "the counters are of both calls"
    );
    assert_eq!(disk.verified_bytes, disk.changed_bytes, "every changed block was compared at the end");
}

/// A failback that is in step, with what may end it, and what the guest wrote since.
struct InStep {
    world: World,
    sessions: Arc<Sessions>,
    id: String,
    played: std::thread::JoinHandle<Done>,
    killed: Arc<AtomicBool>,
    volume: Arc<dyn Volume>,
    expected: Arc<dyn Volume>,
}

fn in_step() -> InStep {
    let mut world = World::new(&[64 << 20], 6);
    let mut random = Random::new(7);
    let changed = vec![world.write_unsent(0, &mut random)];
    let sessions = world.sessions();
    let id = sessions.recover(&world.unit, world.base, false).unwrap().session;
    let volume = sessions.volume(&id, None).unwrap();
    guest_writes(&*volume, 100, &mut random);
    let killed = Arc::new(AtomicBool::new(false));
    let known = vec![world.known(0, changed)];
    let (link, played) = agent_until(targets(&world), known, Fault::None, Arc::clone(&killed));
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest_writes(&*volume, 300, &mut Random::new(8)));
        let info = sessions.failback(&id, || Ok(link), &rounds(), &|_| true).unwrap();
        assert_eq!(info.state, "in-step");
        guest.join().unwrap();
    });
    assert!(sessions.parked_failback(machine_id()).is_some());
    guest_writes(&*volume, 50, &mut random);
    let expected = copy_of(&*volume);
    InStep { world, sessions, id, played, killed, volume, expected }
}

#[test]
fn a_failback_that_waits_begins_anew_after_the_connection_was_lost() {
    let InStep { world, sessions, id, played, killed, expected, .. } = in_step();
    killed.store(true, Ordering::SeqCst);
    drop(played.join().unwrap());
    assert_eq!(sessions.parked_failback(machine_id()), None);
    assert_eq!(sessions.get(&id).unwrap().detail, "");
    // The tracker counts what the first attempt wrote as changed: it is compared, not sent again.
    let written = vec![Extent::whole(world.machine[0].len()).unwrap()];
    let (link, played) = agent(targets(&world), vec![world.known(0, written)], Fault::None);
    let info = sessions.failback(&id, || Ok(link), &cutover(), &|_| true).unwrap();
    drop(played.join().unwrap());
    assert!(info.disks[0].sent_bytes < 40 << 20, "{:?}", info.disks[0]);
    assert_home(&world, &sessions, &id, &[expected]);
    assert_eq!(world.unit.checkpoints().iter().filter(|kept| kept.name.starts_with("unsent-")).count(), 1);
}

#[test]
fn a_failback_that_waits_begins_anew_on_another_target() {
    let InStep { world, sessions, id, played, expected, .. } = in_step();
    let other: Arc<dyn Volume> = Arc::new(SparseVolume::new(world.machine[0].len()));
    let (link, replaced) = agent(vec![Arc::clone(&other)], vec![unknown()], Fault::None);
    let options = FailbackOptions { devices: vec![(index(0), "/dev/y".into())], ..cutover() };
    let info = sessions.failback(&id, || Ok(link), &options, &|_| true).unwrap();
    assert!(played.join().unwrap().aborted, "the first target is let go");
    drop(replaced.join().unwrap());
    assert!(info.state == "home" && !info.disks[0].known, "{info:?}");
    assert_equal(&*other, &*expected, "the other target");
}

#[test]
fn a_failback_that_waits_begins_anew_after_a_restart_and_ends_with_its_session() {
    let InStep { world, sessions, id, played, volume, expected, .. } = in_step();
    drop((sessions, volume));
    assert!(played.join().unwrap().aborted);
    let sessions = world.sessions();
    assert_eq!(sessions.get(&id).unwrap().detail, "");
    let (link, played) = agent(targets(&world), vec![unknown()], Fault::None);
    sessions.failback(&id, || Ok(link), &cutover(), &|_| true).unwrap();
    drop(played.join().unwrap());
    assert_home(&world, &sessions, &id, &[expected]);

    let InStep { world, sessions, id, played, .. } = in_step();
    sessions.stop(&id, false).unwrap();
    assert!(played.join().unwrap().aborted, "the target is let go");
    assert_eq!(sessions.get(&id).unwrap().state, "stopped");
    assert_eq!(sessions.session_in_charge(world.unit.machine()), None);
}

#[test]
fn a_lost_write_is_found_and_sent_again_and_a_liar_is_caught() {
    let world = World::new(&[16 << 20], 9);
    let mut random = Random::new(10);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    guest_writes(&*volume, 60, &mut random);
    let expected = copy_of(&*volume);

    let (link, played) = agent(targets(&world), vec![world.known(0, Vec::new())], Fault::LosesAll);
    let error = sessions.failback(id, || Ok(link), &cutover(), &|_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(played.join().unwrap().aborted);
    // The session serves as before.
    assert_eq!(sessions.get(id).unwrap().state, "running");
    volume.write_at(blocks::ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();
    expected.write_at(blocks::ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();

    let (link, played) = agent(targets(&world), vec![world.known(0, Vec::new())], Fault::LosesWrite(3));
    sessions.failback(id, || Ok(link), &cutover(), &|_| true).unwrap();
    drop(played.join().unwrap());
    assert_home(&world, &sessions, id, &[expected]);
}

#[test]
fn what_may_not_go_home_is_refused_and_nothing_changes() {
    let world = World::new(&[8 << 20], 11);
    let sessions = world.sessions();
    let drill = sessions.recover(&world.unit, world.base, true).unwrap();
    let real = sessions.recover(&world.unit, world.base, false).unwrap();
    let run = |id: &str, options: &FailbackOptions, fault| -> Result<_> {
        let (link, played) = agent(targets(&world), vec![world.known(0, Vec::new())], fault);
        let result = sessions.failback(id, || Ok(link), options, &|_| true);
        drop(played.join().unwrap());
        result
    };
    let kind = |result: Result<_>| result.map(|_: crate::control::api::FailbackInfo| ()).unwrap_err().kind();
    assert_eq!(kind(run(&drill.session, &cutover(), Fault::None)), ErrorKind::Unsupported);
    let other = FailbackOptions { machine: "11111111111111111111111111111111".parse().unwrap(), ..cutover() };
    assert_eq!(kind(run(&real.session, &other, Fault::None)), ErrorKind::Unsupported);
    let no_disk = FailbackOptions { devices: vec![(index(5), "/dev/y".into())], ..cutover() };
    assert_eq!(kind(run(&real.session, &no_disk, Fault::None)), ErrorKind::NotFound);
    let refused = run(&real.session, &cutover(), Fault::Refuses).unwrap_err();
    assert!(refused.to_string().contains("/dev/x is mounted"), "{refused}");
    assert_eq!(sessions.get(&real.session).unwrap().state, "running");
    let cancelled = {
        let (link, played) = agent(targets(&world), vec![unknown()], Fault::None);
        let result = sessions.failback(&real.session, || Ok(link), &cutover(), &|_| false);
        drop(played.join().unwrap());
        result
    };
    assert_eq!(kind(cancelled), ErrorKind::Cancelled);
    assert_eq!(sessions.get(&real.session).unwrap().state, "running");
}

/// Has the connection end after one order more each time, in one call or in several, until a failback gets through.
fn cut_after_every_order(calls: usize) {
    for after in 1..60 {
        let mut world = World::new(&[8 << 20], 12);
        let mut random = Random::new(13);
        let changed = vec![world.write_unsent(0, &mut random)];
        let sessions = world.sessions();
        let session = sessions.recover(&world.unit, world.base, false).unwrap();
        let id = session.session.as_str();
        let volume = sessions.volume(id, None).unwrap();
        guest_writes(&*volume, 8, &mut random);
        let (link, played) = agent(targets(&world), vec![world.known(0, changed)], Fault::GoneAfter(after));
        let mut link = Some(link);
        let mut open = || link.take().ok_or_else(|| no_link().unwrap_err());
        let mut result = Ok(());
        for call in 1..=calls {
            let options = if call == calls { cutover() } else { rounds() };
            let called = sessions.failback(id, &mut open, &options, &|_| true);
            result = result.and(called.map(drop));
            if result.is_err() {
                break;
            }
            if call < calls {
                guest_writes(&*volume, 8, &mut random);
            }
        }
        let expected = copy_of(&*volume);
        drop((volume, link));
        drop(played.join().unwrap());
        if result.is_err() {
            assert_eq!(
                sessions.session_in_charge(machine_id()).map(|id| id.to_string()).as_deref(),
                Some(id)
            );
            let (link, played) = agent(targets(&world), vec![unknown()], Fault::None);
            sessions.failback(id, || Ok(link), &cutover(), &|_| true).unwrap();
            drop(played.join().unwrap());
        }
        assert_home(&world, &sessions, id, &[expected]);
        if result.is_ok() {
            return;
        }
    }
    panic!("60 orders were not enough for a small failback");
}

#[test]
fn a_connection_that_ends_anywhere_leads_back_to_a_session_that_serves_or_is_finished_by_repeating() {
    cut_after_every_order(1);
}

#[test]
fn so_does_one_that_ends_anywhere_in_several_calls() {
    cut_after_every_order(3);
}

/// The step, the server's folder and the machine's disk.
type Cut = (&'static str, CrashStorage, Arc<dyn Volume>);

/// Runs a failback and takes what a power cut would leave at every step.
fn cuts_of_a_failback(fault: Fault, unsent: bool) -> (World, String, Arc<dyn Volume>, Vec<Cut>) {
    let mut world = World::new(&[8 << 20], 14);
    let mut random = Random::new(15);
    let changed = Vec::from_iter(unsent.then(|| world.write_unsent(0, &mut random)));
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let (storage, seen, machine) = (world.storage.clone(), Arc::clone(&cuts), Arc::clone(&world.machine[0]));
    let hook = move |step: &'static str| {
        if step.starts_with("failback") {
            let seed = lock(&seen).len() as u64;
            lock(&seen).push((step, storage.crash(seed), copy_of(&*machine)));
        }
    };
    let mut context = world.context(Some(Arc::new(hook)));
    if fault == Fault::SilentAtFinish {
        context.answer_timeout = std::time::Duration::from_millis(500);
    }
    let sessions = Sessions::open_in(Arc::clone(&world.store), context).unwrap();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let volume = sessions.volume(&session.session, None).unwrap();
    guest_writes(&*volume, 60, &mut random);
    volume.flush().unwrap();
    let expected = copy_of(&*volume);
    let (link, played) = agent(targets(&world), vec![world.known(0, changed)], fault);
    let result = sessions.failback(&session.session, || Ok(link), &cutover(), &|_| true);
    assert_eq!(result.is_ok(), fault == Fault::None);
    drop(played.join().unwrap());
    drop(sessions);
    let cuts = std::mem::take(&mut *lock(&cuts));
    (world, session.session, expected, cuts)
}

#[test]
fn after_a_power_cut_at_every_step_repeating_the_command_brings_the_session_home() {
    repeat_after_every_cut(true, "unsent-kept");
}

#[test]
fn nor_does_a_power_cut_matter_where_the_old_line_holds_nothing() {
    repeat_after_every_cut(false, "superseded-dropped");
}

fn repeat_after_every_cut(unsent: bool, special: &str) {
    let (_, id, expected, cuts) = cuts_of_a_failback(Fault::None, unsent);
    let steps: Vec<_> = cuts.iter().map(|(step, ..)| *step).collect();
    for step in
        ["begun", special, "writing", "rounds-sent", "withdrawn", "sent", "verified", "sealed", "adopting"]
            .iter()
            .chain(&["adopted", "finishing", "finish-sent", "home"])
    {
        assert!(steps.contains(&format!("failback.{step}").as_str()), "{step} is not among {steps:?}");
    }
    for (step, storage, machine) in cuts {
        let store = Arc::new(Store::open(Arc::new(storage.clone()), StoreOptions::default()).unwrap());
        let unit = store.unit(machine_id()).unwrap();
        let sessions = Sessions::open_in(Arc::clone(&store), context_over(&storage, None, "boot-2")).unwrap();
        let state = sessions.get(&id).unwrap().state;
        let adopted = matches!(
            step,
            "failback.adopted"
                | "failback.finishing"
                | "failback.finish-sent"
                | "failback.superseded-dropped"
        );
        match step {
            "failback.home" => assert_eq!(state, "home", "{step}"),
            _ if adopted => assert_eq!(state, "failing-back", "{step}"),
            // The guest had flushed, but the mark of unflushed writes goes only after a while.
            _ => assert_eq!(state, "held", "{step}"),
        }
        if state == "held" {
            assert_eq!(sessions.guest_restarted(&id).unwrap().state, "running");
            assert_equal(&*sessions.volume(&id, None).unwrap(), &*expected, step);
        }
        if state != "home" {
            assert!(sessions.session_in_charge(machine_id()).is_some(), "{step}");
            // A machine that knows its disk is believed in these states too.
            let whole = vec![Extent::whole(machine.len()).unwrap()];
            let said = match adopted {
                true => TargetKnowledge::Known { store: store.id(), acked: blocks::Seq(1), changed: whole },
                false => unknown(),
            };
            let (link, played) = agent(vec![Arc::clone(&machine)], vec![said], Fault::None);
            let info = sessions.failback(&id, || Ok(link), &cutover(), &|_| true).unwrap();
            assert_eq!((info.state.as_str(), info.disks[0].known), ("home", adopted), "{step}");
            assert!(played.join().unwrap().finished.is_some());
        }
        assert_equal(&*machine, &*expected, step);
        assert_equal(&*unit.disk(unit.main_branch(), index(0)).unwrap(), &*expected, step);
        assert_eq!(sessions.session_in_charge(machine_id()), None);
        assert_eq!(unit.generation().0, 3, "{step}: recover and failback each took one");
        // Before the adoption the machine's own disk counts as unknown, so what differs there is kept.
        let kept = unit.branches().iter().any(|branch| branch.kind == BranchKind::Superseded);
        assert!(
            !adopted || kept == unsent,
            "{step}: what holds something is kept, what holds nothing is not"
        );
    }
}

#[test]
fn a_machine_that_does_not_confirm_is_asked_again() {
    let (world, id, expected, _) = cuts_of_a_failback(Fault::SilentAtFinish, true);
    let sessions = world.sessions();
    assert_eq!(sessions.get(&id).unwrap().state, "failing-back");
    assert_eq!(sessions.stop(&id, true).unwrap_err().kind(), ErrorKind::Busy, "there is no way back");
    let (link, played) = agent(targets(&world), vec![world.known(0, Vec::new())], Fault::None);
    sessions.failback(&id, || Ok(link), &cutover(), &|_| true).unwrap();
    drop(played.join().unwrap());
    assert_home(&world, &sessions, &id, &[expected]);
}
