//! TLS around any byte stream: one handshake a channel, before its first byte of migration.

#[expect(dead_code, reason = "the connector and the listener come next")]
mod session;
