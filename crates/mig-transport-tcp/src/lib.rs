//! Migration over tcp (docs/wire/transports.md §2.1, §2.2, §4).
//!
//! ```text
//!   InetAddress + TcpOptions ─┬─▶ TcpConnector ── resolve ─▶ each address in turn ──▶ Channel
//!                             └─▶ TcpListener  ── resolve ─▶ one socket an address ─▶ Channel …
//! ```
//! What the address says wins over the options; the options hold what an address cannot say, and safe defaults: no
//! Nagle delay, keepalive and user timeout on, a deadline on connecting. On failure every address that was tried is
//! named with its own reason.

mod connect;
mod failure;
mod listen;
mod options;
mod resolve;
mod socket;

pub use crate::{
    connect::TcpConnector,
    failure::AddressesFailed,
    listen::TcpListener,
    options::{KeepAlive, TcpOptions},
};
