//! A bit for each unit of a file, set and cleared by all threads at once. They are hints: nothing is ordered by them.

use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_UNITS: u64 = 64;
const WORD_BYTES: usize = size_of::<AtomicU64>();

/// Which units are marked. 4 KiB of memory for each 32,768 neighbours that had a mark since all were cleared.
#[derive(Debug)]
pub(super) struct Marks {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the words are changed as atomic numbers only, and cleared by a call that threads may make at once.
unsafe impl Send for Marks {}
// SAFETY: as above.
unsafe impl Sync for Marks {}

impl Marks {
    /// None is marked of so many, at least one. Memory of its own, since it is to cost nothing where nothing is marked, whatever
    /// the allocator would do, and to be an error where there is none: nothing depends on marks.
    pub fn new(units: u64) -> io::Result<Marks> {
        let count = usize::try_from(units.div_ceil(WORD_UNITS)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let len = count * WORD_BYTES;
        // SAFETY: a new mapping where nothing is mapped.
        let address = unsafe {
            let (access, flags) =
                (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, flags)
        }?;
        let words = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let marks = Marks { words, count };
        marks.advise(Advice::LinuxNoHugepage);
        Ok(marks)
    }

    /// Takes all marks away and gives their memory back.
    pub fn clear_all(&self) {
        self.advise(Advice::LinuxDontNeed);
    }

    fn advise(&self, advice: Advice) {
        // SAFETY: our own mapping; the one advice changes nothing in it, the other makes zeroes of it, which are atomic numbers.
        let _ = unsafe { rustix::mm::madvise(self.words.as_ptr().cast(), self.count * WORD_BYTES, advice) };
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
        // A word that was never written is not written here either.
        let marked = self.words_of(units).filter(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0);
        marked.for_each(|(word, mask)| {
            word.fetch_and(!mask, Ordering::Relaxed);
        });
    }

    /// Whether each of these is marked.
    pub fn has_all(&self, units: Range<u64>) -> bool {
        self.words_of(units).all(|(word, mask)| word.load(Ordering::Relaxed) & mask == mask)
    }

    /// The words that the units lie in, and which of their bits are meant.
    fn words_of(&self, units: Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        // SAFETY: so many lie there, zeroes at first, for as long as this lives, and nobody has them as anything else.
        let all = unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) };
        let words = units.start / WORD_UNITS..units.end.div_ceil(WORD_UNITS);
        words.filter_map(move |word| {
            let first = units.start.max(word * WORD_UNITS);
            let count =
                units.end.min((word + 1) * WORD_UNITS).checked_sub(first).filter(|count| *count > 0)?;
            let mask = (u64::MAX >> (WORD_UNITS - count)) << (first % WORD_UNITS);
            Some((&all[usize::try_from(word).expect("units fit into memory, as `new` has seen")], mask))
        })
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no reference into it is left.
        let unmapped = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), self.count * WORD_BYTES) };
        debug_assert!(unmapped.is_ok());
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
        let (marks, mut model) = (Marks::new(300).unwrap(), [false; 300]);
        for _ in 0..20_000 {
            let start = random.random_range(0..300);
            let end = random.random_range(start..=300.min(start + 140));
            let (units, part) = (start as u64..end as u64, start..end);
            match random.random_range(0..40) {
                0 => {
                    marks.clear_all();
                    model.fill(false);
                }
                1..14 => {
                    let new = model[part.clone()].iter().filter(|is_set| !**is_set).count();
                    assert_eq!(marks.set(units) as usize, new);
                    model[part].fill(true);
                }
                14..27 => {
                    marks.clear(units);
                    model[part].fill(false);
                }
                _ => assert_eq!(marks.has_all(units), model[part].iter().all(|is_set| *is_set)),
            }
        }
    }

    /// Of how many pages of their memory there are any.
    fn pages_used(marks: &Marks) -> usize {
        let len = marks.count * WORD_BYTES;
        let mut there = vec![0u8; len.div_ceil(4096)];
        // SAFETY: the vector has a byte for each page of the mapping.
        let status = unsafe { libc::mincore(marks.words.as_ptr().cast(), len, there.as_mut_ptr()) };
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
        there.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn only_marks_cost_memory() {
        // Of a file of 16 TiB.
        let marks = Marks::new(1 << 32).unwrap();
        assert_eq!(pages_used(&marks), 0);
        marks.clear(0..1 << 22);
        assert!(!marks.has_all((1 << 32) - 9..1 << 32));
        assert_eq!(marks.set((1 << 32) - 9..1 << 32), 9);
        assert_eq!(marks.set(7..9), 2);
        assert!(pages_used(&marks) <= 2 + (1 << 22) / 32_768, "{} pages", pages_used(&marks));
        marks.clear_all();
        assert_eq!(pages_used(&marks), 0);
        assert!(!marks.has_all(7..8));
    }
}
