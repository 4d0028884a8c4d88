//! What threads share in the part of this crate that loom models: std's types, or loom's.
//!
//! Built with `--cfg modelled`, the models next to that part try every order of events there is (docs/testing.md).

#[cfg(modelled)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(modelled))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// Tries every order of events in which threads are interrupted so many times where they need not stop: without a bound
/// there is no end, and nearly all mistakes need one or two. `LOOM_MAX_PREEMPTIONS` overrides it.
#[cfg(all(test, modelled))]
pub(crate) fn model(events: impl Fn() + Send + Sync + 'static) {
    const PREEMPTIONS: usize = 2;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(events);
}
