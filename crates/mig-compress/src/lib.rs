//! Compressed pages: what multifd and COMPRESS_PAGE put on the wire, and how much of it costs no time.
//!
//! ```text
//!   source, one channel                               destination, the same channel
//!   pages ─▶ Compressor ── payload, flushed ──▶ Decompressor ─▶ pages
//!              ▲ one zlib stream or zstd frame for the channel's whole life
//!   sample ─▶ choose_level                            COMPRESS_PAGE ─▶ PageInflater ─▶ page
//!   counters ─▶ judge: was compression in the way?
//! ```
//! docs/wire/ram.md §5 and §9.6 are the rules. No I/O, no clock but the one that [`choose_level`] measures with, no
//! other crate of ours. Memory is bounded: [`MAX_PACKET_BYTES`] in, [`payload_bound`] out, and a foreign zstd window of
//! at most [`MAX_WINDOW_LOG`].

mod choice;
mod compressor;
mod decompressor;
mod error;
mod frame;
mod method;
mod page;
mod verdict;

pub use crate::{
    choice::{Budget, Choice, MAX_SAMPLE_BYTES, Trial, choose_level},
    compressor::{Compressor, payload_bound},
    decompressor::{Decompressor, MAX_PAYLOAD_BYTES},
    error::{Error, Problem, Result},
    frame::MAX_WINDOW_LOG,
    method::{Level, MAX_PACKET_BYTES, Method},
    page::{PAGE_BYTES, PageInflater},
    verdict::{Bottleneck, CompressionVerdict, Observed, Suggestion, judge},
};
