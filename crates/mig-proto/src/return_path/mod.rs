//! The return path: what the destination says while pages still flow the other way.
//! docs/wire/stream.md §7.
//!
//! ```text
//!   source ── pages, sections, commands ──▶ destination
//!   source ◀── pongs, page requests, bitmaps, verdict ── destination
//!
//!   be16 type │ be16 len │ len bytes │ RECV_BITMAP only: be64 size │ bitmap │ be64 end mark
//! ```
//!
//! [`Message`] is one message, [`Message::encode`] writes it (and cannot fail: what could be wrong
//! is checked when a [`BlockName`] or [`Bitmap`] is made). [`ReturnPathDecoder`] turns bytes, split
//! anywhere, into messages. [`SourceReturnPath`] applies the rules that need context: which blocks
//! exist, which one was named last, whether a recovery is under way.
//!
//! There is no version, no handshake and no "skip what you do not know": the first wrong byte ends
//! the return path. Before switchover that fails the migration and the guest stays on the source;
//! after, it pauses postcopy.

mod bitmap;
mod decoder;
mod error;
mod message;
mod source;

pub use bitmap::{Bitmap, InvalidBitmap};
pub use decoder::{BitmapLimit, BitmapRules, Received, ReturnPathDecoder};
pub use error::{ReturnPathError, Violation};
pub use message::{BlockName, Message, MessageType, RESUME_OK, SHUT_OK};
pub use source::{InvalidBlockTable, SourceBlock, SourceEvent, SourceReturnPath};

/// Longest message body (`len`) the source accepts; QEMU fails above it.
pub const MAX_BODY_LEN: usize = 512;

/// What follows the bytes of a bitmap.
pub const BITMAP_END_MARK: u64 = 0x0123_4567_89ab_cdef;
