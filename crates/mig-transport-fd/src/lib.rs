//! Migration over descriptors that somebody else opened: sockets, pipes, FIFOs (docs/wire/transports.md §2.5).
//!
//! ```text
//!   number (inherited) ── adopt, once ──┐
//!   name (handed over) ── take, once ───┼─▶ Descriptor ──▶ FdEnds ──┬─▶ FdConnector (source)      ──▶ Channel
//!   OwnedFd (library)  ── from_owned ───┘   kind checked    in, out └─▶ FdListener  (destination)
//!          ▲
//!          └── receive_fd: one descriptor over a unix socket (SCM_RIGHTS)
//! ```
//!
//! A socket carries bytes both ways, a pipe one way, two pipes both. There is exactly one channel in a descriptor, so a
//! second `connect` or `accept` is refused. What cannot carry a migration (plain files, directories, listening and
//! datagram sockets, terminals) is refused before any byte moves, with what to use instead.

mod adopt;
mod channel;
mod descriptor;
mod names;
mod passing;

pub use crate::{
    channel::{FdConnector, FdEnds, FdListener},
    descriptor::{Descriptor, DescriptorKind, RejectedFd},
    names::NamedDescriptors,
    passing::{receive_fd, send_fd},
};
