//! A buffer of pages on their way into memory, in runs of pages that follow each other.

use crate::block::PAGE_SIZE;

/// Pages of one block that follow each other, and lie so in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StagedRun {
    pub(super) block: usize,
    pub(super) first: usize,
    pub(super) pages: usize,
    slot: usize,
}

/// At most `limit` pages; allocated once, reused.
#[derive(Debug)]
pub(super) struct Staging {
    /// One page more than is used, so that the slots lie on page boundaries: that is how they are copied fastest.
    bytes: Box<[u8]>,
    base: usize,
    /// Slots taken, whether a run has them or they were passed over.
    used: usize,
    limit: usize,
    runs: Vec<StagedRun>,
}

impl Staging {
    pub(super) fn new(limit: usize) -> Self {
        let bytes = vec![0; (limit + 1) * PAGE_SIZE].into_boxed_slice();
        let base = bytes.as_ptr().align_offset(PAGE_SIZE).min(PAGE_SIZE);
        Self { bytes, base, used: 0, limit, runs: Vec::new() }
    }

    /// Adds a page. Only into a buffer that is not full.
    pub(super) fn push(&mut self, block: usize, number: usize, page: &[u8]) {
        self.free()[..PAGE_SIZE].copy_from_slice(page);
        self.take(block, number);
    }

    /// The slots that are free, to be filled in order and then [taken](Self::take).
    pub(super) fn free(&mut self) -> &mut [u8] {
        &mut self.bytes[self.base..][self.used * PAGE_SIZE..self.limit * PAGE_SIZE]
    }

    /// The first free slot holds this page.
    pub(super) fn take(&mut self, block: usize, number: usize) {
        let slot = self.used;
        self.used += 1;
        match self.runs.last_mut() {
            Some(run)
                if run.block == block
                    && run.first + run.pages == number
                    && run.slot + run.pages == slot =>
            {
                run.pages += 1;
            }
            _ => self.runs.push(StagedRun { block, first: number, pages: 1, slot }),
        }
    }

    /// Passes over the first free slot; its page went elsewhere.
    pub(super) fn pass_over(&mut self) {
        self.used += 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= self.limit
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many pages it holds.
    pub(super) fn pages(&self) -> usize {
        self.runs.iter().map(|run| run.pages).sum()
    }

    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }

    /// The runs in the order they came, with their bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (StagedRun, &[u8])> {
        let slots = &self.bytes[self.base..];
        self.runs.iter().map(move |run| {
            (*run, &slots[run.slot * PAGE_SIZE..(run.slot + run.pages) * PAGE_SIZE])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_share_a_run() {
        let mut staging = Staging::new(5);
        for (block, number) in [(0, 7), (0, 8), (1, 9), (0, 9)] {
            staging.push(block, number, &[number as u8; PAGE_SIZE]);
            assert!(!staging.is_full());
        }
        staging.push(0, 10, &[10; PAGE_SIZE]);
        assert!(staging.is_full());
        let runs: Vec<_> = staging
            .runs()
            .map(|(run, bytes)| {
                (run.block, run.first, run.pages, bytes.len() / PAGE_SIZE, bytes[0])
            })
            .collect();
        assert_eq!(runs, [(0, 7, 2, 2, 7), (1, 9, 1, 1, 9), (0, 9, 2, 2, 9)]);
        staging.clear();
        assert!(staging.is_empty());
    }

    #[test]
    fn slots_are_filled_first_and_taken_or_passed_over_after() {
        let mut staging = Staging::new(4);
        assert!(staging.free().as_ptr().cast::<[u8; PAGE_SIZE]>().addr().is_multiple_of(PAGE_SIZE));
        for (slot, page) in staging.free().chunks_mut(PAGE_SIZE).enumerate() {
            page.fill(slot as u8);
        }
        staging.take(0, 7);
        staging.pass_over();
        // Follows in memory, but not in the buffer.
        staging.take(0, 8);
        assert_eq!(staging.free().len(), PAGE_SIZE);
        staging.take(0, 9);
        assert!(staging.is_full());
        let runs: Vec<_> =
            staging.runs().map(|(run, bytes)| (run.first, run.pages, bytes[0])).collect();
        assert_eq!(runs, [(7, 1, 0), (8, 2, 2)]);
    }
}
