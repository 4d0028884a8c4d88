//! One TLS connection around one channel.
//!
//! ```text
//!   negotiate ── Handshake (engine) ─▶ Established ─┬─▶ TlsReceiveHalf: Incoming ── Open ──▶ plaintext
//!                                                   └─▶ TlsSendHalf ── Link: Seal ── Records ──▶ sender below
//! ```

pub(crate) mod agree;
mod beginning;
pub(crate) mod engine;
mod halves;
mod incoming;
mod link;
mod negotiate;
#[cfg(feature = "tls-psk")]
mod psk;
mod records;

pub(crate) use self::{
    beginning::{destination, source},
    halves::Role,
    negotiate::{Admit, Terms, negotiate},
};
#[cfg(test)]
pub(crate) use self::{link::Link, negotiate::negotiate_link};
