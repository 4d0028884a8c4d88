//! XBZRLE: what changed in a page since it was sent last. docs/wire/ram.md §4.
//!
//! ```text
//!   delta := ( zrun nzrun )*
//!   zrun  := len               so many bytes stay as they are
//!   nzrun := len  len bytes    so many bytes become these
//!   len   := one byte below 0x80, or two: low seven bits | 0x80, then the high seven
//!
//!   10 01 5a  ef 0f 01 a5      byte 16 := 5a, then 2031 stay, byte 2048 := a5
//! ```
//!
//! The source keeps a copy of what the destination has, [encodes](encode()) the new page against it
//! and sends the delta, the whole page where that is not shorter, or nothing where nothing changed. The
//! destination [applies](apply()) the delta to the page it has. What stays at the end is left out.
//!
//! A delta that is none is a [`BadDelta`], and the page is then changed in part: the migration has
//! failed.

mod apply;
mod encode;

pub use apply::{BadDelta, apply, changed};
pub use encode::{Encoded, encode, encode_changed};

/// Longest run that a length can tell: 14 bits.
const MAX_RUN: usize = (1 << 14) - 1;
