//! The pages that the receiver is known to have, byte for byte.
//!
//! ```text
//!   (block, page) ──▶ set ──▶ up to 8 slots: key, pass of its last use ──▶ 4 KiB of the slab
//! ```
//!
//! Slots of the same way of neighbouring sets are neighbours in the slab: a working set that lies in one piece lies in one
//! piece there as well, where the processor fetches ahead and translates few addresses.
//!
//! A working set that lies in one piece fills the slots evenly, since neighbouring pages go to neighbouring sets; the
//! higher bits of the page number are folded in, so that pages far apart in regular steps do not meet in one set.
//!
//! **Age.** A slot is given to another page only if its own was used neither in this pass nor in the one before. A
//! cache that is smaller than what the guest keeps writing would otherwise evict every page shortly before its turn
//! comes and never hit; so it keeps serving those it has, and the others go without. It also means that nothing is
//! overwritten in the pass in which it was put, and so a sender may refer to the slab until the pass is over.
//!
//! **Memory.** One page a slot, taken from the system as slots are first used, and 12 bytes a slot beside it.

use std::sync::Arc;

use mig_ram::{PAGE_SIZE, RamBlock};
use mig_transport::{OutOfRegion, Region};

use crate::{error::Result, source::ram::Page};

/// Slots of a set: their keys are one line of the processor's cache.
const WAYS: usize = 8;

/// Pages that are copied to another cache before others get a turn: 8 MiB, a few milliseconds.
const COPIED_AT_ONCE: usize = 2048;

/// No page has it: see [`Key::new`].
const EMPTY: u64 = u64::MAX;

/// Bits of a key that hold the page number: blocks of up to 4 PiB.
const PAGE_BITS: u32 = 40;

/// A page of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// `None` for what is too large to be numbered, and so never cached.
    pub(super) fn new(block: usize, page: usize) -> Option<Self> {
        let (block, page) = (block as u64, page as u64);
        let fits = block < (1 << (u64::BITS - PAGE_BITS)) - 1 && page < 1 << PAGE_BITS;
        fits.then_some(Self(block << PAGE_BITS | page))
    }
}

/// Where a page's copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Among keys and stamps, set by set.
    index: usize,
    /// Among the pages of the slab, way by way.
    place: usize,
}

impl Slot {
    /// Its place in [`Cache::slab`].
    pub(super) fn offset(self) -> usize {
        self.place * PAGE_SIZE
    }
}

/// See the module.
pub(super) struct Cache {
    slab: Arc<dyn Region>,
    keys: Box<[u64]>,
    /// The pass of each slot's last use.
    stamps: Box<[u32]>,
    ways: usize,
    set_bits: u32,
}

impl Cache {
    /// An empty cache of `slots` pages.
    ///
    /// # Panics
    ///
    /// If `slots` is not a power of two.
    pub(super) fn new(slots: usize) -> Result<Self> {
        assert!(slots.is_power_of_two(), "{slots} slots");
        let slab = RamBlock::new("xbzrle-cache", slots as u64 * PAGE_SIZE as u64)?.region();
        let ways = WAYS.min(slots);
        Ok(Self {
            slab,
            keys: vec![EMPTY; slots].into(),
            stamps: vec![0; slots].into(),
            ways,
            set_bits: (slots / ways).trailing_zeros(),
        })
    }

    /// How many pages it may hold.
    pub(super) fn slots(&self) -> usize {
        self.keys.len()
    }

    /// The memory that holds the copies, for who sends them.
    pub(super) fn slab(&self) -> &Arc<dyn Region> {
        &self.slab
    }

    /// Where the page is, if it is here; marks it as used in `pass`.
    pub(super) fn find(&mut self, key: Key, pass: u32) -> Option<Slot> {
        let slots = self.slots_of(key);
        let way = self.keys[slots.clone()].iter().position(|here| *here == key.0)?;
        let index = slots.start + way;
        self.stamps[index] = pass;
        Some(self.slot(index))
    }

    /// A slot for a page that is not here: a free one, else the one that was not used for longest, if that is longer
    /// than a pass. Its content is whatever was there.
    pub(super) fn claim(&mut self, key: Key, pass: u32) -> Option<Slot> {
        let slots = self.slots_of(key);
        debug_assert!(!self.keys[slots.clone()].contains(&key.0), "{key:?} is here");
        let free = slots.clone().find(|index| self.keys[*index] == EMPTY);
        let index = free.or_else(|| {
            let oldest = slots.min_by_key(|index| self.stamps[*index])?;
            (self.stamps[oldest].saturating_add(1) < pass).then_some(oldest)
        })?;
        self.keys[index] = key.0;
        self.stamps[index] = pass;
        Some(self.slot(index))
    }

