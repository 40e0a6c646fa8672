use super::*;
use blocks::Id;

const GIB: u64 = 1 << 30;

fn id(byte: u8) -> Id {
    Id::from_bytes([byte; 16]).unwrap()
}

fn ours() -> StoreId {
    StoreId(id(1))
}

fn machine() -> MachineId {
    MachineId(id(2))
}

fn disk(len: u64, continuity: Continuity) -> DiskHello {
    DiskHello {
        device: "/dev/sda".into(),
        serial: String::new(),
        len: ByteLen::new(len),
        tracker: "ebpf".into(),
        continuity,
    }
}

fn tracked(store: StoreId, acked: u64) -> Continuity {
    Continuity::Tracked { store, acked: Seq(acked), sent: Seq(acked + 10) }
}

fn hello(machine: Option<MachineId>, generation: u64, continuity: Continuity) -> Hello {
    Hello {
        machine,
        name: "web".into(),
        generation: Generation(generation),
        boot: id(9),
        session: None,
        inventory: "{}".into(),
        disks: vec![disk(GIB, continuity)],
    }
}

fn known(durable: u64) -> Known {
    Known {
        machine: machine(),
        name: "web".into(),
        generation: Generation(1),
        history: Generation(1),
        promoted: None,
        home: None,
        disks: vec![KnownDisk {
            len: ByteLen::new(GIB),
            sealed_len: ByteLen::new(GIB),
            serial: String::new(),
            device: "/dev/sda".into(),
            durable: Seq(durable),
            empty: durable == 0,
        }],
    }
}

fn knows(known: Known) -> Knowledge {
    Knowledge {
        store: ours(),
        image_format: Some(ImageFormat::Vhd),
        by_machine: Some(known.clone()),
        by_name: Some(known),
    }
}

fn at_home(serials: &[&str], any: bool) -> Option<Homecoming> {
    let serials = serials.iter().map(|serial| (*serial).to_owned()).collect();
    Some(Homecoming { generation: 3, serials, any })
}

fn nothing() -> Knowledge {
    Knowledge { store: ours(), image_format: Some(ImageFormat::Vhd), by_machine: None, by_name: None }
}

fn lost() -> Continuity {
    Continuity::Unknown { reason: "rebooted".into() }
}

fn start(decision: Decision) -> StartFrom {
    match decision {
        Decision::Welcome { role: Role::Source, disks, .. } => disks[0].start,
        other => panic!("{other:?}"),
    }
}

fn refused(decision: Decision) -> (RefusalKind, String) {
    match decision {
        Decision::Refuse(refusal) => (refusal.kind, refusal.reason),
        other => panic!("{other:?}"),
    }
}

