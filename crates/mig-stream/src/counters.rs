//! Bytes of one channel, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a channel has carried. Shared by the halves that count and anybody who reports.
#[derive(Debug, Default)]
pub struct StreamCounters {
    sent: AtomicU64,
    beside: AtomicU64,
    received: AtomicU64,
}

impl StreamCounters {
    /// Bytes the channel has taken from us.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that went to the other end beside the stream: pages that the transport carried itself.
    pub fn bytes_beside(&self) -> u64 {
        self.beside.load(Ordering::Relaxed)
    }

    /// Everything that went to the other end, in the stream and beside it.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_sent() + self.bytes_beside()
    }

    /// Bytes the channel has given us, the buffered ones included.
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_beside(&self, bytes: usize) {
        self.beside.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
