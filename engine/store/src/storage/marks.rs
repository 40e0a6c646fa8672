//! A bit for each unit of a file, set and cleared by all threads at once. They are hints: nothing is ordered by them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_UNITS: u64 = 64;

/// Which units are marked. Memory is used where there are marks only.
#[derive(Debug)]
pub(super) struct Marks {
    words: Box<[AtomicU64]>,
}

impl Marks {
    /// None is marked of so many.
    pub fn new(units: u64) -> Marks {
        let words = usize::try_from(units.div_ceil(WORD_UNITS)).expect("fewer units than there is memory");
        // SAFETY: zeroes are an atomic number. They come from the kernel as they are, so that none is written here.
        let words = unsafe { Box::<[AtomicU64]>::new_zeroed_slice(words).assume_init() };
        Marks { words }
    }

    /// Marks these, which must be among those it is for; returns how many were not.
    pub fn set(&self, units: Range<u64>) -> u32 {
        let newly = |(word, mask): (&AtomicU64, u64)| match word.load(Ordering::Relaxed) & mask == mask {
            true => 0,
            false => (!word.fetch_or(mask, Ordering::Relaxed) & mask).count_ones(),
        };
        self.words_of(units).map(newly).sum()
    }

    /// Takes the marks of these away.
    pub fn clear(&self, units: Range<u64>) {
        self.words_of(units).for_each(|(word, mask)| {
            word.fetch_and(!mask, Ordering::Relaxed);
        });
    }

    /// Whether each of these is marked.
    pub fn has_all(&self, units: Range<u64>) -> bool {
        self.words_of(units).all(|(word, mask)| word.load(Ordering::Relaxed) & mask == mask)
    }

    /// The words that the units lie in, and which of their bits are meant.
    fn words_of(&self, units: Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let words = units.start / WORD_UNITS..units.end.div_ceil(WORD_UNITS);
        words.filter_map(move |word| {
            let first = units.start.max(word * WORD_UNITS);
            let count =
                units.end.min((word + 1) * WORD_UNITS).checked_sub(first).filter(|count| *count > 0)?;
            let mask = (u64::MAX >> (WORD_UNITS - count)) << (first % WORD_UNITS);
            Some((&self.words[usize::try_from(word).ok()?], mask))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn marks_are_those_of_a_plain_list() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let (marks, mut model) = (Marks::new(300), [false; 300]);
        for _ in 0..20_000 {
            let start = random.random_range(0..300);
            let end = random.random_range(start..=300.min(start + 140));
            let (units, part) = (start as u64..end as u64, start..end);
            match random.random_range(0..3) {
                0 => {
                    let new = model[part.clone()].iter().filter(|is_set| !**is_set).count();
                    assert_eq!(marks.set(units) as usize, new);
                    model[part].fill(true);
                }
                1 => {
                    marks.clear(units);
                    model[part].fill(false);
                }
                _ => assert_eq!(marks.has_all(units), model[part].iter().all(|is_set| *is_set)),
            }
        }
    }
}
