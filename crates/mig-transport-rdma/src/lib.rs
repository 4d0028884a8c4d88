//! QEMU's `rdma:` transport (docs/wire/rdma.md): the stream travels in messages, guest pages by RDMA WRITE.
//!
//! ```text
//!   protocol/   bytes ⇄ values and every rule of the wire; no device, no clock, no unsafe
//!   verbs/      librdmacm and libibverbs, loaded when first needed; the only unsafe code
//! ```

pub mod protocol;
pub mod verbs;

pub use verbs::{Unavailable, availability, devices};
