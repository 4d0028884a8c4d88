//! A source without a guest: it replays a stored stream.
//!
//! ```text
//!   Read ──▶ InputReader (thread) ──▶ StreamWalk ──▶ Cutter ──▶ StreamWriter ──▶ destination
//!                                                       ▲ OPEN_RETURN_PATH, PING 1       │
//!   confirmed ◀──────────────────────────────────────── SHUT 0 ◀──────────────────────────┘
//! ```
//!
//! The happy path: the stream goes out byte for byte, checked on the way; where there is a way back, the destination is
//! asked for its verdict right behind CONFIGURATION, and success is reported only when it said so. Nothing of a chunk is
//! sent before all of it was found sound, so a broken or truncated input never looks complete to the destination: the
//! channel is cut instead of ended.
//!
//! A transport that carries memory itself gets it from memory: the input is read twice then (see `memory`).

mod cutter;
mod input;
mod memory;
mod replayer;
mod stored;

pub use self::{
    replayer::{ReplayOptions, Replayed, Replayer, ReturnPathWish},
    stored::{StoredStream, walk_stored},
};
