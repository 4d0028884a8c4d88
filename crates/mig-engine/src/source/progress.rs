//! How far a source has come, as far as it decides who owns the guest when something fails.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use mig_stream::{StreamCounters, StreamWriter};
use tokio::time::Instant;

use super::{
    AFTERMATH,
    ownership::{LastItem, Writing, owner},
    return_path::Verdict,
};
use crate::error::Owner;

/// What the failure path has to know.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(super) guest_stopped: AtomicBool,
    /// The guest is or was slowed down.
    pub(super) throttled: AtomicBool,
    /// Where the stream's last item ends, and what has left.
    verge: OnceLock<(u64, Arc<StreamCounters>)>,
    /// Once the destination was heard: who owns the guest for good, and since when.
    settled: OnceLock<(Owner, Instant)>,
}

impl Progress {
    /// Who owns the guest if it all ends now.
    pub(crate) fn owner(&self) -> Owner {
        match self.settled.get() {
            Some((owner, _since)) => *owner,
            None => owner(self.last_item(), Writing::Well, None),
        }
    }

    /// All items have left through `out`. From the next byte on that leaves the destination may own the guest.
    pub(crate) fn reached_verge(&self, out: &StreamWriter) {
        // There is one end.
        let _first = self.verge.set((out.position(), out.counters()));
    }

    /// The destination was heard to its end. Answers who owns the guest, for good.
    pub(crate) fn settle(&self, writing: Writing, heard: &Verdict) -> Owner {
        self.settle_on(owner(self.last_item(), writing, Some(heard)))
    }

    /// Everything has left in good order, and nobody can answer.
    pub(crate) fn let_go(&self) {
        self.settle_on(Owner::Destination);
    }

    fn settle_on(&self, owner: Owner) -> Owner {
        self.settled.get_or_init(|| (owner, Instant::now())).0
    }

    /// Until when what is still owed to a destination that has the guest may take.
    pub(crate) fn owed_until(&self) -> Instant {
        self.settled.get().map_or_else(Instant::now, |(_owner, since)| *since) + AFTERMATH
    }

    fn last_item(&self) -> LastItem {
        match self.verge.get() {
            Some((at, out)) if out.bytes_sent() > *at => LastItem::MayHaveLeft,
            _ => LastItem::NotSent,
        }
    }
}
