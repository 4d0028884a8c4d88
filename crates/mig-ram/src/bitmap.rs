//! One bit a page: which pages are dirty, received, present.
//!
//! ```text
//!   page    0 1 2 … 63 | 64 …          word i, bit b  =  page 64·i + b  (KVM's dirty log has the same layout)
//!   words  [   u64     |   u64   …
//! ```
//!
//! All operations take `&self`: a guest's writers, a tracker and the sender share one bitmap. Each is atomic for the
//! word it touches, so a bit set by one thread while another takes the word is seen either now or next time, never
//! lost. Bits past the last page are never set. Indexes past the end are a bug of the caller and panic.

use std::fmt;

use crate::sync::{AtomicU64, Ordering};

const BITS: usize = u64::BITS as usize;

/// A stretch of pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page.
    pub start: usize,
    /// How many there are, at least one.
    pub len: usize,
}

impl Run {
    /// The page after the last one.
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// One bit for each page of a block, shared between threads.
pub struct DirtyBitmap {
    words: Box<[AtomicU64]>,
    pages: usize,
}

impl DirtyBitmap {
    /// A bitmap of `pages` clear bits.
    pub fn new(pages: usize) -> Self {
        Self { words: (0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(), pages }
    }

    /// How many pages it covers.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// How many words [`take_word`](Self::take_word) and [`word`](Self::word) know.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Whether the bit of `page` is set.
    pub fn test(&self, page: usize) -> bool {
        let (word, mask) = self.locate(page);
        word.load(Ordering::Acquire) & mask != 0
    }

    /// Sets the bit of `page`; true if it was clear.
    pub fn set(&self, page: usize) -> bool {
        let (word, mask) = self.locate(page);
        word.fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Clears the bit of `page`; true if it was set.
    pub fn clear(&self, page: usize) -> bool {
        let (word, mask) = self.locate(page);
        word.fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Sets `len` bits from `start`; answers how many were clear.
    pub fn set_range(&self, start: usize, len: usize) -> u64 {
        let mut newly = 0;
        self.each_word(start, len, |word, mask| {
            newly += u64::from((!word.fetch_or(mask, Ordering::AcqRel) & mask).count_ones());
        });
        newly
    }

    /// Clears `len` bits from `start`; answers how many were set.
    pub fn clear_range(&self, start: usize, len: usize) -> u64 {
        let mut cleared = 0;
        self.each_word(start, len, |word, mask| {
            cleared += u64::from((word.fetch_and(!mask, Ordering::AcqRel) & mask).count_ones());
        });
        cleared
    }

    /// Sets every bit.
    pub fn set_all(&self) {
        self.set_range(0, self.pages);
    }

    /// Clears every bit.
    pub fn clear_all(&self) {
        self.clear_range(0, self.pages);
    }

    /// The 64 bits of pages `64 * index ..`.
    pub fn word(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    /// Takes the 64 bits of pages `64 * index ..` and leaves them clear.
    pub fn take_word(&self, index: usize) -> u64 {
        let word = &self.words[index];
        // Most words of a settled guest are clear; a load does not take the cache line away from the writers.
        if word.load(Ordering::Acquire) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) }
    }

    /// Sets the bits of `words`, which start at page `64 * first_word`; answers how many were clear.
    ///
    /// This is how the words of `KVM_GET_DIRTY_LOG` or of a `vm-memory` bitmap come in. Bits and words past the last
    /// page are ignored: both of those round up.
    pub fn merge_words(&self, first_word: usize, words: &[u64]) -> u64 {
        let own = self.words.get(first_word..).unwrap_or(&[]);
        let mut newly = 0;
        for (index, (word, &bits)) in own.iter().zip(words).enumerate() {
            let bits = bits & self.valid_mask(first_word + index);
            if bits != 0 {
                newly += u64::from((bits & !word.fetch_or(bits, Ordering::AcqRel)).count_ones());
            }
        }
        newly
    }

    /// Moves every bit of `from` into this bitmap and leaves `from` clear; answers how many were clear here.
    pub fn absorb(&self, from: &Self) -> u64 {
        (0..from.words().min(self.words()))
            .map(|index| match from.take_word(index) {
                0 => 0,
                bits => self.merge_words(index, &[bits]),
            })
            .sum()
    }

    /// A copy of the words, as they were one after the other.
    pub fn to_words(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    /// The first run of set bits that starts at or after `from`, as long as it goes.
    pub fn next_dirty_run(&self, from: usize) -> Option<Run> {
        self.next_run_within(from, usize::MAX)
    }

    /// The first run of set bits at or after `from`, cut at `max_len` pages.
    ///
    /// # Panics
    ///
    /// If `max_len` is zero.
    pub fn next_run_within(&self, from: usize, max_len: usize) -> Option<Run> {
        assert!(max_len > 0, "a run of no pages");
        let start = self.first(from, |bits| bits)?;
        let limit = start.saturating_add(max_len).min(self.pages);
        let end = self.first_until(start, limit, |bits| !bits).unwrap_or(limit);
        Some(Run { start, len: end - start })
    }

    /// Finds the first run at or after `from`, at most `max_len` pages of it, and clears those bits.
    ///
    /// Meant for one consumer (several may set meanwhile): two consumers could be given the same page.
    ///
    /// # Panics
    ///
    /// If `max_len` is zero.
    pub fn take_next_run(&self, from: usize, max_len: usize) -> Option<Run> {
        let run = self.next_run_within(from, max_len)?;
        self.clear_range(run.start, run.len);
        Some(run)
    }

    /// All runs of set bits in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_dirty_run(from)?;
            from = run.end();
            Some(run)
        })
    }

