//! Huge pages for memory that was never touched: only where the kernel may use them, and only while they prove to help.
//!
//! ```text
//!   allowed for this memory? ──▶ trial on memory of our own ──▶ cheaper? ──▶ a chunk is populated when its first page comes
//!                                  │ no                                       └─ dear too often ─▶ forbidden for the rest
//!                                  └─▶ page by page, the reason is told
//! ```
//!
//! Where huge pages are at hand, one of them costs less than the five hundred pages in its place; on a fragmented host
//! the kernel moves memory about to make each, which costs three to five times as much. Nothing tells beforehand, and it may
//! change while pages arrive. So it is measured: both ways before the first page, and every chunk afterwards.
//!
//! Memory that is not needed may be taken: a chunk of which a single page arrives is there as a whole. That is what huge
//! pages mean to whoever allows them; the guest's own first write would do the same.

use std::{
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mig_transport::{RegionSlice, publish_streamed};

use crate::{
    block::PAGE_SIZE,
    error::{Error, Result},
    mapping::{self, Backing, HugePages, Mapping},
    uffd::{Privilege, Userfaultfd, feature},
};

/// How often a trial tries each way.
const TRIES: usize = 3;

/// Huge pages must save a tenth at least.
const ENOUGH: f64 = 0.9;

/// What a dear chunk weighs against a cheap one.
const DEAR: u32 = 4;

/// So much weight ends it: four dear chunks in a row, or more than every fifth of many.
const TOO_DEAR: u32 = 16;

/// How long a chunk took to fill, each way; the medians.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    huge: Duration,
    page_by_page: Duration,
}

impl Trial {
    /// Fills some memory both ways; a few milliseconds.
    pub(super) fn run() -> Result<Self> {
        let chunk = chunk_bytes()?;
        let contents = vec![0x5a; chunk];
        let (mut huge, mut page_by_page) = (Vec::new(), Vec::new());
        for _ in 0..TRIES {
            page_by_page.push(by_userfault(chunk, &contents)?);
            huge.push(by_huge_page(chunk, &contents)?);
            if huge.last() > page_by_page.last().map(|all| *all * DEAR).as_ref() {
                // It will not get better by being repeated.
                break;
            }
        }
        let median = |mut of: Vec<Duration>| {
            of.sort();
            of[of.len() / 2]
        };
        Ok(Self { huge: median(huge), page_by_page: median(page_by_page) })
    }

    /// One after which no chunk is cheap.
    #[cfg(test)]
    pub(super) fn never_enough() -> Self {
        Self { huge: Duration::ZERO, page_by_page: Duration::ZERO }
    }

    /// Whether huge pages are worth it.
    pub(super) fn helps(&self) -> bool {
        self.huge.as_secs_f64() <= self.page_by_page.as_secs_f64() * ENOUGH
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (huge, pages) = (self.huge.as_micros(), self.page_by_page.as_micros());
        write!(f, "filling one took {huge} us, as many single pages {pages} us")
    }
}

/// Bytes of a huge page here.
pub(super) fn chunk_bytes() -> Result<usize> {
    let path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    let bytes = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<usize>().ok());
    let bytes = bytes.filter(|bytes| bytes.is_power_of_two() && *bytes > PAGE_SIZE);
    bytes.ok_or_else(|| Error::Unavailable {
        what: format!("no transparent huge pages: {path} has no size"),
        remedy: "a kernel with them".into(),
    })
}

/// A chunk of fresh memory, aligned to its size.
fn fresh(chunk: usize, huge_pages: HugePages) -> Result<RegionSlice> {
    let mapping = Mapping::new("huge-page-trial", 2 * chunk, Backing::Anonymous, huge_pages)?;
    let whole = RegionSlice::whole(Arc::new(mapping));
    let start = whole.as_ptr().as_ptr().addr();
    let aligned = start.next_multiple_of(chunk) - start;
    Ok(whole.sub(aligned, chunk).expect("there is room for two"))
}

fn by_huge_page(chunk: usize, contents: &[u8]) -> Result<Duration> {
    let memory = fresh(chunk, HugePages::Advise)?;
    let begun = Instant::now();
    mapping::populate_write(&memory).map_err(|errno| Error::io("MADV_POPULATE_WRITE", errno))?;
    let region = memory.region();
    region.stream_in_at(memory.offset(), contents).expect("as long as the chunk");
    publish_streamed();
    Ok(begun.elapsed())
}

