//! Which pages are unsent, shared by all who send them.
//!
//! ```text
//!   dirty log ──▶ unsent ──take──▶ whoever is free: the main channel, or any of the data channels
//! ```
//!
//! A page is taken once in a pass, and its bit is cleared before its bytes are read: whatever the guest writes after
//! that is seen by the next sync.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use mig_proto::Name;
use mig_ram::{DirtyBitmap, GuestMemory, MAX_ZERO_PAGES, PAGE_SIZE, Run, zero_pages};
use mig_transport::Region;

use super::ram::Page;
use crate::error::{Error, Result};

/// Pages tested for zeros at once.
pub(crate) const RUN_PAGES: usize = MAX_ZERO_PAGES;

/// See the module.
pub(crate) struct Pages {
    blocks: Vec<Block>,
    /// Where the pass goes on: block and page. Held for looking at a few words of a bitmap.
    cursor: Mutex<(usize, usize)>,
    unsent: AtomicU64,
}

/// One RAM block of the source.
pub(crate) struct Block {
    name: Arc<[u8]>,
    pub(crate) region: Arc<dyn Region>,
    pub(crate) used_length: u64,
    pub(super) unsent: DirtyBitmap,
    /// What the transport did not take over; none has this as long as it takes everything.
    refused: OnceLock<DirtyBitmap>,
    /// Zero pages whose records the data channels leave to the main one.
    zeros: OnceLock<DirtyBitmap>,
}

/// Pages of one block that were taken together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) block: usize,
    pub(crate) runs: Vec<Run>,
    /// All pages of the runs.
    pub(crate) pages: usize,
}

impl Block {
    pub(crate) fn name(&self) -> Name<'_> {
        Name::new(&self.name).expect("names were checked when the source was made")
    }

    /// The page with this number; `index` is the block's own place.
    #[inline]
    pub(super) fn page(&self, index: usize, number: usize) -> Page<'_> {
        Page {
            block: index,
            name: self.name(),
            number,
            region: &self.region,
            at: number * PAGE_SIZE,
        }
    }

    /// Which pages of a run of at most [`RUN_PAGES`] are zero: bit i for its page i.
    pub(crate) fn zero_pages(&self, run: Run) -> Result<u64> {
        zero_pages(&*self.region, run.start * PAGE_SIZE, run.len).map_err(|error| {
            Error::misuse(format!("RAM block '{}': {error}", self.name().as_bytes().escape_ascii()))
        })
    }

    fn extra<'a>(&self, which: &'a OnceLock<DirtyBitmap>) -> &'a DirtyBitmap {
        which.get_or_init(|| DirtyBitmap::new(self.unsent.pages()))
    }

    /// The transport does not take these over.
    pub(super) fn refuse(&self, run: Run) {
        self.extra(&self.refused).set_range(run.start, run.len);
    }

    pub(super) fn refused(&self) -> Option<&DirtyBitmap> {
        self.refused.get()
    }

    /// The page is zero, and the main channel is to say so.
    pub(crate) fn leave_zero(&self, page: usize) {
        self.extra(&self.zeros).set(page);
    }

    pub(super) fn zeros(&self) -> Option<&DirtyBitmap> {
        self.zeros.get()
    }
}

