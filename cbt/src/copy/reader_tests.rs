use super::*;
use blocks::ByteOffset;
use proptest::prelude::*;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

#[test]
fn close_extents_are_one_read_and_far_ones_are_not() {
    let close = [extent(0, 4096), extent(4096 + GAP_BYTES_MAX, 4096)];
    let joined = stretches(&close);
    assert_eq!(joined.len(), 1);
    assert_eq!((joined[0].whole, joined[0].wanted.as_slice()), (extent(0, 8192 + GAP_BYTES_MAX), &close[..]));
    assert_eq!(stretches(&[extent(0, 4096), extent(8192 + GAP_BYTES_MAX, 4096)]).len(), 2);
    let long = stretches(&[extent(0, 2 * READ_BYTES), extent(2 * READ_BYTES + 8192, 4096)]);
    let lengths: Vec<u64> = long.iter().map(|stretch| stretch.whole.len().get()).collect();
    assert_eq!(lengths, [READ_BYTES, READ_BYTES, 4096]);
}

proptest! {
    #[test]
    fn stretches_want_exactly_what_was_asked_and_groups_are_small(
        runs in proptest::collection::vec((1_u64..40, 1_u64..600), 1..200),
    ) {
        let mut at = 0;
        let mut extents = Vec::new();
        for (gap, len) in runs {
            extents.push(extent(at + gap * 4096, len * 4096));
            at += (gap + len) * 4096;
        }
        let stretches = stretches(&extents);
        let wanted: blocks::ExtentSet =
            stretches.iter().flat_map(|stretch| stretch.wanted.iter().copied()).collect();
        prop_assert_eq!(wanted, extents.iter().copied().collect::<blocks::ExtentSet>());
        for stretch in &stretches {
            prop_assert!(stretch.whole.len().get() <= READ_BYTES);
            prop_assert!(stretch.wanted.iter().all(|part| stretch.whole.contains(*part)));
        }
        let groups = groups(&stretches);
        prop_assert_eq!(&groups.concat(), &stretches);
        for group in groups {
            let bytes: u64 = group.iter().map(|stretch| stretch.whole.len().get()).sum();
            prop_assert!(bytes <= READ_BYTES && group.len() <= GROUP_MAX);
        }
    }

    #[test]
    fn only_what_is_wanted_is_shipped(grains in proptest::collection::vec(0_u8..3, 2..60)) {
        // 0: not wanted, 1: wanted zeroes, 2: wanted data.
        let wanted: Vec<Extent> = grains
            .iter()
            .enumerate()
            .filter(|(_, kind)| **kind > 0)
            .map(|(index, _)| extent(index as u64 * 4096, 4096))
            .collect();
        let bytes: Vec<u8> = grains.iter().flat_map(|kind| vec![[9, 0, 7][usize::from(*kind)]; 4096]).collect();
        let stretch = Stretch { whole: extent(0, bytes.len() as u64), wanted: wanted.clone() };
        let mut shipped = Vec::new();
        for Shipment { extent, bytes: data } in stretch.shipments(&bytes) {
            let kind = grains[(extent.start().get() / 4096) as usize];
            prop_assert_eq!(kind == 2, data.is_some());
            prop_assert!(data.is_none_or(|data| data == vec![7; 4096]));
            shipped.push(extent);
        }
        prop_assert_eq!(shipped, wanted);
    }
}
