//! Which pages a running guest writes, found by the best means this machine has.
//!
//! ```text
//!   start ── every page protected, clean slate
//!     │   guest writes ──▶ noted by …  kernel alone          AsyncWriteProtect   (Linux 6.7)
//!     │                                our fault thread      WriteProtectThread  (Linux 5.14)
//!     │                                our SIGSEGV handler   Mprotect            (anything)
//!   sync ── written pages reported and protected again, in one step or in an order that loses nothing
//!     │
//!   drop ── protection lifted, writers that wait go on
//! ```
//!
//! The promise, whatever the mechanism: a write that happens after `start` returned is in a later `sync`, or its bytes
//! are in memory when the `sync` that reports the page returns. A page may be reported without need, never missed.
//! If no mechanism starts, the error lists every reason and nothing has changed.

mod async_write_protect;
mod mprotect;
mod write_protect_thread;

use std::fmt;

use mig_transport::RegionSlice;

use self::{
    async_write_protect::AsyncWriteProtect, mprotect::Mprotect,
    write_protect_thread::WriteProtectThread,
};
use crate::{
    bitmap::DirtyBitmap,
    block::PAGE_SIZE,
    error::{Error, Result},
    memory::{BlockInfo, DirtyLogInfo, PassedOver, no_block},
    uffd::Privilege,
};

/// A way to find written pages, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// userfaultfd whose write faults the kernel resolves by itself, and `PAGEMAP_SCAN` to collect them: a write costs
    /// one short fault, no thread of ours is woken, no privilege is needed.
    AsyncWriteProtect,
    /// userfaultfd whose write faults a thread of ours resolves: two context switches a page and round. Without
    /// privilege, system calls that write guest memory fail (see [`DirtyLogInfo::kernel_writes`]).
    WriteProtectThread,
    /// `mprotect` and a SIGSEGV handler: works everywhere, takes a process-wide signal, splits mappings, and system
    /// calls that write guest memory fail with EFAULT.
    Mprotect,
}

impl Mechanism {
    /// All of them, best first.
    pub const ALL: [Self; 3] = [Self::AsyncWriteProtect, Self::WriteProtectThread, Self::Mprotect];

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsyncWriteProtect => "uffd-wp-async",
            Self::WriteProtectThread => "uffd-wp-thread",
            Self::Mprotect => "mprotect",
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which mechanisms may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackerPolicy {
    /// The best one that works here.
    #[default]
    Best,
    /// This one or none: for tests, and for comparing them.
    Only(Mechanism),
    /// The best one that works without privilege, as if this process had none.
    Unprivileged,
}

/// Notes writes to blocks from its making until it is dropped.
#[derive(Debug)]
pub struct DirtyTracker {
    info: DirtyLogInfo,
    blocks: Vec<BlockInfo>,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Async(AsyncWriteProtect),
    Thread(WriteProtectThread),
    Mprotect(Mprotect),
}

impl DirtyTracker {
    /// Protects every page of `blocks` and notes writes from now on.
    ///
    /// Writes through another mapping of the same memory (other processes) are not seen by any mechanism.
    pub fn start(blocks: &[BlockInfo], policy: TrackerPolicy) -> Result<Self> {
        let ranges = blocks.iter().map(trackable).collect::<Result<Vec<_>>>()?;
        refuse_overlaps(&ranges)?;
        let mut passed_over = Vec::new();
        let candidates: &[Mechanism] = match &policy {
            TrackerPolicy::Best | TrackerPolicy::Unprivileged => &Mechanism::ALL,
            TrackerPolicy::Only(one) => std::slice::from_ref(one),
        };
        let privilege = match policy {
            TrackerPolicy::Unprivileged => Privilege::UserModeOnly,
            _ => Privilege::Best,
        };
        for &mechanism in candidates {
            let started = match mechanism {
                Mechanism::AsyncWriteProtect => AsyncWriteProtect::start(&ranges, privilege)
                    .map(|run| (Running::Async(run), true)),
                Mechanism::WriteProtectThread => WriteProtectThread::start(&ranges, privilege)
                    .map(|run| (run.kernel_writes(), run))
                    .map(|(kernel_writes, run)| (Running::Thread(run), kernel_writes)),
                Mechanism::Mprotect => {
                    Mprotect::start(&ranges).map(|run| (Running::Mprotect(run), false))
                }
            };
            match started {
                Ok((running, kernel_writes)) => {
                    let mechanism = mechanism.name().into();
                    let info = DirtyLogInfo { mechanism, kernel_writes, passed_over };
                    tracing::debug!(?info, "dirty tracking");
                    return Ok(Self { info, blocks: blocks.to_vec(), running });
                }
                Err(error) => passed_over
                    .push(PassedOver { mechanism: mechanism.name(), reason: error.to_string() }),
            }
        }
        let reasons: Vec<_> = passed_over.iter().map(ToString::to_string).collect();
        Err(Error::Unavailable {
            what: format!("no way to track writes works here ({})", reasons.join("; ")),
            remedy: "allow userfaultfd to this process, or stop the guest before sending".into(),
        })
    }

