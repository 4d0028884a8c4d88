//! The destination's memory while pages arrive: what is there, and how the rest gets in.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mig_transport::{RegionSlice, publish_streamed};

use super::{
    PlaceMechanism, PlacePolicy, PlacementOptions, Placer, Tally, Warmth,
    huge::{self, Chunks, Trial},
    staging::{StagedRun, Staging},
};
use crate::{
    bitmap::DirtyBitmap,
    block::PAGE_SIZE,
    error::{Error, Result},
    mapping,
    memory::{BlockInfo, GuestMemory, PassedOver, no_block},
    uffd::{Privilege, Registration, Userfaultfd, feature},
    zero::is_zero,
};

/// How pages get into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementInfo {
    /// The mechanism for memory that was not touched before. Touched memory is always copied into.
    pub mechanism: PlaceMechanism,
    /// Better ones, and why they do not run.
    pub passed_over: Vec<PassedOver>,
    /// How many of the bytes were touched before the first page arrived, as far as is known.
    pub touched_bytes: u64,
}

/// What a placement has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlacementStatistics {
    /// Pages the kernel allocated and filled in one step.
    pub pages_placed: u64,
    /// Of all pages, those received where they are placed from ([`Placer::lend`]).
    pub pages_lent: u64,
    /// Huge pages that were populated, at least in part.
    pub huge_pages: u64,
    /// Pages copied into memory that was there.
    pub pages_copied: u64,
    /// Zero pages for which nothing had to be written.
    pub zero_pages_skipped: u64,
    /// Zero pages that were written.
    pub zero_pages_written: u64,
    /// Processor time of the copying threads ([`Copying::Thread`](super::Copying::Thread)).
    pub copying_cpu: Duration,
}

/// The destination's memory while pages arrive, shared by the placers of all channels.
pub struct Placement {
    blocks: Vec<PlacedBlock>,
    info: PlacementInfo,
    options: PlacementOptions,
    counters: Counters,
    /// Pages that were staged and will never be in memory. `pending` alone cannot tell: two channels may stage one page.
    lost: AtomicU64,
}

#[derive(Default)]
struct Counters {
    placed: AtomicU64,
    lent: AtomicU64,
    huge: AtomicU64,
    copied: AtomicU64,
    zero_skipped: AtomicU64,
    zero_written: AtomicU64,
    cpu_nanos: AtomicU64,
}

/// One block. All bitmaps have one bit a page.
pub(super) struct PlacedBlock {
    pub(super) info: BlockInfo,
    pub(super) bulk: Bulk,
    /// A record for the page came.
    pub(super) received: DirtyBitmap,
    /// The page certainly exists: touching it cannot fault for userfaultfd. Clear means it reads as zeros.
    pub(super) present: DirtyBitmap,
    /// The page is in somebody's staging buffer.
    pub(super) pending: DirtyBitmap,
    populate_failed: AtomicBool,
}

/// Page numbers come from `Placement::locate`, or from runs made of such.
const CHECKED: &str = "the page was checked against the block";

/// How absent pages of a block come into being.
pub(super) enum Bulk {
    Huge(Chunks),
    Userfault(Registration),
    Populate,
    Plain,
}

impl Placement {
    /// Prepares the memory's blocks, with the lengths they have now: resize them before.
    ///
    /// From here until [`finish`](Self::finish), nobody else may touch pages that have not arrived (see the module).
    pub fn new(memory: &dyn GuestMemory, options: PlacementOptions) -> Result<Arc<Self>> {
        if !(1..=1024).contains(&options.staging_pages) {
            return Err(Error::misuse(format!(
                "a staging buffer of {} pages; 1 to 1024 make sense",
                options.staging_pages
            )));
        }
        let mut blocks = Vec::with_capacity(memory.block_count());
        for index in 0..memory.block_count() {
            let info = memory.block(index).ok_or_else(|| no_block(index))?;
            blocks.push(PlacedBlock::new(memory, index, info, options.warmth)?);
        }
        let touched: u64 = blocks.iter().map(|block| block.present.count()).sum();
        let mut info = PlacementInfo {
            mechanism: PlaceMechanism::Plain,
            passed_over: Vec::new(),
            touched_bytes: touched * PAGE_SIZE as u64,
        };
        choose(&mut blocks, options.policy, &mut info)?;
        tracing::debug!(?info, "placing pages");
        let (counters, lost) = (Counters::default(), AtomicU64::new(0));
        Ok(Arc::new(Self { blocks, info, options, counters, lost }))
    }

