//! Guest memory as the engine sees it: somebody's ordered blocks, and somebody's dirty log.
//!
//! ```text
//!   engine ──▶ GuestMemory ──┬── RamBlocks       our own mappings, tracked by `DirtyTracker`
//!                            └── a VMM's own     its mappings, KVM's dirty log
//! ```
//!
//! A source calls [`start_dirty_log`](GuestMemory::start_dirty_log), sends everything once, then in every round
//! [`sync_dirty`](GuestMemory::sync_dirty) for each block and sends what came dirty; with the guest stopped, once more.
//! A page written at any time after `start_dirty_log` returned is dirty in some later `sync_dirty`, or its bytes were
//! already there when the `sync_dirty` before it returned. If the log cannot start, nothing has changed.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use mig_transport::{Region, RegionSlice};

use crate::{
    bitmap::DirtyBitmap,
    block::{BlockSet, PAGE_SIZE, RamBlock},
    error::{Error, Result},
    tracker::{DirtyTracker, TrackerPolicy},
};

/// One block, as it was when asked for.
#[derive(Clone)]
pub struct BlockInfo {
    /// The name's bytes, as on the wire.
    pub idstr: Arc<[u8]>,
    /// How many bytes the guest has.
    pub used_length: u64,
    /// How many it may have; equal to `used_length` unless resizable.
    pub max_length: u64,
    /// Whether the other end's length may differ.
    pub resizable: bool,
    /// The memory, at least `max_length` bytes of it.
    pub region: Arc<dyn Region>,
}

impl BlockInfo {
    /// The name for people.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.idstr).into_owned()
    }

    /// How many pages the guest has.
    pub fn pages(&self) -> usize {
        usize::try_from(self.used_length / PAGE_SIZE as u64).unwrap_or(usize::MAX)
    }

    /// `len` bytes from `offset`, refused unless the guest has them all.
    pub fn slice(&self, offset: u64, len: usize) -> Result<RegionSlice> {
        offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.used_length)
            .and_then(|_| usize::try_from(offset).ok())
            .and_then(|offset| RegionSlice::new(Arc::clone(&self.region), offset, len).ok())
            .ok_or_else(|| self.out_of_block(offset, len as u64))
    }

    /// The page at `offset`, which must be its start.
    pub fn page(&self, offset: u64) -> Result<RegionSlice> {
        if !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(self.out_of_block(offset, PAGE_SIZE as u64));
        }
        self.slice(offset, PAGE_SIZE)
    }

    pub(crate) fn out_of_block(&self, offset: u64, len: u64) -> Error {
        Error::OutOfBlock { block: self.name(), offset, len, used_length: self.used_length }
    }
}

impl fmt::Debug for BlockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockInfo('{}', {:#x} bytes)", self.name(), self.used_length)
    }
}

/// A mechanism that would have been better, and why it does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The mechanism's name.
    pub mechanism: &'static str,
    /// Why not, in words for people.
    pub reason: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not {}: {}", self.mechanism, self.reason)
    }
}

/// How dirt is being found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyLogInfo {
    /// The mechanism's name.
    pub mechanism: Cow<'static, str>,
    /// Whether writes by the kernel on behalf of a device model (`read` into guest memory) are found. If not, such a
    /// system call fails with EFAULT while the log runs.
    pub kernel_writes: bool,
    /// Better ones that were tried first.
    pub passed_over: Vec<PassedOver>,
}

/// Guest memory: ordered blocks and a dirty log. A VMM implements it over its own memory.
pub trait GuestMemory: Send + Sync {
    /// How many blocks there are; does not change while a migration runs.
    fn block_count(&self) -> usize;

    /// The block at `index`, counted from 0 in the order of the block list.
    fn block(&self, index: usize) -> Option<BlockInfo>;

    /// Where the block called `idstr` is.
    fn find(&self, idstr: &[u8]) -> Option<usize> {
        (0..self.block_count()).find(|i| self.block(*i).is_some_and(|b| *b.idstr == *idstr))
    }

    /// The sum of the used lengths.
    fn total_bytes(&self) -> u64 {
        (0..self.block_count()).filter_map(|i| self.block(i)).map(|b| b.used_length).sum()
    }

    /// Gives the block at `index` the other end's length, on the destination, before any page arrives
    /// (docs/wire/ram.md §2). An equal length is always fine.
    fn resize(&self, index: usize, used_length: u64) -> Result<()> {
        let block = self.block(index).ok_or_else(|| no_block(index))?;
        if block.used_length == used_length {
            return Ok(());
        }
        Err(Error::LengthMismatch {
            block: block.name(),
            asked: used_length,
            used_length: block.used_length,
            can: "not be resized".to_owned(),
        })
    }

    /// Starts to note writes, with a clean slate: what was written before is not reported.
    fn start_dirty_log(&self) -> Result<DirtyLogInfo>;

    /// Moves what was written to the block at `index` since the last call into `into`, and answers how many pages
    /// were not yet dirty there. `into` covers at least the block's pages.
    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> Result<u64>;

    /// Ends the noting of writes. Fine to call when it never started. [`RamBlocks`] of 512 MiB and more take the protection off
    /// behind the caller, and their next `start_dirty_log` waits for that; another tracker of the same memory does not.
    fn stop_dirty_log(&self) -> Result<()>;

