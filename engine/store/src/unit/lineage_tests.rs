use super::*;
use crate::unit::manifest::Delta;
use crate::unit::manifest_codec::tests::sample;
use blocks::{ByteLen, Seq};

const DISK: DiskIndex = DiskIndex(0);

/// A main branch of so many deltas, numbered from 1, all behind the image.
pub(crate) fn chain(deltas: u64) -> Manifest {
    let mut manifest = sample();
    manifest.branches.retain(|id, _| *id == BranchId(1));
    manifest.checkpoints.clear();
    manifest.deltas.clear();
    manifest.merged.clear();
    (manifest.replay, manifest.horizon, manifest.floors) = (None, None, vec![DeltaId::IMAGE]);
    for id in 1..=deltas {
        append(&mut manifest, id);
    }
    manifest
}

fn append(manifest: &mut Manifest, id: u64) {
    let delta = Delta {
        disk: DISK,
        branch: BranchId(1),
        parent: DeltaId(id - 1),
        log_len: ByteLen::ZERO,
        entries: 0,
        covered: ByteLen::ZERO,
        revision: 0,
    };
    manifest.deltas.insert(DeltaId(id), delta);
    let end = BranchEnd {
        sealed: DeltaId(id),
        sealed_seq: Seq(id),
        open: DeltaId(id + 1),
        len: ByteLen::new(1 << 50),
    };
    manifest.set_end(BranchId(1), DISK, end).unwrap();
}

fn merge_all(manifest: &mut Manifest, end: u64) {
    while let Some(spans) = manifest.merge_choice(DISK, DeltaId(end)) {
        let (first, last) = (spans.last().unwrap().first, spans[0].last);
        manifest.merged.push(MergedIndex { disk: DISK, first, last, tier: spans[0].tier + 1, revision: 0 });
    }
}

#[test]
fn every_point_of_a_long_line_is_covered_by_few_indexes() {
    let mut manifest = chain(0);
    for id in 1..=600 {
        append(&mut manifest, id);
        merge_all(&mut manifest, id);
    }
    let mut probes = Vec::new();
    for end in 1..=600 {
        let cover = manifest.cover(DISK, DeltaId(end));
        let mut expected_last = end;
        for span in &cover {
            assert_eq!(span.last, DeltaId(expected_last));
            expected_last = span.first.0 - 1;
        }
        assert_eq!(expected_last, 0, "the cover of {end} has a gap");
        probes.push(cover.len());
    }
    assert!(*probes.iter().max().unwrap() <= 4 * (MERGE_FAN_IN - 1));
    assert_eq!(manifest.cover(DISK, DeltaId(240)).len(), 9);
    let mean = probes.iter().sum::<usize>() as f64 / probes.len() as f64;
    assert!(mean < 13.0, "{mean} indexes on average");
}

#[test]
fn a_late_merge_takes_the_oldest_neighbours() {
    let manifest = chain(21);
    let spans = manifest.merge_choice(DISK, DeltaId(21)).unwrap();
    assert_eq!((spans[0].last, spans[7].first), (DeltaId(8), DeltaId(1)));
}

#[test]
fn a_merged_index_that_straddles_the_floor_still_covers() {
    let mut manifest = chain(8);
    merge_all(&mut manifest, 8);
    manifest.floors = vec![DeltaId(3)];
    manifest.deltas.retain(|id, _| *id > DeltaId(3));
    assert_eq!(manifest.line(DISK, DeltaId(8)).unwrap().len(), 5);
    assert_eq!(
        manifest.cover(DISK, DeltaId(8)),
        [Span { first: DeltaId(1), last: DeltaId(8), tier: 1, revision: 0 }]
    );
}

#[test]
fn a_hole_in_the_line_is_an_error() {
    let mut manifest = chain(5);
    manifest.deltas.remove(&DeltaId(3));
    assert_eq!(manifest.line(DISK, DeltaId(5)).unwrap_err().kind(), ErrorKind::Corrupt);
}
