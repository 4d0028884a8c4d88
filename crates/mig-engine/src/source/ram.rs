//! The source's side of guest memory: which pages are unsent, and how one is sent.
//!
//! ```text
//!   dirty log ──sync──▶ DirtyBitmap (unsent) ──▶ zero?  ──yes──▶ ZERO record
//!                                                └─no──▶ [word][page by reference] ──▶ StreamWriter
//! ```
//!
//! A page's bit is cleared before its bytes are read: whatever the guest writes after that is seen by the next sync.
//!
//! A transport that carries pages itself is offered whole runs, untested; what it refuses goes into the stream behind its
//! window, where nothing may be in the stream.

use std::sync::Arc;

use mig_proto::{Name, RamWord, encode};
use mig_ram::{DirtyBitmap, GuestMemory, MAX_ZERO_PAGES, PAGE_SIZE, Run, zero_pages};
use mig_stream::StreamWriter;
use mig_transport::{RamBlockInfo, Region, SavePages};

use super::xbzrle::Xbzrle;
use crate::{
    error::{Error, Result},
    hooks::Hooks,
    statistics::Statistics,
};

/// Pages looked up in the bitmap and tested for zeros at once.
const RUN_PAGES: usize = MAX_ZERO_PAGES;

/// The longest run offered to a transport at once: far more than the largest write of one, and little enough that the
/// end of a PART, a cancel and the statistics do not wait for it.
const OFFER_BYTES: usize = 16 << 20;

/// The blocks of a migration and what of them is unsent.
pub(crate) struct RamSource {
    memory: Arc<dyn GuestMemory>,
    blocks: Vec<Block>,
    continued: encode::ContinueMemory,
    /// Where the pass goes on: block and page.
    cursor: (usize, usize),
    unsent_pages: u64,
    /// Capability `xbzrle`.
    xbzrle: Option<Xbzrle>,
}

struct Block {
    name: Arc<[u8]>,
    region: Arc<dyn Region>,
    used_length: u64,
    unsent: DirtyBitmap,
    /// What the transport did not take over; none has this as long as it takes everything.
    refused: Option<DirtyBitmap>,
}

