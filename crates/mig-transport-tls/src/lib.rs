//! TLS around any byte stream: one handshake a channel, before its first byte of migration (docs/wire/transports.md §5).
//!
//! ```text
//!   Connector below ─▶ TlsConnector (source, TLS client)      ─┐
//!   Listener below  ─▶ TlsListener  (destination, TLS server) ─┴▶ session: handshake ─▶ Channel around the Channel
//!                          │ credentials, authorize, explain: who are we, who may come, why not
//! ```
//! What comes out is a channel like any other; what was below is closed with it.

mod authorize;
mod connector;
mod credentials;
mod explain;
mod identity;
mod listener;
mod options;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(feature = "trial")]
pub mod trial;

pub use crate::{
    authorize::Authorization,
    connector::TlsConnector,
    credentials::{ClientCredentials, ExpectedName, ServerCredentials},
    listener::TlsListener,
    options::TlsOptions,
};
