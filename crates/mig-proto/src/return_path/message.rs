//! The messages as values, and their bytes.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{BITMAP_END_MARK, Bitmap};
use crate::{InvalidName, Name};

/// The status of SHUT that means success.
pub const SHUT_OK: u32 = 0;

/// The only value of RESUME_ACK.
pub const RESUME_OK: u32 = 1;

/// The name of a RAM block: a [`Name`] of its own, 1 to 255 bytes, compared as bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockName(Box<[u8]>);

impl BlockName {
    /// Checks and copies a name.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if it is empty or longer than 255 bytes.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, InvalidName> {
        Name::new(name.as_ref()).map(Self::from)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For people; bytes that are not UTF-8 are replaced.
    pub fn to_string_lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// The length byte of a `str8`.
    fn len_byte(&self) -> u8 {
        u8::try_from(self.0.len()).expect("the constructor allows at most 255 bytes")
    }
}

impl From<Name<'_>> for BlockName {
    /// A name read off the main channel obeys the same bounds.
    fn from(name: Name<'_>) -> Self {
        Self(name.as_bytes().into())
    }
}

impl fmt::Debug for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The type number of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum MessageType {
    /// The verdict.
    Shut = 1,
    /// The answer to PING.
    Pong = 2,
    /// A page request that names its block. (3, not 4: easily swapped.)
    ReqPagesId = 3,
    /// A page request in the block named last.
    ReqPages = 4,
    /// Which pages of a block have arrived.
    RecvBitmap = 5,
    /// Recovery may go on.
    ResumeAck = 6,
    /// The devices agree to switch over.
    SwitchoverAck = 7,
}

impl MessageType {
    /// The type of that number; 0 and everything from 8 on has none.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Shut,
            2 => Self::Pong,
            3 => Self::ReqPagesId,
            4 => Self::ReqPages,
            5 => Self::RecvBitmap,
            6 => Self::ResumeAck,
            7 => Self::SwitchoverAck,
            _ => return None,
        })
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The name in docs/wire/stream.md §7.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shut => "SHUT",
            Self::Pong => "PONG",
            Self::ReqPagesId => "REQ_PAGES_ID",
            Self::ReqPages => "REQ_PAGES",
            Self::RecvBitmap => "RECV_BITMAP",
            Self::ResumeAck => "RESUME_ACK",
            Self::SwitchoverAck => "SWITCHOVER_ACK",
        }
    }

    /// The exact body length, of the types that have one.
    pub(super) const fn fixed_len(self) -> Option<u16> {
        match self {
            Self::Shut | Self::Pong | Self::ResumeAck => Some(4),
            Self::ReqPages => Some(12),
            Self::SwitchoverAck => Some(0),
            Self::ReqPagesId | Self::RecvBitmap => None,
        }
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One message of the return path. docs/wire/stream.md §7.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Message {
    /// The destination is done: [`SHUT_OK`] means that it has everything.
    Shut {
        /// 0 for success, anything else for failure.
        status: u32,
    },
    /// Echo of a PING.
    Pong {
        /// The value of the PING, unchanged.
        value: u32,
    },
    /// Send these bytes of the named block next.
    ReqPagesId {
        /// The block.
        block: BlockName,
        /// Byte offset in the block.
        start: u64,
        /// Bytes.
        length: u32,
    },
    /// Send these bytes of the block that the last [`Message::ReqPagesId`] named next.
    ReqPages {
        /// Byte offset in the block.
        start: u64,
        /// Bytes.
        length: u32,
    },
    /// The pages of a block that have arrived.
    RecvBitmap {
        /// The block.
        block: BlockName,
        /// 1 = arrived.
        bitmap: Bitmap,
    },
    /// POSTCOPY_RESUME was understood.
    ResumeAck {
        /// [`RESUME_OK`]; anything else fails the recovery.
        value: u32,
    },
    /// The devices of the destination agree to the switchover.
    SwitchoverAck,
}

impl Message {
    /// Its type.
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::Shut { .. } => MessageType::Shut,
            Self::Pong { .. } => MessageType::Pong,
            Self::ReqPagesId { .. } => MessageType::ReqPagesId,
            Self::ReqPages { .. } => MessageType::ReqPages,
            Self::RecvBitmap { .. } => MessageType::RecvBitmap,
            Self::ResumeAck { .. } => MessageType::ResumeAck,
            Self::SwitchoverAck => MessageType::SwitchoverAck,
        }
    }

    /// Bytes of the message, trailer included.
    pub fn encoded_len(&self) -> usize {
        4 + match self {
            Self::Shut { .. } | Self::Pong { .. } | Self::ResumeAck { .. } => 4,
            Self::ReqPagesId { block, .. } => 13 + block.as_bytes().len(),
            Self::ReqPages { .. } => 12,
            Self::RecvBitmap { block, bitmap } => {
                1 + block.as_bytes().len() + 16 + bitmap.as_bytes().len()
            }
            Self::SwitchoverAck => 0,
        }
    }

    /// Appends the bytes of the message, all of them: whoever writes must not let another message
    /// in between.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        let number = self.message_type().number();
        out.extend_from_slice(&number.to_be_bytes());
        match self {
            Self::Shut { status: word }
            | Self::Pong { value: word }
            | Self::ResumeAck { value: word } => {
                out.extend_from_slice(&4u16.to_be_bytes());
                out.extend_from_slice(&word.to_be_bytes());
            }
            Self::ReqPagesId { block, start, length } => {
                let name_len = block.len_byte();
                out.extend_from_slice(&(13 + u16::from(name_len)).to_be_bytes());
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
                out.push(name_len);
                out.extend_from_slice(block.as_bytes());
            }
            Self::ReqPages { start, length } => {
                out.extend_from_slice(&12u16.to_be_bytes());
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
            }
            Self::RecvBitmap { block, bitmap } => {
                let name_len = block.len_byte();
                out.extend_from_slice(&(1 + u16::from(name_len)).to_be_bytes());
                out.push(name_len);
                out.extend_from_slice(block.as_bytes());
                // usize is at most 64 bits wide on every target of Rust.
                out.extend_from_slice(&(bitmap.as_bytes().len() as u64).to_be_bytes());
                out.extend_from_slice(bitmap.as_bytes());
                out.extend_from_slice(&BITMAP_END_MARK.to_be_bytes());
            }
            Self::SwitchoverAck => out.extend_from_slice(&0u16.to_be_bytes()),
        }
    }

    /// [`encode`](Self::encode) into a buffer of its own.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}
