//! What can go wrong with guest memory, sorted by who is to blame.

use std::{io, time::Duration};

use mig_transport::Blame;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure around guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system said no.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, and to which block.
        doing: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The other end named bytes that the block does not have (docs/wire/ram.md §1, "Receiver checks").
    #[error(
        "block '{block}': {len:#x} bytes at offset {offset:#x} lie outside its {used_length:#x} bytes, \
         or are not whole pages; the other end sent a bad offset"
    )]
    OutOfBlock {
        /// The block's name.
        block: String,
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        len: u64,
        /// What the block has.
        used_length: u64,
    },
    /// The other end's block has a length ours cannot take (docs/wire/ram.md §2).
    #[error(
        "block '{block}': the other end has {asked:#x} bytes, this end {used_length:#x}, and can {can}; \
         give both machines the same memory"
    )]
    LengthMismatch {
        /// The block's name.
        block: String,
        /// The length asked for.
        asked: u64,
        /// The length it has.
        used_length: u64,
        /// What lengths are possible here.
        can: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{what}")]
    Misuse {
        /// What was asked, why it cannot be, and what would work.
        what: String,
    },
    /// A wait ran out.
    #[error("{doing}: not done within {after:?}")]
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
            Self::OutOfBlock { .. } => Blame::PeerMisbehaved,
            Self::LengthMismatch { .. } => Blame::PeerIncompatible,
            Self::Misuse { .. } => Blame::Misuse,
            Self::Deadline { .. } => Blame::Deadline,
            Self::Unavailable { .. } => Blame::Unavailable,
        }
    }

    /// Wraps what the operating system said.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }

    pub(crate) fn misuse(what: impl Into<String>) -> Self {
        Self::Misuse { what: what.into() }
    }
}
