//! What tests of several crates share: the transport conformance suite, channels in memory, patterns.
//!
//! ```text
//!   backend's own test ── makes pairs ──▶ conformance ── what every channel promises
//!   tests of what is above ─────────────▶ memory_pair ── channels without a kernel
//!   scenarios, with real transports ───▶ faults      ── the N-th operation fails, byte K is cut, sockets are reset
//!                           direct_pair ── the same with RAM hooks that write into the other end's memory
//!                           Breaker     ── a reset that is told once, as Linux does
//!   both ───────────────────────────────▶ pattern     ── fill a region, tell the first wrong byte
//! ```
//! Everything here panics with a sentence instead of returning an error: a test has no caller who could do better.
//! A development dependency only.

pub mod conformance;
mod direct;
pub mod faults;
mod memory;
pub mod pattern;
mod report;
mod reset;

pub use crate::{
    direct::{DirectRam, Fault, direct_pair},
    memory::{memory_pair, stream_channel, stream_parts},
    report::{not_applicable, runs_inside},
    reset::Breaker,
};