impl Pages {
    pub(crate) fn new(memory: &dyn GuestMemory) -> Result<Self> {
        let mut blocks = Vec::new();
        for index in 0..memory.block_count() {
            let Some(info) = memory.block(index) else {
                return Err(Error::misuse(format!("RAM block {index} is not there")));
            };
            Name::new(&info.idstr)
                .map_err(|error| Error::misuse(format!("RAM block {index}: {error}")))?;
            blocks.push(Block {
                name: info.idstr.clone(),
                unsent: DirtyBitmap::new(info.pages()),
                refused: OnceLock::new(),
                zeros: OnceLock::new(),
                used_length: info.used_length,
                region: info.region,
            });
        }
        Ok(Self { blocks, cursor: Mutex::new((0, 0)), unsent: AtomicU64::new(0) })
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Bytes of guest memory that migrate.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length).sum()
    }

    /// Bytes of guest memory known to be unsent.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed) * PAGE_SIZE as u64
    }

    /// A new pass begins: what is unsent is counted, and taken from the start.
    pub(super) fn begin_pass(&self) {
        let unsent = self.blocks.iter().map(|block| block.unsent.count()).sum();
        self.unsent.store(unsent, Ordering::Relaxed);
        *self.cursor() = (0, 0);
    }

    /// Takes the next run of unsent pages, of one block; none once the pass is over. They count as unsent until they
    /// are said to be [sent](Self::sent).
    pub(super) fn take_run(&self, most: usize) -> Option<(usize, Run)> {
        self.take_run_at(&mut self.cursor(), most)
    }

    fn take_run_at(&self, cursor: &mut (usize, usize), most: usize) -> Option<(usize, Run)> {
        loop {
            let (index, from) = *cursor;
            match self.blocks.get(index)?.unsent.take_next_run(from, most) {
                Some(run) => {
                    *cursor = (index, run.end());
                    return Some((index, run));
                }
                None => *cursor = (index + 1, 0),
            }
        }
    }

    /// Takes unsent pages of one block, at most `most`, in runs of at most [`RUN_PAGES`]; false once the pass is over.
    pub(crate) fn take_batch(&self, batch: &mut Batch, most: usize) -> bool {
        batch.runs.clear();
        batch.pages = 0;
        let mut cursor = self.cursor();
        while batch.pages < most {
            if !batch.runs.is_empty() && cursor.0 != batch.block {
                break;
            }
            let before = *cursor;
            let Some((index, run)) =
                self.take_run_at(&mut cursor, RUN_PAGES.min(most - batch.pages))
            else {
                break;
            };
            if !batch.runs.is_empty() && index != batch.block {
                // The first of another block: for the next batch.
                self.blocks[index].unsent.set_range(run.start, run.len);
                *cursor = before;
                cursor.0 = index;
                cursor.1 = run.start;
                break;
            }
            batch.block = index;
            batch.pages += run.len;
            batch.runs.push(run);
        }
        !batch.runs.is_empty()
    }

    /// Whether everything that was unsent when the pass began was taken.
    pub(super) fn pass_is_over(&self) -> bool {
        let (index, from) = *self.cursor();
        let rest = self.blocks.get(index..).unwrap_or_default().iter();
        rest.enumerate().all(|(nth, block)| {
            block.unsent.next_dirty_run(if nth == 0 { from } else { 0 }).is_none()
        })
    }

    /// Pages that were taken and not sent after all: they are the next to be taken.
    pub(super) fn give_back(&self, index: usize, run: Run) {
        self.blocks[index].unsent.set_range(run.start, run.len);
        *self.cursor() = (index, run.start);
    }

    /// So many of the pages that were taken are sent.
    pub(crate) fn sent(&self, pages: u64) {
        self.unsent.fetch_sub(pages, Ordering::Relaxed);
    }

    fn cursor(&self) -> MutexGuard<'_, (usize, usize)> {
        // Nothing can panic between its two fields.
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mig_ram::{RamBlock, RamBlocks};

    use super::*;

    fn pages(blocks: &[u64]) -> Pages {
        let blocks = blocks.iter().enumerate();
        let blocks = blocks
            .map(|(i, pages)| RamBlock::new(format!("{i}"), pages * PAGE_SIZE as u64).unwrap());
        let pages = Pages::new(&RamBlocks::new(blocks).unwrap()).unwrap();
        pages.blocks.iter().for_each(|block| block.unsent.set_all());
        pages.begin_pass();
        pages
    }

    #[test]
    fn a_batch_has_pages_of_one_block() {
        let pages = pages(&[130, 3]);
        let mut batch = Batch::default();
        let mut taken = Vec::new();
        while pages.take_batch(&mut batch, 128) {
            assert!(batch.runs.iter().all(|run| run.len <= RUN_PAGES));
            assert_eq!(batch.pages, batch.runs.iter().map(|run| run.len).sum::<usize>());
            taken.push((batch.block, batch.pages));
        }
        assert_eq!(taken, [(0, 128), (0, 2), (1, 3)]);
        assert_eq!(pages.unsent_bytes(), 133 * PAGE_SIZE as u64);
        pages.sent(133);
        assert_eq!(pages.unsent_bytes(), 0);
    }

    #[test]
    fn scattered_pages_share_a_batch() {
        let pages = pages(&[1000]);
        let block = &pages.blocks[0];
        assert!((0..1000).step_by(2).all(|page| block.unsent.clear(page)));
        let mut batch = Batch::default();
        assert!(pages.take_batch(&mut batch, 128));
        assert_eq!((batch.pages, batch.runs.len()), (128, 128));
        assert_eq!(batch.runs[127], Run { start: 255, len: 1 });
    }

    #[test]
    fn every_page_is_taken_once_by_many() {
        let pages = pages(&[10_000, 1, 7_777]);
        let counts: Vec<DirtyBitmap> =
            pages.blocks.iter().map(|block| DirtyBitmap::new(block.unsent.pages())).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut batch = Batch::default();
                    while pages.take_batch(&mut batch, 128) {
                        for run in &batch.runs {
                            let new = counts[batch.block].set_range(run.start, run.len);
                            assert_eq!(new as usize, run.len, "taken twice");
                        }
                    }
                });
            }
        });
        assert_eq!(counts.iter().map(DirtyBitmap::count).sum::<u64>(), 17_778);
    }
}