    /// Copies a page that is here too out of the guest, with a bit for each block of 64 bytes that is not as in the copy; of
    /// the copy those blocks alone are brought into `old`.
    pub(super) fn compare(
        &self,
        slot: Slot,
        page: Page<'_>,
        new: &mut [u8; PAGE_SIZE],
        old: &mut [u8; PAGE_SIZE],
    ) -> Result<u64, OutOfRegion> {
        const BLOCK: usize = 64;
        let changed = page.region.copy_out_compared(page.at, new, &*self.slab, slot.offset())?;
        let mut left = changed;
        while left != 0 {
            let at = left.trailing_zeros() as usize * BLOCK;
            self.slab.copy_out_at(slot.offset() + at, &mut old[at..at + BLOCK])?;
            left &= left - 1;
        }
        Ok(changed)
    }

    /// Copies a page out.
    fn read(&self, slot: Slot, into: &mut [u8; PAGE_SIZE]) {
        self.slab.copy_out_at(slot.offset(), into).expect("the slab has a page for every slot");
    }

    /// Copies a page in.
    pub(super) fn write(&self, slot: Slot, page: &[u8; PAGE_SIZE]) {
        self.slab.copy_in_at(slot.offset(), page).expect("the slab has a page for every slot");
    }

    /// Copies a part of a page in, at `at` in it.
    pub(super) fn patch(&self, slot: Slot, at: usize, part: &[u8]) {
        self.slab.copy_in_at(slot.offset() + at, part).expect("the slab has a page for every slot");
    }

    /// Sets a page to zeros.
    pub(super) fn write_zeros(&self, slot: Slot) {
        self.slab.zero_at(slot.offset(), PAGE_SIZE).expect("the slab has a page for every slot");
    }

    /// The same pages in a cache of another size; where they do not all fit, those used last. Who still refers to the
    /// old slab finds it unchanged. A large one takes a while, in which others get their turns.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: this cache stays as it is.
    pub(super) async fn resized(&self, slots: usize) -> Result<Self> {
        let mut other = Self::new(slots)?;
        let mut held: Vec<usize> =
            (0..self.slots()).filter(|index| self.keys[*index] != EMPTY).collect();
        held.sort_by_key(|index| std::cmp::Reverse(self.stamps[*index]));
        let mut page = [0; PAGE_SIZE];
        for (copied, index) in held.into_iter().enumerate() {
            if copied % COPIED_AT_ONCE == COPIED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            // Pass 0: only where there is a free slot.
            let Some(there) = other.claim(Key(self.keys[index]), 0) else { continue };
            other.stamps[there.index] = self.stamps[index];
            self.read(self.slot(index), &mut page);
            other.write(there, &page);
        }
        Ok(other)
    }

    fn slot(&self, index: usize) -> Slot {
        let (set, way) = (index / self.ways, index % self.ways);
        Slot { index, place: way << self.set_bits | set }
    }

