//! A packet about pages: its header. docs/wire/ram.md §9.3, §9.4.
//!
//! ```text
//!    0  magic version flags          12  pages_alloc   16  normal_pages   20  next_packet_size
//!   24  be64 packet_num              32  zero_pages    36  reserved
//!   64  block name, NUL padded      320  be64 × 128: normal offsets, zero offsets, unused
//! ```

use core::fmt;

use crate::error::lossy;
use crate::name::Name;

use super::error::{MultifdError, MultifdErrorKind, MultifdMessage};
use super::header::{COMMON_LEN, be32, be64, flag, flags, until_nul};
use super::method::{MAX_COMPRESSED_LEN, Method};

/// Length of a page.
pub const PAGE_LEN: usize = 4096;

/// Pages of a packet at most: 512 KiB of them.
pub const PACKET_PAGES: usize = 128;

/// Length of the header of a packet about pages, however many it has.
pub const HEADER_LEN: usize = OFFSETS_AT + 8 * PACKET_PAGES;

pub(super) const NAME_AT: usize = 64;
pub(super) const OFFSETS_AT: usize = 320;

/// The header of a packet about pages, checked as far as that goes without knowing the blocks.
///
/// Its own rules hold: counts fit, offsets are multiples of the page size, the payload has a
/// bound. Whether the block exists and is long enough is for [`check_offsets`](Self::check_offsets).
/// What the counts do not cover is never looked at: senders leave old names, offsets and lengths
/// there. The packet's number means nothing; it is for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RamPacket<'a> {
    flags: u32,
    packet_num: u64,
    block: Option<Name<'a>>,
    normal: &'a [[u8; 8]],
    zero: &'a [[u8; 8]],
    payload_len: u32,
}

impl<'a> RamPacket<'a> {
    /// Reads a header whose pages must be packed by `expected`.
    ///
    /// A packet without normal pages may also name no method, as every SYNC since 9.0 does.
    pub fn parse(header: &'a [u8; HEADER_LEN], expected: Method) -> Result<Self, MultifdError> {
        let common = header.first_chunk::<COMMON_LEN>().expect("12 of 1344 bytes");
        let flags = flags(common)?;
        let packet_num = be64(header, 24);
        let wrong =
            |at, kind| Err(MultifdError::new(MultifdMessage::Packet { packet_num }, at, kind));
        if flags & flag::DEVICE_STATE != 0 {
            return wrong(8, MultifdErrorKind::DeviceStateUnexpected);
        }

        let capacity = be32(header, 12);
        let (normal, zero) = (be32(header, 16), be32(header, 32));
        if capacity > PACKET_PAGES as u32 {
            return wrong(12, MultifdErrorKind::Capacity { found: capacity });
        }
        if normal > capacity {
            return wrong(16, MultifdErrorKind::NormalPages { found: normal, capacity });
        }
        let left = capacity - normal;
        if zero > left {
            return wrong(32, MultifdErrorKind::ZeroPages { found: zero, left });
        }

        let method = flags & flag::METHOD;
        if method != expected.flag_bits() && (method != 0 || normal > 0) {
            return wrong(8, MultifdErrorKind::Method { found: method, expected });
        }
        let payload_len = match expected {
            _ if normal == 0 => 0,
            Method::None => normal * PAGE_LEN as u32,
            _ => be32(header, 20),
        };
        if normal > 0 && (payload_len == 0 || payload_len > MAX_COMPRESSED_LEN) {
            let kind =
                MultifdErrorKind::PayloadLength { found: payload_len, limit: MAX_COMPRESSED_LEN };
            return wrong(20, kind);
        }

        let block = match normal + zero {
            0 => None,
            _ => match block_name(header) {
                Ok(name) => Some(name),
                Err(kind) => return wrong(NAME_AT as u32, kind),
            },
        };
        let (offsets, _) = header[OFFSETS_AT..].as_chunks();
        let (normal, rest) = offsets.split_at(normal as usize);
        let zero = &rest[..zero as usize];
        let packet = Self { flags, packet_num, block, normal, zero, payload_len };
        packet.check_alignment()?;
        Ok(packet)
    }

