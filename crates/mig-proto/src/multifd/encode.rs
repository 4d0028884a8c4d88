//! Headers of packets: functions that append to a buffer and cannot fail.
//!
//! The bytes are those of QEMU 9.2 and newer: what is unused is zero. The payload is the caller's
//! to send behind the header, from where it lies.

use alloc::vec::Vec;
use core::num::NonZeroU32;

use crate::name::Name;

use super::device_state::DEVICE_STATE_HEADER_LEN;
use super::header::{flag, preamble};
use super::method::Method;
use super::packet::{HEADER_LEN, NAME_AT, OFFSETS_AT, PACKET_PAGES};
use super::pages::PacketPages;

/// What the header of a packet about pages says beside its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamHead<'a> {
    /// A counter for all channels together, SYNC packets included.
    pub packet_num: u64,
    /// The block of all its pages.
    pub block: Name<'a>,
    /// How the pages of the channel are packed.
    pub method: Method,
    /// Length of the payload if a method compresses it, 1 to
    /// [`MAX_COMPRESSED_LEN`](super::MAX_COMPRESSED_LEN); receivers refuse longer ones. Not looked
    /// at where the length follows from the number of normal pages: without a method, or with
    /// none of them.
    pub compressed_len: u32,
}

/// The header of a packet about pages (docs/wire/ram.md §9.3). The payload of its normal pages
/// follows.
pub fn ram_packet(out: &mut Vec<u8>, head: &RamHead<'_>, pages: &PacketPages) {
    let payload_len = match head.method {
        Method::None => pages.raw_len(),
        _ if pages.normal().is_empty() => 0,
        _ => head.compressed_len,
    };
    let end = out.len() + HEADER_LEN;
    out.reserve(HEADER_LEN);
    out.extend_from_slice(&preamble());
    u32_be(out, head.method.flag_bits());
    u32_be(out, PACKET_PAGES as u32);
    u32_be(out, page_count(pages.normal()));
    u32_be(out, payload_len);
    out.extend_from_slice(&head.packet_num.to_be_bytes());
    u32_be(out, page_count(pages.zero()));
    out.extend_from_slice(&[0; NAME_AT - 36]);
    padded_name(out, head.block);
    for offset in pages.normal().iter().chain(pages.zero()) {
        out.extend_from_slice(&offset.to_be_bytes());
    }
    out.resize(end, 0);
}

/// A whole SYNC packet (docs/wire/ram.md §9.4).
pub fn sync_packet(out: &mut Vec<u8>, packet_num: u64) {
    let end = out.len() + HEADER_LEN;
    out.reserve(HEADER_LEN);
    out.extend_from_slice(&preamble());
    u32_be(out, flag::SYNC);
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(&packet_num.to_be_bytes());
    out.resize(end, 0);
}

/// The header of a packet with `payload_len` bytes of state of a device (docs/wire/ram.md §9.7),
/// which follow.
pub fn device_state_packet(
    out: &mut Vec<u8>,
    idstr: Name<'_>,
    instance_id: u32,
    payload_len: NonZeroU32,
) {
    out.reserve(DEVICE_STATE_HEADER_LEN);
    out.extend_from_slice(&preamble());
    u32_be(out, flag::DEVICE_STATE);
    padded_name(out, idstr);
    u32_be(out, instance_id);
    u32_be(out, payload_len.get());
}

/// A name in its field of 256 bytes. At least one of them is zero: names have at most 255.
fn padded_name(out: &mut Vec<u8>, name: Name<'_>) {
    const FIELD: usize = OFFSETS_AT - NAME_AT;
    const { assert!(Name::MAX_LEN < FIELD) };
    let end = out.len() + FIELD;
    out.extend_from_slice(&name);
    out.resize(end, 0);
}

fn page_count(pages: &[u64]) -> u32 {
    u32::try_from(pages.len()).expect("PacketPages holds at most 128")
}

fn u32_be(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}