    /// The slots of the page's set, among keys and stamps.
    fn slots_of(&self, key: Key) -> std::ops::Range<usize> {
        let (block, page) = (key.0 >> PAGE_BITS, key.0 & ((1 << PAGE_BITS) - 1));
        // Blocks begin at places that have nothing to do with each other.
        let start = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let folded = (page ^ page >> self.set_bits).wrapping_add(start);
        let first = (folded & ((1 << self.set_bits) - 1)) as usize * self.ways;
        first..first + self.ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(page: usize) -> Key {
        Key::new(0, page).unwrap()
    }

    fn page(fill: usize) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&fill.to_ne_bytes());
        page
    }

    fn put(cache: &mut Cache, number: usize, pass: u32) -> bool {
        let slot = cache.claim(key(number), pass);
        if let Some(slot) = slot {
            cache.write(slot, &page(number));
        }
        slot.is_some()
    }

    #[track_caller]
    fn holds(cache: &mut Cache, number: usize, pass: u32) -> bool {
        let Some(slot) = cache.find(key(number), pass) else { return false };
        let mut found = [0; PAGE_SIZE];
        cache.read(slot, &mut found);
        assert_eq!(found, page(number), "page {number}");
        true
    }

    #[test]
    fn a_working_set_of_its_size_fits_wholly_wherever_it_lies() {
        for slots in [1, 2, 8, 16, 256] {
            for start in [0, slots, 1000 * slots] {
                let mut cache = Cache::new(slots).unwrap();
                assert!((start..start + slots).all(|number| put(&mut cache, number, 1)));
                assert!((start..start + slots).all(|number| holds(&mut cache, number, 2)));
                assert!(!put(&mut cache, start + slots, 2), "it is full of what is in use");
            }
        }
    }

    #[test]
    fn pages_in_regular_steps_do_not_crowd_one_set() {
        let mut cache = Cache::new(1024).unwrap();
        let stored = (0..128).filter(|n| put(&mut cache, n * 512, 1)).count();
        assert!(stored >= 120, "{stored} of 128");
    }

    #[test]
    fn only_what_went_unused_for_a_whole_pass_makes_room() {
        let mut cache = Cache::new(4).unwrap();
        for number in 0..4 {
            assert!(put(&mut cache, number, 1));
        }
        assert!(!put(&mut cache, 9, 1) && !put(&mut cache, 9, 2));
        // Pass 2 uses all but one.
        for number in [0, 1, 3] {
            assert!(holds(&mut cache, number, 2));
        }
        assert!(put(&mut cache, 9, 3), "page 2 was not used in pass 2");
        assert!(!holds(&mut cache, 2, 3));
        assert!(!put(&mut cache, 10, 3));
        assert!([0, 1, 3, 9].iter().all(|number| holds(&mut cache, *number, 3)));
    }

    #[test]
    fn a_working_set_larger_than_the_cache_still_hits() {
        let mut cache = Cache::new(64).unwrap();
        for pass in 1..=5 {
            let mut hits = 0;
            for number in 0..256 {
                match holds(&mut cache, number, pass) {
                    true => hits += 1,
                    false => _ = put(&mut cache, number, pass),
                }
            }
            assert_eq!(hits, if pass == 1 { 0 } else { 64 }, "pass {pass}");
        }
    }

    /// Whoever cancels gets a turn long before a large one is copied, and nothing has changed then.
    #[test]
    fn a_large_cache_is_copied_in_pieces() {
        let slots = 8 * COPIED_AT_ONCE;
        let mut cache = Cache::new(slots).unwrap();
        for number in 0..slots {
            put(&mut cache, number, 1);
        }
        let mut turns = 0;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        {
            let mut resized = std::pin::pin!(cache.resized(2 * slots));
            while std::future::Future::poll(resized.as_mut(), &mut context).is_pending() {
                turns += 1;
            }
        }
        assert!(turns >= 7, "{turns} turns");
        assert!(holds(&mut cache, 5, 1));
    }

    #[tokio::test]
    async fn growing_keeps_everything_and_shrinking_what_was_used_last() {
        let mut cache = Cache::new(32).unwrap();
        for number in 0..32 {
            assert!(put(&mut cache, number, if number % 4 == 0 { 7 } else { 3 }));
        }
        let mut larger = cache.resized(128).await.unwrap();
        assert!((0..32).all(|number| holds(&mut larger, number, 8)));
        let mut smaller = cache.resized(8).await.unwrap();
        assert_eq!(smaller.slots(), 8);
        for number in 0..32 {
            assert_eq!(holds(&mut smaller, number, 8), number % 4 == 0, "page {number}");
        }
        assert!((0..32).all(|number| holds(&mut cache, number, 8)), "the old one is as it was");
    }

    #[test]
    fn pages_are_told_apart_by_block_too_and_zeroed() {
        let mut cache = Cache::new(16).unwrap();
        let (one, other) = (Key::new(0, 5).unwrap(), Key::new(1, 5).unwrap());
        let (first, second) = (cache.claim(one, 1).unwrap(), cache.claim(other, 1).unwrap());
        assert_ne!(first, second);
        cache.write(first, &page(1));
        cache.write(second, &page(2));
        let found = cache.find(one, 1).unwrap();
        cache.write_zeros(found);
        let mut found = page(9);
        cache.read(first, &mut found);
        assert_eq!(found, [0; PAGE_SIZE]);
        cache.read(second, &mut found);
        assert_eq!(found, page(2));
    }

    #[test]
    fn what_cannot_be_numbered_is_not_cached() {
        assert!(Key::new(0, 1 << PAGE_BITS).is_none());
        assert!(Key::new(1 << 24, 0).is_none());
        let last = Key::new((1 << 24) - 2, (1 << PAGE_BITS) - 1).unwrap();
        assert_ne!(last.0, EMPTY);
    }
}
