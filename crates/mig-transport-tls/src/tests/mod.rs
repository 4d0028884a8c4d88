//! What a channel under TLS promises, over real sockets and doubles.

mod door;
mod doubles;
mod endings;
mod flood;
mod half_sent;
mod handshakes;
mod keys;
mod promises;
mod rustls_peer;
