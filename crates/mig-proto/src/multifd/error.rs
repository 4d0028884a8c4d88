//! What can be wrong on a multifd channel, where, and whose fault that is.

use alloc::boxed::Box;
use core::fmt;

use crate::error::Fault;

use super::packet::PACKET_PAGES;

/// A multifd channel that broke a rule of docs/wire/ram.md §9.
///
/// It tells the byte inside the message; which channel it was, and where in it the message began,
/// is the caller's to add.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MultifdError {
    /// The message that was wrong.
    pub message: MultifdMessage,
    /// Byte position, from the beginning of that message, of the value that was wrong.
    pub at: u32,
    /// What was wrong.
    pub kind: MultifdErrorKind,
}

/// A message of a multifd channel as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MultifdMessage {
    /// The 64 bytes that open a channel.
    Hello,
    /// A packet of which so little was read that it has no number yet.
    Header,
    /// A packet about pages.
    Packet {
        /// Its number. Senders up to 8.2 repeat numbers.
        packet_num: u64,
    },
    /// A packet with state of a device.
    DeviceState,
}

impl fmt::Display for MultifdMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello => f.write_str("multifd hello"),
            Self::Header => f.write_str("multifd packet"),
            Self::Packet { packet_num } => write!(f, "multifd packet {packet_num}"),
            Self::DeviceState => f.write_str("multifd device-state packet"),
        }
    }
}

impl MultifdError {
    pub(super) const fn new(message: MultifdMessage, at: u32, kind: MultifdErrorKind) -> Self {
        Self { message, at, kind }
    }

    /// Who is to blame.
    pub fn blame(&self) -> Fault {
        self.kind.blame()
    }
}

impl fmt::Display for MultifdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {}: {}", self.message, self.at, self.kind)
    }
}

impl core::error::Error for MultifdError {}

/// What was wrong with the bytes at a [`MultifdError`]'s position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MultifdErrorKind {
    /// The magic is not `11 22 33 44`.
    #[error("found {found:#010x}, expected the magic 0x11223344")]
    Magic {
        /// The word in its place.
        found: u32,
    },
    /// A version other than 1.
    #[error("version {found}, expected 1")]
    Version {
        /// The version.
        found: u32,
    },

    // The hello: docs/wire/ram.md §9.1.
    /// The channel comes from another virtual machine.
    #[error("VM UUID {:032x}, expected {:032x}", u128::from_be_bytes(*found), u128::from_be_bytes(*expected))]
    Uuid {
        /// The hello's.
        found: [u8; 16],
        /// The local one, or that of the first channel.
        expected: [u8; 16],
    },
    /// A channel number beyond the agreed ones.
    #[error("channel {id} of {channels}: set multifd-channels the same on both ends")]
    ChannelId {
        /// The number.
        id: u8,
        /// How many channels there are here.
        channels: u8,
    },
    /// Two channels with one number.
    #[error("channel {id} is already connected")]
    ChannelTaken {
        /// The number.
        id: u8,
    },

    // Packets about pages: docs/wire/ram.md §9.3.
    /// The pages are packed in another way than agreed.
    #[error("{}, expected {expected}: set multifd-compression the same on both ends", FoundMethod(*found))]
    Method {
        /// The method's field of the flags.
        found: u32,
        /// The local method.
        expected: super::Method,
    },
    /// The sender's packets are larger.
    #[error("packets of up to {found} pages, expected at most {PACKET_PAGES}")]
    Capacity {
        /// The sender's capacity.
        found: u32,
    },
    /// More pages with content than fit.
    #[error("{found} normal pages in a packet for {capacity}")]
    NormalPages {
        /// Announced number.
        found: u32,
        /// The packet's capacity.
        capacity: u32,
    },
    /// More pages of zeros than fit.
    #[error("{found} zero pages, but the packet has place for {left} beside its normal pages")]
    ZeroPages {
        /// Announced number.
        found: u32,
        /// Entries left.
        left: u32,
    },
    /// A compressed payload of an impossible length.
    #[error("compressed payload of {found} bytes, expected 1 to {limit}")]
    PayloadLength {
        /// Announced length.
        found: u32,
        /// The bound.
        limit: u32,
    },
    /// Pages, but no block they belong to.
    #[error("pages of a RAM block with an empty name")]
    BlockNameEmpty,
    /// The field of the block name is full to its end.
    #[error("RAM block name of 256 bytes or more, expected at most 255 and a zero byte")]
    BlockNameUnterminated,
    /// A block that the block list does not have.
    #[error("unknown RAM block \"{block}\", expected one of the block list")]
    UnknownBlock {
        /// The name.
        block: Box<str>,
    },
    /// An offset that is not the beginning of a page.
    #[error("page {index}: offset {offset:#x} is not a multiple of the page size")]
    OffsetUnaligned {
        /// Place in the packet's list of offsets.
        index: u32,
        /// The offset.
        offset: u64,
    },
    /// A page behind the end of its block.
    #[error(
        "page {index}: offset {offset:#x} in RAM block \"{block}\", which has {length:#x} bytes"
    )]
    OffsetOutOfRange {
        /// Place in the packet's list of offsets.
        index: u32,
        /// The offset.
        offset: u64,
        /// The block.
        block: Box<str>,
        /// Its length.
        length: u64,
    },
    /// A packet with state of a device in the place of one about pages.
    #[error("a device-state packet (flag 0x40), expected one about pages")]
    DeviceStateUnexpected,

    // Packets with state of a device: docs/wire/ram.md §9.7.
    /// A packet about pages in the place of one with state of a device.
    #[error("flags {flags:#x}, expected a device-state packet (flag 0x40)")]
    DeviceStateExpected {
        /// The flags.
        flags: u32,
    },
    /// SYNC on a packet with state of a device.
    #[error("flags {flags:#x}: a device-state packet cannot be a SYNC")]
    DeviceStateSync {
        /// The flags.
        flags: u32,
    },
    /// The device's name is empty.
    #[error("state of a device without a name")]
    IdstrEmpty,
    /// The device's name has no end.
    #[error("device name of 256 bytes or more, expected at most 255 and a zero byte")]
    IdstrUnterminated,
    /// Device state of an impossible length.
    #[error("{found} bytes of state for \"{idstr}\", expected 1 to {limit}")]
    DeviceStateLength {
        /// Announced length.
        found: u32,
        /// The caller's bound.
        limit: u32,
        /// The device.
        idstr: Box<str>,
    },
}

impl MultifdErrorKind {
    /// Who is to blame.
    pub fn blame(&self) -> Fault {
        match self {
            Self::Version { .. }
            | Self::Uuid { .. }
            | Self::ChannelId { .. }
            | Self::Method { .. }
            | Self::Capacity { .. }
            | Self::UnknownBlock { .. } => Fault::PeerIncompatible,
            // The limit is the caller's.
            Self::DeviceStateLength { found, limit, .. } if found > limit => {
                Fault::PeerIncompatible
            }
            _ => Fault::PeerMisbehaved,
        }
    }
}

/// The method's field in words.
struct FoundMethod(u32);

impl fmt::Display for FoundMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match super::Method::from_flags(self.0) {
            Some(method) => write!(f, "pages packed with method {method}"),
            None => write!(f, "unknown method {:#x} of packing pages", self.0),
        }
    }
}
