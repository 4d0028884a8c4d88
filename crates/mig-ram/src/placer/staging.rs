//! A buffer of pages on their way into memory, in runs of pages that follow each other.

use crate::block::PAGE_SIZE;

/// Pages of one block that follow each other, and follow the run before them in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StagedRun {
    pub(super) block: usize,
    pub(super) first: usize,
    pub(super) pages: usize,
}

/// At most `limit` pages; allocated once, reused.
#[derive(Debug)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    runs: Vec<StagedRun>,
    limit: usize,
}

impl Staging {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::with_capacity(limit * PAGE_SIZE), runs: Vec::new(), limit }
    }

    /// Adds a page; true if the buffer is full now. Only into a buffer that is not full.
    pub(super) fn push(&mut self, block: usize, number: usize, page: &[u8]) -> bool {
        self.bytes.extend_from_slice(page);
        match self.runs.last_mut() {
            Some(run) if run.block == block && run.first + run.pages == number => run.pages += 1,
            _ => self.runs.push(StagedRun { block, first: number, pages: 1 }),
        }
        self.bytes.len() >= self.limit * PAGE_SIZE
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.runs.clear();
    }

    /// The runs in the order they came, with their bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (StagedRun, &[u8])> {
        let mut rest = &self.bytes[..];
        self.runs.iter().map(move |run| {
            let (bytes, after) = rest.split_at(run.pages * PAGE_SIZE);
            rest = after;
            (*run, bytes)
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
            assert!(!staging.push(block, number, &[number as u8; PAGE_SIZE]));
        }
        assert!(staging.push(0, 10, &[10; PAGE_SIZE]));
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
}
