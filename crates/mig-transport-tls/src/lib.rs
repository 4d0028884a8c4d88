//! TLS around any byte stream: one handshake a channel, before its first byte of migration.
