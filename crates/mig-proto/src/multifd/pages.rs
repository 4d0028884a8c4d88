//! The pages of a packet that is being filled.

use super::packet::{PACKET_PAGES, PAGE_LEN};

/// Offsets, in one block, of the pages of one packet to be sent: at most [`PACKET_PAGES`].
///
/// ```text
///   normal → │ 0x7f000 0x7e000 │        free        │ 0x1000 0x3000 │ ← zero
/// ```
///
/// The type is the proof that they fit, so [encoding](super::encode::ram_packet) cannot fail. It is
/// filled, sent, [cleared](Self::clear) and filled again without allocating.
#[derive(Debug, Clone)]
pub struct PacketPages {
    offsets: [u64; PACKET_PAGES],
    normal: usize,
    zero: usize,
}

/// The packet has [`PACKET_PAGES`] pages already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a multifd packet has at most {PACKET_PAGES} pages")]
pub struct PacketFull;

impl PacketPages {
    /// No pages.
    pub const fn new() -> Self {
        Self { offsets: [0; PACKET_PAGES], normal: 0, zero: 0 }
    }

    /// Adds a page whose bytes are sent. `offset` is a multiple of the page size, else every
    /// receiver like this one refuses the packet.
    pub fn push_normal(&mut self, offset: u64) -> Result<(), PacketFull> {
        self.check(offset)?;
        self.offsets[self.normal] = offset;
        self.normal += 1;
        Ok(())
    }

    /// Adds a page of zeros. `offset` as above.
    pub fn push_zero(&mut self, offset: u64) -> Result<(), PacketFull> {
        self.check(offset)?;
        self.zero += 1;
        self.offsets[PACKET_PAGES - self.zero] = offset;
        Ok(())
    }

    fn check(&self, offset: u64) -> Result<(), PacketFull> {
        debug_assert!(offset.is_multiple_of(PAGE_LEN as u64), "offset {offset:#x} of a page");
        if self.is_full() { Err(PacketFull) } else { Ok(()) }
    }

    /// Pages whose bytes are sent, in the order of the payload.
    pub fn normal(&self) -> &[u64] {
        &self.offsets[..self.normal]
    }

    /// Pages of zeros, in the order of the wire: the last one added first.
    pub fn zero(&self) -> &[u64] {
        &self.offsets[PACKET_PAGES - self.zero..]
    }

    /// Pages in all.
    pub const fn len(&self) -> usize {
        self.normal + self.zero
    }

    /// True if there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if no other page fits.
    pub const fn is_full(&self) -> bool {
        self.len() == PACKET_PAGES
    }

    /// Forgets all pages.
    pub const fn clear(&mut self) {
        (self.normal, self.zero) = (0, 0);
    }

    /// Bytes of the normal pages, which are the payload where nothing compresses them.
    pub const fn raw_len(&self) -> u32 {
        (self.normal * PAGE_LEN) as u32
    }
}

impl Default for PacketPages {
    fn default() -> Self {
        Self::new()
    }
}
