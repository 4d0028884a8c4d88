//! What can be wrong on the return path.

use thiserror::Error;

use super::{BlockName, MAX_BODY_LEN, MessageType};

/// A broken return path: what, and where in the bytes of this connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("return path byte {at} (message at {message_at}): {violation}")]
pub struct ReturnPathError {
    /// Position of the offending field, counted from the first byte of the connection.
    pub at: u64,
    /// Position of the first byte of the message.
    pub message_at: u64,
    /// What is wrong.
    #[source]
    pub violation: Violation,
}

impl ReturnPathError {
    /// Whether the destination is to blame: it is, except for a stream that just ends, which a
    /// broken link does too.
    pub const fn peer_is_to_blame(&self) -> bool {
        !matches!(self.violation, Violation::ClosedWithoutShut | Violation::ClosedInsideMessage)
    }
}

/// A rule of docs/wire/stream.md §7 that the destination broke.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// Type 0, or 8 and above.
    #[error("unknown message type {number}")]
    UnknownType {
        /// The number.
        number: u16,
    },
    /// The body is longer than any message may be.
    #[error("{len} bytes of message body, at most {MAX_BODY_LEN} are allowed")]
    BodyTooLong {
        /// The length announced.
        len: u16,
    },
    /// The body length is not the one of the type.
    #[error("{message} of {len} bytes, must be {expected}")]
    WrongLength {
        /// The type.
        message: MessageType,
        /// The length announced.
        len: u16,
        /// The length the type (and the name inside) asks for; the smallest one for a message too
        /// short for its name.
        expected: u16,
    },
    /// A block name of no bytes.
    #[error("{message} with an empty block name")]
    EmptyBlockName {
        /// The type.
        message: MessageType,
    },
    /// A bitmap of another length than the block's.
    #[error("bitmap of block \"{block}\" is {size} bytes, must be {expected}")]
    WrongBitmapSize {
        /// The block.
        block: BlockName,
        /// The size announced.
        size: u64,
        /// The size computed from the block's length.
        expected: u64,
    },
    /// A bitmap longer than the limit given by the caller, or not a multiple of 8.
    #[error("bitmap of block \"{block}\" is {size} bytes, must be a multiple of 8 up to {limit}")]
    BitmapNotAcceptable {
        /// The block.
        block: BlockName,
        /// The size announced.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Something else where the end mark of a bitmap must be.
    #[error("{found:#018x} instead of the end mark after the bitmap of block \"{block}\"")]
    MissingEndMark {
        /// The block.
        block: BlockName,
        /// The eight bytes found.
        found: u64,
    },
    /// RECV_BITMAP although no recovery is under way.
    #[error("RECV_BITMAP for block \"{block}\", but no recovery is under way")]
    UnexpectedBitmap {
        /// The block.
        block: BlockName,
    },
    /// A block that is not migrated.
    #[error("unknown RAM block \"{block}\"")]
    UnknownBlock {
        /// The block.
        block: BlockName,
    },
    /// REQ_PAGES on a connection that has not named a block yet.
    #[error("REQ_PAGES before any REQ_PAGES_ID")]
    NoBlockNamed,
    /// A request that does not consist of whole host pages.
    #[error(
        "request of {length:#x} bytes at {start:#x} of block \"{block}\" \
         is not aligned to its host page size {host_page_size:#x}"
    )]
    Unaligned {
        /// The block.
        block: BlockName,
        /// Offset asked for.
        start: u64,
        /// Bytes asked for.
        length: u32,
        /// The host page size of the block.
        host_page_size: u64,
    },
    /// A request past the end of its block.
    #[error(
        "request of {length:#x} bytes at {start:#x} \
         is past the end of block \"{block}\" ({used_length:#x} bytes)"
    )]
    PastEnd {
        /// The block.
        block: BlockName,
        /// Offset asked for.
        start: u64,
        /// Bytes asked for.
        length: u32,
        /// The length of the block.
        used_length: u64,
    },
    /// RESUME_ACK with another value than 1.
    #[error("RESUME_ACK {value}, must be 1")]
    ResumeRefused {
        /// The value.
        value: u32,
    },
    /// The stream ended between two messages, without SHUT.
    #[error("closed without SHUT: whether the destination has everything is unknown")]
    ClosedWithoutShut,
    /// The stream ended inside a message.
    #[error("closed inside a message")]
    ClosedInsideMessage,
}
