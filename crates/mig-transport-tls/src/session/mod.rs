//! One TLS connection around one channel.

pub(crate) mod engine;
