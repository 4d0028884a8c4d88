//! The source's side of guest memory: which pages are unsent, and how one is sent.
//!
//! ```text
//!   dirty log ──sync──▶ DirtyBitmap (unsent) ──▶ zero?  ──yes──▶ ZERO record
//!                                                └─no──▶ [word][page by reference] ──▶ StreamWriter
//! ```
//!
//! A page's bit is cleared before its bytes are read: whatever the guest writes after that is seen by the next sync.

use std::sync::Arc;

use mig_proto::{Name, RamWord, encode};
use mig_ram::{DirtyBitmap, GuestMemory, MAX_ZERO_PAGES, PAGE_SIZE, Run, zero_pages};
use mig_stream::StreamWriter;
use mig_transport::{RamBlockInfo, RamHooks, Region, SavePages};

use crate::{
    error::{Error, Result},
    statistics::Statistics,
};

/// Pages looked up in the bitmap and tested for zeros at once.
const RUN_PAGES: usize = MAX_ZERO_PAGES;

/// The blocks of a migration and what of them is unsent.
pub(super) struct RamSource {
    memory: Arc<dyn GuestMemory>,
    blocks: Vec<Block>,
    continued: encode::ContinueMemory,
    /// Where the pass goes on: block and page.
    cursor: (usize, usize),
    unsent_pages: u64,
}

struct Block {
    name: Arc<[u8]>,
    region: Arc<dyn Region>,
    used_length: u64,
    unsent: DirtyBitmap,
}

impl Block {
    fn name(&self) -> Name<'_> {
        Name::new(&self.name).expect("names were checked when the source was made")
    }

    /// Which pages of a run of at most [`RUN_PAGES`] are zero: bit i for its page i.
    fn zero_pages(&self, run: Run) -> Result<u64> {
        let pages = run.end() - run.start;
        zero_pages(&*self.region, run.start * PAGE_SIZE, pages).map_err(|error| {
            Error::misuse(format!("RAM block '{}': {error}", self.name().as_bytes().escape_ascii()))
        })
    }
}

