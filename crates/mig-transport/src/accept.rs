//! What a failed accept means: the kernel hands on what went wrong with the connection it would have answered.

use std::{
    io,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    log_limit::LogLimit,
};

/// How long accepting rests when this process or the system has no descriptor or memory left: long enough to load
/// nothing, short beside any deadline.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

static LOG: LazyLock<Mutex<LogLimit>> = LazyLock::new(Mutex::default);

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

    /// What every listener does about a failed accept(2): returns when the next one may be tried, at once or after a
    /// pause, and with [`Error::Io`] when the listening socket is no good.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn get_over(error: io::Error) -> Result<()> {
        match Self::of(&error) {
            Self::OneConnection => {
                tracing::debug!(%error, "a connection went before it was accepted");
                Ok(())
            }
            Self::Exhausted => {
                // Several listeners of a process run out of the same.
                let said = LOG.lock().unwrap_or_else(PoisonError::into_inner).say();
                if let Some(unsaid) = said {
                    tracing::warn!(%error, unsaid, "cannot accept now, trying again");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                Ok(())
            }
            Self::Fatal => Err(Error::io("accepting a connection", error)),
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

    #[tokio::test(start_paused = true)]
    async fn a_listener_goes_on_after_a_pause_unless_its_socket_is_broken() {
        let started = tokio::time::Instant::now();
        let failed = io::Error::from_raw_os_error;
        AcceptFailure::get_over(failed(libc::ECONNABORTED)).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
        AcceptFailure::get_over(failed(libc::EMFILE)).await.unwrap();
        assert_eq!(started.elapsed(), EXHAUSTED_PAUSE);
        let error = AcceptFailure::get_over(failed(libc::EBADF)).await.unwrap_err();
        assert_eq!(error.to_string(), "accepting a connection: Bad file descriptor (os error 9)");
    }
}
