//! The one place where blame becomes an exit code.

use std::process::ExitCode;

use mig::transport::Blame;

/// 0 done · 1 link, disk or an incompatible peer · 2 usage, local configuration, cannot bind · 3 the peer or file broke
/// the protocol · 4 cancelled · 5 deadline · 6 this machine lacks what was asked.
pub(crate) fn code(outcome: Result<(), Blame>) -> ExitCode {
    ExitCode::from(number(outcome))
}

/// The same as a number, for messages and for leaving without unwinding.
pub(crate) fn number(outcome: Result<(), Blame>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(Blame::Io | Blame::PeerIncompatible) => 1,
        Err(Blame::Misuse) => 2,
        Err(Blame::PeerMisbehaved) => 3,
        Err(Blame::Cancelled) => 4,
        Err(Blame::Deadline) => 5,
        Err(Blame::Unavailable) => 6,
        // The enum may grow; something that has no number of its own is a failure all the same.
        Err(_) => 1,
    }
}

/// The name of a blame in JSON.
pub(crate) fn kind(blame: Blame) -> &'static str {
    match blame {
        Blame::Io => "io",
        Blame::PeerMisbehaved => "peer-misbehaved",
        Blame::PeerIncompatible => "peer-incompatible",
        Blame::Misuse => "misuse",
        Blame::Cancelled => "cancelled",
        Blame::Deadline => "deadline",
        Blame::Unavailable => "unavailable",
        _ => "other",
    }
}

/// Who is to blame, for people.
pub(crate) fn culprit(blame: Blame) -> &'static str {
    match blame {
        Blame::Io => "the link, the disk or the operating system",
        Blame::PeerMisbehaved => "the other end or the file: it broke the protocol",
        Blame::PeerIncompatible => "nobody alone: both ends are sound and do not fit each other",
        Blame::Misuse => "the command line or the local configuration",
        Blame::Cancelled => "nobody: it was asked to stop",
        Blame::Deadline => "whoever was waited for",
        Blame::Unavailable => "this machine: it lacks what was asked for",
        _ => "unknown",
    }
}

/// What to do next when the error does not say it better.
pub(crate) fn advice(blame: Blame) -> Option<&'static str> {
    match blame {
        Blame::Io => Some(
            "look at the other end's log and at the network or disk named above, then try again",
        ),
        Blame::PeerMisbehaved => Some(
            "look at the bytes there with `mig inspect`; a truncated file must be captured again",
        ),
        Blame::PeerIncompatible => {
            Some("make machine type, capabilities and version of both ends agree")
        }
        Blame::Misuse => Some("see `mig help` and the command's --help for the right form"),
        Blame::Deadline => {
            Some("see whether the other end is up and reachable, or allow more time")
        }
        Blame::Unavailable => {
            Some("`mig doctor` tells what works here and what would bring the rest")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blame_has_its_documented_code() {
        for (blame, expected) in [
            (Blame::Io, 1),
            (Blame::PeerIncompatible, 1),
            (Blame::Misuse, 2),
            (Blame::PeerMisbehaved, 3),
            (Blame::Cancelled, 4),
            (Blame::Deadline, 5),
            (Blame::Unavailable, 6),
        ] {
            assert_eq!(number(Err(blame)), expected, "{blame:?}");
        }
        assert_eq!(number(Ok(())), 0);
    }
}
