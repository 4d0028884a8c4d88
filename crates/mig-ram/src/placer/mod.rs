//! Where pages land on the destination, in bulk, because touching fresh memory page by page is what costs most there.
//!
//! ```text
//!   page ──▶ present already? ── yes ──▶ copied in place
//!              │ no
//!              ▼
//!        staging buffer (runs of following pages, 1 MiB) ── full or flush ──▶ UFFDIO_COPY, one call a run
//!   zero ──▶ present already? ── no ──▶ nothing to do: untouched memory reads as zeros
//!              └ yes ──▶ looked at, zeroed if it must
//! ```
//!
//! [`Placement`] is the destination's memory while pages arrive: what is there, how pages get in. Each channel has a
//! [`Placer`] of its own, with its own staging. Four mechanisms, best first ([`PlaceMechanism`]); which one runs, and
//! why not a better one, is in [`Placement::info`].
//!
//! **While a placement runs nobody else may touch pages that have not arrived.** They are registered with userfaultfd
//! and nobody serves faults: such a thread sleeps until [`Placement::finish`], and then sees the finished memory. (The
//! alternative, `UFFD_FEATURE_SIGBUS`, would kill the process instead; waiting is the better failure.) The placer
//! itself never touches a page that is not known to be present, so a hostile source cannot make it wait for itself.
//! So: place, [`Placer::flush`], [`Placement::finish`], and only then verify, or start the guest.
//!
//! On failure a page may be half written; the destination's memory is worthless and the guest stays on the source.

mod huge;
mod placement;
mod staging;
mod worker;

use std::{fmt, sync::Arc, time::Duration};

use mig_transport::{RegionSlice, publish_streamed};

pub use self::placement::{Placement, PlacementInfo, PlacementStatistics};
use self::{
    placement::{Bulk, PlacedBlock},
    staging::Staging,
    worker::Worker,
};
use crate::{
    bitmap::Run,
    block::PAGE_SIZE,
    error::{Error, Result},
};

/// A way to bring pages into memory that was never touched, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaceMechanism {
    /// A huge page is populated when the first page comes that lies in it, then copies. For memory that [may have
    /// them](mig_transport::Region::may_have_huge_pages), where they proved to be cheaper, and for as long as they are.
    HugePages,
    /// Staged and placed with `UFFDIO_COPY`: one call allocates and fills up to 256 pages, none of them zeroed first.
    Userfault,
    /// `MADV_POPULATE_WRITE` ahead of pages that come in sequence, then copies.
    Populate,
    /// Copies. Right for memory that was touched before; for fresh memory each page costs a fault.
    Plain,
}

impl PlaceMechanism {
    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HugePages => "huge-pages",
            Self::Userfault => "uffd-copy",
            Self::Populate => "populate-ahead",
            Self::Plain => "plain-copy",
        }
    }
}

impl fmt::Display for PlaceMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which mechanisms may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlacePolicy {
    /// The best one that works here.
    #[default]
    Best,
    /// This one or none: for tests, and for comparing them.
    Only(PlaceMechanism),
}

/// Who does the placing.
///
/// A thread takes the copy off the path that reads the socket: less time where a core is free (0.59 against 0.78 s for
/// 2 GiB when measured), a little more processor time. Inline is right where cores are scarce or channels are many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copying {
    /// [`Thread`](Self::Thread) where this process may use a second processor, else [`Inline`](Self::Inline).
    #[default]
    Auto,
    /// The caller of [`Placer::place_page`].
    Inline,
    /// A thread for each [`Placer`], fed through a short queue of staging buffers.
    Thread,
}

/// What is known of the memory before the first page arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warmth {
    /// Ask [`GuestMemory::mark_touched`](crate::GuestMemory::mark_touched); what that does not know counts as touched.
    #[default]
    Detect,
    /// The caller promises that nothing was ever written: every page reads as zeros.
    Cold,
    /// Every page exists already, with any contents.
    Warm,
}