    /// Sets in `into` the bit of every page of the block at `index` that may exist, and answers true; or answers false
    /// if that is not known. A page whose bit stays clear must read as zeros and have no memory behind it.
    fn mark_touched(&self, _index: usize, _into: &DirtyBitmap) -> Result<bool> {
        Ok(false)
    }

    /// Says that the contents of a range are no longer wanted; it may read as zeros from now on.
    fn release(&self, _index: usize, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
}

/// What a call with a bad index gets.
pub(crate) fn no_block(index: usize) -> Error {
    Error::misuse(format!("there is no block with index {index}"))
}

/// Guest memory of our own making: [`RamBlock`]s and a [`DirtyTracker`].
#[derive(Debug)]
pub struct RamBlocks {
    set: BlockSet,
    policy: TrackerPolicy,
    log: Mutex<Log>,
}

/// The dirty log: one that runs, or one that ends, or none.
#[derive(Debug, Default)]
struct Log {
    tracker: Option<Arc<DirtyTracker>>,
    /// The thread that takes the protection off.
    ending: Option<JoinHandle<()>>,
}

/// With so much memory taking the protection off takes as long as others can wait: 15 to 30 ms for a GiB.
const LARGE_BYTES: u64 = 512 << 20;

impl RamBlocks {
    /// The blocks in order; the best dirty tracking this machine has.
    pub fn new(blocks: impl IntoIterator<Item = RamBlock>) -> Result<Self> {
        Self::with_policy(blocks, TrackerPolicy::default())
    }

    /// The blocks in order, tracked as `policy` says.
    pub fn with_policy(
        blocks: impl IntoIterator<Item = RamBlock>,
        policy: TrackerPolicy,
    ) -> Result<Self> {
        Ok(Self { set: BlockSet::new(blocks)?, policy, log: Mutex::default() })
    }

    /// The blocks.
    pub fn set(&self) -> &BlockSet {
        &self.set
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        // The lock only guards pointers that are swapped whole.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestMemory for RamBlocks {
    fn block_count(&self) -> usize {
        self.set.as_slice().len()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.set.by_index(index).map(|block| block.info())
    }

    fn find(&self, idstr: &[u8]) -> Option<usize> {
        self.set.find(idstr)
    }

    fn total_bytes(&self) -> u64 {
        self.set.total_bytes()
    }

    fn resize(&self, index: usize, used_length: u64) -> Result<()> {
        self.set.by_index(index).ok_or_else(|| no_block(index))?.resize(used_length)
    }

    fn start_dirty_log(&self) -> Result<DirtyLogInfo> {
        let mut log = self.log();
        if log.tracker.is_some() {
            return Err(Error::misuse("the dirty log runs already; stop it first"));
        }
        if let Some(Err(_panicked)) = log.ending.take().map(JoinHandle::join) {
            return Err(Error::misuse("the thread that ended the last dirty log broke down"));
        }
        let blocks: Vec<_> = self.set.as_slice().iter().map(|block| block.info()).collect();
        let tracker = DirtyTracker::start(&blocks, self.policy)?;
        let info = tracker.info().clone();
        log.tracker = Some(Arc::new(tracker));
        Ok(info)
    }

    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> Result<u64> {
        let tracker = self.log().tracker.clone();
        tracker.ok_or_else(|| Error::misuse("no dirty log runs; start it first"))?.sync(index, into)
    }

    fn stop_dirty_log(&self) -> Result<()> {
        let mut log = self.log();
        let Some(tracker) = log.tracker.take() else { return Ok(()) };
        if tracker.ends_unnoticed() && self.total_bytes() >= LARGE_BYTES {
            // Whoever stops a migration does not wait for that; who starts the next one does.
            let end = thread::Builder::new().name("mig-dirty-log".into());
            match end.spawn(move || drop(tracker)) {
                Ok(ending) => log.ending = Some(ending),
                // It was dropped with the thread that did not come to be.
                Err(error) => tracing::debug!(%error, "a thread to end the dirty log"),
            }
        }
        Ok(())
    }

    fn mark_touched(&self, index: usize, into: &DirtyBitmap) -> Result<bool> {
        let block = self.set.by_index(index).ok_or_else(|| no_block(index))?;
        let limit = block.pages().min(into.pages());
        let bytes = block.pages() * PAGE_SIZE;
        let known = crate::residency::touched(block.mapping(), 0, bytes, |offset, len| {
            let start = (offset / PAGE_SIZE).min(limit);
            let end = (offset + len).div_ceil(PAGE_SIZE).min(limit);
            into.set_range(start, end - start);
        });
        if let Err(error) = &known {
            tracing::debug!(%error, block = block.name(), "cannot tell which pages were touched");
        }
        Ok(known.is_ok())
    }

    fn release(&self, index: usize, offset: u64, len: u64) -> Result<()> {
        let block = self.set.by_index(index).ok_or_else(|| no_block(index))?;
        let len = usize::try_from(len).map_err(|_| block.info().out_of_block(offset, len))?;
        let range = block.slice(offset, len)?;
        crate::mapping::discard(block.mapping(), &range)
            .map_err(|errno| Error::io(format!("releasing memory of '{}'", block.name()), errno))?;
        match &self.log().tracker {
            Some(tracker) => tracker.note_released(index, &range),
            None => Ok(()),
        }
    }
}
