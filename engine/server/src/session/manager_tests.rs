use super::*;
use crate::session::context::StepHook;
use crate::session::testing::*;
use blocks::CheckpointId;
use blocks::{ByteLen, ByteOffset, Extent, RequestClass};
use nbd_server::ListenAddress;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use store::testing::{CrashStorage, Random};
use store::{ImageFormat, StoreOptions};

fn copy_of(volume: &dyn Volume) -> Arc<dyn Volume> {
    let copy = Arc::new(SparseVolume::new(volume.len()));
    store::copy_volume(volume, &*copy, &|_, _| true).unwrap();
    copy
}

fn to(path: &Path) -> MigrateOptions {
    MigrateOptions { to: Some(path.display().to_string()), ..MigrateOptions::default() }
}

fn open_file(path: &Path, format: ImageFormat) -> Arc<dyn Volume> {
    let file = store::HostFile::open(path, blocks::OpenMode::Read).unwrap();
    store::open_image(file, Some(format), false).unwrap()
}

fn reopen(storage: &CrashStorage, boot: &str) -> (Arc<Store>, Arc<Sessions>) {
    let store = Arc::new(Store::open(Arc::new(storage.clone()), StoreOptions::default()).unwrap());
    let sessions = Sessions::open_in(Arc::clone(&store), context_over(storage, None, boot)).unwrap();
    (store, sessions)
}

