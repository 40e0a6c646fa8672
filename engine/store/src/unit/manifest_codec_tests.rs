use super::*;
use blocks::ErrorKind;

pub(crate) fn sample() -> Manifest {
    let id = |byte: u8| Id::from_bytes([byte; 16]).unwrap();
    let branch = BranchId(1);
    let session = BranchId(2);
    let checkpoint = Checkpoint {
        id: CheckpointId(4),
        branch,
        name: "nightly".into(),
        consistency: Consistency::FileSystem,
        source_time: WallClock(1),
        server_time: WallClock(2),
        frozen_ms: 3,
        generation: Generation(2),
        lens: vec![ByteLen::new(1 << 50)],
        seqs: vec![Seq(77)],
        excluded: vec![vec![Extent::new(ByteOffset::new(512), ByteLen::new(1024)).unwrap()]],
        changed: ByteLen::new(4096),
        protected_until: WallClock(0),
    };
    let end = |sealed, open| BranchEnd {
        sealed: DeltaId(sealed),
        sealed_seq: Seq(9),
        open: DeltaId(open),
        len: ByteLen::new(1 << 50),
    };
    let delta = |branch, parent| Delta {
        disk: DiskIndex(0),
        branch,
        parent: DeltaId(parent),
        log_len: ByteLen::new(640),
        entries: 2,
        covered: ByteLen::new(1024),
        revision: 0,
    };
    Manifest {
        store: StoreId(id(1)),
        salt: 0x1122_3344_5566_7788,
        machine: MachineId(id(2)),
        name: "box".into(),
        definition: b"{}".to_vec(),
        image_format: ImageFormat::Vhd,
        disks: vec![DiskSpec { len: ByteLen::new(1 << 50), serial: "s".into(), device: "/dev/sda".into() }],
        generation: Generation(2),
        next_delta: 9,
        next_branch: 3,
        next_checkpoint: 5,
        main: branch,
        horizon: Some(CheckpointId(3)),
        floors: vec![DeltaId(1)],
        image_lens: vec![ByteLen::new(1 << 50)],
        replay: Some(Replay { up_to: CheckpointId(4), floors: vec![DeltaId(3)] }),
        branches: [
            (
                branch,
                Branch { kind: BranchKind::Main, name: String::new(), base: None, ends: vec![end(3, 6)] },
            ),
            (
                session,
                Branch {
                    kind: BranchKind::Session(SessionId(id(3))),
                    name: String::new(),
                    base: Some(CheckpointId(4)),
                    ends: vec![end(5, 8)],
                },
            ),
        ]
        .into(),
        deltas: [
            (DeltaId(2), delta(branch, 1)),
            (DeltaId(3), delta(branch, 2)),
            (DeltaId(5), delta(session, 3)),
        ]
        .into(),
        merged: vec![MergedIndex {
            disk: DiskIndex(0),
            first: DeltaId(1),
            last: DeltaId(3),
            tier: 1,
            revision: 0,
        }],
        checkpoints: [(CheckpointId(4), SealedCheckpoint { checkpoint, ends: vec![(DeltaId(3), Seq(9))] })]
            .into(),
        gaps: vec![Gap { from: WallClock(5), until: WallClock(0), cause: "frozen too long".into() }],
        notes: [("session".to_owned(), vec![1, 2, 3])].into(),
        quota: None,
    }
}

#[test]
fn reads_what_it_writes() {
    let manifest = of_version_3();
    assert_eq!(decode(&encode(&manifest)).unwrap(), manifest);
}

/// The sample with everything in it that version 1 did not have.
fn of_version_2() -> Manifest {
    let mut manifest = sample();
    manifest.quota = Some(ByteLen::new(1 << 40));
    manifest.deltas.values_mut().for_each(|delta| delta.revision = 3);
    manifest.merged[0].revision = 6;
    manifest.checkpoints.values_mut().for_each(|sealed| sealed.checkpoint.protected_until = WallClock(77));
    manifest.branches.values_mut().for_each(|branch| branch.name = "pilot".into());
    let clone = Branch { kind: BranchKind::Clone, ..manifest.branches[&BranchId(2)].clone() };
    manifest.branches.insert(BranchId(3), clone);
    manifest.next_branch = 4;
    manifest
}

