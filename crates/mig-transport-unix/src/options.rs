//! What an address does not say.

use std::time::Duration;

/// How unix sockets are opened and who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixOptions {
    /// How long connecting may take; it waits only while the listener's queue is full. Default 30 s.
    pub deadline: Duration,
    /// Permission bits of the socket file. Default: what the process's umask leaves.
    pub mode: Option<u32>,
    /// The users whose processes may connect; others are dropped with a log line. Default: whoever the file's
    /// permissions let in.
    pub allowed_uids: Option<Vec<u32>>,
    /// Connections the kernel completes before they are accepted. Default 4096, as much as Linux usually
    /// allows.
    pub backlog: u32,
}

impl Default for UnixOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), mode: None, allowed_uids: None, backlog: 4096 }
    }
}

impl UnixOptions {
    /// The defaults, changed by `change`.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut options = Self::default();
        change(&mut options);
        options
    }
}
