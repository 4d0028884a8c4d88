//! The fault kit: channels around real channels that fail where they are told to, and a man in the middle.
//!
//! ```text
//!   engine ──▶ FaultyConnector / FaultyListener ──▶ faulty halves ──▶ the transport's own, real kernel objects
//!                          │ every operation asks      │
//!                          └──────── Faults ◀──────────┘  counts; the N-th fails, stalls; byte K is cut, turned
//!
//!   source ──▶ Link ──▶ destination          resets, doubled and reordered connections, on real sockets
//! ```
//!
//! A first run with [`Faults::counting`] tells how many operations of each kind there are; then each gets its own run
//! with [`Faults::with`]. A fault strikes once, at one operation of one channel of one end; what was done before
//! has really been done. Short reads and writes ([`Faults::in_pieces`]) make many operations of a small migration.

mod channel;
mod halves;
mod link;
mod plan;
mod wire;

pub use self::{
    channel::{FaultyConnector, FaultyListener},
    link::{Link, LinkAddress, LinkFault},
    plan::{Act, ByteAct, Fault, Faults, Operation},
};
