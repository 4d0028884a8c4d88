//! What a failed accept means: the kernel hands on what went wrong with the connection it would have answered.

use std::io;

/// How far an error of accept(2) reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptFailure {
    /// One connection went wrong before it was accepted, or a signal came: accept the next one.
    OneConnection,
    /// No descriptor or memory is left here or in the whole system: it passes, accept again after a pause.
    Exhausted,
    /// The listening socket is no good.
    Fatal,
}

impl AcceptFailure {
    /// Sorts an error of accept(2).
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EINTR
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EPERM
                | libc::EPROTO
                | libc::ETIMEDOUT,
            ) => Self::OneConnection,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            _ => Self::Fatal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_are_told_apart() {
        for (code, expected) in [
            (libc::ECONNABORTED, AcceptFailure::OneConnection),
            (libc::EPERM, AcceptFailure::OneConnection),
            (libc::EMFILE, AcceptFailure::Exhausted),
            (libc::ENOBUFS, AcceptFailure::Exhausted),
            (libc::EINVAL, AcceptFailure::Fatal),
            (libc::EBADF, AcceptFailure::Fatal),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(AcceptFailure::of(&error), expected, "{error}");
        }
        assert_eq!(AcceptFailure::of(&io::Error::other("x")), AcceptFailure::Fatal);
    }
}
