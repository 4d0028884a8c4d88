//! What an address does not say.

use std::time::Duration;

/// How vsock connections are made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VsockOptions {
    /// How long connecting may take. Default 30 s; the kernel has a limit of its own, 2 s unless somebody changed it.
    pub deadline: Duration,
    /// Connections the kernel completes before they are accepted. Default 4096, as much as Linux usually
    /// allows.
    pub backlog: u32,
}

impl Default for VsockOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), backlog: 4096 }
    }
}

impl VsockOptions {
    /// The defaults, changed by `change`.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut options = Self::default();
        change(&mut options);
        options
    }
}
