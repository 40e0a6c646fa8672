use super::*;
use crate::unit::branch::BranchKind;
use crate::unit::lineage::tests::chain;
use crate::unit::manifest_codec::{decode, encode};
use blocks::CheckpointId;

const DISK: DiskIndex = DiskIndex(0);

/// A chain of so many deltas with a checkpoint, numbered like it, at the end of each of `checkpoints`.
fn history(deltas: u64, checkpoints: &[u64]) -> Manifest {
    let mut manifest = chain(deltas);
    let sample = crate::unit::manifest_codec::tests::sample();
    let sealed = &sample.checkpoints[&CheckpointId(4)];
    for id in checkpoints {
        let mut sealed = sealed.clone();
        sealed.checkpoint.id = CheckpointId(*id);
        sealed.ends = vec![(DeltaId(*id), Seq(*id))];
        manifest.checkpoints.insert(CheckpointId(*id), sealed);
    }
    (manifest.next_delta, manifest.next_checkpoint) = (deltas + 100, deltas + 1);
    manifest
}

fn runs(manifest: &Manifest) -> Vec<Vec<u64>> {
    let ids = |run: Run| run.deltas.iter().map(|edition| edition.delta.0).collect();
    manifest.runs(DISK).into_iter().map(ids).collect()
}

fn run_of(manifest: &Manifest, last: u64) -> Run {
    manifest.runs(DISK).into_iter().find(|run| run.last().unwrap().delta == DeltaId(last)).unwrap()
}

const STORED: Stored = Stored { log_len: ByteLen::new(640), entries: 2, covered: ByteLen::new(1024) };

#[test]
fn a_run_ends_where_somebody_can_ask() {
    let mut manifest = history(8, &[2, 5]);
    assert_eq!(runs(&manifest), [vec![1, 2], vec![3, 4, 5], vec![6, 7, 8]]);
    // A branch that starts at a checkpoint and has deltas of its own.
    let branch = manifest.fork(CheckpointId(5), BranchKind::Clone, "").unwrap();
    manifest.deltas.insert(DeltaId(20), Delta { parent: DeltaId(5), branch, ..manifest.deltas[&DeltaId(5)] });
    manifest
        .deltas
        .insert(DeltaId(21), Delta { parent: DeltaId(20), branch, ..manifest.deltas[&DeltaId(5)] });
    manifest.branches.get_mut(&branch).unwrap().ends[0].sealed = DeltaId(21);
    assert_eq!(runs(&manifest), [vec![1, 2], vec![3, 4, 5], vec![6, 7, 8], vec![20, 21]]);
    // The checkpoint goes; the fork stays a boundary.
    manifest.branches.get_mut(&branch).unwrap().base = None;
    manifest.checkpoints.remove(&CheckpointId(5));
    assert_eq!(runs(&manifest), [vec![1, 2], vec![3, 4, 5], vec![6, 7, 8], vec![20, 21]]);
    // Up to where the image is being changed nothing may vanish either.
    let mut manifest = history(4, &[]);
    manifest.replay =
        Some(crate::unit::manifest::Replay { up_to: CheckpointId(3), floors: vec![DeltaId(3)] });
    assert_eq!(runs(&manifest), [vec![1, 2, 3], vec![4]]);
}

#[test]
fn what_the_image_has_is_in_no_run() {
    let mut manifest = history(6, &[3]);
    manifest.floors = vec![DeltaId(3)];
    manifest.deltas.retain(|id, _| *id > DeltaId(3));
    assert_eq!(runs(&manifest), [vec![4, 5, 6]]);
}

#[test]
fn a_merged_delta_takes_the_place_of_the_last_and_the_line_stays_whole() {
    let mut manifest = history(8, &[2, 5, 8]);
    for (first, last) in [(1, 4), (3, 6), (7, 8)] {
        let (first, last) = (DeltaId(first), DeltaId(last));
        manifest.merged.push(MergedIndex { disk: DISK, first, last, tier: 1, revision: 0 });
    }
    let run = run_of(&manifest, 5);
    let removed = manifest.replace_run(&run, STORED).unwrap();
    assert_eq!(removed.deltas.len(), 3);
    assert_eq!(removed.merged.iter().map(|merged| merged.last.0).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(manifest.line(DISK, DeltaId(8)).unwrap(), [8, 7, 6, 5, 2, 1].map(DeltaId));
    assert_eq!(manifest.edition(DeltaId(5)).revision, 1);
    assert!(!manifest.is_run(&run), "it was merged already");
    assert!(decode(&encode(&manifest)).is_ok());
}

#[test]
fn names_of_files_are_never_used_twice() {
    let mut manifest = history(4, &[2, 4]);
    manifest.replace_run(&run_of(&manifest, 2), STORED).unwrap();
    manifest.checkpoints.remove(&CheckpointId(2));
    let sum = |m: &Manifest| m.deltas.keys().map(|id| m.edition(*id).revision).sum::<u32>();
    let before = sum(&manifest);
    let run = run_of(&manifest, 4);
    assert_eq!(run.deltas.len(), 3);
    manifest.replace_run(&run, STORED).unwrap();
    assert_eq!(manifest.deltas.len(), 1);
    assert!(sum(&manifest) > before, "an index over the same deltas gets another name");
}

#[test]
fn an_index_of_what_was_merged_meanwhile_is_not_published() {
    let before = history(8, &[2, 5, 8]);
    let merged = |first, last| MergedIndex {
        disk: DISK,
        first: DeltaId(first),
        last: DeltaId(last),
        tier: 1,
        revision: 0,
    };
    assert!(before.has_line_of(&before, &merged(1, 8)));
    let mut after = before.clone();
    after.replace_run(&run_of(&before, 5), STORED).unwrap();
    assert!(!after.has_line_of(&before, &merged(1, 8)) && !after.has_line_of(&before, &merged(5, 8)));
    assert!(after.has_line_of(&before, &merged(6, 8)) && after.has_line_of(&before, &merged(1, 2)));
    // What went into the image meanwhile is in the merged index for nothing, which does no harm.
    let mut after = before.clone();
    after.floors = vec![DeltaId(5)];
    after.deltas.retain(|id, _| *id > DeltaId(5));
    assert!(after.has_line_of(&before, &merged(1, 8)) && !after.has_line_of(&before, &merged(1, 5)));
}
