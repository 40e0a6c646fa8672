use crate::session::manager::{MigrateOptions, Sessions};
use crate::session::testing::{SparseVolume, World, first_difference, guest_writes, index};
use blocks::{ByteLen, ByteOffset, Extent, RequestClass, Volume};
use nbd_server::{Limits, ListenAddress, Listener, NbdServer};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use store::testing::Random;

/// Sessions of a world, served on a unix socket.
struct Scene {
    world: World,
    sessions: Arc<Sessions>,
    server: NbdServer,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(world: World) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&ListenAddress::Unix(dir.path().join("nbd.sock"))).unwrap();
        let mut context = world.context(None);
        context.listeners = vec![listener.address().clone()];
        let exports = context.exports.clone();
        let server = NbdServer::start(vec![listener], exports, Limits::default()).unwrap();
        let sessions = Sessions::open_in(Arc::clone(&world.store), context).unwrap();
        Scene { world, sessions, server, dir }
    }
}

fn said(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).output().unwrap();
    assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// Offset, length and flags of each line of `nbdinfo --map`.
fn map(context: &str, uri: &str) -> Vec<(u64, u64, u32)> {
    let text = said("nbdinfo", &[&format!("--map={context}"), uri]);
    let number = |field: Option<&str>| field.unwrap().parse::<u64>().unwrap();
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        (number(fields.next()), number(fields.next()), number(fields.next()) as u32)
    };
    text.lines().map(line).collect()
}

/// Copies only what the bitmap calls changed from the export over `old`, and gives the result.
fn pull(uri: &str, bitmap: &str, old: &dyn Volume, to: &Path) -> SparseVolume {
    let copy = SparseVolume::new(old.len());
    let whole = Extent::whole(old.len()).unwrap();
    for piece in whole.split(ByteLen::new(1 << 20)) {
        let mut bytes = vec![0; piece.len().as_usize()];
        old.read_at(piece.start(), &mut bytes, RequestClass::Background).unwrap();
        copy.write_at(piece.start(), &bytes, false, RequestClass::Background).unwrap();
    }
    said("nbdcopy", &[uri, to.to_str().unwrap()]);
    let now = std::fs::read(to).unwrap();
    let mut end = 0;
    for (start, len, flags) in map(bitmap, uri) {
        assert_eq!(start, end, "the map has no gaps");
        end = start + len;
        if flags & 1 != 0 {
            let bytes = &now[start as usize..end as usize];
            copy.write_at(ByteOffset::new(start), bytes, false, RequestClass::Background).unwrap();
        }
    }
    assert_eq!(end, old.len().get());
    copy
}

#[test]
fn increments_since_every_checkpoint_are_pulled_over_nbd_also_after_a_pivot() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut world = World::new(&[32 << 20], seed);
    let mut checkpoints = vec![world.base];
    for number in 0..3 {
        (0..6).for_each(|_| world.replicate(0, &mut random));
        checkpoints.push(world.seal(&format!("later {number}")));
    }
    let scene = Scene::new(world);
    let (sessions, unit) = (&scene.sessions, &scene.world.unit);
    let session = sessions.recover(unit, checkpoints[2], true).unwrap();
    let (id, uri) = (session.session.as_str(), session.disks[0].uris[0].clone());
    let guest = sessions.volume(id, None).unwrap();
    guest_writes(&*guest, 10, &mut random);
    let check = |when: &str| {
        guest_writes(&*guest, 4, &mut random.clone());
        for checkpoint in &checkpoints {
            let bitmap = format!("qemu:dirty-bitmap:since-{}", checkpoint.0);
            let old = unit.view(*checkpoint, index(0)).unwrap();
            let copy = pull(&uri, &bitmap, &old, &scene.dir.path().join("now"));
            let wrong = first_difference(&copy, &*guest);
            assert_eq!(wrong, None, "{when}: an increment since {} misses a change", checkpoint.0);
        }
    };
    check("before the pivot");
    let since_base = format!("qemu:dirty-bitmap:since-{}", checkpoints[2].0);
    let changed: u64 = map(&since_base, &uri).iter().filter(|run| run.2 == 1).map(|run| run.1).sum();
    assert!((1..8 << 20).contains(&changed), "{changed} bytes are an increment, not the disk");
    let depths = map("qemu:allocation-depth", &uri);
    let session_bytes: u64 = depths.iter().filter(|run| run.2 == 1).map(|run| run.1).sum();
    assert_eq!(session_bytes, changed, "what the session wrote is the top layer");
    assert!(depths.iter().any(|run| run.2 == 2) && depths.iter().any(|run| run.2 == 0), "{depths:?}");

    let target = scene.dir.path().join("target.raw");
    let options = MigrateOptions {
        to: Some(target.to_str().unwrap().to_owned()),
        format: Some("raw".into()),
        pivot: true,
        ..MigrateOptions::default()
    };
    sessions.migrate(id, &options).unwrap();
    sessions.wait_migration(id, None, true, &|_| true).unwrap();
    check("after the pivot");
    drop(guest);
    drop(scene.sessions);
    scene.server.shutdown().unwrap();
}

#[test]
fn qemu_reads_a_bitmap_and_an_unknown_checkpoint_is_not_selected() {
    let scene = Scene::new(World::new(&[8 << 20], 5));
    let session = scene.sessions.recover(&scene.world.unit, scene.world.base, true).unwrap();
    let (id, uri) = (session.session.as_str(), session.disks[0].uris[0].clone());
    let guest = scene.sessions.volume(id, None).unwrap();
    guest.write_at(ByteOffset::new(2 << 20), &[7; 128 << 10], false, RequestClass::Guest).unwrap();
    let bitmap = format!("qemu:dirty-bitmap:since-{}", scene.world.base.0);
    let listed = said("nbdinfo", &["--list", &uri]);
    assert!(listed.contains(&bitmap) && listed.contains("qemu:allocation-depth"), "{listed}");
    let socket = scene.dir.path().join("nbd.sock");
    let (export, _) = uri.strip_prefix("nbd+unix:///").unwrap().split_once('?').unwrap();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export={export},x-dirty-bitmap={bitmap}",
        socket.display()
    );
    let json = said("qemu-img", &["map", "--output=json", "--image-opts", &options]);
    // What is dirty shows as not "data".
    let dirty: Vec<&str> = json.lines().filter(|line| line.contains("\"data\": false")).collect();
    assert_eq!(dirty.len(), 1, "{json}");
    assert!(dirty[0].contains("\"start\": 2097152, \"length\": 131072"), "{json}");
    let unknown =
        Command::new("nbdinfo").args(["--map=qemu:dirty-bitmap:since-4711", &uri]).output().unwrap();
    assert!(!unknown.status.success(), "it was not selected");
    drop(guest);
    drop(scene.sessions);
    scene.server.shutdown().unwrap();
}
