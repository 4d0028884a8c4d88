//! How far a source has come, as far as it decides who owns the guest when something fails.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use mig_stream::{StreamCounters, StreamWriter};

use crate::error::Owner;

/// What the failure path has to know.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(super) guest_stopped: AtomicBool,
    /// The guest is or was slowed down.
    pub(super) throttled: AtomicBool,
    owner: AtomicU8,
    /// Where the stream's last item ends, and what has left.
    verge: OnceLock<(u64, Arc<StreamCounters>)>,
}

impl Progress {
    pub(crate) fn owner(&self) -> Owner {
        match self.owner.load(Ordering::Relaxed) {
            0 => Owner::Source,
            1 => Owner::Destination,
            // A destination that lacks the end has nothing.
            _ if self.verge.get().is_some_and(|(at, out)| out.bytes_sent() <= *at) => Owner::Source,
            _ => Owner::Unknown,
        }
    }

    /// All items have left through `out`. From the next byte on that leaves the destination may own the guest.
    pub(crate) fn reached_verge(&self, out: &StreamWriter) {
        // There is one end.
        let _first = self.verge.set((out.position(), out.counters()));
        self.set_owner(Owner::Unknown);
    }

    pub(crate) fn set_owner(&self, owner: Owner) {
        let number = match owner {
            Owner::Source => 0,
            Owner::Destination => 1,
            Owner::Unknown => 2,
        };
        self.owner.store(number, Ordering::Relaxed);
    }
}
