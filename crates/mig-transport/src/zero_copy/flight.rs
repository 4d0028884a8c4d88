//! The sends that the kernel is not done with, and the memory that is kept for them.

use std::{collections::VecDeque, sync::Arc};

use super::completion::Completion;
use crate::region::Region;

/// Sends in flight, in the order they were made; bounded.
pub(super) struct Flight {
    sends: VecDeque<Lent>,
    /// The number that the kernel gives to the next one.
    next: u32,
    most: usize,
}

struct Lent {
    number: u32,
    bytes: u64,
    /// `None` once the kernel is done with it, while an earlier one is still in flight.
    region: Option<Arc<dyn Region>>,
}

impl Flight {
    /// None yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { sends: VecDeque::new(), next: 0, most }
    }

    pub(super) fn is_full(&self) -> bool {
        self.sends.len() >= self.most
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// Sends that are kept, those among them included that are done behind one that is not.
    pub(super) fn len(&self) -> usize {
        self.sends.len()
    }

    /// Bytes that the kernel is not done with.
    pub(super) fn bytes(&self) -> u64 {
        self.sends.iter().filter(|send| send.region.is_some()).map(|send| send.bytes).sum()
    }

    /// Notes a send that the kernel has just taken.
    pub(super) fn push(&mut self, bytes: usize, region: Arc<dyn Region>) {
        self.sends.push_back(Lent { number: self.next, bytes: bytes as u64, region: Some(region) });
        self.next = self.next.wrapping_add(1);
    }

    /// Lets go of the memory of what is done; answers how many bytes that were. A number that was never given, or
    /// twice, counts nothing.
    pub(super) fn complete(&mut self, done: Completion) -> u64 {
        let mut bytes = 0;
        for send in &mut self.sends {
            if done.covers(send.number) && send.region.take().is_some() {
                bytes += send.bytes;
            }
        }
        while self.sends.front().is_some_and(|send| send.region.is_none()) {
            self.sends.pop_front();
        }
        bytes
    }

    /// The memory of what is in flight, which is forgotten here.
    pub(super) fn take_regions(&mut self) -> Vec<Arc<dyn Region>> {
        self.sends.drain(..).filter_map(|send| send.region).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::VecRegion;

    fn done(first: u32, last: u32) -> Completion {
        Completion { first, last, copied: false }
    }

    #[test]
    fn memory_is_kept_until_its_own_send_is_done_in_whatever_order() {
        let mut flight = Flight::new(3);
        let regions: Vec<Arc<dyn Region>> = (0..3).map(|_| VecRegion::zeroed(8) as _).collect();
        for (region, bytes) in regions.iter().zip([1, 10, 100]) {
            assert!(!flight.is_full());
            flight.push(bytes, Arc::clone(region));
        }
        assert!(flight.is_full());
        assert_eq!(flight.bytes(), 111);
        let held = |index: usize| Arc::strong_count(&regions[index]) - 1;
        assert_eq!(flight.complete(done(1, 1)), 10);
        assert_eq!((held(0), held(1), held(2)), (1, 0, 1));
        assert_eq!((flight.len(), flight.bytes()), (3, 101));
        assert_eq!(flight.complete(done(1, 1)), 0, "told twice");
        assert_eq!(flight.complete(done(0, 0)), 1);
        assert_eq!(flight.len(), 1);
        assert_eq!(flight.take_regions().len(), 1);
        assert!(flight.is_empty());
    }

    #[test]
    fn numbers_wrap_around() {
        let mut flight = Flight::new(8);
        flight.next = u32::MAX;
        let region: Arc<dyn Region> = VecRegion::zeroed(8);
        flight.push(5, Arc::clone(&region));
        flight.push(6, Arc::clone(&region));
        assert_eq!(flight.complete(done(u32::MAX, 0)), 11);
        assert!(flight.is_empty());
    }
}