#[test]
fn recover_serves_and_fences_and_a_drill_does_not_fence() {
    let mut world = World::new(&[8 << 20], 1);
    let sessions = world.sessions();
    let before = world.unit.generation();
    let drill = sessions.recover(&world.unit, world.base, true).unwrap();
    assert_eq!(world.unit.generation(), before, "a drill leaves the machine in charge");
    assert_eq!(sessions.session_in_charge(machine_id()), None);
    // Replication goes on under a drill, and the drill does not see it.
    let base = copy_of(&*world.machine[0]);
    (0..20).for_each(|_| world.replicate(0, &mut Random::new(2)));
    assert_equal(&*sessions.volume(&drill.session, None).unwrap(), &*base, "the drill");

    let real = sessions.recover(&world.unit, world.base, false).unwrap();
    assert_eq!(world.unit.generation(), before.next());
    assert_eq!(sessions.session_in_charge(machine_id()).unwrap().to_string(), real.session);
    let name = format!("web1-{}-disk0", &real.session[..8]);
    assert_eq!(real.disks[0].uris, [format!("nbd+unix:///{name}?socket=/run/x.sock")]);
    assert!(sessions.context.exports.list().iter().any(|export| export.name == name));
    // Repeating the command finds the same session; another checkpoint would be a second primary.
    assert_eq!(sessions.recover(&world.unit, world.base, false).unwrap().session, real.session);
    let later = world.seal("later");
    assert_eq!(sessions.recover(&world.unit, later, false).unwrap_err().kind(), ErrorKind::Busy);
    let missing = sessions.recover(&world.unit, CheckpointId(99), false).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(sessions.list().unwrap().len(), 2);
    assert_eq!(sessions.get(&real.session[..6]).unwrap().session, real.session);
    assert!(sessions.get("").is_err());
    assert_eq!(sessions.get("zz").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_restart_serves_the_same_exports_with_every_write() {
    let world = World::new(&[8 << 20, 4 << 20], 3);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let volume = sessions.volume(&session.session, Some(index(1))).unwrap();
    guest_writes(&*volume, 100, &mut Random::new(4));
    let expected = copy_of(&*volume);
    drop(volume);
    drop(sessions);
    let World { storage, store, unit, .. } = world;
    drop((store, unit));
    // The process ends and comes back on the same boot: nothing that was written is lost.
    let (_store, sessions) = reopen(&storage, "boot-1");
    let again = sessions.get(&session.session).unwrap();
    assert_eq!((again.state.as_str(), &again.disks[1].uris), ("running", &session.disks[1].uris));
    assert_equal(
        &*sessions.volume(&session.session, Some(index(1))).unwrap(),
        &*expected,
        "after the restart",
    );
    assert_eq!(sessions.session_in_charge(machine_id()).unwrap().to_string(), session.session);
}

#[test]
fn unflushed_writes_and_a_new_boot_hold_the_session_until_the_guest_was_restarted() {
    let world = World::new(&[8 << 20], 5);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let volume = sessions.volume(&session.session, None).unwrap();
    volume.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();
    let dirty = world.storage.crash(1);
    volume.flush().unwrap();
    sessions.settle_marks(Duration::ZERO);
    let clean = world.storage.crash(2);

    let (_store, held) = reopen(&dirty, "boot-2");
    let info = held.get(&session.session).unwrap();
    assert_eq!(info.state, "held", "{}", info.detail);
    assert!(held.context.exports.list().is_empty(), "nothing is served");
    assert_eq!(held.checkpoint(&session.session, "x").unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(held.guest_restarted(&session.session).unwrap().state, "running");
    assert_eq!(held.context.exports.list().len(), 1);
    let (_store, same_boot) = reopen(&dirty.crash(3), "boot-2");
    assert_eq!(same_boot.get(&session.session).unwrap().state, "running", "said once is enough");

    let (_store, flushed) = reopen(&clean, "boot-2");
    assert_eq!(flushed.get(&session.session).unwrap().state, "running", "a flushed session has lost nothing");
    let mut first = [0; 512];
    flushed
        .volume(&session.session, None)
        .unwrap()
        .read_at(ByteOffset::ZERO, &mut first, RequestClass::Guest)
        .unwrap();
    assert_eq!(first, [1; 512]);
}

#[test]
fn a_power_cut_while_recovering_leaves_a_whole_session_or_none() {
    let world = World::new(&[4 << 20], 6);
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let (storage, seen) = (world.storage.clone(), Arc::clone(&cuts));
    let hook: StepHook = Arc::new(move |step| lock(&seen).push((step, storage.crash(1))));
    let sessions = Sessions::open_in(Arc::clone(&world.store), world.context(Some(hook))).unwrap();
    sessions.recover(&world.unit, world.base, false).unwrap();
    drop(sessions);
    let cuts = std::mem::take(&mut *lock(&cuts));
    assert_eq!(cuts.len(), 3, "{:?}", cuts.iter().map(|(step, _)| *step).collect::<Vec<_>>());
    for (step, storage) in cuts {
        let (store, sessions) = reopen(&storage, "boot-2");
        let unit = store.unit(machine_id()).unwrap();
        let begun = step != "recover.forked";
        assert_eq!(sessions.list().unwrap().len(), usize::from(begun), "{step}");
        assert_eq!(unit.branches().len(), 1 + usize::from(begun), "{step}: no branch without a session");
        assert_eq!(unit.generation().0, 1 + u64::from(begun), "{step}: whoever serves has fenced");
        let session = sessions.recover(&unit, world.base, false).unwrap();
        assert_equal(&*sessions.volume(&session.session, None).unwrap(), &*world.machine[0], step);
        assert_eq!(unit.generation().0, 2, "{step}");
    }
}

#[test]
fn stopping_keeps_the_branch_unless_it_is_discarded() {
    let world = World::new(&[8 << 20], 7);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let volume = sessions.volume(&session.session, None).unwrap();
    guest_writes(&*volume, 20, &mut Random::new(8));
    let expected = copy_of(&*volume);
    let checkpoint = sessions.checkpoint(&session.session, "before the end").unwrap();
    assert_eq!((checkpoint.consistency.as_str(), checkpoint.name.as_str()), ("crash", "before the end"));
    sessions.stop(&session.session, false).unwrap();
    let late = volume.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest);
    assert_eq!(late.unwrap_err().kind(), ErrorKind::ReadOnly);
    drop(volume);
    assert_eq!(sessions.get(&session.session).unwrap().state, "stopped");
    assert_eq!(sessions.session_in_charge(machine_id()), None, "the machine may be the source again");
    assert!(sessions.context.exports.list().is_empty());
    let view = world.unit.view(CheckpointId(checkpoint.checkpoint), index(0)).unwrap();
    assert_equal(&view, &*expected, "the kept branch");
    drop(view);
    sessions.stop(&session.session, true).unwrap();
    assert!(sessions.list().unwrap().is_empty());
    assert_eq!(world.unit.branches().len(), 1);
    assert!(world.unit.notes().is_empty());
}

/// A guest with three threads that write while `work` is done; at the end the disk must hold what they wrote.
fn busy_guest<T>(volume: &Arc<dyn Volume>, work: impl FnOnce() -> T) -> T {
    let model = copy_of(&**volume);
    let stop = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (stop, model) = (&stop, &model);
            scope.spawn(move || {
                let mut random = Random::new(100 + thread);
                // Each has its own third of the disk, so that the order of writes to each sector is known.
                let third = ByteLen::new(volume.len().get() / 3 / 512 * 512);
                while !stop.load(Ordering::SeqCst) {
                    let (extent, data) = some_write(third, &mut random);
                    let start = ByteOffset::new(extent.start().get() + thread * third.get());
                    if random.chance(15) {
                        let extent = Extent::new(start, extent.len()).unwrap();
                        volume.discard(extent, false, RequestClass::Guest).unwrap();
                        model.discard(extent, false, RequestClass::Guest).unwrap();
                    } else {
                        volume.write_at(start, &data, random.chance(5), RequestClass::Guest).unwrap();
                        model.write_at(start, &data, false, RequestClass::Guest).unwrap();
                    }
                    if random.chance(3) {
                        volume.flush().unwrap();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    });
    assert_equal(&**volume, &*model, "what the guest wrote");
    result
}

#[test]
fn a_disk_moves_to_a_file_under_its_guest_and_serves_on_after_a_restart() {
    for format in ImageFormat::ALL {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("disk.{format}"));
        let world = World::new(&[(24 << 20) + 512], 9);
        // Guests get time to write between any two steps.
        let hook: StepHook = Arc::new(|_| std::thread::sleep(Duration::from_millis(20)));
        let sessions = Sessions::open_in(Arc::clone(&world.store), world.context(Some(hook))).unwrap();
        let session = sessions.recover(&world.unit, world.base, false).unwrap();
        let id = session.session.as_str();
        let volume = sessions.volume(id, None).unwrap();
        let options = MigrateOptions { format: Some(format.to_string()), pivot: true, ..to(&path) };
        busy_guest(&volume, || {
            sessions.migrate(id, &options).unwrap();
            let info = sessions.wait_migration(id, None, true, &|_| true).unwrap();
            assert_eq!(info.state, "pivoted");
            std::thread::sleep(Duration::from_millis(100));
        });
        volume.flush().unwrap();
        assert_equal(&*open_file(&path, format), &*volume, "target and disk");
        let branch = world.unit.disk(world.unit.branches().last().unwrap().id, index(0)).unwrap();
        assert!(
            first_difference(&*branch, &*volume).is_some(),
            "the guest wrote after the pivot, and not into the branch"
        );
        assert_eq!(sessions.migrate(id, &options).unwrap().state, "pivoted", "repeating is harmless");
        let elsewhere = to(&dir.path().join("other.raw"));
        assert_eq!(sessions.migrate(id, &elsewhere).unwrap_err().kind(), ErrorKind::Unsupported);
        let expected = copy_of(&*volume);
        drop((volume, branch, sessions));

        let sessions = world.sessions();
        let volume = sessions.volume(id, None).unwrap();
        assert_equal(&*volume, &*expected, "after a restart");
        guest_writes(&*volume, 20, &mut Random::new(10));
        let checkpoint = sessions.checkpoint(id, "pivoted").unwrap();
        let view = world.unit.view(CheckpointId(checkpoint.checkpoint), index(0)).unwrap();
        assert_equal(&view, &*volume, "a checkpoint of a pivoted session");
        let differing = world.unit.difference(
            store::Point::Checkpoint(CheckpointId(checkpoint.checkpoint)),
            store::Point::Checkpoint(world.base),
            index(0),
        );
        let map = sessions.find(id).unwrap().disks[0].map().unwrap();
        let marked = map.blocks().extents(volume.len());
        for (extent, ()) in differing.unwrap().iter() {
            assert!(marked.contains(extent), "{extent} differs from the base and is not marked");
        }
    }
}

#[test]
fn a_pivoted_session_goes_home_by_its_differences() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(&[1 << 30], 11);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    let mut random = Random::new(12);
    guest_writes(&*volume, 30, &mut random);
    let options = MigrateOptions { pivot: true, ..to(&dir.path().join("disk.raw")) };
    sessions.migrate(id, &options).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    guest_writes(&*volume, 30, &mut random);
    let expected = copy_of(&*volume);
    drop((volume, sessions));
    // The map has to come from the medium.
    let sessions = world.sessions();
    let known = vec![world.known(0, Vec::new())];
    let target = Arc::clone(&world.machine[0]) as Arc<dyn Volume>;
    let (link, played) = agent(vec![target], known, Fault::None);
    let options = FailbackOptions { cutover: true, ..FailbackOptions::onto(machine_id()) };
    let info = sessions.failback(id, || Ok(link), &options, &|_| true).unwrap();
    drop(played.join().unwrap());
    let disk = &info.disks[0];
    let allowed = disk.changed_bytes + disk.changed_bytes / 10;
    assert!(disk.known && disk.changed_bytes < 64 << 20, "{disk:?}");
    assert!(
        disk.read_bytes <= allowed && disk.sent_bytes <= allowed && disk.hashed_bytes <= allowed,
        "{disk:?}"
    );
    assert_equal(&*world.machine[0], &*expected, "the machine");
    let main = world.unit.disk(world.unit.main_branch(), index(0)).unwrap();
    assert_equal(&*main, &*expected, "the main branch holds what was written after the pivot");
}

#[test]
fn a_disk_that_is_pivoted_while_its_failback_waits_goes_home_whole() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(&[1 << 30], 31);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    let mut random = Random::new(32);
    guest_writes(&*volume, 30, &mut random);
    let target = Arc::clone(&world.machine[0]) as Arc<dyn Volume>;
    let (link, played) = agent(vec![target], vec![world.known(0, Vec::new())], Fault::None);
    sessions.failback(id, || Ok(link), &FailbackOptions::onto(machine_id()), &|_| true).unwrap();
    guest_writes(&*volume, 10, &mut random);
    let options = MigrateOptions { pivot: true, ..to(&dir.path().join("disk.raw")) };
    sessions.migrate(id, &options).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    guest_writes(&*volume, 30, &mut random);
    let expected = copy_of(&*volume);
    let options = FailbackOptions { cutover: true, ..FailbackOptions::onto(machine_id()) };
    let no_link = || panic!("the failback that waits is gone on with");
    sessions.failback(id, no_link, &options, &|_| true).unwrap();
    drop(played.join().unwrap());
    assert_equal(&*world.machine[0], &*expected, "the machine");
    let main = world.unit.disk(world.unit.main_branch(), index(0)).unwrap();
    assert_equal(&*main, &*expected, "the main branch holds what was written after the pivot");
}

/// A folder's files as they are now, beside it.
fn copy_file(from: &Path, to: &Path) {
    if from.exists() {
        std::fs::copy(from, to).unwrap();
    }
}

#[test]
fn a_migration_resumes_after_a_power_cut_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let world = World::new(&[12 << 20], 13);
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let (storage, seen, folder) = (world.storage.clone(), Arc::clone(&cuts), dir.path().to_owned());
    let hook: StepHook = Arc::new(move |step| {
        if step.starts_with("migrate") || step.starts_with("pivot") {
            let copy = folder.join(format!("cut-{}", lock(&seen).len()));
            copy_file(&folder.join("disk.raw"), &copy);
            let seed = lock(&seen).len() as u64;
            lock(&seen).push((step, storage.crash(seed), copy));
        }
    });
    let sessions = Sessions::open_in(Arc::clone(&world.store), world.context(Some(hook))).unwrap();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    guest_writes(&*volume, 50, &mut Random::new(14));
    volume.flush().unwrap();
    let expected = copy_of(&*volume);
    sessions.migrate(id, &to(&path)).unwrap();
    sessions.wait_migration(id, None, false, &|_| true).unwrap();
    let pivot = MigrateOptions { pivot: true, ..MigrateOptions::default() };
    sessions.migrate(id, &pivot).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    drop((volume, sessions));
    let cuts = std::mem::take(&mut *lock(&cuts));
    let steps: Vec<_> = cuts.iter().map(|(step, ..)| *step).collect();
    for step in [
        "migrate.recorded",
        "migrate.marked",
        "migrate.in-step",
        "pivot.map-written",
        "pivot.copied",
        "pivot.recorded",
    ] {
        assert!(steps.contains(&step), "{step} is not among {steps:?}");
    }
    for (step, storage, file) in cuts {
        let _ = std::fs::remove_file(&path);
        copy_file(&file, &path);
        let (_store, sessions) = reopen(&storage, "boot-2");
        if sessions.get(id).unwrap().state == "held" {
            sessions.guest_restarted(id).unwrap();
        }
        let volume = sessions.volume(id, None).unwrap();
        assert_equal(&*volume, &*expected, step);
        guest_writes(&*volume, 20, &mut Random::new(15));
        sessions.migrate(id, &MigrateOptions { pivot: true, ..to(&path) }).unwrap();
        sessions.wait_migration(id, None, true, &|_| true).unwrap();
        guest_writes(&*volume, 20, &mut Random::new(16));
        volume.flush().unwrap();
        assert_equal(&*open_file(&path, ImageFormat::Raw), &*volume, step);
    }
}

