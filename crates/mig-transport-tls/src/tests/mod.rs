//! What a channel under TLS promises, over real sockets and doubles.

mod doubles;
mod handshakes;
mod keys;
mod promises;