impl RamSource {
    pub(super) fn new(memory: Arc<dyn GuestMemory>) -> Result<Self> {
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
                used_length: info.used_length,
                region: info.region,
            });
        }
        Ok(Self {
            memory,
            blocks,
            continued: encode::ContinueMemory::new(),
            cursor: (0, 0),
            unsent_pages: 0,
        })
    }

    /// Bytes of guest memory that migrate.
    pub(super) fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length).sum()
    }

    /// Bytes of guest memory known to be unsent.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.unsent_pages * PAGE_SIZE as u64
    }

    /// The block list (docs/wire/ram.md §2).
    pub(super) fn encode_block_list(&self, out: &mut Vec<u8>) {
        let blocks =
            self.blocks.iter().map(|block| encode::Block::new(block.name(), block.used_length));
        encode::block_list(out, blocks);
    }

    /// Tells a transport with hooks of every block, in stream order.
    pub(super) async fn register(&self, hooks: &mut dyn RamHooks) -> Result<()> {
        for block in &self.blocks {
            let info = RamBlockInfo {
                idstr: String::from_utf8_lossy(&block.name).into_owned(),
                used_length: block.used_length,
                region: Arc::clone(&block.region),
            };
            hooks.register_block(&info).await?;
        }
        Ok(())
    }

    /// Starts the dirty log; everything is unsent.
    pub(super) fn start(&mut self) -> Result<()> {
        self.memory.start_dirty_log()?;
        for block in &self.blocks {
            block.unsent.set_all();
        }
        self.unsent_pages = self.blocks.iter().map(|block| block.unsent.count()).sum();
        self.cursor = (0, 0);
        Ok(())
    }

    /// Reads the dirty log: what the guest wrote becomes unsent, and a new pass begins. Answers how many pages it
    /// wrote.
    pub(super) fn sync(&mut self) -> Result<u64> {
        let mut dirtied = 0;
        for (index, block) in self.blocks.iter().enumerate() {
            dirtied += self.memory.sync_dirty(index, &block.unsent)?;
        }
        self.unsent_pages = self.blocks.iter().map(|block| block.unsent.count()).sum();
        self.cursor = (0, 0);
        Ok(dirtied)
    }

    /// Lists records of unsent pages until the writer wants to be flushed or the pass is over; answers whether
    /// anything is left of it.
    pub(super) fn put_pages(
        &mut self,
        out: &mut StreamWriter,
        statistics: &Statistics,
    ) -> Result<bool> {
        let (mut normal, mut zero) = (0u64, 0u64);
        let more = loop {
            if out.needs_flush() {
                break true;
            }
            let (index, from) = self.cursor;
            let Some(block) = self.blocks.get(index) else { break false };
            let Some(run) = block.unsent.take_next_run(from, RUN_PAGES) else {
                self.cursor = (index + 1, 0);
                continue;
            };
            let zeros = block.zero_pages(run)?;
            for page in run.start..run.end() {
                if out.needs_flush() {
                    // Not sent after all.
                    block.unsent.set_range(page, run.end() - page);
                    self.cursor = (index, page);
                    self.unsent_pages -= (page - run.start) as u64;
                    statistics.normal.add(normal);
                    statistics.duplicate.add(zero);
                    return Ok(true);
                }
                let is_zero = zeros >> (page - run.start) & 1 != 0;
                put_page(out, &mut self.continued, index, block, page, is_zero)?;
                zero += u64::from(is_zero);
                normal += u64::from(!is_zero);
            }
            self.unsent_pages -= (run.end() - run.start) as u64;
            self.cursor = (index, run.end());
        };
        statistics.normal.add(normal);
        statistics.duplicate.add(zero);
        Ok(more)
    }

    /// Offers unsent pages to a transport that carries them itself, a run's worth; answers whether anything is left.
    /// What it does not want goes into the stream.
    pub(super) async fn offer_pages(
        &mut self,
        out: &mut StreamWriter,
        hooks: &mut dyn RamHooks,
        statistics: &Statistics,
    ) -> Result<bool> {
        let (index, from) = self.cursor;
        let Some(block) = self.blocks.get(index) else { return Ok(false) };
        let Some(run) = block.unsent.take_next_run(from, RUN_PAGES) else {
            self.cursor = (index + 1, 0);
            return Ok(true);
        };
        let zeros = block.zero_pages(run)?;
        for page in run.start..run.end() {
            let offset = (page * PAGE_SIZE) as u64;
            let mut is_zero = false;
            let offered = hooks.save_pages(index, offset, PAGE_SIZE as u64).await?;
            if offered == SavePages::NotSupported {
                out.make_room().await?;
                is_zero = zeros >> (page - run.start) & 1 != 0;
                put_page(out, &mut self.continued, index, block, page, is_zero)?;
            }
            statistics.duplicate.add(is_zero.into());
            statistics.normal.add((!is_zero).into());
            self.unsent_pages -= 1;
        }
        self.cursor = (index, run.end());
        Ok(true)
    }
}

/// Lists one page.
#[inline]
fn put_page(
    out: &mut StreamWriter,
    continued: &mut encode::ContinueMemory,
    index: usize,
    block: &Block,
    page: usize,
    is_zero: bool,
) -> Result<()> {
    let offset = page * PAGE_SIZE;
    let number = u32::try_from(index).unwrap_or(u32::MAX);
    if is_zero {
        let word = continued.word(number, RamWord::zero(offset as u64));
        if word.is_continue() {
            let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
            out.put(&[a, b, c, d, e, f, g, h, 0])?;
        } else {
            let mut head = Vec::with_capacity(32);
            encode::zero_page(&mut head, word, block.name());
            out.put(&head)?;
        }
        return Ok(());
    }
    let word = continued.word(number, RamWord::page(offset as u64));
    if word.is_continue() {
        out.put_head_and_region(&word.to_be_bytes(), &block.region, offset, PAGE_SIZE)?;
    } else {
        let mut head = Vec::with_capacity(32);
        encode::page_head(&mut head, word, block.name());
        out.put_head_and_region(&head, &block.region, offset, PAGE_SIZE)?;
    }
    Ok(())
}
