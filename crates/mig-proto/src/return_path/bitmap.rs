//! The received-bitmap of one RAM block.

use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error;

/// Which pages of a block have arrived: bit *p* is byte `p / 8`, bit `p % 8`, least significant
/// first, on every host. 1 means received. docs/wire/stream.md §7.
///
/// The length is always a multiple of 8 bytes, as it is on the wire; bits past the last page mean
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Bitmap(Vec<u8>);

/// Bitmap bytes that are not a multiple of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a received-bitmap is a multiple of 8 bytes, not {len}")]
pub struct InvalidBitmap {
    /// Bytes given.
    pub len: usize,
}

impl Bitmap {
    /// The length in bytes of the bitmap of a block with so many pages:
    /// `roundup(ceil(pages / 8), 8)`.
    pub const fn len_for_pages(pages: u64) -> u64 {
        pages.div_ceil(64) * 8
    }

    /// A bitmap of a block of which nothing has arrived. Allocates `pages / 8` bytes.
    ///
    /// # Panics
    ///
    /// If the bitmap cannot be addressed on this machine (32-bit hosts, blocks beyond 2⁴⁷ bytes).
    pub fn new(pages: u64) -> Self {
        let len = usize::try_from(Self::len_for_pages(pages))
            .expect("a block whose pages are addressable has an addressable bitmap");
        Self(vec![0; len])
    }

    /// A bitmap from its bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidBitmap`] if the length is not a multiple of 8.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, InvalidBitmap> {
        if bytes.len().is_multiple_of(8) {
            Ok(Self(bytes))
        } else {
            Err(InvalidBitmap { len: bytes.len() })
        }
    }

    /// The bytes, as they are on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Whether the page has arrived. Pages past the end have not.
    pub fn is_received(&self, page: u64) -> bool {
        usize::try_from(page / 8)
            .ok()
            .and_then(|byte| self.0.get(byte))
            .is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    }

    /// Marks a page as arrived and says whether the bitmap is long enough to do so.
    #[must_use = "false means that the page is outside the block"]
    pub fn mark_received(&mut self, page: u64) -> bool {
        let byte = usize::try_from(page / 8).ok().and_then(|byte| self.0.get_mut(byte));
        match byte {
            Some(byte) => {
                *byte |= 1 << (page % 8);
                true
            }
            None => false,
        }
    }

    /// The pages below `pages` that still have to be sent, ascending: the complement.
    pub fn missing(&self, pages: u64) -> impl Iterator<Item = u64> + '_ {
        (0..pages).filter(|&page| !self.is_received(page))
    }
}