    /// Which mechanism runs, and why not a better one.
    pub fn info(&self) -> &DirtyLogInfo {
        &self.info
    }

    /// Whether nobody can tell a tracker that is being dropped from one that is gone: writes just go on.
    pub(crate) fn ends_unnoticed(&self) -> bool {
        matches!(self.running, Running::Async(_))
    }

    /// Says that memory of block `index` was given back to the kernel (`MADV_DONTNEED`, a punched hole), which takes
    /// protection with it. The range counts as written. To be called after each such call, before the next `sync`:
    /// [`Mechanism::WriteProtectThread`] would miss later writes otherwise; the others need no telling.
    pub fn note_released(&self, index: usize, range: &RegionSlice) -> Result<()> {
        self.blocks.get(index).ok_or_else(|| no_block(index))?;
        if let Running::Thread(run) = &self.running {
            run.note_released(index, range.offset(), range.len());
        }
        Ok(())
    }

    /// Moves what was written to block `index` since the last call into `into`; answers how many pages were not yet
    /// dirty there.
    pub fn sync(&self, index: usize, into: &DirtyBitmap) -> Result<u64> {
        let block = self.blocks.get(index).ok_or_else(|| no_block(index))?;
        if into.pages() < block.pages() {
            return Err(Error::misuse(format!(
                "a bitmap of {} pages for block '{}', which has {}",
                into.pages(),
                block.name(),
                block.pages()
            )));
        }
        let sink = Sink { into, limit: into.pages().min(block.pages()) };
        match &self.running {
            Running::Async(run) => run.sync(index, &sink),
            Running::Thread(run) => run.sync(index, &sink),
            Running::Mprotect(run) => run.sync(index, &sink),
        }
        .map_err(|source| Error::io(format!("collecting writes to '{}'", block.name()), source))
    }
}

/// Where a mechanism puts what it found.
struct Sink<'a> {
    into: &'a DirtyBitmap,
    limit: usize,
}

impl Sink<'_> {
    /// Marks the pages of a byte range; answers how many were clear. What lies past the block's used length (the rest
    /// of a host page, the growth of a resizable block) is nobody's.
    fn mark(&self, offset: usize, len: usize) -> u64 {
        let start = (offset / PAGE_SIZE).min(self.limit);
        let end = (offset + len).div_ceil(PAGE_SIZE).min(self.limit);
        self.into.set_range(start, end - start)
    }
}

/// The whole memory of a block, if the kernel can protect it page by page.
fn trackable(block: &BlockInfo) -> Result<RegionSlice> {
    let page = rustix::param::page_size();
    let whole = RegionSlice::whole(block.region.clone());
    let aligned = whole.as_ptr().as_ptr().addr().is_multiple_of(page)
        && whole.len().is_multiple_of(page)
        && page.is_multiple_of(PAGE_SIZE);
    if !aligned {
        return Err(Error::misuse(format!(
            "block '{}' is not made of whole host pages of {page} bytes; map its memory to track it",
            block.name()
        )));
    }
    Ok(whole)
}

/// Two blocks over the same bytes would take each other's dirt.
fn refuse_overlaps(ranges: &[RegionSlice]) -> Result<()> {
    let mut spans: Vec<_> =
        ranges.iter().map(|range| (range.as_ptr().as_ptr().addr(), range.len())).collect();
    spans.sort_unstable();
    match spans.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        true => Err(Error::misuse("two blocks share memory; each needs its own to be tracked")),
        false => Ok(()),
    }
}