    /// A way in for one channel.
    pub fn placer(self: &Arc<Self>) -> Result<Placer> {
        Placer::new(Arc::clone(self))
    }

    /// Which mechanism runs, and why not a better one.
    pub fn info(&self) -> &PlacementInfo {
        &self.info
    }

    /// How it works.
    pub fn options(&self) -> &PlacementOptions {
        &self.options
    }

    /// The pages of a block for which a record came, in any form (docs/wire/ram.md §7; RECV_BITMAP); exact once every
    /// placer was flushed.
    pub fn received(&self, block: usize) -> Option<&DirtyBitmap> {
        self.blocks.get(block).map(|block| &block.received)
    }

    /// What was done so far; exact once every placer was flushed.
    pub fn statistics(&self) -> PlacementStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PlacementStatistics {
            pages_placed: read(&self.counters.placed),
            pages_lent: read(&self.counters.lent),
            huge_pages: read(&self.counters.huge),
            pages_copied: read(&self.counters.copied),
            zero_pages_skipped: read(&self.counters.zero_skipped),
            zero_pages_written: read(&self.counters.zero_written),
            copying_cpu: Duration::from_nanos(read(&self.counters.cpu_nanos)),
        }
    }

    /// Gives the memory back to everybody: from now on all of it may be touched. Pages placed later are copied.
    ///
    /// Refused while pages are staged, or were lost because a placer failed or was dropped unflushed: the memory would
    /// be wrong. To give up, drop the placement and its placers, which ends everything too.
    pub fn finish(&self) -> Result<()> {
        let pending: u64 = self.blocks.iter().map(|block| block.pending.count()).sum();
        let pending = pending.max(self.lost.load(Ordering::Relaxed));
        if pending > 0 {
            return Err(Error::misuse(format!(
                "{pending} pages were taken and are not in memory; flush every placer before it is dropped"
            )));
        }
        for block in &self.blocks {
            match &block.bulk {
                Bulk::Userfault(registration) => registration.end().map_err(|source| {
                    Error::io(
                        format!("ending userfaultfd for block '{}'", block.info.name()),
                        source,
                    )
                })?,
                Bulk::Huge(_) | Bulk::Populate | Bulk::Plain => {}
            }
        }
        Ok(())
    }

    /// Whether there may be pages to place with userfaultfd.
    pub(super) fn places_in_bulk(&self) -> bool {
        self.info.mechanism == PlaceMechanism::Userfault
            && self.blocks.iter().any(|block| {
                matches!(&block.bulk, Bulk::Userfault(registration) if registration.is_active())
            })
    }

    /// The block and the page number of an offset from the wire.
    pub(super) fn locate(&self, block: usize, offset: u64) -> Result<(&PlacedBlock, usize)> {
        let block = self.blocks.get(block).ok_or_else(|| no_block(block))?;
        let page = PAGE_SIZE as u64;
        match usize::try_from(offset / page) {
            Ok(number) if offset.is_multiple_of(page) && number < block.info.pages() => {
                Ok((block, number))
            }
            _ => Err(block.info.out_of_block(offset, page)),
        }
    }

    /// Makes the absent page `number` present, and all that lie in one huge page with it.
    pub(super) fn populate_chunk(&self, block: &PlacedBlock, chunks: &Chunks, number: usize) {
        let memory = block.info.slice(0, block.info.pages() * PAGE_SIZE).expect(CHECKED);
        let (first, pages) = chunks.around(&memory, number);
        let begun = Instant::now();
        if !block.populate(first, pages) {
            return;
        }
        block.present.set_range(first, pages);
        self.counters.huge.fetch_add(1, Ordering::Relaxed);
        if chunks.took(begun.elapsed()) {
            let after = self.counters.huge.load(Ordering::Relaxed);
            tracing::info!(
                block = block.info.name(),
                after,
                "no more huge pages: they became too dear"
            );
            block.advise_huge_pages(false);
        }
    }

    /// Brings staged pages into memory. Those it could not bring stay pending, so that `finish` refuses.
    pub(super) fn put(&self, staging: &Staging) -> Result<()> {
        for (run, bytes) in staging.runs() {
            let block = &self.blocks[run.block];
            self.put_run(block, run, bytes).map_err(|source| {
                self.lose(run.pages);
                let (name, at) = (block.info.name(), run.first * PAGE_SIZE);
                Error::io(format!("placing {} pages of '{name}' at {at:#x}", run.pages), source)
            })?;
            block.pending.clear_range(run.first, run.pages);
        }
        Ok(())
    }

    fn put_run(&self, block: &PlacedBlock, run: StagedRun, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < run.pages {
            let rest = &bytes[done * PAGE_SIZE..];
            let placed = match &block.bulk {
                Bulk::Userfault(registration) if registration.is_active() => {
                    registration.copy((run.first + done) * PAGE_SIZE, rest)? / PAGE_SIZE
                }
                _ => 0,
            };
            block.present.set_range(run.first + done, placed);
            self.counters.placed.fetch_add(placed as u64, Ordering::Relaxed);
            done += placed;
            if done < run.pages {
                // It exists: from another channel, or touched by somebody who broke the rule.
                let at = done * PAGE_SIZE;
                block.copy_in(run.first + done, &bytes[at..at + PAGE_SIZE]);
                self.counters.copied.fetch_add(1, Ordering::Relaxed);
                done += 1;
            }
        }
        publish_streamed();
        Ok(())
    }

    pub(super) fn count(&self, tally: &Tally) {
        let add = |counter: &AtomicU64, by: u64| {
            if by > 0 {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        };
        add(&self.counters.lent, tally.lent);
        add(&self.counters.copied, tally.copied);
        add(&self.counters.zero_skipped, tally.zero_skipped);
        add(&self.counters.zero_written, tally.zero_written);
    }

    /// So many pages were staged and will never be in memory.
    pub(super) fn lose(&self, pages: usize) {
        self.lost.fetch_add(pages as u64, Ordering::Relaxed);
    }

    pub(super) fn add_cpu_nanos(&self, nanos: u64) {
        self.counters.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        for block in &self.blocks {
            // However it ended: the guest, or the next attempt, may have what its memory was made for.
            if let Bulk::Huge(chunks) = &block.bulk
                && chunks.are_over()
            {
                block.advise_huge_pages(true);
            }
        }
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placement")
            .field("blocks", &self.blocks.len())
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl PlacedBlock {
    fn new(
        memory: &dyn GuestMemory,
        index: usize,
        info: BlockInfo,
        warmth: Warmth,
    ) -> Result<Self> {
        let pages = info.pages();
        // Checked once for all later arithmetic.
        info.slice(0, pages * PAGE_SIZE)?;
        let present = DirtyBitmap::new(pages);
        let known = match warmth {
            Warmth::Cold => true,
            Warmth::Warm => false,
            Warmth::Detect => memory.mark_touched(index, &present)?,
        };
        if !known {
            present.set_all();
        }
        Ok(Self {
            info,
            bulk: Bulk::Plain,
            received: DirtyBitmap::new(pages),
            present,
            pending: DirtyBitmap::new(pages),
            populate_failed: AtomicBool::new(false),
        })
    }

    /// Copies into a page that exists, or may be faulted in. Call `publish_streamed` after the last one.
    pub(super) fn copy_in(&self, number: usize, page: &[u8]) {
        self.info.region.stream_in_at(number * PAGE_SIZE, page).expect(CHECKED);
        if !self.present.test(number) {
            self.present.set(number);
        }
    }

    /// Copies out of a page that exists.
    pub(super) fn copy_out(&self, number: usize, into: &mut [u8; PAGE_SIZE]) {
        self.info.region.copy_out_at(number * PAGE_SIZE, into).expect(CHECKED);
    }

    /// Zeroes a page that exists; false if it was zero already.
    pub(super) fn make_zero(&self, number: usize) -> bool {
        let (region, at) = (&*self.info.region, number * PAGE_SIZE);
        if is_zero(region, at, PAGE_SIZE).expect(CHECKED) {
            return false;
        }
        region.zero_at(at, PAGE_SIZE).expect(CHECKED);
        true
    }

    /// Makes pages exist; false if this kernel or this memory cannot do that, which is found out once.
    pub(super) fn populate(&self, first: usize, pages: usize) -> bool {
        if self.populate_failed.load(Ordering::Relaxed) {
            return false;
        }
        let range = self
            .info
            .slice((first * PAGE_SIZE) as u64, pages * PAGE_SIZE)
            .expect("the window was cut to the block");
        let done = mapping::populate_write(&range);
        if let Err(errno) = done {
            tracing::debug!(%errno, block = self.info.name(), "populating ahead; plain copies from now on");
            self.populate_failed.store(true, Ordering::Relaxed);
        }
        done.is_ok()
    }

    fn advise_huge_pages(&self, allowed: bool) {
        let memory = self.info.slice(0, self.info.pages() * PAGE_SIZE).expect(CHECKED);
        if let Err(errno) = mapping::advise_huge_pages(&memory, allowed) {
            tracing::debug!(%errno, allowed, block = self.info.name(), "advice on huge pages not taken");
        }
    }

    /// Bytes of untouched memory.
    fn untouched_bytes(&self) -> u64 {
        (self.present.pages() as u64 - self.present.count()) * PAGE_SIZE as u64
    }

    fn untouched(&self) -> bool {
        self.present.count() < self.present.pages() as u64
    }
}

/// Gives every block with untouched pages the best mechanism allowed.
fn choose(blocks: &mut [PlacedBlock], policy: PlacePolicy, info: &mut PlacementInfo) -> Result<()> {
    let allowed = |mechanism| match policy {
        PlacePolicy::Best => true,
        PlacePolicy::Only(only) => only == mechanism,
    };
    let mut not = |mechanism: PlaceMechanism, reason: String| {
        info.passed_over.push(PassedOver { mechanism: mechanism.name(), reason });
    };
    if !blocks.iter().any(PlacedBlock::untouched) {
        not(PlaceMechanism::Userfault, "all of the memory was touched before".into());
        return Ok(());
    }
    if allowed(PlaceMechanism::HugePages) {
        match use_huge_pages(blocks, policy == PlacePolicy::Best) {
            Ok(()) => {
                info.mechanism = PlaceMechanism::HugePages;
                return Ok(());
            }
            Err(reason) => not(PlaceMechanism::HugePages, reason),
        }
    }
    if allowed(PlaceMechanism::Userfault) {
        match register_untouched(blocks) {
            Ok(()) => {
                info.mechanism = PlaceMechanism::Userfault;
                return Ok(());
            }
            Err(error) => not(PlaceMechanism::Userfault, error.to_string()),
        }
    }
    if allowed(PlaceMechanism::Populate) {
        match populate_works() {
            Ok(()) => {
                let untouched = blocks.iter_mut().filter(|block| block.untouched());
                untouched.for_each(|block| block.bulk = Bulk::Populate);
                info.mechanism = PlaceMechanism::Populate;
                return Ok(());
            }
            Err(reason) => not(PlaceMechanism::Populate, reason),
        }
    }
    match policy {
        PlacePolicy::Only(only) if only != PlaceMechanism::Plain => {
            let reasons: Vec<_> = info.passed_over.iter().map(ToString::to_string).collect();
            Err(Error::Unavailable {
                what: format!(
                    "placing pages with {only} does not work here ({})",
                    reasons.join("; ")
                ),
                remedy: "let the best mechanism be chosen".into(),
            })
        }
        _ => Ok(()),
    }
}

/// Huge pages for all blocks that may have them, and populating ahead for the others, if that is most of what is
/// untouched and, where this is in doubt, a trial shows that it helps.
fn use_huge_pages(blocks: &mut [PlacedBlock], in_doubt: bool) -> Result<(), String> {
    let may = |block: &PlacedBlock| block.untouched() && block.info.region.may_have_huge_pages();
    let untouched: u64 = blocks.iter().map(PlacedBlock::untouched_bytes).sum();
    let huge: u64 =
        blocks.iter().filter(|block| may(block)).map(PlacedBlock::untouched_bytes).sum();
    if huge <= untouched / 2 {
        return Err("not allowed for most of the memory".into());
    }
    let chunk = huge::chunk_bytes().map_err(|error| error.to_string())?;
    populate_works()?;
    let mut trial = None;
    if in_doubt {
        if huge < HUGE_WORTH_A_TRIAL {
            return Err(format!("{huge} bytes are not worth a trial"));
        }
        let tried = Trial::run().map_err(|error| error.to_string())?;
        if !tried.helps() {
            return Err(tried.to_string());
        }
        tracing::debug!(%tried, "huge pages");
        trial = Some(tried);
    }
    for block in blocks.iter_mut().filter(|block| block.untouched()) {
        block.bulk = match may(block) {
            true => Bulk::Huge(Chunks::new(chunk, trial)),
            false => Bulk::Populate,
        };
    }
    Ok(())
}

/// A trial takes milliseconds, in which as many are filled in any way.
const HUGE_WORTH_A_TRIAL: u64 = 64 << 20;

/// All blocks or none: registrations made before a failure end when they are dropped here.
fn register_untouched(blocks: &mut [PlacedBlock]) -> Result<()> {
    let page = rustix::param::page_size();
    if page != PAGE_SIZE {
        return Err(Error::Unavailable {
            what: format!("host pages have {page} bytes, guest pages {PAGE_SIZE}"),
            remedy: "a kernel with 4 KiB pages".into(),
        });
    }
    // Our own faults never happen, so no privilege is needed; with it, a system call that breaks the rule waits
    // instead of failing.
    let uffd = Userfaultfd::open(0, feature::MISSING_SHARED, Privilege::Best)?;
    let mut registrations = Vec::new();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.untouched()) {
        let range = block.info.slice(0, block.info.pages() * PAGE_SIZE)?;
        let registered = uffd.register_missing(range);
        registrations.push((
            index,
            registered.map_err(|source| {
                let doing = format!("registering block '{}' with userfaultfd", block.info.name());
                Error::io(doing, source)
            })?,
        ));
    }
    for (index, registration) in registrations {
        blocks[index].bulk = Bulk::Userfault(registration);
    }
    Ok(())
}

/// `MADV_POPULATE_WRITE` is of Linux 5.14; asked on a page of our own.
fn populate_works() -> Result<(), String> {
    use crate::mapping::{Backing, HugePages, Mapping};
    let page = rustix::param::page_size();
    let probe = Mapping::new("probe", page, Backing::Anonymous, HugePages::SystemDefault)
        .map_err(|error| error.to_string())?;
    mapping::populate_write(&RegionSlice::whole(Arc::new(probe)))
        .map_err(|errno| format!("MADV_POPULATE_WRITE: {}", io::Error::from(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{BlockOptions, RamBlock},
        mapping::HugePages,
        memory::RamBlocks,
    };

    /// `VmFlags` of the mapping with this address, which a kernel without huge pages lacks.
    fn advice(address: usize) -> Option<&'static str> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let range = range.and_then(|(start, end)| {
                let hex = |text| usize::from_str_radix(text, 16).ok();
                Some(hex(start)?..hex(end)?)
            });
            if let Some(range) = range {
                here = range.contains(&address);
            } else if here && line.starts_with("VmFlags:") {
                return line.split(' ').find_map(|flag| match flag {
                    "hg" => Some("allowed"),
                    "nh" => Some("forbidden"),
                    _ => None,
                });
            }
        }
        None
    }

    #[test]
    fn huge_pages_that_became_dear_are_over_for_this_attempt_and_no_longer() {
        let Ok(chunk) = huge::chunk_bytes() else {
            return mig_testkit::not_applicable("huge-pages", "no transparent huge pages");
        };
        let in_chunk = chunk / PAGE_SIZE;
        let options = BlockOptions { huge_pages: HugePages::Advise, ..BlockOptions::default() };
        let block = RamBlock::with_options("pc.ram", 16 * chunk as u64, &options).unwrap();
        let region = block.region();
        let start = region.as_ptr().as_ptr().addr();
        if !region.may_have_huge_pages() || advice(start) != Some("allowed") {
            return mig_testkit::not_applicable("huge-pages", "never used here");
        }
        let memory = RamBlocks::new([block]).unwrap();
        let options = PlacementOptions {
            policy: PlacePolicy::Only(PlaceMechanism::HugePages),
            ..PlacementOptions::default()
        };
        let mut placement = Placement::new(&memory, options).unwrap();
        // Whatever a chunk takes is too much.
        let dear = Bulk::Huge(Chunks::new(chunk, Some(Trial::never_enough())));
        Arc::get_mut(&mut placement).unwrap().blocks[0].bulk = dear;
        let mut placer = placement.placer().unwrap();
        let mut place = |page: usize| {
            placer.place_page(0, (page * PAGE_SIZE) as u64, &[7; PAGE_SIZE]).unwrap();
            placement.blocks[0].present.count()
        };
        let mut present = 0;
        for number in 0..4 {
            let now = place(number * in_chunk);
            assert!(now > present + 1, "chunk {number}: {present} pages, then {now}");
            present = now;
        }
        assert_eq!(advice(start), Some("forbidden"));
        for number in 6..12 {
            assert_eq!(place(number * in_chunk), present + 1, "chunk {number}");
            present += 1;
        }
        assert_eq!(placement.statistics().huge_pages, 4);
        drop(placer);
        // Given up, not finished.
        drop(placement);
        assert_eq!(advice(start), Some("allowed"));
    }
}
