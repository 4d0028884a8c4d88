//! Whether as much memory may be locked as registering needs, said before anything is registered.

use mig_transport::{Error, Result};

use crate::verbs::MemoryLock;

/// Control buffers, and what the libraries lock for themselves.
pub(crate) const RESERVE: u64 = 16 << 20;

/// The budget for guest memory where none was given: up to 1 GiB, as far as the limit allows.
pub(crate) fn default_budget() -> u64 {
    const MOST: u64 = 1 << 30;
    MemoryLock::current()
        .allowed()
        .map_or(MOST, |allowed| allowed.saturating_sub(RESERVE).min(MOST))
}

/// Fails unless `bytes` of guest memory can be locked at a time.
pub(crate) fn check(bytes: u64, what: &str) -> Result<()> {
    let needed = bytes.saturating_add(RESERVE);
    match MemoryLock::current().allowed() {
        Some(allowed) if allowed < needed => Err(too_little(needed, what)),
        _ => Ok(()),
    }
}

/// The limit on locked memory is in the way.
pub(crate) fn too_little(needed: u64, what: &str) -> Error {
    let lock = MemoryLock::current();
    let allowed = lock.allowed().map_or_else(
        || "this process has no limit, so the device or the system is out of memory".to_owned(),
        |allowed| format!("RLIMIT_MEMLOCK allows {allowed}"),
    );
    let raised = match lock.hard {
        Some(hard) if hard < needed => {
            format!("as root, `ulimit -l {}` first", needed.div_ceil(1024))
        }
        _ => format!("`ulimit -l {}` first", needed.div_ceil(1024)),
    };
    Error::Unavailable {
        what: format!("rdma: {needed} bytes must be locked for {what}, {allowed}"),
        remedy: format!("{raised}, or LimitMEMLOCK= of the service, or give it CAP_IPC_LOCK"),
    }
}
