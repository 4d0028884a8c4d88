//! What a call of the libraries answered when it failed.

use std::io;

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call of librdmacm or libibverbs that failed, with its `errno`.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct Error {
    /// The function, by its name in the library's manual.
    pub call: &'static str,
    /// The operating system's reason.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// The error that `errno` tells now.
    pub(super) fn last(call: &'static str) -> Self {
        Self { call, source: io::Error::last_os_error() }
    }

    pub(super) fn code(call: &'static str, errno: i32) -> Self {
        Self { call, source: io::Error::from_raw_os_error(errno) }
    }

    /// The number of the operating system's reason.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether memory could not be pinned: the limit on locked memory, or the device's own, is used up
    /// (docs/wire/rdma.md §9.3).
    pub fn is_out_of_memory(&self) -> bool {
        self.raw_os_error() == Some(libc::ENOMEM)
    }
}

impl From<Error> for mig_transport::Error {
    fn from(error: Error) -> Self {
        Self::io(error.call, error.source)
    }
}

/// The answer of an `rdma_*` call: 0, or −1 and `errno`.
pub(super) fn check(call: &'static str, answer: libc::c_int) -> Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(Error::last(call)),
    }
}

/// The answer of an `ibv_*` call: 0, or the error itself; a few old ones say −1 and `errno`.
pub(super) fn check_code(call: &'static str, answer: libc::c_int) -> Result<()> {
    match answer {
        0 => Ok(()),
        -1 => Err(Error::last(call)),
        code => Err(Error::code(call, code.saturating_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_habits_of_the_libraries_are_understood() {
        assert!(check("rdma_x", 0).is_ok());
        assert!(check_code("ibv_x", 0).is_ok());
        for answer in [libc::ENOMEM, -libc::ENOMEM] {
            let error = check_code("ibv_x", answer).unwrap_err();
            assert!(error.is_out_of_memory(), "{error}");
            assert!(error.to_string().starts_with("ibv_x: "), "{error}");
        }
    }
}
