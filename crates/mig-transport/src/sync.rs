//! What tasks and threads share in the part of this crate that loom models: std's types, or loom's.
//!
//! Built with `--cfg modelled`, the models next to that part try every order of events there is (docs/testing.md).

#[cfg(not(modelled))]
pub(crate) use {
    atomic_waker::AtomicWaker,
    std::sync::atomic::{AtomicBool, Ordering},
};

#[cfg(modelled)]
pub(crate) use {
    self::modelled::AtomicWaker,
    loom::sync::atomic::{AtomicBool, Ordering},
};

/// Tries every order of events in which threads are interrupted so many times where they need not stop: without a bound
/// there is no end, and nearly all mistakes need one or two. `LOOM_MAX_PREEMPTIONS` overrides it.
#[cfg(all(test, modelled))]
pub(crate) fn model(events: impl Fn() + Send + Sync + 'static) {
    const PREEMPTIONS: usize = 2;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(events);
}

#[cfg(modelled)]
mod modelled {
    use std::task::Waker;

    /// loom's own waker cell under the name and with the calls of the crate `atomic-waker`, which has no loom mode: the
    /// cell is taken at its word, its use is what is modelled.
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }
}
