//! What a channel under TLS promises, over real sockets and doubles.

mod doubles;
mod keys;
mod promises;
