//! QEMU's `rdma:` transport (docs/wire/rdma.md): the stream travels in messages, guest pages by RDMA WRITE.
//!
//! ```text
//!   protocol/   bytes ⇄ values and every rule of the wire; no device, no clock, no unsafe
//!   verbs/      librdmacm and libibverbs, loaded when first needed; the only unsafe code
//! ```

mod channel;
mod connect;
mod counters;
mod destination;
mod link;
mod listen;
mod memlock;
mod options;
pub mod protocol;
mod receiving;
mod resolve;
mod sending;
mod source;
pub mod verbs;

pub use crate::{
    connect::RdmaConnector,
    counters::RdmaCounters,
    listen::RdmaListener,
    options::RdmaOptions,
    verbs::{Unavailable, availability, devices},
};
