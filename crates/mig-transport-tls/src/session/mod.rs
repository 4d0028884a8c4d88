//! One TLS connection around one channel.
//!
//! ```text
//!   negotiate ── Handshake (engine) ─▶ Established ─┬─▶ TlsReceiveHalf: Incoming ── Open ──▶ plaintext
//!                                                   └─▶ TlsSendHalf ── Link: Seal ── Records ──▶ sender below
//! ```
//!
//! The handshake is rustls's, and so are every key and what opens records after it; the records are cut, numbered, held and
//! [sealed](cipher) here. Tried beside it, on records from memory larger than the caches and of one core's time, were rustls's two
//! interfaces that do all of it:
//!
//! ```text
//!                      reads   writes
//!   records here       1.00     1.00    decrypted in place, one copy to where they are wanted; copied once out of the guest,
//!                                       sealed there and sent from there
//!   sealed by rustls    -       0.95    one copy more
//!   unbuffered rustls  0.88     0.91    one copy more each way
//!   buffered rustls    0.65     1.00    reads 4 KiB at a time, moves the rest of its buffer for each record
//! ```
//! As much weighs that the two directions have nothing in common here but the moments when keys change: with one object for
//! both, a source's bulk and its return path would wait for each other. `cargo run --release --example throughput` shows
//! what a channel costs each end.
//!
//! Memory of a channel: [`incoming`] 256 KiB, [`link`] up to 0.6 MiB of sealed records, as far as they were ever used; in a
//! handshake 2 to 20 KiB, and of a message that comes in pieces what [`allowance`] lets a source say, 128 KiB of a destination.

pub(crate) mod agree;
mod allowance;
mod beginning;
mod cipher;
pub(crate) mod engine;
mod halves;
mod incoming;
mod link;
mod negotiate;
mod progress;
#[cfg(feature = "tls-psk")]
mod psk;
mod records;

pub(crate) use self::{
    beginning::{destination, source},
    halves::Role,
    negotiate::{Admit, Terms, negotiate},
    progress::{Events, Progress},
};
#[cfg(test)]
pub(crate) use self::{
    link::Link,
    negotiate::{Beginning, negotiate_link},
};
