//! Which of many handshakes got on last.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts what happens in all handshakes of one listener: connections and records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events(Arc<AtomicU64>);

impl Events {
    /// For one more handshake, which has just connected.
    pub(crate) fn connected(&self) -> Progress {
        let progress =
            Progress { events: self.clone(), last: Arc::default(), records: Arc::default() };
        progress.touch();
        progress
    }
}

/// How far one handshake is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    events: Events,
    last: Arc<AtomicU64>,
    records: Arc<AtomicU64>,
}

impl Progress {
    /// A whole record of the other end has come.
    pub(crate) fn made(&self) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Whether a whole record has come. A byte is no sign of life: it costs a stranger nothing.
    pub(crate) fn spoke(&self) -> bool {
        self.records.load(Ordering::Relaxed) > 0
    }

    /// When it connected or spoke last, by the number of the event.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.last.store(self.events.0.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}