/// How a placement is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementOptions {
    /// Which mechanisms may run.
    pub policy: PlacePolicy,
    /// Who does the placing.
    pub copying: Copying,
    /// What is known of the memory.
    pub warmth: Warmth,
    /// How many pages a staging buffer holds, 1 to 1024. 128 to 256 measured best; a [`Placer`] has one buffer, with
    /// [`Copying::Thread`] up to four.
    pub staging_pages: usize,
}

impl Default for PlacementOptions {
    fn default() -> Self {
        Self {
            policy: PlacePolicy::default(),
            copying: Copying::default(),
            warmth: Warmth::default(),
            staging_pages: 256,
        }
    }
}

/// One channel's way into the destination's memory. Made by [`Placement::placer`].
///
/// Pages are in memory after [`flush`](Self::flush). Dropped without it, what is still staged is
/// lost and [`Placement::finish`] refuses. For one placer,
/// the last record of a page wins; between placers the order is the protocol's business (docs/wire/ram.md §9.5), so
/// each flushes where channels synchronise. A source that breaks it, and sends a page on two channels at a time, gets one
/// of the two or a mixture of them, and nothing worse.
#[derive(Debug)]
pub struct Placer {
    placement: Arc<Placement>,
    lane: Lane,
    ahead: Ahead,
}

impl Placer {
    fn new(placement: Arc<Placement>) -> Result<Self> {
        let options = placement.options();
        let threaded = match options.copying {
            Copying::Inline => false,
            Copying::Thread => true,
            Copying::Auto => placement.places_in_bulk() && more_than_one_processor(),
        };
        let worker = threaded.then(|| Worker::start(Arc::clone(&placement))).transpose()?;
        let staging = Staging::new(options.staging_pages);
        let lane = Lane { staging, worker, tally: Tally::default() };
        Ok(Self { placement, lane, ahead: Ahead::default() })
    }

    /// Takes the page at `offset` of the block at index `block` (docs/wire/ram.md §3, PAGE).
    ///
    /// Copied before this returns; in guest memory after the next [`flush`](Self::flush) at the latest.
    pub fn place_page(&mut self, block: usize, offset: u64, page: &[u8]) -> Result<()> {
        let Self { placement, lane, ahead } = self;
        let (to, number) = placement.locate(block, offset)?;
        if page.len() != PAGE_SIZE {
            return Err(Error::misuse(format!(
                "a page of {} bytes; it has {PAGE_SIZE}",
                page.len()
            )));
        }
        lane.tally.received(placement, block, number);
        if to.pending.test(number) {
            // Sent twice within one staging buffer: the first must be in memory before the second.
            lane.flush(placement)?;
        }
        if !to.present.test(number) {
            match &to.bulk {
                Bulk::Userfault(registration) if registration.is_active() => {
                    to.pending.set(number);
                    lane.staging.push(block, number, page);
                    return lane.submit_if_full(placement);
                }
                Bulk::Huge(chunks) if !chunks.are_over() => {
                    placement.populate_chunk(to, chunks, number);
                }
                Bulk::Huge(_) | Bulk::Populate => ahead.reach(block, to, number),
                Bulk::Userfault(_) | Bulk::Plain => {}
            }
        }
        to.copy_in(number, page);
        lane.tally.copied += 1;
        lane.tally.publish_if_many(placement);
        Ok(())
    }

    /// Lends memory in which pages can be received, one after the other, to be handed in with
    /// [`take_lent`](Self::take_lent) in the same order: that spares a copy. At least one page; the same memory, with
    /// what was put in it, less what was handed in, until the last page of it was or another method of this was called.
    ///
    /// `None` where pages are better given to [`place_page`](Self::place_page).
    pub fn lend(&mut self) -> Option<&mut [u8]> {
        let in_bulk = self.placement.places_in_bulk();
        in_bulk.then(|| self.lane.staging.free())
    }

