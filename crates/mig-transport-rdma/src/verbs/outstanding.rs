//! What the device is working on: each posted work request keeps its memory here until its completion is seen.
//!
//! A work request's 64-bit id is its place in this table and how often the place was used before: a completion that comes
//! twice, or after its queue pair is gone, finds nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::{buffer::Buffer, cq::WorkKind, mr::Registered};

/// One direction of a queue pair: how many work requests it holds, and may hold.
pub(super) struct Queue {
    in_flight: AtomicU32,
    depth: u32,
}

impl Queue {
    pub(super) fn new(depth: u32) -> Self {
        Self { in_flight: AtomicU32::new(0), depth }
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Takes a place, if there is one.
    fn enter(&self) -> bool {
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < self.depth).then_some(now + 1)
            })
            .is_ok()
    }

    fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The memory of a work request.
pub(super) enum Held {
    /// A control buffer, given back with the completion.
    Buffer(Buffer),
    /// Registered memory, kept from being deregistered; just held.
    Region {
        /// Read by nobody: it is here to live.
        _registered: Arc<Registered>,
    },
    /// A message without memory.
    Nothing,
}

/// A work request the device has.
pub(super) struct Flight {
    pub(super) queue: Arc<Queue>,
    pub(super) kind: WorkKind,
    pub(super) token: u64,
    pub(super) held: Held,
}

struct Place {
    generation: u32,
    flight: Option<Flight>,
}

/// The table of one completion queue, no longer than that.
pub(super) struct Outstanding {
    places: Vec<Place>,
    free: Vec<u32>,
    limit: u32,
}

impl Outstanding {
    pub(super) fn new(limit: u32) -> Self {
        Self { places: Vec::new(), free: Vec::new(), limit }
    }

    /// Notes a work request about to be posted; gives it back when its queue, or the table, is full.
    pub(super) fn insert(&mut self, flight: Flight) -> Result<u64, Flight> {
        if !flight.queue.enter() {
            return Err(flight);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < self.limit as usize => {
                self.places.push(Place { generation: 0, flight: None });
                // Fits: the length is below a 32-bit limit.
                (self.places.len() - 1) as u32
            }
            None => {
                flight.queue.leave();
                return Err(flight);
            }
        };
        let place = &mut self.places[index as usize];
        place.flight = Some(flight);
        Ok(u64::from(place.generation) << 32 | u64::from(index))
    }

    /// Takes out what completed, or was never posted; nothing for an id that is not out.
    pub(super) fn take(&mut self, id: u64) -> Option<Flight> {
        let (generation, index) = ((id >> 32) as u32, id as u32);
        let place = self.places.get_mut(index as usize)?;
        if place.generation != generation {
            return None;
        }
        let flight = place.flight.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        flight.queue.leave();
        Some(flight)
    }

    /// Takes out all of one queue, which is no more.
    pub(super) fn take_all(&mut self, queue: &Arc<Queue>) -> Vec<Flight> {
        let of_queue = |place: &Place| {
            place.flight.as_ref().is_some_and(|flight| Arc::ptr_eq(&flight.queue, queue))
        };
        let ids: Vec<u64> = (0u64..)
            .zip(&self.places)
            .filter(|(_, place)| of_queue(place))
            .map(|(index, place)| u64::from(place.generation) << 32 | index)
            .collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(queue: &Arc<Queue>, token: u64) -> Flight {
        Flight { queue: Arc::clone(queue), kind: WorkKind::Write, token, held: Held::Nothing }
    }

    #[test]
    fn a_completion_is_taken_once() {
        let queue = Arc::new(Queue::new(4));
        let mut table = Outstanding::new(4);
        let first = table.insert(flight(&queue, 7)).ok().unwrap();
        assert_eq!(queue.in_flight(), 1);
        assert_eq!(table.take(first).unwrap().token, 7);
        assert_eq!(queue.in_flight(), 0);
        assert!(table.take(first).is_none());
        // The place is used again, under another id.
        let second = table.insert(flight(&queue, 8)).ok().unwrap();
        assert_eq!(second as u32, first as u32);
        assert!(table.take(first).is_none());
        assert_eq!(table.take(second).unwrap().token, 8);
        assert!(table.take(u64::MAX).is_none());
    }

    #[test]
    fn a_full_queue_and_a_full_table_give_back() {
        let (short, long) = (Arc::new(Queue::new(1)), Arc::new(Queue::new(9)));
        let mut table = Outstanding::new(2);
        table.insert(flight(&short, 0)).ok().unwrap();
        assert_eq!(table.insert(flight(&short, 1)).err().unwrap().token, 1);
        table.insert(flight(&long, 2)).ok().unwrap();
        assert_eq!(table.insert(flight(&long, 3)).err().unwrap().token, 3);
        assert_eq!((short.in_flight(), long.in_flight()), (1, 1));
    }

    #[test]
    fn a_queue_that_ends_takes_only_its_own_along() {
        let (one, other) = (Arc::new(Queue::new(9)), Arc::new(Queue::new(9)));
        let mut table = Outstanding::new(9);
        for token in 0..6 {
            let queue = if token % 2 == 0 { &one } else { &other };
            table.insert(flight(queue, token)).ok().unwrap();
        }
        let tokens: Vec<_> = table.take_all(&one).iter().map(|flight| flight.token).collect();
        assert_eq!(tokens, [0, 2, 4]);
        assert_eq!((one.in_flight(), other.in_flight()), (0, 3));
        assert_eq!(table.take_all(&other).len(), 3);
    }
}
