//! Migration over vsock, between a guest and its host (docs/wire/transports.md §2.4).
//!
//! ```text
//!   VsockAddress + VsockOptions ─┬─▶ VsockConnector ──▶ Channel
//!                                └─▶ VsockListener ───▶ Channel …
//! ```
//! Whether the kernel has vsock at all, and whether it connects a machine to itself, is found out before it is needed:
//! [`availability`], [`loopback_availability`]. What is missing is an error that names it and the remedy.

mod available;
mod connect;
mod listen;
mod options;
mod socket;

pub use crate::{
    available::{availability, loopback_availability},
    connect::VsockConnector,
    listen::VsockListener,
    options::VsockOptions,
};
