//! The async QEMUFile: buffered, counted, paced and stoppable byte streams over any channel.
//!
//! ```text
//!                         ┌── StreamWriter ── list of heads and pages ── RateLimiter ──▶ Sender
//!   Channel ──▶ Stream ───┼── StreamReader ◀── one large buffer, IdleClock ──────────── Receiver
//!                         ├── RamHooks (handed on)
//!                         └── StopToken, StreamCounters (any task, any time)
//! ```
//!
//! What is here moves, counts, paces, splits and stops ordered bytes; it does not know a message, a page flag or a
//! phase. The happy path: [`Stream::open`] a channel, take the main half and, where there is a way back, the
//! return-path half; `put_*` into the writer and [`flush`](StreamWriter::flush), [`fill`](StreamReader::fill) the
//! reader and [`consume`](StreamReader::consume). On failure the first error sticks: every later call on that half
//! answers a clone of it, with its cause, the channel's name and the byte position.

mod counters;
mod deadline;
mod error;
mod idle;
mod pacer;
mod rate_limiter;
mod reader;
mod stop;
mod stream;
mod sync;
mod writer;

pub use mig_transport::ShutdownHandle;

pub use crate::{
    counters::StreamCounters,
    deadline::within,
    error::{Error, Place, Result},
    idle::IdleClock,
    pacer::{Grant, Pacer},
    rate_limiter::RateLimiter,
    reader::StreamReader,
    stop::StopToken,
    stream::{Stream, StreamOptions},
    writer::StreamWriter,
};
