//! TLS around any byte stream: one handshake a channel, before its first byte of migration.

#![expect(dead_code, reason = "the connector and the listener come next")]

mod authorize;
mod credentials;
mod explain;
mod session;
#[cfg(test)]
mod testing;

pub use crate::{
    authorize::Authorization,
    credentials::{ClientCredentials, ExpectedName, ServerCredentials},
};