fn by_userfault(chunk: usize, contents: &[u8]) -> Result<Duration> {
    let memory = fresh(chunk, HugePages::Never)?;
    let failed = |source| Error::io("trying userfaultfd", source);
    let uffd = Userfaultfd::open(0, feature::MISSING_SHARED, Privilege::Best)?;
    let registration = uffd.register_missing(memory).map_err(failed)?;
    let begun = Instant::now();
    registration.copy(0, contents).map_err(failed)?;
    Ok(begun.elapsed())
}

/// The huge pages of one block while pages arrive.
#[derive(Debug)]
pub(super) struct Chunks {
    bytes: usize,
    /// What a chunk may take.
    dear: Duration,
    weight: AtomicU32,
}

impl Chunks {
    /// Chunks that may take as long as the other way, all in all; without a trial as long as they like.
    pub(super) fn new(bytes: usize, trial: Option<Trial>) -> Self {
        let dear = trial.map_or(Duration::MAX, |trial| trial.page_by_page);
        Self { bytes, dear, weight: AtomicU32::new(0) }
    }

    /// The pages of `memory`'s chunk that has page `number`: the first, and how many.
    pub(super) fn around(&self, memory: &RegionSlice, number: usize) -> (usize, usize) {
        let start = memory.as_ptr().as_ptr().addr();
        let page = start + number * PAGE_SIZE;
        let first = (page - page % self.bytes).max(start);
        let end = (page - page % self.bytes + self.bytes).min(start + memory.len());
        ((first - start) / PAGE_SIZE, (end - first) / PAGE_SIZE)
    }

    /// A chunk took so long. True once: when this was too much, and there are to be no more.
    pub(super) fn took(&self, time: Duration) -> bool {
        let step = |weight: u32| match weight {
            TOO_DEAR.. => None,
            _ if time > self.dear => Some(weight + DEAR),
            _ => Some(weight.saturating_sub(1)),
        };
        let stepped = self.weight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        stepped.is_ok_and(|before| step(before).is_some_and(|weight| weight >= TOO_DEAR))
    }

    /// Whether there are to be no more.
    pub(super) fn are_over(&self) -> bool {
        self.weight.load(Ordering::Relaxed) >= TOO_DEAR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 2 << 20;

    fn trial(huge: u64, page_by_page: u64) -> Trial {
        let [huge, page_by_page] = [huge, page_by_page].map(Duration::from_micros);
        Trial { huge, page_by_page }
    }

    #[test]
    fn a_tenth_must_be_saved() {
        assert!(trial(449, 500).helps() && trial(450, 500).helps());
        assert!(!trial(460, 500).helps() && !trial(5000, 500).helps());
    }

    #[test]
    fn dear_chunks_end_it_and_a_few_among_many_do_not() {
        let [dear, cheap] = [501, 100].map(Duration::from_micros);
        let chunks = Chunks::new(CHUNK, Some(trial(100, 500)));
        for _ in 0..100 {
            assert!(!chunks.took(dear));
            assert!((0..4).all(|_| !chunks.took(cheap)));
        }
        assert!((0..3).all(|_| !chunks.took(dear)) && !chunks.are_over());
        assert!(chunks.took(dear) && chunks.are_over());
        assert!(
            !chunks.took(dear) && !chunks.took(cheap) && chunks.are_over(),
            "told once, for good"
        );
        let forced = Chunks::new(CHUNK, None);
        assert!((0..100).all(|_| !forced.took(Duration::from_secs(9))));
    }

    #[test]
    fn chunks_are_aligned_in_memory_and_cut_to_the_block() {
        let chunks = Chunks::new(CHUNK, None);
        let fresh = fresh(2 * CHUNK, HugePages::Never).unwrap();
        assert_eq!(chunks.around(&fresh, 0), (0, 512));
        assert_eq!(chunks.around(&fresh, 511), (0, 512));
        assert_eq!(chunks.around(&fresh, 512), (512, 512));
        let inside = fresh.sub(100 * PAGE_SIZE, 600 * PAGE_SIZE).unwrap();
        assert_eq!(chunks.around(&inside, 0), (0, 412));
        assert_eq!(chunks.around(&inside, 411), (0, 412));
        assert_eq!(chunks.around(&inside, 412), (412, 188));
        assert_eq!(chunks.around(&inside, 599), (412, 188));
    }
}
