//! Migration over unix sockets (docs/wire/transports.md §2.3).
//!
//! ```text
//!   UnixAddress + UnixOptions ─┬─▶ UnixConnector ────────────────▶ Channel
//!                              └─▶ UnixListener ── who is it? ───▶ Channel …
//! ```
//! A listener takes the place of a socket file that nobody has any more, never of one that is alive or of another
//! file, and removes its own file when it goes. Each end knows the other's process and user.

mod connect;
mod listen;
mod options;
mod socket;

pub use crate::{
    connect::UnixConnector, listen::UnixListener, options::UnixOptions, socket::PeerCredentials,
};