fn standby(decision: Decision) -> String {
    match decision {
        Decision::Welcome { role: Role::Standby { reason }, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_not_seen_before_is_registered() {
    assert_eq!(decide(&hello(None, 0, lost()), &nothing()), Decision::Register(None));
    let moved = hello(Some(machine()), 3, tracked(StoreId(id(7)), 5));
    assert_eq!(decide(&moved, &nothing()), Decision::Register(Some(machine())), "from another store");
}

#[test]
fn where_replication_goes_on() {
    let from =
        |continuity, durable| start(decide(&hello(Some(machine()), 1, continuity), &knows(known(durable))));
    assert_eq!(from(tracked(ours(), 0), 0), StartFrom::Everything);
    assert_eq!(from(lost(), 0), StartFrom::Everything);
    assert_eq!(from(tracked(ours(), 5), 5), StartFrom::Marked);
    assert_eq!(from(tracked(ours(), 5), 9), StartFrom::Marked, "more than the agent knows of");
    assert_eq!(from(tracked(ours(), 5), 4), StartFrom::Scan, "the store is behind");
    assert_eq!(from(tracked(StoreId(id(7)), 5), 9), StartFrom::Scan, "another store's acknowledgements");
    assert_eq!(from(lost(), 9), StartFrom::Scan);
}

#[test]
fn who_was_overtaken_stands_by() {
    let mut promoted = known(5);
    promoted.promoted = Some(SessionId(id(4)));
    assert!(standby(decide(&hello(Some(machine()), 1, lost()), &knows(promoted))).contains("is in charge"));
    let mut newer = known(5);
    (newer.generation, newer.history) = (Generation(3), Generation(3));
    let lower = |generation| hello(Some(machine()), generation, tracked(ours(), 5));
    assert!(standby(decide(&lower(2), &knows(newer.clone()))).contains("generation 3"));
    assert!(standby(decide(&lower(0), &knows(newer.clone()))).contains("generation 3"));
    assert_eq!(start(decide(&lower(3), &knows(newer.clone()))), StartFrom::Marked);
    assert!(standby(decide(&lower(4), &knows(newer))).contains("older than"));
    let mut given_up = known(5);
    given_up.generation = Generation(2);
    assert_eq!(
        start(decide(&hello(Some(machine()), 1, tracked(ours(), 5)), &knows(given_up))),
        StartFrom::Marked,
        "a session that came to nothing does not lock the machine out"
    );
    let elsewhere = hello(Some(machine()), 4, tracked(StoreId(id(7)), 5));
    assert_eq!(start(decide(&elsewhere, &knows(known(5)))), StartFrom::Scan);
}

#[test]
fn names_and_identities() {
    let mut other = known(5);
    other.machine = MachineId(id(3));
    let by_name = Knowledge { by_machine: None, by_name: Some(other.clone()), ..nothing() };
    let stranger = hello(Some(machine()), 1, lost());
    assert_eq!(refused(decide(&stranger, &by_name)).0, RefusalKind::Taken);
    let both = Knowledge { by_machine: Some(known(5)), by_name: Some(other), ..nothing() };
    assert_eq!(refused(decide(&stranger, &both)).0, RefusalKind::Taken);

    let mut invalid = stranger.clone();
    invalid.name = "../etc".into();
    assert_eq!(refused(decide(&invalid, &nothing())).0, RefusalKind::Identity);
    let mut guest = stranger;
    guest.session = Some(SessionId(id(4)));
    assert_eq!(refused(decide(&guest, &knows(known(5)))).0, RefusalKind::Busy);
}

#[test]
fn an_agent_without_memory_is_known_by_its_disks() {
    let forgotten = hello(None, 0, lost());
    assert_eq!(start(decide(&forgotten, &knows(known(5)))), StartFrom::Scan);
    let mut different = forgotten.clone();
    different.disks[0].len = ByteLen::new(2 * GIB);
    assert_eq!(refused(decide(&different, &knows(known(5)))).0, RefusalKind::Taken);
    let mut promoted = known(5);
    promoted.promoted = Some(SessionId(id(4)));
    standby(decide(&different, &knows(promoted)));
}

#[test]
fn a_disk_that_has_grown_is_followed_and_scanned_until_a_checkpoint_has_all_of_it() {
    let mut longer = hello(Some(machine()), 1, tracked(ours(), 5));
    longer.disks[0].len = ByteLen::new(2 * GIB);
    let grow = Decision::Grow { machine: machine(), lens: vec![ByteLen::new(2 * GIB)] };
    assert_eq!(decide(&longer, &knows(known(5))), grow);
    let mut followed = known(5);
    followed.disks[0].len = ByteLen::new(2 * GIB);
    // Whatever the agent says that it knows.
    assert_eq!(start(decide(&longer, &knows(followed.clone()))), StartFrom::Scan);
    followed.disks[0].sealed_len = ByteLen::new(2 * GIB);
    assert_eq!(start(decide(&longer, &knows(followed))), StartFrom::Marked);
    // One that stands by is taken as it is: a failback may have a longer target.
    let mut promoted = known(5);
    promoted.promoted = Some(SessionId(id(4)));
    standby(decide(&longer, &knows(promoted)));
    // Without an identity only a serial number shows that it is that disk.
    longer.machine = None;
    let mut named = known(5);
    named.disks[0].serial = "S1".into();
    assert_eq!(refused(decide(&longer, &knows(named.clone()))).0, RefusalKind::Taken);
    longer.disks[0].serial = "S1".into();
    assert_eq!(decide(&longer, &knows(named)), grow);
}

#[test]
fn disks_must_be_those_that_were_registered() {
    let with = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello(Some(machine()), 1, tracked(ours(), 5));
        change(&mut hello);
        let mut known = known(5);
        known.disks[0].serial = "S1".into();
        refused(decide(&hello, &knows(known)))
    };
    let (kind, reason) = with(&|hello| hello.disks[0].len = ByteLen::new(GIB / 2));
    assert_eq!(kind, RefusalKind::Disks);
    assert!(reason.contains("1073741824") && reason.contains("536870912"), "names both sizes: {reason}");
    assert!(reason.contains("shrunk"), "{reason}");
    assert!(with(&|hello| hello.disks.clear()).1.contains("vanished"));
    assert!(with(&|hello| hello.disks.push(disk(GIB, lost()))).1.contains("not registered"));
    assert!(with(&|hello| hello.disks[0].serial = "S2".into()).1.contains("'S1'"));
}

#[test]
fn what_an_image_cannot_hold_is_refused_before_anything_is_made() {
    let mut large = hello(None, 0, lost());
    large.disks[0].len = ByteLen::new((2040 << 30) + 512);
    let (kind, reason) = refused(decide(&large, &nothing()));
    assert_eq!(kind, RefusalKind::Disks);
    assert!(reason.contains("VHD") && reason.contains("2040 GiB"), "{reason}");
    let raw = Knowledge { image_format: Some(ImageFormat::Raw), ..nothing() };
    assert_eq!(decide(&large, &raw), Decision::Register(None));
    let unsaid = Knowledge { image_format: None, ..nothing() };
    assert_eq!(decide(&large, &unsaid), Decision::Register(None), "a VHDX, then");
    assert_eq!(image_format(None, &large.disks), ImageFormat::Vhdx);
    assert_eq!(image_format(None, &hello(None, 0, lost()).disks), ImageFormat::Vhd);
    let odd = |len| {
        let mut hello = hello(None, 0, lost());
        hello.disks[0].len = ByteLen::new(len);
        refused(decide(&hello, &nothing())).0
    };
    assert_eq!(odd(0), RefusalKind::Disks);
    assert_eq!(odd(1000), RefusalKind::Disks);
}

#[test]
fn a_machine_that_boots_from_the_disks_that_came_home_is_the_source_whatever_number_it_remembers() {
    let of = |serial: &str, home: Option<Homecoming>| {
        let mut hello = hello(Some(machine()), 1, Continuity::Unknown { reason: "another boot".into() });
        hello.disks[0].serial = serial.into();
        let known = Known { generation: Generation(3), history: Generation(3), home, ..known(7) };
        match decide(&hello, &knows(known)) {
            Decision::Welcome { role: Role::Source, disks, .. } => Ok(disks[0].start),
            Decision::Welcome { role: Role::Standby { reason }, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("A", at_home(&["A"], false)), Ok(StartFrom::Scan));
    let unsealed = Some(Homecoming { generation: 4, ..at_home(&["A"], false).unwrap() });
    assert_eq!(of("A", unsealed), Ok(StartFrom::Scan), "nothing was sealed since it came home");
    let refused = of("B", at_home(&["A"], false)).unwrap_err();
    assert!(
        refused.contains("generation 3 while this machine has 1"),
        "an old primary on another disk: {refused}"
    );
    assert!(of("", at_home(&[""], false)).is_err(), "no number is no proof");
    assert!(of("A", None).is_err() && of("A", at_home(&["A", "C"], false)).is_err());
    assert_eq!(of("", at_home(&[""], true)), Ok(StartFrom::Scan), "a person has said so");
    let later = Some(Homecoming { generation: 2, ..at_home(&["A"], true).unwrap() });
    assert!(of("A", later).is_err(), "of an earlier homecoming");
}