impl Block {
    fn name(&self) -> Name<'_> {
        Name::new(&self.name).expect("names were checked when the source was made")
    }

    /// The page with this number; `index` is the block's own place.
    #[inline]
    fn page(&self, index: usize, number: usize) -> Page<'_> {
        Page {
            block: index,
            name: self.name(),
            number,
            region: &self.region,
            at: number * PAGE_SIZE,
        }
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
    pub(crate) fn new(memory: Arc<dyn GuestMemory>) -> Result<Self> {
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
                refused: None,
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
            xbzrle: None,
        })
    }

    /// Sends what the receiver has already as the difference, with a cache of `bytes`.
    pub(crate) fn use_xbzrle(&mut self, bytes: u64, statistics: &Statistics) -> Result<()> {
        self.xbzrle = Some(Xbzrle::new(&*self.memory, bytes, statistics)?);
        Ok(())
    }

    /// Whether [`use_xbzrle`](Self::use_xbzrle) was called.
    pub(crate) fn has_xbzrle(&self) -> bool {
        self.xbzrle.is_some()
    }

    /// Takes over the live parameter `xbzrle-cache-size`.
    pub(crate) fn resize_xbzrle(&mut self, bytes: u64, statistics: &Statistics) {
        if let Some(xbzrle) = &mut self.xbzrle {
            xbzrle.resize(bytes, statistics);
        }
    }

    /// Bytes of guest memory that migrate.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length).sum()
    }

    /// Bytes of guest memory known to be unsent.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.unsent_pages * PAGE_SIZE as u64
    }

    /// The block list (docs/wire/ram.md §2).
    pub(crate) fn encode_block_list(&self, out: &mut Vec<u8>) {
        let blocks =
            self.blocks.iter().map(|block| encode::Block::new(block.name(), block.used_length));
        encode::block_list(out, blocks);
    }

    /// The blocks as a transport's hooks want them, in stream order.
    pub(crate) fn hook_blocks(&self) -> Vec<RamBlockInfo> {
        let infos = self.blocks.iter().map(|block| RamBlockInfo {
            idstr: String::from_utf8_lossy(&block.name).into_owned(),
            used_length: block.used_length,
            region: Arc::clone(&block.region),
        });
        infos.collect()
    }

    /// Starts the dirty log; everything is unsent.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.memory.start_dirty_log()?;
        self.all_unsent();
        Ok(())
    }

    /// Everything is unsent, for memory that nobody writes to.
    pub(crate) fn all_unsent(&mut self) {
        for block in &self.blocks {
            block.unsent.set_all();
        }
        self.unsent_pages = self.blocks.iter().map(|block| block.unsent.count()).sum();
        self.cursor = (0, 0);
    }

    /// Reads the dirty log: what the guest wrote becomes unsent, and a new pass begins. Answers how many pages it
    /// wrote.
    pub(crate) fn sync(&mut self) -> Result<u64> {
        let mut dirtied = 0;
        for (index, block) in self.blocks.iter().enumerate() {
            dirtied += self.memory.sync_dirty(index, &block.unsent)?;
        }
        self.unsent_pages = self.blocks.iter().map(|block| block.unsent.count()).sum();
        self.cursor = (0, 0);
        if let Some(xbzrle) = &mut self.xbzrle {
            xbzrle.next_pass();
        }
        Ok(dirtied)
    }

    /// Lists records of unsent pages until the writer wants to be flushed or the pass is over; answers whether
    /// anything is left of it.
    pub(crate) fn put_pages(
        &mut self,
        out: &mut StreamWriter,
        statistics: &Statistics,
    ) -> Result<bool> {
        let mut xbzrle = self.xbzrle.as_mut().filter(|xbzrle| xbzrle.is_on());
        let (mut normal, mut zero) = (0u64, 0u64);
        let more = 'pass: loop {
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
                    break 'pass true;
                }
                let is_zero = zeros >> (page - run.start) & 1 != 0;
                let page = block.page(index, page);
                let sent = match &mut xbzrle {
                    None => put_page(out, &mut self.continued, page, is_zero)?,
                    Some(xbzrle) => xbzrle.put(out, &mut self.continued, page, is_zero)?,
                };
                zero += u64::from(sent == Sent::Zero);
                normal += u64::from(sent == Sent::Whole);
            }
            self.unsent_pages -= (run.end() - run.start) as u64;
            self.cursor = (index, run.end());
        };
        if let Some(xbzrle) = xbzrle {
            xbzrle.tell(statistics);
        }
        statistics.normal.add(normal);
        statistics.duplicate.add(zero);
        Ok(more)
    }

    /// Offers a run of unsent pages to a transport that carries them itself; answers whether anything is left. Under a
    /// rate the run is short and paid for before this returns.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the run may be neither sent nor unsent.
    pub(crate) async fn offer_pages(
        &mut self,
        out: &mut StreamWriter,
        hooks: &mut Hooks,
        statistics: &Statistics,
    ) -> Result<bool> {
        let (index, from) = self.cursor;
        let Some(block) = self.blocks.get_mut(index) else { return Ok(false) };
        let most = (out.step_beside(OFFER_BYTES) / PAGE_SIZE).max(1);
        let Some(run) = block.unsent.take_next_run(from, most) else {
            self.cursor = (index + 1, 0);
            return Ok(true);
        };
        self.cursor = (index, run.end());
        let len = run.len * PAGE_SIZE;
        match hooks.save(index, (run.start * PAGE_SIZE) as u64, len as u64).await? {
            SavePages::NotSupported => {
                let pages = block.unsent.pages();
                let refused = block.refused.get_or_insert_with(|| DirtyBitmap::new(pages));
                refused.set_range(run.start, run.len);
            }
            SavePages::Delayed { zero_pages } => {
                let pages = run.len as u64;
                let zero = zero_pages.min(pages);
                statistics.duplicate.add(zero);
                statistics.normal.add(pages - zero);
                self.unsent_pages -= pages;
                // No more than `len`.
                out.pay_beside(len - zero as usize * PAGE_SIZE).await?;
            }
        }
        Ok(true)
    }

    /// Sends in the stream what the transport did not take over, after its window: within one, nothing may be in the
    /// stream (docs/wire/rdma.md §5).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a run is neither sent nor unsent.
    pub(crate) async fn put_refused(
        &mut self,
        out: &mut StreamWriter,
        statistics: &Statistics,
    ) -> Result<()> {
        for (index, block) in self.blocks.iter().enumerate() {
            let Some(refused) = &block.refused else { continue };
            let mut from = 0;
            while let Some(run) = refused.take_next_run(from, RUN_PAGES) {
                let zeros = block.zero_pages(run)?;
                for page in run.start..run.end() {
                    out.make_room().await?;
                    let is_zero = zeros >> (page - run.start) & 1 != 0;
                    put_page(out, &mut self.continued, block.page(index, page), is_zero)?;
                }
                let zero = u64::from(zeros.count_ones());
                statistics.duplicate.add(zero);
                statistics.normal.add(run.len as u64 - zero);
                self.unsent_pages -= run.len as u64;
                from = run.end();
            }
        }
        Ok(())
    }
}

/// A page to be sent, and where its bytes are.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    /// The block's place in the block list, and its name.
    pub(super) block: usize,
    pub(super) name: Name<'a>,
    /// Counted from the block's start.
    pub(super) number: usize,
    pub(super) region: &'a Arc<dyn Region>,
    pub(super) at: usize,
}

/// What was sent for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// A ZERO record.
    Zero,
    /// A PAGE record.
    Whole,
    /// An XBZRLE record.
    Delta,
    /// No record: the receiver has it as it is.
    Nothing,
}

/// Lists one page.
#[inline]
pub(super) fn put_page(
    out: &mut StreamWriter,
    continued: &mut encode::ContinueMemory,
    page: Page<'_>,
    is_zero: bool,
) -> Result<Sent> {
    let offset = (page.number * PAGE_SIZE) as u64;
    let number = u32::try_from(page.block).unwrap_or(u32::MAX);
    if is_zero {
        let word = continued.word(number, RamWord::zero(offset));
        if word.is_continue() {
            let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
            out.put(&[a, b, c, d, e, f, g, h, 0])?;
        } else {
            let mut head = Vec::with_capacity(32);
            encode::zero_page(&mut head, word, page.name);
            out.put(&head)?;
        }
        return Ok(Sent::Zero);
    }
    let word = continued.word(number, RamWord::page(offset));
    if word.is_continue() {
        out.put_head_and_region(&word.to_be_bytes(), page.region, page.at, PAGE_SIZE)?;
    } else {
        let mut head = Vec::with_capacity(32);
        encode::page_head(&mut head, word, page.name);
        out.put_head_and_region(&head, page.region, page.at, PAGE_SIZE)?;
    }
    Ok(Sent::Whole)
}
