//! Guest memory held at an end that has no guest, because a transport writes into memory or reads from it, or
//! data channels do.
//!
//! ```text
//!   block list ── fits? ──▶ blocks, all zero ◀── records of the stream (PAGE, ZERO, XBZRLE, COMPRESS_PAGE)
//!                                            ◀── or a transport's writes
//! ```
//!
//! It costs as much memory as the guest has, so that is looked at before any is taken: against the caller's limit, and
//! against what this machine has left. The last copy of a page wins, as at a destination with a guest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use mig_compress::PageInflater;
use mig_proto::{BlockEntry, BlockId, Event, xbzrle};
use mig_ram::{GuestMemory, PAGE_SIZE, RamBlock, RamBlocks};
use mig_transport::{Blame, RamBlockInfo, Region};

use crate::{
    destination::encoded::{not_a_delta, not_a_page},
    error::{Error, Result},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct HeldMemory {
    limit: Option<u64>,
    memory: Option<Arc<RamBlocks>>,
    needed: Option<Arc<Needed>>,
    /// Where each block of the stream is in `memory`.
    local: Vec<usize>,
    page: PageInFlight,
    /// Only stored streams of QEMU up to 9.0 need it.
    inflater: Option<PageInflater>,
}

/// The memory is needed for as long as anybody has this. Then it goes back to the system: on a thread of its own where that
/// takes as long as a cancel may.
#[derive(Debug)]
pub(crate) struct Needed(Arc<RamBlocks>);

/// Some 50 ms of the system's time.
const LARGE_BYTES: u64 = 256 << 20;

/// Bytes on their way back to the system in this process.
static GOING_BACK: AtomicU64 = AtomicU64::new(0);

impl Drop for Needed {
    fn drop(&mut self) {
        if self.0.total_bytes() < LARGE_BYTES {
            return;
        }
        let memory = Arc::clone(&self.0);
        let going = GoingBack::new(memory.total_bytes());
        // Others may still hold a part of it: what they let go of later is empty.
        let give_back = move || {
            let _going = going;
            for index in 0..memory.block_count() {
                let len = memory.block(index).map_or(0, |block| block.used_length);
                if let Err(error) = memory.release(index, 0, len) {
                    tracing::debug!(%error, "giving memory back");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("mig-give-back".into()).spawn(give_back) {
            tracing::debug!(%error, "a thread to give memory back");
        }
    }
}

/// Counts in [`GOING_BACK`] for as long as it lives.
struct GoingBack(u64);

impl GoingBack {
    fn new(bytes: u64) -> Self {
        GOING_BACK.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }
}

impl Drop for GoingBack {
    fn drop(&mut self) {
        GOING_BACK.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A page whose bytes may come in several pieces.
#[derive(Debug, Default)]
struct PageInFlight {
    block: usize,
    offset: u64,
    filled: usize,
}

impl HeldMemory {
    /// Nothing yet; the guest may have `limit` bytes at most.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The memory, once the block list came.
    pub(crate) fn memory(&self) -> Option<&Arc<RamBlocks>> {
        self.memory.as_ref()
    }

    /// To be kept by whoever uses the memory beyond this.
    pub(crate) fn needed(&self) -> Option<Arc<Needed>> {
        self.needed.clone()
    }

    /// The blocks as a transport's hooks want them, in stream order.
    pub(crate) fn hook_blocks(&self) -> Vec<RamBlockInfo> {
        let Some(memory) = &self.memory else { return Vec::new() };
        let known = self.local.iter().filter_map(|local| memory.block(*local));
        known
            .map(|block| RamBlockInfo {
                idstr: block.name(),
                used_length: block.used_length,
                region: block.region,
            })
            .collect()
    }

    /// Takes over what an event says about memory; answers false for events that say nothing about it.
    pub(crate) fn visit(&mut self, event: &Event<'_>, position: u64) -> Result<bool> {
        match event {
            Event::BlockList { entries, .. } => {
                self.know_blocks(entries).map_err(|error| error.at(position))?;
            }
            Event::Page(page) => {
                let block = self.block(page.block)?;
                self.page = PageInFlight { block, offset: page.offset, filled: 0 };
            }
            Event::Payload(bytes) => self.land(bytes)?,
            Event::Zero(page) => {
                let at = to_usize(page.offset)?;
                let block = self.block(page.block)?;
                if !is_zero(&*self.region(block)?, at)? {
                    self.region(block)?.zero_at(at, PAGE_SIZE).map_err(outside)?;
                }
            }
            Event::Xbzrle { page, delta } => {
                let at = to_usize(page.offset)?;
                let region = self.region(self.block(page.block)?)?;
                let mut bytes = [0; PAGE_SIZE];
                region.copy_out_at(at, &mut bytes).map_err(outside)?;
                xbzrle::apply(&mut bytes, delta.as_bytes())
                    .map_err(|broken| not_a_delta(&broken, page, position))?;
                region.copy_in_at(at, &bytes).map_err(outside)?;
            }
            Event::CompressedPage { page, data } => {
                let at = to_usize(page.offset)?;
                let region = self.region(self.block(page.block)?)?;
                let mut bytes = [0; PAGE_SIZE];
                let inflater = self.inflater.get_or_insert_default();
                inflater
                    .inflate_page(data.as_bytes(), &mut bytes)
                    .map_err(|error| not_a_page(&error, page, position))?;
                region.copy_in_at(at, &bytes).map_err(outside)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn land(&mut self, bytes: &[u8]) -> Result<()> {
        let at = to_usize(self.page.offset)? + self.page.filled;
        self.region(self.page.block)?.copy_in_at(at, bytes).map_err(outside)?;
        self.page.filled += bytes.len();
        Ok(())
    }

    fn block(&self, block: BlockId) -> Result<usize> {
        self.local.get(block.index()).copied().ok_or_else(no_list)
    }

    fn region(&self, block: usize) -> Result<Arc<dyn Region>> {
        let info = self.memory.as_ref().and_then(|memory| memory.block(block));
        info.map(|info| info.region).ok_or_else(no_list)
    }

    /// Makes the blocks, if there is room for them.
    fn know_blocks(&mut self, entries: &[BlockEntry]) -> Result<()> {
        if self.memory.is_some() {
            return Err(Error::peer_misbehaved("a second block list came, and memory is laid out"));
        }
        if let Some(shared) = entries.iter().find(|entry| entry.address.is_some()) {
            return Err(Error::peer_incompatible(format!(
                "RAM block '{}' comes with an address: the source has x-ignore-shared on, so its shared memory is not \
                 in the stream; where a transport or data channels carry memory, it cannot be left out \
                 (docs/wire/rdma.md §7). Turn x-ignore-shared off at the source",
                shared.name()
            )));
        }
        let total = entries.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.used_length));
        check_room(total.unwrap_or(u64::MAX), self.limit)?;
        let mut blocks = Vec::with_capacity(entries.len());
        for (local, entry) in entries.iter().enumerate() {
            if entry.used_length == 0 {
                return Err(Error::peer_incompatible(format!(
                    "RAM block '{}' is empty, which cannot be laid out where a transport or data channels carry memory",
                    entry.name()
                )));
            }
            blocks.push(RamBlock::new(entry.name().as_bytes(), entry.used_length)?);
            let index = entry.id().index();
            if index >= self.local.len() {
                self.local.resize(index + 1, usize::MAX);
            }
            self.local[index] = local;
        }
        let memory = Arc::new(RamBlocks::new(blocks)?);
        self.needed = Some(Arc::new(Needed(Arc::clone(&memory))));
        self.memory = Some(memory);
        Ok(())
    }
}

const WHY_HELD: &str = "data channels (multifd) or the transport itself (rdma:) carry memory beside the stream, so all \
                        of it must be held";
const INSTEAD: &str =
    "use a single channel of a transport that carries the stream alone (tcp:, unix:)";

/// Whether a guest of `total` bytes may be held.
fn check_room(total: u64, limit: Option<u64>) -> Result<()> {
    if let Some(limit) = limit.filter(|limit| total > *limit) {
        return Err(Error::misuse(format!(
            "the guest has {total} bytes of memory, and no more than {limit} may be held here: {WHY_HELD}. Raise the \
             limit, or {INSTEAD}"
        )));
    }
    // Where the system does not say what it has, the allocation itself has to. An attempt that ended a moment ago may still be
    // giving its memory back: that much was taken, and will be there.
    let going_back = GOING_BACK.load(Ordering::Relaxed);
    let available = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available);
    let available = available.map(|bytes| bytes.saturating_add(going_back));
    if let Some(available) = available.filter(|available| total > *available) {
        return Err(Error::new(
            Blame::Unavailable,
            format!(
                "the guest has {total} bytes of memory, and this machine has {available} to spare: {WHY_HELD}. Free \
                 some, or {INSTEAD}"
            ),
        ));
    }
    Ok(())
}

/// `MemAvailable`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn is_zero(region: &dyn Region, at: usize) -> Result<bool> {
    mig_ram::is_zero(region, at, PAGE_SIZE).map_err(outside)
}

fn to_usize(offset: u64) -> Result<usize> {
    usize::try_from(offset).map_err(|_| Error::peer_misbehaved("an offset beyond all memory"))
}

/// The decoder knows the blocks' lengths.
fn outside(error: mig_transport::OutOfRegion) -> Error {
    Error::peer_misbehaved(error.to_string())
}

fn no_list() -> Error {
    Error::peer_misbehaved("a page of a block that no list named")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_has_is_read_and_nonsense_is_not() {
        let text = "MemTotal:       16303428 kB\nMemAvailable:    9174600 kB\nBuffers: 1 kB\n";
        assert_eq!(available(text), Some(9_174_600 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn large_memory_is_emptied_once_nobody_needs_it() {
        let blocks = [RamBlock::new("x", LARGE_BYTES).unwrap()];
        let memory = Arc::new(RamBlocks::new(blocks).unwrap());
        let region = memory.block(0).unwrap().region;
        region.copy_in_at(0, &[7]).unwrap();
        let needed = Arc::new(Needed(Arc::clone(&memory)));
        drop(Arc::clone(&needed));
        let mut byte = [0];
        region.copy_out_at(0, &mut byte).unwrap();
        assert_eq!(byte, [7], "somebody needs it");
        drop(needed);
        while byte != [0] {
            std::thread::yield_now();
            region.copy_out_at(0, &mut byte).unwrap();
        }
    }

    #[test]
    fn both_numbers_are_named() {
        let error = check_room(8192, Some(4096)).unwrap_err();
        assert_eq!(error.blame(), Blame::Misuse);
        assert!(
            error.to_string().contains("8192") && error.to_string().contains("4096"),
            "{error}"
        );
        let error = check_room(1 << 60, None).unwrap_err();
        assert_eq!(error.blame(), Blame::Unavailable);
        assert!(error.to_string().contains(&(1u64 << 60).to_string()), "{error}");
        check_room(4096, Some(4096)).unwrap();
        let going = GoingBack::new(1 << 60);
        check_room(1 << 60, None).expect("what goes back will be there");
        drop(going);
        check_room(1 << 60, None).unwrap_err();
    }
}