    /// The flags as they came.
    pub const fn flags(&self) -> u32 {
        self.flags
    }

    /// True if a sync follows the pages of this packet, of which there may be some.
    pub const fn is_sync(&self) -> bool {
        self.flags & flag::SYNC != 0
    }

    /// The number the sender gave it, for messages only.
    pub const fn packet_num(&self) -> u64 {
        self.packet_num
    }

    /// The block of all the packet's pages; nothing iff there are no pages.
    pub const fn block(&self) -> Option<Name<'a>> {
        self.block
    }

    /// Offsets of the pages whose bytes are in the payload, in its order.
    pub fn normal(&self) -> impl ExactSizeIterator<Item = u64> + Clone + use<'a> {
        self.normal.iter().map(|&offset| u64::from_be_bytes(offset))
    }

    /// Offsets of the pages that are zero.
    pub fn zero(&self) -> impl ExactSizeIterator<Item = u64> + Clone + use<'a> {
        self.zero.iter().map(|&offset| u64::from_be_bytes(offset))
    }

    /// Bytes that follow the header: at most [`MAX_COMPRESSED_LEN`].
    pub const fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// Checks that all pages lie inside their block of `block_len` bytes.
    pub fn check_offsets(&self, block_len: u64) -> Result<(), MultifdError> {
        let last = block_len.checked_sub(PAGE_LEN as u64);
        self.check_each(
            |offset| last.is_some_and(|last| offset <= last),
            |index, offset| MultifdErrorKind::OffsetOutOfRange {
                index,
                offset,
                block: self.block_text(),
                length: block_len,
            },
        )
    }

    /// The error of a packet whose block the block list does not have.
    pub fn unknown_block(&self) -> MultifdError {
        self.error(NAME_AT as u32, MultifdErrorKind::UnknownBlock { block: self.block_text() })
    }

    fn check_alignment(&self) -> Result<(), MultifdError> {
        self.check_each(
            |offset| offset.is_multiple_of(PAGE_LEN as u64),
            |index, offset| MultifdErrorKind::OffsetUnaligned { index, offset },
        )
    }

    fn check_each(
        &self,
        good: impl Fn(u64) -> bool,
        kind: impl FnOnce(u32, u64) -> MultifdErrorKind,
    ) -> Result<(), MultifdError> {
        match (0_u32..).zip(self.normal().chain(self.zero())).find(|&(_, offset)| !good(offset)) {
            None => Ok(()),
            Some((index, offset)) => {
                Err(self.error(OFFSETS_AT as u32 + 8 * index, kind(index, offset)))
            }
        }
    }

    fn block_text(&self) -> alloc::boxed::Box<str> {
        lossy(self.block.map_or(b"", Name::as_bytes))
    }

    fn error(&self, at: u32, kind: MultifdErrorKind) -> MultifdError {
        MultifdError::new(MultifdMessage::Packet { packet_num: self.packet_num }, at, kind)
    }
}

impl fmt::Debug for RamPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamPacket")
            .field("flags", &format_args!("{:#x}", self.flags))
            .field("packet_num", &self.packet_num)
            .field("block", &self.block)
            .field("normal", &self.normal.len())
            .field("zero", &self.zero.len())
            .field("payload_len", &self.payload_len)
            .finish()
    }
}

fn block_name(header: &[u8; HEADER_LEN]) -> Result<Name<'_>, MultifdErrorKind> {
    let name =
        until_nul(&header[NAME_AT..OFFSETS_AT]).ok_or(MultifdErrorKind::BlockNameUnterminated)?;
    Name::new(name).map_err(|_| MultifdErrorKind::BlockNameEmpty)
}
