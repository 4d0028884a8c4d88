//! Guest memory that says it was written in a pattern: rounds of a known shape, without a guest that must keep pace.
//!
//! ```text
//!   pass 1: everything ─▶ sync 1 adds the pattern ─▶ pass 2: exactly the pattern ─▶ sync 2: clean ─▶ switchover
//!                                 returns at t0                                 called at t1
//! ```
//!
//! The real dirty log runs underneath and is read each time, so its cost is where it always is. Time between two syncs
//! is one pass with everything in it: finding the pages, testing them for zero, sending them, and the flush at the end.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mig_ram::{BlockInfo, DirtyBitmap, DirtyLogInfo, GuestMemory, RamBlocks};
use serde::{Deserialize, Serialize};

/// What to say at each sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// The truth.
    #[default]
    Nothing,
    /// Once, every second page.
    EverySecond,
    /// Once, the first half: as many pages, in one run.
    FirstHalf,
    /// So many times, everything.
    Everything(u32),
}

/// See the module.
pub(crate) struct Patterned {
    ram: RamBlocks,
    pattern: Pattern,
    syncs: Mutex<Vec<Sync>>,
}

#[derive(Clone, Copy)]
struct Sync {
    called: Instant,
    returned: Instant,
    marked: u64,
}

impl Patterned {
    pub(crate) fn new(ram: RamBlocks, pattern: Pattern) -> Self {
        Self { ram, pattern, syncs: Mutex::new(Vec::new()) }
    }

    pub(crate) fn ram(&self) -> &RamBlocks {
        &self.ram
    }

    /// Seconds and pages of the second pass: what the first sync marked, until the second sync.
    pub(super) fn second_pass(&self) -> Option<(f64, u64)> {
        match self.syncs()[..] {
            [first, second, ..] => {
                Some((second.called.duration_since(first.returned).as_secs_f64(), first.marked))
            }
            _ => None,
        }
    }

    fn syncs(&self) -> MutexGuard<'_, Vec<Sync>> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestMemory for Patterned {
    fn block_count(&self) -> usize {
        self.ram.block_count()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.ram.block(index)
    }

    fn start_dirty_log(&self) -> mig_ram::Result<DirtyLogInfo> {
        self.ram.start_dirty_log()
    }

    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> mig_ram::Result<u64> {
        let called = Instant::now();
        let truth = self.ram.sync_dirty(index, into)?;
        let mut syncs = self.syncs();
        let pages = into.pages();
        let marked = match self.pattern {
            Pattern::EverySecond if syncs.is_empty() => {
                (0..pages).step_by(2).map(|page| into.set_range(page, 1)).sum()
            }
            Pattern::FirstHalf if syncs.is_empty() => into.set_range(0, pages.div_ceil(2)),
            Pattern::Everything(times) if syncs.len() < times as usize => into.set_range(0, pages),
            _ => 0,
        };
        syncs.push(Sync { called, returned: Instant::now(), marked: truth + marked });
        Ok(truth + marked)
    }

    fn stop_dirty_log(&self) -> mig_ram::Result<()> {
        self.ram.stop_dirty_log()
    }

    fn mark_touched(&self, index: usize, into: &DirtyBitmap) -> mig_ram::Result<bool> {
        self.ram.mark_touched(index, into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::guest_ram;

    #[test]
    fn both_patterns_mark_as_many_pages_and_only_once() {
        for (pattern, first, second) in [
            (Pattern::EverySecond, 8, true),
            (Pattern::FirstHalf, 8, false),
            (Pattern::Nothing, 0, false),
        ] {
            let memory = Patterned::new(guest_ram(16 * 4096).unwrap(), pattern);
            memory.start_dirty_log().unwrap();
            let dirty = DirtyBitmap::new(16);
            assert_eq!(memory.sync_dirty(0, &dirty).unwrap(), first, "{pattern:?}");
            assert_eq!(dirty.test(8), second, "{pattern:?}");
            assert_eq!(memory.sync_dirty(0, &DirtyBitmap::new(16)).unwrap(), 0, "{pattern:?}");
            assert_eq!(memory.second_pass().unwrap().1, first);
        }
    }
}
