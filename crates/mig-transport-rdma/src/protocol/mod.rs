//! The protocol of docs/wire/rdma.md without a device: bytes in and out, decisions, no I/O.
//!
//! ```text
//!   private_data          what connect and accept carry: version, pin-all, our extension
//!   header · message      control messages ⇄ values
//!   ready                 who may send what when, one small machine for each direction
//!   stream                stream bytes in and out of QEMU_FILE messages
//!
//!   source                                    destination
//!   blocks::SourceBlocks  ◀── exchange ───    blocks::DestinationBlocks
//!   runs ─▶ transfer ─▶ windows                serve
//!   (what) (in which order) (with which key)  (what a source may ask for)
//! ```
//!
//! Every call either says what to do next or returns an [`Error`] that names the field and who is to blame. After an error
//! nothing is continued: the connection sends ERROR if it may, and closes.

pub mod blocks;
mod error;
pub mod header;
#[cfg(test)]
pub mod malformed;
pub mod message;
#[cfg(test)]
mod model;
pub mod private_data;
pub mod ready;
pub mod runs;
pub mod serve;
mod span;
pub mod stream;
pub mod transfer;
pub mod windows;

pub use self::{
    error::{Error, Result},
    span::Span,
};

/// One mebibyte: the unit in which REGISTER_REQUEST counts chunks (docs/wire/rdma.md §1, §9.6).
pub const CHUNK_BYTES: u64 = 1 << 20;

/// How many blocks fit one RAM_BLOCKS_RESULT, and QEMU's 14-bit block index (docs/wire/rdma.md §3.3).
pub const MAX_BLOCKS: usize = 16_383;
