//! Reasons why a guest must not migrate now.

use std::sync::{Arc, Mutex, PoisonError};

/// A guest's list of blockers, shared by everybody who may have one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Blockers(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    reasons: Vec<(u64, String)>,
}

/// Holds a blocker; dropping it lifts it.
#[derive(Debug)]
pub struct Blocker {
    list: Blockers,
    id: u64,
}

impl Blockers {
    /// Forbids migrations until the answer is dropped. One that already runs is not affected.
    #[must_use = "dropping the blocker lifts it"]
    pub fn add(&self, reason: impl Into<String>) -> Blocker {
        let mut entries = self.entries();
        let id = entries.next;
        entries.next += 1;
        entries.reasons.push((id, reason.into()));
        Blocker { list: self.clone(), id }
    }

    /// QEMU's `blocked-reasons`.
    pub fn reasons(&self) -> Vec<String> {
        self.entries().reasons.iter().map(|(_, reason)| reason.clone()).collect()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // A list of strings is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.list.entries().reasons.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocker_blocks_while_it_lives() {
        let blockers = Blockers::default();
        let first = blockers.add("a device without state");
        let second = blockers.add("a passthrough device");
        assert_eq!(blockers.reasons().len(), 2);
        drop(first);
        assert_eq!(blockers.reasons(), ["a passthrough device"]);
        drop(second);
        assert!(blockers.reasons().is_empty());
    }
}
