//! What can go wrong on a stream, sorted by who is to blame.

use std::{error, fmt, io, sync::Arc, time::Duration};

use mig_transport::{Blame, ShutdownHandle};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where on a stream something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The channel, as its endpoint prints itself.
    pub channel: Arc<str>,
    /// Bytes of this direction before it.
    pub at: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}", self.channel, self.at)
    }
}

/// A failure of a stream. Cheap to clone, because a stream answers its first one again and again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The link, the disk or the operating system failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where.
        place: Place,
        /// The operating system's reason.
        source: Arc<io::Error>,
    },
    /// The transport has a more precise word for what happened; it carries its own blame.
    Transport {
        /// What was being done.
        doing: &'static str,
        /// Where.
        place: Place,
        /// The transport's error.
        source: Arc<mig_transport::Error>,
    },
    /// The other end ended the stream in the middle of something.
    PeerMisbehaved {
        /// Where the stream ended.
        place: Place,
        /// What was expected there.
        what: Arc<str>,
    },
    /// The caller asked for something that cannot be. Does not stick: nothing was done.
    Misuse {
        /// What was asked, why it cannot be, and what would work.
        what: Arc<str>,
    },
    /// Somebody stopped the channel on this side.
    Cancelled {
        /// What was going on.
        doing: &'static str,
        /// Where.
        place: Place,
    },
    /// A wait ran out.
    Deadline {
        /// Which wait.
        doing: Arc<str>,
        /// Where; `None` when the wait was not for bytes of one stream.
        place: Option<Place>,
        /// How long it was.
        after: Duration,
    },
}

impl Error {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Io { .. } => Blame::Io,
            Self::Transport { source, .. } => source.blame(),
            Self::PeerMisbehaved { .. } => Blame::PeerMisbehaved,
            Self::Misuse { .. } => Blame::Misuse,
            Self::Cancelled { .. } => Blame::Cancelled,
            Self::Deadline { .. } => Blame::Deadline,
        }
    }

    /// Where on the stream it happened, if it happened on one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Io { place, .. }
            | Self::Transport { place, .. }
            | Self::PeerMisbehaved { place, .. }
            | Self::Cancelled { place, .. } => Some(place),
            Self::Deadline { place, .. } => place.as_ref(),
            Self::Misuse { .. } => None,
        }
    }

    pub(crate) fn misuse(what: impl Into<Arc<str>>) -> Self {
        Self::Misuse { what: what.into() }
    }

    /// Sorts what a channel answered: a stop of ours, a transport's own error travelling inside, or the system's word.
    pub(crate) fn channel(doing: &'static str, place: Place, source: io::Error) -> Self {
        if ShutdownHandle::caused(&source) {
            return Self::Cancelled { doing, place };
        }
        match source.downcast::<mig_transport::Error>() {
            Ok(inner) => Self::Transport { doing, place, source: Arc::new(inner) },
            Err(source) => Self::Io { doing, place, source: Arc::new(source) },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, place, source } => write!(f, "{place}: {doing}: {source}"),
            Self::Transport { doing, place, source } => {
                write!(f, "{place}: {doing}: {}", without_channel(&source.to_string(), place))
            }
            Self::PeerMisbehaved { place, what } => {
                write!(f, "{place}: the stream ended where {what} should be")
            }
            Self::Misuse { what } => f.write_str(what),
            Self::Cancelled { doing, place } => write!(f, "{place}: stopped while {doing}"),
            Self::Deadline { doing, place: Some(place), after } => {
                write!(f, "{place}: {doing}: not a byte within {after:?}")
            }
            Self::Deadline { doing, place: None, after } => {
                write!(f, "{doing}: not done within {after:?}")
            }
        }
    }
}

/// A transport's word may begin with the channel: by the name that it had before it was wrapped, in TLS say, which is the
/// beginning of the one that it has now.
fn without_channel<'a>(word: &'a str, place: &Place) -> &'a str {
    match word.split_once(": ") {
        Some((channel, rest)) if place.channel.starts_with(channel) => rest,
        _ => word,
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(&**source),
            Self::Transport { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { channel: "tcp a to b".into(), at: 17 }
    }

    #[test]
    fn the_cause_is_kept_and_the_place_is_named() {
        let error =
            Error::channel("writing", place(), io::Error::from_raw_os_error(32 /* EPIPE */));
        assert_eq!(error.blame(), Blame::Io);
        assert!(error.to_string().starts_with("tcp a to b, byte 17: writing: "), "{error}");
        let cause = error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(32));
    }

    #[test]
    fn a_transports_own_error_keeps_its_blame() {
        let inside = mig_transport::Error::PeerIncompatible { what: "no".into() }.into_io();
        let error = Error::channel("reading", place(), inside);
        assert_eq!(error.blame(), Blame::PeerIncompatible);
        assert!(
            error::Error::source(&error).is_some_and(|cause| cause.is::<mig_transport::Error>())
        );
    }

    #[test]
    fn the_channel_is_named_once() {
        let place = Place { channel: "tcp a to b (TLS 1.3, CN=b)".into(), at: 0 };
        let told = |what: &str| {
            let inside = mig_transport::Error::PeerIncompatible { what: what.into() }.into_io();
            Error::channel("reading", place.clone(), inside).to_string()
        };
        let name = &place.channel;
        assert_eq!(
            told("tcp a to b: refused: no"),
            format!("{name}, byte 0: reading: refused: no")
        );
        assert_eq!(told("refused: no"), format!("{name}, byte 0: reading: refused: no"));
    }

    #[test]
    fn an_error_may_cross_threads() {
        fn check<T: Send + Sync + Clone + 'static>() {}
        check::<Error>();
    }
}
