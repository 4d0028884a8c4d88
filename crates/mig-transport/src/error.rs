//! What can go wrong below the stream, sorted by who is to blame.

use std::{io, time::Duration};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act when something failed. Every crate's errors sort into these; the tool maps them to exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Blame {
    /// The link, the disk or the operating system failed.
    Io,
    /// The other end, or the file, broke the protocol (truncation included).
    PeerMisbehaved,
    /// Both ends obey the protocol and still do not fit each other.
    PeerIncompatible,
    /// The caller: a wrong argument, local configuration, an address that cannot be bound.
    Misuse,
    /// Somebody asked to stop.
    Cancelled,
    /// A wait ran out.
    Deadline,
    /// This machine lacks what was asked for (device, library, permission, kernel feature).
    Unavailable,
}

/// A failure of a transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system said no.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the address or channel it was done to.
        doing: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The other end broke a rule of the transport.
    #[error("{what}")]
    PeerMisbehaved {
        /// Which rule, and how.
        what: String,
    },
    /// The other end is sound but does not fit.
    #[error("{what}")]
    PeerIncompatible {
        /// What does not fit, on which side, and what to do.
        what: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{what}")]
    Misuse {
        /// What was asked, why it cannot be, and what would work.
        what: String,
    },
    /// Somebody asked to stop while this was going on.
    #[error("cancelled while {doing}")]
    Cancelled {
        /// What was going on.
        doing: String,
    },
    /// A wait ran out.
    #[error("{doing}: no answer within {after:?}")]
    Deadline {
        /// Which wait.
        doing: String,
        /// How long it was.
        after: Duration,
    },
    /// This machine lacks something.
    #[error("{what}; {remedy}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What would bring it.
        remedy: String,
    },
}

impl Error {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Io { .. } => Blame::Io,
            Self::PeerMisbehaved { .. } => Blame::PeerMisbehaved,
            Self::PeerIncompatible { .. } => Blame::PeerIncompatible,
            Self::Misuse { .. } => Blame::Misuse,
            Self::Cancelled { .. } => Blame::Cancelled,
            Self::Deadline { .. } => Blame::Deadline,
            Self::Unavailable { .. } => Blame::Unavailable,
        }
    }

    /// Wraps what the operating system said. An error that [`ShutdownHandle`](crate::ShutdownHandle) caused becomes
    /// [`Error::Cancelled`], and an `Error` that travelled inside an `io::Error` comes out as it went in.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        if crate::ShutdownHandle::caused(&source) {
            return Self::Cancelled { doing };
        }
        match source.downcast::<Self>() {
            Ok(inner) => inner,
            Err(source) => Self::Io { doing, source },
        }
    }

    /// Carries this error through an interface that only knows `io::Error`; [`Error::io`] takes it out again.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Io { source, .. } => source.kind(),
            Self::Cancelled { .. } => io::ErrorKind::ConnectionAborted,
            Self::Deadline { .. } => io::ErrorKind::TimedOut,
            Self::Unavailable { .. } => io::ErrorKind::Unsupported,
            Self::Misuse { .. } => io::ErrorKind::InvalidInput,
            Self::PeerMisbehaved { .. } | Self::PeerIncompatible { .. } => {
                io::ErrorKind::InvalidData
            }
        };
        io::Error::new(kind, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_io_interface() {
        let there = Error::Misuse { what: "no such thing".into() }.into_io();
        assert_eq!(there.kind(), io::ErrorKind::InvalidInput);
        let back = Error::io("reading", there);
        assert_eq!(back.blame(), Blame::Misuse);
        assert_eq!(back.to_string(), "no such thing");
    }

    #[test]
    fn a_plain_io_error_stays_one_and_keeps_its_source() {
        let error = Error::io("connecting to x", io::ErrorKind::ConnectionRefused.into());
        assert_eq!(error.blame(), Blame::Io);
        assert!(std::error::Error::source(&error).is_some());
    }
}
