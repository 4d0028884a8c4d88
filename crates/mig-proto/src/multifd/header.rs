//! The twelve bytes that all packets begin with. docs/wire/ram.md §9.3, §9.7.
//!
//! ```text
//!   0  be32 magic 0x11223344 │ 4  be32 version 1 │ 8  be32 flags
//! ```

use super::device_state::DEVICE_STATE_HEADER_LEN;
use super::error::{MultifdError, MultifdErrorKind, MultifdMessage};
use super::packet::HEADER_LEN;

/// Magic of hellos and packets.
pub(super) const MAGIC: u32 = 0x1122_3344;

/// Version of hellos and packets.
pub(super) const VERSION: u32 = 1;

/// Bits of a packet's flags. Higher ones are ignored.
pub(super) mod flag {
    pub(crate) const SYNC: u32 = 0x01;
    pub(crate) const METHOD: u32 = 0x3e;
    pub(crate) const DEVICE_STATE: u32 = 0x40;
}

/// So many bytes tell which header this is: [`head_kind`].
pub const COMMON_LEN: usize = 12;

/// Which layout a packet's header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// Pages, or a SYNC: [`RamPacket`](super::RamPacket).
    Ram,
    /// State of a device: [`DeviceStatePacket`](super::DeviceStatePacket).
    DeviceState,
}

impl HeadKind {
    /// Length of the whole header, the twelve bytes included.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Ram => HEADER_LEN,
            Self::DeviceState => DEVICE_STATE_HEADER_LEN,
        }
    }
}

/// Checks the beginning of a packet and tells which header it belongs to.
pub fn head_kind(common: &[u8; COMMON_LEN]) -> Result<HeadKind, MultifdError> {
    let flags = flags(common)?;
    if flags & flag::DEVICE_STATE == 0 {
        return Ok(HeadKind::Ram);
    }
    if flags & flag::SYNC != 0 {
        let kind = MultifdErrorKind::DeviceStateSync { flags };
        return Err(MultifdError::new(MultifdMessage::DeviceState, 8, kind));
    }
    Ok(HeadKind::DeviceState)
}

/// The flags of a packet, after its magic and version were found right.
pub(super) fn flags(common: &[u8; COMMON_LEN]) -> Result<u32, MultifdError> {
    magic_and_version(common, MultifdMessage::Header)?;
    Ok(be32(common, 8))
}

/// Checks what every message begins with.
pub(super) fn magic_and_version(bytes: &[u8], message: MultifdMessage) -> Result<(), MultifdError> {
    let (magic, version) = (be32(bytes, 0), be32(bytes, 4));
    if magic != MAGIC {
        return Err(MultifdError::new(message, 0, MultifdErrorKind::Magic { found: magic }));
    }
    if version != VERSION {
        return Err(MultifdError::new(message, 4, MultifdErrorKind::Version { found: version }));
    }
    Ok(())
}

/// The magic and the version, as every message begins.
pub(super) const fn preamble() -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (MAGIC.to_be_bytes(), VERSION.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

/// The word at a fixed place of a message.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..].first_chunk().expect("a field inside a message of fixed length");
    u32::from_be_bytes(*word)
}

/// The double word at a fixed place of a message.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes[at..].first_chunk().expect("a field inside a message of fixed length");
    u64::from_be_bytes(*word)
}

/// What is before the first zero byte; nothing if there is none.
pub(super) fn until_nul(field: &[u8]) -> Option<&[u8]> {
    let len = field.iter().position(|&byte| byte == 0)?;
    Some(&field[..len])
}
