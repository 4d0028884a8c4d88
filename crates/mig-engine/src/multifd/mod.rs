//! Data channels beside the main one: QEMU's multifd (docs/wire/ram.md §9).
//!
//! ```text
//!   source                                                            destination
//!     main ── START, PART … ──────── sections, marks ─────────────▶ main
//!     Lane 0 ┐                                                      ┌ Lane 0 ─▶ Placer ┐
//!     Lane 1 ┼ take what is unsent ── packets, SYNC ──────────────▶ ┼ Lane 1 ─▶ Placer ┼ guest memory
//!     Lane … ┘                                                      └ Lane … ─▶ Placer ┘
//! ```
//!
//! Each data channel has a [`Lane`](lane::Lane): a thread with a runtime of its own, so that all processors work. Nothing
//! is handed out in advance: a lane that is free takes the next pages, so the channels balance themselves, and no queue
//! can fill up behind a slow one. Pages of two passes never race: between passes every channel carries a SYNC, and the
//! destination goes on when it has all of them.
//!
//! A channel that fails ends the migration: its lane's result says why, all others are stopped, nobody waits for it.

mod growth;
mod info;
pub(crate) mod lane;
mod packer;
pub(crate) mod receive;
pub(crate) mod send;
mod slow_compressor;

pub use self::{
    growth::AutoChannels,
    info::{CompressionInfo, MultifdInfo},
};
pub(crate) use self::{
    growth::{Growth, Trial},
    send::{Beside, Main},
};