/// The step, the server's folder, and what the target held.
type MigrationCut = (&'static str, CrashStorage, PathBuf);

/// At each cut the target is what it was, the journal may have lost what was not flushed; the pivot must agree with it.
#[test]
fn a_busy_guests_migration_resumes_after_a_power_cut_at_every_mark_and_round() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let world = World::new(&[12 << 20], 21);
    let cuts: Arc<Mutex<Vec<MigrationCut>>> = Arc::default();
    let (storage, seen, folder) = (world.storage.clone(), Arc::clone(&cuts), dir.path().to_owned());
    let hook: StepHook = Arc::new(move |step| {
        if step.starts_with("migrate.") {
            let copy = folder.join(format!("cut-{}", lock(&seen).len()));
            let seed = lock(&seen).len() as u64;
            // The journal first: what the target got before its copy must be found through the journal.
            let crashed = storage.crash(seed);
            copy_file(&folder.join("disk.raw"), &copy);
            lock(&seen).push((step, crashed, copy));
        }
    });
    let mut context = world.context(Some(hook));
    context.mark_bytes = ByteLen::new(1 << 20);
    let sessions = Sessions::open_in(Arc::clone(&world.store), context).unwrap();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    busy_guest(&volume, || {
        sessions.migrate(id, &MigrateOptions { rate: Some(20 << 20), ..to(&path) }).unwrap();
        sessions.wait_migration(id, None, false, &|_| true).unwrap();
        let counted = |name| lock(&cuts).iter().filter(|(step, ..)| *step == name).count();
        let until = Instant::now() + Duration::from_secs(60);
        while counted("migrate.marked") <= 5 || counted("migrate.round-copied") <= 2 {
            assert!(Instant::now() < until, "too few marks and rounds");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    drop((volume, sessions));
    let cuts = std::mem::take(&mut *lock(&cuts));
    for (cut, (step, storage, file)) in cuts.into_iter().enumerate() {
        let _ = std::fs::remove_file(&path);
        copy_file(&file, &path);
        let (_store, sessions) = reopen(&storage, "boot-2");
        if sessions.get(id).unwrap().state == "held" {
            sessions.guest_restarted(id).unwrap();
        }
        sessions.migrate(id, &MigrateOptions { pivot: true, ..to(&path) }).unwrap();
        let expected = copy_of(&*world_branch(&sessions, id));
        sessions.wait_migration(id, None, true, &|_| true).unwrap();
        let volume = sessions.volume(id, None).unwrap();
        assert_equal(&*volume, &*expected, &format!("cut {cut} at {step}"));
    }
}

fn world_branch(sessions: &Sessions, id: &str) -> Arc<store::BranchDisk> {
    Arc::clone(&sessions.find(id).unwrap().disks[0].branch)
}

#[test]
fn the_copy_never_keeps_a_write_that_the_journal_lost_with_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let world = World::new(&[12 << 20], 24);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    sessions.migrate(id, &to(&path)).unwrap();
    sessions.wait_migration(id, None, false, &|_| true).unwrap();
    // Not flushed: a power cut may take it from the journal, while the target has it.
    volume.write_at(ByteOffset::new(5 << 20), &[0xab; 4096], false, RequestClass::Guest).unwrap();
    let in_target = || std::fs::read(&path).unwrap()[5 << 20] == 0xab;
    let begun = Instant::now();
    while !in_target() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the copy keeps in step");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::copy(&path, dir.path().join("with-the-write")).unwrap();
    let cuts: Vec<_> = (0..12).map(|seed| world.storage.crash(seed)).collect();
    drop((volume, sessions));
    for (seed, storage) in cuts.into_iter().enumerate() {
        std::fs::copy(dir.path().join("with-the-write"), &path).unwrap();
        let (_store, sessions) = reopen(&storage, "boot-2");
        let expected = copy_of(&*world_branch(&sessions, id));
        sessions.guest_restarted(id).unwrap();
        sessions.migrate(id, &MigrateOptions { pivot: true, ..MigrateOptions::default() }).unwrap();
        sessions.wait_migration(id, None, true, &|_| true).unwrap();
        assert_equal(&*sessions.volume(id, None).unwrap(), &*expected, &format!("seed {seed}"));
    }
}

#[test]
fn what_changed_since_the_mark_is_copied_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let world = World::new(&[12 << 20], 22);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    sessions.migrate(id, &to(&path)).unwrap();
    sessions.wait_migration(id, None, false, &|_| true).unwrap();
    std::fs::copy(&path, dir.path().join("at-the-mark")).unwrap();
    let volume = sessions.volume(id, None).unwrap();
    guest_writes(&*volume, 30, &mut Random::new(23));
    let expected = copy_of(&*volume);
    drop((volume, sessions));
    std::fs::copy(dir.path().join("at-the-mark"), &path).unwrap();
    let sessions = world.sessions();
    sessions.migrate(id, &MigrateOptions { pivot: true, ..MigrateOptions::default() }).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    assert_equal(&*sessions.volume(id, None).unwrap(), &*expected, "the copy");
}

#[test]
fn a_failing_target_fails_the_migration_and_nothing_else() {
    let world = World::new(&[16 << 20], 17);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let volume = sessions.volume(id, None).unwrap();
    guest_writes(&*volume, 50, &mut Random::new(18));
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).status().unwrap();
    assert!(mounted.success(), "a tmpfs of 1 MiB");
    let guard = Unmount(small.clone());
    let full = small.join("disk.raw");
    busy_guest(&volume, || {
        sessions.migrate(id, &MigrateOptions { pivot: true, ..to(&full) }).unwrap();
        let error = sessions.wait_migration(id, None, true, &|_| true).unwrap_err();
        assert!(error.to_string().contains("disk.raw"), "{error}");
    });
    let info = sessions.get(id).unwrap();
    assert_eq!(info.state, "running");
    assert_eq!(info.disks[0].migration.as_ref().unwrap().state, "failed");
    drop(guard);
    // Another target, and it works; refused ones change nothing.
    std::fs::write(dir.path().join("precious"), "precious").unwrap();
    let refused = sessions.migrate(id, &to(&dir.path().join("precious"))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(sessions.get(id).unwrap().disks[0].migration.as_ref().unwrap().state, "failed");
    let good = dir.path().join("good.raw");
    sessions.migrate(id, &MigrateOptions { pivot: true, ..to(&good) }).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    assert_equal(&*open_file(&good, ImageFormat::Raw), &*volume, "the good target");
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_with_old_data_takes_the_disk_and_a_small_or_mounted_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let loop_device = |name: &str, bytes: u64| {
        let file = dir.path().join(name);
        std::fs::write(&file, vec![0xee; bytes as usize]).unwrap();
        let made = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        LoopDevice(String::from_utf8(made.stdout).unwrap().trim().to_owned())
    };
    let world = World::new(&[8 << 20], 19);
    let sessions = world.sessions();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let small = loop_device("small", 4 << 20);
    let error = sessions.migrate(id, &to(Path::new(&small.0))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let mounted = loop_device("mounted", 16 << 20);
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&mounted.0).status().unwrap();
    assert!(made.success());
    let at = dir.path().join("at");
    std::fs::create_dir(&at).unwrap();
    assert!(Command::new("mount").arg(&mounted.0).arg(&at).status().unwrap().success());
    let unmount = Unmount(at);
    let error = sessions.migrate(id, &to(Path::new(&mounted.0))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(unmount);
    assert!(sessions.get(id).unwrap().disks[0].migration.is_none(), "nothing was recorded");

    let good = loop_device("good", 16 << 20);
    let volume = sessions.volume(id, None).unwrap();
    busy_guest(&volume, || {
        sessions.migrate(id, &MigrateOptions { pivot: true, ..to(Path::new(&good.0)) }).unwrap();
        sessions.wait_migration(id, None, true, &|_| true).unwrap();
    });
    volume.flush().unwrap();
    let expected = copy_of(&*volume);
    drop((volume, sessions));
    let device = std::fs::read(&good.0).unwrap();
    let extent = Extent::whole(expected.len()).unwrap();
    let mut bytes = vec![0; extent.len().as_usize()];
    expected.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Background).unwrap();
    assert!(device[..bytes.len()] == bytes, "the device holds the disk");
    assert!(device[bytes.len()..].iter().all(|byte| *byte == 0xee), "and nothing past its end was touched");
}

struct LoopDevice(String);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_qemu_client_stays_connected_over_a_pivot_to_an_nbd_export() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let listener = nbd_server::Listener::bind(&ListenAddress::Unix(socket.clone())).unwrap();
    let world = World::new(&[32 << 20], 20);
    let mut context = world.context(None);
    context.listeners = vec![listener.address().clone()];
    let exports = context.exports.clone();
    let production = Arc::new(SparseVolume::new(ByteLen::new(40 << 20)));
    production.write_at(ByteOffset::new(20 << 20), &[0xee; 4096], false, RequestClass::Guest).unwrap();
    exports
        .insert("production", nbd_server::Export::new(Arc::clone(&production) as Arc<dyn Volume>))
        .unwrap();
    let server =
        nbd_server::NbdServer::start(vec![listener], exports, nbd_server::Limits::default()).unwrap();
    let sessions = Sessions::open_in(Arc::clone(&world.store), context).unwrap();
    let session = sessions.recover(&world.unit, world.base, false).unwrap();
    let id = session.session.as_str();
    let uri = session.disks[0].uris[0].clone();

    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", &uri])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = qemu.stdin.take().unwrap();
    use std::io::{BufRead, BufReader, Read, Write};
    writeln!(stdin, "write -P 0x11 1M 3M").unwrap();
    let mut stdout = BufReader::new(qemu.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("wrote 3145728/3145728") {
        assert!(stdout.read_line(&mut said).unwrap() > 0, "{said}");
    }
    let target = format!("nbd+unix:///production?socket={}", socket.display());
    let options = MigrateOptions { to: Some(target), pivot: true, ..MigrateOptions::default() };
    sessions.migrate(id, &options).unwrap();
    writeln!(stdin, "write -P 0x22 2M 1M").unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    assert_eq!(sessions.get(id).unwrap().disks[0].clients, 1, "the guest is still connected");
    writeln!(
        stdin,
        "write -P 0x33 5M 1M\nread -P 0x11 1M 1M\nread -P 0x22 2M 1M\nread -P 0x33 5M 1M\nflush\nquit"
    )
    .unwrap();
    drop(stdin);
    stdout.read_to_string(&mut said).unwrap();
    assert!(qemu.wait().unwrap().success() && !said.contains("fail") && !said.contains("rror"), "{said}");
    assert_eq!(said.matches("read 1048576/1048576").count(), 3, "{said}");

    let copy = dir.path().join("copy.raw");
    assert!(Command::new("nbdcopy").arg(&uri).arg(&copy).status().unwrap().success());
    let volume = sessions.volume(id, None).unwrap();
    assert_equal(&*open_file(&copy, ImageFormat::Raw), &*volume, "as nbdcopy sees it");
    let extent = Extent::new(ByteOffset::new(5 << 20), ByteLen::new(1 << 20)).unwrap();
    let mut bytes = vec![0; extent.len().as_usize()];
    production.read_at(extent.start(), &mut bytes, RequestClass::Guest).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x33), "the target takes the writes");
    drop(volume);
    drop(sessions);
    server.shutdown().unwrap();
}

