//! The source's side of guest memory: which pages are unsent, and how one is sent.
//!
//! ```text
//!   dirty log ──sync──▶ DirtyBitmap (unsent) ──▶ zero?  ──yes──▶ ZERO record
//!                                                └─no──▶ [word][page by reference] ──▶ StreamWriter
//! ```
//!
//! A transport that carries pages itself is offered whole runs, untested; what it refuses goes into the stream behind its
//! window, where nothing may be in the stream.

use std::sync::Arc;

use mig_proto::{Name, RamWord, encode};
use mig_ram::{GuestMemory, PAGE_SIZE, Run};
use mig_stream::StreamWriter;
use mig_transport::{RamBlockInfo, Region, SavePages};

use super::{
    pages::{Pages, RUN_PAGES},
    xbzrle::Xbzrle,
};
use crate::{error::Result, hooks::Hooks, statistics::Statistics, turn::Turn};

/// The longest run offered to a transport at once: far more than the largest write of one, and little enough that the
/// end of a PART, a cancel and the statistics do not wait for it.
const OFFER_BYTES: usize = 16 << 20;

/// The blocks of a migration and what of them is unsent.
pub(crate) struct RamSource {
    memory: Arc<dyn GuestMemory>,
    pages: Arc<Pages>,
    continued: encode::ContinueMemory,
    /// Capability `xbzrle`.
    xbzrle: Option<Xbzrle>,
}

impl RamSource {
    pub(crate) fn new(memory: Arc<dyn GuestMemory>) -> Result<Self> {
        let pages = Arc::new(Pages::new(&*memory)?);
        Ok(Self { memory, pages, continued: encode::ContinueMemory::new(), xbzrle: None })
    }

    /// What is unsent, for others who send it.
    pub(crate) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// Sends what the receiver has already as the difference, with a cache of `bytes`.
    pub(crate) fn use_xbzrle(&mut self, bytes: u64, statistics: &Statistics) -> Result<()> {
        self.xbzrle = Some(Xbzrle::new(&*self.memory, bytes, statistics)?);
        Ok(())
    }

    /// What sending `pages` pages that the guest has written will take, as far as can be told.
    pub(crate) fn expected_bytes(&self, pages: u64) -> u64 {
        match &self.xbzrle {
            Some(xbzrle) => xbzrle.expected_bytes(pages),
            None => pages.saturating_mul(PAGE_SIZE as u64),
        }
    }

    /// Whether [`use_xbzrle`](Self::use_xbzrle) was called.
    pub(crate) fn has_xbzrle(&self) -> bool {
        self.xbzrle.is_some()
    }

    /// Takes over the live parameter `xbzrle-cache-size`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the cache stays as it is.
    pub(crate) async fn resize_xbzrle(&mut self, bytes: u64, statistics: &Statistics) {
        if let Some(xbzrle) = &mut self.xbzrle {
            xbzrle.resize(bytes, statistics).await;
        }
    }