    fn first(&self, from: usize, want: impl Fn(u64) -> u64) -> Option<usize> {
        self.first_until(from, self.pages, want)
    }

    /// The first page in `from..limit` whose bit is set in `want(word)`.
    fn first_until(&self, from: usize, limit: usize, want: impl Fn(u64) -> u64) -> Option<usize> {
        if from >= limit {
            return None;
        }
        let mut index = from / BITS;
        let mut bits = want(self.word(index)) & (u64::MAX << (from % BITS));
        while bits == 0 {
            index += 1;
            if index * BITS >= limit {
                return None;
            }
            bits = want(self.word(index));
        }
        let page = index * BITS + bits.trailing_zeros() as usize;
        (page < limit).then_some(page)
    }

    fn locate(&self, page: usize) -> (&AtomicU64, u64) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        (&self.words[page / BITS], 1 << (page % BITS))
    }

    fn each_word(&self, start: usize, len: usize, mut act: impl FnMut(&AtomicU64, u64)) {
        let end = start.checked_add(len).filter(|end| *end <= self.pages);
        let end = end.unwrap_or_else(|| panic!("{len} pages from {start} of {}", self.pages));
        let mut page = start;
        while page < end {
            let bit = page % BITS;
            let here = (BITS - bit).min(end - page);
            act(&self.words[page / BITS], (u64::MAX >> (BITS - here)) << bit);
            page += here;
        }
    }

