//! The map against a model that could not be simpler: an array with one cell a byte.

use super::*;
use proptest::prelude::*;

const DISK: u64 = 96;

/// A value that knows which insertion it is of and which byte of it: what a file offset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    at: u64,
}

impl Sliceable for Written {
    fn skip(&self, skip: ByteLen) -> Written {
        Written { at: self.at + skip.get() }
    }
    fn continues(&self, len: ByteLen, next: &Written) -> bool {
        self.at + len.get() == next.at
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Extent),
    Remove(Extent),
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (0..DISK, 1..=24u64).prop_map(|(start, len)| {
        Extent::new(ByteOffset::new(start), ByteLen::new(len.min(DISK - start))).unwrap()
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => any_extent().prop_map(Step::Insert), 1 => any_extent().prop_map(Step::Remove)]
}

fn apply(steps: &[Step]) -> (ExtentMap<Written>, Vec<Option<Written>>) {
    let mut map = ExtentMap::new();
    let mut model = vec![None; DISK as usize];
    for (number, step) in steps.iter().enumerate() {
        let (extent, first) = match step {
            Step::Insert(extent) => (*extent, Some(number as u64 * 1000)),
            Step::Remove(extent) => (*extent, None),
        };
        match first {
            Some(at) => map.insert(extent, Written { at }),
            None => map.remove(extent),
        }
        for byte in extent.start().get()..extent.end().get() {
            model[byte as usize] = first.map(|at| Written { at: at + byte - extent.start().get() });
        }
    }
    (map, model)
}

proptest! {
    #[test]
    fn agrees_with_one_cell_a_byte(steps in prop::collection::vec(any_step(), 0..40), asked in any_extent()) {
        let (map, model) = apply(&steps);
        let mut at = asked.start();
        for piece in map.lookup(asked) {
            prop_assert_eq!(piece.extent().start(), at, "pieces tile");
            at = piece.extent().end();
            for (skip, byte) in (piece.extent().start().get()..at.get()).enumerate() {
                let expected = match &piece {
                    Piece::Data(_, value) => Some(value.skip(ByteLen::new(skip as u64))),
                    Piece::Hole(_) => None,
                };
                prop_assert_eq!(expected, model[byte as usize], "byte {}", byte);
            }
        }
        prop_assert_eq!(at, asked.end());
        prop_assert_eq!(map.covered().get() as usize, model.iter().flatten().count());
    }

    #[test]
    fn stays_disjoint_and_as_short_as_can_be(steps in prop::collection::vec(any_step(), 0..40)) {
        let (map, _) = apply(&steps);
        let entries: Vec<_> = map.iter().map(|(extent, value)| (extent, *value)).collect();
        for pair in entries.windows(2) {
            let ((left, value), (right, next)) = (pair[0], pair[1]);
            prop_assert!(left.end() <= right.start());
            // Removal may leave two halves that another insertion of the same bytes rejoins; an insertion never does.
            prop_assert!(left.end() < right.start() || !value.continues(left.len(), &next));
        }
    }

    #[test]
    fn finds_the_next_extent(steps in prop::collection::vec(any_step(), 0..40), from in 0..DISK) {
        let (map, model) = apply(&steps);
        let found = map.next_at_or_after(ByteOffset::new(from)).map(|(extent, _)| extent.start().get().max(from));
        prop_assert_eq!(found, (from..DISK).find(|byte| model[*byte as usize].is_some()));
    }
}

#[test]
fn a_set_knows_what_it_covers() {
    let extent = |start, len| Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap();
    let set: ExtentSet = [extent(0, 4), extent(4, 4), extent(10, 2)].into_iter().collect();
    assert_eq!(set.extents(), 2);
    assert!(set.contains(extent(2, 6)) && !set.contains(extent(2, 7)));
    assert!(set.overlaps(extent(7, 3)) && !set.overlaps(extent(8, 2)));
}
