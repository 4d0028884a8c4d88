//! A destination without a guest: it keeps the stream.
//!
//! ```text
//!   Listener ──▶ accept ──▶ StreamReader ──▶ StreamWalk ──▶ Keeper ──▶ SinkWriter (thread) ──▶ StreamSink
//!                              │                 └─ answers: PONG, SWITCHOVER_ACK
//!                              └◀──────────────── SHUT 0 / SHUT 1, after the commit
//! ```
//!
//! The happy path: the source connects, the whole stream is decoded and kept, VMDESCRIPTION is read to its announced end,
//! the sink makes it durable and gives it its name, and only then the source hears SHUT 0 and lets go of its guest. On
//! failure, on cancel and on every deadline the sink is dropped uncommitted and the source hears SHUT 1 where there is a
//! way back: the guest stays with it.
//!
//! A transport that writes into memory by itself is given memory to write into, as much as the guest has; its pages are
//! written where the last section of `ram` ends (see `memory`).

mod counts;
mod keeper;
mod memory;
mod recorder;
mod sink;
mod writer;

pub use self::{
    counts::PageCounts,
    recorder::{EventObserver, RecordOptions, Recorded, Recorder},
    sink::{Discard, StreamSink, WriteSink},
};
