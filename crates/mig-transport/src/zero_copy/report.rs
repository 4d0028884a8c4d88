//! What became of a wish for zero copy, readable while bytes flow.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Tells what became of a [request](crate::SendHalf::request_zero_copy). Cheap to clone; it may outlive the half.
#[derive(Clone)]
pub struct ZeroCopy(Arc<Told>);

#[derive(Default)]
struct Told {
    /// Set once zero copy is given up, or was never there.
    reason: OnceLock<String>,
    zero_copied: AtomicU64,
    copied: AtomicU64,
    ordinary: AtomicU64,
    enobufs: AtomicU64,
}

/// How it stands, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZeroCopyReport {
    /// It was asked for.
    pub requested: bool,
    /// Long runs of pages go without a copy, as far as is known.
    pub in_force: bool,
    /// Why it is not in force: what there is, and what would be needed.
    pub reason: Option<String>,
    /// Bytes of pages that the kernel is done with and did not copy.
    pub bytes_zero_copied: u64,
    /// Bytes of pages that the kernel was asked not to copy, and copied all the same. What is in flight is in neither
    /// count.
    pub bytes_copied_by_kernel: u64,
    /// Bytes of pages that were sent the ordinary way since: short runs, what the kernel had no room for, and everything
    /// once zero copy was given up.
    pub bytes_ordinary: u64,
    /// Times the kernel had no room for another send in flight (`ENOBUFS`).
    pub enobufs: u64,
}

impl ZeroCopy {
    pub(super) fn in_force() -> Self {
        Self(Arc::default())
    }

    /// The answer of a half that cannot: `reason` says what it is instead, or what is missing.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        let told = Self::in_force();
        told.give_up(reason.into());
        told
    }

    /// Whether it is in force, as far as is known; cheaper than the whole report.
    pub fn is_in_force(&self) -> bool {
        self.0.reason.get().is_none()
    }

    /// How it stands now.
    pub fn report(&self) -> ZeroCopyReport {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ZeroCopyReport {
            requested: true,
            in_force: self.is_in_force(),
            reason: self.0.reason.get().cloned(),
            bytes_zero_copied: count(&self.0.zero_copied),
            bytes_copied_by_kernel: count(&self.0.copied),
            bytes_ordinary: count(&self.0.ordinary),
            enobufs: count(&self.0.enobufs),
        }
    }

    /// The first reason stays.
    pub(super) fn give_up(&self, reason: String) {
        let _first = self.0.reason.set(reason);
    }

    pub(super) fn add_zero_copied(&self, bytes: u64) {
        self.0.zero_copied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_copied(&self, bytes: u64) {
        self.0.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_ordinary(&self, bytes: u64) {
        self.0.ordinary.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Answers how many there are now.
    pub(super) fn add_enobufs(&self) -> u64 {
        self.0.enobufs.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl fmt::Debug for ZeroCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let told = ZeroCopy::in_force();
        assert!(told.report().in_force && told.report().requested);
        told.give_up("this".into());
        told.give_up("that".into());
        let report = told.clone().report();
        assert_eq!((report.in_force, report.reason.as_deref()), (false, Some("this")));
    }
}
