//! What an address does not say.

use std::{sync::Arc, time::Duration};

use mig_transport::AllowList;

use crate::counters::RdmaCounters;

/// How an end behaves. Start from `RdmaOptions::default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RdmaOptions {
    /// How long connecting may take, name lookup and every address tried included. Default 30 s.
    pub deadline: Duration,
    /// How long the listening end waits for a handshake to end, and for the second connection of a return path.
    /// Default 10 s.
    pub handshake_deadline: Duration,
    /// Source: register all memory of both ends up front (QEMU's `rdma-pin-all`; the source alone decides,
    /// docs/wire/rdma.md §2.3). Off by default.
    pub pin_all: bool,
    /// Use a second connection for the way back. There is no negotiation: both ends must agree (docs/wire/rdma.md §11). Off
    /// by default.
    pub return_path: bool,
    /// The most bytes of guest memory that are registered at a time, at each end that can be kept to it: this one, and the
    /// other one if it is ours. `None` takes a part of what the limit on locked memory allows. Not with `pin_all`.
    pub pinned_memory: Option<u64>,
    /// Bytes registered at a time, a power of two; less if the budget is small. Default 64 MiB.
    pub window_bytes: u64,
    /// How long the end of a migration waits for the other end to hang up, so that a destination can read what has come
    /// (docs/wire/rdma.md §12). Default 10 s.
    pub closing_grace: Duration,
    /// After so long without a sign of life the connection is tested, by a WRITE of nothing. A dead peer then ends the
    /// migration when the device has tried often enough. Default 5 s.
    pub keepalive: Duration,
    /// Destination: who may connect; others are refused before anything is made for them. Default: anybody.
    pub allow: Option<AllowList>,
    /// Where to count.
    pub counters: Arc<RdmaCounters>,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            handshake_deadline: Duration::from_secs(10),
            pin_all: false,
            return_path: false,
            pinned_memory: None,
            window_bytes: 64 << 20,
            closing_grace: Duration::from_secs(10),
            keepalive: Duration::from_secs(5),
            allow: None,
            counters: Arc::default(),
        }
    }
}

impl RdmaOptions {
    /// The default with some fields changed; for users outside this crate.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut options = Self::default();
        change(&mut options);
        options
    }
}
