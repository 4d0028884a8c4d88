//! What the transport did, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one end. They only grow, but for [`registered_bytes`](Self::registered_bytes).
#[derive(Debug, Default)]
pub struct RdmaCounters {
    /// Control messages sent for which this end had to wait: each is a round trip.
    round_trips: AtomicU64,
    /// RDMA WRITEs and their bytes; a destination cannot see them.
    writes: AtomicU64,
    written_bytes: AtomicU64,
    /// Bytes said to be zero in a COMPRESS.
    zero_bytes: AtomicU64,
    registered: AtomicU64,
    registered_peak: AtomicU64,
}

impl RdmaCounters {
    /// Control messages that waited for the other end's READY: round trips of the control channel.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    /// RDMA WRITEs posted by this end.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Bytes of those WRITEs.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of guest memory said, or heard, to be zero.
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of guest memory registered at this end now.
    pub fn registered_bytes(&self) -> u64 {
        self.registered.load(Ordering::Relaxed)
    }

    /// The most bytes of guest memory that were registered at this end at a time.
    pub fn registered_peak_bytes(&self) -> u64 {
        self.registered_peak.load(Ordering::Relaxed)
    }

    pub(crate) fn round_trip(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn zeroed(&self, bytes: u64) {
        self.zero_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn registered(&self, bytes: u64) {
        let now = self.registered.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.registered_peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(crate) fn deregistered(&self, bytes: u64) {
        self.registered.fetch_sub(bytes, Ordering::Relaxed);
    }
}
