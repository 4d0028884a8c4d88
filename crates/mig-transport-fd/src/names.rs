//! Descriptors that were handed over under a name, as QEMU's `getfd` does.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use mig_transport::{Error, Result};

use crate::descriptor::{Descriptor, RejectedFd};

/// Names and the descriptors behind them (docs/wire/transports.md §2.5). A migration consumes what it uses.
#[derive(Debug, Default)]
pub struct NamedDescriptors(Mutex<BTreeMap<String, OwnedFd>>);

impl NamedDescriptors {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `fd` there under `name`. What had the name before is closed, as in QEMU. Kinds are checked on use.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`], with the descriptor handed back, for a name that is empty or begins with a digit (that would
    /// be a number).
    pub fn add(&self, name: &str, fd: OwnedFd) -> std::result::Result<(), RejectedFd> {
        let why = if name.is_empty() {
            "a descriptor's name cannot be empty"
        } else if name.starts_with(|first: char| first.is_ascii_digit()) {
            "a descriptor's name must not begin with a digit"
        } else {
            self.lock().insert(name.to_owned(), fd);
            return Ok(());
        };
        Err(RejectedFd { error: Error::Misuse { what: format!("{name:?}: {why}") }, fd })
    }

    /// Takes what is called `name` out, for use.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] when nothing has that name (the message lists what there is), or it cannot carry a migration;
    /// then it stays.
    pub fn take(&self, name: &str) -> Result<Descriptor> {
        let mut known = self.lock();
        let Some(fd) = known.remove(name) else {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            let there = if names.is_empty() { "none was".into() } else { names.join(", ") };
            return Err(Error::Misuse {
                what: format!(
                    "fd:{name}: no descriptor was handed over under this name (handed over: {there})"
                ),
            });
        };
        Descriptor::from_owned(fd, format!("fd:{name}")).map_err(|rejected| {
            known.insert(name.to_owned(), rejected.fd);
            rejected.error
        })
    }

    /// Closes what is called `name`; answers whether there was such.
    pub fn close(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    /// The names there are.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