/// What another session starts from cannot be discarded; the session is remembered all the same, and can be discarded later.
#[test]
fn a_session_that_cannot_be_discarded_yet_stays_listed() {
    let world = World::new(&[1 << 20], 7);
    let sessions = world.sessions();
    let first = sessions.recover(&world.unit, world.base, true).unwrap().session;
    let from = sessions.checkpoint(&first, "branching").unwrap().checkpoint;
    let second = sessions.recover(&world.unit, CheckpointId(from), true).unwrap().session;
    assert_eq!(sessions.stop(&first, true).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(sessions.get(&first).unwrap().state, "stopped");
    sessions.stop(&second, true).unwrap();
    sessions.stop(&first, true).unwrap();
    assert!(sessions.list().unwrap().is_empty());
}

/// Behind its mark a target may hold what an attempt that was cut off has copied. Where the disk has become a hole since,
/// that must not shine through.
#[test]
fn a_copy_that_goes_on_from_its_mark_leaves_nothing_old_in_holes() {
    const MARK: usize = 64 << 10;
    let world = World::new(&[1 << 20], 11);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let sessions = world.sessions();
    let id = sessions.recover(&world.unit, world.base, true).unwrap().session;
    let live = sessions.find(&id).unwrap();
    let mut old = vec![0xee; 1 << 20];
    live.disks[0].volume.read_at(ByteOffset::ZERO, &mut old[..MARK], RequestClass::Guest).unwrap();
    std::fs::write(&path, &old).unwrap();
    let delta = live.disks[0].branch.seal_part().unwrap();
    let mut record = MigrationRecord::begin(path.display().to_string(), "raw".into(), delta);
    record.apply(MigrationEvent::Mark { position: MARK as u64, delta }).unwrap();
    let note = |known: &mut SessionRecord| {
        known.disk_mut(DiskIndex(0))?.migration = Some(record.clone());
        Ok(())
    };
    live.record.update(note).unwrap();
    live.start_migrations().unwrap();
    sessions.wait_migration(&id, None, false, &|_| true).unwrap();
    let volume = sessions.volume(&id, None).unwrap();
    assert_equal(&*open_file(&path, ImageFormat::Raw), &*volume, "the copy");
}
