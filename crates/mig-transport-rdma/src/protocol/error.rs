//! What can go wrong in the protocol, sorted by who is to blame.

use std::io;

use mig_transport::Blame;

use super::header::Kind;

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A broken rule of docs/wire/rdma.md, or of this module by its caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The private data of connect or accept is not ours to speak.
    #[error("the other end's connection data: {what}")]
    PrivateData {
        /// What is wrong with it.
        what: String,
    },
    /// A control header breaks §3.1.
    #[error("the other end sent a control message with {field} {value}: {rule}")]
    Header {
        /// The field of the header.
        field: &'static str,
        /// What stood in it.
        value: u64,
        /// What it has to be.
        rule: String,
    },
    /// A field of a payload breaks a rule.
    #[error("the other end sent {kind} with {field} {value:#x}: {rule}")]
    Field {
        /// The message.
        kind: Kind,
        /// The field.
        field: &'static str,
        /// What stood in it.
        value: u64,
        /// What it has to be.
        rule: String,
    },
    /// A message at a moment when it may not come.
    #[error("the other end sent {kind} {moment}")]
    Unexpected {
        /// The message.
        kind: Kind,
        /// The moment, and what was allowed in it.
        moment: String,
    },
    /// The other end has given up.
    #[error(
        "the other end reports by an ERROR message that its side of the migration failed; its own log has the reason"
    )]
    PeerFailed,
    /// Both ends are sound and do not fit.
    #[error("{what}")]
    Incompatible {
        /// What does not fit, on which side, and what to do.
        what: String,
    },
    /// The caller broke the order of calls, or asked for what cannot be.
    #[error("{what}")]
    Misuse {
        /// What, and what would be right.
        what: String,
    },
}

impl Error {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::PrivateData { .. }
            | Self::Header { .. }
            | Self::Field { .. }
            | Self::Unexpected { .. } => Blame::PeerMisbehaved,
            Self::PeerFailed => Blame::Io,
            Self::Incompatible { .. } => Blame::PeerIncompatible,
            Self::Misuse { .. } => Blame::Misuse,
        }
    }

    pub(super) fn field(
        kind: Kind,
        field: &'static str,
        value: impl Into<u64>,
        rule: impl Into<String>,
    ) -> Self {
        Self::Field { kind, field, value: value.into(), rule: rule.into() }
    }

    pub(super) fn unexpected(kind: Kind, moment: impl Into<String>) -> Self {
        Self::Unexpected { kind, moment: moment.into() }
    }

    pub(super) fn misuse(what: impl Into<String>) -> Self {
        Self::Misuse { what: what.into() }
    }
}

impl From<Error> for mig_transport::Error {
    fn from(error: Error) -> Self {
        let what = error.to_string();
        match error.blame() {
            Blame::PeerIncompatible => Self::PeerIncompatible { what },
            Blame::Misuse => Self::Misuse { what },
            Blame::Io => Self::Io {
                doing: "rdma control channel".into(),
                source: io::Error::new(io::ErrorKind::ConnectionAborted, error),
            },
            _ => Self::PeerMisbehaved { what },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_blame_on_the_way_up() {
        let field = Error::field(Kind::Compress, "value", 1u32, "must be 0");
        for error in [
            field,
            Error::PeerFailed,
            Error::Incompatible { what: "x".into() },
            Error::misuse("y"),
            Error::PrivateData { what: "z".into() },
        ] {
            let blame = error.blame();
            assert_eq!(mig_transport::Error::from(error).blame(), blame);
        }
    }

    #[test]
    fn a_text_names_message_field_and_value() {
        let error = Error::field(Kind::Compress, "block", 7u32, "there are 3 blocks");
        assert_eq!(
            error.to_string(),
            "the other end sent COMPRESS with block 0x7: there are 3 blocks"
        );
    }
}
