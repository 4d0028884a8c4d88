//! What tests of several crates share: the transport conformance suite, channels in memory, patterns.
//!
//! ```text
//!   backend's own test ── makes pairs ──▶ conformance ── what every channel promises
//!   tests of what is above ─────────────▶ memory_pair ── channels without a kernel
//!   both ───────────────────────────────▶ pattern     ── fill a region, tell the first wrong byte
//! ```
//! Everything here panics with a sentence instead of returning an error: a test has no caller who could do better.
//! A development dependency only.

pub mod conformance;
mod memory;
pub mod pattern;
mod report;

pub use crate::{
    memory::{memory_pair, stream_channel},
    report::not_applicable,
};