    /// Takes the first page of what was [lent](Self::lend) as the page at `offset` of the block at index `block`. False
    /// if it cannot be taken from there: give it to [`place_page`](Self::place_page), and what was lent is void.
    pub fn take_lent(&mut self, block: usize, offset: u64) -> Result<bool> {
        let Self { placement, lane, .. } = self;
        let (to, number) = placement.locate(block, offset)?;
        // Sent twice within one staging buffer: the first must be in memory before the second.
        if to.pending.test(number) {
            return Ok(false);
        }
        lane.tally.received(placement, block, number);
        lane.tally.lent += 1;
        match &to.bulk {
            Bulk::Userfault(registration)
                if registration.is_active() && !to.present.test(number) =>
            {
                to.pending.set(number);
                lane.staging.take(block, number);
            }
            _ => {
                to.copy_in(number, &lane.staging.free()[..PAGE_SIZE]);
                lane.staging.pass_over();
                lane.tally.copied += 1;
                lane.tally.publish_if_many(placement);
            }
        }
        lane.submit_if_full(placement)?;
        Ok(true)
    }

    /// Where the pages at `offsets` of the block at index `block` can be received straight into guest memory, with no
    /// copy on the way: appends their places to `places`, in order, pages that follow each other as one. False, and
    /// nothing appended, if a page of them has to be staged, because it does not exist yet: [`lend`](Self::lend) memory
    /// for all of them then.
    ///
    /// Say when their bytes came: [`received_in_place`](Self::received_in_place).
    pub fn in_place(
        &mut self,
        block: usize,
        offsets: &[u64],
        places: &mut Vec<RegionSlice>,
    ) -> Result<bool> {
        let Self { placement, ahead, .. } = self;
        for offset in offsets {
            let (to, number) = placement.locate(block, *offset)?;
            if to.pending.test(number) {
                return Ok(false);
            }
            if to.present.test(number) {
                continue;
            }
            match &to.bulk {
                // The kernel would wait for the page as any other thread does, for ever.
                Bulk::Userfault(registration) if registration.is_active() => return Ok(false),
                Bulk::Huge(chunks) if !chunks.are_over() => {
                    placement.populate_chunk(to, chunks, number);
                }
                Bulk::Huge(_) | Bulk::Populate => ahead.reach(block, to, number),
                Bulk::Userfault(_) | Bulk::Plain => {}
            }
        }
        let mut pages = offsets.iter().copied().peekable();
        while let Some(start) = pages.next() {
            let mut end = start + PAGE_SIZE as u64;
            while pages.next_if_eq(&end).is_some() {
                end += PAGE_SIZE as u64;
            }
            let (to, _) = placement.locate(block, start)?;
            // Less than a block, which is in memory.
            places.push(to.info.slice(start, (end - start) as usize)?);
        }
        Ok(true)
    }

    /// All bytes of the pages at `offsets` were received [in place](Self::in_place).
    pub fn received_in_place(&mut self, block: usize, offsets: &[u64]) -> Result<()> {
        let Self { placement, lane, .. } = self;
        for offset in offsets {
            let (to, number) = placement.locate(block, *offset)?;
            lane.tally.received(placement, block, number);
            if !to.present.test(number) {
                to.present.set(number);
            }
        }
        lane.tally.copied += offsets.len() as u64;
        lane.tally.publish_if_many(placement);
        Ok(())
    }

    /// Makes the page at `offset` of the block at index `block` zero (docs/wire/ram.md §1, ZERO).
    ///
    /// Untouched memory is left untouched.
    pub fn place_zero(&mut self, block: usize, offset: u64) -> Result<()> {
        let Self { placement, lane, .. } = self;
        let (to, number) = placement.locate(block, offset)?;
        lane.tally.received(placement, block, number);
        if to.pending.test(number) {
            lane.flush(placement)?;
        }
        // A page another channel has in its staging is not present yet: no order exists between the two.
        if to.present.test(number) && to.make_zero(number) {
            lane.tally.zero_written += 1;
        } else {
            lane.tally.zero_skipped += 1;
        }
        lane.tally.publish_if_many(placement);
        Ok(())
    }

    /// Reads what the page at `offset` holds now, staged pages included: the base of an XBZRLE delta
    /// (docs/wire/ram.md §4).
    pub fn read_page(
        &mut self,
        block: usize,
        offset: u64,
        into: &mut [u8; PAGE_SIZE],
    ) -> Result<()> {
        let Self { placement, lane, .. } = self;
        let (from, number) = placement.locate(block, offset)?;
        if from.pending.test(number) {
            lane.flush(placement)?;
        }
        if from.present.test(number) {
            from.copy_out(number, into);
        } else {
            into.fill(0);
        }
        Ok(())
    }