    fn valid_mask(&self, index: usize) -> u64 {
        match self.pages - index * BITS {
            left if left >= BITS => u64::MAX,
            left => (1 << left) - 1,
        }
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyBitmap({} of {} pages)", self.count(), self.pages)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same thing, slowly.
    struct Naive(Vec<bool>);

    impl Naive {
        fn fill(&mut self, start: usize, len: usize, value: bool) -> u64 {
            let mut changed = 0;
            for bit in &mut self.0[start..start + len] {
                changed += u64::from(*bit != value);
                *bit = value;
            }
            changed
        }

        fn run(&self, from: usize, max: usize) -> Option<Run> {
            let start = (from..self.0.len()).find(|page| self.0[*page])?;
            let len = self.0[start..].iter().take(max).take_while(|bit| **bit).count();
            Some(Run { start, len })
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(usize),
        Clear(usize),
        SetRange(usize, usize),
        ClearRange(usize, usize),
        TakeWord(usize),
        Merge(usize, Vec<u64>),
        NextRun(usize),
        TakeRun(usize, usize),
    }

    fn op(pages: usize) -> impl Strategy<Value = Op> {
        let range = (0..pages).prop_flat_map(move |start| (Just(start), 0..=pages - start));
        prop_oneof![
            (0..pages).prop_map(Op::Set),
            (0..pages).prop_map(Op::Clear),
            range.clone().prop_map(|(start, len)| Op::SetRange(start, len)),
            range.prop_map(|(start, len)| Op::ClearRange(start, len)),
            (0..pages.div_ceil(64)).prop_map(Op::TakeWord),
            (0..8usize, prop::collection::vec(any::<u64>(), 0..8))
                .prop_map(|(first, words)| Op::Merge(first, words)),
            (0..pages + 70).prop_map(Op::NextRun),
            (0..pages, 1..100usize).prop_map(|(from, max)| Op::TakeRun(from, max)),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_a_vec_of_bools_does(
            (pages, ops) in (1..400usize)
                .prop_flat_map(|pages| (Just(pages), prop::collection::vec(op(pages), 1..60)))
        ) {
            let bitmap = DirtyBitmap::new(pages);
            let mut naive = Naive(vec![false; pages]);
            for op in ops {
                match op {
                    Op::Set(p) => prop_assert_eq!(bitmap.set(p), naive.fill(p, 1, true) == 1),
                    Op::Clear(p) => prop_assert_eq!(bitmap.clear(p), naive.fill(p, 1, false) == 1),
                    Op::SetRange(s, l) => prop_assert_eq!(bitmap.set_range(s, l), naive.fill(s, l, true)),
                    Op::ClearRange(s, l) => prop_assert_eq!(bitmap.clear_range(s, l), naive.fill(s, l, false)),
                    Op::TakeWord(i) => {
                        let mut expected = 0;
                        for page in i * 64..pages.min(i * 64 + 64) {
                            expected |= u64::from(naive.0[page]) << (page % 64);
                            naive.0[page] = false;
                        }
                        prop_assert_eq!(bitmap.take_word(i), expected);
                    }
                    Op::Merge(first, words) => {
                        let mut newly = 0;
                        for (i, word) in words.iter().enumerate() {
                            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                                let page = (first + i) * 64 + bit;
                                if page < pages {
                                    newly += naive.fill(page, 1, true);
                                }
                            }
                        }
                        prop_assert_eq!(bitmap.merge_words(first, &words), newly);
                    }
                    Op::NextRun(from) => prop_assert_eq!(bitmap.next_dirty_run(from), naive.run(from, usize::MAX)),
                    Op::TakeRun(from, max) => {
                        let expected = naive.run(from, max);
                        prop_assert_eq!(bitmap.take_next_run(from, max), expected);
                        if let Some(run) = expected {
                            naive.fill(run.start, run.len, false);
                        }
                    }
                }
                prop_assert_eq!(bitmap.count(), naive.0.iter().filter(|b| **b).count() as u64);
            }
            for page in 0..pages {
                prop_assert_eq!(bitmap.test(page), naive.0[page]);
            }
            let covered: usize = bitmap.runs().map(|run| run.len).sum();
            prop_assert_eq!(covered as u64, bitmap.count());
            let other = DirtyBitmap::new(pages);
            prop_assert_eq!(other.absorb(&bitmap), covered as u64);
            prop_assert_eq!(bitmap.count(), 0);
        }
    }

    #[test]
    fn bits_set_while_words_are_taken_are_never_lost() {
        const PAGES: usize = 256;
        let bitmap = DirtyBitmap::new(PAGES);
        let done = std::sync::atomic::AtomicBool::new(false);
        let (set, taken) = std::thread::scope(|scope| {
            let setter = scope.spawn(|| {
                let set = (0..200_000).filter(|i| bitmap.set(i * 7 % PAGES)).count() as u64;
                done.store(true, Ordering::Release);
                set
            });
            let mut taken = 0;
            while !done.load(Ordering::Acquire) {
                for index in 0..bitmap.words() {
                    taken += u64::from(bitmap.take_word(index).count_ones());
                }
            }
            (setter.join().unwrap(), taken + bitmap.count())
        });
        assert_eq!(set, taken);
    }

    #[test]
    #[should_panic(expected = "page 65 of 65")]
    fn a_page_past_the_end_is_a_bug() {
        DirtyBitmap::new(65).set(65);
    }
}

#[cfg(all(test, modelled))]
mod models {
    use std::sync::Arc;

    use loom::{sync::atomic::AtomicU8, thread};

    use super::*;
    use crate::sync::model;

    const PAGE: usize = 1;

    /// The guest writes a page, then its bit is set; the source takes the bit, then reads the page. Whoever comes first,
    /// the last bytes are either read or still marked. Seen to fail with the page read before the bit is taken, and with
    /// relaxed orderings in `each_word` or in `set`.
    #[test]
    fn loom_a_write_is_read_or_still_marked() {
        model(|| {
            let bitmap = Arc::new(DirtyBitmap::new(2));
            let page = Arc::new(AtomicU8::new(0));
            // An earlier write, which marked it.
            bitmap.set(PAGE);
            let guest = {
                let (bitmap, page) = (Arc::clone(&bitmap), Arc::clone(&page));
                thread::spawn(move || {
                    page.store(1, Ordering::Relaxed);
                    bitmap.set(PAGE);
                })
            };
            let taken = bitmap.take_next_run(0, 8);
            let sent = page.load(Ordering::Relaxed);
            guest.join().unwrap();
            assert_eq!(taken, Some(Run { start: PAGE, len: 1 }));
            assert!(sent == 1 || bitmap.test(PAGE), "the last write is lost");
        });
    }

    /// The log is absorbed while the guest marks two pages, and again after it stopped: each mark arrives. Seen to fail
    /// with a load and a store in place of the swap of `take_word`.
    #[test]
    fn loom_no_mark_is_lost_while_the_log_is_read() {
        model(|| {
            let log = Arc::new(DirtyBitmap::new(2));
            let unsent = DirtyBitmap::new(2);
            let guest = {
                let log = Arc::clone(&log);
                thread::spawn(move || u64::from(log.set(0)) + u64::from(log.set(1)))
            };
            let early = unsent.absorb(&log);
            let marked = guest.join().unwrap();
            assert_eq!((marked, early + unsent.absorb(&log)), (2, 2));
            assert_eq!((unsent.count(), log.count()), (2, 0));
        });
    }
}