/// With what version 2 did not have: the disk has grown twice, the second time in the middle of a consolidation.
fn of_version_3() -> Manifest {
    let mut manifest = of_version_2();
    manifest.grow(&[ByteLen::new(3 << 50)]).unwrap();
    manifest
        .checkpoints
        .values_mut()
        .for_each(|sealed| sealed.checkpoint.lens = vec![ByteLen::new((1 << 50) + 512)]);
    let sessions = manifest.branches.values_mut().filter(|branch| branch.base.is_some());
    sessions.for_each(|branch| branch.ends[0].len = ByteLen::new((1 << 50) + 512));
    manifest
}

/// What a program that knew version 1 wrote stays readable.
#[test]
fn version_1_is_read() {
    let bytes = include_bytes!("../../tests/fixtures/manifest-v1");
    assert_eq!(decode(bytes).unwrap(), sample());
}

/// What a program that knew version 2 wrote stays readable.
#[test]
fn version_2_is_read() {
    let bytes = include_bytes!("../../tests/fixtures/manifest-v2");
    assert_eq!(decode(bytes).unwrap(), of_version_2());
}

/// The bytes of version 3, kept so that they stay readable.
#[test]
fn the_format_stays() {
    let bytes = include_bytes!("../../tests/fixtures/manifest-v3");
    assert_eq!(decode(bytes).unwrap(), of_version_3());
    assert_eq!(encode(&of_version_3()), bytes);
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let bytes = encode(&sample());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(&flipped).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert_eq!(decode(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {cut}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let broken: [fn(&mut Manifest); 16] = [
        |m| m.main = BranchId(7),
        |m| m.floors.clear(),
        |m| m.deltas.retain(|id, _| *id != DeltaId(2)),
        |m| m.deltas.values_mut().for_each(|delta| delta.parent = DeltaId(40)),
        |m| m.checkpoints.clear(),
        |m| m.branches.values_mut().for_each(|branch| branch.ends.clear()),
        |m| m.merged[0].first = DeltaId(4),
        |m| m.merged[0].last = DeltaId(7),
        |m| m.merged[0].disk = DiskIndex(1),
        |m| m.next_delta = 8,
        |m| m.image_lens.clear(),
        |m| m.image_lens[0] = ByteLen::new(2 << 50),
        |m| m.disks[0].len = ByteLen::new(2 << 50),
        |m| m.branches.values_mut().for_each(|branch| branch.ends[0].len = ByteLen::new(512)),
        |m| m.replay = Some(Replay { up_to: CheckpointId(3), floors: vec![DeltaId(3)] }),
        |m| m.branches.values_mut().for_each(|branch| branch.ends[0].sealed = DeltaId(4)),
    ];
    for (number, break_it) in broken.iter().enumerate() {
        let mut manifest = sample();
        break_it(&mut manifest);
        assert_eq!(decode(&encode(&manifest)).unwrap_err().kind(), ErrorKind::Corrupt, "case {number}");
    }
}

/// A week of a checkpoint a minute: reading it takes as long as it is, not the square of that.
#[test]
fn a_long_history_is_read_quickly() {
    const COUNT: u64 = 20_000;
    let mut manifest = sample();
    let delta = manifest.deltas[&DeltaId(5)];
    let sealed = manifest.checkpoints[&CheckpointId(4)].clone();
    for id in 9..9 + COUNT {
        let parent = if id == 9 { DeltaId(5) } else { DeltaId(id - 1) };
        manifest.deltas.insert(DeltaId(id), Delta { parent, ..delta });
        let mut sealed = sealed.clone();
        sealed.checkpoint.id = CheckpointId(id);
        sealed.ends = vec![(DeltaId(id), Seq(id))];
        manifest.checkpoints.insert(CheckpointId(id), sealed);
    }
    manifest.next_delta = 9 + COUNT;
    let bytes = encode(&manifest);
    let begun = std::time::Instant::now();
    assert_eq!(decode(&bytes).unwrap().checkpoints.len() as u64, COUNT + 1);
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
}