    /// Brings everything taken so far into guest memory before it returns.
    pub fn flush(&mut self) -> Result<()> {
        self.lane.flush(&self.placement)
    }

    /// The placement this belongs to.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }
}

impl Drop for Placer {
    fn drop(&mut self) {
        self.placement.lose(self.lane.staging.pages());
        self.lane.tally.publish(&self.placement);
    }
}

/// The staging of one channel, and the thread behind it if there is one.
#[derive(Debug)]
struct Lane {
    staging: Staging,
    worker: Option<Worker>,
    tally: Tally,
}

impl Lane {
    fn flush(&mut self, placement: &Placement) -> Result<()> {
        self.submit(placement)?;
        self.tally.publish(placement);
        publish_streamed();
        match &mut self.worker {
            Some(worker) => worker.drain(),
            None => Ok(()),
        }
    }

    fn submit_if_full(&mut self, placement: &Placement) -> Result<()> {
        if self.staging.is_full() { self.submit(placement) } else { Ok(()) }
    }

    fn submit(&mut self, placement: &Placement) -> Result<()> {
        if self.staging.is_empty() {
            return Ok(());
        }
        match &mut self.worker {
            None => {
                let done = placement.put(&self.staging);
                self.staging.clear();
                done
            }
            Some(worker) => worker.submit(&mut self.staging),
        }
    }
}

/// What one channel did since it last told: channels would fight over shared counters if each page touched them.
#[derive(Debug, Default)]
struct Tally {
    lent: u64,
    copied: u64,
    zero_skipped: u64,
    zero_written: u64,
    /// Pages received in a row and not yet noted: one atomic operation a page waits for all of the page's bytes.
    run: Option<(usize, Run)>,
}

impl Tally {
    fn received(&mut self, placement: &Placement, block: usize, number: usize) {
        if let Some((last, run)) = &mut self.run
            && *last == block
            && run.end() == number
        {
            run.len += 1;
            return;
        }
        self.note_run(placement);
        self.run = Some((block, Run { start: number, len: 1 }));
    }

    fn note_run(&mut self, placement: &Placement) {
        if let Some((block, run)) = self.run.take()
            && let Some(received) = placement.received(block)
        {
            received.set_range(run.start, run.len);
        }
    }

    fn publish_if_many(&mut self, placement: &Placement) {
        if self.copied + self.zero_skipped + self.zero_written >= 1024 {
            self.publish(placement);
        }
    }

    fn publish(&mut self, placement: &Placement) {
        self.note_run(placement);
        placement.count(&std::mem::take(self));
    }
}

/// Pages that come in sequence are populated ahead of time, in steps that double as long as the sequence lasts: what
/// is populated in vain is never more than what was needed.
#[derive(Debug, Default)]
struct Ahead {
    block: usize,
    next: usize,
    window: usize,
}

impl Ahead {
    /// 1 MiB at most at a time; 256 KiB to 2 MiB measured alike.
    const MOST: usize = 256;

    /// Makes the absent page `number` present, and some after it.
    fn reach(&mut self, block: usize, to: &PlacedBlock, number: usize) {
        let in_sequence = self.block == block && self.next == number && self.window > 0;
        self.window = if in_sequence { (self.window * 2).min(Self::MOST) } else { 1 };
        let pages = self.window.min(to.info.pages() - number);
        self.block = block;
        self.next = number + pages;
        // A single page is faulted in by its copy as quickly.
        if pages > 1 && to.populate(number, pages) {
            to.present.set_range(number, pages);
        }
    }
}

fn more_than_one_processor() -> bool {
    std::thread::available_parallelism().is_ok_and(|count| count.get() > 1)
}

/// How long anybody waits for the copying thread, which does nothing but move memory.
const WORKER_PATIENCE: Duration = Duration::from_secs(60);
