//! What a channel under TLS promises, over real sockets and doubles.

mod door;
mod doubles;
mod endings;
mod handshakes;
mod keys;
mod promises;
mod rustls_peer;
