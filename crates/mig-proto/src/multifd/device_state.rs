//! A packet with state of a device: its header. docs/wire/ram.md §9.7.
//!
//! ```text
//!   0  magic version flags=0x40 │ 12  idstr[256], NUL terminated │ 268  instance_id │ 272  n
//! ```
//!
//! Only without compression, from 10.0 on, after SWITCHOVER_START.

use crate::error::lossy;
use crate::name::Name;

use super::error::{MultifdError, MultifdErrorKind, MultifdMessage};
use super::header::{COMMON_LEN, HeadKind, be32, head_kind, until_nul};

/// Length of the header of a packet with state of a device.
pub const DEVICE_STATE_HEADER_LEN: usize = 276;

/// The header of a packet with state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStatePacket<'a> {
    /// The device's name, as in its sections.
    pub idstr: Name<'a>,
    /// Its instance.
    pub instance_id: u32,
    /// Bytes that follow the header, for the device to understand: 1 or more.
    pub payload_len: u32,
}

impl<'a> DeviceStatePacket<'a> {
    /// Reads a header whose payload may have `limit` bytes. Whether there is such a device is
    /// the caller's to know.
    pub fn parse(
        header: &'a [u8; DEVICE_STATE_HEADER_LEN],
        limit: u32,
    ) -> Result<Self, MultifdError> {
        let wrong = |at, kind| MultifdError::new(MultifdMessage::DeviceState, at, kind);
        let common = header.first_chunk::<COMMON_LEN>().expect("12 of 276 bytes");
        if head_kind(common)? == HeadKind::Ram {
            return Err(wrong(8, MultifdErrorKind::DeviceStateExpected { flags: be32(header, 8) }));
        }
        let idstr = until_nul(&header[COMMON_LEN..268])
            .ok_or_else(|| wrong(12, MultifdErrorKind::IdstrUnterminated))?;
        let idstr = Name::new(idstr).map_err(|_| wrong(12, MultifdErrorKind::IdstrEmpty))?;
        let payload_len = be32(header, 272);
        if payload_len == 0 || payload_len > limit {
            let idstr = lossy(&idstr);
            let kind = MultifdErrorKind::DeviceStateLength { found: payload_len, limit, idstr };
            return Err(wrong(272, kind));
        }
        Ok(Self { idstr, instance_id: be32(header, 268), payload_len })
    }
}
