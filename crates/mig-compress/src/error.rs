//! What can go wrong with a compressed stream, where, and who did it.

use thiserror::Error;

use crate::method::Method;

/// Everything here answers with this.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A stream that could not be compressed or decompressed any further.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for what this crate does not do; nothing was touched.
    #[error("compression was asked for what it does not do: {what}")]
    Misuse {
        /// What, and what to ask for instead.
        what: String,
    },
    /// The peer's bytes are wrong. A stream cannot be taken up again: the channel must be given up.
    #[error(
        "bad {method} payload number {payload}, at byte {position} of the channel's compressed stream: {problem}"
    )]
    Payload {
        /// The method this end reads.
        method: Method,
        /// Which payload of the channel, counted from 0.
        payload: u64,
        /// Where the payload starts, or what is wrong lies, in the payloads of this channel laid end to end.
        position: u64,
        /// What is wrong.
        problem: Problem,
    },
    /// One COMPRESS_PAGE record is wrong (docs/wire/ram.md §5).
    #[error("bad compressed page: {problem}")]
    Page {
        /// What is wrong.
        problem: Problem,
    },
    /// The compression library failed on input that it may not fail on: a defect of this end, or no memory left.
    #[error("{method} failed to {doing}: {message}")]
    Library {
        /// The method.
        method: Method,
        /// What was being done.
        doing: &'static str,
        /// The library's own words.
        message: String,
    },
    /// The stream failed before; it stays failed.
    #[error("this {method} stream failed before and cannot go on: the channel must be given up")]
    Failed {
        /// The method.
        method: Method,
    },
}

impl Error {
    /// True if the bytes that came from the other end are to blame.
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Payload { .. } | Self::Page { .. })
    }
}

/// What is wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// A packet with pages has no payload.
    #[error("it is empty, and its packet has pages")]
    Empty,
    /// More than any sender may make of one packet.
    #[error("{bytes} bytes are more than the {limit} that a packet may have")]
    TooLarge {
        /// What it claims.
        bytes: usize,
        /// What is the most.
        limit: usize,
    },
    /// It ended before the pages were full.
    #[error("it gives {actual} of the {expected} bytes of pages that its packet promised")]
    TooShort {
        /// What was promised.
        expected: usize,
        /// What came out.
        actual: usize,
    },
    /// The pages were full before it ended.
    #[error("it gives more than the {expected} bytes of pages that its packet promised")]
    TooLong {
        /// What was promised.
        expected: usize,
    },
    /// The payload does not end where its sender flushed.
    #[error("it is cut: it does not end at a flush ({what})")]
    NotFlushed {
        /// What was found instead.
        what: &'static str,
    },
    /// Bytes that follow the end of what was promised.
    #[error("{bytes} bytes follow its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The stream or frame ends, and it has to live as long as the channel.
    #[error("it ends the {what}, which must live as long as its channel")]
    Ended {
        /// Stream or frame.
        what: &'static str,
    },
    /// The first payload does not begin as this method begins.
    #[error(
        "it begins with {found:02x?}, which is not {method}: both ends must set the same multifd-compression"
    )]
    WrongMethod {
        /// The method this end reads.
        method: Method,
        /// The first bytes.
        found: [u8; 4],
    },
    /// It wants a dictionary that nobody agreed on.
    #[error("it wants dictionary {id:#x}, and migration has none")]
    Dictionary {
        /// Its number; 0 if unknown.
        id: u32,
    },
    /// It wants the receiver to remember more than it will.
    #[error(
        "it wants a window of {bytes} bytes, at most {limit} are given: use a lower level at the source"
    )]
    Window {
        /// What it wants.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// A frame that announces how long it is.
    #[error("its frame announces its size, and a frame that lives as long as its channel has none")]
    ContentSize,
    /// A block type or header bit that the format does not know.
    #[error("{what}")]
    Malformed {
        /// What.
        what: &'static str,
    },
    /// The library could not make sense of it.
    #[error("it is damaged: {message}")]
    Damaged {
        /// The library's own words.
        message: String,
    },
}