    /// Bytes of guest memory that migrate.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.pages.total_bytes()
    }

    /// Bytes of guest memory known to be unsent.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.pages.unsent_bytes()
    }

    /// Whether everything that was unsent when the pass began was taken.
    pub(crate) fn pass_is_over(&self) -> bool {
        self.pages.pass_is_over()
    }

    /// The block list (docs/wire/ram.md §2).
    pub(crate) fn encode_block_list(&self, out: &mut Vec<u8>) {
        let blocks = self.pages.blocks().iter();
        let blocks = blocks.map(|block| encode::Block::new(block.name(), block.used_length));
        encode::block_list(out, blocks);
    }

    /// The blocks as a transport's hooks want them, in stream order.
    pub(crate) fn hook_blocks(&self) -> Vec<RamBlockInfo> {
        let infos = self.pages.blocks().iter().map(|block| RamBlockInfo {
            idstr: String::from_utf8_lossy(block.name().as_bytes()).into_owned(),
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
        for block in self.pages.blocks() {
            block.unsent.set_all();
        }
        self.pages.begin_pass();
    }

    /// Reads the dirty log: what the guest wrote becomes unsent, and a new pass begins. Answers how many pages it
    /// wrote.
    pub(crate) fn sync(&mut self) -> Result<u64> {
        let mut dirtied = 0;
        for (index, block) in self.pages.blocks().iter().enumerate() {
            dirtied += self.memory.sync_dirty(index, &block.unsent)?;
        }
        self.pages.begin_pass();
        if let Some(xbzrle) = &mut self.xbzrle {
            xbzrle.next_pass();
        }
        Ok(dirtied)
    }

    /// Lists records of unsent pages until the writer wants to be flushed, the turn is over or the pass is; answers whether
    /// anything is left of it.
    pub(crate) fn put_pages(
        &mut self,
        out: &mut StreamWriter,
        turn: &mut Turn,
        statistics: &Statistics,
    ) -> Result<bool> {
        let mut xbzrle = self.xbzrle.as_mut().filter(|xbzrle| xbzrle.is_on());
        let (mut normal, mut zero) = (0u64, 0u64);
        let more = 'pass: loop {
            // Pages that need no record never fill the writer.
            if out.needs_flush() || turn.is_over() {
                break true;
            }
            let Some((index, run)) = self.pages.take_run(RUN_PAGES) else { break false };
            let block = &self.pages.blocks()[index];
            let zeros = block.zero_pages(run)?;
            for page in run.start..run.end() {
                if out.needs_flush() {
                    // Not sent after all.
                    self.pages.give_back(index, Run { start: page, len: run.end() - page });
                    self.pages.sent((page - run.start) as u64);
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
            self.pages.sent(run.len as u64);
            turn.work(pages_of(run));
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
        let most = (out.step_beside(OFFER_BYTES) / PAGE_SIZE).max(1);
        let Some((index, run)) = self.pages.take_run(most) else { return Ok(false) };
        let len = run.len * PAGE_SIZE;
        match hooks.save(index, (run.start * PAGE_SIZE) as u64, len as u64).await? {
            SavePages::NotSupported => self.pages.blocks()[index].refuse(run),
            SavePages::Delayed { zero_pages } => {
                let pages = run.len as u64;
                let zero = zero_pages.min(pages);
                statistics.duplicate.add(zero);
                statistics.normal.add(pages - zero);
                self.pages.sent(pages);
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
        for (index, block) in self.pages.blocks().iter().enumerate() {
            let Some(refused) = block.refused() else { continue };
            let (mut from, mut turn) = (0, Turn::new());
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
                self.pages.sent(run.len as u64);
                from = run.end();
                if turn.work(pages_of(run)) {
                    turn.give_way().await;
                }
            }
        }
        Ok(())
    }

    /// Sends the records of zero pages that the data channels left to the main one.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a run is neither sent nor unsent.
    pub(crate) async fn put_zeros(
        &mut self,
        out: &mut StreamWriter,
        statistics: &Statistics,
    ) -> Result<()> {
        for (index, block) in self.pages.blocks().iter().enumerate() {
            let Some(zeros) = block.zeros() else { continue };
            let (mut from, mut turn) = (0, Turn::new());
            while let Some(run) = zeros.take_next_run(from, RUN_PAGES) {
                for page in run.start..run.end() {
                    out.make_room().await?;
                    // It was zero when it was looked at; if it no longer is, the dirty log knows.
                    put_page(out, &mut self.continued, block.page(index, page), true)?;
                }
                statistics.duplicate.add(run.len as u64);
                self.pages.sent(run.len as u64);
                from = run.end();
                if turn.work(pages_of(run)) {
                    turn.give_way().await;
                }
            }
        }
        Ok(())
    }
}

/// What a turn is told of a run that is no longer than [`RUN_PAGES`].
fn pages_of(run: Run) -> u32 {
    u32::try_from(run.len).unwrap_or(u32::MAX)
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
